//! Which nodes to probe, when, over which family (`derp.md` section 16.1).

use std::cmp::Reverse;
use std::time::Duration;

use super::{Family, Report};
use crate::derpmap::{DerpMap, Node, NodeAddress, Region};
use crate::id::RegionId;

/// Tries per region and family in a full plan, and their spacing.
const FULL_TRIES: u32 = 3;
const FULL_SPACING: Duration = Duration::from_millis(100);
/// Regions of an incremental plan, beside the home.
const INCREMENTAL_REGIONS: usize = 3;
/// So many of the fastest get a second try.
const FASTEST: usize = 2;
const FASTEST_TRIES: u32 = 2;
const HOME_TRIES: u32 = 4;
/// Spacing of tries if the last latency is unknown.
const SPACING_DEFAULT: Duration = Duration::from_millis(200);
/// Added per try from the third on.
const LATE_TRY_EXTRA: Duration = Duration::from_millis(50);

/// The families the host has an address in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Families {
    /// Has IPv4.
    pub v4: bool,
    /// Has IPv6.
    pub v6: bool,
}

/// One STUN request to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Time from the start of the netcheck.
    pub delay: Duration,
    /// The region measured.
    pub region: RegionId,
    /// Name of the node.
    pub node: String,
    /// Over which family.
    pub family: Family,
}

/// Probes in the order of their delays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// In the order of their delays.
    pub probes: Vec<Probe>,
    /// Whether all regions are probed.
    pub is_full: bool,
}

impl Plan {
    /// All regions that may be a home, three tries per family.
    #[must_use]
    pub fn full(map: &DerpMap, families: Families) -> Self {
        let mut probes = Vec::new();
        for region in map.regions.values().filter(|region| !region.no_measure_no_home) {
            for family in [Family::V4, Family::V6].into_iter().filter(|f| families.has(*f)) {
                add_tries(&mut probes, region, family, FULL_TRIES, |attempt| FULL_SPACING * attempt);
            }
        }
        Self::sorted(probes, true)
    }

    /// The fastest regions of the last report and the home; a full plan if the last report holds nothing.
    #[must_use]
    pub fn incremental(map: &DerpMap, families: Families, last: &Report, home: Option<RegionId>) -> Self {
        if last.latency.is_empty() {
            return Self::full(map, families);
        }
        let mut probes = Vec::new();
        for (place, region) in by_last_latency(map, last, home).into_iter().enumerate() {
            let is_home = home == Some(region.region_id);
            if place < INCREMENTAL_REGIONS || is_home {
                add_incremental(&mut probes, region, place, is_home, families, last);
            }
        }
        Self::sorted(probes, false)
    }

    fn sorted(mut probes: Vec<Probe>, is_full: bool) -> Self {
        probes.sort_by_key(|probe| probe.delay);
        Self { probes, is_full }
    }
}

impl Families {
    const fn has(self, family: Family) -> bool {
        match family {
            Family::V4 => self.v4,
            Family::V6 => self.v6,
        }
    }
}

/// Regions that an incremental plan may probe, fastest first, unmeasured ones last.
fn by_last_latency<'a>(map: &'a DerpMap, last: &Report, home: Option<RegionId>) -> Vec<&'a Region> {
    let may_probe = |r: &&Region| !r.no_measure_no_home && (!r.avoid || home == Some(r.region_id));
    let mut regions: Vec<_> = map.regions.values().filter(may_probe).collect();
    // Reverse of an option: known before unknown.
    regions.sort_by_key(|r| {
        let latency = last.latency.get(&r.region_id);
        (Reverse(latency.is_some()), latency.copied(), r.region_id)
    });
    regions
}

fn add_incremental(probes: &mut Vec<Probe>, region: &Region, place: usize, is_home: bool, families: Families, last: &Report) {
    let (had_v4, had_v6) = (!last.latency_v4.is_empty(), !last.latency_v6.is_empty());
    let is_fastest = place < FASTEST;
    let tries = match (is_home, is_fastest) {
        (true, _) => HOME_TRIES,
        (false, true) => FASTEST_TRIES,
        (false, false) => 1,
    };
    let mut wanted = families;
    if !is_fastest && families.v4 && families.v6 && had_v4 && had_v6 {
        wanted = Families { v4: place.is_multiple_of(2), v6: !place.is_multiple_of(2) };
    } else if !is_fastest && !had_v6 {
        wanted.v6 = false;
    }
    let spacing = last.latency.get(&region.region_id).map_or(SPACING_DEFAULT, |latency| *latency * 6 / 5);
    let delay = |attempt| spacing * attempt + if attempt >= 2 { LATE_TRY_EXTRA * attempt } else { Duration::ZERO };
    if wanted.v4 {
        add_tries(probes, region, Family::V4, tries, delay);
    }
    if wanted.v6 {
        // Where IPv6 did not work last time, one try finds out whether it does now.
        add_tries(probes, region, Family::V6, if had_v6 { tries } else { 1 }, delay);
    }
}

/// Cycles through the region's nodes that offer STUN in this family.
fn add_tries(probes: &mut Vec<Probe>, region: &Region, family: Family, tries: u32, delay: impl Fn(u32) -> Duration) {
    let nodes = region.nodes.iter().filter(|node| offers_stun(node, family)).cycle();
    probes.extend((0..tries).zip(nodes).map(|(attempt, node)| Probe {
        delay: delay(attempt),
        region: region.region_id,
        node: node.name.clone(),
        family,
    }));
}

fn offers_stun(node: &Node, family: Family) -> bool {
    let reachable = match family {
        Family::V4 => node.ipv4() != NodeAddress::Disabled,
        Family::V6 => node.ipv6() != NodeAddress::Disabled,
    };
    reachable && node.stun_port().is_some()
}

/// The nodes whose latency is measured over HTTPS if no UDP answer came: of each region that may be a home, its first real relay.
pub fn fallback_nodes(map: &DerpMap) -> impl Iterator<Item = (RegionId, &Node)> {
    map.regions
        .values()
        .filter(|region| !region.avoid && !region.no_measure_no_home)
        .filter_map(|region| region.nodes.iter().find(|node| !node.stun_only).map(|node| (region.region_id, node)))
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    const BOTH: Families = Families { v4: true, v6: true };

    fn node(name: &str, region: u64, stun_port: i32) -> Node {
        Node { name: name.into(), region_id: RegionId(region), host_name: "relay.test".into(), stun_port, ..Node::default() }
    }

    /// Regions 1 to 6 with two nodes each; 5 is to be avoided, 6 never measured.
    fn map() -> DerpMap {
        let region = |id: u64| Region {
            region_id: RegionId(id),
            nodes: vec![node(&format!("{id}a"), id, 0), node(&format!("{id}b"), id, 0), node(&format!("{id}c"), id, -1)],
            avoid: id == 5,
            no_measure_no_home: id == 6,
            ..Region::default()
        };
        DerpMap { regions: (1..=6).map(|id| (RegionId(id), region(id))).collect(), ..DerpMap::default() }
    }

    fn last(latencies_ms: &[(u64, u64)], with_v6: bool) -> Report {
        let mut report = Report::new(Instant::now(), true);
        let addr = "192.0.2.1:1".parse().expect("address");
        for (region, ms) in latencies_ms {
            report.add_stun(RegionId(*region), Family::V4, Duration::from_millis(*ms), addr);
            if with_v6 {
                report.add_stun(RegionId(*region), Family::V6, Duration::from_millis(*ms), addr);
            }
        }
        report
    }

    fn of_region(plan: &Plan, region: u64, family: Family) -> Vec<(u64, &str)> {
        let probes = plan.probes.iter().filter(|p| p.region == RegionId(region) && p.family == family);
        probes.map(|p| (u64::try_from(p.delay.as_millis()).expect("short"), p.node.as_str())).collect()
    }

    #[test]
    fn a_full_plan_probes_every_region_thrice_per_family_cycling_through_nodes_that_offer_stun() {
        let plan = Plan::full(&map(), BOTH);
        assert!(plan.is_full && plan.probes.is_sorted_by_key(|p| p.delay));
        for region in 1..=5 {
            let (a, b) = (format!("{region}a"), format!("{region}b"));
            let want = [(0, a.as_str()), (100, b.as_str()), (200, a.as_str())];
            assert_eq!(of_region(&plan, region, Family::V4), want);
            assert_eq!(of_region(&plan, region, Family::V6), want);
        }
        assert_eq!(of_region(&plan, 6, Family::V4), []);
        assert!(Plan::full(&map(), Families { v4: true, v6: false }).probes.iter().all(|p| p.family == Family::V4));
    }

    #[test]
    fn an_incremental_plan_tries_the_fastest_three_and_the_home_harder() {
        let last = last(&[(1, 100), (2, 50), (3, 10), (4, 200)], false);
        let plan = Plan::incremental(&map(), Families { v4: true, v6: false }, &last, Some(RegionId(4)));
        assert!(!plan.is_full);
        assert_eq!(of_region(&plan, 3, Family::V4), [(0, "3a"), (12, "3b")]);
        assert_eq!(of_region(&plan, 2, Family::V4), [(0, "2a"), (60, "2b")]);
        assert_eq!(of_region(&plan, 1, Family::V4), [(0, "1a")]);
        // Spacing 240 ms, and 50 ms per try more from the third on.
        assert_eq!(of_region(&plan, 4, Family::V4), [(0, "4a"), (240, "4b"), (580, "4a"), (870, "4b")]);
        assert_eq!(of_region(&plan, 5, Family::V4), []);
    }

    #[test]
    fn slower_regions_of_dual_stack_hosts_alternate_families() {
        let last = last(&[(1, 10), (2, 20), (3, 30), (4, 40)], true);
        let plan = Plan::incremental(&map(), BOTH, &last, Some(RegionId(4)));
        assert_eq!((of_region(&plan, 1, Family::V4).len(), of_region(&plan, 1, Family::V6).len()), (2, 2));
        assert_eq!((of_region(&plan, 3, Family::V4).len(), of_region(&plan, 3, Family::V6).len()), (1, 0));
        assert_eq!((of_region(&plan, 4, Family::V4).len(), of_region(&plan, 4, Family::V6).len()), (0, 4));
    }

    #[test]
    fn an_avoided_region_is_probed_only_as_home_and_an_unknown_latency_spaces_by_200_ms() {
        let last = last(&[(1, 10), (2, 20), (3, 30)], false);
        let plan = Plan::incremental(&map(), Families { v4: true, v6: false }, &last, Some(RegionId(5)));
        assert_eq!(of_region(&plan, 5, Family::V4), [(0, "5a"), (200, "5b"), (500, "5a"), (750, "5b")]);
        assert_eq!(Plan::incremental(&map(), BOTH, &Report::new(Instant::now(), true), None), Plan::full(&map(), BOTH));
    }

    #[test]
    fn https_measures_the_first_real_relay_of_regions_that_may_be_home() {
        let mut map = map();
        map.regions.get_mut(&RegionId(1)).expect("region 1").nodes[0].stun_only = true;
        let nodes: Vec<_> = fallback_nodes(&map).map(|(region, node)| (region.0, node.name.as_str())).collect();
        assert_eq!(nodes, [(1, "1b"), (2, "2a"), (3, "3a"), (4, "4a")]);
    }
}
