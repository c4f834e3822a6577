//! What subscribers of the view are told.

use std::sync::Arc;

use causeway_proto::id::NodeId;
use causeway_proto::presence::{ClaimKind, PresenceKey, Rank};

/// What changed at this observer. Sent in batches, in the order it was learnt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum PresenceEvent {
    /// A claim began to count here: it is new, or its owner is back and nobody else held the key.
    Claimed {
        /// The key.
        key: PresenceKey,
        /// The claim.
        rank: Rank,
        /// The client calls it its home.
        home: bool,
        /// The front door.
        kind: ClaimKind,
    },
    /// The owner ended the claim of this rank.
    Released {
        /// The key.
        key: PresenceKey,
        /// The claim.
        rank: Rank,
        /// The client said goodbye.
        clean: bool,
    },
    /// All claims of this node stopped counting here.
    OwnerLost {
        /// The node.
        node: NodeId,
    },
    /// They count again.
    OwnerBack {
        /// The node.
        node: NodeId,
    },
    /// The node's region became known, or is another now.
    RegionLearnt {
        /// The node.
        node: NodeId,
    },
    /// No valid claim on the key is left.
    LastClaimGone {
        /// The key.
        key: PresenceKey,
        /// The client said goodbye to the node that held it last.
        clean: bool,
    },
}

/// Events that belong together.
pub type EventBatch = Arc<[PresenceEvent]>;
