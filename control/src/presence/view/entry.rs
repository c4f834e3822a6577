//! What the view's readers need of an owner.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use causeway_proto::id::{Epoch, NodeId, RegionId};

use super::claims::Claim;
use crate::presence::prefer::Validity;

/// What readers need of an owner; replaced as a whole whenever anything in it changes.
#[derive(Debug, Clone)]
pub(super) struct OwnerEntry {
    pub(super) node: NodeId,
    pub(super) region: Option<RegionId>,
    pub(super) epoch: Epoch,
    pub(super) validity: Validity,
    pub(super) hears: Arc<[NodeId]>,
    /// Shared with the writer: moves without replacing the entry.
    pub(super) seq: Arc<AtomicU64>,
    /// Claims of a former process, which nobody may see.
    pub(super) retired: bool,
}

pub(super) fn is_valid(owners: &[OwnerEntry], claim: &Claim) -> bool {
    owners.get(usize::from(claim.owner)).is_some_and(|owner| owner.validity.is_valid())
}

pub(super) fn any_valid(owners: &[OwnerEntry], claims: &[Claim]) -> bool {
    claims.iter().any(|claim| is_valid(owners, claim))
}
