//! The front doors.

pub mod debug;
pub mod derp;
pub mod door;
pub mod http;
pub mod listener;
pub mod mesh;
pub mod metrics;
pub mod operator;
mod proxy;
pub mod round_trips;
pub mod server_key;
pub mod stun;
pub mod tls;
pub mod websocket;
