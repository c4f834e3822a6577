#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests")]
//! Clients and stock mesh peers against a node without a mesh, over real sockets (or, where time is not the real one, over pipes in
//! memory), byte for byte.

mod admission;
mod duplicates;
mod pace;
mod watching;

use std::net::SocketAddr;
use std::time::SystemTime;

use bytes::{Bytes, BytesMut};
use causeway_control::presence::{OwnerLog, PresenceView};
use causeway_proto::derp::decoder::Decoder;
use causeway_proto::derp::encoder;
use causeway_proto::derp::frame::{Frame, PeerGoneReason, PresentFlags};
use causeway_proto::derp::handshake::Step;
use causeway_proto::derp::handshake::client::ClientHandshake;
use causeway_proto::derp::handshake::server::MeshKeys;
use causeway_proto::derp::info::{ClientInfo, ServerInfo};
use causeway_proto::id::{BootId, Epoch, NodeId, RegionId};
use causeway_proto::key::{MeshKey, NodePrivate};
use causeway_proto::link::frame::Stale;
use causeway_proto::packet::{DISCO_LEN_MIN, DISCO_MAGIC, Packet};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use super::*;
use crate::admission::{Applicant, Decision, Denial, Open};
use crate::clients::{ClientLimits, RegistryParts, events};
use crate::config::Announce;
use crate::derp_mesh::Derpers;
use crate::forward::links::NodeLinks;
use crate::forward::{Books, DropReason, Verdict};
use crate::limits::connections::{ConnectionGate, ConnectionLimits};
use crate::pump::lanes::PumpShared;
use crate::router::RouterParts;

const OWN: NodeId = NodeId(1);

/// A node that is alone in the world.
struct NoLinks;

impl NodeLinks for NoLinks {
    fn is_up(&self, _: NodeId) -> bool {
        false
    }

    fn forward_to(&self, _: NodeId, packet: Packet) -> Verdict {
        Verdict::LinkDown(packet)
    }

    fn tell_stale(&self, _: NodeId, _: Stale) -> bool {
        false
    }
}

struct DenyAll;

impl Admission for DenyAll {
    fn decide(&self, _: Applicant) -> futures::future::BoxFuture<'_, Decision> {
        Box::pin(std::future::ready(Decision::Deny(Denial::NotListed)))
    }
}

struct TestNode {
    server: Arc<DerpServer>,
    gate: Arc<ConnectionGate>,
    listener: TcpListener,
    pump: PumpShared,
    mesh_key: MeshKey,
    tracker: TaskTracker,
}

impl TestNode {
    async fn start() -> Self {
        Self::start_with(Arc::new(Open)).await
    }

    async fn start_with(admission: Arc<dyn Admission>) -> Self {
        Self::start_as(admission, ClientLimits::default()).await
    }

    async fn start_as(admission: Arc<dyn Admission>, limits: ClientLimits) -> Self {
        let view = Arc::new(PresenceView::new(OWN, RegionId(1)));
        let owner_log = OwnerLog::new(OWN, Epoch(1), BootId([1; 16]), Arc::clone(&view));
        let pump = PumpShared::new();
        let (clock, pump_parts) = (Arc::new(SystemTime::now), pump.clone());
        let parts = RegistryParts { owner_log, clock, pump: pump_parts, limits, announce: Announce::Region };
        let registry = Registry::new(parts);
        let (tracker, cancel) = (TaskTracker::new(), CancellationToken::new());
        tracker.spawn(events::follow(Arc::clone(&registry), Arc::clone(&view), OWN, cancel.clone()));
        let router = Router::new(RouterParts {
            own: OWN,
            registry: Arc::clone(&registry),
            view,
            links: Arc::new(NoLinks),
            derpers: Derpers::new(Arc::clone(&registry), 0),
            accounting: Arc::clone(&pump.accounting),
            sampler: || false,
        });
        let mesh_key = MeshKey::generate();
        let mesh_keys = MeshKeys { current: Some(mesh_key.clone()), previous: None };
        let server = DerpServer::new(DerpParts {
            identity: Arc::new(ServerIdentity::new(NodePrivate::generate(), mesh_keys)),
            mesh_sources: vec!["127.0.0.0/8".parse().unwrap()],
            admission,
            registry,
            router,
            accounting: Arc::clone(&pump.accounting),
            spawner: PacketSpawner::new(tracker.clone(), tokio::runtime::Handle::current()),
            cancel,
            keep_alive: KEEP_ALIVE,
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let gate = ConnectionGate::new(ConnectionLimits::defaults(8));
        Self { server, gate, listener, pump, mesh_key, tracker }
    }

    /// Connects a socket and serves its other end.
    async fn dial(&self, fast_start: bool, ideal_node: Option<&str>) -> TcpStream {
        let dialled = TcpStream::connect(self.listener.local_addr().unwrap()).await.unwrap();
        let (io, remote) = self.listener.accept().await.unwrap();
        self.serve(io, remote, fast_start, ideal_node);
        dialled
    }

    /// The same without a socket, so that paused time waits for nothing.
    fn dial_in_memory(&self, ideal_node: Option<&str>) -> DuplexStream {
        let (dialled, io) = tokio::io::duplex(PIPE_LEN);
        self.serve(io, SocketAddr::from(([127, 0, 0, 1], 1)), true, ideal_node);
        dialled
    }

    fn serve<S>(&self, io: S, remote: SocketAddr, fast_start: bool, ideal_node: Option<&str>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let permit = self.gate.admit(remote.ip(), tokio::time::Instant::now().into_std()).unwrap();
        let ideal_node = ideal_node.map(str::to_owned);
        let opening = if fast_start { Opening::FastStart } else { Opening::Upgrade };
        let stream = UpgradedStream { io, buffered: BytesMut::new(), remote, socket: None, opening, ideal_node, permit };
        let server = Arc::clone(&self.server);
        self.tracker.spawn(async move { server.serve(stream).await });
    }

    async fn client(&self) -> Client {
        self.login(NodePrivate::generate(), ClientInfo { can_ack_pings: true, ..ClientInfo::current() }).await
    }

    async fn mesh_peer(&self) -> Client {
        let info = ClientInfo { mesh_key: Some(self.mesh_key.clone()), ..ClientInfo::current() };
        self.login(NodePrivate::generate(), info).await
    }

    async fn login(&self, private: NodePrivate, info: ClientInfo) -> Client {
        let io = self.dial(true, None).await;
        self.login_over(Box::new(io), private, info).await.expect("the login is answered")
    }

    /// Logs in; `None` if the server closes instead.
    async fn login_over(&self, mut io: Box<dyn Io>, private: NodePrivate, info: ClientInfo) -> Option<Client> {
        let key = private.public();
        let (login, mut handshake) = ClientHandshake::new(private, info).fast_start(self.server.public_key()).unwrap();
        io.write_all(&login).await.unwrap();
        let mut buffer = BytesMut::new();
        let info = loop {
            match handshake.read_server_info(&mut buffer).unwrap() {
                Step::Done((info, _)) => break info,
                Step::More(again) => handshake = again,
            }
            if !io.read_buf(&mut buffer).await.is_ok_and(|read| read > 0) {
                return None;
            }
        };
        Some(Client { io, key, buffer, decoder: Decoder::client(), info })
    }

    /// Waits until nothing moves and everything is accounted for.
    async fn books_at_rest(&self) -> Books {
        for _ in 0..2_000 {
            let books = self.pump.accounting.books();
            if books.imbalance() == 0 && books.queued == 0 {
                return books;
            }
            tokio::task::yield_now().await;
        }
        panic!("the books do not balance: {:?}", self.pump.accounting.books());
    }

    /// Waits for a counter that other tasks move.
    async fn until(&self, what: &str, reached: impl Fn(&Self) -> bool) {
        timeout(DEADLINE, async {
            while !reached(self) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
        .await
        .unwrap_or_else(|_| panic!("never came: {what}"));
    }
}

const DEADLINE: Duration = Duration::from_secs(10);

/// Bytes on their way over a connection in memory.
const PIPE_LEN: usize = 64 * 1024;

trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

struct Client {
    io: Box<dyn Io>,
    key: NodePublic,
    buffer: BytesMut,
    decoder: Decoder,
    /// What the server said at login.
    info: ServerInfo,
}

impl Client {
    async fn send(&mut self, frame: &Frame) {
        self.io.write_all(&encoder::to_bytes(frame)).await.unwrap();
    }

    async fn send_packet(&mut self, dst: NodePublic, payload: impl Into<Bytes>) {
        self.send(&Frame::SendPacket { dst, payload: payload.into() }).await;
    }

    /// The next frame; `None` once the server has closed.
    async fn next(&mut self) -> Option<Frame> {
        timeout(DEADLINE, async {
            loop {
                if let Some(frame) = self.decoder.decode(&mut self.buffer).unwrap() {
                    return Some(frame);
                }
                match self.io.read_buf(&mut self.buffer).await {
                    Ok(0) | Err(_) => return None,
                    Ok(_) => {}
                }
            }
        })
        .await
        .expect("a frame or the end of the connection")
    }

    /// A ping's pong comes after everything that the server did before with what this client sent.
    async fn settle(&mut self) {
        self.send(&Frame::Ping { data: *b"settling" }).await;
        assert_eq!(self.next().await, Some(Frame::Pong { data: *b"settling" }));
    }
}

fn received(src: &Client, payload: &'static [u8]) -> Option<Frame> {
    Some(Frame::RecvPacket { src: src.key, payload: payload.into() })
}

fn disco() -> Bytes {
    let mut packet = vec![0; DISCO_LEN_MIN];
    packet[..6].copy_from_slice(&DISCO_MAGIC);
    packet.into()
}

#[tokio::test]
async fn the_upgrade_is_answered_byte_for_byte_and_server_info_comes_next() {
    let node = TestNode::start().await;
    let mut io = node.dial(false, Some("1a")).await;
    let hex = node.server.public_key().to_untyped_hex();
    let head = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: DERP\r\nConnection: Upgrade\r\nDerp-Version: 2\r\nDerp-Public-Key: {hex}\r\n\r\n"
    );
    let mut answer = vec![0; head.len()];
    io.read_exact(&mut answer).await.unwrap();
    assert_eq!(String::from_utf8(answer).unwrap(), head);
    let mut greeting = [0; 45];
    io.read_exact(&mut greeting).await.unwrap();
    assert_eq!(greeting[..13], *b"\x01\x00\x00\x00\x28DERP\xf0\x9f\x94\x91");
    assert_eq!(greeting[13..], *node.server.public_key().as_bytes());
    let private = NodePrivate::generate();
    let (login, _) = ClientHandshake::new(private.clone(), ClientInfo::current()).fast_start(node.server.public_key()).unwrap();
    io.write_all(&login).await.unwrap();
    let mut header = [0; 5];
    io.read_exact(&mut header).await.unwrap();
    assert_eq!(header, [3, 0, 0, 0, 53], "ServerInfo of today's length");
    let not_ideal = node.server.parts.registry.with_active(&private.public(), |connection| connection.facts().is_not_ideal);
    assert_eq!(not_ideal, Some(true));
}

#[tokio::test]
async fn packets_pass_between_clients_and_to_oneself_and_the_books_balance() {
    let node = TestNode::start().await;
    let (mut a, mut b) = (node.client().await, node.client().await);
    a.send_packet(b.key, &b"hello"[..]).await;
    assert_eq!(b.next().await, received(&a, b"hello"));
    b.send_packet(a.key, Bytes::new()).await;
    assert_eq!(a.next().await, received(&b, b""), "empty packets are valid");
    a.send_packet(a.key, &b"myself"[..]).await;
    assert_eq!(a.next().await, received(&a, b"myself"));
    let big = Bytes::from(vec![5; 65_536]);
    a.send_packet(b.key, big.clone()).await;
    assert_eq!(b.next().await, Some(Frame::RecvPacket { src: a.key, payload: big }));
    a.send_packet(NodePrivate::generate().public(), &b"nobody"[..]).await;
    a.settle().await;
    let books = node.books_at_rest().await;
    assert_eq!((books.accepted[0], books.delivered[0], books.dropped_for(DropReason::UnknownDest)), (5, 4, 1));
}

#[tokio::test]
async fn a_sender_of_disco_hears_three_times_that_a_peer_is_not_here() {
    let node = TestNode::start().await;
    let mut a = node.client().await;
    let nobody = NodePrivate::generate().public();
    for _ in 0..10 {
        a.send_packet(nobody, disco()).await;
    }
    a.send_packet(nobody, &b"no disco"[..]).await;
    let mut not_here = 0;
    a.send(&Frame::Ping { data: [1; 8] }).await;
    loop {
        match a.next().await.unwrap() {
            Frame::PeerGone { peer, reason: PeerGoneReason::NotHere } if peer == nobody => not_here += 1,
            // Pong goes out before control frames of the same batch.
            Frame::Pong { .. } if not_here == 3 => break,
            Frame::Pong { .. } => a.send(&Frame::Ping { data: [1; 8] }).await,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(not_here, 3);
}

#[tokio::test]
async fn who_was_written_to_hears_at_once_that_a_peer_said_goodbye() {
    let node = TestNode::start().await;
    let (mut a, b) = (node.client().await, node.client().await);
    let mut b_sends = b;
    b_sends.send_packet(a.key, &b"bye soon"[..]).await;
    assert_eq!(a.next().await, received(&b_sends, b"bye soon"));
    let gone = b_sends.key;
    drop(b_sends);
    assert_eq!(a.next().await, Some(Frame::PeerGone { peer: gone, reason: PeerGoneReason::Disconnected }));
}

#[tokio::test]
async fn the_newest_connection_of_a_key_gets_the_packets_then_the_last_writer() {
    let node = TestNode::start().await;
    let private = NodePrivate::generate();
    let mut a = node.client().await;
    let mut old = node.login(private.clone(), ClientInfo::current()).await;
    let mut new = node.login(private.clone(), ClientInfo::current()).await;
    a.send_packet(private.public(), &b"1"[..]).await;
    assert_eq!(new.next().await, received(&a, b"1"));
    old.settle().await;
    a.send_packet(private.public(), &b"2"[..]).await;
    assert_eq!(old.next().await, received(&a, b"2"));
    drop(old);
    node.until("the old connection is gone", |node| node.server.metrics.ended_for("eof") == 1).await;
    a.send_packet(private.public(), &b"3"[..]).await;
    assert_eq!(new.next().await, received(&a, b"3"));
}

#[tokio::test]
async fn a_stock_mesh_peer_watches_forwards_and_closes() {
    let node = TestNode::start().await;
    let mut a = node.client().await;
    let mut stock = node.mesh_peer().await;
    stock.send(&Frame::WatchConns).await;
    let mut present = Vec::new();
    for _ in 0..2 {
        match stock.next().await.unwrap() {
            Frame::PeerPresent { peer, addr: Some(SocketAddr::V4(_)), flags } => present.push((peer, flags)),
            other => panic!("{other:?}"),
        }
    }
    assert!(present.contains(&(a.key, PresentFlags::REGULAR)) && present.contains(&(stock.key, PresentFlags::MESH_PEER)));
    let far = NodePrivate::generate().public();
    stock.send(&Frame::ForwardPacket { src: far, dst: a.key, payload: Bytes::from_static(b"from afar") }).await;
    assert_eq!(a.next().await, Some(Frame::RecvPacket { src: far, payload: Bytes::from_static(b"from afar") }));
    let nobody = NodePrivate::generate().public();
    stock.send(&Frame::ForwardPacket { src: far, dst: nobody, payload: disco() }).await;
    assert_eq!(stock.next().await, Some(Frame::PeerGone { peer: nobody, reason: PeerGoneReason::NotHere }));
    stock.send(&Frame::ClosePeer { peer: a.key }).await;
    assert_eq!(a.next().await, None);
    assert_eq!(stock.next().await, Some(Frame::PeerGone { peer: a.key, reason: PeerGoneReason::Disconnected }));
    let books = node.books_at_rest().await;
    assert_eq!((books.accepted[2], books.dropped_for(DropReason::UnknownDestOnForward)), (2, 1));
}

#[tokio::test]
async fn privileged_frames_and_wrong_sizes_end_the_connection_with_a_counted_reason() {
    let node = TestNode::start().await;
    let key = NodePrivate::generate().public();
    let privileged =
        [Frame::WatchConns, Frame::ClosePeer { peer: key }, Frame::ForwardPacket { src: key, dst: key, payload: Bytes::new() }];
    for (count, frame) in (1..).zip(&privileged) {
        let mut client = node.client().await;
        client.send(frame).await;
        assert_eq!(client.next().await, None, "{frame:?}");
        node.until("counted", |node| node.server.metrics.ended_for("privilege") == count).await;
    }
    let mut client = node.client().await;
    client.io.write_all(&[0x07, 0, 0, 0, 2, 0, 0]).await.unwrap();
    assert_eq!(client.next().await, None, "NotePreferred of two bytes");
    let mut unknown = node.client().await;
    unknown.io.write_all(&[0x77, 0, 0, 0, 3, 1, 2, 3]).await.unwrap();
    unknown.settle().await;
    assert_eq!(node.server.metrics.unknown_frames.get(), 1, "skipped and counted");
}

#[tokio::test]
async fn bad_logins_are_refused_each_with_its_reason() {
    let node = TestNode::start().await;
    let refused = async |bytes: Bytes, reason: &'static str| {
        let before = node.server.metrics.refused_for(reason);
        let mut io = node.dial(true, None).await;
        io.write_all(&bytes).await.unwrap();
        let mut rest = Vec::new();
        // A reset is an end too.
        let _end = timeout(DEADLINE, io.read_to_end(&mut rest)).await.expect("closed");
        assert!(rest.len() <= 45, "only the greeting");
        node.until(reason, |node| node.server.metrics.refused_for(reason) == before + 1).await;
    };
    let private = NodePrivate::generate();
    let (login, _) = ClientHandshake::new(private, ClientInfo::current()).fast_start(node.server.public_key()).unwrap();
    refused(encoder::to_bytes(&Frame::Ping { data: [0; 8] }), "frame_unexpected").await;
    let mut sealed_elsewhere = BytesMut::from(&login[..]);
    *sealed_elsewhere.last_mut().unwrap() ^= 1;
    refused(sealed_elsewhere.freeze(), "sealed_box").await;
    let mut zero = BytesMut::from(&login[..]);
    zero[5..37].fill(0);
    refused(zero.freeze(), "zero_key").await;
    let mut io = node.dial(true, None).await;
    io.write_all(&login).await.unwrap();
    let mut header = [0; 50];
    io.read_exact(&mut header).await.unwrap();
    refused(login, "replay").await;
    let closed = TestNode::start_with(Arc::new(DenyAll)).await;
    let (login, _) =
        ClientHandshake::new(NodePrivate::generate(), ClientInfo::current()).fast_start(closed.server.public_key()).unwrap();
    let mut io = closed.dial(true, None).await;
    io.write_all(&login).await.unwrap();
    closed.until("denied", |node| node.server.metrics.refused_for("denied") == 1).await;
    let mesh = closed.mesh_peer().await;
    assert!(closed.server.parts.registry.with_active(&mesh.key, |_| ()).is_some(), "who knows the mesh key is not asked about");
}

#[tokio::test]
async fn a_wrong_mesh_key_gives_no_rights_and_few_tries() {
    let node = TestNode::start().await;
    for _ in 0..5 {
        let info = ClientInfo { mesh_key: Some(MeshKey::generate()), ..ClientInfo::current() };
        let mut client = node.login(NodePrivate::generate(), info).await;
        client.send(&Frame::WatchConns).await;
        assert_eq!(client.next().await, None);
    }
    let info = ClientInfo { mesh_key: Some(MeshKey::generate()), ..ClientInfo::current() };
    let (login, _) = ClientHandshake::new(NodePrivate::generate(), info).fast_start(node.server.public_key()).unwrap();
    let mut io = node.dial(true, None).await;
    io.write_all(&login).await.unwrap();
    node.until("refused", |node| node.server.metrics.refused_for("mesh_tries") == 1).await;
    drop(node.mesh_peer().await);
}

#[tokio::test]
async fn pings_above_the_rate_are_ignored() {
    let node = TestNode::start().await;
    let mut client = node.client().await;
    let mut pings = BytesMut::new();
    for n in 0..200u64 {
        encoder::encode(&Frame::Ping { data: n.to_be_bytes() }, &mut pings);
    }
    client.io.write_all(&pings).await.unwrap();
    node.until("all pings", |node| node.server.metrics.pings.get() == 200).await;
    let pongs = node.server.metrics.pongs.get();
    assert!((1..=30).contains(&pongs), "{pongs}");
    assert_eq!(pongs + node.server.metrics.pings_ignored.get(), 200);
}

#[tokio::test]
async fn a_client_that_stops_reading_loses_the_oldest_packets_and_then_its_connection() {
    let node = TestNode::start().await;
    let (mut sender, stuck) = (node.client().await, node.client().await);
    let payload = Bytes::from(vec![1; 60_000]);
    let cut = async {
        while node.server.metrics.ended_for("write_stalled") == 0 {
            sender.send_packet(stuck.key, payload.clone()).await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(DEADLINE, cut).await.expect("cut after 2 s without progress");
    sender.settle().await;
    let books = node.books_at_rest().await;
    assert!(books.dropped_for(DropReason::QueueHead) > 0 && books.dropped_for(DropReason::WriteError) > 0);
}
