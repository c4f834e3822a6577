//! Packets between nodes and regions.

use std::time::{Duration, Instant};

use anyhow::ensure;
use causeway_tests_integration::client::{SETTLE, TestClient, exchange_all, exchange_in_order};
use causeway_tests_integration::cluster::{Cluster, wait_for};
use causeway_tests_integration::logs::Expected;
use causeway_tests_integration::proxy::MeshProxies;
use tokio_util::sync::CancellationToken;

const NODES: [&str; 6] = ["a-1", "a-2", "b-1", "b-2", "c-1", "c-2"];

#[tokio::test(flavor = "multi_thread")]
async fn every_node_reaches_every_node_right_after_login() -> anyhow::Result<()> {
    let cluster = Cluster::start(3, 2, &[]).await?;
    for round in 0..5 {
        let mut clients = Vec::new();
        for node in NODES {
            clients.push(TestClient::connect(&cluster, node).await?);
        }
        exchange_all(&mut clients, &format!("round {round}")).await?;
        for client in clients {
            client.close().await;
        }
    }
    let accounts = cluster.wait_balanced(&NODES).await?;
    let accepted: f64 = accounts.iter().map(|account| account.accepted).sum();
    // 5 rounds of 30 packets, each accepted once at its origin and once at its target.
    assert!(accepted >= 300.0, "only {accepted} packets were seen");
    cluster.finish(&NODES, &Expected::default()).await
}

/// Sends until a packet arrives, then takes in what is still under way.
async fn find_way_round(from: &TestClient, to: &mut TestClient) -> anyhow::Result<()> {
    wait_for("a packet to find its way round the cut link", Duration::from_secs(10), async || {
        from.send(to.key(), b"round").await?;
        Ok(to.packet_within(Duration::from_millis(200)).await?.map(drop))
    })
    .await?;
    while to.packet_within(Duration::from_millis(500)).await?.is_some() {}
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn traffic_of_a_cut_link_passes_a_third_node_in_order() -> anyhow::Result<()> {
    let nodes = ["a-1", "b-1", "c-1"];
    let cluster = Cluster::start(3, 1, &[]).await?;
    let proxies = MeshProxies::interpose(&cluster).await?;
    let mut alice = TestClient::connect(&cluster, "a-1").await?;
    let mut bob = TestClient::connect(&cluster, "b-1").await?;
    tokio::time::sleep(SETTLE).await;
    alice.send(bob.key(), b"direct").await?;
    bob.expect(alice.key(), b"direct").await?;

    proxies.cut("a-1", "b-1").await;
    // Until both ends know, packets on the cut link may be lost; afterwards none is.
    find_way_round(&alice, &mut bob).await?;
    find_way_round(&bob, &mut alice).await?;
    let passed_on =
        async || anyhow::Ok(cluster.metrics("c-1").await?.sum("causeway_router_transit_packets_total", &[]).unwrap_or(0.0));
    let before = passed_on().await?;
    exchange_in_order(&mut alice, &mut bob, 200).await?;
    exchange_in_order(&mut bob, &mut alice, 200).await?;
    let transit = passed_on().await? - before;
    assert!((transit - 400.0).abs() < 0.5, "the third node passed on {transit} of 400 packets");
    // b-1 cannot reach the origin itself either.
    for asked in ["a-1", "b-1", "c-1"] {
        let trace = cluster.causeway_json(asked, &["trace", &alice.key().to_text(), &bob.key().to_text()]).await?;
        assert!(
            trace["delivered"] == true && trace.to_string().contains("c-1"),
            "{asked} does not name the node on the way: {trace}"
        );
    }

    proxies.mend().await;
    cluster.wait_healthy("a-1", Duration::from_secs(20)).await?;
    alice.send(bob.key(), b"direct again").await?;
    bob.expect(alice.key(), b"direct again").await?;
    drop((alice, bob));
    cluster.finish(&nodes, &Expected::default()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_stops_reading_is_cut_and_costs_nobody_else_a_packet() -> anyhow::Result<()> {
    /// The sender's pace: far above what an unread connection takes, far below what the link does.
    const PACE: Duration = Duration::from_millis(2);

    let cluster = Cluster::start(2, 1, &[]).await?;
    let flooder = TestClient::connect(&cluster, "a-1").await?;
    // Nobody ever looks for its packets.
    let stuck = TestClient::connect(&cluster, "b-1").await?;
    let mut alice = TestClient::connect(&cluster, "a-1").await?;
    let mut bob = TestClient::connect(&cluster, "b-1").await?;
    tokio::time::sleep(SETTLE).await;

    let stalled = async || {
        anyhow::Ok(cluster.metrics("b-1").await?.sum("causeway_derp_connections_ended_total", &[("reason", "write_stalled")]))
    };
    let large = vec![1; 60_000];
    let stop = CancellationToken::new();
    let flood = async {
        while !stop.is_cancelled() {
            flooder.send(stuck.key(), &large).await?;
            tokio::time::sleep(PACE).await;
        }
        anyhow::Ok(())
    };
    let others = async {
        let _stop = stop.clone().drop_guard();
        // Over the same link and from the same nodes, before, while and after the connection is cut.
        let end = Instant::now() + Duration::from_secs(30);
        while stalled().await?.unwrap_or(0.0) < 1.0 {
            ensure!(Instant::now() < end, "a client that reads nothing stays connected");
            exchange_in_order(&mut alice, &mut bob, 50).await?;
            exchange_in_order(&mut bob, &mut alice, 50).await?;
        }
        exchange_in_order(&mut alice, &mut bob, 200).await
    };
    let (flooded, exchanged) = tokio::join!(flood, others);
    exchanged?;
    flooded?;
    let dropped = cluster.metrics("b-1").await?.sum("causeway_packets_dropped_total", &[("reason", "queue_head")]);
    ensure!(dropped.is_some_and(|dropped| dropped > 0.0), "the oldest of its packets were dropped and counted: {dropped:?}");
    drop((flooder, stuck, alice, bob));
    cluster.finish(&["a-1", "b-1"], &Expected::default()).await
}
