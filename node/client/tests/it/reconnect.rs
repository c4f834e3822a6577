//! A client that stays connected: cuts, restarts, the nearest region.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use causeway_client::{Client, ClientBuilder, ClientEvent, ConfigError, ConnectionError, Event, SendError};
use causeway_proto::derp::frame::Frame;
use causeway_proto::derpmap::DerpMap;
use causeway_proto::id::RegionId;
use causeway_proto::key::{MeshKey, NodePrivate};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::server::{Ca, Options, Server, map_of};

struct Fixture {
    ca: Ca,
    tasks: TaskTracker,
    cancel: CancellationToken,
}

impl Fixture {
    fn new() -> Self {
        Self { ca: Ca::new(), tasks: TaskTracker::new(), cancel: CancellationToken::new() }
    }

    async fn server(&self) -> Server {
        Server::start(&self.ca, Options::default()).await
    }

    fn builder(&self) -> ClientBuilder {
        ClientBuilder::new(NodePrivate::generate()).trust(self.ca.trust())
    }

    fn start(&self, builder: ClientBuilder) -> Client {
        builder.start(&self.tasks, &self.cancel).expect("starts")
    }
}

/// Waits for the next connection; returns its generation and region.
async fn connected(client: &mut Client) -> (u64, Option<RegionId>) {
    loop {
        if let ClientEvent::Connected { generation, region, .. } = client.recv().await.expect("runs") {
            return (generation, region);
        }
    }
}

#[tokio::test]
async fn a_cut_connection_is_made_anew_with_the_next_generation() {
    let f = Fixture::new();
    let mut server = f.server().await;
    let mut client = f.start(f.builder().endpoint(server.endpoint()));
    let peer = NodePrivate::generate().public();
    for generation in 1..=3 {
        assert_eq!(connected(&mut client).await, (generation, None));
        let mut session = server.accept().await;
        assert_eq!(session.next().await, Some(Frame::NotePreferred { preferred: true }));
        client.handle().send(&peer, b"out").await.expect("connected");
        assert_eq!(session.next().await, Some(Frame::SendPacket { dst: peer, payload: Bytes::from_static(b"out") }));
        session.send(Frame::RecvPacket { src: peer, payload: Bytes::from_static(b"in") }).await;
        let ClientEvent::Received { generation: of, event } = client.recv().await.expect("runs") else { panic!("no packet") };
        assert_eq!((of, event), (generation, Event::Packet { src: peer, payload: Bytes::from_static(b"in") }));
        drop(session);
        let ClientEvent::Disconnected { generation: of, reason, retry_in } = client.recv().await.expect("runs") else {
            panic!("still connected")
        };
        assert_eq!(of, generation);
        assert!(matches!(*reason, ConnectionError::ClosedByServer), "{reason}");
        // Short connections count as failures: 10 ms, 40 ms, 90 ms, each times at most 1.5.
        assert!(retry_in <= Duration::from_millis(15 * generation * generation), "{retry_in:?}");
    }
}

#[tokio::test]
async fn while_a_server_refuses_attempts_go_on_and_nothing_is_sent() {
    let f = Fixture::new();
    let mut server = f.server().await;
    server.refuse(true);
    let mut client = f.start(f.builder().endpoint(server.endpoint()));
    for n in 1..=3 {
        let ClientEvent::ConnectFailed { failures, .. } = client.recv().await.expect("runs") else { panic!("connected") };
        assert_eq!(failures, n);
    }
    let error = client.handle().send(&NodePrivate::generate().public(), b"x").await.expect_err("not connected");
    assert!(matches!(error, SendError::NotConnected), "{error}");
    assert_eq!(client.handle().generation(), None);
    server.refuse(false);
    let handle = client.handle().clone();
    let (sender, (generation, _)) = tokio::join!(handle.connected(), connected(&mut client));
    assert_eq!((generation, handle.generation()), (1, Some(1)));
    assert_eq!(sender.expect("connected").info().server_key, server.key);
    server.accept().await;
}

#[tokio::test]
async fn a_restarting_server_is_given_the_time_it_asks_for() {
    let f = Fixture::new();
    let mut server = f.server().await;
    let mut client = f.start(f.builder().endpoint(server.endpoint()));
    let session = server.accept().await;
    session.send(Frame::Restarting { reconnect_in_ms: 400, try_for_ms: 2000 }).await;
    let told = Instant::now();
    connected(&mut client).await;
    assert!(matches!(client.recv().await, Some(ClientEvent::Received { event: Event::Restarting { .. }, .. })));
    drop(session);
    let Some(ClientEvent::Disconnected { .. }) = client.recv().await else { panic!("still connected") };
    assert_eq!(connected(&mut client).await.0, 2);
    // The server measures from before the client got the frame.
    assert!(told.elapsed() >= Duration::from_millis(390), "{:?}", told.elapsed());
}

#[tokio::test]
async fn nobody_waits_for_a_restarting_server_whose_region_has_another_node() {
    let f = Fixture::new();
    let (mut first, mut second) = (f.server().await, f.server().await);
    let map = map_of(vec![(1, vec![first.node("1a", 1), second.node("1b", 1)])]);
    let mut client = f.start(f.builder().region(map, RegionId(1)));
    assert_eq!(connected(&mut client).await.0, 1);
    let session = first.accept().await;
    session.send(Frame::Restarting { reconnect_in_ms: 20_000, try_for_ms: 20_000 }).await;
    assert!(matches!(client.recv().await, Some(ClientEvent::Received { event: Event::Restarting { .. }, .. })));
    first.refuse(true);
    drop(session);
    let Some(ClientEvent::Disconnected { retry_in, .. }) = client.recv().await else { panic!("still connected") };
    assert!(retry_in <= Duration::from_millis(15), "{retry_in:?}");
    assert_eq!(connected(&mut client).await.0, 2);
    assert_eq!(second.accept().await.head.ideal_node(), Some("1a"));
}

#[tokio::test]
async fn a_watching_client_watches_again_after_every_reconnect() {
    let f = Fixture::new();
    let mesh_key = MeshKey::generate();
    let mut server = Server::start(&f.ca, Options { mesh_key: Some(mesh_key.clone()), ..Options::default() }).await;
    let builder = f.builder().endpoint(server.endpoint()).mesh_key(mesh_key).preferred(false).watch_connections(true);
    let _client = f.start(builder);
    for _ in 0..2 {
        assert_eq!(server.accept().await.next().await, Some(Frame::WatchConns));
    }
}

#[tokio::test]
async fn closing_or_dropping_ends_the_client_its_connection_and_its_tasks() {
    for drop_it in [false, true] {
        let f = Fixture::new();
        let mut server = f.server().await;
        let mut client = f.start(f.builder().endpoint(server.endpoint()).preferred(false));
        connected(&mut client).await;
        let mut session = server.accept().await;
        let handle = client.handle().clone();
        if drop_it {
            drop(client);
        } else {
            handle.close();
            assert!(client.recv().await.is_none());
        }
        assert_eq!(session.next().await, None);
        f.tasks.close();
        f.tasks.wait().await;
        assert!(handle.connected().await.is_none());
    }
}

#[test]
fn settings_that_can_never_work_are_refused_at_start() {
    let (tasks, cancel) = (TaskTracker::new(), CancellationToken::new());
    let builder = || ClientBuilder::new(NodePrivate::generate());
    assert!(matches!(builder().start(&tasks, &cancel), Err(ConfigError::NoServer)));
    let empty = Arc::new(DerpMap::default());
    assert!(matches!(builder().nearest(Arc::clone(&empty)).start(&tasks, &cancel), Err(ConfigError::NoRegions)));
    assert!(matches!(builder().region(empty, RegionId(1)).start(&tasks, &cancel), Err(ConfigError::NoRegion(_))));
}

/// Two regions, of which the first is near.
async fn near_and_far(f: &Fixture) -> (Server, Server, Arc<DerpMap>) {
    let (near, far) = (f.server().await, f.server().await);
    far.delay_stun(Duration::from_millis(100));
    let map = map_of(vec![(1, vec![near.node("1a", 1)]), (2, vec![far.node("2a", 2)])]);
    (near, far, map)
}

#[tokio::test]
async fn the_nearest_region_becomes_the_home() {
    let f = Fixture::new();
    let (mut near, far, map) = near_and_far(&f).await;
    let mut client = f.start(f.builder().nearest(map));
    let Some(ClientEvent::HomeChanged { from: None, to, latency: Some(latency) }) = client.recv().await else {
        panic!("no home")
    };
    assert_eq!(to, RegionId(1));
    assert!(latency < Duration::from_millis(100));
    assert_eq!(connected(&mut client).await, (1, Some(RegionId(1))));
    near.accept().await;
    assert!(!far.has_waiting());
}

#[tokio::test]
async fn a_forced_home_is_taken_although_it_is_far_unless_it_does_not_answer() {
    let f = Fixture::new();
    let (mut near, mut far, map) = near_and_far(&f).await;
    let mut client = f.start(f.builder().nearest(Arc::clone(&map)).forced_home(RegionId(2)));
    assert_eq!(connected(&mut client).await, (1, Some(RegionId(2))));
    far.accept().await;
    let mut client = f.start(f.builder().nearest(map).forced_home(RegionId(7)));
    assert_eq!(connected(&mut client).await, (1, Some(RegionId(1))));
    near.accept().await;
}

#[tokio::test]
async fn a_much_nearer_region_is_connected_to_before_the_old_connection_ends() {
    let f = Fixture::new();
    let (mut first, mut second, map) = near_and_far(&f).await;
    let mut client = f.start(f.builder().nearest(Arc::clone(&map)));
    assert_eq!(connected(&mut client).await, (1, Some(RegionId(1))));
    let mut old = first.accept().await;
    assert_eq!(old.next().await, Some(Frame::NotePreferred { preferred: true }));

    first.delay_stun(Duration::from_millis(100));
    second.delay_stun(Duration::ZERO);
    // A new map, here the same, has everything measured anew.
    client.handle().update_map(map);
    let mut saw_cut = false;
    let generation = loop {
        match client.recv().await.expect("runs") {
            ClientEvent::Connected { generation, region, .. } => {
                assert_eq!(region, Some(RegionId(2)));
                break generation;
            }
            ClientEvent::HomeChanged { from, to, .. } => assert_eq!((from, to), (Some(RegionId(1)), RegionId(2))),
            ClientEvent::Disconnected { .. } => saw_cut = true,
            _ => {}
        }
    };
    assert!(generation == 2 && !saw_cut);
    second.accept().await;
    assert_eq!(old.next().await, None);
}

#[tokio::test]
async fn a_home_that_refuses_connections_is_left_although_it_answers_measurements() {
    let f = Fixture::new();
    let (near, mut far, map) = near_and_far(&f).await;
    near.refuse(true);
    let mut client = f.start(f.builder().nearest(map));
    assert_eq!(connected(&mut client).await, (1, Some(RegionId(2))));
    far.accept().await;
}

#[tokio::test]
async fn a_region_that_leaves_the_map_is_left() {
    let f = Fixture::new();
    let (mut near, mut far, map) = near_and_far(&f).await;
    let mut client = f.start(f.builder().nearest(map));
    assert_eq!(connected(&mut client).await, (1, Some(RegionId(1))));
    near.accept().await;
    client.handle().update_map(map_of(vec![(2, vec![far.node("2a", 2)])]));
    assert_eq!(connected(&mut client).await, (2, Some(RegionId(2))));
    far.accept().await;
}

#[tokio::test]
async fn a_killed_region_is_left_for_the_next() {
    let f = Fixture::new();
    let (mut near, mut far, map) = near_and_far(&f).await;
    let mut client = f.start(f.builder().nearest(map));
    assert_eq!(connected(&mut client).await, (1, Some(RegionId(1))));
    near.accept().await;
    let killed = Instant::now();
    drop(near);
    assert_eq!(connected(&mut client).await, (2, Some(RegionId(2))));
    assert!(killed.elapsed() < Duration::from_secs(10), "{:?}", killed.elapsed());
    far.accept().await;
}
