//! DERP (`derp.md`): frames, handshakes, HTTP upgrade, MetaCert names.
//!
//! | module | holds |
//! |---|---|
//! | [`frame`] | the 16 frames as values |
//! | [`decoder`], [`encoder`] | frames from and to bytes |
//! | [`info`] | ClientInfo and ServerInfo |
//! | [`seal`] | the NaCl box they travel in |
//! | [`handshake`] | login, both sides |
//! | [`upgrade`] | HTTP heads before the first frame |
//! | [`meta_cert`] | names of the certificate that carries the server key |
//! | [`admit`] | what is asked of an admission URL |
//! | [`ping`] | bounds of a client's pings |

pub mod admit;
pub mod decoder;
pub mod encoder;
pub mod frame;
pub mod handshake;
pub mod info;
pub mod meta_cert;
pub mod ping;
pub mod seal;
pub mod upgrade;

/// Version of the protocol: in ClientInfo, ServerInfo, the `Derp-Version` header and the MetaCert's serial number.
pub const PROTOCOL_VERSION: u8 = 2;

/// First bytes of the ServerKey frame: `DERP` and the UTF-8 key emoji.
pub const MAGIC: [u8; 8] = [0x44, 0x45, 0x52, 0x50, 0xf0, 0x9f, 0x94, 0x91];
