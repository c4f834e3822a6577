//! Answers the fleet calls of peers. Each checks that the peer speaks for itself: its certificate's node is the one in the message.

use std::sync::Arc;
use std::time::Duration;

use causeway_proto::id::NodeId;
use causeway_proto::presence::PACKED_OP_LEN;
use causeway_rpc::v1::fleet_server::{Fleet as FleetApi, FleetServer};
use causeway_rpc::{convert, v1};
use tonic::{Code, Request, Response, Status};

use super::change::Proposed;
use super::join::clock_difference;
use super::proposer::BATCH_BYTES_MAX;
use super::{Fleet, Incarnation, now};
use crate::discovery::Directory;
use crate::identity::PeerIdentity;
use crate::peers::MESSAGE_SIZE_MAX;
use crate::presence::Command as PresenceCommand;
use crate::raft::NotDone;
use crate::raft::committed_claim;
use crate::raft::fleet_state::check_record;
use crate::raft::types::{Command, Reply};
use crate::refusals::{CallRefused, CallsRefused};

/// Nodes named in an answer to an introduction.
const NAMED_NODES_MAX: usize = 256;

/// Serves [`Fleet`] to peers.
#[derive(Debug, Clone)]
pub(crate) struct FleetService {
    fleet: Arc<Fleet>,
    refused: CallsRefused,
}

impl FleetService {
    pub(crate) const fn new(fleet: Arc<Fleet>, refused: CallsRefused) -> Self {
        Self { fleet, refused }
    }

    pub(crate) fn into_server(self) -> FleetServer<Self> {
        FleetServer::new(self).max_decoding_message_size(MESSAGE_SIZE_MAX).max_encoding_message_size(MESSAGE_SIZE_MAX)
    }

    /// Checks an introduction against the connection, takes note of it, and answers what was known of the caller before.
    ///
    /// A node whose clock is off is not taken note of: it is about to end, and would be listed as a node that is missing.
    fn meet(&self, peer: PeerIdentity, caller: Option<v1::Introduction>) -> Result<Caller, Status> {
        let malformed = |status| self.refused.count(CallRefused::Malformed, status);
        let caller = caller.ok_or_else(|| malformed(Status::invalid_argument("field caller: must be set")))?;
        let process = Incarnation::from_message(caller.epoch, &caller.boot_id).map_err(malformed)?;
        if !self.fleet.is_of_ours(&caller.fleet_id) {
            self.fleet.directory.forget(peer.node_id);
            let status = Status::failed_precondition("this node belongs to another fleet: give each fleet a mesh key of its own");
            return Err(self.refused.count(CallRefused::OtherFleet, status));
        }
        let record = caller.record.unwrap_or_default();
        if record.node_id != peer.node_id.0 || record.public_key.as_ref() != peer.public_key.as_slice() {
            return Err(self.not_itself("a node may introduce only itself"));
        }
        check_record(&record).map_err(|reason| malformed(Status::invalid_argument(format!("field record: {reason}"))))?;
        let clock_off = clock_difference(&record.name, caller.clock_us, &self.fleet.own.record.name, self.fleet.now_us());
        if clock_off.is_none() {
            introduce(&self.fleet.directory, record.clone()).map_err(malformed)?;
        }
        let before = if peer.node_id == self.fleet.own.id() {
            Incarnation { epoch: self.fleet.own.epoch, boot_id: self.fleet.own.boot_id }
        } else {
            self.fleet.saw(peer.node_id, process)
        };
        Ok(Caller { record, before, clock_off })
    }

    fn not_itself(&self, what: &'static str) -> Status {
        self.refused.count(CallRefused::NotItself, Status::permission_denied(what))
    }

    fn identity_of<T>(&self, request: &Request<T>) -> Result<PeerIdentity, Status> {
        let peer = request.extensions().get::<PeerIdentity>().copied();
        peer.ok_or_else(|| {
            self.refused.count(CallRefused::NoIdentity, Status::unauthenticated("the connection has no peer identity"))
        })
    }

    /// Checks that a proposal is one that `peer` may make; answers how long it must wait.
    fn admit_proposal(&self, peer: PeerIdentity, command: &PresenceCommand) -> Result<Duration, Status> {
        if command.node() != peer.node_id {
            return Err(self.not_itself("a node changes only its own claims"));
        }
        let (PresenceCommand::Apply { ops, .. } | PresenceCommand::Reset { ops, .. }) = command else {
            let status = Status::permission_denied("only the leader fences and drops");
            return Err(self.refused.count(CallRefused::NotAllowed, status));
        };
        if self.fleet.view.clock().too_far_ahead(ops, self.fleet.now_us()) {
            let status = Status::invalid_argument("a claim is more than 1 h ahead of the leader's clock");
            return Err(self.refused.count(CallRefused::TooFarAhead, status));
        }
        if !self.fleet.consensus.machine().read(|state| state.fleet.nodes.contains_key(&peer.node_id)) {
            let status = Status::failed_precondition("the fleet has not admitted this node");
            return Err(self.refused.count(CallRefused::NotAdmitted, status));
        }
        // A reset states at most what a node may hold; it costs no more than the burst.
        let ops = ops.len().min(BATCH_BYTES_MAX / PACKED_OP_LEN);
        self.fleet.proposal_wait(peer.node_id, ops).ok_or_else(|| {
            let status = Status::resource_exhausted("this node proposes more operations than it may");
            self.refused.count(CallRefused::TooFast, status)
        })
    }
}

/// A node that introduced itself.
struct Caller {
    record: v1::NodeRecord,
    /// The process known of it before.
    before: Incarnation,
    /// How far its clock is off, in words; `None` if it is not.
    clock_off: Option<String>,
}

fn introduce(directory: &Directory, record: v1::NodeRecord) -> Result<NodeId, Status> {
    directory.introduce(record, true, now()).map_err(|reason| Status::invalid_argument(format!("field record: {reason}")))
}

#[tonic::async_trait]
impl FleetApi for FleetService {
    async fn describe(&self, request: Request<v1::DescribeRequest>) -> Result<Response<v1::DescribeResponse>, Status> {
        let peer = self.identity_of(&request)?;
        let caller = request.into_inner().caller;
        let before = match self.meet(peer, caller) {
            Ok(caller) => caller.before,
            // Told the fleet, so that the caller leaves this node alone too; nothing else is said.
            Err(status) if status.code() == Code::FailedPrecondition => {
                let (node, fleet_id) = (Some(self.fleet.introduction()), self.fleet.fleet_id());
                return Ok(Response::new(v1::DescribeResponse { node, fleet_id, ..Default::default() }));
            }
            Err(status) => return Err(status),
        };
        Ok(Response::new(v1::DescribeResponse {
            node: Some(self.fleet.introduction()),
            fleet_id: self.fleet.fleet_id(),
            pristine: self.fleet.consensus.is_pristine().await,
            caller_seen: Some(before.to_message()),
            nodes: self.fleet.directory.named_to_peers(NAMED_NODES_MAX),
        }))
    }

    async fn join(&self, request: Request<v1::JoinRequest>) -> Result<Response<v1::JoinResponse>, Status> {
        use v1::join_response::Outcome;
        let peer = self.identity_of(&request)?;
        let Caller { record, before, clock_off } = self.meet(peer, request.into_inner().caller)?;
        // The leader's clock decides; others only tell who leads.
        if let Some(difference) = clock_off.filter(|_| self.fleet.consensus.is_leader()) {
            return Err(self.refused.count(CallRefused::ClockOff, Status::failed_precondition(difference)));
        }
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
        let peer = self.identity_of(&request)?;
        let heartbeat = request.into_inner();
        if heartbeat.node_id != peer.node_id.0 {
            return Err(self.not_itself("a node may send only its own heartbeat"));
        }
        let process = Incarnation::from_message(heartbeat.epoch, &heartbeat.boot_id)
            .map_err(|status| self.refused.count(CallRefused::Malformed, status))?;
        let before = self.fleet.saw(peer.node_id, process);
        if process.epoch > before.epoch || process == before {
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
        let peer = self.identity_of(&request)?;
        let command = PresenceCommand::decode(&request.into_inner().command).map_err(|error| {
            let status = Status::invalid_argument(format!("field command: {error}"));
            self.refused.count(CallRefused::Malformed, status)
        })?;
        tokio::time::sleep(self.admit_proposal(peer, &command)?).await;
        let outcome = self.fleet.consensus.propose(Command::presence(&command)).await;
        Ok(Response::new(v1::ProposeResponse { outcome: Some(propose_outcome(outcome)?) }))
    }

    async fn read_presence(
        &self,
        request: Request<v1::ReadPresenceRequest>,
    ) -> Result<Response<v1::ReadPresenceResponse>, Status> {
        self.identity_of(&request)?;
        let key = convert::presence_key("key", &request.into_inner().key)?;
        self.fleet.consensus.ensure_linearizable().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let claims = self.fleet.consensus.machine().read(|state| state.table.claims(&key));
        Ok(Response::new(v1::ReadPresenceResponse { claims: claims.iter().map(committed_claim).collect() }))
    }

    async fn form(&self, request: Request<v1::FormRequest>) -> Result<Response<v1::FormResponse>, Status> {
        self.identity_of(&request)?;
        self.fleet.form(request.into_inner()).await.map(Response::new)
    }

    async fn get_leader_status(&self, request: Request<v1::GetLeaderStatusRequest>) -> Result<Response<v1::RaftStatus>, Status> {
        self.identity_of(&request)?;
        let status = self.fleet.consensus.status();
        if status.leader_told { Ok(Response::new(status)) } else { Err(Status::unavailable("it does not lead")) }
    }

    async fn change(&self, request: Request<v1::ChangeRequest>) -> Result<Response<v1::ChangeResponse>, Status> {
        let peer = self.identity_of(&request)?;
        if !self.fleet.is_voter(peer.node_id) {
            let status = Status::permission_denied("only voters pass changes on");
            return Err(self.refused.count(CallRefused::NotAllowed, status));
        }
        let malformed = || self.refused.count(CallRefused::Malformed, Status::invalid_argument("field change: must be set"));
        let change = request.into_inner().change.ok_or_else(malformed)?;
        tracing::info!(?change, by = %peer.node_id, "a voter passes an operator's change on");
        match self.fleet.propose_change(change).await? {
            Proposed::Done => Ok(Response::new(v1::ChangeResponse {})),
            Proposed::NotLeader(_) => Err(Status::unavailable("it does not lead any more: ask again")),
        }
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
