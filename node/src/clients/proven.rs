//! Whether a connection is proven to live: probe on overlap. Pure but for atomics; `now` comes in.
//!
//! When another node claims a key that is held here, the connection is challenged: a byte in the last 3 s is proof enough, otherwise
//! it is suspect until any byte arrives. A suspect connection is used only if no other claim remains. The proof belongs to the
//! connection, so it cannot race with a reconnect.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A byte this recent is proof.
pub const PROOF_AGE_MAX: Duration = Duration::from_secs(3);

/// What is known of one connection's life.
#[derive(Debug)]
pub struct Proof {
    since: Instant,
    /// Milliseconds from `since` to the last byte.
    heard_ms: AtomicU64,
    suspect: AtomicBool,
}

impl Proof {
    /// A connection that has just logged in.
    #[must_use]
    pub const fn new(now: Instant) -> Self {
        Self { since: now, heard_ms: AtomicU64::new(0), suspect: AtomicBool::new(false) }
    }

    /// A byte arrived.
    pub fn heard(&self, now: Instant) {
        self.heard_ms.store(self.age_ms(now), Ordering::Relaxed);
        // A plain load first: the line stays shared while nothing changes.
        if self.suspect.load(Ordering::Relaxed) {
            self.suspect.store(false, Ordering::Relaxed);
        }
    }

    /// Another claim of the key was seen. True if the connection is suspect now and must be probed.
    pub fn challenge(&self, now: Instant) -> bool {
        let silent_ms = self.age_ms(now).saturating_sub(self.heard_ms.load(Ordering::Relaxed));
        let suspect = u128::from(silent_ms) > PROOF_AGE_MAX.as_millis();
        if suspect {
            self.suspect.store(true, Ordering::Relaxed);
        }
        suspect
    }

    /// Whether packets may be delivered here although another claim exists.
    #[must_use]
    pub fn is_proven(&self) -> bool {
        !self.suspect.load(Ordering::Relaxed)
    }

    /// Whether a byte arrived at `at` or later, to the millisecond.
    #[must_use]
    pub fn is_heard_since(&self, at: Instant) -> bool {
        self.heard_ms.load(Ordering::Relaxed) >= self.age_ms(at)
    }

    fn age_ms(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.since).as_millis()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_in_the_last_three_seconds_is_proof_and_any_byte_ends_suspicion() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let proof = Proof::new(start);
        assert!(!proof.challenge(at(3)), "login is a byte");
        assert!(proof.is_proven());
        assert!(proof.challenge(at(4)));
        assert!(!proof.is_proven());
        assert!(proof.challenge(at(5)), "each new claim probes again");
        proof.heard(at(6));
        assert!(proof.is_proven());
        assert!(!proof.challenge(at(9)) && proof.challenge(at(10)));
        assert!(proof.is_heard_since(at(6)) && !proof.is_heard_since(at(7)));
    }
}
