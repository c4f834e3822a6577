//! Every wire format of Causeway as pure code: bytes and `now` in, values out; no I/O, no clock, no async runtime.
//!
//! | module | holds |
//! |---|---|
//! | [`key`] | Curve25519 node keys and mesh keys, their text forms |
//! | [`id`] | node, region, epoch and boot ids of the fleet |
//! | [`presence`] | claims, ranks and owner-log operations, and their packed form |
//! | [`packet`] | what the router moves: packet, class, route header |

pub mod id;
pub mod key;
pub mod packet;
pub mod presence;
