//! What the DERP map is made of beside the nodes' records: settings, nodes that are left out, regions that are kept for a while. Part of
//! the replicated state, so pure and deterministic.

use std::collections::{BTreeMap, BTreeSet};

use causeway_proto::id::{NodeId, RegionId};
use causeway_rpc::v1;

/// Regions without nodes that are kept at most; beyond that a region leaves the map at once.
pub(crate) const RETIRED_REGIONS_MAX: usize = 64;

/// The records of the fleet's nodes.
pub(crate) type Nodes = BTreeMap<NodeId, v1::NodeRecord>;

/// The replicated state of the map.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct MapState {
    /// `None`: never set, so clients were never told any scores.
    pub(crate) settings: Option<v1::DerpMapSettings>,
    /// Nodes that have been away for too long. Each is in the fleet.
    pub(crate) unlisted: BTreeSet<NodeId>,
    /// Regions whose last node has gone, for as long as they are kept.
    pub(crate) retired: BTreeMap<RegionId, v1::Region>,
}

impl MapState {
    /// The fleet's mode.
    pub(crate) fn mode(&self) -> v1::DerpMapMode {
        self.settings.as_ref().map_or(v1::DerpMapMode::Plain, v1::DerpMapSettings::mode)
    }

    /// What is set for a region.
    pub(crate) fn region_settings(&self, region: RegionId) -> Option<&v1::DerpRegionSettings> {
        self.settings.as_ref()?.regions.iter().find(|settings| settings.id == region.0)
    }

    /// The nodes that the map lists, in the order of their regions and names.
    pub(crate) fn listed<'a>(&self, nodes: &'a Nodes) -> Vec<&'a v1::NodeRecord> {
        let mut listed: Vec<_> = nodes.iter().filter(|(id, _)| !self.unlisted.contains(id)).map(|(_, record)| record).collect();
        listed.sort_by_key(|record| (region_id(record), &record.name, record.node_id));
        let mut names = BTreeSet::new();
        listed.retain(|record| record.region.is_some() && record.relay.is_some() && names.insert(&record.name));
        listed
    }

    /// The regions of listed nodes as the map has them: with the mode `single-region` only that one.
    pub(crate) fn regions(&self, nodes: &Nodes) -> BTreeMap<RegionId, v1::Region> {
        let listed = self.listed(nodes);
        let single = self.settings.as_ref().and_then(|settings| settings.single_region.clone());
        match single {
            Some(_) if listed.is_empty() => BTreeMap::new(),
            Some(region) if self.mode() == v1::DerpMapMode::SingleRegion => BTreeMap::from([(RegionId(region.id), region)]),
            _ => {
                let mut regions = BTreeMap::new();
                for record in listed {
                    // Nodes may differ in what they say of their region: the first one stands.
                    regions.entry(region_id(record)).or_insert_with(|| record.region.clone().unwrap_or_default());
                }
                regions
            }
        }
    }

    /// After a change: keeps the regions of before that have no nodes any more, and forgets those that have some again.
    pub(crate) fn retire(&mut self, before: BTreeMap<RegionId, v1::Region>, nodes: &Nodes) {
        self.unlisted.retain(|node| nodes.contains_key(node));
        let now = self.regions(nodes);
        self.retired.retain(|id, _| !now.contains_key(id));
        for (id, region) in before {
            if !now.contains_key(&id) && self.retired.len() < RETIRED_REGIONS_MAX {
                self.retired.insert(id, region);
            }
        }
    }

    /// Whether a node that is left out may be listed: no other one has its name.
    pub(crate) fn may_list(&self, node: NodeId, nodes: &Nodes) -> bool {
        let Some(record) = nodes.get(&node) else { return false };
        !self.listed(nodes).iter().any(|other| other.name == record.name && other.node_id != node.0)
    }

    pub(crate) fn to_snapshot(&self) -> v1::DerpMapState {
        v1::DerpMapState {
            settings: self.settings.clone(),
            unlisted: self.unlisted.iter().map(|node| node.0).collect(),
            retired: self.retired.values().cloned().collect(),
        }
    }

    pub(crate) fn from_snapshot(snapshot: v1::DerpMapState) -> Self {
        Self {
            settings: snapshot.settings,
            unlisted: snapshot.unlisted.into_iter().map(NodeId).collect(),
            retired: snapshot.retired.into_iter().map(|region| (RegionId(region.id), region)).collect(),
        }
    }
}

pub(crate) fn region_id(record: &v1::NodeRecord) -> RegionId {
    RegionId(record.region.as_ref().map_or(0, |region| region.id))
}
