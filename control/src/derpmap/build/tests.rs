use super::*;
use crate::raft::fleet_state::{FleetState, sample_record};
use causeway_proto::id::NodeId;
use v1::DerpMapMode::{Balanced, CrossListed, Plain, SingleRegion};
use v1::raft_command::Command as Kind;

fn fleet(names: &[(&str, u64)]) -> FleetState {
    let mut fleet = FleetState::default();
    let nodes = names.iter().map(|(name, region)| sample_record(name, *region)).collect();
    apply(&mut fleet, Kind::FormFleet(v1::FormFleet { fleet_id: "f".to_owned(), nodes, ..Default::default() }));
    fleet
}

fn apply(fleet: &mut FleetState, command: Kind) {
    let reply = fleet.apply(command, |_| false);
    assert!(matches!(reply, crate::raft::types::Reply::Applied { .. }), "{reply:?}");
}

fn set(fleet: &mut FleetState, settings: v1::DerpMapSettings) {
    apply(fleet, Kind::SetDerpMap(v1::SetDerpMap { settings: Some(settings) }));
}

fn of_mode(mode: v1::DerpMapMode) -> v1::DerpMapSettings {
    v1::DerpMapSettings { mode: mode.into(), ..Default::default() }
}

fn map(fleet: &FleetState) -> DerpMap {
    let map = build(&fleet.derp_map, &fleet.nodes).expect("there are nodes");
    map.validate().expect("a map that clients take");
    map
}

/// `1: a1 a2 | 2: b1`; a node without STUN has a `-`.
fn shown(map: &DerpMap) -> String {
    let node = |node: &Node| format!("{}{}", node.name, if node.stun_port < 0 { "-" } else { "" });
    let region = |(id, region): (&RegionId, &Region)| {
        assert!(region.nodes.iter().all(|node| node.region_id == *id), "measurements are filed under the node's region");
        format!("{id}: {}", region.nodes.iter().map(node).collect::<Vec<_>>().join(" "))
    };
    map.regions.iter().map(region).collect::<Vec<_>>().join(" | ")
}

fn id(name: &str) -> NodeId {
    NodeId(sample_record(name, 1).node_id)
}

fn unlist(fleet: &mut FleetState, name: &str) {
    apply(fleet, Kind::ListNode(v1::ListNode { node_id: id(name).0, listed: false }));
}

fn balancer(id: u64, host_name: &str) -> v1::DerpRegionSettings {
    let balancer = v1::RelayEndpoint { host_name: host_name.to_owned(), derp_port: 8443, can_port80: true, ..Default::default() };
    v1::DerpRegionSettings { id, balancer: Some(balancer), ..Default::default() }
}

const THREE: [(&str, u64); 5] = [("c1", 3), ("b2", 2), ("a2", 1), ("a1", 1), ("b1", 2)];

#[test]
fn plain_lists_each_regions_own_nodes_in_the_order_of_their_names() {
    let fleet = fleet(&THREE);
    let map = map(&fleet);
    assert_eq!(shown(&map), "1: a1 a2 | 2: b1 b2 | 3: c1");
    assert!(map.omit_default_regions && map.home_params.is_none());
    assert_eq!(map.regions[&RegionId(1)].region_name, "Region 1");
    assert_eq!(build(&MapState::default(), &Nodes::new()), None);
}

#[test]
fn cross_listed_appends_one_node_of_each_other_region_or_as_many_as_set() {
    let mut fleet = fleet(&THREE);
    set(&mut fleet, of_mode(CrossListed));
    assert_eq!(shown(&map(&fleet)), "1: a1 a2 b1@1- c1@1- | 2: b1 b2 c1@2- a1@2- | 3: c1 a1@3- b1@3-");
    set(&mut fleet, v1::DerpMapSettings { cross_listed_per_region: 2, ..of_mode(CrossListed) });
    let two = "1: a1 a2 b1@1- c1@1- b2@1- | 2: b1 b2 c1@2- a1@2- a2@2- | 3: c1 a1@3- b1@3- a2@3- b2@3-";
    assert_eq!(shown(&map(&fleet)), two);
    // Only one region leans on others.
    let only = v1::DerpRegionSettings { id: 3, mode: Some(CrossListed.into()), ..Default::default() };
    set(&mut fleet, v1::DerpMapSettings { regions: vec![only], ..of_mode(Plain) });
    assert_eq!(shown(&map(&fleet)), "1: a1 a2 | 2: b1 b2 | 3: c1 a1@3- b1@3-");
}

#[test]
fn cross_listing_is_bounded_and_skips_nodes_that_only_answer_stun() {
    let names: Vec<String> = (1..=40).map(|n| format!("n{n}")).collect();
    let nodes: Vec<(&str, u64)> = names.iter().map(String::as_str).zip(1..).collect();
    let mut many = fleet(&nodes);
    set(&mut many, of_mode(CrossListed));
    assert!(map(&many).regions.values().all(|region| region.nodes.len() == 1 + SUBSTITUTES_MAX));
    let mut stun_only = sample_record("a1", 1);
    stun_only.relay.as_mut().expect("relay").stun_only = true;
    let mut fleet = fleet(&[("a1", 1), ("a2", 1), ("b1", 2)]);
    apply(&mut fleet, Kind::PutNode(v1::PutNode { record: Some(stun_only) }));
    set(&mut fleet, of_mode(CrossListed));
    assert_eq!(shown(&map(&fleet)), "1: a1 a2 b1@1- | 2: b1 a2@2-");
    assert!(map(&fleet).regions[&RegionId(1)].nodes[0].stun_only);
}

#[test]
fn balanced_lists_the_regions_own_name_and_a_region_without_one_stays_plain() {
    let mut fleet = fleet(&THREE);
    let regions = vec![balancer(1, "a.example"), balancer(2, "b.example")];
    set(&mut fleet, v1::DerpMapSettings { regions: regions.clone(), ..of_mode(Balanced) });
    let made = map(&fleet);
    assert_eq!(shown(&made), "1: balanced@1 | 2: balanced@2 | 3: c1");
    assert_eq!(without_balancer(&fleet.derp_map, &fleet.nodes), [RegionId(3)]);
    let node = &made.regions[&RegionId(1)].nodes[0];
    assert_eq!((node.host_name.as_str(), node.derp_port, node.can_port80), ("a.example", 8443, true));
    // A node more or less behind a balancer edits nothing.
    apply(&mut fleet, Kind::PutNode(v1::PutNode { record: Some(sample_record("a3", 1)) }));
    unlist(&mut fleet, "b1");
    assert_eq!(map(&fleet), made);
    // One balanced region among cross-listed ones.
    let mut regions = regions;
    regions[0].mode = Some(Balanced.into());
    set(&mut fleet, v1::DerpMapSettings { regions, ..of_mode(CrossListed) });
    assert_eq!(shown(&map(&fleet)), "1: balanced@1 | 2: b2 c1@2- balanced@1@2- | 3: c1 balanced@1@3- b2@3-");
}

#[test]
fn single_region_lists_all_nodes_in_one_and_keeps_the_others_for_a_while() {
    let mut fleet = fleet(&THREE);
    let region = v1::Region { id: 900, code: "all".to_owned(), ..Default::default() };
    set(&mut fleet, v1::DerpMapSettings { single_region: Some(region), ..of_mode(SingleRegion) });
    let made = map(&fleet);
    assert_eq!(shown(&made), "1: a1@1- | 2: a1@2- | 3: a1@3- | 900: a1 a2 b1 b2 c1");
    assert!(made.regions[&RegionId(1)].no_measure_no_home && !made.regions[&RegionId(900)].no_measure_no_home);
    for region_id in [1, 2, 3] {
        apply(&mut fleet, Kind::DropRegion(v1::DropRegion { region_id }));
    }
    assert_eq!(shown(&map(&fleet)), "900: a1 a2 b1 b2 c1");
    // And back.
    set(&mut fleet, of_mode(Plain));
    assert_eq!(shown(&map(&fleet)), "1: a1 a2 | 2: b1 b2 | 3: c1 | 900: a1@900- b1@900- c1@900-");
}

#[test]
fn a_region_whose_nodes_are_all_gone_is_kept_with_substitutes_and_without_being_anybodys_home() {
    let mut fleet = fleet(&THREE);
    let before = map(&fleet);
    unlist(&mut fleet, "c1");
    let made = map(&fleet);
    assert_eq!(shown(&made), "1: a1 a2 | 2: b1 b2 | 3: a1@3- b1@3-");
    let retired = &made.regions[&RegionId(3)];
    assert!(retired.no_measure_no_home);
    assert_eq!((retired.region_code.as_str(), retired.region_name.as_str()), ("r3", "Region 3"));
    // Back again: the very map of before.
    apply(&mut fleet, Kind::ListNode(v1::ListNode { node_id: id("c1").0, listed: true }));
    assert_eq!(map(&fleet), before);
    // For good.
    apply(&mut fleet, Kind::EvictNode(v1::EvictNode { node_id: id("c1").0 }));
    assert_eq!(shown(&map(&fleet)), "1: a1 a2 | 2: b1 b2 | 3: a1@3- b1@3-");
    apply(&mut fleet, Kind::DropRegion(v1::DropRegion { region_id: 3 }));
    assert_eq!(shown(&map(&fleet)), "1: a1 a2 | 2: b1 b2");
}

#[test]
fn a_renumbered_region_is_kept_under_its_old_number_for_a_while() {
    let mut fleet = fleet(&THREE);
    let mut moved = sample_record("c1", 3);
    moved.region.as_mut().expect("region").id = 9;
    apply(&mut fleet, Kind::PutNode(v1::PutNode { record: Some(moved) }));
    assert_eq!(shown(&map(&fleet)), "1: a1 a2 | 2: b1 b2 | 3: c1@3- a1@3- b1@3- | 9: c1");
}

#[test]
fn what_does_not_show_edits_nothing_and_only_regions_concerned_are_edited() {
    let mut fleet = fleet(&THREE);
    let before = map(&fleet);
    // A restart: another server key, another release, another mesh address.
    let mut restarted = sample_record("a1", 1);
    restarted.version = "1".to_owned();
    restarted.mesh_addr = "127.0.0.1:9".to_owned();
    restarted.relay.as_mut().expect("relay").derp_public_key = vec![7; 32].into();
    apply(&mut fleet, Kind::PutNode(v1::PutNode { record: Some(restarted) }));
    assert_eq!(map(&fleet), before);
    // A join edits its own region alone, in the mode `cross-listed` too.
    for mode in [Plain, CrossListed] {
        set(&mut fleet, of_mode(mode));
        let before = map(&fleet);
        let mut joined = fleet.clone();
        apply(&mut joined, Kind::PutNode(v1::PutNode { record: Some(sample_record("b3", 2)) }));
        let after = map(&joined);
        let edited: Vec<_> = before.regions.keys().filter(|id| before.regions[id] != after.regions[id]).collect();
        assert_eq!(edited, [&RegionId(2)], "{mode:?}");
    }
}

#[test]
fn scores_and_flags_of_regions_are_told_and_scores_are_reset_by_telling_none() {
    let mut fleet = fleet(&THREE);
    let scored = v1::DerpRegionSettings { id: 1, score: Some(0.5), avoid: true, ..Default::default() };
    let closed = v1::DerpRegionSettings { id: 2, no_measure_no_home: true, ..Default::default() };
    let settings = v1::DerpMapSettings { regions: vec![scored, closed], merge_default_regions: true, ..Default::default() };
    set(&mut fleet, settings);
    let made = map(&fleet);
    let scores = made.home_params.and_then(|params| params.region_score).expect("told");
    assert_eq!(scores, BTreeMap::from([(RegionId(1), 0.5)]));
    assert!(made.regions[&RegionId(1)].avoid && made.regions[&RegionId(2)].no_measure_no_home && !made.omit_default_regions);
    set(&mut fleet, v1::DerpMapSettings::default());
    assert_eq!(map(&fleet).home_params, Some(HomeParams { region_score: Some(BTreeMap::new()) }));
}

#[test]
fn nodes_and_regions_keep_their_places_whatever_order_they_came_in() {
    let mut orders = THREE;
    let expected = {
        let mut fleet = fleet(&orders);
        set(&mut fleet, of_mode(CrossListed));
        map(&fleet)
    };
    for turn in 0..orders.len() {
        orders.rotate_left(1);
        let mut fleet = fleet(&orders[..1]);
        for (name, region) in &orders[1..] {
            apply(&mut fleet, Kind::PutNode(v1::PutNode { record: Some(sample_record(name, *region)) }));
        }
        set(&mut fleet, of_mode(CrossListed));
        let restored = FleetState::from_snapshot(fleet.to_snapshot());
        assert_eq!((map(&fleet), map(&restored)), (expected.clone(), expected.clone()), "turn {turn}");
    }
}
