//! Follows one peer's owner log and feeds the view: dials, resumes, checks every message, and says when the peer is no longer live.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use causeway_proto::id::{Epoch, NodeId};
use causeway_proto::presence::{Op, PACKED_OP_LEN, unpack_ops};
use causeway_rpc::convert;
use causeway_rpc::v1;
use causeway_rpc::v1::watch_client::WatchClient;
use causeway_rpc::v1::watch_message::Message;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;

use super::backoff::Backoff;
use super::{RefusedReason, WATCH_MESSAGE_SIZE_MAX, WATCH_OPS_BYTES_MAX, WATCH_SILENCE_MAX, WatchMetrics, micros};
use crate::config::WallClock;
use crate::peers::{ChannelError, ChannelUse, PeerChannel, PeerChannels};
use crate::presence::{CLAIMS_PER_OWNER_MAX, IngestError, PeerClocks, PresenceView, WatchInput};

/// Until the stream's hello: TCP, TLS and one round trip.
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);
/// A stream that lasted so long is redialled at once when it ends.
const LASTED: Duration = Duration::from_secs(1);
/// Wait after a peer broke the rules in a way that the next stream will not mend.
const REFUSED_PAUSE: Duration = Duration::from_secs(5);
/// Operations a peer may send: 2,000 a second, 20,000 at once (`threat-model.md` 4.4). Reading slows down beyond.
const OPS_PER_SECOND: f64 = 2_000.0;
const OPS_BURST: f64 = 20_000.0;

/// Where a follower gets its connection.
pub trait ChannelSource: Send + Sync + 'static {
    /// A channel to `node`, whose server has proven to be that node.
    ///
    /// # Errors
    /// [`ChannelError`] if the node cannot be dialled at all.
    fn watch_channel(&self, node: NodeId) -> Result<PeerChannel, ChannelError>;
}

impl ChannelSource for PeerChannels {
    fn watch_channel(&self, node: NodeId) -> Result<PeerChannel, ChannelError> {
        self.channel(node, ChannelUse::Watch)
    }
}

/// Follows peers; one [`Follower::run`] task each.
pub struct Follower {
    view: Arc<PresenceView>,
    channels: Arc<dyn ChannelSource>,
    clock: WallClock,
    peer_clocks: Mutex<PeerClocks>,
    metrics: WatchMetrics,
}

impl std::fmt::Debug for Follower {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Follower").finish_non_exhaustive()
    }
}

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("cannot dial: {0}")]
    NoChannel(#[from] ChannelError),
    #[error("{}", .0.message())]
    Status(Box<tonic::Status>),
    #[error("no hello in time")]
    DialTimeout,
    #[error("the peer closed the stream")]
    Closed,
    #[error("nothing heard for {} s", WATCH_SILENCE_MAX.as_secs())]
    Silent,
    #[error("{what}")]
    Refused { reason: RefusedReason, what: String },
}

impl From<tonic::Status> for End {
    fn from(status: tonic::Status) -> Self {
        Self::Status(Box::new(status))
    }
}

impl End {
    /// The least wait before the next dial.
    const fn pause(&self) -> Duration {
        match self {
            // A new stream begins where the view stands, and a newer process may answer it.
            Self::Refused { reason: RefusedReason::Gap | RefusedReason::LowerEpoch, .. } => Duration::ZERO,
            Self::Refused { .. } => REFUSED_PAUSE,
            _ => Duration::ZERO,
        }
    }
}

fn refused(reason: RefusedReason, what: impl std::fmt::Display) -> End {
    End::Refused { reason, what: what.to_string() }
}

impl From<IngestError> for End {
    fn from(error: IngestError) -> Self {
        let reason = match error {
            IngestError::LowerEpoch { .. } => RefusedReason::LowerEpoch,
            IngestError::OtherBootId { .. } => RefusedReason::OtherBootId,
            IngestError::Gap { .. } => RefusedReason::Gap,
            IngestError::TooManyClaims | IngestError::TooManyOwners => RefusedReason::TooMany,
            IngestError::Evicted => RefusedReason::Evicted,
            IngestError::NoHello | IngestError::Malformed | IngestError::Own => RefusedReason::Malformed,
        };
        refused(reason, error)
    }
}

/// A stream whose hello was accepted.
struct Stream {
    messages: Streaming<v1::WatchMessage>,
    epoch: Epoch,
    /// Pieces of a snapshot that is not complete.
    snapshot: Option<(u64, Vec<Op>)>,
    bucket: OpsBucket,
}

impl Follower {
    /// Feeds `view` with what the peers reached through `channels` say.
    #[must_use]
    pub fn new(view: Arc<PresenceView>, channels: Arc<dyn ChannelSource>, clock: WallClock, metrics: WatchMetrics) -> Self {
        Self { view, channels, clock, peer_clocks: Mutex::default(), metrics }
    }

    /// Follows `peer` until `cancel` fires; `wake` makes it dial at once (its address changed, a drill is over).
    pub async fn run(self: Arc<Self>, peer: NodeId, wake: Arc<Notify>, cancel: CancellationToken) {
        let mut task = Task { follower: &self, peer, live: None, backoff: Backoff::default() };
        // Everything inside may be dropped at any await: what was taken in is in the view already.
        cancel.run_until_cancelled(task.follow(&wake)).await;
        task.down();
        self.peer_clocks.lock().forget(peer);
    }

    fn observe_clock(&self, peer: NodeId, peer_us: u64) {
        let correction_us = {
            let mut clocks = self.peer_clocks.lock();
            clocks.observe(peer, peer_us, micros((self.clock)()));
            clocks.correction_us()
        };
        let was_us = self.view.clock().set_correction_us(correction_us);
        self.metrics.clock_correction_us.set(correction_us);
        if (was_us == 0) != (correction_us == 0) {
            tracing::warn!(correction_us, "the local clock is off from the median of the peers, or right again");
        }
    }
}

/// One peer's follower.
struct Task<'a> {
    follower: &'a Follower,
    peer: NodeId,
    /// The epoch that is live in the view, and when the stream was heard last.
    live: Option<(Epoch, Instant)>,
    backoff: Backoff,
}

impl Task<'_> {
    async fn follow(&mut self, wake: &Notify) {
        loop {
            let began = Instant::now();
            let end = self.follow_once().await;
            let lasted = self.live.is_some_and(|(_, heard)| heard >= began + LASTED);
            self.ended(&end);
            if lasted {
                self.backoff.reset();
            }
            if lasted && end.pause().is_zero() {
                continue;
            }
            let wait = self.backoff.wait(rand::random()).max(end.pause());
            tokio::select! {
                () = wake.notified() => self.backoff.reset(),
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// A refused or silent stream is not live; one that broke stays live until the redial fails or 3 s are over.
    fn ended(&mut self, end: &End) {
        match end {
            End::Refused { reason, .. } => {
                self.follower.metrics.refuse(*reason);
                self.down();
                tracing::warn!(peer = %self.peer, error = %end, "refused a watch stream");
                return;
            }
            End::Silent => self.follower.metrics.silent.inc(),
            _ => 0,
        };
        tracing::debug!(peer = %self.peer, error = %end, "watch stream ended");
    }

    async fn follow_once(&mut self) -> End {
        let mut stream = match self.dial().await {
            Ok(stream) => stream,
            Err(end) => {
                self.follower.metrics.dials_failed.inc();
                self.down();
                return end;
            }
        };
        loop {
            if let Err(end) = self.read(&mut stream).await {
                return end;
            }
        }
    }

    /// Connects and waits for the hello, while the former stream's liveness runs out.
    async fn dial(&mut self) -> Result<Stream, End> {
        self.follower.metrics.dials.inc();
        let follower = self.follower;
        let peer = self.peer;
        let dial = async move {
            let mut client = WatchClient::new(follower.channels.watch_channel(peer)?)
                .max_decoding_message_size(WATCH_MESSAGE_SIZE_MAX)
                .max_encoding_message_size(WATCH_MESSAGE_SIZE_MAX);
            let cursor = follower.view.cursor(peer);
            let request = v1::FollowRequest {
                follower_id: follower.view.own().0,
                epoch: cursor.epoch.0,
                boot_id: cursor.boot_id.0.to_vec().into(),
                next_seq: cursor.next_seq,
                clock_us: micros((follower.clock)()),
            };
            let mut messages = client.follow(request).await?.into_inner();
            let first = messages.message().await?.ok_or(End::Closed)?;
            Ok::<_, End>((messages, first))
        };
        tokio::pin!(dial);
        let deadline = Instant::now() + DIAL_TIMEOUT;
        let (messages, first) = loop {
            let live_until = self.live.map(|(_, heard)| heard + WATCH_SILENCE_MAX);
            tokio::select! {
                dialled = &mut dial => break dialled?,
                () = tokio::time::sleep_until(live_until.unwrap_or(deadline)), if live_until.is_some() => self.down(),
                () = tokio::time::sleep_until(deadline) => return Err(End::DialTimeout),
            }
        };
        let Some(Message::Hello(hello)) = first.message else {
            return Err(refused(RefusedReason::Malformed, "the stream does not begin with a hello"));
        };
        let epoch = self.hello(&hello)?;
        Ok(Stream { messages, epoch, snapshot: None, bucket: OpsBucket::new(Instant::now()) })
    }

    fn hello(&mut self, hello: &v1::WatchHello) -> Result<Epoch, End> {
        if hello.node_id != self.peer.0 {
            let what = format!("node {} answered in the place of {}", NodeId(hello.node_id), self.peer);
            return Err(refused(RefusedReason::WrongNode, what));
        }
        let boot_id = convert::boot_id("boot_id", &hello.boot_id).map_err(|error| refused(RefusedReason::Malformed, error))?;
        let epoch = Epoch(hello.epoch);
        self.follower.observe_clock(self.peer, hello.clock_us);
        self.ingest(epoch, WatchInput::Hello { boot_id })?;
        if self.live.is_none() {
            self.follower.metrics.streams_live.inc();
            tracing::info!(peer = %self.peer, %epoch, resumed = hello.resumed, "watch stream is live");
        }
        self.live = Some((epoch, Instant::now()));
        Ok(epoch)
    }

    async fn read(&mut self, stream: &mut Stream) -> Result<(), End> {
        let heard = self.live.map_or_else(Instant::now, |(_, heard)| heard);
        let message = match tokio::time::timeout_at(heard + WATCH_SILENCE_MAX, stream.messages.message()).await {
            Ok(message) => message?.ok_or(End::Closed)?,
            Err(_) => {
                self.down();
                return Err(End::Silent);
            }
        };
        let ops = self.take(stream, message)?;
        // Reading late is what slows a peer down: its stream is busy then. It is live all the same.
        if let Some(wait) = stream.bucket.take(ops, Instant::now()) {
            self.follower.metrics.throttled.inc();
            tokio::time::sleep(wait).await;
        }
        self.live = Some((stream.epoch, Instant::now()));
        Ok(())
    }

    /// Takes in one message; returns how many operations count against the peer's rate.
    fn take(&self, stream: &mut Stream, message: v1::WatchMessage) -> Result<usize, End> {
        match message.message {
            Some(Message::Delta(delta)) if stream.snapshot.is_none() => {
                let ops = self.unpack(&delta.ops)?;
                let count = ops.len();
                self.ingest(stream.epoch, WatchInput::Delta { first_seq: delta.first_seq, ops })?;
                self.follower.metrics.operations_received.inc_by(count as u64);
                Ok(count)
            }
            Some(Message::Heartbeat(heartbeat)) => {
                self.follower.observe_clock(self.peer, heartbeat.clock_us);
                let hears = heartbeat.hears.into_iter().map(NodeId).collect();
                self.ingest(stream.epoch, WatchInput::Heartbeat { hears })?;
                Ok(0)
            }
            Some(Message::Snapshot(piece)) => {
                if let ControlFlow::Break((seq, ops)) = self.add_piece(stream, &piece)? {
                    self.ingest(stream.epoch, WatchInput::Snapshot { seq, ops })?;
                    self.follower.metrics.snapshots_received.inc();
                }
                Ok(0)
            }
            Some(Message::Hello(_) | Message::Delta(_)) | None => {
                Err(refused(RefusedReason::Malformed, "a message that does not belong there"))
            }
        }
    }

    /// Gathers a snapshot; breaks with the whole of it.
    fn add_piece(&self, stream: &mut Stream, piece: &v1::WatchSnapshot) -> Result<ControlFlow<(u64, Vec<Op>)>, End> {
        let (seq, mut ops) = stream.snapshot.take().unwrap_or((piece.seq, Vec::new()));
        if seq != piece.seq {
            return Err(refused(RefusedReason::Malformed, "pieces of two snapshots"));
        }
        if ops.len() + piece.ops.len() / PACKED_OP_LEN > CLAIMS_PER_OWNER_MAX {
            return Err(refused(RefusedReason::TooMany, IngestError::TooManyClaims));
        }
        ops.append(&mut self.unpack(&piece.ops)?);
        if piece.last {
            return Ok(ControlFlow::Break((seq, ops)));
        }
        if piece.ops.is_empty() {
            return Err(refused(RefusedReason::Malformed, "an empty piece of a snapshot"));
        }
        stream.snapshot = Some((seq, ops));
        Ok(ControlFlow::Continue(()))
    }

    fn unpack(&self, packed: &[u8]) -> Result<Vec<Op>, End> {
        if packed.len() > WATCH_OPS_BYTES_MAX {
            return Err(refused(RefusedReason::TooMany, "more than 1 MiB of operations"));
        }
        let ops = unpack_ops(packed).map_err(|error| refused(RefusedReason::Malformed, error))?;
        if self.follower.view.clock().too_far_ahead(&ops, micros((self.follower.clock)())) {
            return Err(refused(RefusedReason::TooFarAhead, "operations more than 1 h ahead of this node's clock"));
        }
        Ok(ops)
    }

    fn ingest(&self, epoch: Epoch, input: WatchInput) -> Result<(), IngestError> {
        self.follower.view.ingest_watch(self.peer, epoch, input, Instant::now().into_std())
    }

    /// The stream is no longer live.
    fn down(&mut self) {
        let Some((epoch, _)) = self.live.take() else { return };
        self.follower.metrics.streams_live.dec();
        tracing::info!(peer = %self.peer, "watch stream is no longer live");
        if let Err(error) = self.ingest(epoch, WatchInput::Down) {
            // A newer process of the peer is known by Raft: nothing of this one counts any more.
            tracing::debug!(peer = %self.peer, %error, "the stream was of an old process");
        }
    }
}

/// A token bucket of operations that may run into debt: a message is taken whole, and the wait after it pays.
#[derive(Debug)]
pub(crate) struct OpsBucket {
    tokens: f64,
    at: Instant,
}

impl OpsBucket {
    pub(crate) const fn new(now: Instant) -> Self {
        Self { tokens: OPS_BURST, at: now }
    }

    /// How long to wait after these operations.
    pub(crate) fn take(&mut self, ops: usize, now: Instant) -> Option<Duration> {
        let earned = now.duration_since(self.at).as_secs_f64() * OPS_PER_SECOND;
        self.tokens = (self.tokens + earned).min(OPS_BURST) - ops as f64;
        self.at = now;
        (self.tokens < 0.0).then(|| Duration::from_secs_f64(-self.tokens / OPS_PER_SECOND))
    }
}
