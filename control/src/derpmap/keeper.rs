//! Grace times of the DERP map, run by the leader: who is away only briefly stays listed, because each edit of a region closes the
//! connections to it on all clients.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use causeway_proto::id::{NodeId, RegionId};
use causeway_rpc::v1;
use causeway_rpc::v1::raft_command::Command as Kind;
use tokio_util::sync::CancellationToken;

use super::settings::GRACE_DEFAULT_S;
use crate::fleet::Fleet;
use crate::raft::fleet_state::FleetState;
use crate::raft::types::Command;

/// How often the leader looks.
const CHECK_INTERVAL: Duration = Duration::from_millis(500);

/// Since when nodes are away and regions without nodes, as the present leader has seen it.
#[derive(Debug, Default)]
pub(crate) struct MapKeeper {
    away_since: BTreeMap<NodeId, Instant>,
    retired_since: BTreeMap<RegionId, Instant>,
}

impl MapKeeper {
    /// What is due by now. A command that is not committed is due again.
    pub(crate) fn due(&mut self, fleet: &FleetState, away: &BTreeSet<NodeId>, now: Instant) -> Vec<Kind> {
        let (map, nodes) = (&fleet.derp_map, &fleet.nodes);
        self.away_since.retain(|node, _| away.contains(node) && nodes.contains_key(node));
        for node in away.iter().filter(|node| nodes.contains_key(node)) {
            self.away_since.entry(*node).or_insert(now);
        }
        self.retired_since.retain(|region, _| map.retired.contains_key(region));
        for region in map.retired.keys() {
            self.retired_since.entry(*region).or_insert(now);
        }
        let grace_s = map.settings.as_ref().map_or(0, |settings| settings.grace_s);
        let grace = Duration::from_secs(if grace_s == 0 { GRACE_DEFAULT_S } else { grace_s }.into());
        let over = |since: &Instant| now.saturating_duration_since(*since) >= grace;

        let list = |node: NodeId, listed: bool| Kind::ListNode(v1::ListNode { node_id: node.0, listed });
        let back = map.unlisted.iter().filter(|node| !away.contains(node) && map.may_list(**node, nodes));
        let mut due: Vec<Kind> = back.map(|node| list(*node, true)).collect();
        let listed: BTreeSet<NodeId> = map.listed(nodes).iter().map(|record| NodeId(record.node_id)).collect();
        // A map of nodes that are all away is still better than none.
        if listed.iter().any(|node| !away.contains(node)) {
            let gone = self.away_since.iter().filter(|(node, since)| !map.unlisted.contains(node) && over(since));
            due.extend(gone.map(|(node, _)| list(*node, false)));
        }
        let ended = self.retired_since.iter().filter(|(_, since)| over(since));
        due.extend(ended.map(|(region, _)| Kind::DropRegion(v1::DropRegion { region_id: region.0 })));
        due
    }
}

/// While this node leads: proposes what is due.
pub(crate) async fn keep_map_listing(fleet: Arc<Fleet>, cancel: CancellationToken) {
    let mut ticks = tokio::time::interval(CHECK_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let states = fleet.consensus.machine().subscribe();
    let mut keeper = MapKeeper::default();
    while cancel.run_until_cancelled(ticks.tick()).await.is_some() {
        if !fleet.consensus.is_leader() {
            keeper = MapKeeper::default();
            continue;
        }
        let view = Arc::clone(&states.borrow());
        let now = tokio::time::Instant::now().into_std();
        for command in keeper.due(&view.fleet, &view.fenced, now) {
            tracing::info!(?command, "changing the DERP map");
            if let Err(error) = fleet.consensus.propose(Command::new(command)).await {
                tracing::debug!(%error, "a change of the DERP map was not committed; it is proposed again");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::fleet_state::sample_record;

    fn fleet(names: &[(&str, u64)]) -> FleetState {
        let mut fleet = FleetState::default();
        let nodes = names.iter().map(|(name, region)| sample_record(name, *region)).collect();
        fleet.form(&v1::FormFleet { fleet_id: "f".to_owned(), nodes, ..Default::default() });
        fleet
    }

    fn id(name: &str) -> NodeId {
        NodeId(sample_record(name, 1).node_id)
    }

    fn apply(fleet: &mut FleetState, due: &[Kind]) {
        for command in due {
            fleet.apply(command.clone(), |_| false);
        }
    }

    const GRACE: Duration = Duration::from_secs(GRACE_DEFAULT_S as u64);
    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_node_stays_listed_for_the_grace_time_and_is_listed_again_when_it_is_back() {
        let mut fleet = fleet(&[("a1", 1), ("a2", 1), ("b1", 2)]);
        let mut keeper = MapKeeper::default();
        let start = Instant::now();
        let away = BTreeSet::from([id("a1")]);
        assert_eq!(keeper.due(&fleet, &away, start), []);
        assert_eq!(keeper.due(&fleet, &away, start + GRACE - SECOND), []);
        // Back for a moment: the time starts anew.
        assert_eq!(keeper.due(&fleet, &BTreeSet::new(), start + GRACE), []);
        assert_eq!(keeper.due(&fleet, &away, start + GRACE), []);
        let due = keeper.due(&fleet, &away, start + 2 * GRACE);
        assert_eq!(due, [Kind::ListNode(v1::ListNode { node_id: id("a1").0, listed: false })]);
        apply(&mut fleet, &due);
        assert_eq!(keeper.due(&fleet, &away, start + 3 * GRACE), []);
        let due = keeper.due(&fleet, &BTreeSet::new(), start + 3 * GRACE);
        assert_eq!(due, [Kind::ListNode(v1::ListNode { node_id: id("a1").0, listed: true })]);
        apply(&mut fleet, &due);
        assert!(fleet.derp_map.unlisted.is_empty());
    }

    #[test]
    fn a_region_without_nodes_is_kept_for_the_grace_time_and_the_last_nodes_for_ever() {
        let mut fleet = fleet(&[("a1", 1), ("b1", 2)]);
        let mut keeper = MapKeeper::default();
        let start = Instant::now();
        let away = BTreeSet::from([id("b1")]);
        keeper.due(&fleet, &away, start);
        let due = keeper.due(&fleet, &away, start + GRACE);
        apply(&mut fleet, &due);
        assert!(fleet.derp_map.retired.contains_key(&RegionId(2)));
        assert_eq!(keeper.due(&fleet, &away, start + GRACE), []);
        let due = keeper.due(&fleet, &away, start + 2 * GRACE);
        assert_eq!(due, [Kind::DropRegion(v1::DropRegion { region_id: 2 })]);
        apply(&mut fleet, &due);
        assert!(fleet.derp_map.retired.is_empty());
        let all = BTreeSet::from([id("a1"), id("b1")]);
        keeper.due(&fleet, &all, start);
        assert_eq!(keeper.due(&fleet, &all, start + 2 * GRACE), []);
    }

    #[test]
    fn the_grace_time_is_a_setting_and_an_evicted_node_needs_none() {
        let mut fleet = fleet(&[("a1", 1), ("a2", 1)]);
        fleet.derp_map.settings = Some(v1::DerpMapSettings { grace_s: 1, ..Default::default() });
        let mut keeper = MapKeeper::default();
        let start = Instant::now();
        let away = BTreeSet::from([id("a1")]);
        keeper.due(&fleet, &away, start);
        assert_eq!(keeper.due(&fleet, &away, start + SECOND).len(), 1);
        fleet.apply(Kind::EvictNode(v1::EvictNode { node_id: id("a1").0 }), |_| false);
        assert_eq!(keeper.due(&fleet, &away, start + SECOND), []);
    }
}
