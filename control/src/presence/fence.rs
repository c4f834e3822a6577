//! Who is silent: run by the Raft leader, which hears a heartbeat of every node. Pure; proposals may be lost and are repeated.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use causeway_proto::id::{Epoch, NodeId};

use super::command::Command;

/// Nodes send the leader a heartbeat this often.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(2);
/// A node silent for so long is fenced.
pub const SILENCE_MAX: Duration = Duration::from_secs(6);
/// Claims of a fenced node are dropped after this.
pub const DROP_AFTER: Duration = Duration::from_secs(600);
/// A proposal whose effect did not show by then is made again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// A node as the table and the membership have it.
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

#[derive(Debug)]
struct Watched {
    member: Member,
    last_heard: Instant,
    /// When the fence took effect, as far as this leader knows.
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
                if watched.member == member {
                    return;
                }
                if !member.fenced {
                    watched.fenced_at = None;
                } else if !watched.member.fenced {
                    watched.fenced_at = Some(now);
                }
                let epoch = member.epoch.max(watched.member.epoch);
                watched.member = Member { epoch, ..member };
                watched.proposed_at = None;
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
            if watched.due().is_none_or(|due| due > now) {
                continue;
            }
            watched.proposed_at = Some(now);
            let Member { node, epoch, fenced, .. } = watched.member;
            commands.push(match (fenced, watched.is_silent(now)) {
                (false, _) => Command::Fence { node, epoch },
                (true, false) => Command::Unfence { node, epoch },
                (true, true) => Command::DropFenced { node, epoch },
            });
        }
        commands
    }

    /// When to call [`Self::handle_timeout`] next, and the timer's name.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let next = self.watched.values().filter_map(Watched::due).min();
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
    fn is_silent(&self, now: Instant) -> bool {
        now >= self.last_heard + SILENCE_MAX
    }

    /// When the next command about this node is due.
    fn due(&self) -> Option<Instant> {
        let due = if !self.member.fenced {
            self.last_heard + SILENCE_MAX
        } else {
            let fenced_at = self.fenced_at.unwrap_or(self.last_heard);
            if self.last_heard > fenced_at {
                self.last_heard
            } else if self.member.dropped {
                return None;
            } else {
                fenced_at + DROP_AFTER
            }
        };
        Some(self.proposed_at.map_or(due, |proposed_at| due.max(proposed_at + RETRY_AFTER)))
    }
}
