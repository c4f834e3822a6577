//! Checked conversions between generated messages and the types of `causeway-proto`.

use causeway_proto::id::{BootId, NodeId};
use causeway_proto::key::NodePublic;
use causeway_proto::presence::{ClaimKind, PresenceKey, Rank};

use crate::v1;

/// A message of a peer or an operator has a field of the wrong shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("field {field}: {expected}")]
pub struct MalformedMessage {
    /// The field, as named in the schema.
    pub field: &'static str,
    /// What would be right.
    pub expected: &'static str,
}

impl MalformedMessage {
    /// Names a field and what would be right.
    #[must_use]
    pub const fn new(field: &'static str, expected: &'static str) -> Self {
        Self { field, expected }
    }
}

impl From<MalformedMessage> for tonic::Status {
    fn from(error: MalformedMessage) -> Self {
        Self::invalid_argument(error.to_string())
    }
}

/// Reads a 32-byte key.
///
/// # Errors
/// [`MalformedMessage`] naming `field` if the length is another.
pub fn presence_key(field: &'static str, bytes: &[u8]) -> Result<PresenceKey, MalformedMessage> {
    bytes.try_into().map(PresenceKey).map_err(|_| MalformedMessage::new(field, "a key is 32 bytes"))
}

/// Reads a client key.
///
/// # Errors
/// [`MalformedMessage`] naming `field` if the length is not 32.
pub fn node_public(field: &'static str, bytes: &[u8]) -> Result<NodePublic, MalformedMessage> {
    presence_key(field, bytes).map(|key| NodePublic::from_bytes(key.0))
}

/// Reads a boot id.
///
/// # Errors
/// [`MalformedMessage`] naming `field` if the length is not 16.
pub fn boot_id(field: &'static str, bytes: &[u8]) -> Result<BootId, MalformedMessage> {
    bytes.try_into().map(BootId).map_err(|_| MalformedMessage::new(field, "a boot id is 16 bytes"))
}

impl From<Rank> for v1::Rank {
    fn from(rank: Rank) -> Self {
        Self { clock_us: rank.clock_us, node_id: rank.node.0 }
    }
}

impl From<v1::Rank> for Rank {
    fn from(rank: v1::Rank) -> Self {
        Self { clock_us: rank.clock_us, node: NodeId(rank.node_id) }
    }
}

impl From<ClaimKind> for v1::ClaimKind {
    fn from(kind: ClaimKind) -> Self {
        match kind {
            ClaimKind::Tx3 => Self::Tx3,
            ClaimKind::Turbo => Self::Turbo,
            ClaimKind::Quicpipe => Self::Quicpipe,
            ClaimKind::Derper => Self::Derper,
            _ => Self::Derp,
        }
    }
}
