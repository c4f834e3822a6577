//! Who belongs to the fleet: the part of the replicated state that is not presence. Pure and deterministic.

use std::collections::BTreeMap;

use bytes::Bytes;
use causeway_proto::id::{NodeId, RegionId};
use causeway_rpc::v1;

use super::types::Reply;
use crate::derpmap::settings;
use crate::derpmap::state::MapState;
use crate::presence::OWNERS_MAX;

/// Longest name of a node.
const NAME_LEN_MAX: usize = 64;
/// Longest address or host name.
const ADDR_LEN_MAX: usize = 300;

/// The fleet as Raft has it.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct FleetState {
    /// Random, set when the fleet is formed; empty before.
    pub(crate) fleet_id: String,
    /// No new node is admitted.
    pub(crate) join_closed: bool,
    /// Certificate of the operators' CA; empty if there is none.
    pub(crate) operator_ca: Bytes,
    /// Admitted nodes, each pinned to its public key.
    pub(crate) nodes: BTreeMap<NodeId, v1::NodeRecord>,
    /// Nodes that may never return.
    pub(crate) evicted: BTreeMap<NodeId, v1::NodeRecord>,
    /// What the DERP map is made of beside the nodes.
    pub(crate) derp_map: MapState,
}

/// Checks what a node says of itself, before it is believed or stored.
///
/// # Errors
/// A sentence naming the field.
pub(crate) fn check_record(record: &v1::NodeRecord) -> Result<NodeId, &'static str> {
    let public_key: [u8; 32] = record.public_key.as_ref().try_into().map_err(|_| "public_key: a key is 32 bytes")?;
    let id = NodeId::of_public_key(&public_key);
    if id.0 != record.node_id {
        return Err("node_id: must follow from public_key");
    }
    if record.name.is_empty() || record.name.len() > NAME_LEN_MAX || record.name.chars().any(char::is_control) {
        return Err("name: 1 to 64 bytes, no control characters");
    }
    if record.mesh_addr.is_empty() || record.mesh_addr.len() > ADDR_LEN_MAX {
        return Err("mesh_addr: HOST:PORT, at most 300 bytes");
    }
    let region = record.region.as_ref().ok_or("region: must be set")?;
    if region.id == 0 || region.id >= 1 << 53 || region.code.is_empty() {
        return Err("region: needs a positive id and a code");
    }
    if region.code.len() > NAME_LEN_MAX || region.name.len() > ADDR_LEN_MAX || record.version.len() > NAME_LEN_MAX {
        return Err("region, version: too long");
    }
    let relay = record.relay.as_ref().ok_or("relay: must be set")?;
    if [&relay.host_name, &relay.ipv4, &relay.ipv6, &relay.cert_name].iter().any(|text| text.len() > ADDR_LEN_MAX) {
        return Err("relay: an address is too long");
    }
    Ok(id)
}

impl FleetState {
    /// Applies a command that is not presence. `is_fenced` tells dead nodes.
    pub(crate) fn apply(&mut self, command: v1::raft_command::Command, is_fenced: impl Fn(NodeId) -> bool) -> Reply {
        use v1::raft_command::Command as Kind;
        let regions = self.derp_map.regions(&self.nodes);
        let reply = match command {
            Kind::Presence(_) => return Reply::Refused("presence is not the fleet's state".to_owned()),
            Kind::FormFleet(form) => self.form(&form),
            Kind::PutNode(put) => self.put_node(&put.record.unwrap_or_default(), is_fenced),
            Kind::GrowFleet(grow) => self.grow(&grow),
            Kind::EvictNode(evict) => self.evict(NodeId(evict.node_id)),
            Kind::SetDerpMap(set) => self.set_derp_map(set.settings.unwrap_or_default()),
            Kind::ListNode(list) => self.list_node(NodeId(list.node_id), list.listed),
            Kind::DropRegion(dropped) => {
                self.derp_map.retired.remove(&RegionId(dropped.region_id));
                Reply::Applied { seq: 0 }
            }
        };
        self.derp_map.retire(regions, &self.nodes);
        reply
    }

    fn set_derp_map(&mut self, new: v1::DerpMapSettings) -> Reply {
        if let Err(reason) = settings::check(&new) {
            return Reply::Refused(reason);
        }
        self.derp_map.settings = Some(new);
        Reply::Applied { seq: 0 }
    }

    fn list_node(&mut self, id: NodeId, listed: bool) -> Reply {
        if listed && !self.derp_map.may_list(id, &self.nodes) {
            return Reply::Refused(format!("node {id} is not in the fleet, or another node is listed under its name"));
        }
        if listed {
            self.derp_map.unlisted.remove(&id);
        } else if self.nodes.contains_key(&id) {
            self.derp_map.unlisted.insert(id);
        }
        Reply::Applied { seq: 0 }
    }

    /// Forms the fleet; does nothing once it is formed.
    pub(crate) fn form(&mut self, command: &v1::FormFleet) -> Reply {
        if !self.fleet_id.is_empty() {
            return Reply::Refused(format!("the fleet {} is formed already", self.fleet_id));
        }
        self.fleet_id.clone_from(&command.fleet_id);
        self.join_closed = command.join_closed;
        self.operator_ca = command.operator_ca_der.clone();
        for record in command.nodes.iter().take(OWNERS_MAX) {
            if let Ok(id) = check_record(record) {
                self.nodes.insert(id, record.clone());
            }
        }
        Reply::Applied { seq: 0 }
    }

    /// Whether these settings would change anything of a fleet that has no other node yet.
    pub(crate) fn can_grow(&self, grow: &v1::GrowFleet) -> bool {
        let changes = self.join_closed != grow.join_closed
            || (!grow.operator_ca_der.is_empty() && self.operator_ca != grow.operator_ca_der);
        !self.fleet_id.is_empty() && self.nodes.len() == 1 && self.evicted.is_empty() && changes
    }

    /// Takes the settings of a fleet that is no longer alone.
    pub(crate) fn grow(&mut self, command: &v1::GrowFleet) -> Reply {
        if !self.can_grow(command) {
            return Reply::Refused("only a fleet of one takes other settings".to_owned());
        }
        self.join_closed = command.join_closed;
        if !command.operator_ca_der.is_empty() {
            self.operator_ca = command.operator_ca_der.clone();
        }
        Reply::Applied { seq: 0 }
    }

    /// Admits a node or replaces its record. `is_fenced` tells dead nodes, whose name may be taken over.
    pub(crate) fn put_node(&mut self, record: &v1::NodeRecord, is_fenced: impl Fn(NodeId) -> bool) -> Reply {
        let id = match check_record(record) {
            Ok(id) => id,
            Err(reason) => return Reply::Refused(format!("the node's record is malformed: {reason}")),
        };
        if self.fleet_id.is_empty() {
            return Reply::Refused("the fleet is not formed yet".to_owned());
        }
        if self.evicted.contains_key(&id) {
            return Reply::Refused(format!("node {id} is evicted"));
        }
        let namesakes = self.nodes.iter().filter(|(other, node)| **other != id && node.name == record.name);
        let namesakes: Vec<NodeId> = namesakes.map(|(other, _)| *other).collect();
        if let Some(namesake) = namesakes.iter().find(|other| !is_fenced(**other)) {
            return Reply::Refused(format!("the name `{}` is taken by node {namesake}", record.name));
        }
        match self.nodes.get(&id) {
            Some(known) if known.public_key != record.public_key => {
                return Reply::Refused(format!("node {id} is pinned to another public key"));
            }
            Some(_) => {}
            None if self.join_closed => return Reply::Refused("joining is closed".to_owned()),
            None if self.nodes.len() >= OWNERS_MAX => return Reply::Refused(format!("the fleet has {OWNERS_MAX} nodes already")),
            None => {}
        }
        // The dead nodes of that name leave the DERP map to this one.
        self.derp_map.unlisted.extend(namesakes);
        self.nodes.insert(id, record.clone());
        Reply::Applied { seq: 0 }
    }

    /// Removes a node for good.
    pub(crate) fn evict(&mut self, id: NodeId) -> Reply {
        match self.nodes.remove(&id) {
            Some(record) => {
                self.evicted.insert(id, record);
                Reply::Applied { seq: 0 }
            }
            None if self.evicted.contains_key(&id) => Reply::Applied { seq: 0 },
            None => Reply::Refused(format!("node {id} is not in the fleet")),
        }
    }

    pub(crate) fn to_snapshot(&self) -> v1::FleetSnapshot {
        v1::FleetSnapshot {
            fleet_id: self.fleet_id.clone(),
            join_closed: self.join_closed,
            operator_ca_der: self.operator_ca.clone(),
            nodes: self.nodes.values().cloned().collect(),
            evicted: self.evicted.values().cloned().collect(),
            derp_map: Some(self.derp_map.to_snapshot()),
        }
    }

    pub(crate) fn from_snapshot(snapshot: v1::FleetSnapshot) -> Self {
        let by_id = |records: Vec<v1::NodeRecord>| records.into_iter().map(|record| (NodeId(record.node_id), record)).collect();
        Self {
            fleet_id: snapshot.fleet_id,
            join_closed: snapshot.join_closed,
            operator_ca: snapshot.operator_ca_der,
            nodes: by_id(snapshot.nodes),
            evicted: by_id(snapshot.evicted),
            derp_map: MapState::from_snapshot(snapshot.derp_map.unwrap_or_default()),
        }
    }
}

#[cfg(test)]
pub(crate) fn sample_record(name: &str, region_id: u64) -> v1::NodeRecord {
    let public_key =
        crate::identity::NodeKey::from_seed(&<sha2::Sha256 as sha2::Digest>::digest(name).into()).identity().public_key;
    v1::NodeRecord {
        node_id: NodeId::of_public_key(&public_key).0,
        public_key: public_key.to_vec().into(),
        name: name.to_owned(),
        region: Some(v1::Region {
            id: region_id,
            code: format!("r{region_id}"),
            name: format!("Region {region_id}"),
            ..Default::default()
        }),
        mesh_addr: "127.0.0.1:1".to_owned(),
        relay: Some(v1::RelayEndpoint { host_name: "localhost".to_owned(), derp_port: 443, ..Default::default() }),
        voter_eligible: true,
        version: "0".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn formed(join_closed: bool) -> FleetState {
        let mut state = FleetState::default();
        let nodes = vec![sample_record("a1", 1)];
        let form = v1::FormFleet { fleet_id: "f".to_owned(), join_closed, operator_ca_der: Bytes::new(), nodes };
        assert_eq!(state.form(&form), Reply::Applied { seq: 0 });
        state
    }

    fn refused(reply: &Reply, with: &str) -> bool {
        matches!(reply, Reply::Refused(reason) if reason.contains(with))
    }

    #[test]
    fn a_fleet_is_formed_once() {
        let mut state = formed(false);
        let again = v1::FormFleet { fleet_id: "g".to_owned(), ..Default::default() };
        assert!(refused(&state.form(&again), "formed already"));
        assert_eq!(state.fleet_id, "f");
    }

    #[test]
    fn nodes_join_by_policy_and_update_their_records() {
        let mut open = formed(false);
        assert_eq!(open.put_node(&sample_record("b1", 2), |_| false), Reply::Applied { seq: 0 });
        let mut moved = sample_record("b1", 2);
        moved.mesh_addr = "127.0.0.1:2".to_owned();
        assert_eq!(open.put_node(&moved, |_| false), Reply::Applied { seq: 0 });
        assert_eq!(open.nodes[&NodeId(moved.node_id)].mesh_addr, "127.0.0.1:2");
        let mut closed = formed(true);
        assert!(refused(&closed.put_node(&sample_record("b1", 2), |_| false), "closed"));
        assert_eq!(closed.put_node(&sample_record("a1", 1), |_| false), Reply::Applied { seq: 0 });
    }

    #[test]
    fn a_fleet_of_one_takes_new_settings_until_another_node_is_in() {
        let mut state = formed(true);
        let grow = v1::GrowFleet { join_closed: false, operator_ca_der: Bytes::from_static(b"ca") };
        assert_eq!(state.grow(&grow), Reply::Applied { seq: 0 });
        assert_eq!((state.join_closed, &state.operator_ca[..]), (false, &b"ca"[..]));
        assert!(!state.can_grow(&v1::GrowFleet::default()), "no CA named, none lost");
        assert_eq!(state.put_node(&sample_record("b1", 2), |_| false), Reply::Applied { seq: 0 });
        assert!(refused(&state.grow(&v1::GrowFleet { join_closed: true, ..Default::default() }), "fleet of one"));
        assert!(!FleetState::default().can_grow(&grow), "nothing is formed");
    }

    #[test]
    fn false_keys_taken_names_and_evicted_nodes_are_refused() {
        let mut state = formed(false);
        let mut forged = sample_record("b1", 2);
        forged.node_id = sample_record("a1", 1).node_id;
        assert!(refused(&state.put_node(&forged, |_| false), "must follow from public_key"));
        let mut namesake = sample_record("b1", 2);
        namesake.name = "a1".to_owned();
        assert!(refused(&state.put_node(&namesake, |_| false), "is taken"));
        assert_eq!(state.put_node(&namesake, |_| true), Reply::Applied { seq: 0 });
        assert_eq!(state.evict(NodeId(namesake.node_id)), Reply::Applied { seq: 0 });
        assert!(refused(&state.put_node(&namesake, |_| false), "evicted"));
        assert_eq!(FleetState::from_snapshot(state.to_snapshot()), state);
    }

    #[test]
    fn a_node_that_takes_over_a_name_takes_the_place_in_the_derp_map_too() {
        let mut state = formed(false);
        let mut heir = sample_record("b1", 1);
        heir.name = "a1".to_owned();
        state.put_node(&heir, |_| true);
        let listed =
            |state: &FleetState| state.derp_map.listed(&state.nodes).iter().map(|record| record.node_id).collect::<Vec<_>>();
        assert_eq!(listed(&state), [heir.node_id]);
        let dead = NodeId(sample_record("a1", 1).node_id);
        assert!(refused(&state.list_node(dead, true), "under its name"));
        assert_eq!(listed(&state), [heir.node_id]);
        assert_eq!(FleetState::from_snapshot(state.to_snapshot()), state);
    }
}
