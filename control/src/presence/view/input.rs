//! What watch streams may say to the view, and why it refuses them.

use causeway_proto::id::{BootId, Epoch, NodeId};
use causeway_proto::presence::Op;

use crate::presence::limits::{CLAIMS_PER_OWNER_MAX, OWNERS_MAX};

/// What a watch stream says of its owner, in the epoch the stream's hello named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WatchInput {
    /// The stream is up.
    Hello {
        /// The owner's process.
        boot_id: BootId,
    },
    /// All claims as of `seq`.
    Snapshot {
        /// The last sequence included.
        seq: u64,
        /// Claims only, sorted by key.
        ops: Vec<Op>,
    },
    /// Consecutive operations.
    Delta {
        /// Sequence of the first.
        first_seq: u64,
        /// The operations.
        ops: Vec<Op>,
    },
    /// A sign of life.
    Heartbeat {
        /// Nodes whose watch stream is live at the owner.
        hears: Vec<NodeId>,
    },
    /// The stream is no longer live.
    Down,
}

/// Why input of a watch stream was refused. Nothing of it took effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IngestError {
    /// A higher epoch of the owner is known: this stream is of an old process.
    #[error("epoch is below the highest known, {highest}")]
    LowerEpoch {
        /// The highest epoch known.
        highest: Epoch,
    },
    /// Two processes offer the same epoch: a copied data directory.
    #[error("epoch {epoch} belongs to another process")]
    OtherBootId {
        /// The epoch.
        epoch: Epoch,
    },
    /// Operations are missing before these: follow again.
    #[error("expected sequence {expected_seq}")]
    Gap {
        /// The first sequence not known.
        expected_seq: u64,
    },
    /// No hello of this epoch came before.
    #[error("the stream said no hello")]
    NoHello,
    /// The owner would hold more than [`CLAIMS_PER_OWNER_MAX`] claims.
    #[error("more than {CLAIMS_PER_OWNER_MAX} claims of one node")]
    TooManyClaims,
    /// More than [`OWNERS_MAX`] nodes.
    #[error("more than {OWNERS_MAX} nodes")]
    TooManyOwners,
    /// The owner left the fleet for good.
    #[error("the node is evicted")]
    Evicted,
    /// A snapshot with releases or unordered keys, epoch or sequence 0.
    #[error("the message is malformed")]
    Malformed,
    /// A node's own claims come from its own log only.
    #[error("that node is this one")]
    Own,
}
