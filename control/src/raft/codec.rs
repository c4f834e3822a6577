//! Between openraft's types and our messages: the same bytes on the wire, in the log and in snapshots.

use std::collections::{BTreeMap, BTreeSet};

use causeway_rpc::{MalformedMessage, v1};
use openraft::{EmptyNode, EntryPayload};

use super::types::{Command, Entry, LeaderId, LogId, Membership, Payload, StoredMembership, Vote};

pub(crate) fn log_id_to(id: &LogId) -> v1::RaftLogId {
    v1::RaftLogId { term: id.leader_id.term, node_id: id.leader_id.node_id, index: id.index }
}

pub(crate) fn log_id_from(id: &v1::RaftLogId) -> LogId {
    LogId { leader_id: LeaderId { term: id.term, node_id: id.node_id }, index: id.index }
}

pub(crate) fn vote_to(vote: &Vote) -> v1::RaftBallot {
    v1::RaftBallot { term: vote.leader_id.term, node_id: vote.leader_id.node_id, committed: vote.committed }
}

pub(crate) fn vote_from(vote: Option<&v1::RaftBallot>) -> Result<Vote, MalformedMessage> {
    let vote = vote.ok_or(MalformedMessage::new("vote", "must be set"))?;
    Ok(Vote { leader_id: LeaderId { term: vote.term, node_id: vote.node_id }, committed: vote.committed })
}

pub(crate) fn membership_to(membership: &Membership) -> v1::RaftMembership {
    let configs = membership.get_joint_config().iter();
    v1::RaftMembership {
        configs: configs.map(|voters| v1::RaftVoterSet { voters: voters.iter().copied().collect() }).collect(),
        members: membership.nodes().map(|(id, _)| *id).collect(),
    }
}

pub(crate) fn membership_from(membership: v1::RaftMembership) -> Result<Membership, MalformedMessage> {
    let configs: Vec<BTreeSet<u64>> = membership.configs.into_iter().map(|set| set.voters.into_iter().collect()).collect();
    let members: BTreeMap<u64, EmptyNode> = membership.members.into_iter().map(|id| (id, EmptyNode {})).collect();
    if configs.is_empty() && members.is_empty() {
        return Ok(Membership::default());
    }
    Membership::new(configs, members).map_err(|_| MalformedMessage::new("membership", "every voter must be a member"))
}

pub(crate) fn stored_membership_to(stored: &StoredMembership) -> v1::RaftStoredMembership {
    v1::RaftStoredMembership {
        log_id: stored.log_id().as_ref().map(log_id_to),
        membership: Some(membership_to(stored.membership())),
    }
}

pub(crate) fn stored_membership_from(stored: v1::RaftStoredMembership) -> Result<StoredMembership, MalformedMessage> {
    let membership = membership_from(stored.membership.unwrap_or_default())?;
    Ok(StoredMembership::new(stored.log_id.as_ref().map(log_id_from), membership))
}

pub(crate) fn payload_to(payload: &Payload) -> v1::RaftPayload {
    use v1::raft_payload::Payload as Stored;
    let payload = match payload {
        EntryPayload::Blank => None,
        EntryPayload::Normal(command) => Some(Stored::Command(command.0.clone())),
        EntryPayload::Membership(membership) => Some(Stored::Membership(membership_to(membership))),
    };
    v1::RaftPayload { payload }
}

pub(crate) fn payload_from(payload: v1::RaftPayload) -> Result<Payload, MalformedMessage> {
    use v1::raft_payload::Payload as Stored;
    Ok(match payload.payload {
        None => EntryPayload::Blank,
        Some(Stored::Command(command)) => EntryPayload::Normal(Command(command)),
        Some(Stored::Membership(membership)) => EntryPayload::Membership(membership_from(membership)?),
    })
}

pub(crate) fn entry_to(entry: &Entry) -> v1::RaftEntry {
    v1::RaftEntry { log_id: Some(log_id_to(&entry.log_id)), payload: Some(payload_to(&entry.payload)) }
}

pub(crate) fn entry_from(entry: v1::RaftEntry) -> Result<Entry, MalformedMessage> {
    let log_id = entry.log_id.as_ref().map(log_id_from).ok_or(MalformedMessage::new("log_id", "must be set"))?;
    Ok(Entry { log_id, payload: payload_from(entry.payload.unwrap_or_default())? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use prost::Message;

    fn payloads() -> impl Strategy<Value = Payload> {
        let members = (proptest::collection::btree_set(1_u64..9, 1..5), proptest::collection::btree_set(1_u64..20, 0..5));
        prop_oneof![
            Just(EntryPayload::Blank),
            proptest::collection::vec(any::<u8>(), 0..100).prop_map(|bytes| EntryPayload::Normal(Command(bytes.into()))),
            members.prop_map(|(voters, learners)| {
                let nodes: BTreeMap<u64, EmptyNode> = voters.union(&learners).map(|id| (*id, EmptyNode {})).collect();
                EntryPayload::Membership(Membership::new(vec![voters], nodes).expect("voters are members"))
            }),
        ]
    }

    proptest! {
        #[test]
        fn entries_round_trip(term: u64, node: u64, index: u64, payload in payloads()) {
            let entry = Entry { log_id: LogId { leader_id: LeaderId { term, node_id: node }, index }, payload };
            let bytes = entry_to(&entry).encode_to_vec();
            let back = entry_from(v1::RaftEntry::decode(bytes.as_slice()).expect("decodes")).expect("well formed");
            prop_assert_eq!(back, entry);
        }
    }

    #[test]
    fn a_voter_that_is_no_member_is_refused() {
        let configs = vec![v1::RaftVoterSet { voters: vec![1, 2] }];
        assert!(membership_from(v1::RaftMembership { configs, members: vec![1] }).is_err());
    }
}
