//! The nodes this node knows of, as one immutable value behind a watch channel.

use std::collections::BTreeMap;

use causeway_proto::id::{NodeId, RegionId};
use causeway_rpc::v1;

/// A known node.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeEntry {
    /// What it says of itself.
    pub record: v1::NodeRecord,
    /// The fleet has admitted it (its record is in the Raft state); otherwise it is only known by introduction.
    pub admitted: bool,
    /// Raft has fenced its current epoch: it is taken for dead.
    pub fenced: bool,
}

impl NodeEntry {
    /// The node's id.
    #[must_use]
    pub const fn id(&self) -> NodeId {
        NodeId(self.record.node_id)
    }

    /// The node's region; 0 (which no node may use) if its record names none.
    #[must_use]
    pub fn region_id(&self) -> RegionId {
        RegionId(self.record.region.as_ref().map_or(0, |region| region.id))
    }

    /// The code of the node's region, empty if its record names none.
    #[must_use]
    pub fn region_code(&self) -> &str {
        self.record.region.as_ref().map_or("", |region| &region.code)
    }
}

/// All known nodes that are not evicted, this one included.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeSet {
    own: NodeId,
    nodes: BTreeMap<NodeId, NodeEntry>,
}

impl NodeSet {
    /// A set of `nodes` as seen by `own`.
    #[must_use]
    pub fn new(own: NodeId, nodes: impl IntoIterator<Item = NodeEntry>) -> Self {
        Self { own, nodes: nodes.into_iter().map(|node| (node.id(), node)).collect() }
    }

    /// This node's id.
    #[must_use]
    pub const fn own(&self) -> NodeId {
        self.own
    }

    /// A node by its id.
    #[must_use]
    pub fn get(&self, id: NodeId) -> Option<&NodeEntry> {
        self.nodes.get(&id)
    }

    /// A node by its name or by its id in hex.
    #[must_use]
    pub fn find(&self, name_or_id: &str) -> Option<&NodeEntry> {
        let by_name = self.nodes.values().find(|node| node.record.name == name_or_id);
        by_name.or_else(|| self.get(name_or_id.parse().ok()?))
    }

    /// The region of a node, if it is known.
    #[must_use]
    pub fn region_of(&self, id: NodeId) -> Option<RegionId> {
        self.get(id).map(NodeEntry::region_id)
    }

    /// All nodes in the order of their ids.
    pub fn iter(&self) -> impl Iterator<Item = &NodeEntry> {
        self.nodes.values()
    }

    /// All nodes but this one, in the order of their ids.
    pub fn others(&self) -> impl Iterator<Item = &NodeEntry> {
        self.iter().filter(|node| node.id() != self.own)
    }

    /// How many nodes are known, this one included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether no node is known, which is never so once the control plane has started.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }
}
