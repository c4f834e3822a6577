#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests")]
//! Many nodes joined by in-memory links, driven by a seed: disagreeing presence, cut links, suspect connections, redirects.
//!
//! Registry, owner log, view, router and lanes are the real ones; only sockets are missing. Checked throughout: only the right key
//! gets a packet, at most once; what a stock derper forwarded reaches no other; no node is twice on a path and no path is longer than five; and at rest every node's books balance.
//! After healing, every packet to a connected key arrives, in order. `SEED=n` replays one run.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use causeway_control::presence::{OwnerLog, PresenceView, WatchInput};
use causeway_node::clients::{ClientFacts, ClientLimits, Registration, Registry, RegistryParts};
use causeway_node::config::Announce;
use causeway_node::derp_mesh::{DerperLink, Derpers};
use causeway_node::forward::accounting::{AcceptedFrom, DeliveredTo};
use causeway_node::forward::links::NodeLinks;
use causeway_node::forward::{PacketForwarder, Verdict};
use causeway_node::pump::lanes::{Batch, LaneLimits, Outbox, PumpShared};
use causeway_node::router::decide::Ingress;
use causeway_node::router::{Router, RouterParts};
use causeway_proto::id::{BootId, Epoch, NodeId, RegionId};
use causeway_proto::key::NodePublic;
use causeway_proto::link::frame::{LinkFrame, Stale};
use causeway_proto::packet::{Class, PATH_LEN_MAX, Packet, REDIRECTS_MAX};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio_util::sync::CancellationToken;

const EPOCH: Epoch = Epoch(1);
const KEYS: u64 = 6;
const STEPS: usize = 1_500;

/// The outgoing links of one node.
struct Wires {
    lanes: BTreeMap<NodeId, Outbox<LinkFrame>>,
    cut: Mutex<BTreeSet<NodeId>>,
}

impl NodeLinks for Wires {
    fn is_up(&self, node: NodeId) -> bool {
        self.lanes.contains_key(&node) && !self.cut.lock().contains(&node)
    }

    fn forward_to(&self, node: NodeId, packet: Packet) -> Verdict {
        if self.is_up(node) { self.lanes[&node].forward(packet) } else { Verdict::LinkDown(packet) }
    }

    fn tell_stale(&self, node: NodeId, stale: Stale) -> bool {
        self.is_up(node) && self.lanes[&node].push_control(LinkFrame::Stale(stale)).is_ok()
    }
}

struct Node {
    id: NodeId,
    view: Arc<PresenceView>,
    log: OwnerLog,
    registry: Arc<Registry>,
    derpers: Arc<Derpers>,
    router: Arc<Router>,
    wires: Arc<Wires>,
    pump: PumpShared,
    clients: Vec<(u64, Registration)>,
}

impl Node {
    fn new(id: NodeId, all: &[NodeId]) -> Self {
        let view = Arc::new(PresenceView::new(id, RegionId(1 + id.0 % 3)));
        let log = OwnerLog::new(id, EPOCH, boot_id(id), Arc::clone(&view));
        let pump = PumpShared::new();
        let parts = RegistryParts {
            owner_log: log.clone(),
            clock: Arc::new(SystemTime::now),
            pump: pump.clone(),
            limits: ClientLimits::default(),
            announce: Announce::Region,
        };
        let registry = Registry::new(parts);
        let lane = || Outbox::new(LaneLimits::LINK, DeliveredTo::Link, pump.clone());
        let lanes = all.iter().filter(|other| **other != id).map(|other| (*other, lane())).collect();
        let wires = Arc::new(Wires { lanes, cut: Mutex::default() });
        let derpers = Derpers::new(Arc::clone(&registry), 100);
        let router = Router::new(RouterParts {
            own: id,
            registry: Arc::clone(&registry),
            view: Arc::clone(&view),
            links: Arc::clone(&wires) as Arc<dyn NodeLinks>,
            derpers: Arc::clone(&derpers),
            accounting: Arc::clone(&pump.accounting),
            sampler: || false,
        });
        Self { id, view, log, registry, derpers, router, wires, pump, clients: Vec::new() }
    }
}

/// A stock derper, and the links that nodes have to it.
#[derive(Default)]
struct Stock {
    keys: BTreeSet<u64>,
    links: BTreeMap<usize, Arc<DerperLink>>,
}

impl Stock {
    fn link(&mut self, at: usize, node: &Node) {
        let link = Arc::new(DerperLink::new(node.pump.clone()));
        self.keys.iter().for_each(|client| node.derpers.present(key(*client), &link).unwrap());
        self.links.insert(at, link);
    }

    fn unlink(&mut self, at: usize, node: &Node) {
        let Some(link) = self.links.remove(&at) else { return };
        link.end();
        self.keys.iter().for_each(|client| node.derpers.gone(&key(*client), &link));
    }
}

fn boot_id(node: NodeId) -> BootId {
    BootId([u8::try_from(node.0).unwrap(); 16])
}

fn key(n: u64) -> NodePublic {
    let mut bytes = [9; 32];
    bytes[..8].copy_from_slice(&n.to_be_bytes());
    NodePublic::from_bytes(bytes)
}

/// What a run was about: without it, it would prove nothing.
#[derive(Debug, Default)]
struct Seen {
    delivered: usize,
    redirects: u64,
    transits: u64,
    stale: u64,
    to_stock: usize,
    from_stock: usize,
}

struct World {
    rng: StdRng,
    nodes: Vec<Node>,
    stocks: Vec<Stock>,
    /// Packets that a stock derper forwarded.
    from_stock: BTreeSet<u64>,
    next_packet: u64,
    /// Packet -> the key it is for.
    sent: BTreeMap<u64, NodePublic>,
    delivered: BTreeSet<u64>,
    last_delivered: BTreeMap<(NodePublic, NodePublic), u64>,
    check_order: bool,
    seen: Seen,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let ids: Vec<NodeId> = (1..=rng.random_range(3..=7)).map(NodeId).collect();
        let nodes = ids.iter().map(|id| Node::new(*id, &ids)).collect();
        let stocks = (0..rng.random_range(0..=2)).map(|_| Stock::default()).collect();
        let world = Self {
            rng,
            nodes,
            stocks,
            from_stock: BTreeSet::new(),
            next_packet: 0,
            sent: BTreeMap::new(),
            delivered: BTreeSet::new(),
            last_delivered: BTreeMap::new(),
            check_order: false,
            seen: Seen::default(),
        };
        world.hear_everybody();
        world
    }

    fn pick_node(&mut self) -> usize {
        self.rng.random_range(0..self.nodes.len())
    }

    fn step(&mut self) {
        match self.rng.random_range(0..100) {
            0..4 => self.connect(),
            4..7 => self.disconnect(),
            7..10 => self.suspect(),
            10..12 => self.cut_or_heal(),
            12..24 => {
                let (owner, observer) = (self.pick_node(), self.pick_node());
                self.sync(owner, observer);
            }
            24..26 => self.watch_down_or_up(),
            26..56 => self.send(),
            56..60 => self.stock(),
            60..98 => {
                let (from, to) = (self.pick_node(), self.pick_node());
                self.pump_link(from, to);
            }
            _ => self.drain_clients(),
        }
    }

    /// Something happens at a stock derper.
    fn stock(&mut self) {
        if self.stocks.is_empty() {
            return;
        }
        let (stock, node, client) =
            (self.rng.random_range(0..self.stocks.len()), self.pick_node(), self.rng.random_range(0..KEYS));
        let stock = &mut self.stocks[stock];
        match self.rng.random_range(0..4) {
            0 if stock.links.contains_key(&node) => stock.unlink(node, &self.nodes[node]),
            0 => stock.link(node, &self.nodes[node]),
            1 => {
                let left = stock.keys.remove(&client);
                if !left {
                    stock.keys.insert(client);
                }
                for (at, link) in &stock.links {
                    let derpers = &self.nodes[*at].derpers;
                    if left { derpers.gone(&key(client), link) } else { derpers.present(key(client), link).unwrap() }
                }
            }
            _ => {
                self.next_packet += 1;
                self.from_stock.insert(self.next_packet);
                self.offer(node, Ingress::StockMesh, key(2_000), key(client));
            }
        }
    }

    fn connect(&mut self) {
        let (node, client) = (self.pick_node(), self.rng.random_range(0..KEYS));
        let facts = ClientFacts::ordinary(key(client), SocketAddr::from(([127, 0, 0, 1], 1)));
        let node = &mut self.nodes[node];
        let registration = node.registry.register(facts, CancellationToken::new(), Instant::now()).unwrap();
        node.clients.push((client, registration));
    }

    fn disconnect(&mut self) {
        self.drain_clients();
        let node = self.pick_node();
        if !self.nodes[node].clients.is_empty() {
            let client = self.rng.random_range(0..self.nodes[node].clients.len());
            self.nodes[node].clients.swap_remove(client);
        }
    }

    /// A connection goes half-open, or speaks again.
    fn suspect(&mut self) {
        let (node, client, heard) = (self.pick_node(), self.rng.random_range(0..KEYS), self.rng.random::<bool>());
        let later = Instant::now() + Duration::from_secs(10);
        if heard {
            self.nodes[node].registry.with_active(&key(client), |connection| connection.proof().heard(later));
        } else {
            self.nodes[node].registry.challenge(&key(client), later);
        }
    }

    fn cut_or_heal(&mut self) {
        let (from, to) = (self.pick_node(), self.pick_node());
        let to = self.nodes[to].id;
        let mut cut = self.nodes[from].wires.cut.lock();
        if !cut.remove(&to) {
            cut.insert(to);
        }
    }

    /// The observer learns some more of the owner's log.
    fn sync(&mut self, owner: usize, observer: usize) {
        if owner == observer {
            return;
        }
        let id = self.nodes[owner].id;
        let known = self.nodes[observer].view.owners().iter().find(|known| known.node == id).map_or(0, |known| known.seq);
        let batch = self.nodes[owner].log.ops_from(known + 1, 41 * self.rng.random_range(1..5)).unwrap();
        if !batch.ops.is_empty() {
            let input = WatchInput::Delta { first_seq: batch.first_seq, ops: batch.ops };
            // While the stream is down nothing arrives.
            let _refused = self.nodes[observer].view.ingest_watch(id, EPOCH, input, Instant::now());
        }
    }

    fn watch_down_or_up(&mut self) {
        let (owner, observer, down) = (self.pick_node(), self.pick_node(), self.rng.random::<bool>());
        if owner == observer {
            return;
        }
        if down {
            let _refused = self.nodes[observer].view.ingest_watch(self.nodes[owner].id, EPOCH, WatchInput::Down, Instant::now());
        } else {
            self.hear(owner, observer);
        }
    }

    fn hear(&self, owner: usize, observer: usize) {
        let owner = &self.nodes[owner];
        let view = &self.nodes[observer].view;
        let hears = self.nodes.iter().map(|node| node.id).filter(|node| *node != owner.id).collect();
        view.ingest_watch(owner.id, EPOCH, WatchInput::Hello { boot_id: boot_id(owner.id) }, Instant::now()).unwrap();
        view.ingest_watch(owner.id, EPOCH, WatchInput::Heartbeat { hears }, Instant::now()).unwrap();
    }

    fn hear_everybody(&self) {
        for owner in 0..self.nodes.len() {
            for observer in (0..self.nodes.len()).filter(|observer| *observer != owner) {
                self.hear(owner, observer);
            }
        }
    }

    fn send(&mut self) {
        let (node, dst) = (self.pick_node(), self.rng.random_range(0..KEYS));
        let node = &self.nodes[node];
        if node.clients.is_empty() {
            return;
        }
        let src = key(node.clients[self.rng.random_range(0..node.clients.len())].0);
        self.send_from(node.id, src, key(dst));
    }

    fn send_from(&mut self, node: NodeId, src: NodePublic, dst: NodePublic) {
        let node = self.nodes.iter().position(|candidate| candidate.id == node).unwrap();
        self.next_packet += 1;
        self.offer(node, Ingress::Client, src, dst);
    }

    fn offer(&mut self, node: usize, ingress: Ingress, src: NodePublic, dst: NodePublic) {
        let node = &self.nodes[node];
        self.sent.insert(self.next_packet, dst);
        let payload = Bytes::copy_from_slice(&self.next_packet.to_be_bytes());
        let from = if ingress == Ingress::StockMesh { AcceptedFrom::StockMesh } else { AcceptedFrom::Client };
        node.pump.accounting.accepted(from, &payload);
        let verdict = node.router.route(ingress, Packet { src, dst, class: Class::Data, payload, route: None });
        assert!(matches!(verdict, Verdict::Queued | Verdict::Dropped(_)));
    }

    /// Moves what waits on a link to the other node, as writer and reader do.
    fn pump_link(&mut self, from: usize, to: usize) {
        if from == to {
            return;
        }
        let (sender, receiver) = (&self.nodes[from], &self.nodes[to]);
        let mut batch = Batch::default();
        assert!(sender.wires.lanes[&receiver.id].pop(&mut batch, 2_000));
        sender.pump.accounting.delivered(DeliveredTo::Link, batch.packets.len() as u64, batch.payload_bytes as u64);
        for frame in batch.control {
            let LinkFrame::Stale(stale) = frame else { panic!("{frame:?}") };
            receiver.view.hide(stale.key, stale.rank_used);
            self.seen.stale += 1;
        }
        for packet in batch.packets {
            let route = packet.route.unwrap();
            let path = route.path.as_slice();
            assert!(path.len() <= PATH_LEN_MAX && route.redirects <= REDIRECTS_MAX);
            assert_eq!(path.iter().collect::<BTreeSet<_>>().len(), path.len(), "no node twice: {path:?}");
            assert_eq!((path.first(), path.last()), (Some(&route.origin), Some(&sender.id)));
            assert!(!path.contains(&receiver.id), "a loop: {path:?} to {}", receiver.id);
            assert_eq!(route.rank_used.node, route.target);
            self.seen.transits += u64::from(route.target != receiver.id);
            self.seen.redirects += u64::from(route.redirects);
            receiver.pump.accounting.accepted(AcceptedFrom::Link, &packet.payload);
            let verdict = receiver.router.forward(packet);
            assert!(matches!(verdict, Verdict::Queued | Verdict::Dropped(_)));
        }
    }

    /// Reads everything that stock derpers were sent: they deliver it to a client of their own, or drop it.
    fn drain_stocks(&mut self) {
        for stock in &self.stocks {
            for (at, link) in &stock.links {
                let accounting = &self.nodes[*at].pump.accounting;
                let mut batch = Batch::default();
                while link.outbox().pop(&mut batch, 1_000_000) && !batch.is_empty() {
                    accounting.delivered(DeliveredTo::StockMesh, batch.packets.len() as u64, batch.payload_bytes as u64);
                    for packet in &batch.packets {
                        let id = u64::from_be_bytes(packet.payload[..].try_into().unwrap());
                        assert!(!self.from_stock.contains(&id), "packet {id} was forwarded by two stock derpers");
                        assert_eq!(self.sent[&id], packet.dst);
                        if stock.keys.iter().any(|client| key(*client) == packet.dst) {
                            assert!(self.delivered.insert(id), "packet {id} was doubled");
                            let last = self.last_delivered.insert((packet.src, packet.dst), id);
                            assert!(!self.check_order || last.is_none_or(|last| last < id), "order on a stable path");
                            self.seen.to_stock += 1;
                        }
                    }
                    batch = Batch::default();
                }
            }
        }
    }

    /// Reads everything that clients were sent, as their writers do.
    fn drain_clients(&mut self) {
        self.drain_stocks();
        for node in &self.nodes {
            for (client, registration) in &node.clients {
                let mut batch = Batch::default();
                while registration.connection().outbox().pop(&mut batch, 1_000_000) && !batch.is_empty() {
                    node.pump.accounting.delivered(DeliveredTo::Client, batch.packets.len() as u64, batch.payload_bytes as u64);
                    for packet in &batch.packets {
                        let id = u64::from_be_bytes(packet.payload[..].try_into().unwrap());
                        assert_eq!((self.sent[&id], packet.dst), (key(*client), key(*client)), "the right key only");
                        assert!(self.delivered.insert(id), "packet {id} was doubled");
                        self.seen.from_stock += usize::from(self.from_stock.contains(&id));
                        let last = self.last_delivered.insert((packet.src, packet.dst), id);
                        assert!(!self.check_order || last.is_none_or(|last| last < id), "order on a stable path");
                    }
                    batch = Batch::default();
                }
            }
        }
    }

    /// Lets everything in flight arrive. A packet takes at most five hops, so a few rounds suffice unless something loops.
    fn settle(&mut self) {
        for _ in 0..1_000 {
            for from in 0..self.nodes.len() {
                for to in 0..self.nodes.len() {
                    self.pump_link(from, to);
                }
            }
            self.drain_clients();
            if self.nodes.iter().all(|node| node.pump.accounting.books().queued == 0) {
                break;
            }
        }
        for node in &self.nodes {
            let books = node.pump.accounting.books();
            assert_eq!((books.queued, books.imbalance()), (0, 0), "books of {}: {books:?}", node.id);
        }
    }

    /// Every link up, every stream live, every log known, every connection proven.
    fn heal(&mut self) {
        self.hear_everybody();
        for node in &self.nodes {
            node.wires.cut.lock().clear();
            for (_, registration) in &node.clients {
                registration.connection().proof().heard(Instant::now() + Duration::from_secs(20));
            }
        }
        for owner in 0..self.nodes.len() {
            for observer in (0..self.nodes.len()).filter(|observer| *observer != owner) {
                let (id, last) = (self.nodes[owner].id, self.nodes[owner].log.last_seq());
                let view = Arc::clone(&self.nodes[observer].view);
                while view.owners().iter().find(|known| known.node == id).is_none_or(|known| known.seq < last) {
                    self.sync(owner, observer);
                }
            }
        }
    }

    /// After healing whoever is connected can be reached from everywhere, in order, once.
    fn everybody_is_reached(&mut self) {
        self.last_delivered.clear();
        self.check_order = true;
        let connected: BTreeSet<u64> =
            self.nodes.iter().flat_map(|node| node.clients.iter().map(|(client, _)| *client)).collect();
        // Whom stock derpers hold, too, if a node watches them.
        let watched = self.stocks.iter().filter(|stock| !stock.links.is_empty());
        let connected: BTreeSet<u64> = watched.flat_map(|stock| stock.keys.iter().copied()).chain(connected).collect();
        let ids: Vec<NodeId> = self.nodes.iter().map(|node| node.id).collect();
        for _ in 0..3 {
            let first = self.next_packet + 1;
            for node in &ids {
                for dst in &connected {
                    self.send_from(*node, key(1_000 + node.0), key(*dst));
                }
            }
            self.settle();
            let lost: Vec<u64> = (first..=self.next_packet).filter(|id| !self.delivered.contains(id)).collect();
            assert!(lost.is_empty(), "lost after healing: {lost:?}");
        }
    }
}

fn run(seed: u64) -> Seen {
    let mut world = World::new(seed);
    for _ in 0..STEPS {
        world.step();
    }
    world.settle();
    world.seen.delivered = world.delivered.len();
    world.heal();
    world.everybody_is_reached();
    world.seen
}

#[test]
fn packets_reach_the_right_key_at_most_once_without_loops_and_every_one_is_accounted_for() {
    if let Ok(seed) = std::env::var("SEED") {
        run(seed.parse().unwrap());
        return;
    }
    let mut total = Seen::default();
    for seed in 0..50 {
        let seen = std::panic::catch_unwind(|| run(seed)).unwrap_or_else(|panic| {
            eprintln!("failed with SEED={seed}");
            std::panic::resume_unwind(panic)
        });
        total.delivered += seen.delivered;
        total.redirects += seen.redirects;
        total.transits += seen.transits;
        total.stale += seen.stale;
        total.to_stock += seen.to_stock;
        total.from_stock += seen.from_stock;
    }
    assert!(total.delivered > 1_000 && total.redirects > 50 && total.transits > 50 && total.stale > 20, "{total:?}");
    assert!(total.to_stock > 100 && total.from_stock > 100, "{total:?}");
}
