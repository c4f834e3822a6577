//! The DERP map in Tailscale's JSON (`derp.md` section 14) and what is checked of it.

pub mod lint;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::Serialize;

use crate::id::RegionId;
use crate::json::{depth_is_bounded, deserialize_folded};
use crate::limits::{DERP_MAP_LEN_MAX, DERP_MAP_NODES_MAX, DERP_MAP_REGIONS_MAX, JSON_DEPTH_MAX};

/// Regions and their nodes. Serialises in a stable order.
#[derive(Clone, Debug, PartialEq, Default, Serialize)]
pub struct DerpMap {
    /// How to weigh regions when choosing a home; absent leaves what was known.
    #[serde(rename = "HomeParams", skip_serializing_if = "Option::is_none")]
    pub home_params: Option<HomeParams>,
    /// By id.
    #[serde(rename = "Regions")]
    pub regions: BTreeMap<RegionId, Region>,
    /// Not to be merged with the vendor's regions.
    #[serde(rename = "omitDefaultRegions", skip_serializing_if = "std::ops::Not::not")]
    pub omit_default_regions: bool,
}

/// How to weigh regions when choosing a home.
#[derive(Clone, Debug, PartialEq, Default, Serialize)]
pub struct HomeParams {
    /// Factor on the measured latency: below 1 favours, above 1 penalises, absent is 1, not above 0 is ignored.
    #[serde(rename = "RegionScore", skip_serializing_if = "Option::is_none")]
    pub region_score: Option<BTreeMap<RegionId, f64>>,
}

/// One region.
#[derive(Clone, Debug, PartialEq, Default, Serialize)]
pub struct Region {
    /// Positive, at most [`REGION_ID_MAX`]; 900 to 999 are reserved for self-hosted ones.
    #[serde(rename = "RegionID")]
    pub region_id: RegionId,
    /// Short code.
    #[serde(rename = "RegionCode")]
    pub region_code: String,
    /// Long name.
    #[serde(rename = "RegionName")]
    pub region_name: String,
    /// Degrees; 0 is not written.
    #[serde(rename = "Latitude", skip_serializing_if = "is_zero_float")]
    pub latitude: f64,
    /// Degrees; 0 is not written.
    #[serde(rename = "Longitude", skip_serializing_if = "is_zero_float")]
    pub longitude: f64,
    /// Deprecated: left out of incremental plans unless it is the home.
    #[serde(rename = "Avoid", skip_serializing_if = "std::ops::Not::not")]
    pub avoid: bool,
    /// Never probed, never a home; still used to reach peers.
    #[serde(rename = "NoMeasureNoHome", skip_serializing_if = "std::ops::Not::not")]
    pub no_measure_no_home: bool,
    /// In order of priority.
    #[serde(rename = "Nodes")]
    pub nodes: Vec<Node>,
}

/// One relay node.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize)]
pub struct Node {
    /// Unique across all regions.
    #[serde(rename = "Name")]
    pub name: String,
    /// The region that its measurements are filed under.
    #[serde(rename = "RegionID")]
    pub region_id: RegionId,
    /// DNS name or IP address; server name and certificate name of TLS.
    #[serde(rename = "HostName")]
    pub host_name: String,
    /// Expected certificate name instead of `host_name`, or `sha256-raw:` and 64 hex digits.
    #[serde(rename = "CertName", skip_serializing_if = "String::is_empty")]
    pub cert_name: String,
    /// Fixed address; empty: by DNS; anything else, e.g. `none`: no IPv4.
    #[serde(rename = "IPv4", skip_serializing_if = "String::is_empty")]
    pub ipv4: String,
    /// Fixed address; empty: by DNS; anything else, e.g. `none`: no IPv6.
    #[serde(rename = "IPv6", skip_serializing_if = "String::is_empty")]
    pub ipv6: String,
    /// 0 is 3478, -1 is no STUN.
    #[serde(rename = "STUNPort", skip_serializing_if = "is_zero_port")]
    pub stun_port: i32,
    /// Not a relay.
    #[serde(rename = "STUNOnly", skip_serializing_if = "std::ops::Not::not")]
    pub stun_only: bool,
    /// 0 is 443.
    #[serde(rename = "DERPPort", skip_serializing_if = "is_zero_port")]
    pub derp_port: i32,
    /// Certificates are not verified.
    #[serde(rename = "InsecureForTests", skip_serializing_if = "std::ops::Not::not")]
    pub insecure_for_tests: bool,
    /// Test override of the STUN server's address.
    #[serde(rename = "STUNTestIP", skip_serializing_if = "String::is_empty")]
    pub stun_test_ip: String,
    /// Port 80 is reachable, for captive-portal checks.
    #[serde(rename = "CanPort80", skip_serializing_if = "std::ops::Not::not")]
    pub can_port80: bool,
}

/// Largest region id: JSON numbers are exact up to here.
pub const REGION_ID_MAX: u64 = (1 << 53) - 1;

/// Port of DERP unless the map says otherwise.
pub const DERP_PORT_DEFAULT: u16 = 443;

/// Port of STUN unless the map says otherwise.
pub const STUN_PORT_DEFAULT: u16 = 3478;

impl Node {
    /// Port of DERP; `None` if the map's is none.
    #[must_use]
    pub fn derp_port(&self) -> Option<u16> {
        if self.derp_port == 0 { Some(DERP_PORT_DEFAULT) } else { u16::try_from(self.derp_port).ok() }
    }

    /// Port of STUN; `None` if the node does not offer it.
    #[must_use]
    pub fn stun_port(&self) -> Option<u16> {
        if self.stun_port == 0 { Some(STUN_PORT_DEFAULT) } else { u16::try_from(self.stun_port).ok() }
    }

    /// How to find the node over IPv4.
    #[must_use]
    pub fn ipv4(&self) -> NodeAddress<Ipv4Addr> {
        NodeAddress::of(&self.ipv4)
    }

    /// How to find the node over IPv6.
    #[must_use]
    pub fn ipv6(&self) -> NodeAddress<Ipv6Addr> {
        NodeAddress::of(&self.ipv6)
    }
}

/// How to find a node in one address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeAddress<A> {
    /// At this address.
    Fixed(A),
    /// By its host name.
    Dns,
    /// Not at all.
    Disabled,
}

impl<A: std::str::FromStr> NodeAddress<A> {
    fn of(text: &str) -> Self {
        if text.is_empty() { Self::Dns } else { text.parse().map_or(Self::Disabled, Self::Fixed) }
    }
}

fn is_zero_float(x: &f64) -> bool {
    *x == 0.0
}

const fn is_zero_port(port: &i32) -> bool {
    *port == 0
}

deserialize_folded!(DerpMap, "a DERP map object", {
    "HomeParams" => home_params,
    "Regions" => regions,
    "omitDefaultRegions" => omit_default_regions,
});

deserialize_folded!(HomeParams, "a HomeParams object", {
    "RegionScore" => region_score,
});

deserialize_folded!(Region, "a DERP region object", {
    "RegionID" => region_id,
    "RegionCode" => region_code,
    "RegionName" => region_name,
    "Latitude" => latitude,
    "Longitude" => longitude,
    "Avoid" => avoid,
    "NoMeasureNoHome" => no_measure_no_home,
    "Nodes" => nodes,
});

deserialize_folded!(Node, "a DERP node object", {
    "Name" => name,
    "RegionID" => region_id,
    "HostName" => host_name,
    "CertName" => cert_name,
    "IPv4" => ipv4,
    "IPv6" => ipv6,
    "STUNPort" => stun_port,
    "STUNOnly" => stun_only,
    "DERPPort" => derp_port,
    "InsecureForTests" => insecure_for_tests,
    "STUNTestIP" => stun_test_ip,
    "CanPort80" => can_port80,
});

/// A DERP map cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DerpMapError {
    /// Longer than [`DERP_MAP_LEN_MAX`].
    #[error("a DERP map is at most {DERP_MAP_LEN_MAX} bytes, this one has {0}")]
    TooLong(usize),
    /// Arrays and objects nest too deep.
    #[error("the JSON nests deeper than {JSON_DEPTH_MAX}")]
    Depth,
    /// Not JSON, or a field of the wrong type; the text names the field.
    #[error("not a DERP map: {0}")]
    Json(String),
    /// A field's value is wrong.
    #[error("`{field}` is {is}; it must be {must}")]
    Field {
        /// Where, e.g. `Regions[900].Nodes[0].HostName`.
        field: String,
        /// What is there.
        is: String,
        /// What would be right.
        must: &'static str,
    },
}

impl DerpMap {
    /// From JSON, field names without regard to case. Does not [`validate`](Self::validate).
    ///
    /// # Errors
    /// [`DerpMapError`].
    pub fn from_json(json: &[u8]) -> Result<Self, DerpMapError> {
        if json.len() > DERP_MAP_LEN_MAX {
            return Err(DerpMapError::TooLong(json.len()));
        }
        if !depth_is_bounded(json) {
            return Err(DerpMapError::Depth);
        }
        serde_json::from_slice(json).map_err(|e| DerpMapError::Json(e.to_string()))
    }

    /// To compact JSON, the same bytes for equal maps.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("string and integer keys, strings and numbers are always JSON")
    }

    /// Checks what a stock client relies on.
    ///
    /// # Errors
    /// [`DerpMapError::Field`] for the first field that is wrong, in the map's order.
    pub fn validate(&self) -> Result<(), DerpMapError> {
        if self.regions.len() > DERP_MAP_REGIONS_MAX {
            return Err(wrong("Regions".to_owned(), format!("{} entries", self.regions.len()), "at most 4096 entries"));
        }
        let mut names = BTreeSet::new();
        for (key, region) in &self.regions {
            region.validate(*key, &mut names)?;
        }
        Ok(())
    }
}

fn wrong(field: String, is: impl Into<String>, must: &'static str) -> DerpMapError {
    DerpMapError::Field { field, is: is.into(), must }
}

fn quoted(text: &str) -> String {
    format!("`{text}`")
}

impl Region {
    fn validate<'a>(&'a self, key: RegionId, names: &mut BTreeSet<&'a str>) -> Result<(), DerpMapError> {
        let at = |field: &str| format!("Regions[{key}].{field}");
        if self.region_id != key {
            return Err(wrong(at("RegionID"), self.region_id.to_string(), "the key it stands under"));
        }
        if key.0 == 0 || key.0 > REGION_ID_MAX {
            return Err(wrong(at("RegionID"), key.to_string(), "from 1 to 2^53 - 1"));
        }
        if self.region_code.is_empty() {
            return Err(wrong(at("RegionCode"), "empty", "a short code, e.g. `fra`"));
        }
        if !(-90.0..=90.0).contains(&self.latitude) {
            return Err(wrong(at("Latitude"), self.latitude.to_string(), "degrees from -90 to 90"));
        }
        if !(-180.0..=180.0).contains(&self.longitude) {
            return Err(wrong(at("Longitude"), self.longitude.to_string(), "degrees from -180 to 180"));
        }
        if self.nodes.len() > DERP_MAP_NODES_MAX {
            return Err(wrong(at("Nodes"), format!("{} entries", self.nodes.len()), "at most 1024 entries"));
        }
        for (index, node) in self.nodes.iter().enumerate() {
            node.validate(key, &format!("Regions[{key}].Nodes[{index}]"), names)?;
        }
        Ok(())
    }
}

impl Node {
    fn validate<'a>(&'a self, region: RegionId, path: &str, names: &mut BTreeSet<&'a str>) -> Result<(), DerpMapError> {
        let at = |field: &str| format!("{path}.{field}");
        if self.name.is_empty() {
            return Err(wrong(at("Name"), "empty", "a name that no other node has, e.g. `900a`"));
        }
        if !names.insert(&self.name) {
            return Err(wrong(at("Name"), quoted(&self.name), "a name that no other node has"));
        }
        if self.region_id != region {
            return Err(wrong(at("RegionID"), self.region_id.to_string(), "the id of the region it stands in"));
        }
        if !is_host_name(&self.host_name) {
            return Err(wrong(at("HostName"), quoted(&self.host_name), "a DNS name or an IP address"));
        }
        if !is_cert_name(&self.cert_name) {
            return Err(wrong(at("CertName"), quoted(&self.cert_name), "a DNS name, or `sha256-raw:` and 64 hex digits"));
        }
        if !(0..=65_535).contains(&self.derp_port) {
            return Err(wrong(at("DERPPort"), self.derp_port.to_string(), "a port, or 0 for 443"));
        }
        if !(-1..=65_535).contains(&self.stun_port) {
            return Err(wrong(at("STUNPort"), self.stun_port.to_string(), "a port, 0 for 3478, or -1 for no STUN"));
        }
        if !self.stun_test_ip.is_empty() && self.stun_test_ip.parse::<IpAddr>().is_err() {
            return Err(wrong(at("STUNTestIP"), quoted(&self.stun_test_ip), "an IP address"));
        }
        Ok(())
    }
}

fn is_host_name(name: &str) -> bool {
    let label = |l: &str| (1..=63).contains(&l.len()) && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    name.parse::<IpAddr>().is_ok() || (name.len() <= 253 && name.strip_suffix('.').unwrap_or(name).split('.').all(label))
}

fn is_cert_name(name: &str) -> bool {
    match name.strip_prefix("sha256-raw:") {
        Some(hex) => hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit()),
        None => name.is_empty() || is_host_name(name),
    }
}

#[cfg(test)]
mod tests;
