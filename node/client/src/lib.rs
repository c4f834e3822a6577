//! A DERP client: connects to a relay node, sends and receives packets by key, finds the nearest region, survives cuts.
//!
//! | module | holds |
//! |---|---|
//! | [`builder`](ClientBuilder) | who the client is, where it connects, whom it trusts |
//! | [`connection`](Connection) | one connection: login, sender, receiver |
//! | [`dial`](Endpoint), [`tls`](Trust) | from a name to a byte stream, and whom to believe there |
//! | [`derpmap`](load_map) | DERP maps from files and nodes |
//! | `region`, [`netcheck`](measure_regions) | which node of a region, which region |
//! | [`reconnect`](Client) | a client that stays connected |
//! | [`error`] | errors, by what to do next |

mod builder;
mod connection;
mod derpmap;
mod dial;
pub mod error;
mod http;
mod netcheck;
mod outbox;
mod rate;
mod reconnect;
mod region;
mod tls;

pub use builder::{ClientBuilder, Server};
pub use connection::{CONNECT_TIMEOUT, Connection, ConnectionInfo, Event, READ_TIMEOUT, Receiver, Sender, WRITE_STALL_MAX};
pub use derpmap::{MAP_TIMEOUT, load_map};
pub use dial::{Endpoint, NODE_DIAL_TIMEOUT};
pub use error::{ConfigError, ConnectError, ConnectionError, MapError, Phase, PingError, SendError};
pub use netcheck::measure_regions;
pub use reconnect::{Client, ClientEvent, ClientHandle};
pub use tls::Trust;
