//! Who holds a key: one key in two places, a key that moves.

use std::time::Duration;

use anyhow::Context as _;
use causeway_rpc::v1::{GetNodeStatusRequest, WatchPresenceRequest};
use causeway_tests_integration::client::{SETTLE, TestClient, exchange_in_order};
use causeway_tests_integration::cluster::Cluster;
use causeway_tests_integration::logs::Expected;

/// How long one key stays connected in two regions: a clone alarm, the slowest thing that could go wrong, takes 30 s.
const SIDE_BY_SIDE: Duration = Duration::from_secs(32);
/// The same for `make soak`.
const SIDE_BY_SIDE_LONG: Duration = Duration::from_secs(120);
/// Set by `make soak`: tests that watch for something not to happen watch longer.
const LONG_VARIABLE: &str = "CAUSEWAY_LONG_TESTS";

/// What `of` published so far, as `observer` knows it.
async fn sequence(cluster: &Cluster, observer: &str, of: &str) -> anyhow::Result<u64> {
    let status = cluster.operator(observer).await?.get_node_status(GetNodeStatusRequest {}).await?.into_inner();
    let peer = status.peers.into_iter().find(|peer| peer.name == of);
    Ok(peer.with_context(|| format!("{observer} knows no {of}"))?.known_seq)
}

#[tokio::test(flavor = "multi_thread")]
async fn one_key_in_two_regions_is_served_locally_in_both_without_churn() -> anyhow::Result<()> {
    let cluster = Cluster::start(2, 1, &[]).await?;
    let mut home = TestClient::connect(&cluster, "a-1").await?;
    home.sender().note_preferred(true)?;
    let mut side = TestClient::connect_as(&cluster, "b-1", home.private()).await?;
    let near_home = TestClient::connect(&cluster, "a-1").await?;
    let near_side = TestClient::connect(&cluster, "b-1").await?;
    let key = home.key();
    cluster.wait_held(&["a-1"], key, "a-1", Duration::from_secs(5)).await?;
    cluster.wait_held(&["b-1"], key, "b-1", Duration::from_secs(5)).await?;
    tokio::time::sleep(SETTLE).await;

    let watch = WatchPresenceRequest { key: key.as_bytes().to_vec().into(), changes_only: true };
    let mut changes = cluster.operator("a-1").await?.watch_presence(watch).await?.into_inner();
    let before = [sequence(&cluster, "a-1", "b-1").await?, sequence(&cluster, "b-1", "a-1").await?];
    let long = std::env::var_os(LONG_VARIABLE).is_some();
    let end = tokio::time::Instant::now() + if long { SIDE_BY_SIDE_LONG } else { SIDE_BY_SIDE };
    let mut number = 0_u32;
    while tokio::time::Instant::now() < end {
        near_home.send(key, &number.to_be_bytes()).await?;
        near_side.send(key, &number.to_be_bytes()).await?;
        home.expect(near_home.key(), &number.to_be_bytes()).await?;
        side.expect(near_side.key(), &number.to_be_bytes()).await?;
        number += 1;
        // The pace of a client that talks; and any change of a claim would show here.
        let change = tokio::time::timeout(Duration::from_millis(100), changes.message()).await;
        if let Ok(change) = change {
            let change = change?.expect("the stream goes on");
            assert_eq!(change.change, "synced", "a claim changed while nothing happened: {change:?}");
        }
    }
    assert!(number > 20, "the test hardly ran: {number} rounds");
    assert!(home.health().is_empty() && side.health().is_empty(), "no alarm: {:?} {:?}", home.health(), side.health());

    for node in ["a-1", "b-1"] {
        let alarms = cluster.metrics(node).await?.sum("causeway_clients_clone_alarms_raised_total", &[]);
        assert_eq!(alarms, Some(0.0), "{node} raised an alarm");
    }
    let after = [sequence(&cluster, "a-1", "b-1").await?, sequence(&cluster, "b-1", "a-1").await?];
    assert_eq!(before, after, "claims were published anew while nothing happened");

    // A third region would prefer the home; here the claim of the home says so.
    let entry = cluster.presence("b-1", key).await?.expect("present");
    assert_eq!(entry.claims.len(), 2, "{entry:?}");
    assert!(entry.claims.iter().any(|claim| claim.node_name == "a-1" && claim.home), "{entry:?}");
    drop((home, side, near_home, near_side));
    cluster.finish(&["a-1", "b-1"], &Expected::default()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_moves_gets_every_packet_once() -> anyhow::Result<()> {
    let nodes = ["a-1", "b-1", "c-1"];
    let cluster = Cluster::start(3, 1, &[]).await?;
    let mut sender = TestClient::connect(&cluster, "c-1").await?;
    let mut before = TestClient::connect(&cluster, "a-1").await?;
    let key = before.key();
    tokio::time::sleep(SETTLE).await;
    sender.send(key, b"0").await?;
    before.expect(sender.key(), b"0").await?;

    let mut after = TestClient::connect_as(&cluster, "b-1", before.private()).await?;
    cluster.wait_held(&["c-1"], key, "b-1", Duration::from_secs(5)).await?;
    // As soon as the sender's node knows, packets go to the new place, each once.
    exchange_in_order(&mut sender, &mut after, 100).await?;
    assert_eq!(after.packet_within(Duration::from_millis(300)).await?, None, "nothing is doubled");
    assert_eq!(before.packet_within(Duration::from_millis(300)).await?, None, "nothing goes to the old place");

    before.close().await;
    sender.send(key, b"last").await?;
    after.expect(sender.key(), b"last").await?;
    drop((sender, after));
    cluster.finish(&nodes, &Expected::default()).await
}
