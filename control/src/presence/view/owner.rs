//! What the view's writers know of one owner.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use causeway_proto::id::{BootId, Epoch, NodeId, RegionId};

/// What writers know of an owner.
#[derive(Debug)]
pub(super) struct Owner {
    pub(super) node: NodeId,
    pub(super) region: Option<RegionId>,
    pub(super) epoch: Epoch,
    pub(super) boot_id: BootId,
    pub(super) seq: Arc<AtomicU64>,
    /// Claims were dropped after a long fence: only a full set of them makes sense of more operations.
    pub(super) incomplete: bool,
    pub(super) evicted: bool,
    pub(super) fenced_epoch: Option<Epoch>,
    pub(super) live: bool,
    pub(super) was_live: bool,
    pub(super) hears: Arc<[NodeId]>,
    pub(super) last_heard: Option<Instant>,
    pub(super) claims: usize,
    /// Claims of a former process, to be taken out: nobody sees them, and the node has another slot.
    pub(super) retired: bool,
    /// As subscribers were told of the owner; `None` before it is published.
    pub(super) published_valid: Option<bool>,
    /// How often its claims began or ceased to count, and up to which time its keys were gathered to be told one by one.
    pub(super) changes: u64,
    pub(super) gathered: u64,
}

impl Owner {
    pub(super) fn new(node: NodeId) -> Self {
        Self {
            node,
            region: None,
            epoch: Epoch(0),
            boot_id: BootId::default(),
            seq: Arc::default(),
            incomplete: false,
            evicted: false,
            fenced_epoch: None,
            live: false,
            was_live: false,
            hears: Arc::default(),
            last_heard: None,
            claims: 0,
            retired: false,
            published_valid: None,
            changes: 0,
            gathered: 0,
        }
    }

    pub(super) fn seq(&self) -> u64 {
        self.seq.load(Ordering::Relaxed)
    }

    pub(super) fn is_fenced(&self) -> bool {
        self.fenced_epoch.is_some_and(|fenced| self.epoch <= fenced)
    }
}
