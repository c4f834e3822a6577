//! DERP: login and the life of a client connection on the packet pump.

mod accept;

pub use accept::UpgradedStream;
