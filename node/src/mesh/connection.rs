//! One connection of a link, dialled or accepted: hello in both directions, then packets one way and pongs the other.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use causeway_proto::id::NodeId;
use causeway_proto::link::frame::{self, Hello, LinkDecoder, LinkError, LinkFrame};
use causeway_proto::packet::Packet;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

use super::link::{MeshLink, Stripe};
use super::{IncomingPlace, Mesh};
use crate::forward::accounting::{AcceptedFrom, DeliveredTo};
use crate::forward::{DropReason, PacketForwarder, Verdict};
use crate::pump::PacketSpawner;
use crate::pump::lanes::{LaneLimits, Outbox};
use crate::pump::reader::{self, FrameHandler, ReaderEnd};
use crate::pump::writer::{self, Encode, WriterLimits};

/// The other side's hello must have come by then.
const HELLO_DEADLINE: Duration = Duration::from_secs(5);

/// Pings go out every second: after this much silence the connection is not used.
const SILENT_AFTER: Duration = Duration::from_secs(3);

/// And after this much it is closed.
const DEAD_AFTER: Duration = Duration::from_secs(6);

/// How often silence is looked for.
const WATCH_PERIOD: Duration = Duration::from_millis(500);

/// Why this side ended a link.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkRefusal {
    #[error(transparent)]
    Frame(#[from] LinkError),
    #[error("the first frame is no hello")]
    NoHello,
    #[error("hello of {said}, but the certificate is of {certified}")]
    WrongNode { said: NodeId, certified: NodeId },
    #[error("a second hello")]
    SecondHello,
}

impl LinkRefusal {
    const fn reason(&self) -> &'static str {
        match self {
            Self::Frame(error) => error.reason(),
            Self::NoHello => "no_hello",
            Self::WrongNode { .. } => "wrong_node",
            Self::SecondHello => "second_hello",
        }
    }
}

/// Serves a connection that `peer` dialled.
pub(super) async fn serve<Io>(
    io: Io,
    peer: NodeId,
    place: IncomingPlace,
    router: Arc<dyn PacketForwarder>,
    spawner: PacketSpawner,
    cancel: CancellationToken,
) where
    Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mesh = &place.mesh;
    let hello = Hello::new(mesh.parts.own, mesh.parts.epoch, 0, 1);
    let connection = Connection { mesh: Arc::clone(mesh), peer, direction: Direction::Incoming(router), hello };
    let end = run(io, connection, spawner, cancel).await;
    mesh.metrics.ended(&end);
    tracing::debug!(%peer, ?end, "incoming link ended");
}

/// Runs a connection that this node dialled, as `stripe` of `link`, until it ends. True if it was up.
pub(super) async fn run_dialled<Io>(
    io: Io,
    mesh: &Arc<Mesh>,
    link: &Arc<MeshLink>,
    stripe: u8,
    spawner: PacketSpawner,
    cancel: CancellationToken,
) -> (bool, LinkEnd)
where
    Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let stripes = u8::try_from(link.stripes.len()).expect("a link has at most 16 stripes");
    let hello = Hello::new(mesh.parts.own, mesh.parts.epoch, stripe, stripes);
    let was_up = Arc::new(AtomicBool::new(false));
    let direction = Direction::Dialled { link: Arc::clone(link), stripe, was_up: Arc::clone(&was_up) };
    let connection = Connection { mesh: Arc::clone(mesh), peer: link.status().node, direction, hello };
    let end = run(io, connection, spawner, cancel).await;
    link.stripes[usize::from(stripe)].0.store(None);
    mesh.metrics.ended(&end);
    (was_up.load(Ordering::Relaxed), end)
}

/// How a connection ended.
#[derive(Debug)]
pub(super) enum LinkEnd {
    Reader(ReaderEnd<LinkRefusal>),
    Silent,
    Writer,
    Evicted,
}

impl LinkEnd {
    pub(super) const fn reason(&self) -> &'static str {
        match self {
            Self::Reader(ReaderEnd::Eof { .. }) => "eof",
            Self::Reader(ReaderEnd::Io(_)) => "read_error",
            Self::Reader(ReaderEnd::Refused(refusal)) => refusal.reason(),
            Self::Reader(ReaderEnd::Cancelled) => "closed",
            Self::Silent => "silent",
            Self::Writer => "write_failed",
            Self::Evicted => "evicted",
        }
    }
}

impl std::fmt::Display for LinkEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Reader(ReaderEnd::Refused(refusal)) => refusal.fmt(f),
            Self::Reader(ReaderEnd::Io(error)) => error.fmt(f),
            _ => f.write_str(self.reason()),
        }
    }
}

enum Direction {
    Incoming(Arc<dyn PacketForwarder>),
    Dialled { link: Arc<MeshLink>, stripe: u8, was_up: Arc<AtomicBool> },
}

struct Connection {
    mesh: Arc<Mesh>,
    peer: NodeId,
    direction: Direction,
    hello: Hello,
}

async fn run<Io>(io: Io, connection: Connection, spawner: PacketSpawner, cancel: CancellationToken) -> LinkEnd
where
    Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let now = now();
    let (tls, peer) = (Arc::clone(&connection.mesh.parts.tls), connection.peer);
    let pump = connection.mesh.parts.pump.clone();
    let stripe = Arc::new(Stripe {
        outbox: Outbox::new(LaneLimits::LINK, DeliveredTo::Link, pump),
        silent: AtomicBool::new(false),
        round_trip_us: AtomicU64::new(0),
    });
    stripe.outbox.push_control(LinkFrame::Hello(connection.hello)).expect("the lane is empty");
    let (read_half, write_half) = tokio::io::split(io);
    let ends_writer = cancel.clone().drop_guard();
    let encode = LinkEncode { since: now };
    let writer = spawner.spawn(write(Arc::clone(&stripe), write_half, encode, cancel.clone()));
    let heard = Arc::new(Mutex::new(Heard { at: now, hello: false }));
    let mut handler = LinkHandler {
        connection,
        stripe: Arc::clone(&stripe),
        heard: Arc::clone(&heard),
        decoder: LinkDecoder::new(),
        said_hello: false,
        counted: None,
        since: now,
    };
    let end = tokio::select! {
        end = reader::run(read_half, BytesMut::new(), &mut handler, &cancel) => LinkEnd::Reader(end),
        () = watch_silence(&heard, &stripe) => LinkEnd::Silent,
        _ended = writer => LinkEnd::Writer,
        () = tls.evicted(peer) => LinkEnd::Evicted,
    };
    stripe.outbox.close();
    drop(ends_writer);
    end
}

async fn write<W: AsyncWrite + Unpin + Send>(stripe: Arc<Stripe>, io: W, encode: LinkEncode, cancel: CancellationToken) {
    let end = writer::run(io, &stripe.outbox, encode, WriterLimits::LINK, cancel).await;
    tracing::debug!(?end, "link stopped writing");
}

/// What the watch for silence looks at.
#[derive(Debug)]
struct Heard {
    at: Instant,
    hello: bool,
}

/// Marks the stripe silent and audible again; returns when it is dead.
async fn watch_silence(heard: &Mutex<Heard>, stripe: &Stripe) {
    let since = now();
    let mut ticks = tokio::time::interval(WATCH_PERIOD);
    loop {
        ticks.tick().await;
        let (at, hello) = {
            let heard = heard.lock();
            (heard.at, heard.hello)
        };
        let silent = now().saturating_duration_since(at);
        if silent > DEAD_AFTER || (!hello && now().saturating_duration_since(since) > HELLO_DEADLINE) {
            return;
        }
        stripe.silent.store(silent > SILENT_AFTER, Ordering::Relaxed);
    }
}

/// Puts link frames into bytes; pings carry the time since the connection began.
struct LinkEncode {
    since: Instant,
}

impl Encode for LinkEncode {
    type Control = LinkFrame;

    fn control(&mut self, frame: LinkFrame, out: &mut BytesMut) {
        frame::encode(&frame, out).expect("a control frame is no packet");
    }

    fn pong(&mut self, data: [u8; 8], out: &mut BytesMut) {
        self.control(LinkFrame::Pong(data), out);
    }

    fn packet(&mut self, packet: &Packet, out: &mut BytesMut) {
        let route = packet.route.as_ref().expect("the router completes the route before a packet is queued on a link");
        frame::encode_packet_header(packet, route, out);
        out.extend_from_slice(&packet.payload);
    }

    fn tick(&mut self, out: &mut BytesMut) {
        self.control(LinkFrame::Ping(micros(now(), self.since).to_be_bytes()), out);
    }
}

/// A dialled connection in the gauge of those that are up.
struct CountedUp(Arc<Mesh>);

impl CountedUp {
    fn new(mesh: Arc<Mesh>) -> Self {
        mesh.metrics.up();
        Self(mesh)
    }
}

impl Drop for CountedUp {
    fn drop(&mut self) {
        self.0.metrics.down();
    }
}

struct LinkHandler {
    connection: Connection,
    stripe: Arc<Stripe>,
    heard: Arc<Mutex<Heard>>,
    decoder: LinkDecoder,
    said_hello: bool,
    counted: Option<CountedUp>,
    since: Instant,
}

impl FrameHandler for LinkHandler {
    type Refusal = LinkRefusal;

    fn received(&mut self, now: Instant) {
        self.heard.lock().at = now;
    }

    fn handle_frame(&mut self, buffer: &mut BytesMut, now: Instant) -> Result<bool, LinkRefusal> {
        let Some(frame) = self.decoder.decode(buffer)? else { return Ok(false) };
        match frame {
            LinkFrame::Packet(packet) if self.said_hello => self.packet(packet),
            LinkFrame::Hello(hello) => self.hello(&hello)?,
            _ if !self.said_hello => return Err(LinkRefusal::NoHello),
            LinkFrame::Packet(_) | LinkFrame::KeepAlive => {}
            LinkFrame::Stale(stale) => {
                self.connection.mesh.metrics.stale_received();
                // Only about claims of the node it names.
                if stale.rank_used.node == stale.target {
                    self.connection.mesh.parts.view.hide(stale.key, stale.rank_used);
                }
            }
            LinkFrame::Ping(data) => {
                // A ping beside a waiting pong needs no answer of its own.
                let _queued = self.stripe.outbox.push_pong(data);
            }
            LinkFrame::Pong(data) => self.pong(data, now),
        }
        Ok(true)
    }
}

impl LinkHandler {
    fn hello(&mut self, hello: &Hello) -> Result<(), LinkRefusal> {
        let certified = self.connection.peer;
        if hello.node != certified {
            return Err(LinkRefusal::WrongNode { said: hello.node, certified });
        }
        if std::mem::replace(&mut self.said_hello, true) {
            return Err(LinkRefusal::SecondHello);
        }
        self.heard.lock().hello = true;
        match &self.connection.direction {
            Direction::Incoming(_) => {
                // It is there: whoever waits to dial it need not wait longer.
                if let Some(link) = self.connection.mesh.link(certified) {
                    link.retry.notify_waiters();
                }
            }
            Direction::Dialled { link, stripe, was_up } => {
                was_up.store(true, Ordering::Relaxed);
                self.counted = Some(CountedUp::new(Arc::clone(&self.connection.mesh)));
                link.last_error.lock().clear();
                link.stripes[usize::from(*stripe)].0.store(Some(Arc::clone(&self.stripe)));
            }
        }
        Ok(())
    }

    fn packet(&self, packet: Packet) {
        let accounting = &self.connection.mesh.parts.pump.accounting;
        accounting.accepted(AcceptedFrom::Link, &packet.payload);
        match &self.connection.direction {
            Direction::Incoming(router) if is_consistent(&packet, self.connection.peer) => match router.forward(packet) {
                Verdict::Queued | Verdict::Dropped(_) => {}
                Verdict::NotHere(packet) | Verdict::LinkDown(packet) => accounting.dropped(DropReason::LinkDown, &packet.payload),
            },
            // Packets travel only on connections that their sender dialled.
            Direction::Incoming(_) | Direction::Dialled { .. } => accounting.dropped(DropReason::BadHeader, &packet.payload),
        }
    }

    fn pong(&self, data: [u8; 8], now: Instant) {
        let sent_us = u64::from_be_bytes(data);
        if let Some(round_trip_us) = micros(now, self.since).checked_sub(sent_us) {
            self.stripe.round_trip_us.store(round_trip_us.max(1), Ordering::Relaxed);
            self.connection.mesh.metrics.round_trip(Duration::from_micros(round_trip_us));
        }
    }
}

/// Whether the header agrees with itself and with the node it came from.
fn is_consistent(packet: &Packet, sender: NodeId) -> bool {
    packet.route.is_some_and(|route| {
        let path = route.path.as_slice();
        path.first() == Some(&route.origin) && path.last() == Some(&sender) && route.rank_used.node == route.target
    })
}

fn micros(now: Instant, since: Instant) -> u64 {
    u64::try_from(now.saturating_duration_since(since).as_micros()).unwrap_or(u64::MAX)
}

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
