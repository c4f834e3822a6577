//! `causeway-link/1`: packets between nodes of a fleet. Layout in `docs/protocols/link.md`.

pub mod frame;

/// ALPN name of the protocol.
pub const ALPN: &[u8] = b"causeway-link/1";

/// Version in [`frame::Hello`].
pub const PROTOCOL_VERSION: u8 = 1;
