#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use causeway_client::Endpoint;
use causeway_control::discovery::NodeEntry;
use causeway_control::presence::{OwnerLog, PresenceView};
use causeway_proto::derp::encoder::to_bytes;
use causeway_proto::derp::frame::{Frame, PeerGoneReason, PresentFlags};
use causeway_proto::derp::handshake::Step;
use causeway_proto::derp::handshake::server::{MeshKeys, ServerHandshake, ServerIdentity, ServerSession};
use causeway_proto::derp::info::ServerInfo;
use causeway_proto::derp::upgrade::switching_protocols;
use causeway_proto::id::{BootId, Epoch, NodeId, RegionId};
use causeway_proto::key::NodePublic;
use causeway_proto::packet::{Class, Packet};
use causeway_proto::presence::ClaimKind;
use causeway_rpc::v1;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;

use super::*;
use crate::clients::{ClientFacts, ClientLimits, Registration, Registry, RegistryParts};
use crate::config::Announce;
use crate::forward::accounting::AcceptedFrom;
use crate::forward::{DropReason, PacketForwarder, Verdict};
use crate::pump::lanes::Batch;

const OWN: NodeId = NodeId(1);
const KEYS_MAX: usize = 3;

fn key(n: u8) -> NodePublic {
    NodePublic::from_bytes([n; 32])
}

fn packet(dst: NodePublic) -> Packet {
    Packet { src: key(99), dst, class: Class::Data, payload: Bytes::from_static(b"payload"), route: None }
}

/// What surrounds the links of a node.
struct World {
    registry: Arc<Registry>,
    view: Arc<PresenceView>,
    derpers: Arc<Derpers>,
    pump: PumpShared,
}

impl World {
    fn new() -> Self {
        let view = Arc::new(PresenceView::new(OWN, RegionId(1)));
        let pump = PumpShared::new();
        let registry = Registry::new(RegistryParts {
            owner_log: OwnerLog::new(OWN, Epoch(1), BootId([1; 16]), Arc::clone(&view)),
            clock: Arc::new(SystemTime::now),
            pump: pump.clone(),
            limits: ClientLimits::default(),
            announce: Announce::Region,
        });
        let derpers = Derpers::new(Arc::clone(&registry), KEYS_MAX);
        Self { registry, view, derpers, pump }
    }

    fn link(&self) -> Arc<DerperLink> {
        Arc::new(DerperLink::new(self.pump.clone()))
    }

    fn connect(&self, key: NodePublic) -> Registration {
        let remote = SocketAddr::from(([127, 0, 0, 1], 1));
        let facts = ClientFacts::ordinary(key, remote);
        self.registry.register(facts, CancellationToken::new(), std::time::Instant::now()).unwrap()
    }

    /// The kinds of this node's claims on a key.
    fn claimed(&self, key: NodePublic) -> Vec<ClaimKind> {
        self.view.claims(&key.into()).iter().map(|claim| claim.kind).collect()
    }

    /// Which of `links` a packet for `key` waits at.
    fn forwarded_to(&self, key: NodePublic, links: &[&Arc<DerperLink>]) -> Vec<usize> {
        self.pump.accounting.accepted(AcceptedFrom::Client, b"payload");
        assert_eq!(self.derpers.forward(packet(key)), Verdict::Queued);
        let mut at = Vec::new();
        for (place, link) in links.iter().enumerate() {
            let mut batch = Batch::default();
            if link.outbox().pop(&mut batch, 1_000) && !batch.packets.is_empty() {
                at.push(place);
            }
        }
        at
    }
}

#[test]
fn of_several_derpers_the_first_that_announced_a_key_gets_its_packets_and_the_next_takes_over() {
    let world = World::new();
    let (one, two, three) = (world.link(), world.link(), world.link());
    let links = [&one, &two, &three];
    for link in [&two, &one, &three, &two] {
        world.derpers.present(key(1), link).unwrap();
    }
    let metrics = world.derpers.metrics();
    assert_eq!(world.claimed(key(1)), [ClaimKind::Derper], "one claim however many derpers");
    assert_eq!((metrics.multi_forwarders_created.get(), metrics.shared_keys.get(), metrics.keys.get()), (1, 1, 1));
    assert_eq!(world.forwarded_to(key(1), &links), [1]);
    assert_eq!(world.forwarded_to(key(1), &links), [1], "all packets go one way");
    world.derpers.gone(&key(1), &two);
    assert_eq!(world.forwarded_to(key(1), &links), [0]);
    // A link that has ended is passed over before it is forgotten.
    one.end();
    assert_eq!(world.forwarded_to(key(1), &links), [2]);
    world.derpers.gone(&key(1), &one);
    assert_eq!((metrics.multi_forwarders_deleted.get(), metrics.shared_keys.get()), (1, 0));
    world.derpers.gone(&key(1), &one);
    assert_eq!(metrics.strange_departures.get(), 1, "it did not hold the key any more");
    assert!(world.derpers.can_reach(&key(1)));
    world.derpers.gone(&key(1), &three);
    assert!(!world.derpers.can_reach(&key(1)) && world.claimed(key(1)).is_empty());
    assert!(matches!(world.derpers.forward(packet(key(1))), Verdict::LinkDown(_)));
    assert_eq!(metrics.keys.get(), 0);
}

#[test]
fn a_client_here_takes_over_the_claim_and_gives_it_back() {
    let world = World::new();
    let link = world.link();
    world.derpers.present(key(1), &link).unwrap();
    let (one, two) = (world.connect(key(1)), world.connect(key(1)));
    assert_eq!(world.claimed(key(1)), [ClaimKind::Derp], "one claim, of the client");
    drop(one);
    assert_eq!(world.claimed(key(1)), [ClaimKind::Derp]);
    drop(two);
    assert_eq!(world.claimed(key(1)), [ClaimKind::Derper]);

    let client = world.connect(key(1));
    world.derpers.gone(&key(1), &link);
    assert_eq!(world.claimed(key(1)), [ClaimKind::Derp], "the derper's departure is no matter of the client's");
    world.derpers.present(key(1), &link).unwrap();
    assert_eq!(world.claimed(key(1)), [ClaimKind::Derp]);
    drop(client);
    assert_eq!(world.claimed(key(1)), [ClaimKind::Derper]);
    world.derpers.gone(&key(1), &link);
    assert!(world.claimed(key(1)).is_empty());
}

#[test]
fn keys_beyond_the_limit_are_refused_and_leave_nothing_behind() {
    let world = World::new();
    let (one, two) = (world.link(), world.link());
    for n in 1..=3 {
        world.derpers.present(key(n), &one).unwrap();
    }
    assert_eq!(world.derpers.present(key(4), &one), Err(KeysFull));
    assert!(!world.derpers.can_reach(&key(4)) && world.claimed(key(4)).is_empty());
    world.derpers.present(key(1), &two).expect("the key is claimed already");
    world.derpers.gone(&key(2), &one);
    world.derpers.present(key(4), &one).unwrap();
}

#[test]
fn what_waits_for_a_link_that_ends_is_dropped_and_counted() {
    let world = World::new();
    let link = world.link();
    world.derpers.present(key(1), &link).unwrap();
    world.pump.accounting.accepted(AcceptedFrom::Client, b"payload");
    assert_eq!(world.derpers.forward(packet(key(1))), Verdict::Queued);
    link.end();
    let books = world.pump.accounting.books();
    assert_eq!((books.dropped_for(DropReason::GoneDisconnected), books.queued, books.imbalance()), (1, 0, 0));
}

/// A derper that does what a test tells it, over plain TCP.
struct FakeDerper {
    listener: TcpListener,
    identity: Arc<ServerIdentity>,
    mesh_key: MeshKey,
}

/// A link at its derper's end.
struct Accepted {
    socket: TcpStream,
    session: ServerSession,
    buffer: BytesMut,
}

impl FakeDerper {
    async fn start(key: NodePrivate) -> Self {
        let mesh_key = MeshKey::generate();
        let keys = MeshKeys { current: Some(mesh_key.clone()), previous: None };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self { listener, identity: Arc::new(ServerIdentity::new(key, keys)), mesh_key }
    }

    /// Starts a node's link to this derper.
    fn link_from(&self, world: &World, server_key: &NodePrivate, nodes: &watch::Receiver<Arc<NodeSet>>) -> JoinHandle<()> {
        let parts = DerpMeshParts {
            server_key: server_key.clone(),
            mesh_key: self.mesh_key.clone(),
            trust: None,
            nodes: nodes.clone(),
            derpers: Arc::clone(&world.derpers),
            pump: world.pump.clone(),
            spawner: PacketSpawner::new(TaskTracker::new(), tokio::runtime::Handle::current()),
            cancel: CancellationToken::new(),
        };
        let endpoint = Endpoint::at(self.listener.local_addr().unwrap(), "derper.test").plain();
        tokio::spawn(supervisor::keep(parts, Derper { endpoint, dial_host: None }))
    }

    /// Takes a login, which must be of `client` and with the mesh key.
    async fn accept(&self, client: NodePublic) -> Accepted {
        let (mut socket, _) = self.listener.accept().await.unwrap();
        let mut buffer = BytesMut::new();
        let end = loop {
            if let Some(at) = buffer.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                break at + 4;
            }
            assert!(socket.read_buf(&mut buffer).await.unwrap() > 0);
        };
        let _head = buffer.split_to(end);
        let mut handshake = ServerHandshake::new(Arc::clone(&self.identity));
        socket.write_all(&switching_protocols(&self.identity.public())).await.unwrap();
        socket.write_all(&handshake.greeting()).await.unwrap();
        let pending = loop {
            match handshake.read_login(&mut buffer).unwrap() {
                Step::Done(pending) => break pending,
                Step::More(again) => handshake = again,
            }
            assert!(socket.read_buf(&mut buffer).await.unwrap() > 0);
        };
        let login = pending.login();
        assert!(login.key == client && login.is_mesh_peer && !login.info.can_ack_pings);
        let (answer, session) = pending.accept(&ServerInfo::current());
        socket.write_all(&answer).await.unwrap();
        Accepted { socket, session, buffer }
    }
}

impl Accepted {
    async fn send(&mut self, frames: &[Frame]) {
        for frame in frames {
            self.socket.write_all(&to_bytes(frame)).await.unwrap();
        }
    }

    async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.session.decoder.decode(&mut self.buffer).unwrap() {
                return Some(frame);
            }
            if self.socket.read_buf(&mut self.buffer).await.unwrap() == 0 {
                return None;
            }
        }
    }
}

fn present(key: NodePublic, flags: PresentFlags) -> Frame {
    Frame::PeerPresent { peer: key, addr: None, flags }
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), wait).await.unwrap_or_else(|_| panic!("waited for: {what}"));
}

fn nobody() -> watch::Receiver<Arc<NodeSet>> {
    watch::channel(Arc::new(NodeSet::new(OWN, []))).1
}

#[tokio::test]
async fn a_link_watches_claims_forwards_and_forgets_everything_when_it_is_lost() {
    let world = World::new();
    let (server_key, derper) = (NodePrivate::generate(), FakeDerper::start(NodePrivate::generate()).await);
    let linked = derper.link_from(&world, &server_key, &nobody());
    let mut link = derper.accept(server_key.public()).await;
    assert_eq!(link.next().await, Some(Frame::WatchConns));
    link.send(&[
        present(server_key.public(), PresentFlags::MESH_PEER),
        present(key(8), PresentFlags::MESH_PEER),
        present(key(1), PresentFlags::REGULAR),
        present(key(1), PresentFlags::REGULAR),
        present(key(2), PresentFlags::default()),
        Frame::KeepAlive,
        Frame::RecvPacket { src: key(1), payload: Bytes::from_static(b"to nobody") },
        present(key(3), PresentFlags::NOT_IDEAL),
        present(key(4), PresentFlags::REGULAR),
        Frame::PeerGone { peer: key(9), reason: PeerGoneReason::Disconnected },
        Frame::PeerGone { peer: key(2), reason: PeerGoneReason::Disconnected },
        Frame::Ping { data: [5; 8] },
    ])
    .await;
    assert_eq!(link.next().await, Some(Frame::Pong { data: [5; 8] }), "all before it is dealt with");
    assert!(world.derpers.can_reach(&key(1)) && world.derpers.can_reach(&key(3)));
    for unknown in [server_key.public(), key(8), key(2), key(4), key(9)] {
        assert!(!world.derpers.can_reach(&unknown) && world.claimed(unknown).is_empty(), "{unknown}");
    }
    assert_eq!(world.derpers.metrics().keys_refused.get(), 1, "the fourth key");

    world.pump.accounting.accepted(AcceptedFrom::Client, b"payload");
    assert_eq!(world.derpers.forward(packet(key(1))), Verdict::Queued);
    let forwarded = Frame::ForwardPacket { src: key(99), dst: key(1), payload: Bytes::from_static(b"payload") };
    assert_eq!(link.next().await, Some(forwarded));
    until("delivered", || world.pump.accounting.books().imbalance() == 0 && world.pump.accounting.books().queued == 0).await;

    // The key is not there after all.
    link.send(&[Frame::PeerGone { peer: key(1), reason: PeerGoneReason::NotHere }]).await;
    until("one key is left", || !world.derpers.can_reach(&key(1))).await;
    drop(link);
    until("nothing is left", || !world.derpers.can_reach(&key(3)) && world.claimed(key(3)).is_empty()).await;
    assert_eq!((world.derpers.metrics().keys.get(), world.derpers.metrics().ended_for("eof")), (0, 1));
    assert!(!linked.is_finished(), "it dials again");
    linked.abort();
}

#[tokio::test]
async fn a_link_to_itself_ends_for_good_and_one_to_a_sibling_as_soon_as_that_is_known() {
    let world = World::new();
    let server_key = NodePrivate::generate();
    let mirror = FakeDerper::start(server_key.clone()).await;
    let linked = mirror.link_from(&world, &server_key, &nobody());
    drop(mirror.accept(server_key.public()).await);
    linked.await.unwrap();

    let sibling = NodePrivate::generate();
    let derper = FakeDerper::start(sibling.clone()).await;
    let (nodes, known) = watch::channel(Arc::new(NodeSet::new(OWN, [])));
    let linked = derper.link_from(&world, &server_key, &known);
    let mut link = derper.accept(server_key.public()).await;
    assert_eq!(link.next().await, Some(Frame::WatchConns));
    link.send(&[present(key(1), PresentFlags::REGULAR)]).await;
    until("linked", || world.derpers.can_reach(&key(1))).await;
    let relay =
        v1::RelayEndpoint { derp_public_key: sibling.public().as_bytes().to_vec().into(), ..v1::RelayEndpoint::default() };
    let record = v1::NodeRecord { node_id: 2, relay: Some(relay), ..v1::NodeRecord::default() };
    nodes.send_replace(Arc::new(NodeSet::new(OWN, [NodeEntry { record, admitted: true, fenced: false }])));
    assert_eq!(link.next().await, None, "closed");
    until("forgotten", || !world.derpers.can_reach(&key(1)) && world.claimed(key(1)).is_empty()).await;
    assert_eq!(world.derpers.metrics().ended_for("sibling"), 1);
    linked.abort();
}

#[tokio::test]
async fn a_derper_that_reads_nothing_loses_the_oldest_packets_and_then_its_link_and_holds_up_nobody() {
    let world = World::new();
    let (server_key, derper) = (NodePrivate::generate(), FakeDerper::start(NodePrivate::generate()).await);
    let linked = derper.link_from(&world, &server_key, &nobody());
    let mut link = derper.accept(server_key.public()).await;
    link.send(&[present(key(1), PresentFlags::REGULAR)]).await;
    until("linked", || world.derpers.can_reach(&key(1))).await;

    // Far more than the lanes and the kernel hold; every offer returns at once.
    let large = Bytes::from(vec![0; 32 * 1024]);
    while world.pump.accounting.books().dropped_for(DropReason::QueueHead) < 500 {
        for _ in 0..64 {
            world.pump.accounting.accepted(AcceptedFrom::Client, &large);
            let offered = world.derpers.forward(Packet { payload: large.clone(), ..packet(key(1)) });
            assert_eq!(offered, Verdict::Queued);
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let stalled_at = tokio::time::Instant::now();
    tokio::time::pause();
    until("cut", || world.derpers.metrics().ended_for("write_stalled") == 1).await;
    assert!(stalled_at.elapsed() < Duration::from_secs(6), "after 5 s");
    assert!(!world.derpers.can_reach(&key(1)) && world.claimed(key(1)).is_empty());
    let books = world.pump.accounting.books();
    assert_eq!((books.queued, books.imbalance()), (0, 0));
    assert!(books.dropped_for(DropReason::GoneDisconnected) + books.dropped_for(DropReason::WriteError) > 0);
    linked.abort();
}
