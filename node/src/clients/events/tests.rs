#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests")]

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use causeway_control::presence::{OwnerLog, WatchInput};
use causeway_proto::derp::frame::{Frame, PeerGoneReason, PresentFlags};
use causeway_proto::id::{BootId, Epoch, RegionId};
use causeway_proto::presence::{ClaimKind, Op};

use super::super::peer_gone::TrackedPeers;
use super::super::{ClientFacts, ClientLimits, Registration, RegistryParts};
use super::*;
use crate::config::Announce;
use crate::pump::lanes::{Batch, PumpShared};

const OWN: NodeId = NodeId(1);
const OTHER: NodeId = NodeId(2);
const KEY: NodePublic = NodePublic::from_bytes([8; 32]);
const PEER: NodePublic = NodePublic::from_bytes([9; 32]);
const WATCHER: NodePublic = NodePublic::from_bytes([10; 32]);

struct World {
    registry: Arc<Registry>,
    view: Arc<PresenceView>,
    other_seq: u64,
}

impl World {
    fn new() -> Self {
        let view = Arc::new(PresenceView::new(OWN, RegionId(1)));
        let owner_log = OwnerLog::new(OWN, Epoch(1), BootId([1; 16]), Arc::clone(&view));
        let parts = RegistryParts {
            owner_log,
            clock: Arc::new(SystemTime::now),
            pump: PumpShared::new(),
            limits: ClientLimits::default(),
            announce: Announce::Region,
        };
        let registry = Registry::new(parts);
        tokio::spawn(follow(Arc::clone(&registry), Arc::clone(&view), OWN, CancellationToken::new()));
        view.ingest_watch(OTHER, Epoch(1), WatchInput::Hello { boot_id: BootId([2; 16]) }, now()).unwrap();
        Self { registry, view, other_seq: 0 }
    }

    fn client(&self) -> Registration {
        let remote = SocketAddr::from(([127, 0, 0, 1], 1));
        let facts = ClientFacts::ordinary(KEY, remote);
        self.registry.register(facts, CancellationToken::new(), now()).unwrap()
    }

    fn other_says(&mut self, op: Op) {
        self.other_seq += 1;
        let delta = WatchInput::Delta { first_seq: self.other_seq, ops: vec![op] };
        self.view.ingest_watch(OTHER, Epoch(1), delta, now()).unwrap();
    }
}

fn claim(key: NodePublic, clock_us: u64, home: bool) -> Op {
    Op::Claim { key: key.into(), clock_us, home, kind: ClaimKind::Derp }
}

fn release(key: NodePublic, clock_us: u64, clean: bool) -> Op {
    Op::Release { key: key.into(), clock_us, clean }
}

fn frames(client: &Registration) -> Vec<Frame> {
    let mut batch = Batch::default();
    client.connection().outbox().pop(&mut batch, 1);
    batch.control
}

async fn pass(duration: Duration) {
    tokio::time::sleep(duration).await;
}

#[tokio::test(start_paused = true)]
async fn a_claim_elsewhere_challenges_a_silent_connection() {
    let mut world = World::new();
    let client = world.client();
    pass(Duration::from_secs(5)).await;
    world.other_says(claim(KEY, 1, false));
    pass(Duration::from_millis(1)).await;
    assert!(matches!(frames(&client)[..], [Frame::Ping { .. }]));
    assert!(!client.connection().proof().is_proven());
}

#[tokio::test(start_paused = true)]
async fn departures_linger_unless_clean_and_a_return_cancels_them() {
    let mut world = World::new();
    let client = world.client();
    let mut tracked = TrackedPeers::new(Arc::clone(world.registry.peer_gone()), Arc::clone(client.connection()));
    let gone = [Frame::PeerGone { peer: PEER, reason: PeerGoneReason::Disconnected }];
    tracked.written(PEER);
    world.other_says(claim(PEER, 1, true));
    world.other_says(release(PEER, 1, false));
    pass(Duration::from_millis(1_400)).await;
    assert!(frames(&client).is_empty(), "2 s, less a quarter");
    world.other_says(claim(PEER, 2, true));
    pass(Duration::from_secs(5)).await;
    assert!(frames(&client).is_empty(), "it came back in time");
    world.other_says(release(PEER, 2, false));
    pass(Duration::from_secs(3)).await;
    assert_eq!(frames(&client), gone);
    tracked.gone(&PEER);
    tracked.written(PEER);
    world.other_says(claim(PEER, 3, true));
    world.other_says(release(PEER, 3, true));
    pass(Duration::from_millis(1)).await;
    assert_eq!(frames(&client), gone, "a clean goodbye is told at once");
}

/// Lets time pass; a client that `lives` is silent but for its answers to what it is asked. Returns what it is told of its health.
async fn health(client: &Registration, seconds: u64, lives: bool) -> Vec<String> {
    let mut health = Vec::new();
    for _ in 0..seconds {
        for frame in frames(client) {
            match frame {
                Frame::Ping { .. } if lives => client.connection().proof().heard(now()),
                Frame::Health { problem } => health.push(problem),
                _ => {}
            }
        }
        pass(Duration::from_secs(1)).await;
    }
    health
}

fn alarms(world: &World) -> (i64, u64) {
    (world.registry.metrics().clone_alarms.get(), world.registry.metrics().clone_alarms_raised.get())
}

#[tokio::test(start_paused = true)]
async fn two_proven_homes_for_thirty_seconds_raise_the_clone_alarm_and_a_side_connection_does_not() {
    let mut world = World::new();
    let client = world.client();
    world.registry.note_preferred(client.connection(), true, now());
    // Silent for longer than proof lasts.
    assert!(health(&client, 10, true).await.is_empty());
    world.other_says(claim(KEY, 1, false));
    assert!(health(&client, 120, true).await.is_empty(), "home here, side there: as stock clients do");
    world.other_says(claim(KEY, 2, true));
    assert!(health(&client, 29, true).await.is_empty());
    let raised = health(&client, 10, true).await;
    assert!(matches!(&raised[..], [problem] if !problem.is_empty()));
    assert_eq!(alarms(&world), (1, 1));
    assert!(health(&client, 120, true).await.is_empty(), "told once");
    world.other_says(release(KEY, 2, true));
    assert_eq!(health(&client, 10, true).await, [""]);
    assert_eq!(alarms(&world), (0, 1), "healthy again");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_moved_away_from_a_half_open_connection_is_no_clone() {
    let mut world = World::new();
    let client = world.client();
    world.registry.note_preferred(client.connection(), true, now());
    world.other_says(claim(KEY, 1, true));
    assert!(health(&client, 120, false).await.is_empty());
    assert_eq!(alarms(&world), (0, 0), "the connection here proves nothing");
    // It was the network that was away: now there are two.
    assert!(matches!(&health(&client, 45, true).await[..], [problem] if !problem.is_empty()));
    assert_eq!(health(&client, 15, false).await, [""], "and now the copy is gone");
    assert_eq!(alarms(&world), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_watcher_is_told_of_clients_at_sibling_nodes_and_of_no_others() {
    let mut world = World::new();
    world.view.set_region(OTHER, RegionId(1));
    world.other_says(claim(PEER, 1, false));
    let (here, elsewhere) = (Some(SocketAddr::from(([127, 0, 0, 1], 1))), None);
    let facts = ClientFacts { key: WATCHER, is_mesh_peer: true, ..*world.client().connection().facts() };
    let watcher = world.registry.register(facts, CancellationToken::new(), now()).unwrap();
    world.registry.watch(watcher.connection()).unwrap();
    let expect = async |wanted: &[Frame], why: &str| {
        pass(Duration::from_millis(1)).await;
        assert_eq!(frames(&watcher), wanted, "{why}");
    };
    let present = |peer, addr| Frame::PeerPresent { peer, addr, flags: PresentFlags::REGULAR };
    let gone = |peer| Frame::PeerGone { peer, reason: PeerGoneReason::Disconnected };
    let itself = Frame::PeerPresent { peer: WATCHER, addr: here, flags: PresentFlags::MESH_PEER };
    expect(&[itself, present(PEER, elsewhere)], "the flood").await;

    world.other_says(claim(KEY, 2, false));
    expect(&[present(KEY, elsewhere)], "a client of the sibling").await;
    world.other_says(claim(KEY, 3, true));
    world.other_says(release(KEY, 2, true));
    expect(&[], "a change of home is none of a watcher's business").await;
    let client = world.client();
    expect(&[present(KEY, here)], "here as well").await;
    world.other_says(release(KEY, 3, true));
    expect(&[], "still here").await;
    drop(client);
    expect(&[gone(KEY)], "the last connection").await;
    let behind_derper = Op::Claim { key: KEY.into(), clock_us: 4, home: false, kind: ClaimKind::Derper };
    world.other_says(behind_derper);
    expect(&[], "derpers announce their clients themselves").await;

    world.view.set_region(OTHER, RegionId(2));
    expect(&[gone(PEER)], "not of this region").await;
    world.view.set_region(OTHER, RegionId(1));
    expect(&[present(PEER, elsewhere)], "of this region").await;
    world.view.ingest_watch(OTHER, Epoch(1), WatchInput::Down, now()).unwrap();
    expect(&[gone(PEER)], "the sibling is lost").await;
    world.view.ingest_watch(OTHER, Epoch(1), WatchInput::Hello { boot_id: BootId([2; 16]) }, now()).unwrap();
    expect(&[present(PEER, elsewhere)], "the sibling is back").await;
}
