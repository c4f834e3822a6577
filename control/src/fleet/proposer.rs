//! Brings this node's owner log into Raft: batches of 10 ms or 64 KB, one under way at a time, resumed wherever the table stands.

use std::sync::Arc;
use std::time::Duration;

use causeway_proto::id::NodeId;
use causeway_proto::presence::unpack_ops;
use causeway_rpc::v1;
use rand::Rng;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::{Fleet, Incarnation, PROPOSE_TIMEOUT, within};
use crate::presence::Command as PresenceCommand;
use crate::raft::NotDone;
use crate::raft::state_machine::FleetView;
use crate::raft::types::{Command, Reply};

/// Operations are gathered for so long.
const BATCH_WAIT: Duration = Duration::from_millis(10);
/// Packed operations in one command; a reset may be longer.
pub(super) const BATCH_BYTES_MAX: usize = 64 << 10;
/// Shortest and longest wait when no leader takes the batch; operations keep gathering meanwhile.
const RETRY_MS: std::ops::Range<u64> = 100..500;
/// Wait after a refusal that only an operator can end.
const REFUSED_WAIT: Duration = Duration::from_secs(5);

/// Where the proposer goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// With the operation of this sequence.
    From(u64),
    /// With all claims, at this sequence or later.
    Reset(u64),
}

/// Proposes the owner log until `cancel` fires or a higher epoch of this node shows up.
pub(crate) async fn propose_own_log(fleet: Arc<Fleet>, cancel: CancellationToken) {
    cancel.run_until_cancelled(run(&fleet)).await;
}

async fn run(fleet: &Fleet) {
    let mut news = fleet.owner_log.subscribe();
    let mut changes = fleet.consensus.machine().subscribe();
    let mut next = Next::From(1);
    // The first command may be empty: it announces the epoch, which ends the claims of the process before.
    let mut announced = false;
    loop {
        let last_seq = *news.borrow_and_update();
        if announced && next == Next::From(last_seq + 1) {
            if was_dropped(fleet, &changes.borrow_and_update()) {
                next = Next::Reset(0);
                continue;
            }
            // Both may be dropped: what they tell is looked up afresh.
            tokio::select! {
                news = news.changed() => {
                    if news.is_err() {
                        return;
                    }
                    tokio::time::sleep(BATCH_WAIT).await;
                }
                _ = changes.changed() => {}
            }
            continue;
        }
        let (command, after) = next_command(fleet, next);
        let (from, answer) = offer(fleet, command).await;
        match answer {
            Ok(Reply::Applied { seq }) => {
                announced = true;
                next = Next::From((seq + 1).max(after));
            }
            Ok(Reply::Gap { expected_seq }) => next = Next::From(expected_seq),
            Ok(Reply::NeedsReset { at_least_seq }) => next = Next::Reset(at_least_seq),
            Ok(Reply::Superseded { epoch, boot_id }) => {
                fleet.heard_of_ourselves(from, Some(&Incarnation { epoch, boot_id }.to_message()), false);
                tokio::time::sleep(REFUSED_WAIT).await;
            }
            Ok(Reply::Refused(reason)) => {
                tracing::warn!(reason, "the fleet refuses this node's claims");
                tokio::time::sleep(REFUSED_WAIT).await;
            }
            Ok(Reply::Nothing) | Err(_) => {
                let wait = rand::rng().random_range(RETRY_MS);
                tokio::time::sleep(Duration::from_millis(wait)).await;
            }
        }
    }
}

/// Whether the table dropped this node's claims after a long silence and the fence is lifted: they must be stated anew.
fn was_dropped(fleet: &Fleet, view: &FleetView) -> bool {
    view.owners.get(&fleet.own.id()).is_some_and(|own| own.epoch == fleet.own.epoch && own.dropped && !own.fenced)
}

/// The next command, and the sequence after what it covers.
fn next_command(fleet: &Fleet, next: Next) -> (PresenceCommand, u64) {
    let log = fleet.owner_log.identity();
    if let Next::From(seq) = next
        && let Ok(batch) = fleet.owner_log.ops_from(seq, BATCH_BYTES_MAX)
    {
        let after = batch.next_seq();
        let (node, epoch, boot_id) = (log.node, log.epoch, log.boot_id);
        return (PresenceCommand::Apply { node, epoch, boot_id, first_seq: batch.first_seq, ops: batch.ops }, after);
    }
    let snapshot = fleet.owner_log.snapshot();
    let ops = unpack_ops(&snapshot.packed).expect("packed by the owner log");
    let (node, epoch, boot_id) = (log.node, log.epoch, log.boot_id);
    (PresenceCommand::Reset { node, epoch, boot_id, seq: snapshot.seq, ops }, snapshot.seq + 1)
}

/// Offers a command to the leader, here or elsewhere; says who answered.
async fn offer(fleet: &Fleet, command: PresenceCommand) -> (NodeId, Result<Reply, NotDone>) {
    let own = fleet.own.id();
    let admitted = fleet.consensus.machine().read(|state| state.fleet.nodes.contains_key(&own));
    if !admitted {
        return (own, Err(NotDone::Forward(None)));
    }
    let proposal = async {
        match fleet.consensus.propose(Command::presence(&command)).await {
            Err(NotDone::Forward(Some(leader))) if leader != own => (leader, offer_to(fleet, leader, &command).await),
            done => (own, done),
        }
    };
    proposal.instrument((fleet.tracing.proposal)()).await
}

async fn offer_to(fleet: &Fleet, leader: NodeId, command: &PresenceCommand) -> Result<Reply, NotDone> {
    use v1::propose_response::Outcome;
    let request = v1::ProposeRequest { command: command.encode() };
    let answer = match fleet.client(leader) {
        Ok(mut client) => within(PROPOSE_TIMEOUT, client.propose(request)).await,
        Err(status) => Err(status),
    };
    let response = answer.map_err(|status| {
        tracing::debug!(%leader, reason = status.message(), "the leader did not take a proposal");
        NotDone::TimedOut
    })?;
    Ok(match response.outcome {
        Some(Outcome::Applied(applied)) => Reply::Applied { seq: applied.applied_seq },
        Some(Outcome::ExpectedSeq(expected_seq)) => Reply::Gap { expected_seq },
        Some(Outcome::ResetSeq(at_least_seq)) => Reply::NeedsReset { at_least_seq },
        Some(Outcome::Superseded(seen)) => {
            let process = Incarnation::from_message(seen.epoch, &seen.boot_id).map_err(|_| NotDone::TimedOut)?;
            Reply::Superseded { epoch: process.epoch, boot_id: process.boot_id }
        }
        Some(Outcome::Refused(reason)) => Reply::Refused(reason),
        Some(Outcome::Leader(leader)) => return Err(NotDone::Forward((leader != 0).then_some(NodeId(leader)))),
        None => return Err(NotDone::TimedOut),
    })
}
