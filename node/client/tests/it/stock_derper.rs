//! The client against Tailscale's own derper, where Go is installed to build it.

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use causeway_client::{ClientBuilder, ConnectError, Connection, Endpoint, Event, WatchEvent, measure_regions};
use causeway_proto::derp::frame::{PeerGoneReason, PresentFlags};
use causeway_proto::derpmap::Node;
use causeway_proto::id::RegionId;
use causeway_proto::key::{MeshKey, NodePrivate, NodePublic};
use causeway_proto::packet::{DISCO_LEN_MIN, DISCO_MAGIC};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::server::{Ca, HOST_NAME, map_of};
use crate::trust::pem;

/// The newest that Go 1.26 builds; the same as in `tests-integration/interop/derp-go/go.mod`.
const DERPER: &str = "tailscale.com/cmd/derper@v1.102.5";

/// A port may be taken between looking for one and the server's start.
const START_ATTEMPTS: usize = 3;

/// Builds the server, once per target directory; `None`, with a message, where that is not possible.
fn derper() -> Option<PathBuf> {
    if Command::new("go").arg("version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err() {
        eprintln!("skipped: Go is not installed, so there is no stock derper to test against");
        return None;
    }
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("derper");
    let program = dir.join("derper");
    if !program.exists() {
        let built = Command::new("go").args(["install", DERPER]).env("GOBIN", &dir).output().expect("go runs");
        if !built.status.success() {
            eprintln!("skipped: {DERPER} does not build here: {}", String::from_utf8_lossy(&built.stderr));
            return None;
        }
    }
    Some(program)
}

/// A running derper; ended on drop.
struct Derper {
    process: Child,
    addr: SocketAddr,
    stun_port: u16,
    ca: Ca,
    _dir: tempfile::TempDir,
}

impl Derper {
    fn start(program: &Path, mesh_key: &MeshKey) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::new();
        let (leaf, key) = ca.issue(HOST_NAME);
        let file = |name: &str, content: &str| std::fs::write(dir.path().join(name), content).unwrap();
        file("relay.test.crt", &pem("CERTIFICATE", &leaf));
        file("relay.test.key", &pem("PRIVATE KEY", &key.serialize_der()));
        file("mesh.key", &mesh_key.expose_hex());
        for _ in 0..START_ATTEMPTS {
            // Derper takes no port 0.
            let addr = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
            let stun_port = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            if let Some(process) = spawn(program, dir.path(), addr, stun_port) {
                return Self { process, addr, stun_port, ca, _dir: dir };
            }
        }
        panic!("derper does not start");
    }

    fn endpoint(&self) -> Endpoint {
        Endpoint::at(self.addr, HOST_NAME)
    }

    fn node(&self) -> Node {
        Node {
            name: "900a".to_owned(),
            region_id: RegionId(900),
            host_name: HOST_NAME.to_owned(),
            ipv4: self.addr.ip().to_string(),
            ipv6: "none".to_owned(),
            derp_port: self.addr.port().into(),
            stun_port: self.stun_port.into(),
            ..Node::default()
        }
    }
}

/// `None` if it ends before it serves.
fn spawn(program: &Path, dir: &Path, addr: SocketAddr, stun_port: u16) -> Option<Child> {
    let mut process = Command::new(program)
        .current_dir(dir)
        .args(["-hostname", HOST_NAME, "-certmode", "manual", "-certdir", ".", "-c", "derper.json", "-http-port", "-1"])
        .args(["-mesh-psk-file", "mesh.key", "-a", &addr.to_string(), "-stun-port", &stun_port.to_string()])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("derper runs");
    // It says so right before it listens; a client's dial is tried again until then.
    let lines = BufReader::new(process.stderr.take().unwrap()).lines();
    let mut lines = lines.map_while(Result::ok);
    if !lines.any(|line| line.contains("serving on")) {
        process.wait().unwrap();
        return None;
    }
    // Its log must not fill the pipe.
    std::thread::spawn(move || lines.for_each(drop));
    Some(process)
}

impl Drop for Derper {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

struct Fixture {
    derper: Derper,
    mesh_key: MeshKey,
    tasks: TaskTracker,
    cancel: CancellationToken,
}

impl Fixture {
    fn new() -> Option<Self> {
        let mesh_key = MeshKey::generate();
        let derper = Derper::start(&derper()?, &mesh_key);
        Some(Self { derper, mesh_key, tasks: TaskTracker::new(), cancel: CancellationToken::new() })
    }

    async fn connect(&self, configure: impl FnOnce(ClientBuilder) -> ClientBuilder) -> (NodePublic, Connection) {
        let key = NodePrivate::generate();
        let public = key.public();
        let builder = ClientBuilder::new(key).trust(self.derper.ca.trust()).endpoint(self.derper.endpoint());
        let builder = configure(builder);
        for _ in 0..50 {
            match builder.connect(&self.tasks, &self.cancel).await {
                Ok(connection) => return (public, connection),
                Err(ConnectError::Dial { .. }) => tokio::time::sleep(Duration::from_millis(20)).await,
                Err(error) => panic!("{error}"),
            }
        }
        panic!("derper does not listen");
    }
}

/// The next event that is no keep-alive.
async fn next(connection: &mut Connection) -> Event {
    let next = async {
        loop {
            match connection.recv().await.expect("connected") {
                Event::KeepAlive => {}
                event => return event,
            }
        }
    };
    timeout(Duration::from_secs(10), next).await.expect("an event")
}

#[tokio::test]
async fn a_stock_server_takes_everything_the_client_sends_and_the_client_what_it_answers() {
    let Some(f) = Fixture::new() else { return };
    let (a_key, mut a) = f.connect(|b| b).await;
    let (b_key, mut b) = f.connect(|b| b.app_name("causeway tests").prober(true)).await;
    assert!(a.info().fast_start && b.info().fast_start);
    assert_eq!(a.info().server_key, b.info().server_key);
    assert_eq!(a.info().server_info.version, 2);

    for payload in [Bytes::from_static(b"hello"), Bytes::new(), Bytes::from(vec![7; 65_536])] {
        a.sender().send(&b_key, &payload).await.expect("queued");
        assert_eq!(next(&mut b).await, Event::Packet { src: a_key, payload: payload.clone() });
        b.sender().send(&a_key, &payload).await.expect("queued");
        assert_eq!(next(&mut a).await, Event::Packet { src: b_key, payload: payload.clone() });
        a.sender().send(&a_key, &payload).await.expect("queued");
        assert_eq!(next(&mut a).await, Event::Packet { src: a_key, payload });
    }

    let sender = a.sender().clone();
    let absent = NodePrivate::generate().public();
    let mut disco = [0; DISCO_LEN_MIN];
    disco[..DISCO_MAGIC.len()].copy_from_slice(&DISCO_MAGIC);
    sender.send(&absent, &disco).await.expect("queued");
    assert_eq!(next(&mut a).await, Event::PeerGone { peer: absent, reason: PeerGoneReason::NotHere });

    b.sender().note_preferred(false).expect("queued");
    drop(b);
    assert_eq!(next(&mut a).await, Event::PeerGone { peer: b_key, reason: PeerGoneReason::Disconnected });

    let (sender, mut receiver) = a.split();
    let receiving = f.tasks.spawn(async move { while receiver.recv().await.is_ok() {} });
    sender.ping().await.expect("pong");
    sender.close().await;
    receiving.await.expect("ends with the connection");
}

#[tokio::test]
async fn a_stock_server_takes_the_client_as_mesh_peer() {
    let Some(f) = Fixture::new() else { return };
    let (client_key, mut client) = f.connect(|b| b).await;
    let (mesh_key, mut mesh) = f.connect(|b| b.mesh_key(f.mesh_key.clone()).can_ack_pings(false).watch_connections(true)).await;
    let mut present = Vec::new();
    for _ in 0..2 {
        match next(&mut mesh).await {
            Event::PeerPresent { peer, addr, flags } => present.push((peer, addr, flags)),
            other => panic!("{other:?}"),
        }
    }
    assert!(present.contains(&(client_key, Some(client.info().local_addr), PresentFlags::REGULAR)), "{present:?}");
    assert!(present.contains(&(mesh_key, Some(mesh.info().local_addr), PresentFlags::MESH_PEER)), "{present:?}");

    let source = NodePrivate::generate().public();
    mesh.sender().forward_packet(&source, &client_key, b"forwarded").await.expect("queued");
    assert_eq!(next(&mut client).await, Event::Packet { src: source, payload: Bytes::from_static(b"forwarded") });

    mesh.sender().close_peer(&client_key).expect("queued");
    client.recv().await.expect_err("closed by the mesh peer");
    assert_eq!(next(&mut mesh).await, Event::PeerGone { peer: client_key, reason: PeerGoneReason::Disconnected });
}

#[tokio::test]
async fn the_clients_of_a_stock_server_are_watched_until_it_goes() {
    let Some(mut f) = Fixture::new() else { return };
    let (client_key, client) = f.connect(|b| b).await;
    let watcher = NodePrivate::generate();
    let builder = ClientBuilder::new(watcher.clone()).trust(f.derper.ca.trust()).endpoint(f.derper.endpoint()).preferred(false);
    let mut watch = builder.mesh_key(f.mesh_key.clone()).can_ack_pings(false).watch(&f.tasks, &f.cancel).unwrap();
    let mut next = async || timeout(Duration::from_secs(10), watch.recv()).await.expect("an event").expect("watching");
    assert!(matches!(next().await, WatchEvent::Connected { info, .. } if info.server_key == client.info().server_key));
    let mut present = Vec::new();
    for _ in 0..2 {
        let WatchEvent::Present { peer, .. } = next().await else { panic!("nobody present") };
        present.push(peer);
    }
    assert!(present.contains(&client_key) && present.contains(&watcher.public()), "{present:?}");
    drop(client);
    let gone = |event, peer, why| matches!(event, WatchEvent::Gone { peer: p, reason } if (p, reason) == (peer, why));
    assert!(gone(next().await, client_key, PeerGoneReason::Disconnected));
    f.derper.process.kill().unwrap();
    assert!(matches!(next().await, WatchEvent::Failed { .. }));
    assert!(gone(next().await, watcher.public(), PeerGoneReason::MeshConnectionBroke));
}

#[tokio::test]
async fn a_stock_server_is_known_by_its_key() {
    let Some(f) = Fixture::new() else { return };
    let (_, first) = f.connect(|b| b).await;
    let (_, again) = f.connect(|b| b.server_key(first.info().server_key)).await;
    assert!(again.info().fast_start);
    let builder = ClientBuilder::new(NodePrivate::generate()).trust(f.derper.ca.trust()).endpoint(f.derper.endpoint());
    let wrong = builder.server_key(NodePrivate::generate().public()).connect(&f.tasks, &f.cancel).await;
    assert!(matches!(wrong, Err(ConnectError::Handshake { .. })), "{wrong:?}");
}

#[tokio::test]
async fn a_stock_server_is_measured_over_stun_and_https() {
    let Some(f) = Fixture::new() else { return };
    drop(f.connect(|b| b).await);
    let trust = f.derper.ca.trust();
    let report = measure_regions(&map_of(vec![(900, vec![f.derper.node()])]), Some(&trust)).await;
    assert!(report.udp() && report.latency.contains_key(&RegionId(900)), "{report:?}");
    let mut without_stun = f.derper.node();
    without_stun.stun_port = -1;
    let report = measure_regions(&map_of(vec![(900, vec![without_stun])]), Some(&trust)).await;
    assert!(!report.udp() && report.latency.contains_key(&RegionId(900)), "{report:?}");
}
