//! A DERP client: connects to a relay node, sends and receives packets by key, finds the nearest region, survives cuts.
//!
//! | module | holds |
//! |---|---|
//! | [`builder`](ClientBuilder) | who the client is, where it connects, whom it trusts |
//! | [`connection`](Connection), [`sender`](Sender) | one connection: receiver, sender |
//! | `login` | from an endpoint to a connection |
//! | [`dial`](Endpoint), [`proxy`](Proxy), [`tls`](Trust) | from a name to a byte stream, and whom to believe there |
//! | [`derpmap`](load_map) | DERP maps from files and nodes |
//! | `region`, [`netcheck`](measure_regions) | which node of a region, which region |
//! | [`reconnect`](Client) | a client that stays connected |
//! | [`watch`](Watch) | who is connected to a node |
//! | [`error`] | errors, by what to do next |

mod builder;
mod connection;
mod derpmap;
mod dial;
mod endpoint;
pub mod error;
mod http;
mod login;
mod netcheck;
mod outbox;
mod proxy;
mod rate;
mod reconnect;
mod region;
mod sender;
mod shared;
mod tls;
mod transport;
mod watch;

pub use builder::{ClientBuilder, Server};
pub use connection::{Connection, Event, READ_TIMEOUT, Receiver};
pub use derpmap::{MAP_TIMEOUT, load_map, load_map_json};
pub use dial::NODE_DIAL_TIMEOUT;
pub use endpoint::Endpoint;
pub use error::{ConfigError, ConnectError, ConnectionError, MapError, Phase, PingError, SendError};
pub use login::{CONNECT_TIMEOUT, LoggedIn};
pub use netcheck::measure_regions;
pub use proxy::Proxy;
pub use reconnect::{Client, ClientEvent, ClientHandle};
pub use sender::{Sender, WRITE_STALL_MAX};
pub use shared::ConnectionInfo;
pub use tls::Trust;
pub use watch::{WATCH_RETRY, WATCHED_PEERS_MAX, Watch, WatchEvent, WatchFailure};
