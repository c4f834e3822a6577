//! One Raft group: openraft with our log, state machine and network.

mod codec;
pub(crate) mod fleet_state;
mod log;
pub(crate) mod network;
mod snapshot;
mod snapshot_due;
pub(crate) mod state_machine;
pub(crate) mod types;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use causeway_proto::id::NodeId;
use causeway_rpc::v1;
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::errors::{ClientWriteError, Fatal, ForwardToLeader, InitializeError, LinearizableReadError, RaftError};
use openraft::type_config::alias::WatchReceiverOf;
use openraft::{EmptyNode, Instant as _, RaftMetrics, ReadPolicy, ServerState};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use log::LogError;
pub use snapshot::SnapshotError;

use crate::config::RaftProfile;
use crate::peers::PeerChannels;
use crate::presence::PresenceView;
use crate::refusals::CallsRefused;
use log::DiskLog;
use network::{IsNewest, Network, RaftService};
use snapshot::SnapshotStore;
use snapshot_due::SnapshotDue;
use state_machine::StateMachine;
use types::{Command, Reply, TypeConfig};

pub(crate) type Raft = openraft::Raft<TypeConfig, StateMachine>;

/// A snapshot is due when the log behind the last one exceeds this, or that snapshot's size if it is larger.
const SNAPSHOT_LOG_BYTES_MIN: u64 = 256 << 20;
/// How often the log's size is looked at.
const SNAPSHOT_CHECK_INTERVAL: Duration = Duration::from_secs(5);
/// A proposal that is not committed by then has an unknown outcome.
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Why the group cannot be opened. Names the file.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The log.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The snapshot.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// openraft refuses its settings or what it finds on disk.
    #[error("raft cannot start: {0}")]
    Raft(String),
}

/// Why a proposal or a consistent read was not answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotDone {
    /// Ask that node; `None`: no leader is known at the moment.
    #[error("this node does not lead")]
    Forward(Option<NodeId>),
    /// Not committed in time; it may yet be.
    #[error("no quorum answered in time")]
    TimedOut,
    /// Raft does not run here any more.
    #[error("raft does not run here: {0}")]
    Stopped(String),
}

/// A running group on this node.
#[derive(Clone)]
pub(crate) struct Consensus {
    raft: Raft,
    machine: StateMachine,
    log: DiskLog,
    snapshots: SnapshotStore,
    /// Raft's main task has ended, whether it still could say so (a panic leaves its metrics as they were) or not.
    ended: Arc<AtomicBool>,
}

/// Who leads and who belongs to the group, as of a moment.
#[derive(Debug, Clone)]
pub(crate) struct Group {
    pub(crate) leader: Option<NodeId>,
    /// This node leads.
    pub(crate) leads: bool,
    pub(crate) term: u64,
    /// Empty before the group is made or joined.
    pub(crate) voters: BTreeSet<NodeId>,
    /// Voters and learners.
    pub(crate) members: BTreeSet<NodeId>,
    /// On the leader: since a quorum last acknowledged it.
    pub(crate) quorum_ack_age: Option<Duration>,
    /// Why Raft ended here, if it did.
    pub(crate) stopped: Option<String>,
}

impl std::fmt::Debug for Consensus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Consensus").finish_non_exhaustive()
    }
}

impl Consensus {
    /// Opens log and snapshot in `dir`, restores the state and takes part in elections from then on.
    ///
    /// # Errors
    /// [`OpenError`], naming the file.
    #[expect(clippy::too_many_arguments, reason = "called once, where everything is wired")]
    pub(crate) async fn open(
        dir: &Path,
        own: NodeId,
        sender: v1::RaftSender,
        profile: RaftProfile,
        view: Arc<PresenceView>,
        peers: PeerChannels,
        tracker: &TaskTracker,
        cancel: &CancellationToken,
    ) -> Result<Self, OpenError> {
        let log = DiskLog::open(&dir.join("log"))?;
        let snapshots = SnapshotStore::open(dir.join("snapshot"))?;
        // Read once up front: openraft would tell less about a damaged file.
        snapshots.current()?;
        let machine = StateMachine::new(view, snapshots.clone());
        let settings = types::settings(profile).map_err(|error| OpenError::Raft(error.to_string()))?;
        let heartbeat = Duration::from_millis(settings.heartbeat_interval);
        let network = Network::new(own, sender, peers, heartbeat, tracker.clone(), cancel.clone());
        let raft = Raft::new(own.0, settings, network, log.clone(), machine.clone())
            .await
            .map_err(|error| OpenError::Raft(error.to_string()))?;
        let consensus = Self { raft, machine, log, snapshots, ended: Arc::default() };
        tracker.spawn(consensus.clone().note_end(cancel.clone()));
        tracker.spawn(consensus.clone().take_snapshots(SNAPSHOT_LOG_BYTES_MIN, SNAPSHOT_CHECK_INTERVAL, cancel.clone()));
        let (raft, cancel) = (consensus.raft.clone(), cancel.clone());
        tracker.spawn(async move {
            cancel.cancelled().await;
            if let Err(error) = raft.shutdown().await {
                tracing::warn!(%error, "raft did not shut down cleanly");
            }
        });
        Ok(consensus)
    }

    /// Answers peers' Raft calls.
    pub(crate) fn service(&self, refused: CallsRefused, is_newest: IsNewest, cancel: CancellationToken) -> RaftService {
        RaftService::new(self.raft.clone(), self.snapshots.clone(), refused, is_newest, cancel)
    }

    /// The replicated state.
    pub(crate) const fn machine(&self) -> &StateMachine {
        &self.machine
    }

    /// Cloned out at once: holding the guard would freeze Raft.
    fn metrics(&self) -> RaftMetrics<TypeConfig> {
        let mut metrics = self.raft.metrics().borrow_watched().clone();
        if self.has_ended() {
            metrics.state = ServerState::Shutdown;
            metrics.running_state = metrics.running_state.and(Err(Fatal::Panicked));
        }
        metrics
    }

    fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    /// Waits for the end of Raft's main task, which drops its end of the metrics, and takes note of it.
    async fn note_end(self, cancel: CancellationToken) {
        let mut metrics = self.raft.metrics();
        while metrics.changed().await.is_ok() {}
        self.ended.store(true, Ordering::Relaxed);
        if !cancel.is_cancelled() {
            let reason = self.group().stopped.unwrap_or_default();
            tracing::error!(reason, "raft has ended on this node; it keeps relaying");
        }
    }

    /// Leader and members, as of now.
    pub(crate) fn group(&self) -> Group {
        let metrics = self.metrics();
        let voters: BTreeSet<NodeId> = metrics.membership_config.voter_ids().map(NodeId).collect();
        // A leader that is the only voter is its own quorum; openraft notes that with each write only.
        let alone = voters.len() == 1;
        let quorum_ack_age = metrics.last_quorum_acked.map(|at| if alone { Duration::ZERO } else { at.elapsed() });
        Group {
            leader: metrics.current_leader.map(NodeId),
            leads: metrics.state == ServerState::Leader,
            term: metrics.current_term,
            voters,
            members: metrics.membership_config.nodes().map(|(id, _)| NodeId(*id)).collect(),
            quorum_ack_age,
            stopped: metrics.running_state.err().map(|fatal| match fatal {
                Fatal::Panicked => "its task panicked".to_owned(),
                fatal => fatal.to_string(),
            }),
        }
    }

    /// State and progress for operators; names and addresses of the members are left empty.
    pub(crate) fn status(&self) -> v1::RaftStatus {
        let metrics = self.metrics();
        let group = self.group();
        let state = match metrics.state {
            _ if group.stopped.is_some() => "shutdown",
            _ if group.voters.is_empty() => "off",
            ServerState::Leader => "leader",
            ServerState::Candidate => "candidate",
            ServerState::Follower => "follower",
            ServerState::Learner => "learner",
            ServerState::Shutdown => "shutdown",
        };
        let index = |id: &Option<types::LogId>| id.map_or(0, |id| id.index);
        let member = |id: &NodeId| v1::RaftMember {
            node_id: id.0,
            voter: group.voters.contains(id),
            matched_index: index(&metrics.replication.as_ref().and_then(|replication| *replication.get(&id.0)?)),
            heartbeat_ms: metrics.heartbeat.as_ref().and_then(|sent| *sent.get(&id.0)?).map_or(0, |at| whole_ms(at.elapsed())),
            ..Default::default()
        };
        v1::RaftStatus {
            node_id: metrics.id,
            state: state.to_owned(),
            term: metrics.current_term,
            leader: metrics.current_leader.unwrap_or_default(),
            last_log_index: metrics.last_log_index.unwrap_or_default(),
            committed_index: index(&metrics.local_committed),
            applied_index: index(&metrics.last_applied),
            snapshot_index: index(&metrics.snapshot),
            purged_index: index(&metrics.purged),
            quorum_ack_ms: group.quorum_ack_age.map_or(0, whole_ms),
            members: group.members.iter().map(member).collect(),
            stopped_because: group.stopped.unwrap_or_default(),
            leader_told: group.leads,
        }
    }

    /// Returns once a leader is known that is not `was`; never if Raft has ended here.
    pub(crate) async fn leader_other_than(&self, was: Option<NodeId>) -> NodeId {
        let mut changes = self.raft.server_metrics();
        loop {
            let now = changes.borrow_watched().current_leader.map(NodeId);
            match now {
                Some(leader) if now != was => return leader,
                _ if changes.changed().await.is_err() => return std::future::pending().await,
                _ => {}
            }
        }
    }

    /// Notices whatever happens to the group from now on, elections above all.
    pub(crate) fn happenings(&self) -> Happenings {
        Happenings(self.raft.metrics())
    }

    /// The leader, if one is known.
    pub(crate) fn leader(&self) -> Option<NodeId> {
        let leader = self.raft.metrics().borrow_watched().current_leader;
        // Of a task that has ended nothing is heard any more.
        leader.filter(|_| !self.has_ended()).map(NodeId)
    }

    /// Whether this node leads.
    pub(crate) fn is_leader(&self) -> bool {
        !self.has_ended() && self.raft.metrics().borrow_watched().state == ServerState::Leader
    }

    /// Lets Raft's main task panic.
    #[cfg(test)]
    pub(crate) async fn panic(&self) {
        let ended: Result<(), _> = self.raft.with_raft_state(|_| panic!("on purpose")).await;
        assert!(ended.is_err());
    }

    /// Whether this node has never voted nor stored an entry. `false` if Raft has ended.
    pub(crate) async fn is_pristine(&self) -> bool {
        matches!(self.raft.is_initialized().await, Ok(false))
    }

    /// Makes the group of `voters`; only on a pristine node, which must be one of them. Whether it was pristine.
    ///
    /// # Errors
    /// [`NotDone::Stopped`].
    pub(crate) async fn initialize(&self, voters: &BTreeSet<NodeId>) -> Result<bool, NotDone> {
        let members: BTreeSet<u64> = voters.iter().map(|voter| voter.0).collect();
        match self.raft.initialize(members).await {
            Ok(()) => Ok(true),
            Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(false),
            Err(error) => Err(NotDone::Stopped(error.to_string())),
        }
    }

    /// Proposes a command and waits until it is applied here; only on the leader.
    ///
    /// # Errors
    /// [`NotDone`].
    pub(crate) async fn propose(&self, command: Command) -> Result<Reply, NotDone> {
        let written = tokio::time::timeout(PROPOSE_TIMEOUT, self.raft.client_write(command)).await;
        match written.map_err(|_| NotDone::TimedOut)? {
            Ok(response) => Ok(response.data),
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward))) => Err(not_leader(&forward)),
            Err(RaftError::APIError(ClientWriteError::LogEntryDiscarded(_))) => Err(NotDone::TimedOut),
            Err(error) => Err(NotDone::Stopped(error.to_string())),
        }
    }

    /// Admits a learner; only on the leader.
    ///
    /// # Errors
    /// [`NotDone`]; another change of members being under way counts as [`NotDone::TimedOut`].
    pub(crate) async fn add_learner(&self, node: NodeId) -> Result<(), NotDone> {
        let added = tokio::time::timeout(PROPOSE_TIMEOUT, self.raft.add_learner(node.0, EmptyNode {}, false)).await;
        member_change(added.map_err(|_| NotDone::TimedOut)?)
    }

    /// Removes a member, voter or learner; only on the leader.
    ///
    /// # Errors
    /// As [`Self::add_learner`].
    pub(crate) async fn remove_member(&self, node: NodeId) -> Result<(), NotDone> {
        let nodes = BTreeSet::from([node.0]);
        let is_voter = self.raft.voter_ids().any(|voter| voter == node.0);
        let change =
            if is_voter { openraft::ChangeMembers::RemoveVoters(nodes) } else { openraft::ChangeMembers::RemoveNodes(nodes) };
        let changed = tokio::time::timeout(PROPOSE_TIMEOUT, self.raft.change_membership(change, false)).await;
        member_change(changed.map_err(|_| NotDone::TimedOut)?)
    }

    /// Returns once everything committed before the call is applied here; only on the leader, by a quorum round trip.
    ///
    /// # Errors
    /// [`NotDone`].
    pub(crate) async fn ensure_linearizable(&self) -> Result<(), NotDone> {
        let read = tokio::time::timeout(PROPOSE_TIMEOUT, self.raft.ensure_linearizable(ReadPolicy::ReadIndex)).await;
        match read.map_err(|_| NotDone::TimedOut)? {
            Ok(_) => Ok(()),
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward))) => Err(not_leader(&forward)),
            Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_))) => Err(NotDone::TimedOut),
            Err(error) => Err(NotDone::Stopped(error.to_string())),
        }
    }

    /// Takes a snapshot now.
    ///
    /// # Errors
    /// [`NotDone::Stopped`].
    pub(crate) async fn snapshot(&self) -> Result<(), NotDone> {
        self.raft.trigger().snapshot().await.map_err(|error| NotDone::Stopped(error.to_string()))
    }

    /// Drops everything that the snapshot holds from the log, so that a new member needs the snapshot.
    #[cfg(test)]
    pub(crate) async fn purge(&self) {
        let snapshot = self.metrics().snapshot.expect("there is a snapshot");
        self.raft.trigger().purge_log(snapshot.index).await.expect("raft runs");
    }

    /// Takes a snapshot whenever more than `bytes_min`, or the last snapshot's size, was appended since the last one.
    pub(crate) async fn take_snapshots(self, bytes_min: u64, check_interval: Duration, cancel: CancellationToken) {
        let mut due = SnapshotDue::default();
        let mut ticks = tokio::time::interval(check_interval);
        while cancel.run_until_cancelled(ticks.tick()).await.is_some() {
            let metrics = self.metrics();
            let index = |id: Option<types::LogId>| id.map_or(0, |id| id.index);
            let (applied, snapshot) = (index(metrics.last_applied), index(metrics.snapshot));
            let bytes_max = bytes_min.max(self.snapshots.size());
            if due.is_to_be_taken(self.log.appended(), bytes_max, applied, snapshot) && self.snapshot().await.is_err() {
                return;
            }
        }
    }
}

fn whole_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn not_leader(forward: &ForwardToLeader<TypeConfig>) -> NotDone {
    NotDone::Forward(forward.leader_id.map(NodeId))
}

fn member_change<T>(result: Result<T, RaftError<TypeConfig, ClientWriteError<TypeConfig>>>) -> Result<(), NotDone> {
    match result {
        Ok(_) => Ok(()),
        Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward))) => Err(not_leader(&forward)),
        Err(RaftError::APIError(_)) => Err(NotDone::TimedOut),
        Err(error) => Err(NotDone::Stopped(error.to_string())),
    }
}

/// What happens to a group: elections, members, entries.
pub(crate) struct Happenings(WatchReceiverOf<TypeConfig, RaftMetrics<TypeConfig>>);

impl Happenings {
    /// Returns when something has happened since the last call; never again once Raft has ended.
    pub(crate) async fn next(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending().await
        }
    }
}

/// The claims as an operator sees them.
pub(crate) fn committed_claim(claim: &crate::presence::table::TableClaim) -> v1::CommittedClaim {
    v1::CommittedClaim {
        rank: Some(claim.rank.into()),
        epoch: claim.epoch.0,
        home: claim.home,
        kind: v1::ClaimKind::from(claim.kind).into(),
        fenced: claim.fenced,
    }
}
