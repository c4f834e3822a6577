//! The life of a logged-in connection: dispatches every frame it sends, writes what waits for it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use causeway_proto::derp::decoder::DecodeError;
use causeway_proto::derp::encoder;
use causeway_proto::derp::frame::{Frame, FrameType, PeerGoneReason};
use causeway_proto::derp::handshake::server::ServerSession;
use causeway_proto::key::NodePublic;
use causeway_proto::limits::DERP_HEADER_LEN;
use causeway_proto::packet::{Class, Packet, is_disco};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{DerpMetrics, DerpServer};
use crate::clients::peer_gone::TrackedPeers;
use crate::clients::{ClientConnection, CloseReason, Registration, TooManyWatchers};
use crate::forward::accounting::AcceptedFrom;
use crate::forward::{DropReason, Verdict};
use crate::limits::bucket::{Rate, TokenBucket};
use crate::limits::connections::Permit;
use crate::pump::reader::{self, FrameHandler, ReaderEnd};
use crate::pump::writer::{self, Encode, WriterEnd, WriterLimits};
use crate::router::decide::Ingress;

/// PeerGone (not here) answers to one connection (`derp.md` section 5.5).
const NOT_HERE_RATE: Rate = Rate { per_second: 1, burst: 3 };

/// Pongs to one connection.
const PONG_RATE: Rate = Rate { per_second: 10, burst: 20 };

/// Most that is added to the keep-alive period, so that the clients of a node do not tick together.
const KEEP_ALIVE_JITTER: Duration = Duration::from_secs(5);

/// Why a connection was ended by this side after its login.
#[derive(Debug, thiserror::Error)]
pub(super) enum Violation {
    #[error(transparent)]
    Frame(#[from] DecodeError),
    #[error("{0:?} needs the mesh key")]
    Privilege(FrameType),
    #[error(transparent)]
    Watchers(#[from] TooManyWatchers),
    #[error("the control lane is full")]
    ControlLane,
}

impl Violation {
    const fn reason(&self) -> &'static str {
        match self {
            Self::Frame(error) => error.reason(),
            Self::Privilege(_) => "privilege",
            Self::Watchers(_) => "too_many_watchers",
            Self::ControlLane => "control_lane",
        }
    }
}

/// Starts the two tasks of a connection on the packet runtime.
pub(super) fn start<Io>(
    server: &Arc<DerpServer>,
    io: Io,
    buffered: BytesMut,
    session: ServerSession,
    registration: Registration,
    permit: Permit,
) where
    Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (read_half, write_half) = tokio::io::split(io);
    let connection = Arc::clone(registration.connection());
    let encode = DerpEncode {
        server: Arc::clone(server),
        connection: Arc::clone(&connection),
        tracked: TrackedPeers::new(Arc::clone(server.parts.registry.peer_gone()), Arc::clone(&connection)),
        mesh_updates: MeshUpdates::default(),
    };
    let keep_alive = server.parts.keep_alive + KEEP_ALIVE_JITTER.mul_f64(rand::random());
    let limits =
        if connection.facts().is_mesh_peer { WriterLimits::stock_mesh(keep_alive) } else { WriterLimits::client(keep_alive) };
    server.parts.spawner.spawn(write(Arc::clone(server), write_half, Arc::clone(&connection), encode, limits));
    let handler = ConnectionHandler::new(Arc::clone(server), session, registration);
    server.parts.spawner.spawn(read(Arc::clone(server), read_half, buffered, handler, permit));
}

async fn write<W>(server: Arc<DerpServer>, io: W, connection: Arc<ClientConnection>, encode: DerpEncode, limits: WriterLimits)
where
    W: AsyncWrite + Unpin + Send,
{
    let cancel = connection.cancel().clone();
    // However this task ends, the reader ends with it.
    let _ends_reader = cancel.clone().drop_guard();
    let end = writer::run(io, connection.outbox(), encode, limits, cancel).await;
    match &end {
        WriterEnd::Stalled => server.metrics.ended("write_stalled"),
        WriterEnd::Io(_) => server.metrics.ended("write_error"),
        // Counted by the reader, or by whoever closed.
        WriterEnd::Closed | WriterEnd::Cancelled => {}
    }
    tracing::debug!(client = %connection.facts().key, ?end, "stopped writing");
}

async fn read<R>(server: Arc<DerpServer>, io: R, buffered: BytesMut, mut handler: ConnectionHandler, permit: Permit)
where
    R: AsyncRead + Unpin + Send,
{
    let connection = Arc::clone(handler.connection());
    let cancel = connection.cancel().clone();
    // However this task ends, the writer ends with it.
    let _ends_writer = cancel.clone().drop_guard();
    let end = reader::run(io, buffered, &mut handler, &cancel).await;
    let reason = match &end {
        ReaderEnd::Eof { clean: true } => {
            handler.registration.closed_cleanly();
            "eof"
        }
        ReaderEnd::Eof { clean: false } => "eof_in_frame",
        ReaderEnd::Io(_) => "read_error",
        ReaderEnd::Refused(violation) => violation.reason(),
        ReaderEnd::Cancelled => connection.closed_because().map_or("closed", CloseReason::label),
    };
    server.metrics.ended(reason);
    tracing::debug!(client = %connection.facts().key, remote = %connection.facts().remote, ?end, "connection ended");
    drop(handler);
    drop(permit);
}

/// Puts a client's frames into bytes, counts them, and remembers whose packets it was written.
struct DerpEncode {
    server: Arc<DerpServer>,
    connection: Arc<ClientConnection>,
    tracked: TrackedPeers,
    /// Of a stock derper that watches.
    mesh_updates: MeshUpdates,
}

impl Encode for DerpEncode {
    type Control = Frame;

    fn control(&mut self, frame: Frame, out: &mut BytesMut) {
        if let Frame::PeerGone { peer, reason } = &frame {
            self.server.metrics.peer_gone_written(*reason);
            if *reason == PeerGoneReason::Disconnected {
                self.tracked.gone(peer);
            }
        }
        let is_change = matches!(frame, Frame::PeerPresent { .. } | Frame::PeerGone { reason: PeerGoneReason::Disconnected, .. });
        if is_change && self.connection.facts().is_mesh_peer {
            self.mesh_updates.changes += 1;
        }
        self.counted(out, |out| encoder::encode(&frame, out));
    }

    fn pong(&mut self, data: [u8; 8], out: &mut BytesMut) {
        self.counted(out, |out| encoder::encode_pong(data, out));
    }

    fn packet(&mut self, packet: &Packet, out: &mut BytesMut) {
        self.tracked.written(packet.src);
        self.counted(out, |out| {
            out.extend_from_slice(&encoder::recv_packet_header(&packet.src, packet.payload.len()));
            out.extend_from_slice(&packet.payload);
        });
    }

    fn tick(&mut self, out: &mut BytesMut) {
        self.counted(out, |out| encoder::encode(&Frame::KeepAlive, out));
    }

    fn batch_ends(&mut self) {
        self.mesh_updates.batch_ends(&self.server.metrics);
    }

    fn idle(&mut self) {
        self.mesh_updates.idle(&self.server.metrics);
    }
}

/// How many changes of who is connected are written at once, and how often until nothing is left.
#[derive(Default)]
struct MeshUpdates {
    changes: u32,
    batches: u32,
}

impl MeshUpdates {
    fn batch_ends(&mut self, metrics: &DerpMetrics) {
        if self.changes > 0 {
            metrics.mesh_updates.batch_changes.observe(std::mem::take(&mut self.changes).into());
            self.batches += 1;
        }
    }

    fn idle(&mut self, metrics: &DerpMetrics) {
        if self.batches > 0 {
            metrics.mesh_updates.batches.observe(std::mem::take(&mut self.batches).into());
        }
    }
}

impl DerpEncode {
    fn counted(&self, out: &mut BytesMut, append: impl FnOnce(&mut BytesMut)) {
        let before = out.len();
        append(out);
        self.connection.traffic().note_sent(out.len() - before);
    }
}

/// Acts on the frames of one connection.
struct ConnectionHandler {
    server: Arc<DerpServer>,
    session: ServerSession,
    registration: Registration,
    not_here: TokenBucket,
    pongs: TokenBucket,
    paused_until: Option<Instant>,
}

impl FrameHandler for ConnectionHandler {
    type Refusal = Violation;

    fn received(&mut self, now: Instant) {
        self.connection().proof().heard(now);
    }

    fn handle_frame(&mut self, buffer: &mut BytesMut, now: Instant) -> Result<bool, Violation> {
        let buffered = buffer.len();
        let decoded = self.session.decoder.decode(buffer);
        self.connection().traffic().note_received(buffered - buffer.len());
        let skipped = self.session.decoder.take_skipped();
        if skipped.unknown > 0 {
            self.server.metrics.unknown_frames.inc_by(skipped.unknown);
        }
        let decoded = decoded?;
        let headers = usize::try_from(skipped.unknown).unwrap_or(usize::MAX).saturating_add(decoded.is_some().into());
        let payloads = (buffered - buffer.len()).saturating_sub(headers.saturating_mul(DERP_HEADER_LEN));
        if payloads > 0 {
            self.paused_until = self.registration.spend(payloads, now);
        }
        let Some(frame) = decoded else { return Ok(false) };
        self.server.parts.registry.note_frame(self.registration.connection());
        self.handle(frame, now)?;
        Ok(true)
    }

    fn paused_until(&self) -> Option<Instant> {
        self.paused_until
    }
}

impl ConnectionHandler {
    fn new(server: Arc<DerpServer>, session: ServerSession, registration: Registration) -> Self {
        let now = tokio::time::Instant::now().into_std();
        let (not_here, pongs) = (TokenBucket::new(NOT_HERE_RATE, now), TokenBucket::new(PONG_RATE, now));
        Self { server, session, registration, not_here, pongs, paused_until: None }
    }

    const fn connection(&self) -> &Arc<ClientConnection> {
        self.registration.connection()
    }

    fn handle(&mut self, frame: Frame, now: Instant) -> Result<(), Violation> {
        match frame {
            Frame::SendPacket { dst, payload } => {
                let (src, from) = (self.connection().facts().key, self.accepted_from());
                self.packet(Ingress::Client, from, src, dst, payload, now)
            }
            Frame::ForwardPacket { src, dst, payload } => {
                self.need_mesh_key(FrameType::ForwardPacket)?;
                self.packet(Ingress::StockMesh, AcceptedFrom::StockMesh, src, dst, payload, now)
            }
            Frame::Ping { data } => self.ping(data, now),
            // Any byte was proof already.
            Frame::Pong { .. } => Ok(()),
            Frame::NotePreferred { preferred } => {
                self.server.parts.registry.note_preferred(self.connection(), preferred, now);
                Ok(())
            }
            Frame::WatchConns => self.watch(),
            Frame::ClosePeer { peer } => {
                self.need_mesh_key(FrameType::ClosePeer)?;
                let found = self.server.parts.registry.close_peer(&peer);
                tracing::info!(client = %peer, found, "a mesh peer asked to close a client");
                Ok(())
            }
            // A server decodes nothing else.
            other => {
                tracing::debug!(frame = ?other.frame_type(), "frame ignored");
                self.server.metrics.unknown_frames.inc();
                Ok(())
            }
        }
    }

    fn accepted_from(&self) -> AcceptedFrom {
        if self.connection().facts().is_mesh_peer { AcceptedFrom::StockMesh } else { AcceptedFrom::Client }
    }

    fn need_mesh_key(&self, frame: FrameType) -> Result<(), Violation> {
        if self.connection().facts().is_mesh_peer { Ok(()) } else { Err(Violation::Privilege(frame)) }
    }

    fn packet(
        &mut self,
        ingress: Ingress,
        from: AcceptedFrom,
        src: NodePublic,
        dst: NodePublic,
        payload: Bytes,
        now: Instant,
    ) -> Result<(), Violation> {
        let parts = &self.server.parts;
        parts.accounting.accepted(from, &payload);
        if src.is_zero() {
            parts.accounting.dropped(DropReason::BadHeader, &payload);
            return Ok(());
        }
        let disco = is_disco(&payload);
        let packet = Packet { src, dst, class: Class::of(&payload), payload, route: None };
        match parts.router.route(ingress, packet) {
            Verdict::Dropped(DropReason::UnknownDest | DropReason::UnknownDestOnForward) if disco => self.not_here(dst, now),
            Verdict::Queued | Verdict::Dropped(_) | Verdict::NotHere(_) | Verdict::LinkDown(_) => Ok(()),
        }
    }

    /// Tells the sender that there is no route to `peer`, now and then.
    fn not_here(&mut self, peer: NodePublic, now: Instant) -> Result<(), Violation> {
        if !self.not_here.take(1, now) {
            return Ok(());
        }
        self.server.metrics.not_here.inc();
        self.send(Frame::PeerGone { peer, reason: PeerGoneReason::NotHere })
    }

    fn ping(&mut self, data: [u8; 8], now: Instant) -> Result<(), Violation> {
        self.server.metrics.pings.inc();
        if self.pongs.take(1, now) && self.connection().outbox().push_pong(data) {
            self.server.metrics.pongs.inc();
        } else {
            self.server.metrics.pings_ignored.inc();
        }
        Ok(())
    }

    fn watch(&self) -> Result<(), Violation> {
        self.need_mesh_key(FrameType::WatchConns)?;
        // Connected to itself: nothing to tell.
        if self.connection().facts().key != self.server.public_key() {
            self.server.parts.registry.watch(self.connection())?;
        }
        Ok(())
    }

    fn send(&self, frame: Frame) -> Result<(), Violation> {
        self.connection().send(frame).map_err(|_| Violation::ControlLane)
    }
}
