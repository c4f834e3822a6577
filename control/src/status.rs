//! What operators see of the control plane: from what this node knows, without waiting for anybody.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use causeway_proto::id::{NodeId, RegionId};
use causeway_rpc::v1;

use crate::discovery::NodeEntry;
use crate::fleet::{CALL_TIMEOUT, Fleet, within};
use crate::presence::view::OwnerStatus;
use crate::raft::Group;

/// A leader that no quorum acknowledged for so long has lost it, or is about to.
const QUORUM_ACK_AGE_MAX: Duration = Duration::from_secs(5);

/// Answers operators' questions about fleet and Raft from what this node knows; never waits.
#[derive(Debug, Clone)]
pub struct Status {
    pub(crate) fleet: Arc<Fleet>,
}

/// Raft's group with what this node hears of it.
struct Seen {
    group: Group,
    /// Only if it is heard: Raft itself remembers a dead leader until there is another.
    leader: Option<NodeId>,
    unreachable: Vec<NodeId>,
    quorum: bool,
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
        let seen = self.group();
        let nodes = self.nodes();
        let problems = self.problems(&seen, &nodes);
        let healthy = problems.is_empty() && seen.leader.is_some() && !self.fleet_id().is_empty();
        let join_closed = self.fleet.consensus.machine().read(|state| state.fleet.join_closed);
        v1::ClusterStatus {
            fleet_id: self.fleet_id(),
            leader: seen.leader.map_or(0, |leader| leader.0),
            term: seen.group.term,
            voters: seen.group.voters.iter().map(|voter| voter.0).collect(),
            voters_unreachable: seen.unreachable.iter().map(|voter| voter.0).collect(),
            quorum: seen.quorum,
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
        let seen = self.group();
        let owners: BTreeMap<NodeId, OwnerStatus> =
            self.fleet.view.owners().into_iter().map(|owner| (owner.node, owner)).collect();
        let nodes = self.fleet.directory.nodes();
        let mut summaries: Vec<v1::NodeSummary> =
            nodes.iter().map(|node| self.summary(node, &seen, owners.get(&node.id()))).collect();
        let name = |summary: &v1::NodeSummary| summary.node.as_ref().map(|node| (node.name.clone(), node.node_id));
        summaries.sort_by_key(name);
        summaries
    }

    fn summary(&self, node: &NodeEntry, seen: &Seen, owner: Option<&OwnerStatus>) -> v1::NodeSummary {
        let id = node.id();
        let role = match id {
            _ if seen.leader == Some(id) => "leader",
            _ if seen.group.voters.contains(&id) => "voter",
            _ if seen.group.members.contains(&id) => "learner",
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
        let nodes = self.fleet.directory.nodes();
        let mut status = self.fleet.consensus.status();
        for member in &mut status.members {
            if let Some(node) = nodes.get(NodeId(member.node_id)) {
                member.name.clone_from(&node.record.name);
                member.addr.clone_from(&node.record.mesh_addr);
            }
        }
        status
    }

    /// As [`Self::raft`], with what only the leader knows of the members, if it tells that in time.
    pub async fn raft_with_leader(&self) -> v1::RaftStatus {
        let mut status = self.raft();
        if status.leader_told || status.leader == 0 {
            return status;
        }
        let answer = match self.fleet.client(NodeId(status.leader)) {
            Ok(mut leader) => within(CALL_TIMEOUT, leader.get_leader_status(v1::GetLeaderStatusRequest {})).await,
            Err(error) => Err(error),
        };
        match answer {
            Ok(theirs) => {
                for member in &mut status.members {
                    if let Some(known) = theirs.members.iter().find(|known| known.node_id == member.node_id) {
                        (member.matched_index, member.heartbeat_ms) = (known.matched_index, known.heartbeat_ms);
                    }
                }
                (status.quorum_ack_ms, status.leader_told) = (theirs.quorum_ack_ms, true);
            }
            Err(error) => tracing::debug!(reason = error.message(), "the leader does not tell how far the members are"),
        }
        status
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

    /// This node.
    #[must_use]
    pub fn own(&self) -> NodeId {
        self.fleet.own.id()
    }

    /// Whether a node votes in Raft.
    #[must_use]
    pub fn is_voter(&self, node: NodeId) -> bool {
        self.fleet.is_voter(node)
    }

    /// Why this node's control plane is not ready, in sentences; empty if it is.
    #[must_use]
    pub fn not_ready_because(&self) -> Vec<String> {
        let seen = self.group();
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
        reasons.extend(raft_problems(&seen));
        reasons
    }

    fn is_heard(&self, node: NodeId) -> bool {
        node == self.fleet.own.id() || self.fleet.view.hears(node)
    }

    fn group(&self) -> Seen {
        let group = self.fleet.consensus.group();
        let unreachable: Vec<NodeId> = group.voters.iter().copied().filter(|voter| !self.is_heard(*voter)).collect();
        let leader = group.leader.filter(|leader| self.is_heard(*leader));
        let majority = (group.voters.len() - unreachable.len()) * 2 > group.voters.len();
        let acked = !group.leads || group.quorum_ack_age.is_some_and(|age| age <= QUORUM_ACK_AGE_MAX);
        Seen { leader, quorum: majority && acked && leader.is_some(), unreachable, group }
    }

    fn problems(&self, seen: &Seen, nodes: &[v1::NodeSummary]) -> Vec<String> {
        let mut problems = Vec::new();
        if self.fleet_id().is_empty() {
            problems.push(
                self.fleet.join_problem().unwrap_or_else(|| "the fleet is not formed, or this node is not in it".to_owned()),
            );
        }
        problems.extend(raft_problems(seen));
        for summary in nodes {
            let Some(node) = &summary.node else { continue };
            let name = &node.name;
            if !summary.heard {
                let vote = if seen.group.voters.contains(&NodeId(node.node_id)) { ", a voter," } else { "" };
                problems
                    .push(format!("node `{name}`{vote} is not heard here: its clients must reconnect elsewhere if it is down"));
            } else if summary.fenced {
                problems.push(format!("node `{name}` is heard here but fenced: its heartbeats do not reach the leader"));
            } else if summary.raft_role == "none" && !seen.group.voters.is_empty() {
                problems.push(format!("node `{name}` is not in the fleet yet"));
            }
        }
        problems
    }
}

fn whole_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn raft_problems(seen: &Seen) -> Vec<String> {
    let mut problems = Vec::new();
    if let Some(reason) = &seen.group.stopped {
        problems.push(format!("this node left raft ({reason}): it keeps relaying; mend its disk and restart it"));
    } else if !seen.group.voters.is_empty() && !seen.quorum {
        let (lost, all) = (seen.unreachable.len(), seen.group.voters.len());
        problems.push(if lost * 2 >= all {
            format!("raft has no quorum ({lost} of {all} voters are not heard): configuration and map are frozen; packets and new clients are not affected")
        } else {
            "raft has no leader at the moment: configuration and map are frozen; packets and new clients are not affected".to_owned()
        });
    }
    problems
}
