#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests")]
//! Nodes joined by real links: mutual TLS over loopback sockets, presence fed by hand.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Instant, SystemTime};

use bytes::{Bytes, BytesMut};
use causeway_control::identity::{FleetTrust, NodeKey};
use causeway_control::presence::{OwnerLog, WatchInput};
use causeway_control::{Alpn, NodeEntry, PeerChannels, Tracing};
use causeway_proto::id::{BootId, RegionId};
use causeway_proto::key::{MeshKey, NodePrivate, NodePublic};
use causeway_proto::link::frame::{self, Hello, LinkDecoder};
use causeway_proto::packet::{Class, Path, Route};
use causeway_proto::presence::{PresenceKey, Rank};
use causeway_rpc::v1;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::TaskTracker;

use super::*;
use crate::clients::{ClientFacts, ClientLimits, Registration, Registry, RegistryParts};
use crate::config::Announce;
use crate::derp_mesh::Derpers;
use crate::forward::DropReason;
use crate::forward::accounting::{AcceptedFrom, DeliveredTo};
use crate::pump::lanes::Batch;
use crate::router::decide::Ingress;
use crate::router::explain::RoutingService;
use crate::router::{Router, RouterParts};

const EPOCH: Epoch = Epoch(1);
const DEADLINE: Duration = Duration::from_secs(20);

/// A node with a mesh listener.
struct TestNode {
    id: NodeId,
    addr: SocketAddr,
    tls: Arc<MeshTls>,
    nodes: watch::Sender<Arc<NodeSet>>,
    view: Arc<PresenceView>,
    log: OwnerLog,
    registry: Arc<Registry>,
    router: Arc<Router>,
    mesh: Arc<Mesh>,
    pump: PumpShared,
    cancel: CancellationToken,
}

impl TestNode {
    async fn start(seed: u8, mesh_key: &MeshKey) -> Self {
        let key = NodeKey::from_seed(&[seed; 32]);
        let id = key.node_id();
        let tls = Arc::new(MeshTls::new(FleetTrust::new(mesh_key, None), key));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let view = Arc::new(PresenceView::new(id, RegionId(u64::from(seed))));
        let log = OwnerLog::new(id, EPOCH, BootId([seed; 16]), Arc::clone(&view));
        let pump = PumpShared::new();
        let parts = RegistryParts {
            owner_log: log.clone(),
            clock: Arc::new(SystemTime::now),
            pump: pump.clone(),
            limits: ClientLimits::default(),
            announce: Announce::Region,
        };
        let registry = Registry::new(parts);
        let (nodes, node_set) = watch::channel(Arc::new(NodeSet::new(id, [])));
        let mesh = Mesh::new(MeshParts {
            own: id,
            epoch: EPOCH,
            tls: Arc::clone(&tls),
            nodes: node_set,
            view: Arc::clone(&view),
            pump: pump.clone(),
            stripes: 2,
        });
        let router = Router::new(RouterParts {
            own: id,
            registry: Arc::clone(&registry),
            view: Arc::clone(&view),
            links: Arc::clone(&mesh) as Arc<dyn NodeLinks>,
            derpers: Derpers::new(Arc::clone(&registry), 0),
            accounting: Arc::clone(&pump.accounting),
            sampler: || false,
        });
        let (tracker, cancel) = (TaskTracker::new(), CancellationToken::new());
        let spawner = PacketSpawner::new(tracker, tokio::runtime::Handle::current());
        let acceptor = mesh.start(Arc::clone(&router) as Arc<dyn PacketForwarder>, spawner, cancel.clone());
        tokio::spawn(listen(listener, Arc::clone(&tls), acceptor, cancel.clone()));
        Self { id, addr, tls, nodes, view, log, registry, router, mesh, pump, cancel }
    }

    /// Tells this node where the others are.
    fn meet(&self, others: &[(NodeId, SocketAddr)]) {
        let entries = others.iter().map(|(id, addr)| NodeEntry {
            record: v1::NodeRecord { node_id: id.0, mesh_addr: addr.to_string(), ..v1::NodeRecord::default() },
            admitted: true,
            fenced: false,
        });
        self.nodes.send_replace(Arc::new(NodeSet::new(self.id, entries)));
    }

    /// Learns everything of another node's log, and whom that one hears.
    fn hear(&self, other: &Self, hears: &[NodeId]) {
        let mut hears = hears.to_vec();
        hears.sort_unstable();
        let batch = other.log.ops_from(1, 1 << 20).unwrap();
        let boot_id = other.log.identity().boot_id;
        let delta = WatchInput::Delta { first_seq: 1, ops: batch.ops };
        for input in [WatchInput::Hello { boot_id }, delta, WatchInput::Heartbeat { hears }] {
            self.view.ingest_watch(other.id, EPOCH, input, Instant::now()).unwrap();
        }
    }

    fn connect(&self, key: NodePublic) -> Registration {
        let remote = SocketAddr::from(([127, 0, 0, 1], 1));
        let facts = ClientFacts::ordinary(key, remote);
        self.registry.register(facts, CancellationToken::new(), Instant::now()).unwrap()
    }

    fn send(&self, src: NodePublic, dst: NodePublic, payload: impl Into<Bytes>) -> Verdict {
        let payload = payload.into();
        self.pump.accounting.accepted(AcceptedFrom::Client, &payload);
        self.router.route(Ingress::Client, Packet { src, dst, class: Class::Data, payload, route: None })
    }

    async fn link_up(&self, other: NodeId) {
        until("the link is up", || self.mesh.is_up(other)).await;
    }

    /// The next packet for a client here, which counts as delivered.
    async fn next(&self, client: &Registration) -> Packet {
        let mut batch = Batch::default();
        until("a packet", || {
            client.connection().outbox().pop(&mut batch, 1);
            !batch.packets.is_empty()
        })
        .await;
        assert_eq!(batch.packets.len(), 1);
        self.pump.accounting.delivered(DeliveredTo::Client, 1, batch.payload_bytes as u64);
        batch.packets.remove(0)
    }

    async fn rests_balanced(&self) {
        until("balanced books", || {
            let books = self.pump.accounting.books();
            books.imbalance() == 0 && books.queued == 0
        })
        .await;
    }
}

impl Drop for TestNode {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

async fn listen(listener: TcpListener, tls: Arc<MeshTls>, acceptor: LinkAcceptor, cancel: CancellationToken) {
    while let Some(Ok((socket, _))) = cancel.run_until_cancelled(listener.accept()).await {
        if let Ok((stream, peer, Alpn::Link)) = tls.accept(socket).await {
            acceptor.accept(stream, peer.node_id);
        }
    }
}

async fn until(what: &str, mut reached: impl FnMut() -> bool) {
    let waiting = async {
        while !reached() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(DEADLINE, waiting).await.unwrap_or_else(|_| panic!("never came: {what}"));
}

fn key() -> NodePublic {
    NodePrivate::generate().public()
}

async fn nodes<const N: usize>() -> [TestNode; N] {
    let mesh_key = MeshKey::generate();
    let mut nodes = Vec::new();
    for seed in 1..=N {
        nodes.push(TestNode::start(u8::try_from(seed).unwrap(), &mesh_key).await);
    }
    nodes.try_into().unwrap_or_else(|_| panic!("as many as asked for"))
}

#[tokio::test]
async fn packets_cross_a_link_in_order_both_ways_and_every_book_balances() {
    let [a, b] = nodes().await;
    a.meet(&[(b.id, b.addr)]);
    b.meet(&[(a.id, a.addr)]);
    let (x, y) = (key(), key());
    let (at_a, at_b) = (a.connect(x), b.connect(y));
    a.hear(&b, &[a.id]);
    b.hear(&a, &[b.id]);
    a.link_up(b.id).await;
    b.link_up(a.id).await;
    for n in 0..300u32 {
        assert_eq!(a.send(x, y, n.to_be_bytes().to_vec()), Verdict::Queued);
        let packet = b.next(&at_b).await;
        assert_eq!((packet.src, packet.dst, &packet.payload[..]), (x, y, &n.to_be_bytes()[..]));
        assert_eq!(packet.route.unwrap().path.as_slice(), [a.id]);
    }
    assert_eq!(b.send(y, x, vec![7; 65_536]), Verdict::Queued);
    assert_eq!(a.next(&at_a).await.payload.len(), 65_536);
    a.rests_balanced().await;
    b.rests_balanced().await;
    let status = &a.mesh.status()[0];
    assert_eq!((status.node, status.up, status.stripes), (b.id, true, 2));
    until("a round trip", || a.mesh.status()[0].round_trip.is_some()).await;
}

#[tokio::test]
async fn a_stale_claim_is_told_to_the_origin_which_hides_it() {
    let [a, b] = nodes().await;
    a.meet(&[(b.id, b.addr)]);
    b.meet(&[(a.id, a.addr)]);
    let y = key();
    let at_b = b.connect(y);
    a.hear(&b, &[a.id]);
    drop(at_b);
    a.link_up(b.id).await;
    b.link_up(a.id).await;
    assert_eq!(a.send(key(), y, vec![1]), Verdict::Queued, "b's release is not known here yet");
    until("the notice", || a.view.prefer(&PresenceKey::from(y), &|_| false).is_none()).await;
    assert_eq!(a.send(key(), y, vec![1]), Verdict::Dropped(DropReason::UnknownDest));
    until("the drop", || b.pump.accounting.books().dropped_for(DropReason::Stale) == 1).await;
    a.rests_balanced().await;
    b.rests_balanced().await;
}

#[tokio::test]
async fn a_cut_link_is_passed_by_a_transit_node_until_it_is_back() {
    let [a, b, c] = nodes().await;
    // A port where nobody listens.
    let nowhere = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    a.meet(&[(b.id, nowhere), (c.id, c.addr)]);
    c.meet(&[(b.id, b.addr), (a.id, a.addr)]);
    let y = key();
    let at_b = b.connect(y);
    a.hear(&b, &[c.id]);
    assert_eq!(a.send(key(), y, vec![0]), Verdict::Dropped(DropReason::LinkDown), "no transit is known");
    a.hear(&c, &[b.id, a.id]);
    a.link_up(c.id).await;
    c.link_up(b.id).await;
    assert_eq!(a.send(key(), y, vec![1]), Verdict::Queued);
    assert_eq!(b.next(&at_b).await.route.unwrap().path.as_slice(), [a.id, c.id]);
    until("an error to show", || a.mesh.status().iter().any(|link| link.node == b.id && !link.last_error.is_empty())).await;
    a.meet(&[(b.id, b.addr), (c.id, c.addr)]);
    a.link_up(b.id).await;
    assert_eq!(a.send(key(), y, vec![2]), Verdict::Queued);
    assert_eq!(b.next(&at_b).await.route.unwrap().path.as_slice(), [a.id]);
    for node in [&a, &b, &c] {
        node.rests_balanced().await;
    }
}

#[tokio::test]
async fn a_way_that_cannot_be_asked_to_its_end_is_told_as_far_as_it_is_known() {
    let [a, b] = nodes().await;
    a.meet(&[(b.id, b.addr)]);
    b.meet(&[(a.id, a.addr)]);
    let y = key();
    let _at_b = b.connect(y);
    a.hear(&b, &[a.id]);
    a.link_up(b.id).await;
    // The nodes of this file answer packets, not questions.
    let routing =
        RoutingService::new(Arc::clone(&a.router), PeerChannels::new(Arc::clone(&a.tls), a.nodes.subscribe(), Tracing::OFF));
    let bytes = |key: NodePublic| Bytes::copy_from_slice(key.as_bytes());
    let question = v1::ExplainRequest { src: bytes(key()), dst: bytes(y), ..Default::default() };
    let way = routing.explain_from(a.id, question.clone()).await.unwrap();
    let [hop] = way.hops.as_slice() else { panic!("{way:?}") };
    assert_eq!((hop.node_id, hop.action.as_str(), hop.next_hop), (a.id.0, "forward", b.id.0));
    assert!(way.unanswered.is_some_and(|unanswered| unanswered.node_id == b.id.0 && !unanswered.why.is_empty()));
    let way = routing.explain_from(NodeId(7), question).await.unwrap();
    assert_eq!((way.hops.len(), way.unanswered.unwrap().node_id), (0, 7));
}

#[tokio::test]
async fn a_link_comes_back_by_itself() {
    let [a, b] = nodes().await;
    let proxy = TcpListener::bind("127.0.0.1:0").await.unwrap();
    a.meet(&[(b.id, proxy.local_addr().unwrap())]);
    let behind = b.addr;
    let cut = CancellationToken::new();
    let first = cut.clone();
    tokio::spawn(async move {
        while let Ok((mut near, _)) = proxy.accept().await {
            let first = first.clone();
            tokio::spawn(async move {
                let mut far = TcpStream::connect(behind).await.unwrap();
                let passed = tokio::io::copy_bidirectional(&mut near, &mut far);
                if first.is_cancelled() { drop(passed.await) } else { drop(first.run_until_cancelled(passed).await) }
            });
        }
    });
    a.link_up(b.id).await;
    cut.cancel();
    until("down", || a.mesh.metrics.ended_for("eof") + a.mesh.metrics.ended_for("read_error") >= 1).await;
    a.link_up(b.id).await;
}

#[tokio::test]
async fn the_open_links_of_an_evicted_node_close_and_none_is_made_again() {
    let [a, b, c] = nodes().await;
    a.meet(&[(b.id, b.addr), (c.id, c.addr)]);
    b.meet(&[(a.id, a.addr)]);
    a.link_up(c.id).await;
    let stripes_up = |node: &TestNode| node.mesh.status()[0].stripes_up;
    b.link_up(a.id).await;
    until("every stripe", || a.mesh.status().iter().all(|link| link.stripes_up == 2) && stripes_up(&b) == 2).await;
    let evicted_at = Instant::now();
    a.tls.set_evicted([b.id].into());
    // Two stripes that a dialled, two that b dialled.
    until("all closed", || a.mesh.metrics.ended_for("evicted") == 4 && !a.mesh.is_up(b.id)).await;
    assert!(evicted_at.elapsed() < Duration::from_secs(1));
    until("refused", || a.mesh.status().iter().any(|link| link.node == b.id && link.last_error.contains("evicted"))).await;
    until("down there too", || !b.mesh.is_up(a.id)).await;
    assert!(a.mesh.is_up(c.id));
}

/// Dials `node` with the certificate of `as_node` and says hello.
async fn intrude(node: &TestNode, as_node: &TestNode, hello: Hello) -> impl AsyncRead + AsyncWrite + Unpin {
    let socket = TcpStream::connect(node.addr).await.unwrap();
    let (mut stream, _) = as_node.tls.connect_over(socket, Some(node.id), Alpn::Link).await.unwrap();
    let mut out = BytesMut::new();
    frame::encode_hello(&hello, &mut out);
    stream.write_all(&out).await.unwrap();
    stream.flush().await.unwrap();
    stream
}

#[tokio::test]
async fn a_hello_of_another_node_ends_the_link() {
    let [a, b] = nodes().await;
    let mut stream = intrude(&a, &b, Hello::new(NodeId(77), EPOCH, 0, 1)).await;
    let mut rest = Vec::new();
    // A reset is an end too.
    let _end = tokio::time::timeout(DEADLINE, stream.read_to_end(&mut rest)).await.expect("closed");
    until("counted", || a.mesh.metrics.ended_for("wrong_node") == 1).await;
}

#[tokio::test]
async fn headers_that_contradict_themselves_or_their_sender_are_dropped() {
    let [a, b] = nodes().await;
    let y = key();
    let at_a = a.connect(y);
    let mut stream = intrude(&a, &b, Hello::new(b.id, EPOCH, 0, 1)).await;
    let path = |nodes: &[NodeId]| {
        let mut path = Path::default();
        nodes.iter().for_each(|node| path.push(*node).unwrap());
        path
    };
    let good = Route {
        origin: b.id,
        target: a.id,
        rank_used: Rank { clock_us: 1, node: a.id },
        redirects: 0,
        path: path(&[b.id]),
        from_derper: false,
        trace: None,
    };
    let bad = [
        Route { origin: NodeId(5), ..good },
        Route { path: path(&[b.id, NodeId(5)]), ..good },
        Route { origin: NodeId(5), path: path(&[NodeId(5)]), ..good },
        Route { rank_used: Rank { clock_us: 1, node: b.id }, ..good },
    ];
    let looped = Route { path: path(&[a.id, b.id]), origin: a.id, ..good };
    let mut out = BytesMut::new();
    for (n, route) in (0u8..).zip(bad.into_iter().chain([looped, good])) {
        let packet = Packet { src: key(), dst: y, class: Class::Data, payload: Bytes::from(vec![n]), route: Some(route) };
        frame::encode(&LinkFrame::Packet(packet), &mut out).unwrap();
    }
    stream.write_all(&out).await.unwrap();
    stream.flush().await.unwrap();
    assert_eq!(a.next(&at_a).await.payload[..], [5], "only the good one");
    let books = a.pump.accounting.books();
    assert_eq!((books.dropped_for(DropReason::BadHeader), books.dropped_for(DropReason::Loop)), (4, 1));
    a.rests_balanced().await;

    // Its pings are answered, and what is no frame ends the link.
    let mut ping = BytesMut::new();
    frame::encode(&LinkFrame::Ping([3; 8]), &mut ping).unwrap();
    stream.write_all(&ping).await.unwrap();
    stream.flush().await.unwrap();
    let (mut decoder, mut buffer, mut frames) = (LinkDecoder::new(), BytesMut::new(), BTreeMap::new());
    while !frames.contains_key("pong") {
        match decoder.decode(&mut buffer).unwrap() {
            Some(LinkFrame::Hello(hello)) => drop(frames.insert("hello", hello.node.0)),
            Some(LinkFrame::Pong(data)) => drop(frames.insert("pong", u64::from(data[0]))),
            Some(_) => {}
            None => assert!(stream.read_buf(&mut buffer).await.unwrap() > 0),
        }
    }
    assert_eq!((frames["hello"], frames["pong"]), (a.id.0, 3));
    stream.write_all(&[0xff; 64]).await.unwrap();
    stream.flush().await.unwrap();
    until("ended", || a.mesh.metrics.ended_for("frame_too_long") == 1).await;
}
