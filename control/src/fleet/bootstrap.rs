//! Forms a fleet: once, on an explicit command, however often and wherever it is repeated.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use causeway_proto::id::{NodeId, RegionId};
use causeway_rpc::v1;
use data_encoding::HEXLOWER;
use rand::RngCore;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::join::remember;
use super::{CALL_TIMEOUT, Fleet, within};
use crate::discovery::{NodeEntry, NodeSet};
use crate::error::AdminError;
use crate::raft::state_machine::FleetView;
use crate::raft::types::Command;
use crate::raft::{Consensus, Happenings, NotDone};

/// A node that forms a fleet gets so long: an election and a commit over the slowest links.
const FORM_TIMEOUT: Duration = Duration::from_secs(15);
/// Longest wait for nodes that `init_cluster` may be asked for.
const WAIT_MAX: Duration = Duration::from_secs(600);
/// Most voters a fleet starts with.
const VOTERS_MAX: usize = 5;
/// Times that all nodes are asked for further ones.
const DESCRIBE_ROUNDS_MAX: usize = 5;

/// What a proposal that found no leader waits for.
struct News {
    group: Happenings,
    decided: watch::Receiver<Arc<FleetView>>,
}

impl News {
    /// What happens from now on.
    fn of(consensus: &Consensus) -> Self {
        Self { group: consensus.happenings(), decided: consensus.machine().subscribe() }
    }

    /// Returns when something has happened since the last call, at the latest at `deadline`.
    async fn wait(&mut self, deadline: Instant) {
        tokio::select! {
            () = self.group.next() => {}
            // The machine outlives the fleet that asks.
            _ = self.decided.changed() => {}
            () = sleep_until(deadline) => {}
        }
    }
}

impl Fleet {
    /// Makes this node the first member of a fleet and states the fleet's id; on a formed fleet it only reports.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for a request that names no voters or not this node; `UNAVAILABLE` if no leader is elected in time.
    pub(crate) async fn form(&self, request: v1::FormRequest) -> Result<v1::FormResponse, Status> {
        let _alone = self.forming.lock().await;
        let voters: BTreeSet<NodeId> = request.voters.iter().copied().map(NodeId).collect();
        let mut already = !self.fleet_id().is_empty();
        if !already && self.consensus.is_pristine().await {
            if !voters.contains(&self.own.id()) || voters.len() > VOTERS_MAX || request.fleet_id.is_empty() {
                return Err(Status::invalid_argument("a fleet is formed by one of its 1 to 5 voters, with an id"));
            }
            tracing::info!(fleet_id = request.fleet_id, ?voters, "forming a fleet");
            self.consensus.initialize(&voters).await.map_err(|error| Status::unavailable(error.to_string()))?;
        }
        let deadline = Instant::now() + FORM_TIMEOUT;
        let mut news = News::of(&self.consensus);
        loop {
            let fleet_id = self.fleet_id();
            if !fleet_id.is_empty() {
                already |= fleet_id != request.fleet_id;
                return Ok(v1::FormResponse { fleet_id, already, voters: self.voters(), ask: 0 });
            }
            match self.consensus.leader() {
                Some(leader) if leader == self.own.id() => self.state_fleet(&request).await?,
                Some(leader) => return Ok(v1::FormResponse { ask: leader.0, ..Default::default() }),
                None => {}
            }
            if Instant::now() >= deadline {
                return Err(Status::unavailable("no leader was elected in time: are all voters running and reachable?"));
            }
            news.wait(deadline).await;
        }
    }

    async fn state_fleet(&self, request: &v1::FormRequest) -> Result<(), Status> {
        let form = v1::FormFleet {
            fleet_id: request.fleet_id.clone(),
            join_closed: request.join_closed,
            operator_ca_der: request.operator_ca_der.clone(),
            nodes: request.nodes.clone(),
        };
        match self.consensus.propose(Command::new(v1::raft_command::Command::FormFleet(form))).await {
            // Refused means that somebody else was first, which the caller sees from the id.
            Ok(_) | Err(NotDone::Forward(_) | NotDone::TimedOut) => Ok(()),
            Err(error @ NotDone::Stopped(_)) => Err(Status::unavailable(error.to_string())),
        }
    }

    /// Ids of the present voters.
    pub(crate) fn voters(&self) -> Vec<u64> {
        self.consensus.group().voters.iter().map(|voter| voter.0).collect()
    }
}

/// Forms a standalone node's fleet of one, unless it is in a fleet already.
pub(crate) async fn keep_standalone_formed(fleet: Arc<Fleet>, cancel: CancellationToken) {
    let request = v1::FormRequest {
        fleet_id: new_fleet_id(),
        join_closed: true,
        nodes: vec![fleet.own.record.clone()],
        voters: vec![fleet.own.id().0],
        ..Default::default()
    };
    while fleet.fleet_id().is_empty() {
        match cancel.run_until_cancelled(fleet.form(request.clone())).await {
            None | Some(Ok(_)) => return,
            Some(Err(status)) if cancel.is_cancelled() => {
                tracing::debug!(reason = status.message(), "told to stop before the fleet of one was formed");
                return;
            }
            Some(Err(status)) => tracing::warn!(reason = status.message(), "the fleet of one is not formed yet; trying again"),
        }
    }
}

fn new_fleet_id() -> String {
    let mut id = [0; 16];
    rand::rng().fill_bytes(&mut id);
    HEXLOWER.encode(&id)
}

/// Forms a fleet of the nodes that this node knows, or reports the one there is.
///
/// # Errors
/// [`AdminError`], each naming what is missing.
pub(crate) async fn init_cluster(fleet: &Fleet, request: v1::InitClusterRequest) -> Result<v1::InitClusterResponse, AdminError> {
    let join_closed = match request.join_policy.as_str() {
        "" | "open" => false,
        "closed" => true,
        other => return Err(AdminError::Invalid(format!("join_policy `{other}`: must be `open` or `closed`"))),
    };
    if let Some(formed) = already_formed(fleet) {
        grow(fleet, v1::GrowFleet { join_closed, operator_ca_der: request.operator_ca_der }).await?;
        return Ok(formed);
    }
    let wait = Duration::from_millis(request.wait_ms).min(WAIT_MAX);
    let nodes = wait_for_nodes(fleet, request.expected_nodes, wait).await?;
    let (nodes, seen) = describe_everybody(fleet, nodes).await?;
    if let Some(formed) = already_formed(fleet) {
        return Ok(formed);
    }
    if let Some((_, theirs)) = seen.iter().find(|(_, answer)| !answer.fleet_id.is_empty()) {
        return Ok(v1::InitClusterResponse { fleet_id: theirs.fleet_id.clone(), already: true, voters: Vec::new() });
    }
    let reachable = |node: NodeId| node == fleet.own.id() || seen.contains_key(&node);
    let voters = if request.voters.is_empty() {
        choose_voters(nodes.iter().filter(|node| reachable(node.id())))
    } else {
        named_voters(&nodes, &request.voters)?
    };
    if voters.is_empty() {
        return Err(AdminError::Unavailable("no reachable node is eligible to vote (`raft.voter_eligible`)".to_owned()));
    }
    if let Some(missing) = voters.iter().find(|voter| !reachable(**voter)) {
        let name = nodes.get(*missing).map_or_else(|| missing.to_string(), |node| node.record.name.clone());
        return Err(AdminError::Unavailable(format!("voter `{name}` does not answer: start it, or name other voters")));
    }
    let form = v1::FormRequest {
        fleet_id: new_fleet_id(),
        join_closed,
        operator_ca_der: request.operator_ca_der,
        nodes: nodes.iter().filter(|node| reachable(node.id())).map(|node| node.record.clone()).collect(),
        voters: voters.iter().map(|voter| voter.0).collect(),
    };
    // A voter that has state already (a fleet half formed) goes on; otherwise the one with the lowest id begins, whoever asks.
    let begun = voters.iter().find(|voter| seen.get(voter).is_some_and(|answer| !answer.pristine));
    let first = begun.or_else(|| voters.first()).copied().unwrap_or(fleet.own.id());
    ask_to_form(fleet, first, form).await
}

/// A node that was standalone formed its fleet by itself, closed and without operators: now it takes what the operator says.
async fn grow(fleet: &Fleet, settings: v1::GrowFleet) -> Result<(), AdminError> {
    let deadline = Instant::now() + FORM_TIMEOUT;
    let mut news = News::of(&fleet.consensus);
    while fleet.consensus.machine().read(|state| state.fleet.can_grow(&settings)) {
        match fleet.consensus.propose(Command::new(v1::raft_command::Command::GrowFleet(settings.clone()))).await {
            // Refused: another node came in meanwhile.
            Ok(_) => return Ok(()),
            Err(error @ NotDone::Stopped(_)) => return Err(AdminError::Unavailable(error.to_string())),
            // After a start it takes a moment until the node leads itself.
            Err(NotDone::Forward(_) | NotDone::TimedOut) if Instant::now() < deadline => news.wait(deadline).await,
            Err(error) => return Err(AdminError::TimedOut(format!("the fleet of one was not opened in time: {error}"))),
        }
    }
    Ok(())
}

fn already_formed(fleet: &Fleet) -> Option<v1::InitClusterResponse> {
    let fleet_id = fleet.fleet_id();
    (!fleet_id.is_empty()).then(|| v1::InitClusterResponse { fleet_id, already: true, voters: fleet.voters() })
}

async fn wait_for_nodes(fleet: &Fleet, expected: u32, wait: Duration) -> Result<Arc<NodeSet>, AdminError> {
    let mut nodes = fleet.directory.subscribe();
    let enough = nodes.wait_for(|nodes| nodes.len() >= expected as usize);
    if expected > 0 && tokio::time::timeout(wait, enough).await.is_err() {
        let seen = fleet.directory.nodes();
        let names: Vec<&str> = seen.iter().map(|node| node.record.name.as_str()).collect();
        let message = format!(
            "{} of {expected} nodes seen ({}): are the others running, and do their seeds reach this one?",
            seen.len(),
            names.join(", ")
        );
        return Err(AdminError::TimedOut(message));
    }
    Ok(fleet.directory.nodes())
}

/// Asks all known nodes, and those that they name, until nobody names a node that was not asked: two operators who each know a part
/// of the nodes must not form two fleets.
pub(super) async fn describe_everybody(
    fleet: &Fleet,
    mut nodes: Arc<NodeSet>,
) -> Result<(Arc<NodeSet>, BTreeMap<NodeId, v1::DescribeResponse>), AdminError> {
    for _ in 0..DESCRIBE_ROUNDS_MAX {
        let mut seen = describe_all(fleet, &nodes).await;
        seen.values_mut().for_each(|answer| remember(&fleet.directory, answer));
        let known = fleet.directory.nodes();
        if known.iter().all(|node| nodes.get(node.id()).is_some()) {
            return Ok((nodes, seen));
        }
        nodes = known;
    }
    Err(AdminError::Unavailable("nodes keep naming further nodes: wait until all are started, and try again".to_owned()))
}

async fn describe_all(fleet: &Fleet, nodes: &NodeSet) -> BTreeMap<NodeId, v1::DescribeResponse> {
    let ask = |node: &NodeEntry| {
        let id = node.id();
        async move {
            let mut client = fleet.client(id).ok()?;
            let request = v1::DescribeRequest { caller: Some(fleet.introduction()) };
            Some((id, within(CALL_TIMEOUT, client.describe(request)).await.ok()?))
        }
    };
    futures::future::join_all(nodes.others().map(ask)).await.into_iter().flatten().collect()
}

/// One eligible node per region by the order of region ids and names, then second ones; 1, 3 or 5 of them.
fn choose_voters<'a>(nodes: impl Iterator<Item = &'a NodeEntry>) -> BTreeSet<NodeId> {
    let mut regions: BTreeMap<RegionId, Vec<&NodeEntry>> = BTreeMap::new();
    for node in nodes.filter(|node| node.record.voter_eligible) {
        regions.entry(node.region_id()).or_default().push(node);
    }
    let region_count = regions.len();
    for nodes in regions.values_mut() {
        nodes.sort_by(|a, b| (&a.record.name, a.id()).cmp(&(&b.record.name, b.id())));
    }
    let rounds = regions.values().map(Vec::len).max().unwrap_or(0);
    let in_turn: Vec<NodeId> =
        (0..rounds).flat_map(|round| regions.values().filter_map(move |nodes| nodes.get(round))).map(|node| node.id()).collect();
    // Five only when five regions can have one each; three as soon as there are three nodes.
    let count = match (region_count, in_turn.len()) {
        (VOTERS_MAX.., _) => VOTERS_MAX,
        (_, 3..) => 3,
        (_, 1..) => 1,
        _ => 0,
    };
    in_turn.into_iter().take(count).collect()
}

fn named_voters(nodes: &NodeSet, names: &[String]) -> Result<BTreeSet<NodeId>, AdminError> {
    let mut voters = BTreeSet::new();
    for name in names {
        let node = nodes.find(name).ok_or_else(|| AdminError::NotFound(format!("voter `{name}` is not known to this node")))?;
        if !node.record.voter_eligible {
            return Err(AdminError::Invalid(format!("voter `{name}`: its configuration says `raft.voter_eligible = false`")));
        }
        voters.insert(node.id());
    }
    match voters.len() {
        1 | 3 | 5 => Ok(voters),
        count => Err(AdminError::Invalid(format!("{count} voters: must be 1, 3 or 5 different nodes"))),
    }
}

/// Lets `first` form the fleet, going on where it says that another node leads.
async fn ask_to_form(fleet: &Fleet, first: NodeId, form: v1::FormRequest) -> Result<v1::InitClusterResponse, AdminError> {
    let mut node = first;
    for _ in 0..VOTERS_MAX {
        let answer = if node == fleet.own.id() {
            fleet.form(form.clone()).await
        } else {
            match fleet.client(node) {
                Ok(mut client) => within(FORM_TIMEOUT + CALL_TIMEOUT, client.form(form.clone())).await,
                Err(status) => Err(status),
            }
        };
        let answer = answer.map_err(|status| AdminError::Unavailable(format!("node {node}: {}", status.message())))?;
        if answer.ask == 0 {
            return Ok(v1::InitClusterResponse { fleet_id: answer.fleet_id, already: answer.already, voters: answer.voters });
        }
        node = NodeId(answer.ask);
    }
    Err(AdminError::Unavailable("the leader keeps changing: try again".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::fleet_state::sample_record;

    fn nodes(names: &[(&str, u64)]) -> Vec<NodeEntry> {
        names
            .iter()
            .map(|(name, region)| NodeEntry { record: sample_record(name, *region), admitted: false, fenced: false })
            .collect()
    }

    fn chosen(names: &[(&str, u64)]) -> Vec<String> {
        let nodes = nodes(names);
        let voters = choose_voters(nodes.iter());
        let mut names: Vec<String> =
            nodes.iter().filter(|node| voters.contains(&node.id())).map(|node| node.record.name.clone()).collect();
        names.sort();
        names
    }

    #[test]
    fn voters_are_spread_over_regions() {
        let six = [("a1", 1), ("a2", 1), ("b1", 2), ("b2", 2), ("c1", 3), ("c2", 3)];
        assert_eq!(chosen(&six), ["a1", "b1", "c1"]);
        let reversed: Vec<_> = six.iter().rev().copied().collect();
        assert_eq!(chosen(&reversed), ["a1", "b1", "c1"]);
        assert_eq!(chosen(&six[..4]), ["a1", "a2", "b1"]);
        assert_eq!(chosen(&six[..2]), ["a1"]);
        assert_eq!(chosen(&[("a1", 1), ("b1", 2), ("c1", 3), ("d1", 4)]).len(), 3);
        assert_eq!(chosen(&[("a1", 1), ("b1", 2), ("c1", 3), ("d1", 4), ("e1", 5), ("f1", 6)]).len(), 5);
        assert!(chosen(&[]).is_empty());
    }

    #[test]
    fn named_voters_must_be_known_eligible_and_odd() {
        let mut entries = nodes(&[("a1", 1), ("b1", 2), ("c1", 3)]);
        entries[2].record.voter_eligible = false;
        let set = NodeSet::new(entries[0].id(), entries.clone());
        let voters = |names: &[&str]| named_voters(&set, &names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
        assert_eq!(voters(&["b1"]).expect("known"), BTreeSet::from([entries[1].id()]));
        assert!(matches!(voters(&["a1", "b1"]), Err(AdminError::Invalid(_))));
        assert!(matches!(voters(&["c1"]), Err(AdminError::Invalid(reason)) if reason.contains("voter_eligible")));
        assert!(matches!(voters(&["z9"]), Err(AdminError::NotFound(_))));
        let by_id = entries[0].id().to_string();
        assert_eq!(voters(&[&by_id]).expect("known"), BTreeSet::from([entries[0].id()]));
    }
}
