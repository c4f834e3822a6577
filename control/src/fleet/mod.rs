//! A node among nodes: introductions, joining, heartbeats, proposals, forming a fleet. [`Fleet`] is what the tasks and the service
//! share.

mod bootstrap;
pub(crate) mod change;
mod heartbeat;
mod join;
mod membership;
mod proposer;
mod service;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use causeway_proto::id::{BootId, Epoch, NodeId};
use causeway_rpc::v1::fleet_client::FleetClient;
use causeway_rpc::{convert, v1};
use parking_lot::Mutex;
use tokio::sync::watch;
use tonic::Status;

pub(crate) use bootstrap::{init_cluster, keep_standalone_formed};
pub(crate) use heartbeat::{drive_fences, send_heartbeats};
pub(crate) use join::{first_contact, meet_and_join};
pub(crate) use membership::keep_members;
pub(crate) use proposer::propose_own_log;
pub(crate) use service::FleetService;

use crate::config::{Deps, Tracing, WallClock};
use crate::data_dir::DataDir;
use crate::discovery::Directory;
use crate::error::Fatal;
use crate::identity::PeerIdentity;
use crate::peers::{ChannelUse, MESSAGE_SIZE_MAX, PeerChannel, PeerChannels};
use crate::presence::{FenceMonitor, OWNERS_MAX, OwnerLog, PresenceView};
use crate::raft::Consensus;
use crate::watch::{OpsBucket, micros};

/// One question to a peer takes at most this.
pub(crate) const CALL_TIMEOUT: Duration = Duration::from_secs(2);
/// A proposal at the leader takes at most this, a quorum round trip included.
pub(crate) const PROPOSE_TIMEOUT: Duration = Duration::from_secs(6);

/// A node that proposes faster than it may is slowed down by so much at most, then refused.
const PROPOSAL_WAIT_MAX: Duration = Duration::from_secs(4);

/// What this process says of itself.
#[derive(Debug, Clone)]
pub(crate) struct Own {
    pub(crate) identity: PeerIdentity,
    pub(crate) record: v1::NodeRecord,
    pub(crate) epoch: Epoch,
    pub(crate) boot_id: BootId,
}

impl Own {
    pub(crate) const fn id(&self) -> NodeId {
        self.identity.node_id
    }

    pub(crate) fn introduction(&self, clock: &WallClock, fleet_id: String) -> v1::Introduction {
        v1::Introduction {
            fleet_id,
            record: Some(self.record.clone()),
            epoch: self.epoch.0,
            boot_id: self.boot_id.0.to_vec().into(),
            clock_us: micros(clock()),
        }
    }
}

/// A process of a node: its epoch, and which process that is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Incarnation {
    pub(crate) epoch: Epoch,
    pub(crate) boot_id: BootId,
}

impl Incarnation {
    /// Reads an epoch and boot id of a message.
    pub(crate) fn from_message(epoch: u64, boot_id: &[u8]) -> Result<Self, Status> {
        if epoch == 0 {
            return Err(Status::invalid_argument("field epoch: starts with 1"));
        }
        Ok(Self { epoch: Epoch(epoch), boot_id: convert::boot_id("boot_id", boot_id)? })
    }

    fn to_message(self) -> v1::EpochSeen {
        let boot_id = if self.epoch == Epoch(0) { bytes::Bytes::new() } else { self.boot_id.0.to_vec().into() };
        v1::EpochSeen { epoch: self.epoch.0, boot_id }
    }
}

/// What the control plane's tasks and services share.
#[derive(Debug)]
pub(crate) struct Fleet {
    pub(crate) own: Own,
    pub(crate) clock: SharedClock,
    pub(crate) tracing: Tracing,
    pub(crate) consensus: Consensus,
    pub(crate) directory: Arc<Directory>,
    pub(crate) peers: PeerChannels,
    pub(crate) view: Arc<PresenceView>,
    pub(crate) owner_log: OwnerLog,
    /// The highest epoch that each node has shown, and by which process first.
    seen: Mutex<BTreeMap<NodeId, Incarnation>>,
    fences: Mutex<FenceMonitor>,
    fatal: watch::Sender<Option<Fatal>>,
    /// Held while this node forms a fleet, so that two operators cannot interleave.
    forming: tokio::sync::Mutex<()>,
    /// Why joining does not get on, for operators.
    join_problem: Mutex<Option<String>>,
    /// What each node may still propose.
    proposal_rates: Mutex<BTreeMap<NodeId, OpsBucket>>,
    /// Locked until the last task has ended.
    _dir: DataDir,
}

/// A wall clock that can stand in a type with `Debug`.
#[derive(Clone)]
pub(crate) struct SharedClock(pub(crate) WallClock);

impl std::fmt::Debug for SharedClock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("WallClock")
    }
}

impl Fleet {
    #[expect(clippy::too_many_arguments, reason = "called once, where everything is wired")]
    pub(crate) fn new(
        own: Own,
        deps: &Deps,
        dir: DataDir,
        consensus: Consensus,
        directory: Arc<Directory>,
        peers: PeerChannels,
        view: Arc<PresenceView>,
        owner_log: OwnerLog,
    ) -> Self {
        Self {
            own,
            clock: SharedClock(Arc::clone(&deps.clock)),
            tracing: deps.tracing,
            consensus,
            directory,
            peers,
            view,
            owner_log,
            seen: Mutex::default(),
            fences: Mutex::default(),
            fatal: watch::Sender::default(),
            forming: tokio::sync::Mutex::default(),
            join_problem: Mutex::default(),
            proposal_rates: Mutex::default(),
            _dir: dir,
        }
    }

    pub(crate) fn fatal(&self) -> watch::Receiver<Option<Fatal>> {
        self.fatal.subscribe()
    }

    /// Tells the process to stop; the first reason stands.
    pub(crate) fn fail(&self, reason: Fatal) {
        self.fatal.send_if_modified(|fatal| {
            let first = fatal.is_none();
            if first {
                tracing::error!(%reason, "this node must stop");
                *fatal = Some(reason);
            }
            first
        });
    }

    /// The fleet's id as far as Raft has it; empty if this node is in none.
    pub(crate) fn fleet_id(&self) -> String {
        self.consensus.machine().read(|state| state.fleet.fleet_id.clone())
    }

    pub(crate) fn introduction(&self) -> v1::Introduction {
        self.own.introduction(&self.clock.0, self.fleet_id())
    }

    pub(crate) fn now_us(&self) -> u64 {
        micros((self.clock.0)())
    }

    pub(crate) fn join_problem(&self) -> Option<String> {
        self.join_problem.lock().clone()
    }

    /// A node as messages to operators call it.
    pub(crate) fn name_of(&self, node: NodeId) -> String {
        self.directory.nodes().get(node).map_or_else(|| format!("node {node}"), |entry| format!("node `{}`", entry.record.name))
    }

    pub(crate) fn client(&self, node: NodeId) -> Result<FleetClient<PeerChannel>, Status> {
        let channel = self.peers.channel(node, ChannelUse::Fleet).map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(fleet_client(channel))
    }

    /// Takes note of a process of a node; answers with the highest known of that node before.
    pub(crate) fn saw(&self, node: NodeId, process: Incarnation) -> Incarnation {
        let applied = self.consensus.machine().read(|state| {
            state.table.owner(node).map(|owner| Incarnation { epoch: owner.epoch, boot_id: owner.boot_id }).unwrap_or_default()
        });
        let mut seen = self.seen.lock();
        if seen.len() >= OWNERS_MAX && !seen.contains_key(&node) {
            return applied;
        }
        let known = seen.entry(node).or_default();
        if applied.epoch > known.epoch {
            *known = applied;
        }
        let before = *known;
        if process.epoch > known.epoch {
            *known = process;
        }
        before
    }

    /// Takes note of a process of a node; whether it is the newest one seen of that node.
    pub(crate) fn is_newest(&self, node: NodeId, process: Incarnation) -> bool {
        let before = self.saw(node, process);
        process.epoch > before.epoch || process == before
    }

    /// How long a proposal of so many operations must wait, so that no node fills the log; `None`: longer than it is worth.
    fn proposal_wait(&self, node: NodeId, ops: usize) -> Option<Duration> {
        let now = tokio::time::Instant::now();
        let mut rates = self.proposal_rates.lock();
        let wait = rates.entry(node).or_insert_with(|| OpsBucket::new(now)).take(ops, now).unwrap_or_default();
        (wait <= PROPOSAL_WAIT_MAX).then_some(wait)
    }

    /// Whether a peer that says it is of `fleet_id` may be dealt with; nodes that are in no fleet may.
    pub(crate) fn is_of_ours(&self, fleet_id: &str) -> bool {
        let ours = self.fleet_id();
        ours.is_empty() || fleet_id.is_empty() || ours == fleet_id
    }

    /// The highest epoch seen of a node by any way; 0 if none.
    pub(crate) fn epoch_of(&self, node: NodeId) -> Epoch {
        if node == self.own.id() {
            return self.own.epoch;
        }
        let applied = self.consensus.machine().read(|state| state.table.owner(node).map(|owner| owner.epoch)).unwrap_or_default();
        self.seen.lock().get(&node).map_or(applied, |seen| seen.epoch.max(applied))
    }

    /// `from` told what it has seen of this very node: a higher epoch, or ours by another process, means a copied data directory.
    ///
    /// Believed of this node's own Raft and of the elected leader, if it is a voter: any other peer's word must not end a process. A node
    /// that is `cut_off` (nobody it knows as leader answers as one, perhaps because a copy took its place in Raft) believes any voter.
    pub(crate) fn heard_of_ourselves(&self, from: NodeId, seen: Option<&v1::EpochSeen>, cut_off: bool) {
        let Some(theirs) = self.superseding(seen) else { return };
        let group = self.consensus.group();
        let may_lead = group.voters.contains(&from) && (cut_off || group.leader == Some(from));
        if from != self.own.id() && !may_lead {
            tracing::debug!(%from, epoch = %theirs, "a node that does not lead tells of another process under this identity");
            return;
        }
        self.fail(Fatal::OwnEpochSuperseded { ours: self.own.epoch, theirs });
    }

    /// The epoch of another process under this identity that is ours or higher, if that is what was seen.
    fn superseding(&self, seen: Option<&v1::EpochSeen>) -> Option<Epoch> {
        let seen = seen.filter(|seen| seen.epoch >= self.own.epoch.0)?;
        let other = seen.epoch > self.own.epoch.0 || seen.boot_id.as_ref() != self.own.boot_id.0.as_slice();
        other.then_some(Epoch(seen.epoch))
    }
}

/// Runtime time, so that paused time holds for it too.
fn now() -> std::time::Instant {
    tokio::time::Instant::now().into_std()
}

/// A client with the limits of node-to-node calls.
pub(crate) fn fleet_client(channel: PeerChannel) -> FleetClient<PeerChannel> {
    FleetClient::new(channel).max_decoding_message_size(MESSAGE_SIZE_MAX).max_encoding_message_size(MESSAGE_SIZE_MAX)
}

/// Awaits a peer's answer for a bounded time.
pub(crate) async fn within<T>(
    limit: Duration,
    call: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, Status> {
    match tokio::time::timeout(limit, call).await {
        Ok(answer) => answer.map(tonic::Response::into_inner),
        Err(_) => Err(Status::deadline_exceeded("the node did not answer in time")),
    }
}

#[cfg(test)]
mod tests;
