//! The token bucket that a server may announce in ServerInfo (`derp.md` section 4.6). Pure: time comes in as an argument.

use std::time::Instant;

/// Limits what SendPacket frames of one connection may cost; what does not fit is dropped, not delayed.
#[derive(Debug)]
pub(crate) struct TokenBucket {
    bytes_per_second: f64,
    burst: f64,
    tokens: f64,
    refilled: Instant,
}

impl TokenBucket {
    /// A full bucket; `None` for a rate of 0, which means "no limit".
    pub(crate) fn new(bytes_per_second: u64, burst: u64, now: Instant) -> Option<Self> {
        if bytes_per_second == 0 {
            return None;
        }
        let burst = burst as f64;
        Some(Self { bytes_per_second: bytes_per_second as f64, burst, tokens: burst, refilled: now })
    }

    /// Takes `cost` bytes if they are there.
    pub(crate) fn take(&mut self, cost: usize, now: Instant) -> bool {
        let elapsed = now.saturating_duration_since(self.refilled).as_secs_f64();
        self.refilled = self.refilled.max(now);
        self.tokens = (self.tokens + elapsed * self.bytes_per_second).min(self.burst);
        let cost = cost as f64;
        if self.tokens < cost {
            return false;
        }
        self.tokens -= cost;
        true
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_bucket_gives_its_burst_then_its_rate_and_never_more_than_the_burst() {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(1000, 300, start).expect("rate is not 0");
        assert!(bucket.take(300, start) && !bucket.take(1, start));
        assert!(!bucket.take(101, start + Duration::from_millis(100)));
        assert!(bucket.take(100, start + Duration::from_millis(100)));
        assert!(!bucket.take(301, start + Duration::from_secs(60)), "more than the burst never fits");
        assert!(bucket.take(300, start + Duration::from_secs(60)));
        // A clock that steps back neither adds nor panics.
        assert!(!bucket.take(1, start));
    }

    #[test]
    fn rate_zero_means_no_limit() {
        assert!(TokenBucket::new(0, 5, Instant::now()).is_none());
    }
}
