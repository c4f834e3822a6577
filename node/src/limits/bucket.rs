//! Token bucket: pure, `now` comes in as an argument.

use std::time::{Duration, Instant};

/// How fast a bucket fills, and how much it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Tokens per second.
    pub per_second: u64,
    /// Tokens a full bucket holds.
    pub burst: u64,
}

/// A bucket of tokens that starts full.
#[derive(Clone, Copy, Debug)]
pub struct TokenBucket {
    rate: Rate,
    /// Tokens in billionths, so that slow rates do not lose what accrues between two looks. Negative: what was spent in advance.
    nano_tokens: i128,
    filled_at: Instant,
}

const NANOS: i128 = 1_000_000_000;

impl TokenBucket {
    /// A full bucket.
    #[must_use]
    pub fn new(rate: Rate, now: Instant) -> Self {
        Self { rate, nano_tokens: i128::from(rate.burst) * NANOS, filled_at: now }
    }

    /// Takes `tokens` if that many are there; otherwise takes none and returns false.
    pub fn take(&mut self, tokens: u64, now: Instant) -> bool {
        self.fill(now);
        let wanted = i128::from(tokens) * NANOS;
        if self.nano_tokens < wanted {
            return false;
        }
        self.nano_tokens -= wanted;
        true
    }

    /// Takes `tokens` whether they are there or not, and says how long nothing more may be taken.
    pub fn spend(&mut self, tokens: u64, now: Instant) -> Duration {
        self.fill(now);
        self.nano_tokens = self.nano_tokens.saturating_sub(i128::from(tokens) * NANOS);
        let owed = u128::try_from(-self.nano_tokens).unwrap_or(0);
        if owed == 0 {
            return Duration::ZERO;
        }
        let nanos = owed.div_ceil(u128::from(self.rate.per_second.max(1)));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// Goes on at another rate; what is in the bucket stays, up to the new burst.
    pub fn set_rate(&mut self, rate: Rate, now: Instant) {
        if rate != self.rate {
            self.fill(now);
            self.rate = rate;
            self.nano_tokens = self.nano_tokens.min(self.capacity());
        }
    }

    /// Whether the bucket holds all it can: then forgetting it changes nothing.
    pub fn is_full(&mut self, now: Instant) -> bool {
        self.fill(now);
        self.nano_tokens == self.capacity()
    }

    fn capacity(&self) -> i128 {
        i128::from(self.rate.burst) * NANOS
    }

    fn fill(&mut self, now: Instant) {
        let elapsed: Duration = now.saturating_duration_since(self.filled_at);
        self.filled_at = self.filled_at.max(now);
        let gained = elapsed.as_nanos().saturating_mul(u128::from(self.rate.per_second));
        let gained = i128::try_from(gained).unwrap_or(i128::MAX);
        self.nano_tokens = self.nano_tokens.saturating_add(gained).min(self.capacity());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_burst_passes_then_the_rate_holds() {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(Rate { per_second: 1, burst: 3 }, start);
        let passed = (0..10).filter(|_| bucket.take(1, start)).count();
        assert_eq!(passed, 3);
        assert!(!bucket.take(1, start + Duration::from_millis(999)));
        assert!(bucket.take(1, start + Duration::from_millis(1_000)));
        assert!(bucket.is_full(start + Duration::from_secs(10)));
    }

    #[test]
    fn a_clock_that_goes_back_gives_nothing() {
        let start = Instant::now() + Duration::from_secs(10);
        let mut bucket = TokenBucket::new(Rate { per_second: 1, burst: 1 }, start);
        assert!(bucket.take(1, start));
        assert!(!bucket.take(1, start - Duration::from_secs(5)));
        assert!(!bucket.take(1, start));
    }

    #[test]
    fn spending_in_advance_says_how_long_to_wait() {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(Rate { per_second: 1_000, burst: 100 }, start);
        assert_eq!(bucket.spend(100, start), Duration::ZERO);
        assert_eq!(bucket.spend(50, start), Duration::from_millis(50));
        assert!(!bucket.take(1, start + Duration::from_millis(50)));
        assert!(bucket.take(1, start + Duration::from_millis(51)));
    }

    #[test]
    fn a_new_rate_holds_at_once_and_gives_nothing_away() {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(Rate { per_second: 10, burst: 100 }, start);
        bucket.set_rate(Rate { per_second: 1_000, burst: 20 }, start);
        assert!(bucket.take(20, start) && !bucket.take(1, start));
        assert!(bucket.take(1, start + Duration::from_millis(1)));
        bucket.set_rate(Rate { per_second: 1, burst: 1_000 }, start + Duration::from_millis(1));
        assert!(!bucket.take(1, start + Duration::from_millis(900)));
    }

    proptest! {
        #[test]
        fn never_more_than_burst_plus_rate_times_time(
            per_second in 0u64..1_000, burst in 0u64..1_000, steps in prop::collection::vec((0u64..500, 0u64..50), 1..100),
        ) {
            let start = Instant::now();
            let mut bucket = TokenBucket::new(Rate { per_second, burst }, start);
            let (mut now_ms, mut taken) = (0u64, 0u64);
            for (step_ms, tokens) in steps {
                now_ms += step_ms;
                if bucket.take(tokens, start + Duration::from_millis(now_ms)) {
                    taken += tokens;
                }
                prop_assert!(taken <= burst + per_second * now_ms / 1_000);
            }
        }
    }
}
