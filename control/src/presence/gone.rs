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

#[cfg(test)]
mod tests {
    use super::*;

    const K: PresenceKey = PresenceKey([7; 32]);

    #[test]
    fn the_notice_waits_1_5_to_2_5_s_and_is_cancelled_by_a_claim() {
        let start = Instant::now();
        for (jitter, wait_ms) in [(0.0, 1500), (0.5, 2000), (1.0, 2500), (9.0, 2500)] {
            let mut timers = GoneTimers::default();
            assert!(!timers.handle_gone(K, false, jitter, start));
            let due = start + Duration::from_millis(wait_ms);
            assert_eq!(timers.poll_timeout(), Some((due, "gone")));
            assert!(!timers.handle_gone(K, false, 1.0, start + Duration::from_secs(1)), "the first wait counts");
            assert!(timers.handle_timeout(|_| false, due - Duration::from_millis(1)).is_empty());
            assert_eq!(timers.handle_timeout(|_| false, due), [K]);
            assert_eq!(timers.poll_timeout(), None);
        }
        let mut timers = GoneTimers::default();
        assert!(!timers.handle_gone(K, false, 0.0, start));
        timers.handle_claimed(&K);
        assert!(timers.handle_timeout(|_| false, start + LINGER * 2).is_empty());
    }

    #[test]
    fn a_clean_goodbye_is_told_at_once_even_while_waiting() {
        let start = Instant::now();
        let mut timers = GoneTimers::default();
        assert!(!timers.handle_gone(K, false, 0.0, start));
        assert!(timers.handle_gone(K, true, 0.0, start));
        assert_eq!(timers.poll_timeout(), None);
    }

    #[test]
    fn a_key_with_a_valid_claim_is_never_told_whatever_events_said() {
        let start = Instant::now();
        let mut timers = GoneTimers::default();
        assert!(!timers.handle_gone(K, false, 0.0, start));
        assert!(timers.handle_timeout(|key| *key == K, start + LINGER * 2).is_empty());
    }

    #[test]
    fn waiting_keys_are_bounded() {
        let start = Instant::now();
        let mut timers = GoneTimers::default();
        for n in 0..=PENDING_MAX {
            let mut key = [0; 32];
            key[..8].copy_from_slice(&n.to_be_bytes());
            assert_eq!(timers.handle_gone(PresenceKey(key), false, 0.0, start), n == PENDING_MAX);
        }
    }
}
