//! Makes the DERP map. Pure: equal state gives equal maps, in the order of region ids and node names.

use std::collections::{BTreeMap, BTreeSet};

use causeway_proto::derpmap::{DerpMap, HomeParams, Node, Region};
use causeway_proto::id::RegionId;
use causeway_rpc::v1;

use super::state::{MapState, Nodes, region_id};

/// Nodes of other regions that a region lists at most. A client gives up after 10 s, which is six nodes that do not answer at all.
const SUBSTITUTES_MAX: usize = 32;

/// The map of the fleet; `None` if it has no node to list.
pub(crate) fn build(state: &MapState, nodes: &Nodes) -> Option<DerpMap> {
    let places = places(state, nodes);
    if places.is_empty() {
        return None;
    }
    let mut names: BTreeSet<String> = places.values().flat_map(|place| &place.nodes).map(|node| node.name.clone()).collect();
    let mut map = DerpMap {
        omit_default_regions: !state.settings.as_ref().is_some_and(|settings| settings.merge_default_regions),
        home_params: home_params(state),
        ..DerpMap::default()
    };
    for (id, place) in &places {
        let mut region = new_region(*id, &place.region, state);
        region.nodes.clone_from(&place.nodes);
        if mode_of(state, *id) == v1::DerpMapMode::CrossListed {
            region.nodes.extend(substitutes(*id, &places, per_region(state), &mut names));
        }
        map.regions.insert(*id, region);
    }
    // Whoever has such a region as its home stays reachable there, through others, until it has chosen another one.
    for (id, region) in state.retired.iter().filter(|(id, _)| !places.contains_key(id)) {
        let mut region = new_region(*id, region, state);
        region.no_measure_no_home = true;
        region.nodes = substitutes(*id, &places, 1, &mut names);
        map.regions.insert(*id, region);
    }
    Some(map)
}

/// How a node stands in the map of a fleet that lists it itself; `None` if its record says nothing of a relay.
#[must_use]
pub fn entry(record: &v1::NodeRecord) -> Option<Node> {
    record.relay.as_ref().map(|relay| new_node(record.name.clone(), region_id(record), relay))
}

/// A region and what it lists of its own.
struct Place {
    region: v1::Region,
    nodes: Vec<Node>,
}

fn places(state: &MapState, nodes: &Nodes) -> BTreeMap<RegionId, Place> {
    let mut places: BTreeMap<RegionId, Place> =
        state.regions(nodes).into_iter().map(|(id, region)| (id, Place { region, nodes: Vec::new() })).collect();
    let single = state.mode() == v1::DerpMapMode::SingleRegion;
    for record in state.listed(nodes) {
        let own = region_id(record);
        let id = if single { places.keys().next().copied().unwrap_or(own) } else { own };
        if let (Some(place), Some(relay)) = (places.get_mut(&id), &record.relay) {
            place.nodes.push(new_node(record.name.clone(), id, relay));
        }
    }
    for (id, place) in &mut places {
        if let Some(balancer) = balancer(state, *id) {
            place.nodes = vec![new_node(format!("balanced@{id}"), *id, balancer)];
        }
    }
    places
}

/// How a region is made, whatever the fleet's mode says of the others.
fn mode_of(state: &MapState, region: RegionId) -> v1::DerpMapMode {
    let of_region = state.region_settings(region).filter(|settings| settings.mode.is_some());
    of_region.map_or_else(|| state.mode(), v1::DerpRegionSettings::mode)
}

/// What stands for all nodes of a balanced region. A region that joins a balanced fleet before it is told its balancer is plain.
fn balancer(state: &MapState, region: RegionId) -> Option<&v1::RelayEndpoint> {
    let balanced = mode_of(state, region) == v1::DerpMapMode::Balanced;
    state.region_settings(region).filter(|_| balanced)?.balancer.as_ref()
}

/// Regions that the map would have whose mode is `balanced` although they have no balancer.
pub(crate) fn without_balancer(state: &MapState, nodes: &Nodes) -> Vec<RegionId> {
    let lacks = |id: &RegionId| mode_of(state, *id) == v1::DerpMapMode::Balanced && balancer(state, *id).is_none();
    state.regions(nodes).into_keys().filter(lacks).collect()
}

fn per_region(state: &MapState) -> usize {
    state.settings.as_ref().map_or(1, |settings| settings.cross_listed_per_region.max(1) as usize)
}

/// Nodes of other regions under this one's id: first the first node of each region, then the second ones, regions in the order of their
/// ids from this one's on, so that not all regions lean on the same one. Without STUN, so that nobody takes their latency for this region's.
fn substitutes(id: RegionId, places: &BTreeMap<RegionId, Place>, per_region: usize, names: &mut BTreeSet<String>) -> Vec<Node> {
    let others = || places.range(id..).chain(places.range(..id)).filter(move |(other, _)| **other != id);
    let rounds = (0..per_region)
        .flat_map(|round| others().filter_map(move |(_, place)| place.nodes.iter().filter(|node| !node.stun_only).nth(round)));
    let renamed = rounds.map(|node| Node { name: format!("{}@{id}", node.name), region_id: id, stun_port: -1, ..node.clone() });
    renamed.filter(|node| names.insert(node.name.clone())).take(SUBSTITUTES_MAX).collect()
}

fn new_region(id: RegionId, region: &v1::Region, state: &MapState) -> Region {
    let settings = state.region_settings(id);
    Region {
        region_id: id,
        region_code: region.code.clone(),
        region_name: if region.name.is_empty() { region.code.clone() } else { region.name.clone() },
        latitude: region.latitude.unwrap_or_default(),
        longitude: region.longitude.unwrap_or_default(),
        avoid: settings.is_some_and(|settings| settings.avoid),
        no_measure_no_home: settings.is_some_and(|settings| settings.no_measure_no_home),
        nodes: Vec::new(),
    }
}

fn new_node(name: String, region: RegionId, relay: &v1::RelayEndpoint) -> Node {
    Node {
        name,
        region_id: region,
        host_name: relay.host_name.clone(),
        cert_name: relay.cert_name.clone(),
        ipv4: relay.ipv4.clone(),
        ipv6: relay.ipv6.clone(),
        stun_port: relay.stun_port,
        stun_only: relay.stun_only,
        derp_port: i32::try_from(relay.derp_port).unwrap_or_default(),
        insecure_for_tests: relay.insecure_for_tests,
        can_port80: relay.can_port80,
        ..Node::default()
    }
}

/// Once an operator has set anything, scores are always told: leaving them out would leave clients with those of before.
fn home_params(state: &MapState) -> Option<HomeParams> {
    let settings = state.settings.as_ref()?;
    let scores = settings.regions.iter().filter_map(|region| Some((RegionId(region.id), region.score?))).collect();
    Some(HomeParams { region_score: Some(scores) })
}

#[cfg(test)]
mod tests;
