//! One key on two machines that both call their node home: a copied disk image, say.

use std::time::Duration;

use anyhow::ensure;
use causeway_tests_integration::client::TestClient;
use causeway_tests_integration::cluster::Cluster;
use causeway_tests_integration::logs::Expected;

/// The alarm takes 30 s of both being alive, and each look at them 5 s.
const ALARM_DEADLINE: Duration = Duration::from_secs(60);

/// Waits until the client was told of a problem, or that it is over.
async fn told(client: &mut TestClient, count: usize) -> anyhow::Result<String> {
    let deadline = tokio::time::Instant::now() + ALARM_DEADLINE;
    while client.health().len() < count {
        ensure!(tokio::time::Instant::now() < deadline, "{} was told nothing", client.node());
        // Answers the pings of its node on the way.
        let packet = client.packet_within(Duration::from_millis(500)).await?;
        ensure!(packet.is_none(), "nobody sends anything");
    }
    Ok(client.health()[count - 1].clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn both_copies_of_a_machine_are_told_and_the_one_that_stays_is_healthy_again() -> anyhow::Result<()> {
    let cluster = Cluster::start(2, 1, &[]).await?;
    let mut original = TestClient::connect(&cluster, "a-1").await?;
    let mut copy = TestClient::connect_as(&cluster, "b-1", original.private()).await?;
    original.sender().note_preferred(true)?;
    copy.sender().note_preferred(true)?;
    let (at_original, at_copy) = tokio::join!(told(&mut original, 1), told(&mut copy, 1));
    let (at_original, at_copy) = (at_original?, at_copy?);
    ensure!(!at_original.is_empty() && at_original == at_copy, "{at_original:?} {at_copy:?}");
    for node in ["a-1", "b-1"] {
        let alarms = cluster.metrics(node).await?.sum("causeway_clients_clone_alarms", &[]);
        assert_eq!(alarms, Some(1.0), "{node}");
    }
    drop(copy);
    ensure!(told(&mut original, 2).await?.is_empty(), "healthy again");
    let metrics = cluster.metrics("a-1").await?;
    assert_eq!(metrics.sum("causeway_clients_clone_alarms", &[]), Some(0.0));
    assert_eq!(metrics.sum("causeway_clients_clone_alarms_raised_total", &[]), Some(1.0));
    drop(original);
    cluster.finish(&["a-1", "b-1"], &Expected::default().line("clone alarm")).await
}
