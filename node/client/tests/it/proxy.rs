//! Servers behind an HTTP proxy: a real one, which passes connections on, over TCP or TLS.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use causeway_client::{ClientBuilder, ClientEvent, ConnectError, Endpoint, Event, Proxy};
use causeway_proto::derp::frame::Frame;
use causeway_proto::derp::upgrade::RequestHead;
use causeway_proto::id::RegionId;
use causeway_proto::key::NodePrivate;
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::server::{Ca, Fixture, HOST_NAME, Options, map_of};

/// `user:pass word`
const AUTHORIZATION: &str = "Basic dXNlcjpwYXNzIHdvcmQ=";

/// Requests that wait for the test to look at them.
const ASKED_MAX: usize = 64;

/// A proxy whose "DNS" knows the test's host name under every port; it wants a password.
struct ConnectProxy {
    addr: SocketAddr,
    /// What it was asked to connect to, and its answer's status.
    asked: mpsc::Receiver<(String, u16)>,
    cancel: CancellationToken,
}

impl ConnectProxy {
    async fn start(tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (cancel, tasks) = (CancellationToken::new(), TaskTracker::new());
        let (note, asked) = mpsc::channel(ASKED_MAX);
        let accepting = {
            let (cancel, tasks) = (cancel.clone(), tasks.clone());
            async move {
                while let Ok((stream, _)) = listener.accept().await {
                    let (tls, note) = (tls.clone(), note.clone());
                    tasks.spawn(cancel.clone().run_until_cancelled_owned(async move {
                        match tls {
                            None => pass_on(stream, note).await,
                            Some(tls) => pass_on(tls.accept(stream).await.ok()?, note).await,
                        }
                    }));
                }
            }
        };
        tasks.spawn(cancel.clone().run_until_cancelled_owned(accepting));
        Self { addr, asked, cancel }
    }

    fn url(&self, scheme: &str) -> String {
        format!("{scheme}://user:pass%20word@{}", self.addr)
    }
}

impl Drop for ConnectProxy {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

async fn pass_on<S: AsyncRead + AsyncWrite + Unpin>(mut client: S, note: mpsc::Sender<(String, u16)>) -> Option<()> {
    let mut buffer = BytesMut::new();
    let head = loop {
        match RequestHead::take(&mut buffer).unwrap() {
            Some(head) => break head,
            None => assert!(client.read_buf(&mut buffer).await.ok()? > 0),
        }
    };
    assert_eq!(head.method, "CONNECT");
    let target = head.header("Host").unwrap().to_owned();
    let port: u16 = target.strip_prefix(HOST_NAME)?.strip_prefix(':')?.parse().unwrap();
    let (status, upstream) = if head.header("Proxy-Authorization") == Some(AUTHORIZATION) {
        match TcpStream::connect(("127.0.0.1", port)).await {
            Ok(upstream) => ("200 Connection established", Some(upstream)),
            Err(_) => ("502 Bad Gateway", None),
        }
    } else {
        ("407 Proxy Authentication Required", None)
    };
    note.send((target, status[..3].parse().unwrap())).await.ok()?;
    client.write_all(format!("HTTP/1.1 {status}\r\nVia: test\r\n\r\n").as_bytes()).await.ok()?;
    client.flush().await.ok()?;
    copy_bidirectional(&mut client, &mut upstream?).await.ok()?;
    Some(())
}

fn tls_of(ca: &Ca) -> TlsAcceptor {
    let (leaf, key) = ca.issue("127.0.0.1");
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf], PrivateKeyDer::try_from(key.serialize_der()).unwrap());
    TlsAcceptor::from(Arc::new(config.unwrap()))
}

/// To the server under a name that only the proxy can resolve: nothing gets there without it.
fn through(f: &Fixture, proxy: Proxy) -> ClientBuilder {
    let mut endpoint = Endpoint::new(&target(f)).unwrap();
    endpoint.name = "900a".to_owned();
    f.builder().endpoint(endpoint).proxy(proxy)
}

fn target(f: &Fixture) -> String {
    format!("{HOST_NAME}:{}", f.server.addr.port())
}

#[tokio::test]
async fn a_server_is_reached_through_a_proxy_over_tcp_and_over_tls() {
    for scheme in ["http", "https"] {
        let mut f = Fixture::new(Options::default()).await;
        let mut proxy = ConnectProxy::start((scheme == "https").then(|| tls_of(&f.ca))).await;
        let builder = through(&f, Proxy::new(&proxy.url(scheme)).unwrap());
        let mut connection = builder.connect(&f.tasks, &f.cancel).await.unwrap();
        let mut session = f.server.accept().await;
        assert_eq!(proxy.asked.recv().await, Some((target(&f), 200)));
        assert!(connection.info().fast_start && connection.info().remote_addr == proxy.addr);

        let key = NodePrivate::generate().public();
        let payload = Bytes::from(vec![7; 65_536]);
        connection.sender().send(&key, &payload).await.unwrap();
        assert_eq!(session.next().await, Some(Frame::SendPacket { dst: key, payload: payload.clone() }));
        session.send(Frame::RecvPacket { src: key, payload: payload.clone() }).await;
        assert_eq!(connection.recv().await.unwrap(), Event::Packet { src: key, payload });
    }
}

#[tokio::test]
async fn what_the_proxy_refuses_is_told_without_the_password() {
    let f = Fixture::new(Options::default()).await;
    let proxy = ConnectProxy::start(None).await;
    let connect = async |url: &str| {
        let error = through(&f, Proxy::new(url).unwrap()).connect(&f.tasks, &f.cancel).await.expect_err("refused");
        assert!(!error.to_string().contains("word"), "{error}");
        error
    };
    let error = connect(&format!("http://user:wrongword@{}", proxy.addr)).await;
    assert!(matches!(&error, ConnectError::Proxy { why, .. } if why == "HTTP status 407"), "{error}");
    assert!(error.to_string().contains(&proxy.addr.to_string()) && error.to_string().contains(&target(&f)), "{error}");

    let error = connect(&format!("http://{}", crate::server::refused_addr().await)).await;
    assert!(matches!(error, ConnectError::Dial { .. }), "{error}");
    // Its certificate is not for nothing.
    let stranger = ConnectProxy::start(Some(tls_of(&Ca::new()))).await;
    let error = connect(&stranger.url("https")).await;
    assert!(matches!(&error, ConnectError::Tls { server_name, .. } if server_name == "127.0.0.1"), "{error}");
    // Something that is no proxy.
    let error = connect(&format!("http://{}", f.server.addr)).await;
    assert!(matches!(error, ConnectError::Proxy { .. }), "{error}");
}

#[tokio::test]
async fn a_server_that_is_not_behind_the_proxy_is_dialled_directly() {
    let mut f = Fixture::new(Options::default()).await;
    let mut proxy = ConnectProxy::start(None).await;
    let bypassed = Proxy::new(&proxy.url("http")).unwrap().bypassed_for("other.test, .test");
    let direct = through(&f, bypassed).endpoint(f.server.endpoint());
    let connection = direct.connect(&f.tasks, &f.cancel).await.unwrap();
    assert_eq!(connection.info().remote_addr, f.server.addr);
    f.server.accept().await;
    assert!(proxy.asked.try_recv().is_err());
}

#[tokio::test]
async fn where_udp_does_not_pass_regions_are_measured_and_homes_found_through_the_proxy() {
    let mut f = Fixture::new(Options { stun: false, ..Options::default() }).await;
    let mut proxy = ConnectProxy::start(None).await;
    let mut node = f.server.node("1a", 1);
    // Only the proxy gets there: nobody listens at the address, STUN is off.
    (node.ipv4, node.stun_port) = ("127.0.0.2".to_owned(), -1);
    let mut nowhere = node.clone();
    (nowhere.name, nowhere.region_id, nowhere.derp_port) =
        ("2a".to_owned(), RegionId(2), crate::server::refused_addr().await.port().into());
    let map = map_of(vec![(1, vec![node]), (2, vec![nowhere])]);
    let builder = ClientBuilder::new(NodePrivate::generate()).trust(f.ca.trust()).nearest(map);
    let mut client = builder.proxy(Proxy::new(&proxy.url("http")).unwrap()).start(&f.tasks, &f.cancel).unwrap();
    let Some(ClientEvent::HomeChanged { to, latency: Some(_), .. }) = client.recv().await else { panic!("no home") };
    assert_eq!(to, RegionId(1));
    assert!(matches!(client.recv().await, Some(ClientEvent::Connected { region: Some(RegionId(1)), .. })));
    f.server.accept().await;
    let mut asked = Vec::new();
    while let Ok((wanted, status)) = proxy.asked.try_recv() {
        asked.push((wanted == target(&f), status));
    }
    asked.sort_unstable();
    assert_eq!(asked, [(false, 502), (true, 200), (true, 200)], "one measurement each, one connection");
    drop(client);
    f.tasks.close();
    tokio::time::timeout(Duration::from_secs(5), f.tasks.wait()).await.expect("nothing left");
}
