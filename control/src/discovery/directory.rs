//! Merges what nodes say of themselves with what the fleet has admitted into the [`NodeSet`] that the rest of the node follows.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use causeway_proto::id::NodeId;
use causeway_rpc::v1;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::{NodeEntry, NodeSet};
use crate::presence::OWNERS_MAX;
use crate::raft::fleet_state::check_record;
use crate::raft::state_machine::FleetView;

/// A node that the fleet has not admitted is forgotten when it was not heard for so long.
const SILENT_MAX: Duration = Duration::from_secs(60);

/// The only writer of the node set.
#[derive(Debug)]
pub(crate) struct Directory {
    own: v1::NodeRecord,
    state: Mutex<State>,
    nodes: watch::Sender<Arc<NodeSet>>,
}

#[derive(Debug, Default)]
struct State {
    /// What nodes said of themselves since the fleet last changed their record: the fresher of the two stands.
    introduced: BTreeMap<NodeId, Introduced>,
    fleet: Arc<FleetView>,
}

#[derive(Debug)]
struct Introduced {
    record: v1::NodeRecord,
    /// When it last proved to be there; of one that others named: since then.
    heard_at: Instant,
    /// Never over a connection that proved the node.
    hearsay: bool,
}

impl Directory {
    pub(crate) fn new(own: v1::NodeRecord) -> Self {
        let entry = NodeEntry { record: own.clone(), admitted: false, fenced: false };
        let nodes = watch::Sender::new(Arc::new(NodeSet::new(NodeId(own.node_id), [entry])));
        Self { own, state: Mutex::default(), nodes }
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<Arc<NodeSet>> {
        self.nodes.subscribe()
    }

    pub(crate) fn nodes(&self) -> Arc<NodeSet> {
        Arc::clone(&self.nodes.borrow())
    }

    /// Takes note of a node that introduced itself, or was named by another.
    ///
    /// `by_itself`: over a connection that proved the node; only such a record replaces a known one.
    ///
    /// # Errors
    /// A sentence naming the field that is malformed.
    pub(crate) fn introduce(&self, record: v1::NodeRecord, by_itself: bool, now: Instant) -> Result<NodeId, &'static str> {
        let id = check_record(&record)?;
        if id.0 == self.own.node_id {
            return Ok(id);
        }
        let mut state = self.state.lock();
        if by_itself && let Some(node) = state.introduced.get_mut(&id) {
            (node.heard_at, node.hearsay) = (now, false);
        }
        let admitted = state.fleet.fleet.nodes.get(&id);
        let known = state.introduced.get(&id).map(|node| &node.record).or(admitted);
        if known == Some(&record) || (known.is_some() && !by_itself) || state.fleet.fleet.evicted.contains_key(&id) {
            return Ok(id);
        }
        if known.is_none() && state.introduced.len() + state.fleet.fleet.nodes.len() >= OWNERS_MAX {
            return Err("no more nodes can be remembered");
        }
        state.introduced.insert(id, Introduced { record, heard_at: now, hearsay: !by_itself });
        self.publish(&state);
        Ok(id)
    }

    /// Takes note that a node answered over a connection that proved it.
    pub(crate) fn heard(&self, id: NodeId, now: Instant) {
        if let Some(node) = self.state.lock().introduced.get_mut(&id) {
            (node.heard_at, node.hearsay) = (now, false);
        }
    }

    /// Forgets nodes that the fleet has not admitted and that were not heard for [`SILENT_MAX`].
    pub(crate) fn forget_silent(&self, now: Instant) {
        let mut state = self.state.lock();
        let State { introduced, fleet } = &mut *state;
        let before = introduced.len();
        introduced
            .retain(|id, node| fleet.fleet.nodes.contains_key(id) || now.saturating_duration_since(node.heard_at) < SILENT_MAX);
        if introduced.len() != before {
            self.publish(&state);
        }
    }

    /// At most `max` other nodes that may be named to peers: those that the fleet admitted or that were heard here. Hearsay is not
    /// passed on: nodes would keep reminding each other of one that has gone.
    pub(crate) fn named_to_peers(&self, max: usize) -> Vec<v1::NodeRecord> {
        let state = self.state.lock();
        let nodes = self.nodes();
        let hearsay = |node: &NodeEntry| !node.admitted && state.introduced.get(&node.id()).is_some_and(|node| node.hearsay);
        nodes.others().filter(|node| !hearsay(node)).take(max).map(|node| node.record.clone()).collect()
    }

    /// Forgets a node that turned out to belong to another fleet.
    pub(crate) fn forget(&self, id: NodeId) {
        let mut state = self.state.lock();
        if state.introduced.remove(&id).is_some() {
            self.publish(&state);
        }
    }

    /// Takes over what Raft has.
    pub(crate) fn update(&self, fleet: Arc<FleetView>) {
        let mut state = self.state.lock();
        let before = std::mem::replace(&mut state.fleet, fleet);
        let State { introduced, fleet } = &mut *state;
        introduced.retain(|id, _| {
            let changed = fleet.fleet.nodes.get(id) != before.fleet.nodes.get(id);
            !changed && !fleet.fleet.evicted.contains_key(id)
        });
        self.publish(&state);
    }

    fn publish(&self, state: &State) {
        let mut records: BTreeMap<NodeId, &v1::NodeRecord> =
            state.fleet.fleet.nodes.iter().map(|(id, record)| (*id, record)).collect();
        records.extend(state.introduced.iter().map(|(id, node)| (*id, &node.record)));
        records.insert(NodeId(self.own.node_id), &self.own);
        let nodes = records.into_iter().map(|(id, record)| NodeEntry {
            record: record.clone(),
            admitted: state.fleet.fleet.nodes.contains_key(&id),
            fenced: state.fleet.fenced.contains(&id),
        });
        let set = NodeSet::new(NodeId(self.own.node_id), nodes);
        self.nodes.send_if_modified(|current| {
            let changed = **current != set;
            if changed {
                *current = Arc::new(set);
            }
            changed
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::fleet_state::{FleetState, sample_record};

    fn view(records: &[v1::NodeRecord]) -> Arc<FleetView> {
        let nodes = records.iter().map(|record| (NodeId(record.node_id), record.clone())).collect();
        Arc::new(FleetView { fleet: Arc::new(FleetState { nodes, ..FleetState::default() }), ..FleetView::default() })
    }

    fn addr_of(directory: &Directory, record: &v1::NodeRecord) -> String {
        directory.nodes().get(NodeId(record.node_id)).map(|node| node.record.mesh_addr.clone()).unwrap_or_default()
    }

    #[test]
    fn the_fresher_record_stands_and_hearsay_replaces_nothing() {
        let directory = Directory::new(sample_record("a1", 1));
        let old = sample_record("b1", 2);
        let moved = v1::NodeRecord { mesh_addr: "127.0.0.1:2".to_owned(), ..old.clone() };
        directory.update(view(std::slice::from_ref(&old)));
        directory.introduce(moved.clone(), false, Instant::now()).expect("well formed");
        assert_eq!(addr_of(&directory, &old), "127.0.0.1:1");
        directory.introduce(moved, true, Instant::now()).expect("well formed");
        assert_eq!(addr_of(&directory, &old), "127.0.0.1:2");
        let again = v1::NodeRecord { mesh_addr: "127.0.0.1:3".to_owned(), ..old.clone() };
        directory.update(view(&[again]));
        assert_eq!(addr_of(&directory, &old), "127.0.0.1:3");
        assert_eq!(directory.nodes().len(), 2);
    }

    #[test]
    fn nobody_else_can_change_the_own_record() {
        let directory = Directory::new(sample_record("a1", 1));
        let forged = v1::NodeRecord { name: "other".to_owned(), ..sample_record("a1", 1) };
        directory.introduce(forged.clone(), true, Instant::now()).expect("well formed");
        directory.update(view(&[forged]));
        let nodes = directory.nodes();
        assert_eq!(nodes.get(nodes.own()).map(|node| node.record.name.as_str()), Some("a1"));
    }

    #[test]
    fn a_node_that_was_never_admitted_is_forgotten_when_it_is_silent_and_not_told_of_by_hearsay() {
        let directory = Directory::new(sample_record("a1", 1));
        let [admitted, heard, named] = [("b1", 2), ("c1", 3), ("d1", 4)].map(|(name, region)| sample_record(name, region));
        let start = Instant::now();
        let moved = v1::NodeRecord { mesh_addr: "127.0.0.1:2".to_owned(), ..admitted.clone() };
        directory.update(view(std::slice::from_ref(&admitted)));
        for (record, by_itself) in [(&moved, true), (&heard, true), (&named, false)] {
            directory.introduce(record.clone(), by_itself, start).expect("well formed");
        }
        assert_eq!(directory.named_to_peers(9).len(), 2, "not the one that others named");
        // Named again is not heard.
        let later = start + SILENT_MAX / 2;
        directory.introduce(named.clone(), false, later).expect("well formed");
        directory.heard(NodeId(heard.node_id), later);
        directory.forget_silent(start + SILENT_MAX);
        assert!(directory.nodes().get(NodeId(named.node_id)).is_none());
        assert_eq!(directory.nodes().len(), 3);
        directory.forget_silent(later + SILENT_MAX);
        assert_eq!(directory.nodes().len(), 2);
        assert_eq!(addr_of(&directory, &admitted), "127.0.0.1:2", "what an admitted node said stands");
        // Heard now, it may be told of.
        directory.introduce(named.clone(), false, later).expect("well formed");
        directory.introduce(named, true, later).expect("well formed");
        assert_eq!(directory.named_to_peers(9).len(), 2);
    }
}
