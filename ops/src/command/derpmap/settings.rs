//! How the DERP map is made, as a TOML file: `docs/operations/derp-map.toml` documents every field.

use std::collections::BTreeMap;

use causeway_rpc::v1;
use serde::{Deserialize, Serialize};

/// The file. What is left out has its default.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(in crate::command) struct MapSettings {
    mode: Mode,
    #[serde(skip_serializing_if = "Option::is_none")]
    cross_listed_per_region: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    grace_seconds: Option<u32>,
    merge_default_regions: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    single_region: Option<SingleRegion>,
    /// By id.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    regions: BTreeMap<String, RegionSettings>,
}

/// How regions list their nodes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Mode {
    #[default]
    Plain,
    CrossListed,
    Balanced,
    SingleRegion,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SingleRegion {
    id: u64,
    code: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    latitude: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    longitude: Option<f64>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RegionSettings {
    #[serde(skip_serializing_if = "Option::is_none")]
    mode: Option<Mode>,
    #[serde(skip_serializing_if = "Option::is_none")]
    score: Option<f64>,
    avoid: bool,
    no_measure_no_home: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    balancer: Option<Balancer>,
}

/// Fields as in `[advertise]` of a node.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Balancer {
    host_name: String,
    ipv4: String,
    ipv6: String,
    derp_port: u16,
    stun_port: i32,
    can_port80: bool,
    cert_name: String,
    insecure_for_tests: bool,
}

impl Mode {
    const fn to_message(self) -> v1::DerpMapMode {
        match self {
            Self::Plain => v1::DerpMapMode::Plain,
            Self::CrossListed => v1::DerpMapMode::CrossListed,
            Self::Balanced => v1::DerpMapMode::Balanced,
            Self::SingleRegion => v1::DerpMapMode::SingleRegion,
        }
    }

    const fn from_message(mode: v1::DerpMapMode) -> Self {
        match mode {
            v1::DerpMapMode::Plain => Self::Plain,
            v1::DerpMapMode::CrossListed => Self::CrossListed,
            v1::DerpMapMode::Balanced => Self::Balanced,
            v1::DerpMapMode::SingleRegion => Self::SingleRegion,
        }
    }
}

impl MapSettings {
    /// Reads the file; what the values mean is checked by the node.
    ///
    /// # Errors
    /// Naming line or field.
    pub(in crate::command) fn parse(text: &str) -> Result<Self, String> {
        let settings: Self = toml::from_str(text).map_err(|error| error.to_string().trim_end().to_owned())?;
        settings.checked()
    }

    /// As [`Self::parse`], from JSON with the same fields.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub(in crate::command) fn parse_json(text: &str) -> Result<Self, String> {
        let settings: Self = serde_json::from_str(text).map_err(|error| error.to_string())?;
        settings.checked()
    }

    fn checked(self) -> Result<Self, String> {
        for (field, value) in [("cross_listed_per_region", self.cross_listed_per_region), ("grace_seconds", self.grace_seconds)] {
            if value == Some(0) {
                return Err(format!("{field}: 0 is too small: wanted at least 1"));
            }
        }
        for (id, region) in &self.regions {
            if id.parse::<u64>().map(|id| id.to_string()).as_ref() != Ok(id) {
                return Err(format!("regions.{id}: wanted the region's id, such as [regions.901]"));
            }
            if region.balancer.as_ref().is_some_and(|balancer| !(-1..=65_535).contains(&balancer.stun_port)) {
                return Err(format!("regions.{id}.balancer.stun_port: wanted a port, 0 for 3478, or -1 for no STUN"));
            }
        }
        Ok(self)
    }

    pub(in crate::command) fn to_message(&self) -> v1::DerpMapSettings {
        let mut regions: Vec<_> = self.regions.iter().map(|(id, region)| region.to_message(id)).collect();
        regions.sort_by_key(|region| region.id);
        v1::DerpMapSettings {
            mode: self.mode.to_message().into(),
            cross_listed_per_region: self.cross_listed_per_region.unwrap_or_default(),
            grace_s: self.grace_seconds.unwrap_or_default(),
            merge_default_regions: self.merge_default_regions,
            single_region: self.single_region.clone().map(|region| v1::Region {
                id: region.id,
                code: region.code,
                name: region.name,
                latitude: region.latitude,
                longitude: region.longitude,
            }),
            regions,
        }
    }

    pub(in crate::command) fn from_message(message: v1::DerpMapSettings) -> Self {
        let set = |value: u32| Some(value).filter(|value| *value != 0);
        Self {
            mode: Mode::from_message(message.mode()),
            cross_listed_per_region: set(message.cross_listed_per_region),
            grace_seconds: set(message.grace_s),
            merge_default_regions: message.merge_default_regions,
            single_region: message.single_region.map(|region| SingleRegion {
                id: region.id,
                code: region.code,
                name: region.name,
                latitude: region.latitude,
                longitude: region.longitude,
            }),
            regions: message
                .regions
                .into_iter()
                .map(|region| (region.id.to_string(), RegionSettings::from_message(region)))
                .collect(),
        }
    }
}

impl RegionSettings {
    fn to_message(&self, id: &str) -> v1::DerpRegionSettings {
        v1::DerpRegionSettings {
            id: id.parse().unwrap_or_default(),
            mode: self.mode.map(|mode| mode.to_message().into()),
            score: self.score,
            avoid: self.avoid,
            no_measure_no_home: self.no_measure_no_home,
            balancer: self.balancer.clone().map(|balancer| v1::RelayEndpoint {
                host_name: balancer.host_name,
                ipv4: balancer.ipv4,
                ipv6: balancer.ipv6,
                derp_port: balancer.derp_port.into(),
                stun_port: balancer.stun_port,
                can_port80: balancer.can_port80,
                cert_name: balancer.cert_name,
                insecure_for_tests: balancer.insecure_for_tests,
                ..Default::default()
            }),
        }
    }

    fn from_message(message: v1::DerpRegionSettings) -> Self {
        Self {
            mode: message.mode.is_some().then(|| Mode::from_message(message.mode())),
            score: message.score,
            avoid: message.avoid,
            no_measure_no_home: message.no_measure_no_home,
            balancer: message.balancer.map(|balancer| Balancer {
                host_name: balancer.host_name,
                ipv4: balancer.ipv4,
                ipv6: balancer.ipv6,
                derp_port: u16::try_from(balancer.derp_port).unwrap_or_default(),
                stun_port: balancer.stun_port,
                can_port80: balancer.can_port80,
                cert_name: balancer.cert_name,
                insecure_for_tests: balancer.insecure_for_tests,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The documented example.
    const EXAMPLE: &str = include_str!("../../../../docs/operations/derp-map.toml");

    #[test]
    fn the_documented_example_names_every_field_and_survives_the_way_to_the_node_and_back() {
        let settings = MapSettings::parse(EXAMPLE).expect("the example is valid");
        assert_eq!(MapSettings::from_message(settings.to_message()), settings);
        let printed = toml::to_string(&settings).expect("TOML");
        assert_eq!(MapSettings::parse(&printed), Ok(settings.clone()));
        // With everything in it that can be left out.
        let mut all = settings;
        all.single_region =
            Some(SingleRegion { id: 1, code: "a".into(), name: "A".into(), latitude: Some(1.5), longitude: Some(1.5) });
        let fields = serde_json::to_value(&all).expect("JSON");
        let mut names = Vec::new();
        field_names(&fields, &mut names);
        for name in names.iter().filter(|name| name.parse::<u64>().is_err()) {
            assert!(EXAMPLE.contains(name.as_str()), "docs/operations/derp-map.toml does not mention `{name}`");
        }
        assert!(names.len() > 20, "{names:?}");
    }

    fn field_names(value: &serde_json::Value, names: &mut Vec<String>) {
        for (name, value) in value.as_object().into_iter().flatten() {
            names.push(name.clone());
            field_names(value, names);
        }
    }

    #[test]
    fn nothing_at_all_means_the_defaults() {
        let settings = MapSettings::parse("").expect("valid");
        assert_eq!(settings.to_message(), v1::DerpMapSettings::default());
        assert_eq!(MapSettings::from_message(v1::DerpMapSettings::default()), settings);
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        for (text, named) in [
            ("mode = 'crosslisted'", "cross-listed"),
            ("mod = 'plain'", "mod"),
            ("grace_seconds = 0", "grace_seconds"),
            ("cross_listed_per_region = 0", "cross_listed_per_region"),
            ("[regions.fra]\nscore = 1.0", "regions.fra"),
            ("[regions.0901]\nscore = 1.0", "regions.0901"),
            ("[regions.901]\nscore = 'high'", "line 2"),
            ("[regions.901.balancer]\nstun_port = -2", "regions.901.balancer.stun_port"),
            ("[single_region]\nid = 1", "code"),
        ] {
            let error = MapSettings::parse(text).expect_err(text);
            assert!(error.contains(named), "{text}: {error}");
        }
    }
}
