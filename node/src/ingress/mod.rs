//! The front doors.

pub mod derp;
pub mod http;
pub mod listener;
pub mod metrics;
pub mod stun;
pub mod tls;
