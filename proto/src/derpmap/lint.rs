//! What stock clients, stock probers and Headscale would trip over in a DERP map. Unlike [`DerpMap::validate`] it tells everything at once, takes
//! maps that others have written, and also finds what is legal but costs something.

mod shape;
mod yaml;

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use serde::Serialize;

use super::{DerpMap, Node, NodeAddress, REGION_ID_MAX, Region, is_cert_name, is_host_name};
use crate::id::RegionId;
use crate::limits::{DERP_MAP_LEN_MAX, DERP_MAP_NODES_MAX, DERP_MAP_REGIONS_MAX, JSON_DEPTH_MAX};

pub use yaml::{is_yaml, lint_yaml};

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Clients refuse the map, or cannot use a part of it.
    Error,
    /// It works, but hardly as meant.
    Warning,
    /// Worth knowing, nothing to mend.
    Note,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Note => "note",
        })
    }
}

/// One thing found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub level: Level,
    /// Where, e.g. `Regions[900].Nodes[0].HostName`; empty: the whole map.
    pub path: String,
    /// What is wrong.
    pub problem: String,
    /// What would be right.
    pub advice: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = if self.path.is_empty() { "the map" } else { &self.path };
        write!(f, "{}: {path}: {}; {}", self.level, self.problem, self.advice)
    }
}

/// The findings so far.
#[derive(Debug, Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, level: Level, path: impl Into<String>, problem: impl Into<String>, advice: impl Into<String>) {
        self.0.push(Finding { level, path: path.into(), problem: problem.into(), advice: advice.into() });
    }

    fn error(&mut self, path: impl Into<String>, problem: impl Into<String>, advice: impl Into<String>) {
        self.add(Level::Error, path, problem, advice);
    }

    fn warning(&mut self, path: impl Into<String>, problem: impl Into<String>, advice: impl Into<String>) {
        self.add(Level::Warning, path, problem, advice);
    }

    fn note(&mut self, path: impl Into<String>, problem: impl Into<String>, advice: impl Into<String>) {
        self.add(Level::Note, path, problem, advice);
    }
}

/// Judges the JSON of a DERP map; errors first, else in the map's order.
#[must_use]
pub fn lint(json: &[u8]) -> Vec<Finding> {
    let mut findings = Findings::default();
    if json.len() > DERP_MAP_LEN_MAX {
        findings.error("", format!("has {} bytes", json.len()), format!("keep it below {DERP_MAP_LEN_MAX}"));
        return findings.0;
    }
    if !crate::json::depth_is_bounded(json) {
        findings.error("", "is nested too deep", format!("a DERP map nests 5 deep, {JSON_DEPTH_MAX} is the most that is read"));
        return findings.0;
    }
    if shape::check(json, &mut findings) {
        match DerpMap::from_json(json) {
            Ok(map) => check_map(&map, &mut findings),
            // What the shape lets through, the map takes; should it not, its own words are better than silence.
            Err(error) => findings.error("", error.to_string(), "mend what it names"),
        }
    }
    findings.0.sort_by_key(|finding| finding.level);
    findings.0
}

fn check_map(map: &DerpMap, findings: &mut Findings) {
    if map.regions.is_empty() {
        findings.error("Regions", "there is no region", "list at least one region with a node");
        return;
    }
    if map.regions.len() > DERP_MAP_REGIONS_MAX {
        findings.error("Regions", format!("there are {}", map.regions.len()), format!("at most {DERP_MAP_REGIONS_MAX}"));
    }
    let mut names = Names::default();
    let mut codes: BTreeMap<&str, RegionId> = BTreeMap::new();
    for (key, region) in &map.regions {
        check_region(*key, region, map.omit_default_regions, findings);
        if let Some(other) = codes.insert(&region.region_code, *key).filter(|_| !region.region_code.is_empty()) {
            let path = format!("Regions[{key}].RegionCode");
            findings.warning(
                path,
                format!("`{}` is region {other}'s too", region.region_code),
                "give each region a code of its own",
            );
        }
        for (index, node) in region.nodes.iter().enumerate() {
            let path = format!("Regions[{key}].Nodes[{index}]");
            check_node(node, *key, &path, findings);
            names.check(node, &path, findings);
        }
    }
    check_homes(map, findings);
    check_endpoints(map, findings);
    check_scores(map, findings);
    note_shuffle(map, findings);
}

fn check_region(key: RegionId, region: &Region, omits_default_regions: bool, findings: &mut Findings) {
    let at = |field: &str| format!("Regions[{key}].{field}");
    match region.region_id.0 {
        0 => findings.error(at("RegionID"), "is missing", format!("must be {key}, the key the region stands under")),
        id if id != key.0 => {
            findings.error(at("RegionID"), format!("is {id}"), format!("must be {key}, the key it stands under"))
        }
        _ if key.0 > REGION_ID_MAX => {
            findings.error(at("RegionID"), "is above 2^53 - 1", "JSON keeps no such number: take 900 to 999")
        }
        _ if (900..=999).contains(&key.0) => {}
        _ if key.0 < 900 && !omits_default_regions => {
            findings.warning(
                at("RegionID"),
                "may replace a region of the vendor's",
                "take 900 to 999, or set `omitDefaultRegions`",
            );
        }
        _ => findings.warning(
            at("RegionID"),
            "is outside 900 to 999",
            "these are reserved for self-hosted regions; others may come into use",
        ),
    }
    if region.region_code.is_empty() {
        findings.error(at("RegionCode"), "is missing", "a short code, such as `fra`: clients and metrics name the region by it");
    }
    if region.region_name.is_empty() {
        findings.note(at("RegionName"), "is missing", "a name that people read, such as `Frankfurt`");
    }
    if !(-90.0..=90.0).contains(&region.latitude) {
        findings.warning(at("Latitude"), format!("is {}", region.latitude), "degrees from -90 to 90");
    }
    if !(-180.0..=180.0).contains(&region.longitude) {
        findings.warning(at("Longitude"), format!("is {}", region.longitude), "degrees from -180 to 180");
    }
    if region.avoid {
        let problem = "`Avoid` is deprecated: full measurements still probe the region, so it can become a home";
        findings.warning(
            at("Avoid"),
            problem,
            "`NoMeasureNoHome` to keep it from being a home, or a score above 1 to make it a worse one",
        );
    }
    check_nodes_of(region, &at("Nodes"), findings);
}

fn check_nodes_of(region: &Region, path: &str, findings: &mut Findings) {
    if region.nodes.len() > DERP_MAP_NODES_MAX {
        findings.error(path, format!("has {} nodes", region.nodes.len()), format!("at most {DERP_MAP_NODES_MAX}"));
    }
    let Some(first) = region.nodes.first() else {
        findings.error(
            path,
            "there is no node",
            "list one, or leave the region out: a peer that has it as its home is unreachable",
        );
        return;
    };
    if region.nodes.iter().all(|node| node.stun_only) {
        let problem = "there is no relay: clients measure the region, take it as their home, and cannot connect";
        findings.error(path, problem, "add a node without `STUNOnly`");
    } else if first.stun_only {
        let problem = "the first node is no relay, so clients report every connection as one to a substitute";
        findings.warning(path, problem, "list nodes with `STUNOnly` last");
    }
    let measured = region.nodes.iter().any(|node| node.stun_port().is_some());
    if !measured && !region.no_measure_no_home {
        let problem = "no node has STUN: the region is measured only where UDP does not work at all";
        findings.warning(path, problem, "offer STUN on one node, or say `NoMeasureNoHome`");
    }
}

fn check_node(node: &Node, region: RegionId, path: &str, findings: &mut Findings) {
    let at = |field: &str| format!("{path}.{field}");
    match node.region_id.0 {
        0 => findings.error(at("RegionID"), "is missing: the node's measurements are lost", format!("must be {region}")),
        id if id != region.0 => {
            findings.error(at("RegionID"), format!("is {id}: measurements count for that region"), format!("must be {region}"));
        }
        _ => {}
    }
    if !(0..=65_535).contains(&node.derp_port) {
        findings.error(at("DERPPort"), format!("is {}", node.derp_port), "a port, or 0 for 443");
    }
    if !(-1..=65_535).contains(&node.stun_port) {
        findings.error(at("STUNPort"), format!("is {}", node.stun_port), "a port, 0 for 3478, or -1 for no STUN");
    }
    if node.stun_only && node.stun_port < 0 {
        findings.warning(at("STUNOnly"), "is set although `STUNPort` is -1: the node offers nothing", "leave the node out");
    }
    if !node.stun_test_ip.is_empty() {
        findings.warning(at("STUNTestIP"), "is for tests: STUN goes there instead of to the node", "leave it out");
    }
    check_host_name(node, path, findings);
    check_addresses(node, path, findings);
    if node.insecure_for_tests && !is_loopback_only(node) {
        let problem = "anybody on the way can pose as this node: certificates are not verified";
        findings.warning(
            at("InsecureForTests"),
            problem,
            "a certificate that is verified, or `CertName` with its `sha256-raw:` digest",
        );
    }
}

fn check_host_name(node: &Node, path: &str, findings: &mut Findings) {
    let at = |field: &str| format!("{path}.{field}");
    if node.host_name.is_empty() {
        findings.error(at("HostName"), "is missing", "the DNS name of the node, which its certificate has too");
    } else if !is_host_name(&node.host_name) {
        let problem = format!("`{}` is no DNS name", node.host_name);
        findings.error(at("HostName"), problem, "the name alone, without scheme and path; the port goes into `DERPPort`");
    } else if node.host_name.parse::<IpAddr>().is_ok() && !node.stun_only {
        let problem = "is an IP address: the stock prober's mesh probe of this node fails, whatever the certificate";
        let advice = "a DNS name as `HostName`, and the address as `IPv4` or `IPv6`";
        let pinned = node.cert_name.starts_with("sha256-raw:");
        findings.add(if pinned { Level::Note } else { Level::Warning }, at("HostName"), problem, advice);
    }
    if !is_cert_name(&node.cert_name) {
        let problem = format!("`{}` is neither a DNS name nor a digest", node.cert_name);
        findings.error(
            at("CertName"),
            problem,
            "a DNS name, or `sha256-raw:` and the 64 hex digits of the certificate's SHA-256",
        );
    }
}

fn check_addresses(node: &Node, path: &str, findings: &mut Findings) {
    let good = |address: IpAddr| !address.is_unspecified() && !address.is_multicast();
    let families = [
        ("IPv4", &node.ipv4, address_of(node.ipv4()).map(|address| address.is_none_or(good))),
        ("IPv6", &node.ipv6, address_of(node.ipv6()).map(|address| address.is_none_or(good))),
    ];
    for (field, text, state) in &families {
        let advice = format!("an {field} address; empty for DNS; `none` to leave the family out");
        match state {
            Some(true) => {}
            Some(false) => findings.error(format!("{path}.{field}"), format!("nobody can dial `{text}`"), advice),
            None if *text == "none" => {}
            None => {
                let problem = format!("`{text}` is no {field} address, so clients take it for `none`");
                findings.error(format!("{path}.{field}"), problem, advice);
            }
        }
    }
    if families.iter().all(|(_, _, state)| state.is_none()) {
        findings.error(path, "has neither IPv4 nor IPv6", "give one address, or leave both empty so that DNS is asked");
    }
}

/// `None`: the family is left out; `Some(None)`: by DNS.
fn address_of<A: Into<IpAddr>>(address: NodeAddress<A>) -> Option<Option<IpAddr>> {
    match address {
        NodeAddress::Fixed(address) => Some(Some(address.into())),
        NodeAddress::Dns => Some(None),
        NodeAddress::Disabled => None,
    }
}

fn is_loopback_only(node: &Node) -> bool {
    let fixed: Vec<IpAddr> = [address_of(node.ipv4()), address_of(node.ipv6())].into_iter().flatten().flatten().collect();
    let by_dns = node.ipv4() == NodeAddress::Dns && node.ipv6() == NodeAddress::Dns;
    match node.host_name.parse::<IpAddr>() {
        Ok(address) if by_dns => address.is_loopback(),
        _ if by_dns => node.host_name == "localhost",
        _ => !fixed.is_empty() && fixed.iter().all(IpAddr::is_loopback),
    }
}

/// Which names are taken, and where.
#[derive(Default)]
struct Names<'a>(BTreeMap<&'a str, String>);

impl<'a> Names<'a> {
    fn check(&mut self, node: &'a Node, path: &str, findings: &mut Findings) {
        let at = format!("{path}.Name");
        if node.name.is_empty() {
            findings.error(at, "is missing", "a name that no other node has, such as `900a`");
        } else if let Some(other) = self.0.insert(&node.name, path.to_owned()) {
            let problem = format!("`{}` is the name of {other} too: clients and probers mix the two up", node.name);
            findings.error(at, problem, "a name that no other node of any region has");
        }
    }
}

fn check_homes(map: &DerpMap, findings: &mut Findings) {
    if map.regions.values().all(|region| region.no_measure_no_home) {
        let problem = "no region may be measured (`NoMeasureNoHome`), so no client has a home";
        findings.error("Regions", problem, "leave one region at least to be a home");
    }
}

/// Where a node answers, if the map says so fully.
fn endpoint(node: &Node) -> (String, Option<u16>) {
    let address = [&node.ipv4, &node.ipv6].into_iter().find(|address| address.parse::<IpAddr>().is_ok());
    (address.unwrap_or(&node.host_name).to_ascii_lowercase(), node.derp_port())
}

fn check_endpoints(map: &DerpMap, findings: &mut Findings) {
    let mut seen: BTreeMap<(String, Option<u16>), (RegionId, String)> = BTreeMap::new();
    for (key, region) in &map.regions {
        let nodes = region.nodes.iter().enumerate().filter(|(_, node)| !node.host_name.is_empty() && node.stun_port >= 0);
        for (index, node) in nodes.filter(|_| !region.no_measure_no_home) {
            let path = format!("Regions[{key}].Nodes[{index}]");
            let Some((other_region, other)) = seen.insert(endpoint(node), (*key, path.clone())) else { continue };
            if other_region == *key {
                findings.warning(path, format!("is the same server as {other}"), "list each server once in a region");
            } else {
                let problem = format!(
                    "is the same server as {other}, and both answer STUN: two regions have one latency, and homes are arbitrary"
                );
                findings.warning(path, problem, "set `STUNPort` to -1 wherever the node stands in for another region");
            }
        }
    }
}

fn check_scores(map: &DerpMap, findings: &mut Findings) {
    let Some(scores) = map.home_params.as_ref().and_then(|params| params.region_score.as_ref()) else { return };
    for (region, score) in scores {
        let path = format!("HomeParams.RegionScore[{region}]");
        if *score <= 0.0 {
            findings.warning(
                path.clone(),
                format!("{score} is ignored"),
                "above 0: below 1 favours the region, above 1 penalises it",
            );
        }
        if !map.regions.contains_key(region) && map.omit_default_regions {
            findings.warning(path, "there is no such region", "leave it out");
        }
    }
    if !scores.is_empty() {
        let advice = "nothing to mend for Tailscale; with Headscale expect homes by latency alone";
        findings.note("HomeParams", "Headscale drops it: its clients know no scores", advice);
    }
}

fn note_shuffle(map: &DerpMap, findings: &mut Findings) {
    let several: Vec<String> =
        map.regions.iter().filter(|(_, region)| region.nodes.len() > 1).map(|(key, _)| key.to_string()).collect();
    if several.is_empty() {
        return;
    }
    let problem = format!(
        "more than one node in {}: Headscale shuffles them at each refresh, which closes connections",
        several.join(", ")
    );
    findings.note("Regions", problem, "nothing to mend for Tailscale; for Headscale list one node per region, behind a balancer");
}

#[cfg(test)]
mod tests;
