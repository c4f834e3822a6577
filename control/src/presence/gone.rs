//! When to tell clients that a peer is gone: after a linger, unless a valid claim comes back; at once after a clean goodbye.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use causeway_proto::presence::PresenceKey;

/// Mean wait between the end of a key's last valid claim and the notice.
pub const LINGER: Duration = Duration::from_secs(2);
/// Keys waiting at a time; one more is told at once.
pub const PENDING_MAX: usize = 65_536;

/// The linger of every key that is gone. Pure: a timer machine.
#[derive(Debug, Default)]
pub struct GoneTimers {
    due: BTreeMap<PresenceKey, Instant>,
    order: BTreeSet<(Instant, PresenceKey)>,
}

impl GoneTimers {
    /// The last valid claim on `key` ended; `jitter` in 0..=1 spreads the linger over 2 s ± 25 %.
    ///
    /// `true`: tell clients now.
    #[must_use]
    pub fn handle_gone(&mut self, key: PresenceKey, clean: bool, jitter: f64, now: Instant) -> bool {
        if clean || (self.due.len() >= PENDING_MAX && !self.due.contains_key(&key)) {
            self.handle_claimed(&key);
            return true;
        }
        if let Entry::Vacant(entry) = self.due.entry(key) {
            let due = now + LINGER.mul_f64(0.75 + 0.5 * jitter.clamp(0.0, 1.0));
            entry.insert(due);
            self.order.insert((due, key));
        }
        false
    }

    /// A valid claim on `key` is known again.
    pub fn handle_claimed(&mut self, key: &PresenceKey) {
        if let Some(due) = self.due.remove(key) {
            self.order.remove(&(due, *key));
        }
    }

    /// The keys to tell clients about now; those with a valid claim are left out, whatever events said.
    pub fn handle_timeout(&mut self, has_valid_claim: impl Fn(&PresenceKey) -> bool, now: Instant) -> Vec<PresenceKey> {
        let mut gone = Vec::new();
        while let Some((due, key)) = self.order.first().copied().filter(|(due, _)| *due <= now) {
            self.order.remove(&(due, key));
            self.due.remove(&key);
            if !has_valid_claim(&key) {
                gone.push(key);
            }
        }
        gone
    }

    /// When to call [`Self::handle_timeout`] next, and the timer's name.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        self.order.first().map(|(due, _)| (*due, "gone"))
    }
}
