//! The clients connected here: who holds which key, which of its connections is active and proven, who must hear that a peer is gone.

mod behind_derpers;
mod clones;
pub mod connection;
pub mod events;
pub mod limits;
pub mod metrics;
pub mod pace;
pub mod peer_gone;
pub mod proven;
pub mod registry;
pub mod set;
pub mod traffic;
mod watchers;

pub use connection::{ClientConnection, ClientFacts, CloseReason};
pub use limits::{CONNECTIONS_PER_KEY, ClientLimits};
pub use pace::Rates;
pub use registry::{RegisterError, Registration, Registry, RegistryParts};
pub use watchers::{ELSEWHERE_MAX, TooManyWatchers, WATCHERS_MAX};
