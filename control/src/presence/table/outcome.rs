//! What became of a command, and what the view must learn of it.

use causeway_proto::id::{BootId, Epoch, NodeId};
use causeway_proto::presence::Op;

use crate::presence::limits::{CLAIMS_PER_OWNER_MAX, OWNERS_MAX};

/// Why a command changed nothing and must not be repeated as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A higher epoch of the node was applied: this process is not the newest.
    #[error("epoch is below the highest seen, {highest}")]
    LowerEpoch {
        /// The highest epoch seen.
        highest: Epoch,
    },
    /// Another process used this epoch: the data directory was copied.
    #[error("epoch {epoch} belongs to another process")]
    OtherBootId {
        /// The epoch both offer.
        epoch: Epoch,
    },
    /// Operations are missing before these.
    #[error("expected sequence {expected_seq}")]
    Gap {
        /// The next sequence to propose.
        expected_seq: u64,
    },
    /// The claims were dropped, or more is known than the reset has: propose a [`Command::Reset`](crate::presence::Command::Reset) of the present state.
    #[error("a reset at sequence {at_least_seq} or later is needed")]
    NeedsReset {
        /// The lowest sequence that a reset may state.
        at_least_seq: u64,
    },
    /// The node left the fleet for good.
    #[error("the node is evicted")]
    Evicted,
    /// The owner would hold more than [`CLAIMS_PER_OWNER_MAX`] claims.
    #[error("more than {CLAIMS_PER_OWNER_MAX} claims of one node")]
    TooManyClaims,
    /// There are [`OWNERS_MAX`] owners already.
    #[error("more than {OWNERS_MAX} nodes")]
    TooManyOwners,
    /// Epoch or sequence 0, or a reset with releases or unordered keys.
    #[error("the command is malformed")]
    Malformed,
}

/// What became of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It took effect; for operations, `seq` is the last one applied now.
    Applied {
        /// Last sequence applied of that owner.
        seq: u64,
    },
    /// Everything in it was known before.
    Unchanged {
        /// Last sequence applied of that owner.
        seq: u64,
    },
    /// It changed nothing.
    Refused(Refusal),
}

/// A change of the table, in log order, for the view.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TableEvent {
    /// Operations were applied.
    Advanced {
        /// The owner.
        node: NodeId,
        /// Its epoch.
        epoch: Epoch,
        /// Its process.
        boot_id: BootId,
        /// Sequence of the first operation.
        first_seq: u64,
        /// Exactly the operations that were new.
        ops: Vec<Op>,
    },
    /// All claims of the owner were replaced.
    Replaced {
        /// The owner.
        node: NodeId,
        /// Its epoch.
        epoch: Epoch,
        /// Its process.
        boot_id: BootId,
        /// The last sequence included.
        seq: u64,
        /// All its claims, sorted by key.
        ops: Vec<Op>,
    },
    /// The owner's epochs up to this one stopped counting by Raft.
    Fenced {
        /// The owner.
        node: NodeId,
        /// Highest fenced epoch.
        epoch: Epoch,
    },
    /// The fence is lifted.
    Unfenced {
        /// The owner.
        node: NodeId,
    },
    /// The fenced owner's claims are dropped.
    Dropped {
        /// The owner.
        node: NodeId,
        /// Its epoch.
        epoch: Epoch,
    },
    /// The owner left for good.
    Evicted {
        /// The owner.
        node: NodeId,
    },
}

/// What [`Table::apply`](super::Table::apply) did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// The answer to the proposer.
    pub outcome: Outcome,
    /// What the view must learn, in order.
    pub events: Vec<TableEvent>,
}
