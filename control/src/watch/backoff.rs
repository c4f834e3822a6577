//! How long a follower waits before it dials again.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(50);
const LAST: Duration = Duration::from_secs(1);

/// Doubles from 50 ms to 1 s; each wait is between half of that and all of it.
#[derive(Debug)]
pub(super) struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { next: FIRST }
    }
}

impl Backoff {
    /// The next wait; `jitter` in 0..1.
    pub(super) fn wait(&mut self, jitter: f64) -> Duration {
        let wait = self.next.mul_f64(0.5 + 0.5 * jitter.clamp(0.0, 1.0));
        self.next = (self.next * 2).min(LAST);
        wait
    }

    /// All is well: start over.
    pub(super) fn reset(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_from_50_ms_to_1_s_and_start_over() {
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..7).map(|_| backoff.wait(1.0).as_millis()).collect();
        assert_eq!(waits, [50, 100, 200, 400, 800, 1000, 1000]);
        assert_eq!(backoff.wait(0.0).as_millis(), 500);
        backoff.reset();
        assert_eq!(backoff.wait(0.0).as_millis(), 25);
    }
}
