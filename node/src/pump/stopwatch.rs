//! How long packets wait in a lane, measured on one packet at a time, so that a batch costs two looks at the clock.

use std::time::{Duration, Instant};

/// Follows one packet of a lane from push to pop.
#[derive(Debug, Default)]
pub(super) struct Stopwatch {
    /// The packet's push, and how many pops away it is.
    followed: Option<(Instant, usize)>,
}

impl Stopwatch {
    /// A packet was put into the lane, which now holds `len`. It is followed if none is.
    pub(super) fn pushed(&mut self, len: usize) {
        if self.followed.is_none() {
            self.followed = Some((now(), len));
        }
    }

    /// The lane's first packet was taken out. How long it waited, if it was the one followed.
    pub(super) fn popped(&mut self) -> Option<Duration> {
        let (since, away) = self.followed.as_mut()?;
        *away -= 1;
        if *away > 0 {
            return None;
        }
        let waited = now().saturating_duration_since(*since);
        self.followed = None;
        Some(waited)
    }
}

/// Tokio's clock, so that paused time counts.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_packet_at_a_time_is_followed_to_its_pop() {
        let mut stopwatch = Stopwatch::default();
        assert_eq!(stopwatch.popped(), None, "a packet from before");
        stopwatch.pushed(2);
        tokio::time::advance(Duration::from_millis(3)).await;
        stopwatch.pushed(3);
        assert_eq!(stopwatch.popped(), None, "the one ahead");
        tokio::time::advance(Duration::from_millis(4)).await;
        assert_eq!(stopwatch.popped(), Some(Duration::from_millis(7)));
        assert_eq!(stopwatch.popped(), None, "was not followed");
        stopwatch.pushed(1);
        assert_eq!(stopwatch.popped(), Some(Duration::ZERO));
    }
}
