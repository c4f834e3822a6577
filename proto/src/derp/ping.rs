//! Bounds of a client's own pings.

use std::time::Duration;

/// Most pings of one connection that wait for their Pong at once.
pub const PINGS_OUTSTANDING_MAX: usize = 16;

/// How long a client waits for a Pong (`derp.md` section 15.2).
pub const PONG_TIMEOUT: Duration = Duration::from_secs(5);
