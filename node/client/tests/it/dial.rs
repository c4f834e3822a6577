//! How a server is found: the nodes of a region in order, names, both families.

use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use causeway_client::{ClientBuilder, ConfigError, ConnectError, Endpoint, NODE_DIAL_TIMEOUT};
use causeway_proto::derpmap::NodeAddress;
use causeway_proto::id::RegionId;
use causeway_proto::key::NodePrivate;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::server::{Ca, Fixture, Options, Server, map_of, refused_addr};

#[tokio::test]
async fn nobody_there_and_plain_http_beyond_loopback_are_told() {
    let f = Fixture::new(Options::default()).await;
    let addr = refused_addr().await;
    let error = f.try_connect(&f.builder().endpoint(Endpoint::at(addr, "relay.test"))).await.expect_err("nobody");
    assert!(matches!(error, ConnectError::Dial { addr: tried, .. } if tried == addr), "{error}");

    let far = "192.0.2.1:443".parse().expect("address");
    let error = f.try_connect(&f.builder().endpoint(Endpoint::at(far, "relay.test").plain())).await.expect_err("not loopback");
    assert!(matches!(error, ConnectError::PlainNotLoopback(addr) if addr == far), "{error}");

    let error = f.try_connect(&ClientBuilder::new(NodePrivate::generate())).await.expect_err("nowhere");
    assert!(matches!(error, ConnectError::Config(ConfigError::NoServer)) && error.is_permanent(), "{error}");
}

#[tokio::test]
async fn nodes_of_a_region_are_tried_in_order_and_a_substitute_is_told_the_ideal_node() {
    let ca = Ca::new();
    let mut first = Server::start(&ca, Options::default()).await;
    let mut second = Server::start(&ca, Options::default()).await;
    let (tasks, cancel) = (TaskTracker::new(), CancellationToken::new());
    let mut dead = first.node("dead", 1);
    dead.derp_port = refused_addr().await.port().into();
    let mut stun_only = first.node("stun only", 1);
    stun_only.stun_only = true;
    let builder = ClientBuilder::new(NodePrivate::generate()).trust(ca.trust());

    let map = map_of(vec![(1, vec![first.node("1a", 1), second.node("1b", 1)])]);
    let connection = builder.clone().region(map, RegionId(1)).connect(&tasks, &cancel).await.expect("first node");
    assert_eq!(connection.info().node, "1a");
    assert_eq!(first.accept().await.head.ideal_node(), None);

    let map = map_of(vec![(1, vec![dead, stun_only, second.node("1b", 1)])]);
    let connection = builder.clone().region(Arc::clone(&map), RegionId(1)).connect(&tasks, &cancel).await.expect("third node");
    assert_eq!(connection.info().node, "1b");
    assert_eq!(second.accept().await.head.ideal_node(), Some("dead"));

    // A node that refuses the login is passed over as well.
    first.refuse(true);
    let both = map_of(vec![(1, vec![first.node("1a", 1), second.node("1b", 1)])]);
    let connection = builder.clone().region(both, RegionId(1)).connect(&tasks, &cancel).await.expect("second node");
    assert_eq!(connection.info().node, "1b");

    let error = builder.clone().region(Arc::clone(&map), RegionId(7)).connect(&tasks, &cancel).await.expect_err("no region");
    assert!(matches!(error, ConnectError::Config(ConfigError::NoRegion(_))), "{error}");
    let error = builder.nearest(map).connect(&tasks, &cancel).await.expect_err("which?");
    assert!(matches!(error, ConnectError::Config(ConfigError::NearestNeedsClient)), "{error}");
}

#[tokio::test]
async fn a_family_that_does_not_connect_leaves_it_to_the_other() {
    let mut f = Fixture::new(Options::default()).await;
    let mut endpoint = f.server.endpoint();
    // Nobody listens there, or the host has no IPv6 at all: either way IPv4 follows.
    endpoint.ipv6 = NodeAddress::Fixed(Ipv6Addr::LOCALHOST);
    let builder = f.builder().endpoint(endpoint);
    let (connection, _session) = f.connect(&builder).await;
    assert_eq!(connection.info().remote_addr, f.server.addr);

    let mut nowhere = f.server.endpoint();
    nowhere.ipv4 = NodeAddress::Disabled;
    let error = f.try_connect(&f.builder().endpoint(nowhere)).await.expect_err("no family");
    assert!(matches!(error, ConnectError::NoFamily(_)), "{error}");
}

#[tokio::test]
async fn of_two_families_that_answer_ipv6_is_taken() {
    let Ok(v6) = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).await else {
        eprintln!("skipped: this host has no IPv6");
        return;
    };
    let port = v6.local_addr().expect("bound").port();
    let Ok(v4) = TcpListener::bind(("127.0.0.1", port)).await else {
        eprintln!("skipped: port {port} is taken on IPv4");
        return;
    };
    let f = Fixture::new(Options::default()).await;
    let mut endpoint = Endpoint::at(v4.local_addr().expect("bound"), "relay.test").plain();
    endpoint.ipv6 = NodeAddress::Fixed(Ipv6Addr::LOCALHOST);
    let (builder, tasks, cancel) = (f.builder().endpoint(endpoint), f.tasks.clone(), f.cancel.clone());
    f.tasks.spawn(async move { builder.connect(&tasks, &cancel).await.map(drop) });
    tokio::select! {
        biased;
        dialled = v4.accept() => panic!("IPv4 was not held back: {dialled:?}"),
        dialled = v6.accept() => drop(dialled.expect("accepts")),
    }
    f.cancel.cancel();
}

/// A port that neither answers nor refuses.
struct Silent {
    addr: SocketAddr,
    _full: TcpListener,
    _waiting: Vec<TcpStream>,
}

impl Silent {
    /// Fills the backlog of a listener: what comes then is dropped without a word. `None` where the address cannot be had.
    async fn at(addr: SocketAddr) -> Option<Self> {
        let socket = if addr.is_ipv6() { TcpSocket::new_v6() } else { TcpSocket::new_v4() }.ok()?;
        socket.bind(addr).ok()?;
        let full = socket.listen(0).ok()?;
        let (addr, mut waiting) = (full.local_addr().ok()?, Vec::new());
        while let Ok(connected) = timeout(NODE_DIAL_TIMEOUT, TcpStream::connect(addr)).await {
            waiting.push(connected.expect("no refusal"));
        }
        Some(Self { addr, _full: full, _waiting: waiting })
    }
}

#[tokio::test]
async fn a_silent_ipv6_address_costs_its_head_start_and_no_more() {
    let mut f = Fixture::new(Options::default()).await;
    let Some(_silent) = Silent::at((Ipv6Addr::LOCALHOST, f.server.addr.port()).into()).await else {
        eprintln!("skipped: this host has no IPv6, or the port is taken there");
        return;
    };
    let mut endpoint = f.server.endpoint();
    endpoint.ipv6 = NodeAddress::Fixed(Ipv6Addr::LOCALHOST);
    let builder = f.builder().endpoint(endpoint);
    let started = Instant::now();
    let (connection, _session) = f.connect(&builder).await;
    let took = started.elapsed();
    assert_eq!(connection.info().remote_addr, f.server.addr);
    // IPv4 is held back for 200 ms; a node has 1.5 s altogether.
    assert!((Duration::from_millis(200)..NODE_DIAL_TIMEOUT).contains(&took), "{took:?}");
}

#[tokio::test]
async fn a_silent_node_costs_its_time_and_then_the_next_gets_its_turn() {
    let mut f = Fixture::new(Options::default()).await;
    let silent = Silent::at(([127, 0, 0, 1], 0).into()).await.expect("loopback");
    let mut first = f.server.node("1a", 1);
    first.derp_port = silent.addr.port().into();
    let map = map_of(vec![(1, vec![first, f.server.node("1b", 1)])]);
    let builder = f.builder().region(map, RegionId(1));
    let started = Instant::now();
    let (connection, session) = f.connect(&builder).await;
    let took = started.elapsed();
    assert_eq!((connection.info().node.as_str(), session.head.ideal_node()), ("1b", Some("1a")));
    assert!((NODE_DIAL_TIMEOUT..2 * NODE_DIAL_TIMEOUT).contains(&took), "{took:?}");
}

#[tokio::test]
async fn a_name_is_looked_up() {
    let mut f = Fixture::new(Options { host_name: "localhost", ..Options::default() }).await;
    let builder = f.builder().endpoint(Endpoint::new(&format!("localhost:{}", f.server.addr.port())).expect("address"));
    let (connection, session) = f.connect(&builder).await;
    assert!(connection.info().remote_addr.ip().is_loopback());
    assert_eq!(session.head.header("Host"), Some(format!("localhost:{}", f.server.addr.port()).as_str()));

    // Longer than a label may be: refused without asking any DNS server.
    let impossible = "x".repeat(64);
    let builder = f.builder().endpoint(Endpoint::new(&format!("{impossible}:443")).expect("address"));
    let error = f.try_connect(&builder).await.expect_err("no such name");
    assert!(matches!(&error, ConnectError::Resolve { host, .. } if *host == impossible), "{error}");
}

#[tokio::test]
async fn a_fixed_address_needs_no_dns() {
    // As in a map with `IPv4` and a `HostName` that no DNS knows: IPv6 is left to DNS, which fails.
    let mut f = Fixture::new(Options { tls: false, ..Options::default() }).await;
    let mut endpoint = f.server.endpoint();
    endpoint.host_name = "x".repeat(64);
    endpoint.ipv6 = NodeAddress::Dns;
    let builder = f.builder().endpoint(endpoint.clone());
    let (connection, _session) = f.connect(&builder).await;
    assert_eq!(connection.info().remote_addr, f.server.addr);

    // And it is the fixed address that an error is about.
    endpoint.port = refused_addr().await.port();
    let error = f.try_connect(&f.builder().endpoint(endpoint)).await.expect_err("nobody there");
    assert!(matches!(error, ConnectError::Dial { .. }), "{error}");
}
