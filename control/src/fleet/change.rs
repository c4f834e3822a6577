//! What operators change of the fleet: proposed by the leader, to which voters pass it on.
//!
//! Voters only: each of them could become the leader and do it then. The word of another node must not change who is in the fleet, nor
//! what clients are told of it.

use causeway_proto::id::NodeId;
use causeway_rpc::v1;
use causeway_rpc::v1::change_request::Change;
use tonic::Code;

use super::{Fleet, PROPOSE_TIMEOUT, within};
use crate::error::AdminError;
use crate::raft::NotDone;
use crate::raft::types::{Command, Reply};

/// What a proposal came to that did not fail.
pub(super) enum Proposed {
    Done,
    /// This node does not lead; who does, if that is known.
    NotLeader(Option<NodeId>),
}

impl Fleet {
    /// Makes a change, through the leader if this is another voter.
    ///
    /// # Errors
    /// [`AdminError`], saying whom to ask if not this node.
    pub(crate) async fn change(&self, change: Change) -> Result<(), AdminError> {
        let leader = match self.propose_change(change.clone()).await? {
            Proposed::Done => return Ok(()),
            Proposed::NotLeader(leader) => leader,
        };
        if !self.is_voter(self.own.id()) {
            let voters: Vec<String> = self.voters().into_iter().map(|voter| self.name_of(NodeId(voter))).collect();
            return Err(AdminError::Unavailable(format!(
                "this node does not vote, and changes nothing: ask {}",
                voters.join(" or ")
            )));
        }
        let leader = leader.ok_or_else(|| AdminError::Unavailable("no leader is known at the moment: ask again".to_owned()))?;
        let answer = match self.client(leader) {
            Ok(mut client) => within(PROPOSE_TIMEOUT, client.change(v1::ChangeRequest { change: Some(change) })).await,
            Err(status) => Err(status),
        };
        answer.map(|v1::ChangeResponse {}| ()).map_err(|status| match status.code() {
            Code::InvalidArgument => AdminError::Invalid(status.message().to_owned()),
            Code::DeadlineExceeded => not_in_time(),
            _ => AdminError::Unavailable(format!("{}, which leads: {}", self.name_of(leader), status.message())),
        })
    }

    /// Proposes a change if this node leads.
    pub(super) async fn propose_change(&self, change: Change) -> Result<Proposed, AdminError> {
        match self.consensus.propose(Command::new(command(change))).await {
            Ok(Reply::Refused(reason)) => Err(AdminError::Invalid(reason)),
            Ok(_) => Ok(Proposed::Done),
            Err(NotDone::Forward(leader)) => Ok(Proposed::NotLeader(leader)),
            Err(NotDone::TimedOut) => Err(not_in_time()),
            Err(error @ NotDone::Stopped(_)) => Err(AdminError::Unavailable(error.to_string())),
        }
    }

    pub(crate) fn is_voter(&self, node: NodeId) -> bool {
        self.consensus.group().voters.contains(&node)
    }
}

/// The command of the log that makes a change.
pub(crate) fn command(change: Change) -> v1::raft_command::Command {
    use v1::raft_command::Command as Kind;
    match change {
        Change::EvictNode(node_id) => Kind::EvictNode(v1::EvictNode { node_id }),
        Change::DerpMap(settings) => Kind::SetDerpMap(v1::SetDerpMap { settings: Some(settings) }),
    }
}

fn not_in_time() -> AdminError {
    AdminError::TimedOut("the change was not committed in time; ask again".to_owned())
}
