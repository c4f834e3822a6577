//! The clone alarm: two home claims of one key, both proven, for 30 s. It changes no routing.
//!
//! Each node runs it for the keys it holds itself: it knows by its own probes that its connection is proven, and takes another
//! node's home claim as proven while it is valid and its owner's watch stream is live.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use causeway_proto::presence::PresenceKey;

/// How long the overlap must last.
pub const CLONE_ALARM_AFTER: Duration = Duration::from_secs(30);
/// Keys under suspicion at a time: as many as a node may claim.
pub const SUSPECTS_MAX: usize = super::CLAIMS_PER_OWNER_MAX;

/// A change of the alarm of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloneAlarmChange {
    /// Tell the client, count it, log it.
    Raised(PresenceKey),
    /// The overlap ended after an alarm.
    Cleared(PresenceKey),
}

/// Overlapping home claims and how long they last.
#[derive(Debug, Default)]
pub struct CloneAlarm {
    /// Since when, and whether the alarm was raised.
    suspects: BTreeMap<PresenceKey, (Instant, bool)>,
}

impl CloneAlarm {
    /// States whether `key` is, right now, home both on a proven connection here and by a proven claim elsewhere.
    pub fn observe(&mut self, key: PresenceKey, overlaps: bool, now: Instant) -> Option<CloneAlarmChange> {
        if !overlaps {
            let (_, raised) = self.suspects.remove(&key)?;
            return raised.then_some(CloneAlarmChange::Cleared(key));
        }
        if self.suspects.len() < SUSPECTS_MAX {
            self.suspects.entry(key).or_insert((now, false));
        }
        None
    }

    /// Raises what has lasted long enough.
    pub fn handle_timeout(&mut self, now: Instant) -> Vec<CloneAlarmChange> {
        let mut changes = Vec::new();
        for (key, (since, raised)) in &mut self.suspects {
            if !*raised && now >= *since + CLONE_ALARM_AFTER {
                *raised = true;
                changes.push(CloneAlarmChange::Raised(*key));
            }
        }
        changes
    }

    /// When to call [`Self::handle_timeout`] next, and the timer's name.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let waiting = self.suspects.values().filter(|(_, raised)| !raised);
        waiting.map(|(since, _)| (*since + CLONE_ALARM_AFTER, "clone alarm")).min()
    }

    /// Keys with a raised alarm.
    #[must_use]
    pub fn raised(&self) -> usize {
        self.suspects.values().filter(|(_, raised)| *raised).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const K: PresenceKey = PresenceKey([7; 32]);

    #[test]
    fn raised_once_after_30_s_without_a_break_and_cleared_once() {
        let start = Instant::now();
        let mut alarm = CloneAlarm::default();
        assert_eq!(alarm.observe(K, true, start), None);
        assert_eq!(alarm.observe(K, false, start + CLONE_ALARM_AFTER / 2), None, "no alarm, nothing to clear");
        let again = start + CLONE_ALARM_AFTER;
        assert_eq!(alarm.observe(K, true, again), None);
        assert!(alarm.handle_timeout(again + CLONE_ALARM_AFTER / 2).is_empty());
        let due = again + CLONE_ALARM_AFTER;
        assert_eq!(alarm.poll_timeout(), Some((due, "clone alarm")));
        assert_eq!(alarm.observe(K, true, due), None, "seeing it again does not start it over");
        assert_eq!(alarm.handle_timeout(due), [CloneAlarmChange::Raised(K)]);
        assert!(alarm.handle_timeout(due).is_empty());
        assert_eq!(alarm.raised(), 1);
        assert_eq!(alarm.observe(K, false, due), Some(CloneAlarmChange::Cleared(K)));
        assert_eq!((alarm.raised(), alarm.poll_timeout()), (0, None));
    }
}
