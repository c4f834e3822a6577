//! The receiving half: Raft calls of peers, each checked against the peer's certificate, handed to openraft.

use std::pin::Pin;
use std::sync::Arc;

use causeway_proto::id::{BootId, Epoch, NodeId};
use causeway_rpc::v1::raft_server::{Raft as RaftApi, RaftServer};
use causeway_rpc::{MalformedMessage, convert, v1};
use futures::{Stream, StreamExt};
use openraft::raft::{AppendEntriesRequest, StreamAppendError, TransferLeaderError, TransferLeaderRequest, VoteRequest};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::identity::PeerIdentity;
use crate::peers::MESSAGE_SIZE_MAX;
use crate::raft::Raft;
use crate::raft::codec::{entry_from, log_id_from, log_id_to, stored_membership_from, vote_from, vote_to};
use crate::raft::snapshot::SnapshotStore;
use crate::raft::types::{GROUP_ID, SnapshotMeta, TypeConfig, Vote};
use crate::refusals::{CallRefused, CallsRefused};

/// Whether a process is the newest one seen of its node; takes note of it if so.
pub(crate) type IsNewest = Arc<dyn Fn(NodeId, Epoch, BootId) -> bool + Send + Sync>;

/// Answers the Raft calls of peers.
#[derive(Clone)]
pub(crate) struct RaftService {
    raft: Raft,
    snapshots: SnapshotStore,
    gate: Gate,
    cancel: CancellationToken,
}

impl RaftService {
    pub(crate) const fn new(
        raft: Raft,
        snapshots: SnapshotStore,
        refused: CallsRefused,
        is_newest: IsNewest,
        cancel: CancellationToken,
    ) -> Self {
        Self { raft, snapshots, gate: Gate { refused, is_newest }, cancel }
    }

    pub(crate) fn into_server(self) -> RaftServer<Self> {
        RaftServer::new(self).max_decoding_message_size(MESSAGE_SIZE_MAX).max_encoding_message_size(MESSAGE_SIZE_MAX)
    }
}

impl RaftService {
    /// The peer of a call.
    fn peer_of<T>(&self, request: &Request<T>) -> Result<NodeId, Status> {
        let peer = request.extensions().get::<PeerIdentity>().map(|peer| peer.node_id);
        peer.ok_or_else(|| {
            self.gate.refused.count(CallRefused::NoIdentity, Status::unauthenticated("the connection has no peer identity"))
        })
    }

    fn vote_request(&self, request: Request<v1::RaftVoteRequest>) -> Result<VoteRequest<TypeConfig>, Status> {
        let peer = self.peer_of(&request)?;
        let request = request.into_inner();
        let vote = self.gate.check(peer, request.group_id, request.vote.as_ref(), request.sender.as_ref())?;
        let mut rpc = VoteRequest::new(vote, request.last_log_id.as_ref().map(log_id_from));
        rpc.leadership_transfer = request.leadership_transfer;
        Ok(rpc)
    }
}

/// What every call must show before openraft sees it.
#[derive(Clone)]
struct Gate {
    refused: CallsRefused,
    is_newest: IsNewest,
}

impl Gate {
    /// Checks group and sender: a node speaks in Raft only for itself, and only its newest process does. Two processes of one data
    /// directory share a vote: heard by the same voters, both could lead in one term.
    fn check(
        &self,
        peer: NodeId,
        group_id: u32,
        vote: Option<&v1::RaftBallot>,
        sender: Option<&v1::RaftSender>,
    ) -> Result<Vote, Status> {
        if group_id != GROUP_ID {
            let status = Status::failed_precondition(format!("there is no raft group {group_id} here"));
            return Err(self.refused.count(CallRefused::Malformed, status));
        }
        let malformed = |error: MalformedMessage| self.refused.count(CallRefused::Malformed, error.into());
        let vote = vote_from(vote).map_err(malformed)?;
        if vote.leader_id.node_id != peer.0 {
            let status = Status::permission_denied("a node may send only its own vote");
            return Err(self.refused.count(CallRefused::NotItself, status));
        }
        let sender = sender.ok_or_else(|| malformed(MalformedMessage::new("sender", "which process speaks")))?;
        let boot_id = convert::boot_id("sender.boot_id", &sender.boot_id).map_err(malformed)?;
        if !(self.is_newest)(peer, Epoch(sender.epoch), boot_id) {
            let status = Status::failed_precondition("a newer process of this node has been seen");
            return Err(self.refused.count(CallRefused::Superseded, status));
        }
        Ok(vote)
    }
}

fn vote_reply(reply: &openraft::raft::VoteResponse<TypeConfig>) -> Response<v1::RaftVoteReply> {
    Response::new(v1::RaftVoteReply {
        vote: Some(vote_to(&reply.vote)),
        granted: reply.vote_granted,
        last_log_id: reply.last_log_id.as_ref().map(log_id_to),
    })
}

fn stopped(error: impl std::fmt::Display) -> Status {
    Status::unavailable(format!("raft does not run here: {error}"))
}

#[tonic::async_trait]
impl RaftApi for RaftService {
    type AppendStream = Pin<Box<dyn Stream<Item = Result<v1::RaftAppendReply, Status>> + Send>>;

    async fn append(&self, request: Request<Streaming<v1::RaftAppendRequest>>) -> Result<Response<Self::AppendStream>, Status> {
        let peer = self.peer_of(&request)?;
        // A malformed request ends the stream: what came before it is answered.
        let gate = self.gate.clone();
        let requests = request.into_inner().scan((), move |(), message| append_request(&gate, message, peer));
        let replies = self.raft.stream_append(requests).map(|result| match result {
            Ok(result) => Ok(append_reply(result)),
            Err(fatal) => Err(stopped(fatal)),
        });
        let cancel = self.cancel.clone().cancelled_owned();
        Ok(Response::new(Box::pin(replies.take_until(cancel))))
    }

    async fn vote(&self, request: Request<v1::RaftVoteRequest>) -> Result<Response<v1::RaftVoteReply>, Status> {
        Ok(vote_reply(&self.raft.vote(self.vote_request(request)?).await.map_err(stopped)?))
    }

    async fn pre_vote(&self, request: Request<v1::RaftVoteRequest>) -> Result<Response<v1::RaftVoteReply>, Status> {
        Ok(vote_reply(&self.raft.pre_vote(self.vote_request(request)?).await.map_err(stopped)?))
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<v1::RaftSnapshotPiece>>,
    ) -> Result<Response<v1::RaftSnapshotReply>, Status> {
        use v1::raft_snapshot_piece::Piece;
        let peer = self.peer_of(&request)?;
        let mut pieces = request.into_inner();
        let Some(v1::RaftSnapshotPiece { piece: Some(Piece::Header(header)) }) = pieces.message().await? else {
            return Err(Status::invalid_argument("a snapshot starts with its header"));
        };
        let vote = self.gate.check(peer, header.group_id, header.vote.as_ref(), header.sender.as_ref())?;
        let last_membership = stored_membership_from(header.last_membership.unwrap_or_default())?;
        let meta = SnapshotMeta { last_log_id: header.last_log_id.as_ref().map(log_id_from), last_membership };
        let data = pieces.map(|piece| match piece?.piece {
            Some(Piece::Data(data)) => Ok(data),
            _ => Err(Status::invalid_argument("only data follows a snapshot's header")),
        });
        let file = self.snapshots.receive(header.length, data).await?;
        let snapshot = openraft::Snapshot { meta, snapshot: file };
        let reply = self.raft.install_full_snapshot(vote, snapshot).await.map_err(stopped)?;
        Ok(Response::new(v1::RaftSnapshotReply { vote: Some(vote_to(&reply.vote)) }))
    }

    async fn transfer_leader(
        &self,
        request: Request<v1::RaftTransferLeaderRequest>,
    ) -> Result<Response<v1::RaftTransferLeaderReply>, Status> {
        use v1::raft_transfer_leader_reply::Refused;
        let peer = self.peer_of(&request)?;
        let request = request.into_inner();
        let vote = self.gate.check(peer, request.group_id, request.from_leader.as_ref(), request.sender.as_ref())?;
        let last_log_id = request.last_log_id.as_ref().map(log_id_from);
        let rpc = TransferLeaderRequest::new(vote, request.to_node_id, last_log_id);
        let refused = match self.raft.handle_transfer_leader(rpc).await.map_err(stopped)? {
            Ok(()) => None,
            Err(TransferLeaderError::VoteChanged { expected, actual }) => Some(Refused::VoteChanged(v1::RaftVoteChanged {
                expected: Some(vote_to(&expected)),
                actual: Some(vote_to(&actual)),
            })),
            Err(TransferLeaderError::LogNotFlushed { expected, actual }) => Some(Refused::LogNotFlushed(v1::RaftLogNotFlushed {
                expected: expected.as_ref().map(log_id_to),
                actual: actual.as_ref().map(log_id_to),
            })),
        };
        Ok(Response::new(v1::RaftTransferLeaderReply { refused }))
    }
}

fn append_request(
    gate: &Gate,
    message: Result<v1::RaftAppendRequest, Status>,
    peer: NodeId,
) -> std::future::Ready<Option<AppendEntriesRequest<TypeConfig>>> {
    let decode = |message: Result<v1::RaftAppendRequest, Status>| {
        let message = message?;
        let vote = gate.check(peer, message.group_id, message.vote.as_ref(), message.sender.as_ref())?;
        let entries = message.entries.into_iter().map(entry_from).collect::<Result<Vec<_>, _>>()?;
        Ok::<_, Status>(AppendEntriesRequest {
            vote,
            prev_log_id: message.prev_log_id.as_ref().map(log_id_from),
            entries,
            leader_commit: message.leader_commit.as_ref().map(log_id_from),
        })
    };
    std::future::ready(
        decode(message)
            .inspect_err(|status| tracing::debug!(node = %peer, reason = status.message(), "append stream ended"))
            .ok(),
    )
}

fn append_reply(result: openraft::raft::StreamAppendResult<TypeConfig>) -> v1::RaftAppendReply {
    use v1::raft_append_reply::Reply;
    let reply = match result {
        Ok(log_id) => Reply::Flushed(v1::RaftFlushed { log_id: log_id.as_ref().map(log_id_to) }),
        Err(StreamAppendError::Conflict(id)) => Reply::Conflict(log_id_to(&id)),
        Err(StreamAppendError::HigherVote(vote)) => Reply::HigherVote(vote_to(&vote)),
    };
    v1::RaftAppendReply { reply: Some(reply) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_newest_process_of_the_node_itself_is_heard() {
        let newest = BootId([7; 16]);
        let is_newest: IsNewest = Arc::new(move |_, epoch, boot_id| (epoch, boot_id) == (Epoch(3), newest));
        let gate = Gate { refused: CallsRefused::default(), is_newest };
        let vote = v1::RaftBallot { term: 1, node_id: 5, committed: false };
        let sender = |epoch, boot_id: BootId| v1::RaftSender { epoch, boot_id: boot_id.0.to_vec().into() };
        let check =
            |peer, sender: Option<v1::RaftSender>| gate.check(NodeId(peer), GROUP_ID, Some(&vote), sender.as_ref()).is_ok();

        assert!(check(5, Some(sender(3, newest))));
        assert!(!check(5, Some(sender(2, newest))), "an older process");
        assert!(!check(5, Some(sender(3, BootId([8; 16])))), "its copy");
        assert_eq!(gate.refused.counted(CallRefused::Superseded), 2);
        assert!(!check(6, Some(sender(3, newest))), "another node's vote");
        assert_eq!(gate.refused.counted(CallRefused::NotItself), 1);
        assert!(!check(5, None), "it does not say which process it is");
        assert!(!check(5, Some(v1::RaftSender { epoch: 3, boot_id: vec![7].into() })), "a boot id of one byte");
        assert_eq!(gate.refused.counted(CallRefused::Malformed), 2);
    }
}
