//! What operators may do through a node.

use causeway_proto::presence::PresenceKey;
use causeway_rpc::v1;

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

/// Acts on the fleet for operators.
#[derive(Debug, Clone)]
pub struct Admin {}

/// A committed claim, as a consistent read returns it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommittedClaim {
    /// When and by whom it was minted.
    pub rank: causeway_proto::presence::Rank,
    /// The owner's epoch.
    pub epoch: causeway_proto::id::Epoch,
    /// Whether the client calls it its home.
    pub home: bool,
    /// The front door.
    pub kind: causeway_proto::presence::ClaimKind,
    /// Raft has fenced the owner's epoch.
    pub fenced: bool,
}

impl Admin {
    /// Forms a fleet, once; on a formed fleet it only reports.
    ///
    /// # Errors
    /// [`AdminError`].
    #[expect(clippy::unused_async, reason = "asks other nodes once they can be reached")]
    pub async fn init_cluster(&self, _request: v1::InitClusterRequest) -> Result<v1::InitClusterResponse, AdminError> {
        Err(AdminError::Unavailable("no node can be reached yet".to_owned()))
    }

    /// All claims that Raft has committed on a key, by a quorum round trip, greatest rank first.
    ///
    /// # Errors
    /// [`AdminError::Unavailable`] without a quorum.
    #[expect(clippy::unused_async, reason = "asks the leader once there is one")]
    pub async fn consistent_claims(&self, _key: PresenceKey) -> Result<Vec<CommittedClaim>, AdminError> {
        Err(AdminError::Unavailable("this node is in no fleet yet".to_owned()))
    }

    /// One round trip over the mesh to a node, by name or id.
    ///
    /// # Errors
    /// [`AdminError::NotFound`] for an unknown node, [`AdminError::Unavailable`] if it does not answer.
    #[expect(clippy::unused_async, reason = "asks the node once it can be reached")]
    pub async fn ping(&self, node: &str) -> Result<v1::PingResponse, AdminError> {
        Err(AdminError::NotFound(format!("node `{node}` is not known")))
    }
}
