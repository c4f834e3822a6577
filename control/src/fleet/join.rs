//! Meeting peers and joining the fleet: at start once, to learn of time and epoch; then for as long as the node runs.

use std::collections::BTreeSet;
use std::error::Error as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use causeway_proto::id::NodeId;
use causeway_rpc::v1;
use futures::StreamExt;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use super::{CALL_TIMEOUT, Fleet, Incarnation, Own, fleet_client, now, within};
use crate::config::WallClock;
use crate::discovery::{Directory, Discovery, NodeEntry};
use crate::error::StartError;
use crate::identity::MeshTlsError;
use crate::peers::{ChannelUse, PeerChannels};
use crate::watch::micros;

/// At start, peers get so long to answer before the node goes on without them.
const FIRST_CONTACT: Duration = Duration::from_millis(1000);
/// A clock further off than this from the peers' at start ends the process; nobody takes note of a node whose clock is.
const CLOCK_OFF_MAX_US: u64 = 5_000_000;
/// A node that finds only nodes of another mesh key for so long needs a human: seeds that were silent at its start would speak by then.
const WRONG_KEY_PATIENCE: Duration = Duration::from_secs(10);
/// Between rounds while this node is not settled in a fleet.
const ROUND_SEARCHING: Duration = Duration::from_millis(250);
/// Between rounds once it is.
const ROUND_SETTLED: Duration = Duration::from_secs(5);
/// Introductions under way at a time.
const INTRODUCTIONS_MAX: usize = 16;

/// What a peer said at an introduction.
pub(crate) struct Met {
    pub(crate) answer: v1::DescribeResponse,
    /// The peer's wall clock less ours, with half the round trip taken off.
    pub(crate) clock_offset_us: i64,
}

/// Introduces this node over `channel` and checks the shape of the answer.
async fn introduce(channel: crate::peers::PeerChannel, ourselves: v1::Introduction, clock: &WallClock) -> Result<Met, Status> {
    let sent_us = micros(clock());
    let request = v1::DescribeRequest { caller: Some(ourselves) };
    let answer = within(CALL_TIMEOUT, fleet_client(channel).describe(request)).await?;
    let received_us = micros(clock());
    let theirs_us = answer.node.as_ref().map_or(0, |node| node.clock_us);
    let middle_us = sent_us + received_us.saturating_sub(sent_us) / 2;
    let clock_offset_us = i64::try_from(i128::from(theirs_us) - i128::from(middle_us)).unwrap_or(i64::MAX);
    Ok(Met { answer, clock_offset_us })
}

/// Remembers whom an answer told of.
pub(super) fn remember(directory: &Directory, answer: &mut v1::DescribeResponse) {
    // Hearsay all of it, because the channel to a seed does not tell who answered: a changed record is taken when its node calls.
    let itself = answer.node.take().and_then(|node| node.record);
    for record in itself.into_iter().chain(answer.nodes.drain(..)) {
        if let Err(reason) = directory.introduce(record, false, now()) {
            tracing::debug!(reason, "a peer told of a node that cannot be believed");
        }
    }
}

/// Asks the seeds once, before anything is served: whether this node's clock and mesh key are right, and for the highest epoch they saw
/// of it.
///
/// # Errors
/// [`StartError::ClockOff`], [`StartError::WrongMeshKey`].
pub(crate) async fn first_contact(
    seeds: BTreeSet<String>,
    own: &Own,
    clock: &WallClock,
    peers: &PeerChannels,
    directory: &Directory,
) -> Result<Option<Incarnation>, StartError> {
    let asked = futures::stream::iter(seeds).map(async |seed| {
        match introduce(peers.seed_channel(&seed), own.introduction(clock, String::new()), clock).await {
            Ok(met) => Ok(met),
            Err(status) => Err(wrong_mesh_key(peers, &seed, &status).await),
        }
    });
    let mut answers = asked.buffer_unordered(INTRODUCTIONS_MAX);
    let (mut offsets, mut highest, mut wrong_key) = (Vec::new(), None, None);
    let gather = async {
        while let Some(met) = answers.next().await {
            let Met { mut answer, clock_offset_us } = match met {
                Ok(met) => met,
                Err(theirs) => {
                    wrong_key = wrong_key.take().or(theirs);
                    continue;
                }
            };
            offsets.push(clock_offset_us);
            let seen = answer.caller_seen.take().filter(|seen| seen.epoch > 0);
            if let Some(Ok(seen)) = seen.map(|seen| Incarnation::from_message(seen.epoch, &seen.boot_id)) {
                highest = highest.max(Some((seen.epoch, seen.boot_id)));
            }
            remember(directory, &mut answer);
        }
    };
    // Peers that are starting too accept connections before they answer: do not wait for them.
    let all_heard = tokio::time::timeout(FIRST_CONTACT, gather).await.is_ok();
    match wrong_key {
        // A silent seed may be a node of the right key that is starting too: then the stranger among the seeds stops nobody.
        Some(theirs) if offsets.is_empty() && all_heard => {
            return Err(StartError::WrongMeshKey { ours: peers.fingerprint(), theirs });
        }
        Some(_) => tracing::warn!("a seed has another mesh key than this node; it is left alone"),
        None => {}
    }
    check_clock(offsets)?;
    Ok(highest.map(|(epoch, boot_id)| Incarnation { epoch, boot_id }))
}

/// The other mesh key that a failed introduction to a seed was about, if it was: its fingerprint, or that ours was refused.
async fn wrong_mesh_key(peers: &PeerChannels, seed: &str, status: &Status) -> Option<String> {
    if status.code() == Code::DeadlineExceeded {
        return None;
    }
    let told = std::iter::successors(status.source(), |error| (*error).source()).find_map(|error| match error.downcast_ref() {
        Some(MeshTlsError::WrongMeshKey { theirs, .. }) => theirs.clone(),
        _ => None,
    });
    match told {
        None if peers.seed_refuses_us(seed).await => Some("not told, it refuses our certificate".to_owned()),
        told => told,
    }
}

/// How two readings of wall clocks at about the same time differ, if it is too much.
pub(super) fn clock_difference(their_name: &str, theirs_us: u64, our_name: &str, ours_us: u64) -> Option<String> {
    let by_us = theirs_us.abs_diff(ours_us);
    let direction = if theirs_us > ours_us { "ahead of" } else { "behind" };
    (by_us > CLOCK_OFF_MAX_US).then(|| {
        format!(
            "the clock of node `{their_name}` is {} ms {direction} that of node `{our_name}`, which leads (at most {} ms are allowed): set right whichever is wrong",
            by_us / 1000,
            CLOCK_OFF_MAX_US / 1000
        )
    })
}

fn check_clock(mut offsets: Vec<i64>) -> Result<(), StartError> {
    offsets.sort_unstable();
    let Some(median) = offsets.get(offsets.len().saturating_sub(1) / 2) else { return Ok(()) };
    if median.unsigned_abs() <= CLOCK_OFF_MAX_US {
        return Ok(());
    }
    let direction = if *median < 0 { "ahead of" } else { "behind" };
    Err(StartError::ClockOff { by_ms: median.unsigned_abs() / 1000, direction })
}

/// Keeps meeting seeds and nodes that others named, and asks to be admitted, for as long as the node runs.
pub(crate) async fn meet_and_join(fleet: Arc<Fleet>, mut sources: Vec<Box<dyn Discovery>>, cancel: CancellationToken) {
    let work = async {
        let mut nodes = fleet.directory.subscribe();
        let mut wrong_key = WrongKey::default();
        loop {
            let settled = fleet.is_settled();
            fleet.directory.forget_silent(now());
            let stranger = fleet.meet(&mut sources, settled).await;
            let problem = if settled { None } else { fleet.join().await };
            *fleet.join_problem.lock() = problem.or(wrong_key.note(stranger.filter(|_| !settled), now()));
            let wait = if fleet.is_settled() { ROUND_SETTLED } else { ROUND_SEARCHING };
            nodes.mark_unchanged();
            // A newly known node is met at once.
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                _ = nodes.changed() => tokio::time::sleep(ROUND_SEARCHING).await,
            }
        }
    };
    cancel.run_until_cancelled(work).await;
}

impl Fleet {
    /// Whether the fleet has this process's record.
    fn is_settled(&self) -> bool {
        self.consensus.machine().read(|state| state.fleet.nodes.get(&self.own.id()) == Some(&self.own.record))
    }

    /// One round of introductions: to the seeds that no known node stands for, and to nodes that are known but not admitted.
    ///
    /// If nobody answered but seeds of another mesh key, says so.
    async fn meet(&self, sources: &mut [Box<dyn Discovery>], settled: bool) -> Option<StartError> {
        let nodes = self.directory.nodes();
        let known: BTreeSet<&str> = nodes.iter().map(|node| node.record.mesh_addr.as_str()).collect();
        let seeds = sources.iter_mut().flat_map(|source| source.seeds()).filter(|seed| !known.contains(seed.as_str()));
        let strangers = seeds.map(|seed| (Whom::Seed(seed.clone()), self.peers.seed_channel(&seed)));
        let ids = nodes.others().filter(|node| !settled || !node.admitted).map(NodeEntry::id);
        let acquaintances = ids.filter_map(|id| Some((Whom::Node(id), self.peers.channel(id, ChannelUse::Fleet).ok()?)));
        let channels: Vec<_> = strangers.chain(acquaintances).collect();
        let met = futures::stream::iter(channels).map(async |(whom, channel)| {
            let answer = introduce(channel, self.introduction(), &self.clock.0).await;
            let theirs = match (&answer, &whom) {
                (Err(status), Whom::Seed(seed)) if !settled => wrong_mesh_key(&self.peers, seed, status).await,
                _ => None,
            };
            (whom, answer, theirs)
        });
        let mut met = met.buffer_unordered(INTRODUCTIONS_MAX);
        let (mut answered, mut stranger) = (false, None);
        while let Some((whom, answer, theirs)) = met.next().await {
            stranger = stranger.or(theirs);
            match answer {
                Ok(met) => {
                    answered = true;
                    self.met(whom.proven(), met);
                }
                Err(status) => tracing::debug!(reason = status.message(), "a node does not answer an introduction"),
            }
        }
        stranger.filter(|_| !answered).map(|theirs| StartError::WrongMeshKey { ours: self.peers.fingerprint(), theirs })
    }

    /// `proven`: the node that the connection proved, if it was not one to a seed.
    fn met(&self, proven: Option<NodeId>, Met { mut answer, clock_offset_us }: Met) {
        let record = answer.node.as_ref().and_then(|node| node.record.as_ref());
        if record.is_some_and(|record| record.node_id == self.own.id().0) {
            return;
        }
        if !self.is_of_ours(&answer.fleet_id) {
            if let Some(record) = record {
                self.directory.forget(NodeId(record.node_id));
                tracing::warn!(name = record.name, fleet_id = answer.fleet_id, "a node of another fleet is left alone");
            }
            return;
        }
        if clock_offset_us.unsigned_abs() > CLOCK_OFF_MAX_US {
            tracing::debug!(clock_offset_us, "a node whose clock is off is not taken note of");
            answer.node = None;
        } else if let Some(id) = proven {
            self.directory.heard(id, now());
        }
        remember(&self.directory, &mut answer);
    }

    /// Asks for admission, or for the change of our record. A sentence if something keeps us out.
    async fn join(&self) -> Option<String> {
        let ask = match self.consensus.leader() {
            Some(leader) if leader == self.own.id() => return self.admit_ourselves().await,
            Some(leader) => Some(leader),
            None => None,
        };
        let nodes = self.directory.nodes();
        let mut candidates: Vec<NodeId> = ask.into_iter().chain(nodes.others().map(NodeEntry::id)).collect();
        candidates.dedup();
        let mut asked = BTreeSet::new();
        let (mut problem, mut refused) = (None, false);
        while let Some(node) = (!candidates.is_empty()).then(|| candidates.remove(0)) {
            if !asked.insert(node) {
                continue;
            }
            match self.ask_to_join(node).await {
                Ok(Asked::Admitted) => return None,
                Ok(Asked::Elsewhere(leader)) => candidates.insert(0, leader),
                Ok(Asked::Refused(reason)) => return Some(format!("the fleet does not admit this node: {reason}")),
                Ok(Asked::NoLeader) => {}
                Err(status) if status.code() == Code::FailedPrecondition => {
                    problem = Some(format!("the fleet does not admit this node: {}", status.message()));
                    refused = true;
                }
                Err(status) if !refused => {
                    problem = Some(format!("{} does not answer: {}", self.name_of(node), status.message()))
                }
                Err(_) => {}
            }
        }
        problem
    }

    async fn admit_ourselves(&self) -> Option<String> {
        use crate::raft::types::{Command, Reply};
        if self.fleet_id().is_empty() {
            return None;
        }
        let put = v1::PutNode { record: Some(self.own.record.clone()) };
        match self.consensus.propose(Command::new(v1::raft_command::Command::PutNode(put))).await {
            Ok(Reply::Refused(reason)) => Some(format!("the fleet does not admit this node: {reason}")),
            Ok(_) => None,
            Err(error) => Some(error.to_string()),
        }
    }

    async fn ask_to_join(&self, node: NodeId) -> Result<Asked, Status> {
        use v1::join_response::Outcome;
        let mut client = self.client(node)?;
        let request = v1::JoinRequest { caller: Some(self.introduction()) };
        Ok(match within(super::PROPOSE_TIMEOUT, client.join(request)).await?.outcome {
            Some(Outcome::Admitted(admitted)) => {
                self.heard_of_ourselves(node, admitted.caller_seen.as_ref(), false);
                Asked::Admitted
            }
            Some(Outcome::Leader(record)) => {
                let leader = self.directory.introduce(record, false, now()).map_err(Status::internal)?;
                if leader == self.own.id() { Asked::NoLeader } else { Asked::Elsewhere(leader) }
            }
            Some(Outcome::Refused(reason)) if reason.contains("not formed yet") => Asked::NoLeader,
            Some(Outcome::Refused(reason)) => Asked::Refused(reason),
            None => Asked::NoLeader,
        })
    }
}

/// Who is behind a channel.
enum Whom {
    /// Whoever answers there.
    Seed(String),
    /// This node, or the connection fails.
    Node(NodeId),
}

impl Whom {
    const fn proven(&self) -> Option<NodeId> {
        match self {
            Self::Seed(_) => None,
            Self::Node(node) => Some(*node),
        }
    }
}

/// How long this node has found nobody but nodes of another mesh key.
#[derive(Debug, Default)]
struct WrongKey {
    since: Option<Instant>,
    logged: bool,
}

impl WrongKey {
    /// Takes note of a round; returns what to tell operators.
    fn note(&mut self, found: Option<StartError>, now: Instant) -> Option<String> {
        let Some(found) = found else {
            *self = Self::default();
            return None;
        };
        let found = found.to_string();
        let since = *self.since.get_or_insert(now);
        if !self.logged && now.saturating_duration_since(since) >= WRONG_KEY_PATIENCE {
            tracing::error!(reason = found, "this node cannot join a fleet");
            self.logged = true;
        }
        Some(found)
    }
}

enum Asked {
    Admitted,
    Elsewhere(NodeId),
    Refused(String),
    NoLeader,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_off_is_named_with_its_direction() {
        assert!(check_clock(vec![]).is_ok());
        assert!(check_clock(vec![4_900_000, -3_600_000_000, 100]).is_ok());
        let error = check_clock(vec![-7_200_000_000, -7_200_000_000, 0]).expect_err("two hours ahead");
        assert!(error.to_string().contains("7200000 ms ahead of its peers"), "{error}");
        assert!(check_clock(vec![5_000_001]).is_err());
    }
}
