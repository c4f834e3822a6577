//! Keeps one watch follower running for every other node of the node set.

use std::collections::BTreeMap;
use std::sync::Arc;

use causeway_proto::id::NodeId;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::discovery::NodeSet;
use crate::presence::PresenceView;
use crate::watch::Follower;

struct Following {
    addr: String,
    wake: Arc<Notify>,
    cancel: CancellationToken,
}

/// Starts and ends followers as nodes come and go, and tells the view their regions.
pub(crate) async fn follow_all(
    follower: Arc<Follower>,
    view: Arc<PresenceView>,
    mut nodes: watch::Receiver<Arc<NodeSet>>,
    tracker: TaskTracker,
    cancel: CancellationToken,
) {
    let mut following: BTreeMap<NodeId, Following> = BTreeMap::new();
    loop {
        let set = Arc::clone(&nodes.borrow_and_update());
        following.retain(|node, task| {
            let stays = set.get(*node).is_some();
            if !stays {
                task.cancel.cancel();
            }
            stays
        });
        for node in set.iter() {
            view.set_region(node.id(), node.region_id());
        }
        for node in set.others() {
            let addr = &node.record.mesh_addr;
            if let Some(task) = following.get_mut(&node.id()) {
                if task.addr != *addr {
                    task.addr.clone_from(addr);
                    task.wake.notify_one();
                }
                continue;
            }
            let task = Following { addr: addr.clone(), wake: Arc::default(), cancel: cancel.child_token() };
            tracker.spawn(Arc::clone(&follower).run(node.id(), Arc::clone(&task.wake), task.cancel.clone()));
            following.insert(node.id(), task);
        }
        match cancel.run_until_cancelled(nodes.changed()).await {
            Some(Ok(())) => {}
            _ => return,
        }
    }
}
