//! DERP on one node: what two clients of the same node may expect.

use std::time::Duration;

use causeway_proto::derp::frame::PeerGoneReason;
use causeway_proto::key::NodePrivate;
use causeway_tests_integration::client::{TestClient, exchange_in_order};
use causeway_tests_integration::cluster::Cluster;
use causeway_tests_integration::logs::Expected;
use causeway_tests_integration::metrics::http_status;

#[tokio::test(flavor = "multi_thread")]
async fn two_clients_of_one_node_talk() -> anyhow::Result<()> {
    let cluster = Cluster::start(1, 1, &[]).await?;
    let mut alice = TestClient::connect(&cluster, "a-1").await?;
    let mut bob = TestClient::connect(&cluster, "a-1").await?;
    assert!(alice.sender().info().fast_start, "the server's key comes with the TLS handshake");
    assert_eq!(alice.sender().info().server_key.to_untyped_hex(), cluster.node("a-1").derp_public_key);

    alice.send(bob.key(), b"hello").await?;
    bob.expect(alice.key(), b"hello").await?;
    bob.send(alice.key(), b"").await?;
    alice.expect(bob.key(), b"").await?;
    let large = vec![7; 1 << 16];
    bob.send(alice.key(), &large).await?;
    alice.expect(bob.key(), &large).await?;
    alice.send(alice.key(), b"myself").await?;
    alice.expect(alice.key(), b"myself").await?;
    assert!(alice.ping().await? < Duration::from_secs(5));

    // Order is kept within a pair.
    exchange_in_order(&mut alice, &mut bob, 500).await?;

    let bob_key = bob.key();
    bob.close().await;
    assert_eq!(alice.expect_gone(bob_key, Duration::from_secs(5)).await?, PeerGoneReason::Disconnected);
    cluster.finish(&["a-1"], &Expected::default()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_absent_peer_is_reported_to_who_looks_for_it_and_counted() -> anyhow::Result<()> {
    let cluster = Cluster::start(1, 1, &[]).await?;
    let mut alice = TestClient::connect(&cluster, "a-1").await?;
    let absent = NodePrivate::generate().public();
    // The magic of Tailscale's disco messages, and room for its key and nonce.
    let disco = [&b"TS\xf0\x9f\x92\xac"[..], &[1; 80]].concat();
    alice.send(absent, &disco).await?;
    assert_eq!(alice.expect_gone(absent, Duration::from_secs(5)).await?, PeerGoneReason::NotHere);
    let dropped = cluster.metrics("a-1").await?.sum("causeway_packets_dropped_total", &[("reason", "unknown_dest")]);
    assert_eq!(dropped, Some(1.0));
    cluster.finish(&["a-1"], &Expected::default()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_are_answered_and_nonsense_closes_only_its_own_connection() -> anyhow::Result<()> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    let cluster = Cluster::start(1, 1, &[]).await?;
    let node = cluster.node("a-1").clone();
    let mut alice = TestClient::connect(&cluster, "a-1").await?;
    assert_eq!(http_status(&format!("http://{}/generate_204", node.plain_http)).await?.0, 204);
    let metrics_base = node.metrics.trim_end_matches("/metrics");
    assert_eq!(http_status(&format!("{metrics_base}/healthz")).await?.0, 200);
    assert_eq!(http_status(&format!("{metrics_base}/readyz")).await?.0, 200);

    for address in [&node.derp, &node.plain_http] {
        let mut stream = tokio::net::TcpStream::connect(address).await?;
        stream.write_all(&[0xff; 4096]).await?;
        let mut answer = Vec::new();
        let read = tokio::time::timeout(Duration::from_secs(15), stream.read_to_end(&mut answer)).await;
        // Closed in good order or reset: either ends it.
        drop(read.expect("nonsense must not keep a connection open"));
    }
    alice.send(alice.key(), b"still here").await?;
    alice.expect(alice.key(), b"still here").await?;
    cluster.finish(&["a-1"], &Expected::default()).await
}
