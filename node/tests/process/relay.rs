//! One node relays between real clients.

use std::sync::Arc;
use std::time::Duration;

use causeway_client::{ClientBuilder, Connection, Endpoint, Event};
use causeway_proto::key::{NodePrivate, NodePublic};
use causeway_proto::stun::message::{binding_request, parse_binding_response};
use tokio::net::UdpSocket;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::harness::{DEADLINE, Home, Node, get};

/// A client of the node; certificates are not what these tests are about.
pub(crate) async fn client(node: &Node, plain: bool) -> (Connection, NodePublic) {
    let key = NodePrivate::generate();
    let mut endpoint = Endpoint::new(if plain { &node.ready.plain_http } else { &node.ready.derp }).unwrap();
    endpoint.insecure_for_tests = true;
    endpoint.plain = plain;
    let builder = ClientBuilder::new(key.clone()).endpoint(endpoint);
    (builder.connect(&TaskTracker::new(), &CancellationToken::new()).await.unwrap(), key.public())
}

/// The next packet, whatever else comes before it.
pub(crate) async fn packet(connection: &mut Connection) -> (NodePublic, Vec<u8>) {
    let next = async {
        loop {
            if let Event::Packet { src, payload } = connection.recv().await.unwrap() {
                return (src, payload.to_vec());
            }
        }
    };
    timeout(DEADLINE, next).await.expect("a packet")
}

#[tokio::test]
async fn clients_over_tls_and_over_plain_loopback_exchange_packets() {
    let home = Home::new();
    let node = home.start(&[]).await;
    let (mut over_tls, a) = client(&node, false).await;
    let (mut over_plain, b) = client(&node, true).await;
    assert!(over_tls.info().fast_start && !over_plain.info().fast_start);
    assert_eq!(over_tls.info().server_key.to_untyped_hex(), node.ready.derp_public_key);
    assert_eq!(over_plain.info().server_key, over_tls.info().server_key);

    over_tls.sender().send(&b, b"there").await.unwrap();
    assert_eq!(packet(&mut over_plain).await, (a, b"there".to_vec()));
    let large = vec![7; 65_536];
    over_plain.sender().send(&a, &large).await.unwrap();
    assert_eq!(packet(&mut over_tls).await, (b, large));
    over_tls.sender().send(&a, b"to oneself").await.unwrap();
    assert_eq!(packet(&mut over_tls).await, (a, b"to oneself".to_vec()));

    // The books balance.
    node.until_metric("causeway_packets_delivered_total", |delivered| delivered == 3.0).await;
    assert_eq!(node.metric("causeway_packets_accepted_total").await, 3.0);
    assert_eq!(node.metric("causeway_packets_dropped_total").await, 0.0);
    assert_eq!(node.metric("causeway_process_panics_total").await, 0.0);
    drop((over_tls, over_plain));
    node.stop().await;
}

/// What a stock prober does, and counts any loss as a failure (`derp.md` section 17).
#[tokio::test]
async fn twenty_megabytes_pass_in_order_with_thirty_large_packets_under_way() {
    const IN_FLIGHT: usize = 30;
    let (len, packets) = (65_536, 20_000_000u32.div_ceil(65_536));
    let home = Home::new();
    // The rate of a key is another matter.
    let node = home.start(&["--set", "limits.key_rate_bits_per_second=0"]).await;
    let ((from, a), (mut to, b)) = (client(&node, false).await, client(&node, false).await);
    let window = Arc::new(Semaphore::new(IN_FLIGHT));
    let sending = {
        let (sender, window) = (from.sender(), Arc::clone(&window));
        async move {
            for n in 0..packets {
                window.acquire().await.unwrap().forget();
                let mut payload = vec![1; len];
                payload[..4].copy_from_slice(&n.to_be_bytes());
                sender.send(&b, &payload).await.unwrap();
            }
        }
    };
    let receiving = async {
        // None is read until all that may be under way is sent.
        while window.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        for n in 0..packets {
            let (src, payload) = packet(&mut to).await;
            assert_eq!((src, payload.len(), &payload[..4]), (a, len, &n.to_be_bytes()[..]));
            window.add_permits(1);
        }
    };
    tokio::join!(sending, receiving);
    assert_eq!(node.metric("causeway_packets_dropped_total").await, 0.0);
    drop((from, to));
    node.stop().await;
}

#[tokio::test]
async fn clients_are_told_when_the_node_goes() {
    let home = Home::new();
    let node = home.start(&[]).await;
    let (mut connection, _) = client(&node, false).await;
    node.stop().await;
    let mut told = None;
    let going = async {
        while let Ok(event) = connection.recv().await {
            if let Event::Restarting { reconnect_in, try_for } = event {
                told = Some((reconnect_in, try_for));
            }
        }
    };
    timeout(DEADLINE, going).await.expect("the connection ends");
    let (reconnect_in, try_for) = told.expect("told before the end");
    assert!(reconnect_in < Duration::from_secs(1) && try_for == Duration::from_secs(10));
}

#[tokio::test]
async fn the_other_doors_answer() {
    let home = Home::new();
    let node = home.start(&[]).await;
    // A standalone node leads itself soon, and then lists itself.
    let map = async {
        loop {
            let answer = get(&node.ready.plain_http, "/derpmap").await;
            if answer.contains("\"HostName\":\"localhost\"") {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let map = timeout(DEADLINE, map).await.expect("a map with this node");
    let port = node.ready.derp.rsplit(':').next().unwrap();
    assert!(map.contains(&format!("\"DERPPort\":{port}")) && map.contains("\"RegionID\":901"), "{map}");
    node.until_ready().await;

    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(&binding_request(&[3; 12]), &node.ready.stun).await.unwrap();
    let mut answer = [0; 64];
    let len = timeout(DEADLINE, socket.recv(&mut answer)).await.expect("an answer").unwrap();
    assert_eq!(parse_binding_response(&answer[..len]), Ok(([3; 12], socket.local_addr().unwrap())));
    node.stop().await;
}
