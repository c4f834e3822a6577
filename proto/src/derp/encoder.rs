//! DERP frames to bytes: exact lengths, straight into the caller's buffer.

use std::net::{IpAddr, SocketAddr};

use bytes::{BufMut, Bytes, BytesMut};

use crate::derp::MAGIC;
use crate::derp::frame::{Frame, FrameType, PeerGoneReason, PingData, PresentFlags};
use crate::key::{KEY_LEN, NodePublic};
use crate::limits::{DERP_CLIENT_FRAME_LEN_MAX, DERP_HEADER_LEN};

/// Length of a PeerPresent's payload: key, address, port, flags.
pub const PEER_PRESENT_LEN: usize = KEY_LEN + 16 + 2 + 1;

/// Bytes that [`encode`] will append, header included.
#[must_use]
pub fn encoded_len(frame: &Frame) -> usize {
    DERP_HEADER_LEN + payload_len(frame)
}

fn payload_len(frame: &Frame) -> usize {
    match frame {
        Frame::ServerKey { .. } => MAGIC.len() + KEY_LEN,
        Frame::ClientInfo { sealed, .. } => KEY_LEN + sealed.len(),
        Frame::ServerInfo { sealed } => sealed.len(),
        Frame::SendPacket { payload, .. } | Frame::RecvPacket { payload, .. } => KEY_LEN + payload.len(),
        Frame::KeepAlive | Frame::WatchConns => 0,
        Frame::NotePreferred { .. } => 1,
        Frame::PeerGone { .. } => KEY_LEN + 1,
        Frame::PeerPresent { .. } => PEER_PRESENT_LEN,
        Frame::ForwardPacket { payload, .. } => 2 * KEY_LEN + payload.len(),
        Frame::ClosePeer { .. } => KEY_LEN,
        Frame::Ping { .. } | Frame::Pong { .. } | Frame::Restarting { .. } => 8,
        Frame::Health { problem } => problem.len(),
    }
}

/// Appends `frame`.
///
/// Does not judge sizes: a payload above [`crate::limits::PACKET_LEN_MAX`] is the caller's to refuse, since the other side closes the
/// connection for it.
pub fn encode(frame: &Frame, out: &mut BytesMut) {
    out.reserve(encoded_len(frame));
    put_header(frame.frame_type(), payload_len(frame), out);
    match frame {
        Frame::ServerKey { key } => {
            out.put_slice(&MAGIC);
            out.put_slice(key.as_bytes());
        }
        Frame::ClientInfo { key, sealed } => put_key_and(key, sealed, out),
        Frame::ServerInfo { sealed } => out.put_slice(sealed),
        Frame::SendPacket { dst: key, payload } | Frame::RecvPacket { src: key, payload } => put_key_and(key, payload, out),
        Frame::KeepAlive | Frame::WatchConns => {}
        Frame::NotePreferred { preferred } => out.put_u8(u8::from(*preferred)),
        Frame::PeerGone { peer, reason } => put_peer_gone(peer, *reason, out),
        Frame::PeerPresent { peer, addr, flags } => put_peer_present(peer, *addr, *flags, out),
        Frame::ForwardPacket { src, dst, payload } => {
            out.put_slice(src.as_bytes());
            put_key_and(dst, payload, out);
        }
        Frame::ClosePeer { peer } => out.put_slice(peer.as_bytes()),
        Frame::Ping { data } | Frame::Pong { data } => out.put_slice(data),
        Frame::Health { problem } => out.put_slice(problem.as_bytes()),
        Frame::Restarting { reconnect_in_ms, try_for_ms } => {
            out.put_u32(*reconnect_in_ms);
            out.put_u32(*try_for_ms);
        }
    }
}

/// The frame as bytes of its own.
#[must_use]
pub fn to_bytes(frame: &Frame) -> Bytes {
    let mut out = BytesMut::new();
    encode(frame, &mut out);
    out.freeze()
}

/// Length of [`recv_packet_header`] and [`send_packet_header`].
pub const PACKET_HEADER_LEN: usize = DERP_HEADER_LEN + KEY_LEN;
/// Length of [`forward_packet_header`].
pub const FORWARD_HEADER_LEN: usize = DERP_HEADER_LEN + 2 * KEY_LEN;

/// What precedes `payload_len` bytes of payload in a RecvPacket frame.
#[must_use]
pub fn recv_packet_header(src: &NodePublic, payload_len: usize) -> [u8; PACKET_HEADER_LEN] {
    packet_header(FrameType::RecvPacket, src, payload_len)
}

/// What precedes `payload_len` bytes of payload in a SendPacket frame.
#[must_use]
pub fn send_packet_header(dst: &NodePublic, payload_len: usize) -> [u8; PACKET_HEADER_LEN] {
    packet_header(FrameType::SendPacket, dst, payload_len)
}

/// What precedes `payload_len` bytes of payload in a ForwardPacket frame.
#[must_use]
pub fn forward_packet_header(src: &NodePublic, dst: &NodePublic, payload_len: usize) -> [u8; FORWARD_HEADER_LEN] {
    let mut header = [0; FORWARD_HEADER_LEN];
    header[..DERP_HEADER_LEN].copy_from_slice(&frame_header(FrameType::ForwardPacket, 2 * KEY_LEN + payload_len));
    header[DERP_HEADER_LEN..PACKET_HEADER_LEN].copy_from_slice(src.as_bytes());
    header[PACKET_HEADER_LEN..].copy_from_slice(dst.as_bytes());
    header
}

fn packet_header(frame_type: FrameType, key: &NodePublic, payload_len: usize) -> [u8; PACKET_HEADER_LEN] {
    let mut header = [0; PACKET_HEADER_LEN];
    header[..DERP_HEADER_LEN].copy_from_slice(&frame_header(frame_type, KEY_LEN + payload_len));
    header[DERP_HEADER_LEN..].copy_from_slice(key.as_bytes());
    header
}

fn frame_header(frame_type: FrameType, payload_len: usize) -> [u8; DERP_HEADER_LEN] {
    debug_assert!(payload_len <= DERP_CLIENT_FRAME_LEN_MAX, "no peer takes a frame of {payload_len} bytes");
    let [b0, b1, b2, b3] = u32::try_from(payload_len).unwrap_or(u32::MAX).to_be_bytes();
    [frame_type as u8, b0, b1, b2, b3]
}

fn put_header(frame_type: FrameType, payload_len: usize, out: &mut BytesMut) {
    out.put_slice(&frame_header(frame_type, payload_len));
}

fn put_key_and(key: &NodePublic, payload: &[u8], out: &mut BytesMut) {
    out.put_slice(key.as_bytes());
    out.put_slice(payload);
}

fn put_peer_gone(peer: &NodePublic, reason: PeerGoneReason, out: &mut BytesMut) {
    out.put_slice(peer.as_bytes());
    out.put_u8(reason.to_byte());
}

fn put_peer_present(peer: &NodePublic, addr: Option<SocketAddr>, flags: PresentFlags, out: &mut BytesMut) {
    out.put_slice(peer.as_bytes());
    let (ip, port) = match addr {
        Some(addr) => (addr.ip(), addr.port()),
        None => (IpAddr::from([0; 16]), 0),
    };
    let octets = match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    };
    out.put_slice(&octets);
    out.put_u16(port);
    out.put_u8(flags.0);
}

/// Appends a Pong: what a server answers to a [`Frame::Ping`].
pub fn encode_pong(data: PingData, out: &mut BytesMut) {
    encode(&Frame::Pong { data }, out);
}
