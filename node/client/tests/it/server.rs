//! A DERP server that does what a test tells it: real sockets, real TLS, the login of `causeway_proto`, then scripted frames.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use causeway_client::{ClientBuilder, ConnectError, Connection, Endpoint, Trust};
use causeway_proto::derp::decoder::Decoder;
use causeway_proto::derp::encoder::to_bytes;
use causeway_proto::derp::frame::Frame;
use causeway_proto::derp::handshake::Step;
use causeway_proto::derp::handshake::server::{Login, MeshKeys, ServerHandshake, ServerIdentity, ServerSession};
use causeway_proto::derp::info::ServerInfo;
use causeway_proto::derp::upgrade::{RequestHead, switching_protocols};
use causeway_proto::derp::{PROTOCOL_VERSION, meta_cert};
use causeway_proto::derpmap::{DerpMap, Node, Region};
use causeway_proto::id::RegionId;
use causeway_proto::key::{MeshKey, NodePrivate, NodePublic};
use causeway_proto::stun::message::{binding_response, parse_binding_request};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, PKCS_ED25519, SerialNumber};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{RootCertStore, ServerConfig, SupportedProtocolVersion};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Name in the certificates of all servers of a test.
pub(crate) const HOST_NAME: &str = "relay.test";

/// A CA of the test's own.
pub(crate) struct Ca(CertifiedIssuer<'static, KeyPair>);

impl Ca {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "test CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub(crate) fn der(&self) -> CertificateDer<'static> {
        self.0.as_ref().der().clone()
    }

    /// What a client that believes this CA trusts.
    pub(crate) fn trust(&self) -> Trust {
        let mut roots = RootCertStore::empty();
        roots.add(self.der()).unwrap();
        Trust::roots(roots).unwrap()
    }

    pub(crate) fn issue(&self, name: &str) -> (CertificateDer<'static>, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new([name.to_owned()]).unwrap().signed_by(&key, &self.0).unwrap();
        (leaf.der().clone(), key)
    }
}

/// As stock servers make it: `derp.md` section 4.3.
fn make_meta_cert(server_key: &NodePublic) -> CertificateDer<'static> {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, meta_cert::common_name(server_key));
    params.serial_number = Some(SerialNumber::from(vec![PROTOCOL_VERSION]));
    params.is_ca = IsCa::ExplicitNoCa;
    params.self_signed(&KeyPair::generate_for(&PKCS_ED25519).unwrap()).unwrap().der().clone()
}

/// How a server behaves.
pub(crate) struct Options {
    pub(crate) host_name: &'static str,
    pub(crate) tls: bool,
    pub(crate) meta_cert: bool,
    pub(crate) versions: Vec<&'static SupportedProtocolVersion>,
    pub(crate) info: ServerInfo,
    pub(crate) mesh_key: Option<MeshKey>,
    /// Answers STUN; otherwise the port is there and silent.
    pub(crate) stun: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            host_name: HOST_NAME,
            tls: true,
            meta_cert: true,
            versions: vec![&rustls::version::TLS13, &rustls::version::TLS12],
            info: ServerInfo::current(),
            mesh_key: None,
            stun: true,
        }
    }
}

/// Sessions and frames that wait for the test.
const WAITING_MAX: usize = 1024;

struct State {
    identity: Arc<ServerIdentity>,
    info: ServerInfo,
    tls: Option<TlsAcceptor>,
    /// Closes every connection before the login is answered.
    refuse: AtomicBool,
    stun_delay_ms: AtomicU64,
    map: std::sync::Mutex<Vec<u8>>,
}

/// A running server.
pub(crate) struct Server {
    pub(crate) addr: SocketAddr,
    pub(crate) stun_addr: SocketAddr,
    pub(crate) key: NodePublic,
    pub(crate) private: NodePrivate,
    /// The certificate it shows.
    pub(crate) leaf: CertificateDer<'static>,
    tls: bool,
    state: Arc<State>,
    sessions: mpsc::Receiver<Session>,
    cancel: CancellationToken,
}

impl Server {
    pub(crate) async fn start(ca: &Ca, options: Options) -> Self {
        let private = NodePrivate::generate();
        let key = private.public();
        let (leaf, leaf_key) = ca.issue(options.host_name);
        let mut chain = vec![leaf.clone()];
        if options.meta_cert {
            chain.push(make_meta_cert(&key));
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&options.versions)
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, PrivateKeyDer::try_from(leaf_key.serialize_der()).unwrap())
            .unwrap();
        let mesh_keys = MeshKeys { current: options.mesh_key, previous: None };
        let state = Arc::new(State {
            identity: Arc::new(ServerIdentity::new(private.clone(), mesh_keys)),
            info: options.info,
            tls: options.tls.then(|| TlsAcceptor::from(Arc::new(config))),
            refuse: AtomicBool::new(false),
            stun_delay_ms: AtomicU64::new(0),
            map: std::sync::Mutex::default(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stun = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let (addr, stun_addr) = (listener.local_addr().unwrap(), stun.local_addr().unwrap());
        let (cancel, tasks) = (CancellationToken::new(), TaskTracker::new());
        let (session, sessions) = mpsc::channel(WAITING_MAX);
        if options.stun {
            tasks.spawn(cancel.clone().run_until_cancelled_owned(answer_stun(stun, Arc::clone(&state), tasks.clone())));
        } else {
            // Holds the port without a word.
            let hold = cancel.clone();
            tasks.spawn(async move {
                hold.cancelled().await;
                drop(stun);
            });
        }
        let accept = accept(listener, Arc::clone(&state), session, cancel.clone(), tasks.clone());
        tasks.spawn(cancel.clone().run_until_cancelled_owned(accept));
        Self { addr, stun_addr, key, private, leaf, tls: options.tls, state, sessions, cancel }
    }

    pub(crate) fn endpoint(&self) -> Endpoint {
        let endpoint = Endpoint::at(self.addr, HOST_NAME);
        if self.tls { endpoint } else { endpoint.plain() }
    }

    /// The next client that logged in.
    pub(crate) async fn accept(&mut self) -> Session {
        self.sessions.recv().await.expect("the server runs")
    }

    /// Whether a client logged in that nobody took yet.
    pub(crate) fn has_waiting(&self) -> bool {
        !self.sessions.is_empty()
    }

    pub(crate) fn refuse(&self, refuse: bool) {
        self.state.refuse.store(refuse, Ordering::SeqCst);
    }

    pub(crate) fn delay_stun(&self, delay: Duration) {
        self.state.stun_delay_ms.store(u64::try_from(delay.as_millis()).unwrap(), Ordering::SeqCst);
    }

    /// What `/derpmap` answers.
    pub(crate) fn serve_map(&self, json: Vec<u8>) {
        *self.state.map.lock().unwrap() = json;
    }

    /// How a map names this server.
    pub(crate) fn node(&self, name: &str, region: u64) -> Node {
        Node {
            name: name.to_owned(),
            region_id: RegionId(region),
            host_name: HOST_NAME.to_owned(),
            ipv4: self.addr.ip().to_string(),
            ipv6: "none".to_owned(),
            derp_port: self.addr.port().into(),
            stun_port: self.stun_addr.port().into(),
            ..Node::default()
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

/// One server, and what clients of it need.
pub(crate) struct Fixture {
    pub(crate) ca: Ca,
    pub(crate) server: Server,
    pub(crate) tasks: TaskTracker,
    pub(crate) cancel: CancellationToken,
}

impl Fixture {
    pub(crate) async fn new(options: Options) -> Self {
        let ca = Ca::new();
        let server = Server::start(&ca, options).await;
        Self { ca, server, tasks: TaskTracker::new(), cancel: CancellationToken::new() }
    }

    pub(crate) fn builder(&self) -> ClientBuilder {
        let builder = ClientBuilder::new(NodePrivate::generate()).trust(self.ca.trust());
        builder.endpoint(self.server.endpoint()).preferred(false)
    }

    pub(crate) async fn try_connect(&self, builder: &ClientBuilder) -> Result<Connection, ConnectError> {
        builder.connect(&self.tasks, &self.cancel).await
    }

    /// A connection and the server's end of it.
    pub(crate) async fn connect(&mut self, builder: &ClientBuilder) -> (Connection, Session) {
        let connection = self.try_connect(builder).await.expect("connects");
        (connection, self.server.accept().await)
    }

    pub(crate) async fn plain_pair(&mut self) -> (Connection, Session) {
        let builder = self.builder();
        self.connect(&builder).await
    }
}

/// A map of these regions.
pub(crate) fn map_of(regions: Vec<(u64, Vec<Node>)>) -> Arc<DerpMap> {
    let region = |(id, nodes): (u64, Vec<Node>)| {
        let region_id = RegionId(id);
        let code = format!("r{id}");
        (region_id, Region { region_id, region_code: code.clone(), region_name: code, nodes, ..Region::default() })
    };
    Arc::new(DerpMap { regions: regions.into_iter().map(region).collect(), ..DerpMap::default() })
}

/// What the test does to a connection.
enum Command {
    Send(Vec<u8>),
    /// End of stream, politely.
    Close,
    /// Stops reading, so that the client's writes stall.
    StopReading,
}

/// A logged-in client, as its server sees it. Dropping it closes the connection.
pub(crate) struct Session {
    pub(crate) login: Login,
    pub(crate) head: RequestHead,
    /// The login came with the request, before the server said anything.
    pub(crate) pipelined: bool,
    crypto: ServerSession,
    commands: mpsc::Sender<Command>,
    frames: mpsc::Receiver<Frame>,
}

impl Session {
    pub(crate) async fn send(&self, frame: Frame) {
        self.send_raw(&to_bytes(&frame)).await;
    }

    pub(crate) async fn send_raw(&self, bytes: &[u8]) {
        assert!(self.commands.send(Command::Send(bytes.to_vec())).await.is_ok(), "the connection is there");
    }

    pub(crate) async fn send_info(&self, info: &ServerInfo) {
        self.send_raw(&self.crypto.server_info(info)).await;
    }

    pub(crate) async fn close(&self) {
        self.commands.send(Command::Close).await.ok();
    }

    pub(crate) async fn stop_reading(&self) {
        self.commands.send(Command::StopReading).await.ok();
    }

    /// The next frame of the client; `None` once it is gone.
    pub(crate) async fn next(&mut self) -> Option<Frame> {
        self.frames.recv().await
    }
}

async fn accept(
    listener: TcpListener,
    state: Arc<State>,
    sessions: mpsc::Sender<Session>,
    cancel: CancellationToken,
    tasks: TaskTracker,
) {
    while let Ok((stream, _)) = listener.accept().await {
        stream.set_nodelay(true).unwrap();
        let (state, sessions) = (Arc::clone(&state), sessions.clone());
        tasks.spawn(cancel.clone().run_until_cancelled_owned(async move {
            match &state.tls {
                None => serve(stream, &state, sessions).await,
                // A failed handshake is the client's to notice.
                Some(tls) => match tls.accept(stream).await {
                    Ok(stream) => serve(stream, &state, sessions).await,
                    Err(_) => None,
                },
            }
        }));
    }
}

/// `None` if the client went away early.
async fn serve<S: AsyncRead + AsyncWrite>(stream: S, state: &State, sessions: mpsc::Sender<Session>) -> Option<()> {
    let (mut read, mut write) = split(stream);
    let mut buffer = BytesMut::new();
    let head = loop {
        match RequestHead::take(&mut buffer).unwrap() {
            Some(head) => break head,
            None => more(&mut read, &mut buffer).await?,
        }
    };
    if head.path != "/derp" {
        return answer(&mut write, &head.path, state).await;
    }
    let pipelined = !buffer.is_empty();
    let mut handshake = ServerHandshake::new(Arc::clone(&state.identity));
    if !head.fast_start() {
        write.write_all(&switching_protocols(&state.identity.public())).await.ok()?;
    }
    write.write_all(&handshake.greeting()).await.ok()?;
    write.flush().await.ok()?;
    let pending = loop {
        // A login that is for another server ends the connection.
        match handshake.read_login(&mut buffer).ok()? {
            Step::Done(pending) => break pending,
            Step::More(again) => handshake = again,
        }
        more(&mut read, &mut buffer).await?;
    };
    if state.refuse.load(Ordering::SeqCst) {
        return None;
    }
    let (answer, mut crypto) = pending.accept(&state.info);
    write.write_all(&answer).await.ok()?;
    write.flush().await.ok()?;

    let (commands, mut orders) = mpsc::channel(WAITING_MAX);
    let (frame, frames) = mpsc::channel(WAITING_MAX);
    let mut decoder = std::mem::replace(&mut crypto.decoder, Decoder::server());
    let login = crypto.login.clone();
    sessions.send(Session { login, head, pipelined, crypto, commands, frames }).await.ok()?;
    let mut reading = true;
    loop {
        while let Some(one) = decoder.decode(&mut buffer).unwrap() {
            frame.send(one).await.ok();
        }
        tokio::select! {
            order = orders.recv() => match order {
                Some(Command::Send(bytes)) => {
                    write.write_all(&bytes).await.ok()?;
                    write.flush().await.ok()?;
                }
                Some(Command::StopReading) => reading = false,
                Some(Command::Close) | None => {
                    write.shutdown().await.ok();
                    return None;
                }
            },
            got = more(&mut read, &mut buffer), if reading => got?,
        }
    }
}

async fn more<R: AsyncRead + Unpin>(read: &mut R, buffer: &mut BytesMut) -> Option<()> {
    buffer.reserve(64 * 1024);
    (read.read_buf(buffer).await.ok()? > 0).then_some(())
}

async fn answer<W: AsyncWrite + Unpin>(write: &mut W, path: &str, state: &State) -> Option<()> {
    let (status, body) = match path {
        "/derp/latency-check" => ("200 OK", Vec::new()),
        "/derpmap" => ("200 OK", state.map.lock().unwrap().clone()),
        _ => ("404 Not Found", Vec::new()),
    };
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    write.write_all(&[head.as_bytes(), &body].concat()).await.ok()?;
    write.shutdown().await.ok()
}

async fn answer_stun(socket: UdpSocket, state: Arc<State>, tasks: TaskTracker) {
    let socket = Arc::new(socket);
    let mut buffer = [0; 1500];
    while let Ok((len, from)) = socket.recv_from(&mut buffer).await {
        let Ok(transaction) = parse_binding_request(&buffer[..len], true) else {
            continue;
        };
        let (socket, delay) = (Arc::clone(&socket), Duration::from_millis(state.stun_delay_ms.load(Ordering::SeqCst)));
        tasks.spawn(async move {
            tokio::time::sleep(delay).await;
            socket.send_to(binding_response(&transaction, from).as_ref(), from).await.ok();
        });
    }
}

/// A listener that takes connections and says nothing.
pub(crate) async fn silent_listener() -> (SocketAddr, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    (listener.local_addr().unwrap(), listener)
}

/// A port of loopback where nobody listens.
pub(crate) async fn refused_addr() -> SocketAddr {
    let (addr, listener) = silent_listener().await;
    drop(listener);
    addr
}

/// Accepts one connection and answers its request with these bytes.
pub(crate) async fn answer_once(listener: TcpListener, bytes: &'static [u8]) -> TcpStream {
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut buffer = BytesMut::new();
    while RequestHead::take(&mut buffer).unwrap().is_none() {
        more(&mut stream, &mut buffer).await.unwrap();
    }
    stream.write_all(bytes).await.unwrap();
    stream
}
