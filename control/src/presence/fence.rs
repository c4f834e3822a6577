//! Who is silent: run by the Raft leader, which hears a heartbeat of every node. Pure; proposals may be lost and are repeated.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use causeway_proto::id::{Epoch, NodeId};

use super::command::Command;
use super::table::TableOwner;

/// Nodes send the leader a heartbeat this often.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(2);
/// A node silent for so long is fenced.
pub const SILENCE_MAX: Duration = Duration::from_secs(6);
/// Claims of a fenced node are dropped after this.
pub const DROP_AFTER: Duration = Duration::from_secs(600);
/// A proposal whose effect did not show by then is made again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// A node as the table has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// The node.
    pub node: NodeId,
    /// The highest epoch known of it.
    pub epoch: Epoch,
    /// That epoch is fenced.
    pub fenced: bool,
    /// Its claims were dropped already.
    pub dropped: bool,
}

impl Member {
    /// From the table.
    #[must_use]
    pub fn of_table(node: NodeId, owner: &TableOwner) -> Self {
        Self { node, epoch: owner.epoch, fenced: owner.is_fenced(), dropped: owner.dropped }
    }
}

#[derive(Debug)]
struct Watched {
    member: Member,
    last_heard: Instant,
    /// When the fence took effect, as far as this leader knows; `None` without a fence.
    fenced_at: Option<Instant>,
    proposed_at: Option<Instant>,
}

/// Decides which nodes to fence, unfence and drop. Idle unless this node leads.
#[derive(Debug, Default)]
pub struct FenceMonitor {
    watched: BTreeMap<NodeId, Watched>,
    leading: bool,
}

impl FenceMonitor {
    /// This node became leader: everybody gets a full period before anything is concluded from silence.
    pub fn became_leader(&mut self, members: impl IntoIterator<Item = Member>, now: Instant) {
        self.leading = true;
        self.watched.clear();
        for member in members {
            self.watch(member, now);
        }
    }

    /// This node leads no more.
    pub fn lost_leadership(&mut self) {
        self.leading = false;
        self.watched.clear();
    }

    /// The table or the membership has this of a node now: it joined, or one of the proposed commands took effect.
    pub fn applied(&mut self, member: Member, now: Instant) {
        if !self.leading {
            return;
        }
        match self.watched.get_mut(&member.node) {
            None => self.watch(member, now),
            Some(watched) => {
                let (was, is) = (watched.member, member);
                if (was.fenced, was.dropped) != (is.fenced, is.dropped) {
                    watched.proposed_at = None;
                    watched.fenced_at = is.fenced.then(|| watched.fenced_at.unwrap_or(now));
                }
                // A heartbeat may have shown a newer epoch than the table has.
                watched.member = Member { epoch: was.epoch.max(is.epoch), ..is };
            }
        }
    }

    /// The node left the fleet.
    pub fn forget(&mut self, node: NodeId) {
        self.watched.remove(&node);
    }

    /// A heartbeat came (the leader counts as heard all the time: it sends itself one). Ones of older epochs prove nothing.
    pub fn heartbeat(&mut self, node: NodeId, epoch: Epoch, now: Instant) {
        if let Some(watched) = self.watched.get_mut(&node).filter(|watched| watched.member.epoch <= epoch) {
            watched.member.epoch = epoch;
            watched.last_heard = watched.last_heard.max(now);
        }
    }

    /// The commands to propose now.
    pub fn handle_timeout(&mut self, now: Instant) -> Vec<Command> {
        let mut commands = Vec::new();
        for watched in self.watched.values_mut() {
            watched.relapse(now);
            let Some((due, command)) = watched.next() else { continue };
            if due <= now {
                watched.proposed_at = Some(now);
                commands.push(command);
            }
        }
        commands
    }

    /// When to call [`Self::handle_timeout`] next, and the timer's name.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let next = self.watched.values().filter_map(|watched| Some(watched.next()?.0)).min();
        next.map(|due| (due, "fence"))
    }

    fn watch(&mut self, member: Member, now: Instant) {
        let fenced_at = member.fenced.then_some(now);
        // A member that is fenced already has to be heard first; one that is not gets the benefit of the doubt.
        let last_heard = if member.fenced { now.checked_sub(SILENCE_MAX).unwrap_or(now) } else { now };
        self.watched.insert(member.node, Watched { member, last_heard, fenced_at, proposed_at: None });
    }
}

impl Watched {
    /// A fenced node that was heard for a moment only counts as fenced since then.
    fn relapse(&mut self, now: Instant) {
        if self.fenced_at.is_some_and(|fenced_at| self.last_heard > fenced_at) && now >= self.last_heard + SILENCE_MAX {
            self.fenced_at = Some(self.last_heard);
        }
    }

    /// The next command about this node, and when it is due.
    fn next(&self) -> Option<(Instant, Command)> {
        let Member { node, epoch, dropped, .. } = self.member;
        let (due, command) = match self.fenced_at {
            None => (self.last_heard + SILENCE_MAX, Command::Fence { node, epoch }),
            Some(fenced_at) if self.last_heard > fenced_at => (self.last_heard, Command::Unfence { node, epoch }),
            Some(_) if dropped => return None,
            Some(fenced_at) => (fenced_at + DROP_AFTER, Command::DropFenced { node, epoch }),
        };
        Some((self.proposed_at.map_or(due, |proposed_at| due.max(proposed_at + RETRY_AFTER)), command))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const X: NodeId = NodeId(7);
    const E1: Epoch = Epoch(1);

    fn member(fenced: bool, dropped: bool) -> Member {
        Member { node: X, epoch: E1, fenced, dropped }
    }

    fn leader(fenced: bool, now: Instant) -> FenceMonitor {
        let mut monitor = FenceMonitor::default();
        monitor.became_leader([member(fenced, false)], now);
        monitor
    }

    fn after(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn a_silent_node_is_fenced_after_6_s_heard_again_is_unfenced_and_dropped_after_10_min() {
        let start = Instant::now();
        let mut monitor = leader(false, start);
        monitor.heartbeat(X, E1, after(start, 2));
        assert!(monitor.handle_timeout(after(start, 7)).is_empty());
        assert_eq!(monitor.poll_timeout(), Some((after(start, 8), "fence")));
        assert_eq!(monitor.handle_timeout(after(start, 8)), [Command::Fence { node: X, epoch: E1 }]);
        monitor.applied(member(true, false), after(start, 8));
        monitor.heartbeat(X, E1, after(start, 20));
        assert_eq!(monitor.handle_timeout(after(start, 20)), [Command::Unfence { node: X, epoch: E1 }]);
        monitor.applied(member(false, false), after(start, 20));
        assert_eq!(monitor.handle_timeout(after(start, 26)), [Command::Fence { node: X, epoch: E1 }]);
        monitor.applied(member(true, false), after(start, 26));
        assert!(monitor.handle_timeout(after(start, 625)).is_empty());
        assert_eq!(monitor.handle_timeout(after(start, 626)), [Command::DropFenced { node: X, epoch: E1 }]);
        monitor.applied(member(true, true), after(start, 626));
        assert_eq!(monitor.poll_timeout(), None);
    }

    #[test]
    fn proposals_without_effect_are_repeated_but_not_in_a_loop() {
        let start = Instant::now();
        let mut monitor = leader(false, start);
        assert_eq!(monitor.handle_timeout(after(start, 6)).len(), 1);
        assert!(monitor.handle_timeout(after(start, 6)).is_empty());
        assert_eq!(monitor.handle_timeout(after(start, 7)).len(), 1);
    }

    #[test]
    fn being_told_the_same_again_does_not_speed_up_proposals() {
        let start = Instant::now();
        let mut monitor = leader(false, start);
        monitor.heartbeat(X, Epoch(2), start);
        assert_eq!(monitor.handle_timeout(after(start, 6)).len(), 1);
        monitor.applied(member(false, false), after(start, 6));
        assert!(monitor.handle_timeout(after(start, 6)).is_empty(), "the table has an older epoch, which is no news");
    }

    #[test]
    fn a_new_leader_grants_a_full_period_and_keeps_fences() {
        let start = Instant::now();
        assert!(leader(false, start).handle_timeout(start + SILENCE_MAX - Duration::from_millis(1)).is_empty());
        let mut monitor = leader(true, start);
        assert!(monitor.handle_timeout(after(start, 30)).is_empty(), "it was not heard: the fence stays");
        monitor.heartbeat(X, E1, after(start, 31));
        assert_eq!(monitor.handle_timeout(after(start, 31)), [Command::Unfence { node: X, epoch: E1 }]);
    }

    #[test]
    fn heard_for_a_moment_while_proposals_fail_does_not_drop_claims_early() {
        let start = Instant::now();
        let mut monitor = leader(true, start);
        monitor.heartbeat(X, E1, after(start, 599));
        assert_eq!(monitor.handle_timeout(after(start, 599)), [Command::Unfence { node: X, epoch: E1 }]);
        assert!(monitor.handle_timeout(after(start, 606)).is_empty());
        assert_eq!(monitor.poll_timeout(), Some((after(start, 599) + DROP_AFTER, "fence")));
    }

    #[test]
    fn heartbeats_of_an_old_process_prove_nothing_and_a_follower_fences_nobody() {
        let start = Instant::now();
        let mut monitor = leader(false, start);
        monitor.heartbeat(X, Epoch(2), after(start, 1));
        monitor.heartbeat(X, E1, after(start, 6));
        assert_eq!(monitor.handle_timeout(after(start, 7)), [Command::Fence { node: X, epoch: Epoch(2) }]);
        monitor.lost_leadership();
        monitor.heartbeat(X, E1, after(start, 8));
        monitor.applied(member(false, false), after(start, 8));
        assert_eq!(monitor.poll_timeout(), None);
    }
}
