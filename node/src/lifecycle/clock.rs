//! The only wall clock: everybody else is handed a time, or this function.

use std::time::{SystemTime, UNIX_EPOCH};

/// The wall clock's time.
#[must_use]
pub fn wall_clock() -> SystemTime {
    SystemTime::now()
}

/// Microseconds since the Unix epoch; 0 before it.
#[must_use]
pub fn wall_clock_us() -> u64 {
    wall_clock().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}
