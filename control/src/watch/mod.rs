//! Watch, the fast way of presence: every node streams its owner log to its peers over gRPC (`architecture.md` section 3).
//!
//! [`WatchService`] serves this node's log; one [`Follower`] task per peer feeds the [`PresenceView`](crate::presence::PresenceView).

mod backoff;
mod follower;
mod metrics;
mod publisher;
mod service;

#[cfg(test)]
mod tests;

pub(crate) use follower::OpsBucket;
pub use follower::{ChannelSource, Follower};
pub use metrics::{RefusedReason, WatchMetrics};
pub use service::WatchService;

use std::time::{Duration, SystemTime};

/// A node says something on every watch stream at least this often.
pub const WATCH_HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);
/// A stream that said nothing for so long is not live.
pub const WATCH_SILENCE_MAX: Duration = Duration::from_secs(3);
/// Packed operations in one message.
pub const WATCH_OPS_BYTES_MAX: usize = 1 << 20;
/// Largest message either side takes: the operations and their envelope.
pub const WATCH_MESSAGE_SIZE_MAX: usize = WATCH_OPS_BYTES_MAX + (64 << 10);

/// Wall time as ranks count it: microseconds since the Unix epoch.
#[must_use]
pub fn micros(time: SystemTime) -> u64 {
    let since_epoch = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_epoch.as_micros()).unwrap_or(u64::MAX)
}
