//! What is counted about stock derpers that watch.

use super::*;
use crate::telemetry::exporter::{Exporter, registry};

/// Sum and count of one of the door's histograms.
fn histogram(node: &TestNode, name: &str) -> (f64, f64) {
    let mut registry = registry();
    node.server.metrics().register(&mut registry);
    let text = Exporter::new(registry).text().unwrap();
    let value = |suffix| {
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name}_{suffix} ")));
        line.unwrap().parse().unwrap()
    };
    (value("sum"), value("count"))
}

#[tokio::test]
async fn changes_that_watchers_are_told_are_counted_by_write_and_by_burst() {
    let node = TestNode::start().await;
    let (client, mut stock) = (node.client().await, node.mesh_peer().await);
    stock.send(&Frame::WatchConns).await;
    for _ in 0..2 {
        assert!(matches!(stock.next().await, Some(Frame::PeerPresent { .. })));
    }
    node.until("the flood to be over", |node| histogram(node, "causeway_derp_mesh_update_batches").1 == 1.0).await;
    let key = client.key;
    drop(client);
    assert_eq!(stock.next().await, Some(Frame::PeerGone { peer: key, reason: PeerGoneReason::Disconnected }));
    node.until("the departure to be told", |node| histogram(node, "causeway_derp_mesh_update_batches").1 == 2.0).await;
    // An answer is no change.
    stock.send(&Frame::SendPacket { dst: key, payload: disco() }).await;
    assert_eq!(stock.next().await, Some(Frame::PeerGone { peer: key, reason: PeerGoneReason::NotHere }));
    let (changes, writes) = histogram(&node, "causeway_derp_mesh_update_batch_changes");
    assert!(changes == 3.0 && (2.0..=3.0).contains(&writes), "{changes} changes in {writes} writes");
    assert_eq!(histogram(&node, "causeway_derp_mesh_update_batches").0, writes);
}
