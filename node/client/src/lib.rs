//! A DERP client: connects to a relay node, sends and receives packets by key, finds the nearest region, survives cuts.
//!
//! | module | holds |
//! |---|---|
//! | [`builder`](ClientBuilder) | who the client is, where it connects, whom it trusts |
//! | [`connection`](Connection) | one connection: login, sender, receiver |
//! | [`dial`](Endpoint), [`tls`](Trust) | from a name to a byte stream, and whom to believe there |
//! | [`derpmap`](load_map) | DERP maps from files and nodes |
//! | `region` | which node of a region |
//! | [`error`] | errors, by what to do next |

mod builder;
mod connection;
mod derpmap;
mod dial;
pub mod error;
mod http;
mod outbox;
mod rate;
mod region;
mod tls;

pub use builder::{ClientBuilder, Server};
pub use connection::{CONNECT_TIMEOUT, Connection, ConnectionInfo, Event, READ_TIMEOUT, Receiver, Sender, WRITE_STALL_MAX};
pub use derpmap::{MAP_TIMEOUT, load_map};
pub use dial::{Endpoint, NODE_DIAL_TIMEOUT};
pub use error::{ConfigError, ConnectError, ConnectionError, MapError, Phase, PingError, SendError};
pub use tls::Trust;
