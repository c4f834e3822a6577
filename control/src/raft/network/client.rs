//! The sending half: openraft's network traits on gRPC channels.
//!
//! Entries, heartbeats with votes, and snapshots have a connection each. A peer that cannot be reached is `Unreachable` (openraft backs
//! off), one that breaks off midway is `Network`.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use causeway_proto::id::NodeId;
use causeway_rpc::v1;
use causeway_rpc::v1::raft_client::RaftClient;
use futures::{Stream, StreamExt};
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable};
use openraft::network::{Backoff, NetBackoff, NetSnapshot, NetStreamAppend, NetTransferLeader, NetVote, RPCOption};
use openraft::raft::{
    AppendEntriesRequest, SnapshotResponse, StreamAppendError, StreamAppendResult, TransferLeaderError, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{EmptyNode, OptionalSend, RPCTypes, RaftNetworkFactory};
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tonic::Status;

use crate::peers::{ChannelUse, MESSAGE_SIZE_MAX, PeerChannel, PeerChannels};
use crate::raft::codec::{entry_to, log_id_from, log_id_to, stored_membership_to, vote_from, vote_to};
use crate::raft::snapshot::SnapshotFile;
use crate::raft::types::{GROUP_ID, TypeConfig, Vote};

/// Append requests on their way into the transport: enough to fill a long pipe, few enough to notice a slow one.
const APPENDS_IN_FLIGHT_MAX: usize = 16;
/// Bytes of a snapshot piece.
const SNAPSHOT_PIECE_BYTES: usize = 1 << 20;
/// Snapshot pieces on their way into the transport.
const SNAPSHOT_PIECES_IN_FLIGHT_MAX: usize = 4;
/// A snapshot transfer that takes longer is given up and started anew.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(600);
/// Between tries to reach a peer.
const BACKOFF: Duration = Duration::from_millis(200);

/// Makes the connections that openraft asks for.
#[derive(Debug, Clone)]
pub(crate) struct Network {
    own: NodeId,
    sender: v1::RaftSender,
    peers: PeerChannels,
    /// An append stream with requests outstanding that hears nothing for so long is ended.
    append_silence_max: Duration,
    tracker: TaskTracker,
    cancel: CancellationToken,
}

impl Network {
    pub(crate) fn new(
        own: NodeId,
        sender: v1::RaftSender,
        peers: PeerChannels,
        heartbeat_interval: Duration,
        tracker: TaskTracker,
        cancel: CancellationToken,
    ) -> Self {
        Self { own, sender, peers, append_silence_max: heartbeat_interval * 5, tracker, cancel }
    }

    fn connection(&self, target: u64, channel_use: ChannelUse) -> Connection {
        Connection { network: self.clone(), target: NodeId(target), channel_use }
    }
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Connection;

    async fn new_client(&mut self, target: u64, _node: &EmptyNode) -> Connection {
        self.connection(target, ChannelUse::RaftLog)
    }

    async fn new_heartbeat_client(&mut self, target: u64, _node: &EmptyNode) -> Connection {
        self.connection(target, ChannelUse::RaftHeartbeat)
    }

    async fn new_snapshot_client(&mut self, target: u64, _node: &EmptyNode) -> Connection {
        self.connection(target, ChannelUse::RaftSnapshot)
    }
}

/// One use of one peer. The channel below outlives it and is shared.
#[derive(Debug)]
pub(crate) struct Connection {
    network: Network,
    target: NodeId,
    channel_use: ChannelUse,
}

impl Connection {
    fn client(&self) -> Result<RaftClient<PeerChannel>, Unreachable<TypeConfig>> {
        let channel = self.network.peers.channel(self.target, self.channel_use).map_err(|error| Unreachable::new(&error))?;
        Ok(RaftClient::new(channel).max_decoding_message_size(MESSAGE_SIZE_MAX).max_encoding_message_size(MESSAGE_SIZE_MAX))
    }

    async fn unary<T>(
        &self,
        action: RPCTypes,
        option: &RPCOption,
        call: impl Future<Output = Result<tonic::Response<T>, Status>>,
    ) -> Result<T, RPCError<TypeConfig>> {
        let timeout = option.soft_ttl();
        match tokio::time::timeout(timeout, call).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(failed(&status)),
            Err(_) => Err(RPCError::Timeout(Timeout { action, id: self.network.own.0, target: self.target.0, timeout })),
        }
    }

    async fn ask_vote(
        &self,
        rpc: VoteRequest<TypeConfig>,
        option: &RPCOption,
        pre_vote: bool,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let mut client = self.client()?;
        let request = v1::RaftVoteRequest {
            group_id: GROUP_ID,
            vote: Some(vote_to(&rpc.vote)),
            last_log_id: rpc.last_log_id.as_ref().map(log_id_to),
            leadership_transfer: rpc.leadership_transfer,
            sender: Some(self.network.sender.clone()),
        };
        let call = async move { if pre_vote { client.pre_vote(request).await } else { client.vote(request).await } };
        let reply = self.unary(RPCTypes::Vote, option, call).await?;
        let vote = vote_from(reply.vote.as_ref()).map_err(|error| NetworkError::new(&error))?;
        Ok(VoteResponse::new(vote, reply.last_log_id.as_ref().map(log_id_from), reply.granted))
    }
}

/// Sorts a failed call by what openraft does next: back off, or try again at once.
fn failed(status: &Status) -> RPCError<TypeConfig> {
    match status.code() {
        tonic::Code::Unavailable | tonic::Code::FailedPrecondition | tonic::Code::PermissionDenied => {
            RPCError::Unreachable(Unreachable::from_string(status.message()))
        }
        _ => RPCError::Network(NetworkError::from_string(status.message())),
    }
}

impl NetBackoff<TypeConfig> for Connection {
    fn backoff(&self) -> Option<Backoff> {
        Some(Backoff::new(std::iter::repeat(BACKOFF)))
    }
}

impl NetVote<TypeConfig> for Connection {
    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.ask_vote(rpc, &option, false).await
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.ask_vote(rpc, &option, true).await
    }
}

impl NetStreamAppend<TypeConfig> for Connection {
    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<'s, Result<BoxStream<'s, Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>>, RPCError<TypeConfig>>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        Box::pin(async move {
            let mut client = self.client()?;
            let (requests, transport) = mpsc::channel(APPENDS_IN_FLIGHT_MAX);
            let (sent_tx, sent) = tokio::sync::watch::channel(0_u64);
            let cancel = self.network.cancel.child_token();
            let pump = pump_appends(input, self.network.sender.clone(), requests, sent_tx);
            let token = cancel.clone();
            self.network.tracker.spawn(async move { token.run_until_cancelled(pump).await });
            // The pump must end with the replies: an orphan would hold openraft's request stream.
            let guard = cancel.drop_guard();
            let call = client.append(ReceiverStream::new(transport));
            let replies = tokio::time::timeout(option.soft_ttl().max(self.network.append_silence_max), call)
                .await
                .map_err(|_| NetworkError::from_string("the peer does not accept an append stream in time"))?
                .map_err(|status| failed(&status))?
                .into_inner();
            let state = AppendReplies { replies, sent, answered: 0, silence_max: self.network.append_silence_max, _guard: guard };
            let stream: BoxStream<'s, _> = Box::pin(futures::stream::unfold(Some(state), |state| async move {
                let mut state = state?;
                let item = state.next().await?;
                let last = !matches!(item, Ok(Ok(_)));
                Some((item, (!last).then_some(state)))
            }));
            Ok(stream)
        })
    }
}

/// Moves requests from openraft into the transport, counting them.
async fn pump_appends<S>(
    mut input: S,
    sender: v1::RaftSender,
    requests: mpsc::Sender<v1::RaftAppendRequest>,
    sent: tokio::sync::watch::Sender<u64>,
) where
    S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Unpin,
{
    while let Some(request) = input.next().await {
        let request = v1::RaftAppendRequest {
            group_id: GROUP_ID,
            vote: Some(vote_to(&request.vote)),
            prev_log_id: request.prev_log_id.as_ref().map(log_id_to),
            entries: request.entries.iter().map(entry_to).collect(),
            leader_commit: request.leader_commit.as_ref().map(log_id_to),
            sender: Some(sender.clone()),
        };
        if requests.send(request).await.is_err() {
            return;
        }
        sent.send_modify(|count| *count += 1);
    }
}

/// The replies of an append stream, with a watchdog that openraft leaves to us.
struct AppendReplies {
    replies: tonic::Streaming<v1::RaftAppendReply>,
    sent: tokio::sync::watch::Receiver<u64>,
    answered: u64,
    silence_max: Duration,
    _guard: DropGuard,
}

impl AppendReplies {
    /// The next reply; `None` once both sides are done.
    async fn next(&mut self) -> Option<Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>> {
        loop {
            let outstanding = *self.sent.borrow_and_update() > self.answered;
            let silence =
                async { if outstanding { tokio::time::sleep(self.silence_max).await } else { std::future::pending().await } };
            tokio::select! {
                // All three may be dropped and started anew without losing anything.
                reply = self.replies.message() => {
                    self.answered += 1;
                    return match reply {
                        Ok(Some(reply)) => Some(append_reply(reply)),
                        Ok(None) => None,
                        Err(status) => Some(Err(failed(&status))),
                    };
                }
                () = silence => {
                    return Some(Err(NetworkError::from_string("the peer does not answer append requests").into()));
                }
                changed = self.sent.changed(), if !outstanding => {
                    if changed.is_err() {
                        // No more requests will come; wait for the stream to end.
                        return match tokio::time::timeout(self.silence_max, self.replies.message()).await {
                            Ok(Ok(Some(reply))) => Some(append_reply(reply)),
                            _ => None,
                        };
                    }
                }
            }
        }
    }
}

fn append_reply(reply: v1::RaftAppendReply) -> Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>> {
    use v1::raft_append_reply::Reply;
    match reply.reply {
        Some(Reply::Flushed(flushed)) => Ok(Ok(flushed.log_id.as_ref().map(log_id_from))),
        Some(Reply::Conflict(id)) => Ok(Err(StreamAppendError::Conflict(log_id_from(&id)))),
        Some(Reply::HigherVote(vote)) => {
            let vote = vote_from(Some(&vote)).map_err(|error| NetworkError::new(&error))?;
            Ok(Err(StreamAppendError::HigherVote(vote)))
        }
        None => Err(NetworkError::from_string("the peer sent an empty append reply").into()),
    }
}

impl NetSnapshot<TypeConfig> for Connection {
    type SnapshotData = SnapshotFile;

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: openraft::type_config::alias::SnapshotOf<TypeConfig, SnapshotFile>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let mut client = self.client()?;
        let (pieces, transport) = mpsc::channel(SNAPSHOT_PIECES_IN_FLIGHT_MAX);
        let header = v1::RaftSnapshotHeader {
            group_id: GROUP_ID,
            vote: Some(vote_to(&vote)),
            last_log_id: snapshot.meta.last_log_id.as_ref().map(log_id_to),
            last_membership: Some(stored_membership_to(&snapshot.meta.last_membership)),
            length: snapshot.snapshot.length(),
            sender: Some(self.network.sender.clone()),
        };
        let reading = read_pieces(snapshot.snapshot, header, pieces);
        let call = async move {
            let (reply, read) = tokio::join!(client.install_snapshot(ReceiverStream::new(transport)), reading);
            read.map_err(|error| StreamingError::from(NetworkError::new(&error)))?;
            let reply = reply.map_err(|status| StreamingError::from(failed(&status)))?.into_inner();
            let vote = vote_from(reply.vote.as_ref()).map_err(|error| NetworkError::new(&error))?;
            Ok(SnapshotResponse::new(vote))
        };
        let cancel: Pin<Box<dyn Future<Output = ReplicationClosed> + Send>> = Box::pin(cancel);
        tokio::select! {
            result = tokio::time::timeout(SNAPSHOT_TIMEOUT, call) => {
                result.unwrap_or_else(|_| Err(NetworkError::from_string("the snapshot did not get through in time").into()))
            }
            closed = cancel => Err(StreamingError::Closed(closed)),
        }
    }
}

/// Reads a snapshot's file into pieces. The receiver going away is no error here: its call tells why.
async fn read_pieces(
    snapshot: SnapshotFile,
    header: v1::RaftSnapshotHeader,
    pieces: mpsc::Sender<v1::RaftSnapshotPiece>,
) -> std::io::Result<()> {
    use v1::raft_snapshot_piece::Piece;
    let piece = |piece| v1::RaftSnapshotPiece { piece: Some(piece) };
    let mut file = tokio::fs::File::open(snapshot.path()).await?;
    if pieces.send(piece(Piece::Header(header))).await.is_err() {
        return Ok(());
    }
    loop {
        let mut buffer = bytes::BytesMut::with_capacity(SNAPSHOT_PIECE_BYTES);
        while buffer.len() < SNAPSHOT_PIECE_BYTES && file.read_buf(&mut buffer).await? > 0 {}
        if buffer.is_empty() || pieces.send(piece(Piece::Data(buffer.freeze()))).await.is_err() {
            return Ok(());
        }
    }
}

impl NetTransferLeader<TypeConfig> for Connection {
    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        use v1::raft_transfer_leader_reply::Refused;
        let mut client = self.client()?;
        let request = v1::RaftTransferLeaderRequest {
            group_id: GROUP_ID,
            from_leader: Some(vote_to(req.from_leader())),
            to_node_id: *req.to_node_id(),
            last_log_id: req.last_log_id().map(log_id_to),
            sender: Some(self.network.sender.clone()),
        };
        let call = async move { client.transfer_leader(request).await };
        let reply = self.unary(RPCTypes::TransferLeader, &option, call).await?;
        let malformed = |error| RPCError::Network(NetworkError::new::<causeway_rpc::MalformedMessage>(&error));
        Ok(match reply.refused {
            None => Ok(()),
            Some(Refused::VoteChanged(changed)) => Err(TransferLeaderError::VoteChanged {
                expected: vote_from(changed.expected.as_ref()).map_err(malformed)?,
                actual: vote_from(changed.actual.as_ref()).map_err(malformed)?,
            }),
            Some(Refused::LogNotFlushed(ids)) => Err(TransferLeaderError::LogNotFlushed {
                expected: ids.expected.as_ref().map(log_id_from),
                actual: ids.actual.as_ref().map(log_id_from),
            }),
        })
    }
}
