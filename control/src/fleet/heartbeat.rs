//! Signs of life: every node tells the leader every 2 s that it lives; the leader fences who is silent.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use causeway_proto::id::{Epoch, NodeId};
use causeway_rpc::v1;
use tokio_util::sync::CancellationToken;

use super::{CALL_TIMEOUT, Fleet, within};
use crate::error::Fatal;
use crate::presence::fence::{HEARTBEAT_INTERVAL, Member};
use crate::raft::state_machine::FleetView;
use crate::raft::types::Command;

/// How often the leader looks for silence, at most.
const FENCE_CHECK_INTERVAL: Duration = Duration::from_millis(250);

/// Tells the leader every [`HEARTBEAT_INTERVAL`], and at once when there is a new one, that this node lives.
pub(crate) async fn send_heartbeats(fleet: Arc<Fleet>, cancel: CancellationToken) {
    let work = async {
        loop {
            let leader = fleet.consensus.leader();
            let taken = match leader {
                Some(leader) if leader != fleet.own.id() => fleet.beat_leader(leader).await,
                _ => false,
            };
            // Cut off from Raft, or leading it: perhaps a copy of this node has taken its place. The voters would say so.
            if !taken {
                fleet.beat_voters().await;
            }
            // Both may be dropped: the next round asks for the leader anew.
            tokio::select! {
                () = tokio::time::sleep(HEARTBEAT_INTERVAL) => {}
                _ = fleet.consensus.leader_other_than(leader) => {}
            }
        }
    };
    cancel.run_until_cancelled(work).await;
}

impl Fleet {
    /// Sends one heartbeat.
    async fn beat(&self, to: NodeId) -> Option<v1::FleetHeartbeatReply> {
        let heartbeat = v1::FleetHeartbeat {
            node_id: self.own.id().0,
            epoch: self.own.epoch.0,
            boot_id: self.own.boot_id.0.to_vec().into(),
            clock_us: self.now_us(),
        };
        let answer = match self.client(to) {
            Ok(mut client) => within(CALL_TIMEOUT, client.heartbeat(heartbeat)).await,
            Err(status) => Err(status),
        };
        answer.inspect_err(|status| tracing::debug!(%to, reason = status.message(), "a heartbeat was not taken")).ok()
    }

    /// Sends one heartbeat; whether `leader` took it as the leader.
    async fn beat_leader(&self, leader: NodeId) -> bool {
        let Some(reply) = self.beat(leader).await.filter(|reply| reply.is_leader) else { return false };
        self.heard_of_ourselves(leader, reply.caller_seen.as_ref(), false);
        true
    }

    async fn beat_voters(&self) {
        let voters = self.consensus.group().voters;
        let others = voters.iter().filter(|voter| **voter != self.own.id());
        let beats = others.map(async |voter| Some((*voter, self.beat(*voter).await?)));
        let replies: Vec<_> = futures::future::join_all(beats).await.into_iter().flatten().collect();
        for (voter, reply) in replies.iter().filter(|(_, reply)| reply.is_leader) {
            self.heard_of_ourselves(*voter, reply.caller_seen.as_ref(), true);
        }
        // If two copies of a leader both believe that they lead, nobody else does; but most voters know the newer one.
        let superseding = replies.iter().filter_map(|(_, reply)| self.superseding(reply.caller_seen.as_ref()));
        let seen: Vec<Epoch> = superseding.collect();
        if seen.len() > voters.len() / 2
            && let Some(theirs) = seen.into_iter().max()
        {
            self.fail(Fatal::OwnEpochSuperseded { ours: self.own.epoch, theirs });
        }
    }

    /// The nodes that the leader watches: admitted ones, with what the table has of them.
    fn watched(&self, view: &FleetView) -> Vec<Member> {
        let member = |node: &NodeId| {
            let applied = view.owners.get(node).copied();
            let mut member = applied.unwrap_or(Member { node: *node, epoch: Epoch(0), fenced: false, dropped: false });
            let seen = self.epoch_of(*node);
            if seen > member.epoch && !member.fenced {
                member.epoch = seen;
            }
            member
        };
        view.fleet.nodes.keys().map(member).collect()
    }
}

/// While this node leads: proposes fences, unfences and drops.
pub(crate) async fn drive_fences(fleet: Arc<Fleet>, cancel: CancellationToken) {
    let mut changes = fleet.consensus.machine().subscribe();
    let mut ticks = tokio::time::interval(FENCE_CHECK_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut leading = false;
    let mut watched = BTreeSet::new();
    while cancel.run_until_cancelled(ticks.tick()).await.is_some() {
        let now = tokio::time::Instant::now().into_std();
        let leads = fleet.consensus.is_leader();
        let view = Arc::clone(&changes.borrow_and_update());
        {
            let mut fences = fleet.fences.lock();
            match (leading, leads) {
                (false, true) => fences.became_leader(fleet.watched(&view), now),
                (true, false) => fences.lost_leadership(),
                (true, true) => fleet.watched(&view).into_iter().for_each(|member| fences.applied(member, now)),
                (false, false) => {}
            }
            let present: BTreeSet<NodeId> = view.fleet.nodes.keys().copied().collect();
            watched.difference(&present).for_each(|gone| fences.forget(*gone));
            watched = present;
            fences.heartbeat(fleet.own.id(), fleet.own.epoch, now);
        }
        leading = leads;
        if !leads {
            continue;
        }
        let commands = fleet.fences.lock().handle_timeout(now);
        for command in commands {
            tracing::info!(?command, "proposing by silence or sign of life");
            if let Err(error) = fleet.consensus.propose(Command::presence(&command)).await {
                tracing::debug!(%error, "a fence was not committed; it is proposed again");
            }
        }
    }
}
