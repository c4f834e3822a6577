//! The types that openraft is instantiated with, and its settings.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use causeway_proto::id::{BootId, Epoch};
use causeway_rpc::v1;
use openraft::{Config, ConfigError, EmptyNode, SnapshotPolicy, StepDownPolicy};
use prost::Message;

use crate::config::RaftProfile;

openraft::declare_raft_types!(
    /// One Raft group: commands in our own encoding, members known by their node ids only.
    pub(crate) TypeConfig: D = Command, R = Reply, Node = EmptyNode
);

pub(crate) type LogId = openraft::type_config::alias::LogIdOf<TypeConfig>;
pub(crate) type Vote = openraft::type_config::alias::VoteOf<TypeConfig>;
pub(crate) type Entry = openraft::type_config::alias::EntryOf<TypeConfig>;
pub(crate) type Payload = openraft::type_config::alias::PayloadOf<TypeConfig>;
pub(crate) type LeaderId = openraft::type_config::alias::LeaderIdOf<TypeConfig>;
pub(crate) type Membership = openraft::Membership<u64, EmptyNode>;
pub(crate) type StoredMembership = openraft::type_config::alias::StoredMembershipOf<TypeConfig>;
pub(crate) type SnapshotMeta = openraft::type_config::alias::SnapshotMetaOf<TypeConfig>;

/// The one group of today. It stands in directories and on the wire so that more can follow.
pub(crate) const GROUP_ID: u32 = 0;

/// A command of the log: an encoded [`v1::RaftCommand`].
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Command(pub(crate) Bytes);

impl Command {
    pub(crate) fn new(command: v1::raft_command::Command) -> Self {
        Self(v1::RaftCommand { command: Some(command) }.encode_to_vec().into())
    }

    pub(crate) fn presence(command: &crate::presence::Command) -> Self {
        Self::new(v1::raft_command::Command::Presence(command.encode()))
    }
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Command({} bytes)", self.0.len())
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What applying a command came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reply {
    /// A blank entry or a change of members.
    Nothing,
    /// Done, or it had been done before. For owner logs: the last sequence the table has.
    Applied {
        /// 0 for commands without a sequence.
        seq: u64,
    },
    /// The command left a gap in an owner log.
    Gap {
        /// Where to continue.
        expected_seq: u64,
    },
    /// Only a reset that states at least this sequence is accepted now.
    NeedsReset {
        /// The lowest sequence a reset may state.
        at_least_seq: u64,
    },
    /// A higher epoch of the owner, or the same one of another process, has been seen.
    Superseded {
        /// The highest epoch seen.
        epoch: Epoch,
        /// Its process.
        boot_id: BootId,
    },
    /// Not done; says why.
    Refused(String),
}

/// Settings of a profile.
///
/// # Errors
/// None in practice: a test checks both profiles.
pub(crate) fn settings(profile: RaftProfile) -> Result<Arc<Config>, ConfigError> {
    let (heartbeat, election_min, election_max) = match profile {
        RaftProfile::Wan => (400, 1500, 2500),
        RaftProfile::Lan => (100, 500, 1000),
    };
    let config = Config {
        cluster_name: "causeway".to_owned(),
        heartbeat_interval: heartbeat,
        heartbeat_min_interval: Some(heartbeat),
        election_timeout_min: election_min,
        election_timeout_max: election_max,
        enable_pre_vote: Some(true),
        // At least twice the longest election, so that a leader in a partial partition steps down but a slow one does not.
        quorum_loss_probe_interval: Some(election_max * 5 / 2),
        // The table is in memory: a restarted leader must be elected again before it answers.
        enable_leader_restore: Some(false),
        // A follower on an older copy of its disk is sent everything again; otherwise it would stop the leader.
        allow_log_reversion: Some(true),
        removed_leader_step_down: StepDownPolicy::After(1000),
        max_payload_entries: 128,
        max_in_snapshot_log_to_keep: 1000,
        replication_lag_threshold: 64,
        install_snapshot_timeout: 600_000,
        // Entries hold hundreds of operations each, so bytes decide: see `snapshot.rs`.
        snapshot_policy: SnapshotPolicy::Never,
        api_channel_size: Some(4096),
        api_batch_linger_ms: 0,
        ..Config::default()
    };
    config.validate().map(Arc::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_profiles_are_valid() {
        for profile in [RaftProfile::Wan, RaftProfile::Lan] {
            settings(profile).expect("valid");
        }
    }
}
