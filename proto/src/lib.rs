//! Every wire format of Causeway as pure code: bytes and `now` in, values out; no I/O, no clock, no async runtime.
//!
//! | module | holds |
//! |---|---|
//! | [`key`] | Curve25519 node keys and mesh keys, their text forms |
//! | [`key_hash`] | hashing of keys that clients choose |
//! | [`id`] | node, region, epoch and boot ids of the fleet |
//! | [`presence`] | claims, ranks and owner-log operations, and their packed form |
//! | [`packet`] | what the router moves: packet, class, route header |
//! | [`limits`] | every wire-level maximum |
//! | [`codec`] | reading fixed layouts |
//! | [`derp`] | frames, login, HTTP upgrade of the DERP protocol |
//! | [`derpmap`] | the DERP map and its JSON |
//! | [`link`] | `causeway-link/1`, packets between nodes |
//! | [`netcheck`] | measuring regions and choosing the home |
//! | [`proxy_protocol`] | the header that load balancers send before a connection |
//! | [`stun`] | binding requests and answers |
//! | [`websocket`] | frames and handshake of WebSocket, as a server needs them |

#![warn(missing_docs)]

pub mod codec;
pub mod derp;
pub mod derpmap;
pub mod id;
mod json;
pub mod key;
pub mod key_hash;
pub mod limits;
pub mod link;
pub mod netcheck;
pub mod packet;
pub mod presence;
pub mod proxy_protocol;
pub mod stun;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod websocket;
