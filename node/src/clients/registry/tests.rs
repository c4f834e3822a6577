#![allow(clippy::unwrap_used, reason = "tests")]

use std::net::SocketAddr;
use std::time::SystemTime;

use causeway_control::presence::PresenceView;
use causeway_proto::derp::frame::PeerGoneReason;
use causeway_proto::id::{BootId, Epoch, NodeId, RegionId};
use causeway_proto::presence::PresenceKey;

use super::super::connection::CloseReason;
use super::super::limits::CONNECTIONS_PER_KEY;
use super::super::pace::Rates;
use super::super::peer_gone::{TRACKED_PEERS_MAX, TrackedPeers};
use super::*;
use crate::limits::bucket::Rate;
use crate::pump::lanes::Batch;

const OWN: NodeId = NodeId(1);

fn key(n: u16) -> NodePublic {
    let mut bytes = [7; 32];
    bytes[..2].copy_from_slice(&n.to_be_bytes());
    NodePublic::from_bytes(bytes)
}

fn facts(n: u16) -> ClientFacts {
    ClientFacts::ordinary(key(n), SocketAddr::from(([192, 0, 2, 1], n)))
}

fn registry() -> (Arc<Registry>, Arc<PresenceView>) {
    let view = Arc::new(PresenceView::new(OWN, RegionId(1)));
    let owner_log = OwnerLog::new(OWN, Epoch(1), BootId([1; 16]), Arc::clone(&view));
    let parts = RegistryParts {
        owner_log,
        clock: Arc::new(SystemTime::now),
        pump: PumpShared::new(),
        limits: ClientLimits::default(),
        announce: Announce::Region,
    };
    (Registry::new(parts), view)
}

fn register(registry: &Arc<Registry>, facts: ClientFacts) -> Registration {
    registry.register(facts, CancellationToken::new(), Instant::now()).unwrap()
}

fn active(registry: &Registry, n: u16) -> Option<u64> {
    registry.with_active(&key(n), |connection| connection.id)
}

fn control(connection: &ClientConnection) -> Vec<Frame> {
    let mut batch = Batch::default();
    let mut frames = Vec::new();
    while connection.outbox().pop(&mut batch, 1) && !batch.is_empty() {
        frames.append(&mut batch.control);
        batch.clear();
    }
    frames
}

fn claims(view: &PresenceView, n: u16) -> Vec<(Rank, bool)> {
    view.claims(&PresenceKey::from(key(n))).iter().map(|claim| (claim.rank, claim.home)).collect()
}

#[test]
fn one_claim_per_key_however_many_connections_and_the_guard_ends_it() {
    let (registry, view) = registry();
    let first = register(&registry, facts(1));
    let claimed = claims(&view, 1);
    assert_eq!(claimed.len(), 1);
    let second = register(&registry, facts(1));
    assert_eq!(claims(&view, 1), claimed, "the same claim, the same rank");
    assert_eq!(active(&registry, 1), Some(second.connection().id));
    drop(second);
    assert_eq!(active(&registry, 1), Some(first.connection().id));
    assert_eq!(claims(&view, 1), claimed);
    drop(first);
    assert_eq!((active(&registry, 1), claims(&view, 1).len(), registry.len()), (None, 0, 0));
    assert_eq!(registry.metrics.connections.get(), 0);
}

#[test]
fn home_follows_note_preferred_and_is_idempotent() {
    let (registry, view) = registry();
    let now = Instant::now();
    let (one, other) = (register(&registry, facts(1)), register(&registry, facts(1)));
    registry.note_preferred(one.connection(), true, now);
    let home = claims(&view, 1);
    assert!(home[0].1);
    registry.note_preferred(one.connection(), true, now);
    registry.note_preferred(other.connection(), true, now);
    assert_eq!(claims(&view, 1), home, "no churn");
    assert_eq!(registry.home_connections(), 2);
    drop(one);
    assert_eq!(claims(&view, 1), home, "still the home of the other");
    registry.note_preferred(other.connection(), false, now + Duration::from_secs(6));
    let away = claims(&view, 1);
    assert!(!away[0].1 && away[0].0 > home[0].0, "a new rank");
    assert_eq!((registry.home_connections(), registry.metrics.home_moves_out.get()), (0, 1));
}

#[test]
fn the_last_writer_is_active_and_one_connection_too_many_ends_the_oldest() {
    let (registry, _) = registry();
    registry.set_limits(ClientLimits { connections_per_key: 4, ..ClientLimits::default() });
    let connections: Vec<Registration> = (0..4).map(|_| register(&registry, facts(1))).collect();
    registry.note_frame(connections[0].connection());
    assert_eq!(active(&registry, 1), Some(connections[0].connection().id));
    let fifth = register(&registry, facts(1));
    assert!(connections[1].connection().cancel.is_cancelled());
    assert!(!connections[0].connection().cancel.is_cancelled());
    drop(connections);
    assert_eq!(active(&registry, 1), Some(fifth.connection().id));
    assert_eq!(registry.metrics.connections.get(), 1);
}

#[test]
fn a_challenge_probes_a_silent_connection_by_what_its_client_understands() {
    let (registry, _) = registry();
    let acks = register(&registry, facts(1));
    let mute = register(&registry, ClientFacts { can_ack_pings: false, ..facts(2) });
    let later = Instant::now() + Duration::from_secs(10);
    registry.challenge(&key(1), Instant::now());
    assert!(acks.connection().proof.is_proven() && control(acks.connection()).is_empty());
    registry.challenge(&key(1), later);
    registry.challenge(&key(2), later);
    registry.challenge(&key(3), later);
    assert!(matches!(control(acks.connection())[..], [Frame::Ping { .. }]));
    assert!(matches!(control(mute.connection())[..], [Frame::KeepAlive]));
    assert!(!acks.connection().proof.is_proven());
    acks.connection().proof.heard(later);
    assert!(acks.connection().proof.is_proven());
}

#[test]
fn a_watcher_sees_everybody_itself_included_and_every_change() {
    let (registry, view) = registry();
    let present = register(&registry, facts(1));
    let watcher = register(&registry, ClientFacts { is_mesh_peer: true, ..facts(9) });
    assert!(claims(&view, 9).is_empty(), "a stock derper is nobody's client");
    registry.watch(watcher.connection()).unwrap();
    let mut flood: Vec<NodePublic> = control(watcher.connection()).iter().map(peer).collect();
    flood.sort_unstable();
    assert_eq!(flood, [key(1), key(9)]);
    let again = register(&registry, facts(1));
    drop(present);
    drop(again);
    let frames = control(watcher.connection());
    assert!(matches!(frames[..], [Frame::PeerPresent { .. }, Frame::PeerGone { reason: PeerGoneReason::Disconnected, .. }]));
    registry.watch(watcher.connection()).unwrap();
    assert_eq!(control(watcher.connection()).len(), 1, "a second watch floods again");
    drop(watcher);
    assert_eq!(registry.watchers(), 0);
}

fn peer(frame: &Frame) -> NodePublic {
    match frame {
        Frame::PeerPresent { peer, .. } | Frame::PeerGone { peer, .. } => *peer,
        other => panic!("{other:?}"),
    }
}

#[test]
fn close_peer_ends_every_connection_of_the_key() {
    let (registry, _) = registry();
    let connections = [register(&registry, facts(1)), register(&registry, facts(1)), register(&registry, facts(2))];
    assert!(registry.close_peer(&key(1)));
    assert!(!registry.close_peer(&key(3)));
    assert_eq!(connections.map(|registration| registration.connection().cancel.is_cancelled()), [true, true, false]);
}

#[test]
fn who_was_written_a_packet_hears_when_its_source_is_gone_and_again_if_it_returns() {
    let (registry, _) = registry();
    let client = register(&registry, facts(1));
    let index = Arc::clone(registry.peer_gone());
    let mut tracked = TrackedPeers::new(Arc::clone(&index), Arc::clone(client.connection()));
    for _ in 0..2 {
        tracked.written(key(2));
        tracked.written(key(2));
        index.peer_gone(key(2));
        index.peer_gone(key(2));
        let frames = control(client.connection());
        assert_eq!(frames, [Frame::PeerGone { peer: key(2), reason: PeerGoneReason::Disconnected }]);
        tracked.gone(&key(2));
    }
    for n in 0..10_000 {
        tracked.written(key(n));
        assert!(index.sources().len() <= TRACKED_PEERS_MAX || n % 1_000 != 0);
    }
    assert!(index.sources().len() <= TRACKED_PEERS_MAX);
    drop(tracked);
    assert!(index.sources().is_empty());
}

#[test]
fn a_keys_rate_is_shared_by_its_connections_and_changes_while_they_live() {
    let view = Arc::new(PresenceView::new(OWN, RegionId(1)));
    let owner_log = OwnerLog::new(OWN, Epoch(1), BootId([1; 16]), view);
    let rates = Rates { key: Some(Rate { per_second: 1, burst: 100 }), client: None };
    let limits = ClientLimits { rates, ..ClientLimits::default() };
    let registry = Registry::new(RegistryParts {
        owner_log,
        clock: Arc::new(SystemTime::now),
        pump: PumpShared::new(),
        limits,
        announce: Announce::Region,
    });
    let (mut one, mut other) = (register(&registry, facts(1)), register(&registry, facts(1)));
    let now = Instant::now();
    assert_eq!(one.spend(60, now), None);
    assert_eq!(other.spend(60, now), Some(now + Duration::from_secs(20)));
    assert_eq!(register(&registry, facts(2)).spend(100, now), None, "another key");
    let mut mesh = register(&registry, ClientFacts { is_mesh_peer: true, ..facts(3) });
    assert_eq!(mesh.spend(1 << 20, now), None, "stock mesh peers are exempt");
    assert_eq!(registry.metrics.rate_pauses.get(), 1);
    registry.set_limits(ClientLimits::default());
    assert_eq!(one.spend(1 << 20, now), None, "without a restart");
}

#[test]
fn a_watcher_that_falls_too_far_behind_is_closed_and_others_are_not() {
    let (registry, _) = registry();
    let watcher = |n| register(&registry, ClientFacts { is_mesh_peer: true, ..facts(n) });
    let (slow, reading) = (watcher(1), watcher(2));
    registry.watch(slow.connection()).unwrap();
    registry.watch(reading.connection()).unwrap();
    let mut changes = 0;
    while !slow.connection().cancel.is_cancelled() {
        drop(register(&registry, facts(3)));
        changes += 2;
        control(reading.connection());
        assert!(changes <= 300_000, "bounded");
    }
    assert!(changes > 100_000, "a full node's flood fits");
    assert_eq!(slow.connection().closed_because(), Some(CloseReason::ControlLane));
    assert!(!reading.connection().cancel.is_cancelled());
}

#[test]
fn duplicates_are_counted_and_contradict_nothing_but_faults_are_named() {
    let (registry, _view) = registry();
    let connections: Vec<_> = [1, 1, 1, 2, 2, 3].map(|n| register(&registry, facts(n))).into();
    let watcher = register(&registry, ClientFacts { is_mesh_peer: true, ..facts(9) });
    assert_eq!(registry.duplicates(), (2, 5));
    assert_eq!(registry.contradictions(), [""; 0]);

    // The one that has to make room is no member any more, whenever its tasks end and whatever it says until then.
    let crowd: Vec<_> = (0..CONNECTIONS_PER_KEY + 1).map(|_| register(&registry, facts(4))).collect();
    registry.note_preferred(crowd[0].connection(), true, Instant::now());
    assert_eq!(registry.contradictions(), [""; 0]);
    drop((crowd, connections));
    assert_eq!(registry.contradictions(), [""; 0]);
    // What is only claimed for a stock derper is no client, whether it is connected here as well or not.
    registry.derper_has(key(6)).unwrap();
    registry.derper_has(key(7)).unwrap();
    let both = register(&registry, facts(6));
    assert_eq!(registry.contradictions(), [""; 0]);
    drop(both);
    assert_eq!(registry.contradictions(), [""; 0]);
    assert_eq!((registry.metrics.connections.get(), registry.metrics.home_connections.get()), (1, 0));

    let lonely = register(&registry, facts(5));
    let rank = registry.shard(&key(5)).lock().get(&key(5)).and_then(|state| state.rank).unwrap();
    registry.parts.owner_log.release(key(5).into(), rank, true);
    registry.metrics.connections.inc();
    let found = registry.contradictions().join(", ");
    for fault in ["not what the owner log claims", "claims 0 keys, but 1 are connected", "2 connections, but the gauge says 3"] {
        assert!(found.contains(fault), "{found}");
    }
    drop((lonely, watcher));
}
