//! While this node leads: makes Raft learners of admitted nodes and removes evicted ones.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use causeway_proto::id::NodeId;
use tokio_util::sync::CancellationToken;

use super::Fleet;

/// Between looks at who is a member but should not be, or the reverse.
const CHECK_INTERVAL: Duration = Duration::from_millis(200);

/// Keeps Raft's members in step with the admitted nodes, one change at a time.
pub(crate) async fn keep_members(fleet: Arc<Fleet>, cancel: CancellationToken) {
    let mut ticks = tokio::time::interval(CHECK_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while cancel.run_until_cancelled(ticks.tick()).await.is_some() {
        if !fleet.consensus.is_leader() {
            continue;
        }
        let (admitted, evicted): (BTreeSet<NodeId>, BTreeSet<NodeId>) = fleet
            .consensus
            .machine()
            .read(|state| (state.fleet.nodes.keys().copied().collect(), state.fleet.evicted.keys().copied().collect()));
        let members: BTreeSet<NodeId> = fleet.consensus.group().members;
        if let Some(node) = evicted.intersection(&members).next() {
            report(*node, "remove", fleet.consensus.remove_member(*node).await);
        } else if let Some(node) = admitted.difference(&members).next() {
            report(*node, "add as learner", fleet.consensus.add_learner(*node).await);
        }
    }
}

fn report(node: NodeId, what: &str, done: Result<(), crate::raft::NotDone>) {
    match done {
        Ok(()) => tracing::info!(%node, what, "changed raft's members"),
        Err(error) => tracing::debug!(%node, what, %error, "could not change raft's members; trying again"),
    }
}
