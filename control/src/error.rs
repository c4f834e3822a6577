//! Why the control plane cannot start, why it must stop, and why it does not do what an operator asks.

use causeway_proto::id::Epoch;

use crate::data_dir::DataDirError;
use crate::epoch::EpochError;
use crate::identity::NodeKeyError;

/// Why the control plane cannot start. Each message says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The data directory is in use, another node's, or unusable.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The identity key is unusable.
    #[error(transparent)]
    NodeKey(#[from] NodeKeyError),
    /// The epoch counter is unusable.
    #[error(transparent)]
    Epoch(#[from] EpochError),
    /// Raft's log or snapshot is damaged or unusable.
    #[error(transparent)]
    Raft(#[from] crate::raft::OpenError),
    /// This node's clock differs from its peers'.
    #[error("this node's clock is {by_ms} ms {direction} its peers': set it right (at most 5000 ms are allowed) and start again")]
    ClockOff {
        /// How far, in milliseconds.
        by_ms: u64,
        /// `ahead of` or `behind`.
        direction: &'static str,
    },
    /// Every seed that answers has another mesh key.
    #[error(
        "mesh_key_file: wrong mesh key, every seed that answers has another (fingerprint of ours: {ours}, of theirs: {theirs}); put the fleet's mesh key into this file, or correct `discovery` if the seeds are another fleet's nodes"
    )]
    WrongMeshKey {
        /// Fingerprint of our mesh key.
        ours: String,
        /// Fingerprint of theirs, or why it is not known.
        theirs: String,
    },
    /// A setting cannot be used.
    #[error("{field}: {expected}")]
    Config {
        /// The configuration field.
        field: &'static str,
        /// What would be right.
        expected: String,
    },
}

/// Why the process must stop.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fatal {
    /// Another process runs under this node's identity with a higher epoch.
    #[error(
        "another process runs as this node (epoch {theirs}, ours is {ours}): its data directory was copied; stop one of the two, and give the copy an empty data directory"
    )]
    OwnEpochSuperseded {
        /// This process's epoch.
        ours: Epoch,
        /// The epoch seen at a peer.
        theirs: Epoch,
    },
    /// The fleet has evicted this node.
    #[error("this node was evicted from the fleet: it can only return with an empty data directory, as a new node")]
    Evicted,
}

/// Why an operator's request was not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AdminError {
    /// Something in the request is wrong; says what would be right.
    #[error("{0}")]
    Invalid(String),
    /// What was asked for does not exist.
    #[error("{0}")]
    NotFound(String),
    /// Not possible in the fleet's present state; says why.
    #[error("{0}")]
    Unavailable(String),
    /// Not done in time; the outcome is unknown.
    #[error("{0}")]
    TimedOut(String),
}

impl From<AdminError> for tonic::Status {
    fn from(error: AdminError) -> Self {
        let message = error.to_string();
        match error {
            AdminError::Invalid(_) => Self::invalid_argument(message),
            AdminError::NotFound(_) => Self::not_found(message),
            AdminError::Unavailable(_) => Self::unavailable(message),
            AdminError::TimedOut(_) => Self::deadline_exceeded(message),
        }
    }
}
