//! Pings that wait for their Pong, for either side. Pure: the caller sends the frames and passes the time.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::derp::frame::PingData;

/// Most pings of one connection that wait at once; the oldest is given up for a new one.
pub const PINGS_OUTSTANDING_MAX: usize = 16;

/// How long a client waits for a Pong (`derp.md` section 15.2).
pub const PONG_TIMEOUT: Duration = Duration::from_secs(5);

/// Pings sent and not answered, oldest first.
#[derive(Debug, Default)]
pub struct OutstandingPings {
    sent: VecDeque<(PingData, Instant)>,
}

impl OutstandingPings {
    /// Notes a Ping as sent.
    pub fn sent(&mut self, data: PingData, now: Instant) {
        if self.sent.len() == PINGS_OUTSTANDING_MAX {
            self.sent.pop_front();
        }
        self.sent.push_back((data, now));
    }

    /// Takes a Pong: the round trip if it answers a Ping of ours.
    pub fn answered(&mut self, data: PingData, now: Instant) -> Option<Duration> {
        let at = self.sent.iter().position(|(sent, _)| *sent == data)?;
        let (_, sent_at) = self.sent.remove(at)?;
        Some(now.saturating_duration_since(sent_at))
    }

    /// Removes and returns the pings that have waited `timeout` or longer.
    pub fn expire(&mut self, timeout: Duration, now: Instant) -> Vec<PingData> {
        let waiting =
            self.sent.iter().position(|(_, at)| now.saturating_duration_since(*at) < timeout).unwrap_or(self.sent.len());
        self.sent.drain(..waiting).map(|(data, _)| data).collect()
    }

    /// When the oldest ping will have waited `timeout`.
    #[must_use]
    pub fn next_timeout(&self, timeout: Duration) -> Option<Instant> {
        self.sent.front().map(|(_, at)| *at + timeout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pong_answers_its_own_ping_once_and_late_ones_expire() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut pings = OutstandingPings::default();
        pings.sent([1; 8], at(0));
        pings.sent([2; 8], at(1000));
        assert_eq!(pings.answered([9; 8], at(5)), None);
        assert_eq!(pings.answered([2; 8], at(1030)), Some(Duration::from_millis(30)));
        assert_eq!(pings.answered([2; 8], at(1031)), None);
        assert_eq!(pings.next_timeout(PONG_TIMEOUT), Some(at(5000)));
        assert_eq!(pings.expire(PONG_TIMEOUT, at(4999)), Vec::<PingData>::new());
        assert_eq!(pings.expire(PONG_TIMEOUT, at(5000)), [[1; 8]]);
        assert_eq!(pings.next_timeout(PONG_TIMEOUT), None);
    }

    #[test]
    fn only_the_newest_pings_are_kept() {
        let now = Instant::now();
        let mut pings = OutstandingPings::default();
        for n in 0..=PINGS_OUTSTANDING_MAX {
            pings.sent([u8::try_from(n).expect("small"); 8], now);
        }
        assert_eq!(pings.answered([0; 8], now), None);
        assert_eq!(pings.answered([1; 8], now), Some(Duration::ZERO));
    }
}
