//! Every maximum that is part of a wire format, in bytes unless said otherwise, and how they relate.

use crate::key::KEY_LEN;
use crate::packet::PATH_LEN_MAX;

/// Largest payload of a packet between two clients (`derp.md` section 3).
pub const PACKET_LEN_MAX: usize = 65_536;

/// Header of a DERP frame: type and payload length.
pub const DERP_HEADER_LEN: usize = 5;
/// Largest unknown frame that a server skips; a larger one closes the connection.
pub const DERP_UNKNOWN_LEN_MAX: usize = 65_536;
/// Largest frame of any type that a client takes.
pub const DERP_CLIENT_FRAME_LEN_MAX: usize = 1 << 20;
/// Shortest and longest Ping a server takes.
pub const DERP_PING_LEN_MIN: usize = 8;
/// See [`DERP_PING_LEN_MIN`].
pub const DERP_PING_LEN_MAX: usize = 1000;
/// Largest greeting (ServerKey frame) that a client takes.
pub const DERP_GREETING_LEN_MAX: usize = 1024;
/// Nonce and tag of a sealed box.
pub const SEALED_OVERHEAD: usize = 40;
/// Shortest ClientInfo: key and nonce; what is shorter than nonce and tag fails to open.
pub const DERP_CLIENT_INFO_LEN_MIN: usize = KEY_LEN + 24;
/// Largest ClientInfo that stock servers take.
pub const DERP_CLIENT_INFO_LEN_MAX: usize = 262_144;
/// Largest ClientInfo taken by default: a stock client sends under 300 bytes.
pub const DERP_CLIENT_INFO_LEN_DEFAULT: usize = 16_384;
/// Largest ServerInfo that a client takes.
pub const DERP_SERVER_INFO_LEN_MAX: usize = 24 + (1 << 20);
/// Deepest nesting of JSON taken from the network.
pub const JSON_DEPTH_MAX: usize = 16;

/// Largest HTTP head (request or response), blank line included.
pub const HTTP_HEAD_LEN_MAX: usize = 8192;
/// Most header lines of an HTTP head.
pub const HTTP_HEADERS_MAX: usize = 64;

/// Longest PROXY header of version 1, line end included.
pub const PROXY_V1_LEN_MAX: usize = 107;
/// Most bytes behind the fixed part of a PROXY header of version 2: addresses, and extensions that may hold a certificate's name.
pub const PROXY_V2_BODY_LEN_MAX: usize = 2048;

/// Header of a link frame: body length and type.
pub const LINK_HEADER_LEN: usize = 5;
/// Fixed part of a packet's link body: keys, class, flags, redirects, path length, origin, target, rank.
pub const LINK_PACKET_FIXED_LEN: usize = 2 * KEY_LEN + 4 + 4 * 8;
/// Trace context in a link body.
pub const LINK_TRACE_LEN: usize = 24;
/// Largest body of a link frame.
pub const LINK_BODY_LEN_MAX: usize = LINK_PACKET_FIXED_LEN + PATH_LEN_MAX * 8 + LINK_TRACE_LEN + PACKET_LEN_MAX;

/// Largest STUN datagram looked at.
pub const STUN_DATAGRAM_LEN_MAX: usize = 1500;
/// Largest STUN answer sent.
pub const STUN_RESPONSE_LEN_MAX: usize = 44;

/// Largest DERP map taken as JSON.
pub const DERP_MAP_LEN_MAX: usize = 4 << 20;
/// Most regions of a DERP map.
pub const DERP_MAP_REGIONS_MAX: usize = 4096;
/// Most nodes of one region.
pub const DERP_MAP_NODES_MAX: usize = 1024;

const _: () = assert!(2 * KEY_LEN + PACKET_LEN_MAX <= DERP_CLIENT_FRAME_LEN_MAX, "a client takes every packet");
const _: () = assert!(DERP_UNKNOWN_LEN_MAX <= DERP_CLIENT_FRAME_LEN_MAX);
const _: () = assert!(DERP_PING_LEN_MIN <= DERP_PING_LEN_MAX && DERP_PING_LEN_MAX <= DERP_UNKNOWN_LEN_MAX);
const _: () = assert!(DERP_CLIENT_INFO_LEN_MIN < DERP_CLIENT_INFO_LEN_DEFAULT);
const _: () = assert!(DERP_CLIENT_INFO_LEN_DEFAULT <= DERP_CLIENT_INFO_LEN_MAX);
const _: () = assert!(DERP_GREETING_LEN_MAX >= 8 + KEY_LEN);
const _: () = assert!(LINK_BODY_LEN_MAX <= u32::MAX as usize);
const _: () = assert!(STUN_RESPONSE_LEN_MAX <= STUN_DATAGRAM_LEN_MAX);
