//! The DERP map of the fleet (plain mode: each region lists its own nodes). Pure.

use causeway_proto::derpmap::{DerpMap, Node, Region};
use causeway_rpc::v1;

use crate::discovery::{NodeEntry, NodeSet};

/// Builds the map of the nodes that clients should use: admitted and not fenced. A node that is in no fleet lists itself only.
///
/// Nodes stand in the order of their names, so that equal node sets give equal maps.
#[must_use]
pub fn build(nodes: &NodeSet) -> DerpMap {
    let in_fleet = nodes.get(nodes.own()).is_some_and(|own| own.admitted);
    let mut listed: Vec<&NodeEntry> =
        nodes.iter().filter(|node| if in_fleet { node.admitted && !node.fenced } else { node.id() == nodes.own() }).collect();
    listed.sort_by(|a, b| (&a.record.name, a.id()).cmp(&(&b.record.name, b.id())));
    let mut map = DerpMap { omit_default_regions: true, ..DerpMap::default() };
    for entry in listed {
        let (Some(region), Some(relay)) = (&entry.record.region, &entry.record.relay) else { continue };
        let place = map.regions.entry(entry.region_id()).or_insert_with(|| new_region(entry, region));
        let node = new_node(entry, relay);
        // Two nodes may share a name for as long as one of them is about to be fenced: the map must not.
        if place.nodes.iter().all(|other| other.name != node.name) {
            place.nodes.push(node);
        }
    }
    map
}

fn new_region(entry: &NodeEntry, region: &v1::Region) -> Region {
    Region {
        region_id: entry.region_id(),
        region_code: region.code.clone(),
        region_name: if region.name.is_empty() { region.code.clone() } else { region.name.clone() },
        latitude: region.latitude.unwrap_or_default(),
        longitude: region.longitude.unwrap_or_default(),
        ..Region::default()
    }
}

fn new_node(entry: &NodeEntry, relay: &v1::RelayEndpoint) -> Node {
    Node {
        name: entry.record.name.clone(),
        region_id: entry.region_id(),
        host_name: relay.host_name.clone(),
        cert_name: relay.cert_name.clone(),
        ipv4: relay.ipv4.clone(),
        ipv6: relay.ipv6.clone(),
        stun_port: relay.stun_port,
        derp_port: i32::try_from(relay.derp_port).unwrap_or_default(),
        insecure_for_tests: relay.insecure_for_tests,
        can_port80: relay.can_port80,
        ..Node::default()
    }
}

/// Whether `new` may replace the map that is served: an empty map never replaces a good one.
#[must_use]
pub fn replaces(new: &DerpMap, served: &DerpMap) -> bool {
    new != served && (!new.regions.is_empty() || served.regions.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::fleet_state::sample_record;
    use causeway_proto::id::NodeId;

    fn entry(name: &str, region: u64, admitted: bool, fenced: bool) -> NodeEntry {
        NodeEntry { record: sample_record(name, region), admitted, fenced }
    }

    fn set(own: &NodeEntry, others: &[NodeEntry]) -> NodeSet {
        NodeSet::new(NodeId(own.record.node_id), others.iter().cloned().chain([own.clone()]))
    }

    fn names(map: &DerpMap) -> Vec<&str> {
        map.regions.values().flat_map(|region| region.nodes.iter().map(|node| node.name.as_str())).collect()
    }

    #[test]
    fn live_members_are_listed_in_a_stable_order() {
        let own = entry("b1", 2, true, false);
        let others =
            [entry("a2", 1, true, false), entry("a1", 1, true, false), entry("a3", 1, true, true), entry("b2", 2, false, false)];
        let map = build(&set(&own, &others));
        assert_eq!(names(&map), ["a1", "a2", "b1"]);
        map.validate().expect("a map that clients take");
        let mut reversed = others.to_vec();
        reversed.reverse();
        assert_eq!(build(&set(&own, &reversed)), map);
    }

    #[test]
    fn a_node_in_no_fleet_lists_itself_and_an_empty_map_replaces_nothing() {
        let own = entry("b1", 2, false, false);
        let alone = build(&set(&own, &[entry("a1", 1, false, false)]));
        assert_eq!(names(&alone), ["b1"]);
        let empty = build(&set(&entry("b1", 2, true, true), &[]));
        assert!(empty.regions.is_empty() && !replaces(&empty, &alone) && replaces(&alone, &empty));
    }
}
