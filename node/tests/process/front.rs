//! What stands before DERP: load balancers, HTTP proxies, WebSocket, plain HTTP.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use bytes::BytesMut;
use causeway_client::{ClientBuilder, Connection, Endpoint, Event};
use causeway_proto::derp::decoder::Decoder;
use causeway_proto::derp::encoder;
use causeway_proto::derp::frame::Frame;
use causeway_proto::derp::handshake::Step;
use causeway_proto::derp::handshake::client::ClientHandshake;
use causeway_proto::derp::info::ClientInfo;
use causeway_proto::key::{MeshKey, NodePrivate, NodePublic};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::harness::{DEADLINE, Home, Node, get, write_secret};
use crate::relay::{client, packet};

/// The address that load balancers and proxies of these tests connect from; everybody else here is 127.0.0.1.
const PROXY: &str = "127.0.0.2";

async fn dial(from: &str, to: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(from.parse().unwrap(), 0)).unwrap();
    let stream = socket.connect(to.parse().unwrap()).await.unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// A load balancer that passes connections on to `target` behind these bytes.
async fn balancer(header: Vec<u8>, target: &str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, target) = (listener.local_addr().unwrap(), target.to_owned());
    TaskTracker::new().spawn(async move {
        loop {
            let (mut inside, header) = (listener.accept().await.unwrap().0, header.clone());
            let mut outside = dial(PROXY, &target).await;
            TaskTracker::new().spawn(async move {
                outside.write_all(&header).await.unwrap();
                copy_bidirectional(&mut inside, &mut outside).await.ok();
            });
        }
    });
    address
}

fn version_2(family: u8, addresses: &[u8], extension: &[u8]) -> Vec<u8> {
    let len = (addresses.len() + extension.len()) as u16;
    [b"\r\n\r\n\0\r\nQUIT\n\x21", &[family][..], &len.to_be_bytes(), addresses, extension].concat()
}

/// A client through TLS that dials `at`; whether it logs in.
async fn log_in(at: SocketAddr) -> Option<(Connection, NodePublic)> {
    let key = NodePrivate::generate();
    let mut endpoint = Endpoint::at(at, "localhost");
    endpoint.insecure_for_tests = true;
    let builder = ClientBuilder::new(key.clone()).endpoint(endpoint);
    let connection = builder.connect(&TaskTracker::new(), &CancellationToken::new()).await.ok()?;
    Some((connection, key.public()))
}

/// Arguments by which stock mesh peers of this machine are taken, with the key.
fn derp_mesh(dir: &Path) -> (Vec<String>, MeshKey) {
    let (file, key) = (dir.join("derp-mesh.key"), MeshKey::generate());
    write_secret(&file, &key.expose_hex());
    let sets = [format!("derp_mesh.key_file={}", file.display()), "derp_mesh.allow=['127.0.0.1']".to_owned()];
    (sets.into_iter().flat_map(|set| ["--set".to_owned(), set]).collect(), key)
}

/// A mesh peer that is told who connects, and from where.
async fn watcher(node: &Node, key: &MeshKey) -> Connection {
    let mut endpoint = Endpoint::new(&node.ready.derp).unwrap();
    endpoint.insecure_for_tests = true;
    let builder = ClientBuilder::new(NodePrivate::generate()).endpoint(endpoint).mesh_key(key.clone()).watch_connections(true);
    builder.connect(&TaskTracker::new(), &CancellationToken::new()).await.unwrap()
}

/// The address that a watcher is told of a client.
async fn address_of(watcher: &mut Connection, client: NodePublic) -> Option<SocketAddr> {
    let told = async {
        loop {
            if let Event::PeerPresent { peer, addr, .. } = watcher.recv().await.unwrap()
                && peer == client
            {
                return addr;
            }
        }
    };
    timeout(DEADLINE, told).await.expect("a client is announced")
}

async fn start(home: &Home, sets: &[&str], more: &[String]) -> Node {
    let mut arguments: Vec<&str> = sets.iter().flat_map(|set| ["--set", *set]).collect();
    arguments.extend(more.iter().map(String::as_str));
    home.start(&arguments).await
}

async fn refused(node: &Node, door: &str, reason: &str) -> bool {
    let line = format!("causeway_ingress_refused_connections_total{{door=\"{door}\",reason=\"{reason}\"}} ");
    node.metrics().await.lines().any(|found| found.strip_prefix(&line).is_some_and(|count| count != "0"))
}

async fn until_refused(node: &Node, door: &str, reason: &str) {
    let wait = async {
        while !refused(node, door, reason).await {
            tokio::task::yield_now().await;
        }
    };
    timeout(DEADLINE, wait).await.unwrap_or_else(|_| panic!("{reason} at {door} is never counted"));
}

#[tokio::test]
async fn clients_of_a_load_balancer_are_known_by_their_own_address() {
    let home = Home::new();
    let (mesh, key) = derp_mesh(home.dir.path());
    let sets = ["proxy_protocol.derp=['127.0.0.2']", "limits.authenticated_per_ipv4=1", "limits.authenticated_per_ipv6=1"];
    let node = start(&home, &sets, &mesh).await;
    // A mesh peer connects directly, past the load balancer.
    let mut watcher = watcher(&node, &key).await;

    let mut connections = Vec::new();
    let ipv6: Vec<u8> = [&[0x20, 1, 0xd, 0xb8][..], &[0; 11], &[1], &[0; 16], &[0x12, 0x34, 1, 0xbb]].concat();
    for (header, source) in [
        (b"PROXY TCP4 192.0.2.7 10.0.0.1 4660 443\r\n".to_vec(), "192.0.2.7:4660"),
        (b"PROXY TCP6 2001:db8:7::7 ::1 4660 443\r\n".to_vec(), "[2001:db8:7::7]:4660"),
        (version_2(0x11, &[192, 0, 2, 8, 10, 0, 0, 1, 0x12, 0x34, 1, 0xbb], b"\x04\0\x02xy"), "192.0.2.8:4660"),
        (version_2(0x21, &ipv6, b""), "[2001:db8::1]:4660"),
        (b"PROXY TCP6 ::ffff:192.0.2.9 ::1 7 443\r\n".to_vec(), "192.0.2.9:7"),
    ] {
        let at = balancer(header, &node.ready.derp).await;
        let (connection, key) = log_in(at).await.expect(source);
        assert_eq!(address_of(&mut watcher, key).await, Some(source.parse().unwrap()));
        assert!(connection.info().fast_start, "TLS passes whole");
        connections.push((connection, at));
    }
    // Limits go by the client, not by the load balancer: one connection each, and each address has one.
    for (_, at) in &connections {
        assert!(log_in(*at).await.is_none(), "a second connection of the same address");
    }
    assert_eq!(node.metric("causeway_derp_logins_total").await, 6.0);
    assert_eq!(node.metric("causeway_ingress_proxied_connections_total").await, 10.0);

    // The load balancer must name somebody; others must not.
    for (from, bytes, reason) in [
        (PROXY, &b"\x16\x03\x01\x02\x00"[..], "proxy_header_absent"),
        (PROXY, b"PROXY TCP4 1 2 3 4\r\n", "proxy_header_malformed"),
        ("127.0.0.1", b"PROXY TCP4 192.0.2.7 10.0.0.1 4660 443\r\n", "proxy_untrusted"),
    ] {
        let mut stream = dial(from, &node.ready.derp).await;
        stream.write_all(bytes).await.unwrap();
        until_refused(&node, "derp", reason).await;
        assert_eq!(stream.read_to_end(&mut Vec::new()).await.unwrap_or(0), 0, "closed without a word");
    }
    drop((connections, watcher));
    node.stop().await;
}

#[tokio::test]
async fn clients_of_an_http_proxy_are_known_by_their_own_address() {
    let home = Home::new();
    let (mesh, key) = derp_mesh(home.dir.path());
    let sets = ["http.trusted_proxies=['127.0.0.2']", "limits.authenticated_per_ipv4=1"];
    let node = start(&home, &sets, &mesh).await;
    let mut watcher = watcher(&node, &key).await;
    let forwarded =
        |addresses: &str| format!("GET /derp HTTP/1.1\r\nHost: h\r\nUpgrade: DERP\r\nX-Forwarded-For: {addresses}\r\n\r\n");
    // The proxy may keep a connection and send others' requests before.
    let mut first = dial(PROXY, &node.ready.plain_http).await;
    first.write_all(b"GET /derp/probe HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: 192.0.2.1\r\n\r\n").await.unwrap();
    let mut probed = [0; 15];
    first.read_exact(&mut probed).await.unwrap();
    assert_eq!(&probed, b"HTTP/1.1 200 OK");
    let mut rest = Vec::new();
    while !rest.ends_with(b"\r\n\r\n") {
        rest.push(first.read_u8().await.unwrap());
    }
    let key = Raw::log_in(&mut first, &forwarded("203.0.113.1, 192.0.2.77")).await.expect("logged in");
    assert_eq!(address_of(&mut watcher, key).await, Some("192.0.2.77:0".parse().unwrap()));

    let mut second = dial(PROXY, &node.ready.plain_http).await;
    assert!(Raw::log_in(&mut second, &forwarded("192.0.2.77")).await.is_none(), "a second connection of the same client");
    let mut third = dial(PROXY, &node.ready.plain_http).await;
    let key = Raw::log_in(&mut third, &forwarded("192.0.2.78")).await.expect("another client");
    assert_eq!(address_of(&mut watcher, key).await, Some("192.0.2.78:0".parse().unwrap()));
    // Whoever is no trusted proxy speaks for itself.
    let mut other = dial("127.0.0.3", &node.ready.plain_http).await;
    let key = Raw::log_in(&mut other, &forwarded("192.0.2.79")).await.expect("logged in");
    assert_eq!(address_of(&mut watcher, key).await.map(|address| address.ip()), Some(IpAddr::from([127, 0, 0, 3])));
    assert_eq!(node.metric("causeway_ingress_proxied_connections_total").await, 3.0);
    drop((first, second, third, other, watcher));
    node.stop().await;
}

/// A login byte by byte.
struct Raw;

impl Raw {
    /// Upgrades, logs in with a fresh key; `None` if the node closes.
    async fn log_in(stream: &mut TcpStream, request: &str) -> Option<NodePublic> {
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut bytes = BytesMut::new();
        let head_len = loop {
            if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
                break end + 4;
            }
            more(stream, &mut bytes).await?;
        };
        assert!(bytes.starts_with(b"HTTP/1.1 101 "), "{bytes:?}");
        drop(bytes.split_to(head_len));
        let (key, mut handshake) = new_handshake();
        let (login, mut answer) = loop {
            match handshake.read_greeting(&mut bytes).unwrap() {
                Step::Done(done) => break done,
                Step::More(again) => handshake = again,
            }
            more(stream, &mut bytes).await?;
        };
        stream.write_all(&login).await.ok()?;
        loop {
            match answer.read_server_info(&mut bytes).unwrap() {
                Step::Done(_) => return Some(key),
                Step::More(again) => answer = again,
            }
            more(stream, &mut bytes).await?;
        }
    }
}

fn new_handshake() -> (NodePublic, ClientHandshake) {
    let private = NodePrivate::generate();
    (private.public(), ClientHandshake::new(private, ClientInfo::current()))
}

async fn more(stream: &mut TcpStream, bytes: &mut BytesMut) -> Option<()> {
    let read = timeout(DEADLINE, stream.read_buf(bytes)).await.expect("an answer");
    read.ok().filter(|len| *len > 0).map(|_| ())
}

/// A client that speaks WebSocket.
struct WebSocket {
    io: TcpStream,
    /// What messages carried.
    stream: BytesMut,
}

impl WebSocket {
    async fn open(node: &Node, protocols: &str) -> Self {
        let mut io = TcpStream::connect(&node.ready.plain_http).await.unwrap();
        let request = format!(
            "GET /derp HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Extensions: permessage-deflate\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             Sec-WebSocket-Protocol: {protocols}\r\nOrigin: https://elsewhere.example\r\n\r\n"
        );
        io.write_all(request.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(io.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap();
        assert!(head.starts_with("HTTP/1.1 101 ") && head.contains("\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
        let speaks_derp = protocols.split(", ").any(|protocol| protocol == "derp");
        assert_eq!(head.contains("\r\nSec-WebSocket-Protocol: derp\r\n"), speaks_derp, "{head}");
        assert!(!head.contains("Extensions"), "nothing is compressed: {head}");
        Self { io, stream: BytesMut::new() }
    }

    async fn send(&mut self, first: u8, payload: &[u8]) {
        const MASK: [u8; 4] = [1, 2, 3, 4];
        let mut frame = vec![first, 0xFF];
        frame.extend_from_slice(&(payload.len() as u64).to_be_bytes());
        if payload.len() < 126 {
            frame.truncate(1);
            frame.push(0x80 | payload.len() as u8);
        }
        frame.extend_from_slice(&MASK);
        frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        self.io.write_all(&frame).await.unwrap();
    }

    /// The next message's first byte and payload.
    async fn message(&mut self) -> (u8, Vec<u8>) {
        let read = async {
            let (first, short) = (self.io.read_u8().await.unwrap(), self.io.read_u8().await.unwrap());
            let len = match short {
                126 => u64::from(self.io.read_u16().await.unwrap()),
                127 => self.io.read_u64().await.unwrap(),
                len => u64::from(len),
            };
            let mut payload = vec![0; usize::try_from(len).unwrap()];
            self.io.read_exact(&mut payload).await.unwrap();
            (first, payload)
        };
        timeout(DEADLINE, read).await.expect("a message")
    }

    async fn receive(&mut self) {
        let (first, payload) = self.message().await;
        assert_eq!(first, 0x82, "binary and whole");
        self.stream.extend_from_slice(&payload);
    }
}

#[tokio::test]
async fn derp_flows_through_a_websocket_whatever_its_messages() {
    let home = Home::new();
    let node = home.start(&[]).await;
    let (mut stock, stock_key) = client(&node, false).await;
    let mut socket = WebSocket::open(&node, "chat, derp").await;

    let (first, greeting) = socket.message().await;
    assert_eq!((first, greeting.len(), greeting[0]), (0x82, 45, 1), "the greeting is one message");
    let (key, handshake) = new_handshake();
    let Step::Done((login, answer)) = handshake.read_greeting(&mut BytesMut::from(&greeting[..])).unwrap() else { panic!("cut") };
    // Borders of messages mean nothing.
    let (head, tail) = login.split_at(7);
    socket.send(0x02, head).await;
    socket.send(0x89, b"are you there").await;
    socket.send(0x80, tail).await;
    assert_eq!(socket.message().await, (0x8A, b"are you there".to_vec()));
    socket.receive().await;
    let Step::Done((_, session)) = answer.read_server_info(&mut socket.stream).unwrap() else { panic!("cut") };
    let mut decoder: Decoder = session.decoder;

    // The largest packet in one message, beyond what stock servers take.
    let large = vec![7; 65_536];
    let mut frame = BytesMut::new();
    encoder::encode(&Frame::SendPacket { dst: stock_key, payload: large.clone().into() }, &mut frame);
    assert_eq!(frame.len(), 65_573);
    socket.send(0x82, &frame).await;
    assert_eq!(packet(&mut stock).await, (key, large.clone()));
    stock.sender().send(&key, &large).await.unwrap();
    let received = loop {
        match decoder.decode(&mut socket.stream).unwrap() {
            Some(Frame::RecvPacket { src, payload }) => break (src, payload),
            Some(_) => {}
            None => socket.receive().await,
        }
    };
    assert_eq!((received.0, &received.1[..]), (stock_key, &large[..]));

    // An orderly close is the end of the client, and is answered.
    socket.send(0x88, b"\x03\xe8").await;
    assert_eq!(socket.message().await, (0x88, b"\x03\xe8".to_vec()));
    assert_eq!(socket.io.read_to_end(&mut Vec::new()).await.unwrap_or(0), 0);
    assert_eq!(node.metric("causeway_derp_websocket_accepts_total").await, 1.0);
    drop(stock);
    node.stop().await;
}

#[tokio::test]
async fn a_websocket_that_is_none_of_ours_is_closed_with_its_code() {
    let home = Home::new();
    let node = home.start(&[]).await;
    let mut other = WebSocket::open(&node, "derpy").await;
    assert_eq!(other.message().await, (0x88, b"\x03\xf0".to_vec()));
    until_refused(&node, "plain_http", "websocket_subprotocol").await;
    assert_eq!(node.metric("causeway_derp_websocket_accepts_total").await, 0.0);
    let mut text = WebSocket::open(&node, "derp").await;
    assert_eq!(text.message().await.0, 0x82);
    text.send(0x81, b"hello").await;
    assert_eq!(text.message().await, (0x88, b"\x03\xeb".to_vec()));
    node.stop().await;
}

#[tokio::test]
async fn plain_http_redirects_strangers_and_serves_everything_where_tls_ends_in_front() {
    let home = Home::new();
    let sets = ["proxy_protocol.plain_http=['127.0.0.2']", "http.home=blank"];
    let node = start(&home, &sets, &[]).await;
    // Through a load balancer a client is a stranger, although the load balancer itself is on this machine.
    let header = b"PROXY TCP4 192.0.2.7 10.0.0.1 4660 80\r\n".to_vec();
    let answer = get(&balancer(header.clone(), &node.ready.plain_http).await.to_string(), "/derp/probe").await;
    assert!(answer.starts_with("HTTP/1.1 302 Found\r\n"), "{answer}");
    assert!(get(&node.ready.plain_http, "/").await.starts_with("HTTP/1.1 200 OK\r\n"));
    node.stop().await;

    let home = Home::new();
    let node = start(&home, &[sets[0], "derp.plain_http_serves_derp=true"], &[]).await;
    let at = balancer(header, &node.ready.plain_http).await.to_string();
    let answer = get(&at, "/derp/probe").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\nAccess-Control-Allow-Origin: *\r\n"), "{answer}");
    let mut stream = TcpStream::connect(&at).await.unwrap();
    // HTTP/1.0, another method, no `Connection`: all upgrade.
    assert!(Raw::log_in(&mut stream, "POST /derp HTTP/1.0\r\nUpgrade: dErP\r\n\r\n").await.is_some());
    drop(stream);
    node.stop().await;
}
