//! How fast a client may send (`derp.md` section 9): a bucket per connection, which the client is told of, and one per key.
//!
//! Whoever sends faster is not read from for a while, so that it waits in TCP; nothing is dropped. Stock mesh peers are exempt.

use std::sync::Arc;
use std::time::{Duration, Instant};

use causeway_proto::derp::info::ServerInfo;
use causeway_proto::key::KEY_LEN;
use causeway_proto::limits::{DERP_HEADER_LEN, PACKET_LEN_MAX};
use parking_lot::Mutex;

use crate::limits::bucket::{Rate, TokenBucket};

/// Least burst of a connection: the payload of the greatest SendPacket frame. A smaller one is raised to it.
pub const CLIENT_BURST_MIN: u64 = (KEY_LEN + PACKET_LEN_MAX) as u64;

/// Least burst that is announced: clients count the header too, and drop what can never fit.
const ANNOUNCED_BURST_MIN: u64 = DERP_HEADER_LEN as u64 + CLIENT_BURST_MIN;

/// How fast clients may send, in bytes of frames without their headers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    /// One connection; `None` is no limit.
    pub client: Option<Rate>,
    /// All connections of one key; `None` is no limit.
    pub key: Option<Rate>,
}

impl Rates {
    /// What a client is told at login.
    #[must_use]
    pub fn server_info(&self) -> ServerInfo {
        let Some(rate) = self.client else { return ServerInfo::current() };
        let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        ServerInfo {
            token_bucket_bytes_per_second: number(rate.per_second),
            token_bucket_bytes_burst: number(rate.burst.max(ANNOUNCED_BURST_MIN)),
            ..ServerInfo::current()
        }
    }
}

/// The bucket that all connections of a key share; it is made when first needed.
pub(super) type KeyBucket = Arc<Mutex<Option<TokenBucket>>>;

/// What one connection has sent lately.
#[derive(Debug, Default)]
pub(super) struct Pace {
    client: Option<TokenBucket>,
    key: KeyBucket,
}

impl Pace {
    pub(super) const fn new(key: KeyBucket) -> Self {
        Self { client: None, key }
    }

    /// Notes bytes that came, and says until when nothing more may be read.
    pub(super) fn spend(&mut self, bytes: u64, rates: Rates, now: Instant) -> Option<Instant> {
        let mut wait = rates.client.map_or(Duration::ZERO, |rate| {
            let rate = Rate { burst: rate.burst.max(CLIENT_BURST_MIN), ..rate };
            spend(&mut self.client, bytes, rate, now)
        });
        if let Some(rate) = rates.key {
            wait = wait.max(spend(&mut self.key.lock(), bytes, rate, now));
        }
        (wait > Duration::ZERO).then(|| now + wait)
    }
}

fn spend(bucket: &mut Option<TokenBucket>, bytes: u64, rate: Rate, now: Instant) -> Duration {
    let bucket = bucket.get_or_insert_with(|| TokenBucket::new(rate, now));
    bucket.set_rate(rate, now);
    bucket.spend(bytes, now)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOW: Rate = Rate { per_second: 1_000, burst: 100_000 };

    #[test]
    fn a_small_burst_is_raised_to_the_greatest_packet() {
        let now = Instant::now();
        let rates = Rates { client: Some(Rate { per_second: 1_000, burst: 1 }), key: None };
        let mut pace = Pace::default();
        assert_eq!(pace.spend(CLIENT_BURST_MIN, rates, now), None);
        assert_eq!(pace.spend(1_000, rates, now), Some(now + Duration::from_secs(1)));
        assert_eq!(rates.server_info().token_bucket_bytes_burst, 65_573, "what a client takes off for the greatest packet");
    }

    #[test]
    fn a_keys_bucket_is_shared_by_its_connections_and_the_longer_wait_counts() {
        let now = Instant::now();
        let rates = Rates { client: Some(Rate { burst: 1 << 30, ..SLOW }), key: Some(SLOW) };
        let key = KeyBucket::default();
        let (mut one, mut other) = (Pace::new(Arc::clone(&key)), Pace::new(key));
        assert_eq!(one.spend(100_000, rates, now), None);
        assert_eq!(other.spend(2_000, rates, now), Some(now + Duration::from_secs(2)));
        assert_eq!(one.spend(0, rates, now), Some(now + Duration::from_secs(2)));
    }

    #[test]
    fn other_rates_hold_at_once_and_none_is_no_limit() {
        let now = Instant::now();
        let mut pace = Pace::default();
        assert_eq!(pace.spend(1 << 40, Rates::default(), now), None);
        let rates = Rates { client: Some(SLOW), key: None };
        assert_eq!(pace.spend(101_000, rates, now), Some(now + Duration::from_secs(1)));
        let faster = Rates { client: Some(Rate { per_second: 1_000_000, ..SLOW }), key: None };
        assert_eq!(pace.spend(0, faster, now), Some(now + Duration::from_millis(1)));
        assert_eq!(pace.spend(0, Rates::default(), now), None);
        assert_eq!(Rates::default().server_info(), ServerInfo::current());
    }
}
