//! The watch loop: who is present, what happens when the server goes away, and a server that is the watcher itself.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use causeway_client::{
    ClientBuilder, ConfigError, ConnectionError, Endpoint, Event, WATCH_RETRY, Watch, WatchEvent, WatchFailure,
};
use causeway_proto::derp::frame::{Frame, PeerGoneReason, PresentFlags};
use causeway_proto::derpmap::DerpMap;
use causeway_proto::key::{MeshKey, NodePrivate, NodePublic};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::server::{Ca, Options, Server, refused_addr};

struct Fixture {
    ca: Ca,
    mesh_key: MeshKey,
    server: Server,
    tasks: TaskTracker,
    cancel: CancellationToken,
}

impl Fixture {
    /// Without TLS, so that the clock may be stopped.
    async fn new() -> Self {
        let (ca, mesh_key) = (Ca::new(), MeshKey::generate());
        let server = Server::start(&ca, Options { mesh_key: Some(mesh_key.clone()), tls: false, ..Options::default() }).await;
        Self { ca, mesh_key, server, tasks: TaskTracker::new(), cancel: CancellationToken::new() }
    }

    fn builder(&self, key: NodePrivate) -> ClientBuilder {
        let builder = ClientBuilder::new(key).trust(self.ca.trust()).endpoint(self.server.endpoint());
        builder.mesh_key(self.mesh_key.clone()).preferred(false).can_ack_pings(false)
    }

    fn watch(&self) -> Watch {
        self.builder(NodePrivate::generate()).watch(&self.tasks, &self.cancel).expect("watches")
    }
}

fn some_key() -> NodePublic {
    NodePrivate::generate().public()
}

async fn next(watch: &mut Watch) -> WatchEvent {
    watch.recv().await.expect("the watch goes on")
}

fn present(peer: NodePublic) -> Frame {
    Frame::PeerPresent { peer, addr: None, flags: PresentFlags::REGULAR }
}

#[tokio::test]
async fn presence_is_told_unpaired_and_all_who_are_left_are_gone_when_the_server_goes() {
    let mut f = Fixture::new().await;
    let mut watch = f.watch();
    let WatchEvent::Connected { info, sender } = next(&mut watch).await else { panic!("not connected") };
    assert_eq!(info.server_key, f.server.key);
    let mut session = f.server.accept().await;
    assert!(session.login.is_mesh_peer && !session.login.info.can_ack_pings);
    assert_eq!(session.next().await, Some(Frame::WatchConns));

    let (a, b, c) = (some_key(), some_key(), some_key());
    for peer in [a, b, a, c] {
        session.send(present(peer)).await;
        assert!(matches!(next(&mut watch).await, WatchEvent::Present { peer: told, addr: None, .. } if told == peer));
    }
    // Any reason counts, and one who was never present is told as well.
    for (peer, reason) in [(a, PeerGoneReason::NotHere), (some_key(), PeerGoneReason::Disconnected)] {
        session.send(Frame::PeerGone { peer, reason }).await;
        assert!(matches!(next(&mut watch).await, WatchEvent::Gone { peer: told, reason: why } if told == peer && why == reason));
    }
    let payload = Bytes::from_static(b"to the watcher");
    session.send(Frame::RecvPacket { src: b, payload: payload.clone() }).await;
    assert!(matches!(next(&mut watch).await, WatchEvent::Received(event) if event == Event::Packet { src: b, payload }));
    sender.forward_packet(&a, &b, b"on").await.expect("queued");
    assert!(matches!(session.next().await, Some(Frame::ForwardPacket { src, dst, .. }) if (src, dst) == (a, b)));

    session.close().await;
    let WatchEvent::Failed { why: WatchFailure::Connection(why), retry_in: WATCH_RETRY } = next(&mut watch).await else {
        panic!("still connected")
    };
    assert!(matches!(*why, ConnectionError::ClosedByServer), "{why}");
    let mut left = Vec::new();
    for _ in 0..2 {
        let WatchEvent::Gone { peer, reason: PeerGoneReason::MeshConnectionBroke } = next(&mut watch).await else {
            panic!("not gone")
        };
        left.push(peer);
    }
    left.sort_unstable();
    let mut expected = [b, c];
    expected.sort_unstable();
    assert_eq!(left, expected);

    // Five seconds later it is back, and asks for everybody again.
    let failed = Instant::now();
    tokio::time::pause();
    assert!(matches!(next(&mut watch).await, WatchEvent::Connected { .. }));
    assert!((WATCH_RETRY / 2..WATCH_RETRY * 2).contains(&failed.elapsed()), "{:?}", failed.elapsed());
    assert_eq!(f.server.accept().await.next().await, Some(Frame::WatchConns));
}

#[tokio::test]
async fn a_server_that_says_when_it_is_back_is_asked_then() {
    let mut f = Fixture::new().await;
    let mut watch = f.watch();
    assert!(matches!(next(&mut watch).await, WatchEvent::Connected { .. }));
    let session = f.server.accept().await;
    session.send(Frame::Restarting { reconnect_in_ms: 20, try_for_ms: 0 }).await;
    assert!(matches!(next(&mut watch).await, WatchEvent::Received(Event::Restarting { .. })));
    session.close().await;
    let WatchEvent::Failed { retry_in, .. } = next(&mut watch).await else { panic!("still connected") };
    assert_eq!(retry_in, Duration::from_millis(20));
    assert!(matches!(next(&mut watch).await, WatchEvent::Connected { .. }));
}

#[tokio::test]
async fn failed_attempts_are_told_and_repeated_without_end() {
    let f = Fixture::new().await;
    let nobody = Endpoint::at(refused_addr().await, "relay.test").plain();
    let mut watch = f.builder(NodePrivate::generate()).endpoint(nobody).watch(&f.tasks, &f.cancel).expect("watches");
    tokio::time::pause();
    let started = Instant::now();
    for _ in 0..5 {
        assert!(matches!(next(&mut watch).await, WatchEvent::Failed { why: WatchFailure::Connect(_), retry_in: WATCH_RETRY }));
    }
    assert!(started.elapsed() >= WATCH_RETRY * 4, "{:?}", started.elapsed());
    f.cancel.cancel();
    assert!(watch.recv().await.is_none() && watch.recv().await.is_none());
}

#[tokio::test]
async fn a_watcher_that_finds_itself_stops_for_good() {
    let mut f = Fixture::new().await;
    let mut watch = f.builder(f.server.private.clone()).watch(&f.tasks, &f.cancel).expect("watches");
    assert!(matches!(next(&mut watch).await, WatchEvent::SelfConnect));
    assert!(watch.recv().await.is_none());
    let mut session = f.server.accept().await;
    while session.next().await.is_some() {}
    assert!(!f.server.has_waiting());
}

#[test]
fn what_can_never_watch_is_refused() {
    let (tasks, cancel) = (TaskTracker::new(), CancellationToken::new());
    let builder = || ClientBuilder::new(NodePrivate::generate());
    let endpoint = Endpoint::new("relay.test:443").expect("address");
    let mesh_key = MeshKey::generate();
    assert!(matches!(builder().endpoint(endpoint).watch(&tasks, &cancel), Err(ConfigError::WatchNeedsMeshKey)));
    assert!(matches!(builder().mesh_key(mesh_key.clone()).watch(&tasks, &cancel), Err(ConfigError::NoServer)));
    let nearest = builder().mesh_key(mesh_key).nearest(Arc::new(DerpMap::default()));
    assert!(matches!(nearest.watch(&tasks, &cancel), Err(ConfigError::NearestNeedsClient)));
}
