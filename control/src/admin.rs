//! What operators may do through a node.

use std::sync::Arc;

use causeway_proto::id::{Epoch, NodeId};
use causeway_proto::presence::{ClaimKind, PresenceKey, Rank};
use causeway_rpc::v1;
use causeway_rpc::v1::change_request::Change;

use crate::error::AdminError;
use crate::fleet::{CALL_TIMEOUT, Fleet, PROPOSE_TIMEOUT, init_cluster, within};
use crate::raft::NotDone;

/// Acts on the fleet for operators.
#[derive(Debug, Clone)]
pub struct Admin {
    pub(crate) fleet: Arc<Fleet>,
}

/// A committed claim, as a consistent read returns it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommittedClaim {
    /// When and by whom it was minted.
    pub rank: Rank,
    /// The owner's epoch.
    pub epoch: Epoch,
    /// Whether the client calls it its home.
    pub home: bool,
    /// The front door.
    pub kind: ClaimKind,
    /// Raft has fenced the owner's epoch.
    pub fenced: bool,
}

impl Admin {
    /// Forms a fleet, once; on a formed fleet it only reports.
    ///
    /// # Errors
    /// [`AdminError`], naming what is missing.
    pub async fn init_cluster(&self, request: v1::InitClusterRequest) -> Result<v1::InitClusterResponse, AdminError> {
        init_cluster(&self.fleet, request).await
    }

    /// All claims that Raft has committed on a key, by a quorum round trip, greatest rank first.
    ///
    /// # Errors
    /// [`AdminError::Unavailable`] without a quorum.
    pub async fn consistent_claims(&self, key: PresenceKey) -> Result<Vec<CommittedClaim>, AdminError> {
        let unavailable = |reason: &str| AdminError::Unavailable(format!("no consistent read: {reason}"));
        let leader = match self.fleet.consensus.ensure_linearizable().await {
            Ok(()) => return Ok(self.claims_here(&key)),
            Err(NotDone::Forward(Some(leader))) => leader,
            Err(NotDone::Forward(None)) => return Err(unavailable("no leader is known")),
            Err(error) => return Err(unavailable(&error.to_string())),
        };
        let mut client = self.fleet.client(leader).map_err(|status| unavailable(status.message()))?;
        let request = v1::ReadPresenceRequest { key: key.0.to_vec().into() };
        let answer = within(PROPOSE_TIMEOUT, client.read_presence(request)).await;
        let response = answer.map_err(|status| unavailable(&format!("the leader: {}", status.message())))?;
        response
            .claims
            .iter()
            .map(|claim| committed(claim).ok_or_else(|| unavailable("the leader's answer is malformed")))
            .collect()
    }

    fn claims_here(&self, key: &PresenceKey) -> Vec<CommittedClaim> {
        let claims = self.fleet.consensus.machine().read(|state| state.table.claims(key));
        claims
            .iter()
            .map(|claim| CommittedClaim {
                rank: claim.rank,
                epoch: claim.epoch,
                home: claim.home,
                kind: claim.kind,
                fenced: claim.fenced,
            })
            .collect()
    }

    /// One round trip over the mesh to a node, by name or id.
    ///
    /// # Errors
    /// [`AdminError::NotFound`] for an unknown node, [`AdminError::Unavailable`] if it does not answer.
    pub async fn ping(&self, node: &str) -> Result<v1::PingResponse, AdminError> {
        let nodes = self.fleet.directory.nodes();
        let id = nodes.find(node).ok_or_else(|| AdminError::NotFound(format!("node `{node}` is not known")))?.id();
        if id == nodes.own() {
            return Ok(v1::PingResponse { node_id: id.0, rtt_us: 0 });
        }
        // The first answer may include dialling; the second is one round trip.
        self.ping_once(node, id).await?;
        let sent = tokio::time::Instant::now();
        self.ping_once(node, id).await?;
        Ok(v1::PingResponse { node_id: id.0, rtt_us: u64::try_from(sent.elapsed().as_micros()).unwrap_or(u64::MAX) })
    }

    async fn ping_once(&self, name: &str, id: NodeId) -> Result<(), AdminError> {
        let unavailable = |status: tonic::Status| AdminError::Unavailable(format!("node `{name}`: {}", status.message()));
        let mut client = self.fleet.client(id).map_err(unavailable)?;
        let request = v1::DescribeRequest { caller: Some(self.fleet.introduction()) };
        within(CALL_TIMEOUT, client.describe(request)).await.map(drop).map_err(unavailable)
    }

    /// Removes a node from the fleet for good: its claims end, its connections are refused, it can only come back as a new node.
    ///
    /// A voter passes it on to the leader.
    ///
    /// # Errors
    /// [`AdminError`]; [`AdminError::Unavailable`] names the voters if this node is none.
    pub async fn evict(&self, node: &str) -> Result<NodeId, AdminError> {
        let nodes = self.fleet.directory.nodes();
        let id = nodes.find(node).ok_or_else(|| AdminError::NotFound(format!("node `{node}` is not known")))?.id();
        self.fleet.change(Change::EvictNode(id.0)).await.map(|()| id)
    }
}

fn committed(claim: &v1::CommittedClaim) -> Option<CommittedClaim> {
    let kind = u8::try_from(claim.kind).ok().and_then(ClaimKind::from_bits)?;
    Some(CommittedClaim { rank: claim.rank?.into(), epoch: Epoch(claim.epoch), home: claim.home, kind, fenced: claim.fenced })
}
