//! Watch over real sockets, TLS and gRPC on loopback; each link runs through a gate that can be cut or frozen.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime};

use causeway_proto::id::{BootId, Epoch, NodeId, RegionId};
use causeway_proto::key::MeshKey;
use causeway_proto::presence::{ClaimKind, Op, PresenceKey, unpack_ops};
use causeway_rpc::v1;
use causeway_rpc::v1::watch_client::WatchClient;
use causeway_rpc::v1::watch_message::Message;
use std::sync::Arc;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, broadcast, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tonic::Code;

use super::*;
use crate::config::WallClock;
use crate::discovery::{NodeEntry, NodeSet};
use crate::identity::{FleetTrust, MeshTls, NodeKey};
use crate::peers::{ChannelUse, PeerChannels};
use crate::presence::clock::AHEAD_MAX_US;
use crate::presence::owner_log::RING_OPS_MAX;
use crate::presence::view::Cursor;
use crate::presence::{OwnerLog, PresenceEvent, PresenceView, Validity};

const PATIENCE: Duration = Duration::from_secs(20);

fn key(n: u64) -> PresenceKey {
    let mut key = [0x11; 32];
    key[..8].copy_from_slice(&n.to_be_bytes());
    PresenceKey(key)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Open,
    /// New and old connections are closed.
    Cut,
    /// Bytes stop, nothing closes.
    Frozen,
}

async fn pipe(mut near: TcpStream, addr: String, mut mode: watch::Receiver<Mode>) {
    if *mode.borrow_and_update() == Mode::Cut {
        return;
    }
    let Ok(mut far) = TcpStream::connect(addr).await else { return };
    tokio::select! {
        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => return,
        _ = mode.wait_for(|mode| *mode != Mode::Open) => {}
    }
    let _closed = mode.wait_for(|mode| *mode == Mode::Cut).await;
}

/// A listener that passes connections on, to be put in front of a node.
async fn gate(addr: String, tracker: &TaskTracker, cancel: &CancellationToken) -> (String, watch::Sender<Mode>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gate_addr = listener.local_addr().unwrap().to_string();
    let (sender, mode) = watch::channel(Mode::Open);
    let (pipes, cancel) = (tracker.clone(), cancel.clone());
    tracker.spawn(cancel.clone().run_until_cancelled_owned(async move {
        loop {
            let (near, _) = listener.accept().await.unwrap();
            pipes.spawn(cancel.clone().run_until_cancelled_owned(pipe(near, addr.clone(), mode.clone())));
        }
    }));
    (gate_addr, sender)
}

/// A node with everything but Raft.
struct Node {
    id: NodeId,
    view: Arc<PresenceView>,
    log: OwnerLog,
    metrics: WatchMetrics,
    nodes: watch::Sender<Arc<NodeSet>>,
    peers: PeerChannels,
    clock: WallClock,
    /// Added to the wall clock, microseconds.
    clock_skew_us: Arc<AtomicI64>,
    addr: String,
    tracker: TaskTracker,
    cancel: CancellationToken,
    _stop: DropGuard,
}

fn skewed_clock(skew_us: Arc<AtomicI64>) -> WallClock {
    Arc::new(move || {
        let skew_us = skew_us.load(Ordering::Relaxed);
        let skew = Duration::from_micros(skew_us.unsigned_abs());
        if skew_us < 0 { SystemTime::now() - skew } else { SystemTime::now() + skew }
    })
}

impl Node {
    async fn start(mesh_key: &MeshKey, node_key: &tempfile::TempDir, epoch: u64) -> Self {
        let tls = Arc::new(MeshTls::new(
            FleetTrust::new(mesh_key, None),
            NodeKey::load_or_create(&node_key.path().join("node.key")).unwrap(),
        ));
        let id = tls.identity().node_id;
        let clock_skew_us = Arc::new(AtomicI64::new(0));
        let clock = skewed_clock(Arc::clone(&clock_skew_us));
        let view = Arc::new(PresenceView::new(id, RegionId(1)));
        let log = OwnerLog::new(id, Epoch(epoch), BootId(rand::random()), Arc::clone(&view));
        let metrics = WatchMetrics::default();
        let (tracker, cancel) = (TaskTracker::new(), CancellationToken::new());
        let service =
            WatchService::new(log.clone(), Arc::clone(&view), Arc::clone(&clock), metrics.clone(), cancel.clone()).into_server();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let (accepted, incoming) = mpsc::channel(4);
        let accept_tls = Arc::clone(&tls);
        tracker.spawn(cancel.clone().run_until_cancelled_owned(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                if let Ok((stream, peer, _)) = accept_tls.accept(socket).await {
                    accepted.send((stream, peer)).await.unwrap();
                }
            }
        }));
        let routes = tonic::service::Routes::new(service);
        tracker.spawn(crate::mesh_server::serve(ReceiverStream::new(incoming), routes, Arc::clone(&tls), cancel.clone()));
        let (nodes, nodes_receiver) = watch::channel(Arc::new(NodeSet::new(id, [])));
        let peers = PeerChannels::new(tls, nodes_receiver, crate::Tracing::OFF);
        let stop = cancel.clone().drop_guard();
        Self { id, view, log, metrics, nodes, peers, clock, clock_skew_us, addr, tracker, cancel, _stop: stop }
    }

    fn now_us(&self) -> u64 {
        micros((self.clock)())
    }

    fn claim(&self, n: u64) {
        self.log.claim(key(n), ClaimKind::Derp, true, self.now_us()).unwrap();
    }

    /// Makes this node know where `peer` is, without following it.
    fn introduce(&self, peer: NodeId, addr: &str) {
        let record = v1::NodeRecord { node_id: peer.0, mesh_addr: addr.to_owned(), ..v1::NodeRecord::default() };
        let entry = NodeEntry { record, admitted: true, fenced: false };
        self.nodes.send_modify(|nodes| {
            let others = nodes.iter().filter(|node| node.id() != peer).cloned();
            *nodes = Arc::new(NodeSet::new(self.id, others.chain([entry])));
        });
    }

    /// Follows `owner` through a gate.
    async fn follow(&self, owner: &Self) -> watch::Sender<Mode> {
        let (addr, mode) = gate(owner.addr.clone(), &self.tracker, &self.cancel).await;
        self.introduce(owner.id, &addr);
        let channels = Arc::new(self.peers.clone());
        let follower = Arc::new(Follower::new(Arc::clone(&self.view), channels, Arc::clone(&self.clock), self.metrics.clone()));
        self.tracker.spawn(follower.run(owner.id, Arc::new(Notify::new()), self.cancel.clone()));
        mode
    }

    fn validity(&self, owner: NodeId) -> Option<Validity> {
        self.view.owners().into_iter().find(|status| status.node == owner).map(|status| status.validity)
    }

    /// Waits until the view, which is looked at after every event, is as wanted.
    async fn until(&self, what: &str, wanted: impl Fn(&PresenceView) -> bool) {
        let (mut events, mut live) = (self.view.subscribe(), self.view.live_nodes());
        let waiting = async {
            while !wanted(&self.view) {
                tokio::select! {
                    event = events.recv() => assert!(!matches!(event, Err(broadcast::error::RecvError::Closed))),
                    _ = live.changed() => {}
                }
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("waited in vain until {what}"));
    }

    /// A stream of `owner`'s log, read by hand.
    async fn stream_of(&self, owner: &Self, request: v1::FollowRequest) -> tonic::Streaming<v1::WatchMessage> {
        self.introduce(owner.id, &owner.addr);
        let channel = self.peers.channel(owner.id, ChannelUse::Watch).unwrap();
        let mut client = WatchClient::new(channel).max_decoding_message_size(WATCH_MESSAGE_SIZE_MAX);
        client.follow(request).await.unwrap().into_inner()
    }
}

async fn next(stream: &mut tonic::Streaming<v1::WatchMessage>) -> Message {
    tokio::time::timeout(PATIENCE, stream.message()).await.unwrap().unwrap().unwrap().message.unwrap()
}

async fn pair() -> (Node, Node, [tempfile::TempDir; 2]) {
    let mesh_key = MeshKey::generate();
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    (Node::start(&mesh_key, &dirs[0], 1).await, Node::start(&mesh_key, &dirs[1], 1).await, dirs)
}

#[tokio::test]
async fn claims_and_releases_cross_at_once_and_hearing_is_told() {
    let (a, b, _dirs) = pair().await;
    a.claim(1);
    let _gate = b.follow(&a).await;
    b.until("the snapshot is there", |view| view.has_valid_claim(&key(1))).await;
    assert_eq!(b.validity(a.id), Some(Validity::Live));
    let rank = a.log.claim(key(2), ClaimKind::Derp, false, a.now_us()).unwrap();
    b.until("the claim is there", |view| view.has_valid_claim(&key(2))).await;
    let claim = b.view.prefer(&key(2), &|_| false).unwrap();
    assert_eq!((claim.node, claim.rank, claim.home, claim.own_region), (a.id, rank, false, false));
    assert_eq!(b.view.prefer(&key(2), &|node| node == a.id), None);
    let mut events = b.view.subscribe();
    a.log.release(key(2), rank, true);
    b.until("the claim is gone", |view| !view.has_valid_claim(&key(2))).await;
    let batch = events.recv().await.unwrap();
    let released = PresenceEvent::Released { key: key(2), rank, clean: true };
    assert_eq!(*batch, [released, PresenceEvent::LastClaimGone { key: key(2), clean: true }]);
    // B hears A, and says so in its heartbeats.
    let request = v1::FollowRequest { follower_id: a.id.0, ..v1::FollowRequest::default() };
    let mut stream = a.stream_of(&b, request).await;
    let hears = loop {
        if let Message::Heartbeat(heartbeat) = next(&mut stream).await {
            break heartbeat.hears;
        }
    };
    assert_eq!(hears, [a.id.0]);
}

#[tokio::test]
async fn a_cut_stream_is_not_live_and_resumes_where_it_was() {
    let (a, b, _dirs) = pair().await;
    a.claim(1);
    let gate = b.follow(&a).await;
    b.until("A is followed", |view| view.has_valid_claim(&key(1))).await;
    let mut events = b.view.subscribe();
    gate.send_replace(Mode::Cut);
    b.until("the cut shows", |view| !view.has_valid_claim(&key(1))).await;
    assert_eq!(b.validity(a.id), Some(Validity::Lost));
    assert_eq!(*events.recv().await.unwrap(), [PresenceEvent::OwnerLost { node: a.id }]);
    b.view.tell_changed_owners();
    assert_eq!(*events.recv().await.unwrap(), [PresenceEvent::LastClaimGone { key: key(1), clean: false }]);
    a.claim(2);
    gate.send_replace(Mode::Open);
    b.until("the missed claim is there", |view| view.has_valid_claim(&key(2)) && view.has_valid_claim(&key(1))).await;
    assert_eq!(b.metrics.snapshots_received.get(), 1, "it resumed");
}

#[tokio::test]
async fn a_silent_stream_stops_counting_within_three_seconds() {
    let (a, b, _dirs) = pair().await;
    a.claim(1);
    let gate = b.follow(&a).await;
    b.until("A is followed", |view| view.has_valid_claim(&key(1))).await;
    let frozen = std::time::Instant::now();
    gate.send_replace(Mode::Frozen);
    b.until("the silence shows", |view| !view.has_valid_claim(&key(1))).await;
    assert!(frozen.elapsed() >= WATCH_SILENCE_MAX - 2 * WATCH_HEARTBEAT_INTERVAL, "{:?}", frozen.elapsed());
    assert_eq!(b.metrics.silent.get(), 1);
}

#[tokio::test]
async fn a_follower_that_fell_behind_the_ring_is_sent_a_snapshot() {
    let (a, b, _dirs) = pair().await;
    a.claim(1);
    let gate = b.follow(&a).await;
    b.until("A is followed", |view| view.has_valid_claim(&key(1))).await;
    gate.send_replace(Mode::Cut);
    b.until("the cut shows", |view| !view.has_valid_claim(&key(1))).await;
    for n in 0..RING_OPS_MAX as u64 / 2 {
        let rank = a.log.claim(key(100 + n), ClaimKind::Derp, false, a.now_us()).unwrap();
        if n % 2 == 0 {
            a.log.release(key(100 + n), rank, false);
        }
    }
    let seq = a.log.last_seq();
    for n in 0..RING_OPS_MAX as u64 / 2 {
        a.claim(1_000_000 + n);
    }
    gate.send_replace(Mode::Open);
    let count = a.log.len();
    b.until("the snapshot is there", |view| view.count().claims == count).await;
    assert!(a.log.last_seq() > seq);
    assert_eq!(b.metrics.snapshots_received.get(), 2);
    assert_eq!(b.metrics.refused(RefusedReason::Gap), 0);
}

#[tokio::test]
async fn a_restarted_owner_is_adopted_with_its_higher_epoch_and_its_old_claims_end() {
    let mesh_key = MeshKey::generate();
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let (a, b) = (Node::start(&mesh_key, &dirs[0], 1).await, Node::start(&mesh_key, &dirs[1], 1).await);
    a.claim(1);
    let _gate = b.follow(&a).await;
    b.until("A is followed", |view| view.has_valid_claim(&key(1))).await;
    let id = a.id;
    drop(a);
    let a = Node::start(&mesh_key, &dirs[0], 2).await;
    a.claim(2);
    b.introduce(id, &a.addr);
    b.until("the new process is followed", |view| view.has_valid_claim(&key(2))).await;
    assert!(b.view.claims(&key(1)).is_empty());
    let cursor = b.view.cursor(id);
    assert_eq!((cursor.epoch, cursor.next_seq), (Epoch(2), 2));
}

#[tokio::test]
async fn only_the_node_of_the_certificate_may_follow() {
    let (a, b, _dirs) = pair().await;
    b.introduce(a.id, &a.addr);
    let channel = b.peers.channel(a.id, ChannelUse::Watch).unwrap();
    let request = v1::FollowRequest { follower_id: a.id.0, ..v1::FollowRequest::default() };
    let refusal = WatchClient::new(channel).follow(request).await.unwrap_err();
    assert_eq!(refusal.code(), Code::PermissionDenied);
    assert!(refusal.message().contains(&b.id.to_string()), "{}", refusal.message());
    assert_eq!(a.metrics.refused(RefusedReason::WrongFollower), 1);
    let service =
        WatchService::new(a.log.clone(), Arc::clone(&a.view), Arc::clone(&a.clock), a.metrics.clone(), a.cancel.clone());
    let refusal = v1::watch_server::Watch::follow(&service, tonic::Request::new(request_of(&b))).await.err().unwrap();
    assert_eq!(refusal.code(), Code::Unauthenticated);
}

fn request_of(node: &Node) -> v1::FollowRequest {
    v1::FollowRequest { follower_id: node.id.0, ..v1::FollowRequest::default() }
}

#[tokio::test]
async fn a_log_more_than_an_hour_ahead_is_refused_whole() {
    let (a, b, _dirs) = pair().await;
    a.claim(1);
    let _gate = b.follow(&a).await;
    b.until("A is followed", |view| view.has_valid_claim(&key(1))).await;
    let hour_and_a_minute = AHEAD_MAX_US + 60_000_000;
    let true_now_us = a.now_us();
    a.clock_skew_us.store(i64::try_from(hour_and_a_minute).unwrap(), Ordering::Relaxed);
    a.claim(2);
    b.until("the stream is refused", |view| !view.hears(a.id)).await;
    assert!(b.view.claims(&key(2)).is_empty());
    assert!(b.metrics.refused(RefusedReason::TooFarAhead) >= 1);
    assert!(b.view.clock().highest_us() < true_now_us + AHEAD_MAX_US, "the far rank moved no clock");
}

#[tokio::test]
async fn a_second_stream_of_a_follower_ends_the_first() {
    let (a, b, _dirs) = pair().await;
    let mut first = b.stream_of(&a, request_of(&b)).await;
    assert!(matches!(next(&mut first).await, Message::Hello(_)));
    let mut second = b.stream_of(&a, request_of(&b)).await;
    assert!(matches!(next(&mut second).await, Message::Hello(_)));
    let ended = async { while let Ok(Some(_)) = first.message().await {} };
    tokio::time::timeout(PATIENCE, ended).await.unwrap();
    assert_eq!(a.metrics.streams_served.get(), 1);
    a.claim(1);
    loop {
        if let Message::Delta(delta) = next(&mut second).await {
            assert_eq!((delta.first_seq, unpack_ops(&delta.ops).unwrap().len()), (1, 1));
            return;
        }
    }
}

#[tokio::test]
async fn a_follower_that_reads_slowly_gets_every_operation_once_and_in_few_messages() {
    let (a, b, _dirs) = pair().await;
    let mut stream = b.stream_of(&a, request_of(&b)).await;
    assert!(matches!(next(&mut stream).await, Message::Hello(_)));
    let total = 20_000;
    for n in 0..total {
        a.claim(n);
    }
    let (mut known, mut messages) = (0, 0);
    while known < total {
        match next(&mut stream).await {
            Message::Snapshot(piece) => known = piece.seq,
            Message::Delta(delta) => {
                assert_eq!(delta.first_seq, known + 1);
                known += unpack_ops(&delta.ops).unwrap().len() as u64;
                messages += 1;
            }
            _ => {}
        }
    }
    assert!(messages < total / 10, "operations coalesce while the stream is busy: {messages} messages");
}

/// The publisher alone, under a paused clock.
fn publisher_of(log: &OwnerLog, view: &PresenceView, cursor: Cursor) -> publisher::Publisher {
    let clock = skewed_clock(Arc::default());
    publisher::Publisher::new(log.clone(), view.live_nodes(), clock, WatchMetrics::default(), CancellationToken::new(), cursor)
}

#[tokio::test(start_paused = true)]
async fn an_idle_stream_says_something_every_second() {
    let view = Arc::new(PresenceView::new(NodeId(1), RegionId(1)));
    let log = OwnerLog::new(NodeId(1), Epoch(1), BootId([1; 16]), Arc::clone(&view));
    let mut publisher = publisher_of(&log, &view, Cursor::default());
    let hello = publisher.next().await.unwrap().message.unwrap();
    assert!(matches!(hello, Message::Hello(v1::WatchHello { resumed: false, .. })));
    let snapshot = publisher.next().await.unwrap().message.unwrap();
    assert_eq!(snapshot, Message::Snapshot(v1::WatchSnapshot { seq: 0, ops: bytes::Bytes::new(), last: true }));
    for _ in 0..3 {
        let before = tokio::time::Instant::now();
        let heartbeat = publisher.next().await.unwrap().message.unwrap();
        assert!(matches!(heartbeat, Message::Heartbeat(v1::WatchHeartbeat { seq: 0, .. })));
        assert_eq!(before.elapsed(), WATCH_HEARTBEAT_INTERVAL);
    }
}

#[tokio::test(start_paused = true)]
async fn a_publisher_resumes_by_sequence_and_falls_back_to_a_snapshot() {
    let view = Arc::new(PresenceView::new(NodeId(1), RegionId(1)));
    let log = OwnerLog::new(NodeId(1), Epoch(1), BootId([1; 16]), Arc::clone(&view));
    for n in 0..5 {
        log.claim(key(n), ClaimKind::Derp, false, n).unwrap();
    }
    let cursor = |boot, next_seq| Cursor { epoch: Epoch(1), boot_id: BootId([boot; 16]), next_seq };
    let mut resumed = publisher_of(&log, &view, cursor(1, 4));
    assert!(matches!(resumed.next().await.unwrap().message, Some(Message::Hello(v1::WatchHello { resumed: true, .. }))));
    let Some(Message::Delta(delta)) = resumed.next().await.unwrap().message else { panic!("a delta follows") };
    assert_eq!((delta.first_seq, unpack_ops(&delta.ops).unwrap().len()), (4, 2));
    for cursor in [cursor(2, 4), cursor(1, 7), cursor(1, 0)] {
        let mut fresh = publisher_of(&log, &view, cursor);
        assert!(matches!(fresh.next().await.unwrap().message, Some(Message::Hello(v1::WatchHello { resumed: false, .. }))));
        let Some(Message::Snapshot(snapshot)) = fresh.next().await.unwrap().message else { panic!("a snapshot follows") };
        let claims = unpack_ops(&snapshot.ops).unwrap();
        assert_eq!((snapshot.seq, claims.len(), snapshot.last), (5, 5, true));
        assert!(claims.iter().all(|op| matches!(op, Op::Claim { .. })));
    }
}
