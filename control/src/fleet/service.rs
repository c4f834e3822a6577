//! Answers the fleet calls of peers. Each checks that the peer speaks for itself: its certificate's node is the one in the message.

use std::sync::Arc;

use causeway_proto::id::NodeId;
use causeway_rpc::v1::fleet_server::{Fleet as FleetApi, FleetServer};
use causeway_rpc::{convert, v1};
use tonic::{Request, Response, Status};

use super::{Fleet, Incarnation};
use crate::discovery::Directory;
use crate::identity::PeerIdentity;
use crate::peers::MESSAGE_SIZE_MAX;
use crate::presence::Command as PresenceCommand;
use crate::raft::NotDone;
use crate::raft::committed_claim;
use crate::raft::types::{Command, Reply};

/// Nodes named in an answer to an introduction.
const NAMED_NODES_MAX: usize = 256;

/// Serves [`Fleet`] to peers.
#[derive(Debug, Clone)]
pub(crate) struct FleetService {
    fleet: Arc<Fleet>,
}

impl FleetService {
    pub(crate) const fn new(fleet: Arc<Fleet>) -> Self {
        Self { fleet }
    }

    pub(crate) fn into_server(self) -> FleetServer<Self> {
        FleetServer::new(self).max_decoding_message_size(MESSAGE_SIZE_MAX).max_encoding_message_size(MESSAGE_SIZE_MAX)
    }

    /// Checks an introduction against the connection, takes note of it, and answers what was known of the caller before.
    fn meet(&self, peer: PeerIdentity, caller: Option<v1::Introduction>) -> Result<(v1::NodeRecord, Incarnation), Status> {
        let caller = caller.ok_or_else(|| Status::invalid_argument("field caller: must be set"))?;
        let process = Incarnation::from_message(caller.epoch, &caller.boot_id)?;
        let record = caller.record.unwrap_or_default();
        if record.node_id != peer.node_id.0 || record.public_key.as_ref() != peer.public_key.as_slice() {
            return Err(Status::permission_denied("a node may introduce only itself"));
        }
        introduce(&self.fleet.directory, record.clone())?;
        let before = if peer.node_id == self.fleet.own.id() {
            Incarnation { epoch: self.fleet.own.epoch, boot_id: self.fleet.own.boot_id }
        } else {
            self.fleet.saw(peer.node_id, process)
        };
        Ok((record, before))
    }
}

fn introduce(directory: &Directory, record: v1::NodeRecord) -> Result<NodeId, Status> {
    directory.introduce(record, true).map_err(|reason| Status::invalid_argument(format!("field record: {reason}")))
}

fn identity_of<T>(request: &Request<T>) -> Result<PeerIdentity, Status> {
    let peer = request.extensions().get::<PeerIdentity>();
    peer.copied().ok_or_else(|| Status::unauthenticated("the connection has no peer identity"))
}

#[tonic::async_trait]
impl FleetApi for FleetService {
    async fn describe(&self, request: Request<v1::DescribeRequest>) -> Result<Response<v1::DescribeResponse>, Status> {
        let peer = identity_of(&request)?;
        let (_, before) = self.meet(peer, request.into_inner().caller)?;
        let nodes = self.fleet.directory.nodes();
        Ok(Response::new(v1::DescribeResponse {
            node: Some(self.fleet.introduction()),
            fleet_id: self.fleet.fleet_id(),
            pristine: self.fleet.consensus.is_pristine().await,
            caller_seen: Some(before.to_message()),
            nodes: nodes.others().take(NAMED_NODES_MAX).map(|node| node.record.clone()).collect(),
        }))
    }

    async fn join(&self, request: Request<v1::JoinRequest>) -> Result<Response<v1::JoinResponse>, Status> {
        use v1::join_response::Outcome;
        let peer = identity_of(&request)?;
        let (record, before) = self.meet(peer, request.into_inner().caller)?;
        let command = Command::new(v1::raft_command::Command::PutNode(v1::PutNode { record: Some(record) }));
        let outcome = match self.fleet.consensus.propose(command).await {
            Ok(Reply::Refused(reason)) => Some(Outcome::Refused(reason)),
            Ok(_) => {
                let fleet_id = self.fleet.fleet_id();
                Some(Outcome::Admitted(v1::JoinAdmitted { fleet_id, caller_seen: Some(before.to_message()) }))
            }
            Err(NotDone::Forward(leader)) => {
                let nodes = self.fleet.directory.nodes();
                leader.and_then(|leader| nodes.get(leader)).map(|node| Outcome::Leader(node.record.clone()))
            }
            Err(error) => return Err(Status::unavailable(error.to_string())),
        };
        Ok(Response::new(v1::JoinResponse { outcome }))
    }

    async fn heartbeat(&self, request: Request<v1::FleetHeartbeat>) -> Result<Response<v1::FleetHeartbeatReply>, Status> {
        let peer = identity_of(&request)?;
        let heartbeat = request.into_inner();
        if heartbeat.node_id != peer.node_id.0 {
            return Err(Status::permission_denied("a node may send only its own heartbeat"));
        }
        let process = Incarnation::from_message(heartbeat.epoch, &heartbeat.boot_id)?;
        let before = self.fleet.saw(peer.node_id, process);
        let newest = process.epoch > before.epoch || process == before;
        if newest {
            self.fleet.fences.lock().heartbeat(peer.node_id, process.epoch, tokio::time::Instant::now().into_std());
        }
        let admitted = self.fleet.consensus.machine().read(|state| state.fleet.nodes.contains_key(&peer.node_id));
        Ok(Response::new(v1::FleetHeartbeatReply {
            clock_us: self.fleet.now_us(),
            caller_seen: Some(before.to_message()),
            is_leader: self.fleet.consensus.is_leader(),
            admitted,
        }))
    }

    async fn propose(&self, request: Request<v1::ProposeRequest>) -> Result<Response<v1::ProposeResponse>, Status> {
        let peer = identity_of(&request)?;
        let command = PresenceCommand::decode(&request.into_inner().command)
            .map_err(|error| Status::invalid_argument(format!("field command: {error}")))?;
        if command.node() != peer.node_id {
            return Err(Status::permission_denied("a node changes only its own claims"));
        }
        let (PresenceCommand::Apply { ops, .. } | PresenceCommand::Reset { ops, .. }) = &command else {
            return Err(Status::permission_denied("only the leader fences and drops"));
        };
        if self.fleet.view.clock().too_far_ahead(ops, self.fleet.now_us()) {
            let refused = "a claim is more than 1 h ahead of the leader's clock".to_owned();
            return Ok(Response::new(v1::ProposeResponse { outcome: Some(v1::propose_response::Outcome::Refused(refused)) }));
        }
        if !self.fleet.consensus.machine().read(|state| state.fleet.nodes.contains_key(&peer.node_id)) {
            let refused = "the fleet has not admitted this node".to_owned();
            return Ok(Response::new(v1::ProposeResponse { outcome: Some(v1::propose_response::Outcome::Refused(refused)) }));
        }
        let outcome = self.fleet.consensus.propose(Command::presence(&command)).await;
        Ok(Response::new(v1::ProposeResponse { outcome: Some(propose_outcome(outcome)?) }))
    }

    async fn read_presence(
        &self,
        request: Request<v1::ReadPresenceRequest>,
    ) -> Result<Response<v1::ReadPresenceResponse>, Status> {
        identity_of(&request)?;
        let key = convert::presence_key("key", &request.into_inner().key)?;
        self.fleet.consensus.ensure_linearizable().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let claims = self.fleet.consensus.machine().read(|state| state.table.claims(&key));
        Ok(Response::new(v1::ReadPresenceResponse { claims: claims.iter().map(committed_claim).collect() }))
    }

    async fn form(&self, request: Request<v1::FormRequest>) -> Result<Response<v1::FormResponse>, Status> {
        identity_of(&request)?;
        self.fleet.form(request.into_inner()).await.map(Response::new)
    }
}

fn propose_outcome(outcome: Result<Reply, NotDone>) -> Result<v1::propose_response::Outcome, Status> {
    use v1::propose_response::Outcome;
    Ok(match outcome {
        Ok(Reply::Applied { seq }) => Outcome::Applied(v1::ProposeApplied { applied_seq: seq }),
        Ok(Reply::Gap { expected_seq }) => Outcome::ExpectedSeq(expected_seq),
        Ok(Reply::NeedsReset { at_least_seq }) => Outcome::ResetSeq(at_least_seq),
        Ok(Reply::Superseded { epoch, boot_id }) => Outcome::Superseded(Incarnation { epoch, boot_id }.to_message()),
        Ok(Reply::Refused(reason)) => Outcome::Refused(reason),
        Ok(Reply::Nothing) => return Err(Status::internal("a command was applied as nothing")),
        Err(NotDone::Forward(leader)) => Outcome::Leader(leader.map_or(0, |leader| leader.0)),
        Err(error) => return Err(Status::unavailable(error.to_string())),
    })
}
