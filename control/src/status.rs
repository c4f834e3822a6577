//! What operators see of the control plane: from what this node knows, without waiting for anybody.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use causeway_proto::id::{NodeId, RegionId};
use causeway_rpc::v1;
use openraft::{Instant as _, ServerState};

use crate::discovery::NodeEntry;
use crate::fleet::Fleet;
use crate::presence::view::OwnerStatus;

/// A leader that no quorum acknowledged for so long has lost it, or is about to.
const QUORUM_ACK_AGE_MAX: Duration = Duration::from_secs(5);

/// Answers operators' questions about fleet and Raft from what this node knows; never waits.
#[derive(Debug, Clone)]
pub struct Status {
    pub(crate) fleet: Arc<Fleet>,
}

/// What is known of Raft at a moment.
struct Group {
    leader: Option<NodeId>,
    term: u64,
    voters: BTreeSet<NodeId>,
    members: BTreeSet<NodeId>,
    unreachable: Vec<NodeId>,
    quorum: bool,
    stopped: Option<String>,
}

impl Status {
    /// The fleet's id, empty until this node is in one.
    #[must_use]
    pub fn fleet_id(&self) -> String {
        self.fleet.fleet_id()
    }

    /// The certificate of the operators' CA as the fleet has it (DER); empty if there is none.
    #[must_use]
    pub fn operator_ca(&self) -> bytes::Bytes {
        self.fleet.consensus.machine().read(|state| state.fleet.operator_ca.clone())
    }

    /// The fleet as this node sees it.
    #[must_use]
    pub fn cluster(&self) -> v1::ClusterStatus {
        let group = self.group();
        let nodes = self.nodes();
        let problems = self.problems(&group, &nodes);
        let healthy = problems.is_empty() && group.leader.is_some() && !self.fleet_id().is_empty();
        let join_closed = self.fleet.consensus.machine().read(|state| state.fleet.join_closed);
        v1::ClusterStatus {
            fleet_id: self.fleet_id(),
            leader: group.leader.map_or(0, |leader| leader.0),
            term: group.term,
            voters: group.voters.iter().map(|voter| voter.0).collect(),
            voters_unreachable: group.unreachable.iter().map(|voter| voter.0).collect(),
            quorum: group.quorum,
            healthy,
            problems,
            nodes,
            clients: self.fleet.view.count().keys as u64,
            join_policy: if join_closed { "closed" } else { "open" }.to_owned(),
        }
    }

    /// All nodes, in the order of their names.
    #[must_use]
    pub fn nodes(&self) -> Vec<v1::NodeSummary> {
        let group = self.group();
        let owners: BTreeMap<NodeId, OwnerStatus> =
            self.fleet.view.owners().into_iter().map(|owner| (owner.node, owner)).collect();
        let nodes = self.fleet.directory.nodes();
        let mut summaries: Vec<v1::NodeSummary> =
            nodes.iter().map(|node| self.summary(node, &group, owners.get(&node.id()))).collect();
        let name = |summary: &v1::NodeSummary| summary.node.as_ref().map(|node| (node.name.clone(), node.node_id));
        summaries.sort_by_key(name);
        summaries
    }

    fn summary(&self, node: &NodeEntry, group: &Group, owner: Option<&OwnerStatus>) -> v1::NodeSummary {
        let id = node.id();
        let role = match id {
            _ if group.leader == Some(id) => "leader",
            _ if group.voters.contains(&id) => "voter",
            _ if group.members.contains(&id) => "learner",
            _ => "none",
        };
        let known = owner.map(|owner| owner.epoch).unwrap_or_default();
        v1::NodeSummary {
            node: Some(node.record.clone()),
            raft_role: role.to_owned(),
            epoch: self.fleet.epoch_of(id).max(known).0,
            heard: self.is_heard(id),
            fenced: node.fenced,
            claims: owner.map_or(0, |owner| owner.claims as u64),
        }
    }

    /// All regions, in the order of their ids.
    #[must_use]
    pub fn regions(&self) -> Vec<v1::RegionSummary> {
        let mut regions: BTreeMap<RegionId, v1::RegionSummary> = BTreeMap::new();
        for summary in self.nodes() {
            let Some(region) = summary.node.and_then(|node| node.region) else { continue };
            let entry = regions.entry(RegionId(region.id)).or_default();
            entry.nodes += 1;
            entry.nodes_heard += u32::from(summary.heard);
            entry.claims += summary.claims;
            entry.region.get_or_insert(region);
        }
        regions.into_values().collect()
    }

    /// This node's part in Raft.
    #[must_use]
    pub fn raft(&self) -> v1::RaftStatus {
        let metrics = self.fleet.consensus.metrics();
        let stopped = self.fleet.consensus.stopped_because();
        let initialized = metrics.membership_config.voter_ids().next().is_some();
        let state = match metrics.state {
            _ if stopped.is_some() => "shutdown",
            _ if !initialized => "off",
            ServerState::Leader => "leader",
            ServerState::Candidate => "candidate",
            ServerState::Follower => "follower",
            ServerState::Learner => "learner",
            ServerState::Shutdown => "shutdown",
        };
        let index = |id: &Option<crate::raft::types::LogId>| id.map_or(0, |id| id.index);
        v1::RaftStatus {
            node_id: self.fleet.own.id().0,
            state: state.to_owned(),
            term: metrics.current_term,
            leader: metrics.current_leader.unwrap_or_default(),
            last_log_index: metrics.last_log_index.unwrap_or_default(),
            committed_index: index(&metrics.local_committed),
            applied_index: index(&metrics.last_applied),
            snapshot_index: index(&metrics.snapshot),
            purged_index: index(&metrics.purged),
            quorum_ack_ms: metrics.last_quorum_acked.map_or(0, |at| whole_ms(at.elapsed())),
            members: self.raft_members(&metrics),
            stopped_because: stopped.unwrap_or_default(),
        }
    }

    fn raft_members(&self, metrics: &crate::raft::Metrics) -> Vec<v1::RaftMember> {
        let nodes = self.fleet.directory.nodes();
        let voters: BTreeSet<u64> = metrics.membership_config.voter_ids().collect();
        let member = |id: &u64| {
            let record = nodes.get(NodeId(*id)).map(|node| &node.record);
            let matched = metrics.replication.as_ref().and_then(|replication| *replication.get(id)?);
            let heartbeat = metrics.heartbeat.as_ref().and_then(|heartbeat| *heartbeat.get(id)?);
            v1::RaftMember {
                node_id: *id,
                name: record.map(|record| record.name.clone()).unwrap_or_default(),
                addr: record.map(|record| record.mesh_addr.clone()).unwrap_or_default(),
                voter: voters.contains(id),
                matched_index: matched.map_or(0, |id| id.index),
                heartbeat_ms: heartbeat.map_or(0, |at| whole_ms(at.elapsed())),
            }
        };
        metrics.membership_config.nodes().map(|(id, _)| member(id)).collect()
    }

    /// What this node knows of each other node's streams; the node fills in `link_up`.
    #[must_use]
    pub fn peers(&self) -> Vec<v1::PeerStatus> {
        let nodes = self.fleet.directory.nodes();
        let owners: BTreeMap<NodeId, OwnerStatus> =
            self.fleet.view.owners().into_iter().map(|owner| (owner.node, owner)).collect();
        let now = tokio::time::Instant::now().into_std();
        let peer = |node: &NodeEntry| {
            let owner = owners.get(&node.id());
            let heard = owner.and_then(|owner| owner.last_heard);
            v1::PeerStatus {
                node_id: node.id().0,
                name: node.record.name.clone(),
                watch_live: self.fleet.view.hears(node.id()),
                link_up: false,
                last_heard_ms: heard.map_or(0, |heard| whole_ms(now.saturating_duration_since(heard))),
                known_seq: owner.map_or(0, |owner| owner.seq),
                last_error: String::new(),
            }
        };
        nodes.others().map(peer).collect()
    }

    /// Why this node's control plane is not ready, in sentences; empty if it is.
    #[must_use]
    pub fn not_ready_because(&self) -> Vec<String> {
        let group = self.group();
        let mut reasons = Vec::new();
        if self.fleet_id().is_empty() {
            reasons.push(self.fleet.join_problem().unwrap_or_else(|| {
                "this node is in no fleet yet: run `causeway cluster init` once, or give it seeds of a formed fleet".to_owned()
            }));
        } else {
            let nodes = self.fleet.directory.nodes();
            let own = nodes.get(nodes.own());
            if own.is_none_or(|own| !own.admitted) {
                reasons.push(self.fleet.join_problem().unwrap_or_else(|| "the fleet has not admitted this node yet".to_owned()));
            }
            if own.is_some_and(|own| own.fenced) {
                reasons.push("the fleet takes this node for dead: its heartbeats do not reach the leader".to_owned());
            }
        }
        reasons.extend(raft_problems(&group));
        reasons
    }

    fn is_heard(&self, node: NodeId) -> bool {
        node == self.fleet.own.id() || self.fleet.view.hears(node)
    }

    fn group(&self) -> Group {
        let metrics = self.fleet.consensus.metrics();
        let voters: BTreeSet<NodeId> = metrics.membership_config.voter_ids().map(NodeId).collect();
        let members = metrics.membership_config.nodes().map(|(id, _)| NodeId(*id)).collect();
        let unreachable: Vec<NodeId> = voters.iter().copied().filter(|voter| !self.is_heard(*voter)).collect();
        let leader = metrics.current_leader.map(NodeId).filter(|leader| self.is_heard(*leader));
        let majority = (voters.len() - unreachable.len()) * 2 > voters.len();
        let acked = metrics.state != ServerState::Leader
            || metrics.last_quorum_acked.is_some_and(|at| at.elapsed() <= QUORUM_ACK_AGE_MAX);
        Group {
            leader,
            term: metrics.current_term,
            quorum: majority && acked && leader.is_some(),
            voters,
            members,
            unreachable,
            stopped: self.fleet.consensus.stopped_because(),
        }
    }

    fn problems(&self, group: &Group, nodes: &[v1::NodeSummary]) -> Vec<String> {
        let mut problems = Vec::new();
        if self.fleet_id().is_empty() {
            problems.push(
                self.fleet.join_problem().unwrap_or_else(|| "the fleet is not formed, or this node is not in it".to_owned()),
            );
        }
        problems.extend(raft_problems(group));
        for summary in nodes {
            let Some(node) = &summary.node else { continue };
            let name = &node.name;
            if !summary.heard {
                let vote = if group.voters.contains(&NodeId(node.node_id)) { ", a voter," } else { "" };
                problems
                    .push(format!("node `{name}`{vote} is not heard here: its clients must reconnect elsewhere if it is down"));
            } else if summary.fenced {
                problems.push(format!("node `{name}` is heard here but fenced: its heartbeats do not reach the leader"));
            } else if summary.raft_role == "none" && !group.voters.is_empty() {
                problems.push(format!("node `{name}` is not in the fleet yet"));
            }
        }
        problems
    }
}

fn whole_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn raft_problems(group: &Group) -> Vec<String> {
    let mut problems = Vec::new();
    if let Some(reason) = &group.stopped {
        problems.push(format!("this node left raft ({reason}): it keeps relaying; mend its disk and restart it"));
    } else if !group.voters.is_empty() && !group.quorum {
        let (lost, all) = (group.unreachable.len(), group.voters.len());
        problems.push(if lost * 2 >= all {
            format!("raft has no quorum ({lost} of {all} voters are not heard): configuration and map are frozen; packets and new clients are not affected")
        } else {
            "raft has no leader at the moment: configuration and map are frozen; packets and new clients are not affected".to_owned()
        });
    }
    problems
}
