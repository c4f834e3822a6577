//! DERP frames from bytes. Owns no buffer: the caller reads into a `BytesMut` and calls [`Decoder::decode`] until it yields nothing.
//!
//! A frame's length is judged as soon as its 5 header bytes are there, before anything is kept for it. What is skipped is dropped from the
//! buffer as it arrives. Payloads are slices of the caller's buffer, not copies.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use bytes::{Buf, Bytes, BytesMut};

use crate::codec::{Reader, UnexpectedEnd};
use crate::derp::MAGIC;
use crate::derp::frame::{Frame, FrameType, PeerGoneReason, PingData, PresentFlags};
use crate::key::{KEY_LEN, NodePublic};
use crate::limits::{
    DERP_CLIENT_FRAME_LEN_MAX, DERP_CLIENT_INFO_LEN_MAX, DERP_CLIENT_INFO_LEN_MIN, DERP_GREETING_LEN_MAX, DERP_HEADER_LEN,
    DERP_PING_LEN_MAX, DERP_PING_LEN_MIN, DERP_UNKNOWN_LEN_MAX, PACKET_LEN_MAX,
};

/// The peer broke the protocol: close the connection. There is no error frame (`derp.md` section 3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// A known frame is longer or shorter than its size rule allows.
    #[error("{frame_type:?} frame of {len} bytes")]
    Length {
        /// The frame.
        frame_type: FrameType,
        /// Its payload's length in bytes.
        len: u32,
    },
    /// An unknown frame is too long to skip, or any frame is longer than a client takes.
    #[error("frame of type {frame_type:#04x} and {len} bytes is longer than any that is taken")]
    TooLong {
        /// First byte.
        frame_type: u8,
        /// Its payload's length in bytes.
        len: u32,
    },
    /// Another frame than the handshake asks for at this point.
    #[error("frame of type {frame_type:#04x} where {expected:?} has to come")]
    Unexpected {
        /// First byte.
        frame_type: u8,
        /// What has to come.
        expected: FrameType,
    },
    /// A greeting without the protocol's magic.
    #[error("the greeting does not start with the protocol's magic")]
    Magic,
}

impl DecodeError {
    /// Fixed label for counting.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Length { .. } => "frame_length",
            Self::TooLong { .. } => "frame_too_long",
            Self::Unexpected { .. } => "frame_unexpected",
            Self::Magic => "greeting_magic",
        }
    }
}

/// Whose rules a decoder follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rules {
    /// Server after login.
    Server,
    /// Server before login: ClientInfo only, of at most so many bytes.
    Login(usize),
    /// Client after the greeting.
    Client,
    /// Client before the greeting: ServerKey only.
    Greeting,
}

/// What to do with a frame, by its header.
enum Admission {
    Take(FrameType),
    SkipUnknown,
    SkipMalformed,
}

/// Frames that were not surfaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Skipped {
    /// Of a type that this side does not know.
    pub unknown: u64,
    /// Of a known type, but too short to mean something (tolerated by `derp.md` section 15.2).
    pub malformed: u64,
}

/// Turns a byte stream into frames.
#[derive(Debug)]
pub struct Decoder {
    rules: Rules,
    /// Bytes of a skipped payload that have not arrived yet.
    skip: usize,
    skipped: Skipped,
}

impl Decoder {
    const fn with_rules(rules: Rules) -> Self {
        Self { rules, skip: 0, skipped: Skipped { unknown: 0, malformed: 0 } }
    }

    /// For a server's connection after login: exact size rules; unknown frames are skipped up to
    /// [`DERP_UNKNOWN_LEN_MAX`] bytes. Pong, which stock servers do not know, is surfaced.
    #[must_use]
    pub const fn server() -> Self {
        Self::with_rules(Rules::Server)
    }

    /// For a client's connection after the greeting: tolerant of odd lengths, up to [`DERP_CLIENT_FRAME_LEN_MAX`] bytes.
    /// A (late) ServerKey frame is skipped as unknown: fast start relies on it.
    #[must_use]
    pub const fn client() -> Self {
        Self::with_rules(Rules::Client)
    }

    /// For the login phase of a server: takes one ClientInfo of at most `len_max` bytes, nothing else.
    #[must_use]
    pub(crate) const fn login(len_max: usize) -> Self {
        Self::with_rules(Rules::Login(len_max))
    }

    /// For the first frame a client reads without fast start.
    #[must_use]
    pub(crate) const fn greeting() -> Self {
        Self::with_rules(Rules::Greeting)
    }

    /// Takes the next frame off the front of `buf`; `None` if more bytes are needed.
    ///
    /// # Errors
    /// [`DecodeError`]: the connection must be closed.
    pub fn decode(&mut self, buf: &mut BytesMut) -> Result<Option<Frame>, DecodeError> {
        loop {
            if self.skip > 0 && !self.skip_arrived(buf) {
                return Ok(None);
            }
            let Some(&[frame_type, l0, l1, l2, l3]) = buf.first_chunk::<DERP_HEADER_LEN>() else {
                return Ok(None);
            };
            let len = u32::from_be_bytes([l0, l1, l2, l3]);
            match self.admit(frame_type, len)? {
                Admission::Take(frame_type) => {
                    let len = len as usize;
                    if buf.len() - DERP_HEADER_LEN < len {
                        return Ok(None);
                    }
                    buf.advance(DERP_HEADER_LEN);
                    return take(frame_type, buf.split_to(len)).map(Some);
                }
                Admission::SkipUnknown => self.skipped.unknown += 1,
                Admission::SkipMalformed => self.skipped.malformed += 1,
            }
            buf.advance(DERP_HEADER_LEN);
            self.skip = len as usize;
        }
    }

    /// Whether the stream may end here: no frame has begun. Otherwise its end cuts a frame off.
    #[must_use]
    pub fn at_boundary(&self, buf: &BytesMut) -> bool {
        self.skip == 0 && buf.is_empty()
    }

    /// How many frames were skipped since the last call.
    pub const fn take_skipped(&mut self) -> Skipped {
        std::mem::replace(&mut self.skipped, Skipped { unknown: 0, malformed: 0 })
    }

    fn skip_arrived(&mut self, buf: &mut BytesMut) -> bool {
        let arrived = self.skip.min(buf.len());
        buf.advance(arrived);
        self.skip -= arrived;
        self.skip == 0
    }

    fn admit(&self, byte: u8, len: u32) -> Result<Admission, DecodeError> {
        match self.rules {
            Rules::Server => admit_at_server(byte, len),
            Rules::Client => admit_at_client(byte, len),
            Rules::Login(len_max) => {
                let len_max = len_max.min(DERP_CLIENT_INFO_LEN_MAX);
                admit_only(FrameType::ClientInfo, byte, len, DERP_CLIENT_INFO_LEN_MIN, len_max)
            }
            Rules::Greeting => admit_only(FrameType::ServerKey, byte, len, MAGIC.len() + KEY_LEN, DERP_GREETING_LEN_MAX),
        }
    }
}

fn admit_only(expected: FrameType, byte: u8, len: u32, min: usize, max: usize) -> Result<Admission, DecodeError> {
    if byte != expected as u8 {
        return Err(DecodeError::Unexpected { frame_type: byte, expected });
    }
    exactly(expected, len, (min..=max).contains(&(len as usize)))
}

fn exactly(frame_type: FrameType, len: u32, allowed: bool) -> Result<Admission, DecodeError> {
    if allowed { Ok(Admission::Take(frame_type)) } else { Err(DecodeError::Length { frame_type, len }) }
}

fn admit_at_server(byte: u8, len: u32) -> Result<Admission, DecodeError> {
    let n = len as usize;
    match FrameType::from_byte(byte) {
        Some(t @ FrameType::SendPacket) => exactly(t, len, (KEY_LEN..=KEY_LEN + PACKET_LEN_MAX).contains(&n)),
        Some(t @ FrameType::ForwardPacket) => exactly(t, len, (2 * KEY_LEN..=2 * KEY_LEN + PACKET_LEN_MAX).contains(&n)),
        Some(t @ FrameType::NotePreferred) => exactly(t, len, n == 1),
        Some(t @ FrameType::WatchConns) => exactly(t, len, n == 0),
        Some(t @ FrameType::ClosePeer) => exactly(t, len, n == KEY_LEN),
        Some(t @ FrameType::Ping) => exactly(t, len, (DERP_PING_LEN_MIN..=DERP_PING_LEN_MAX).contains(&n)),
        // Unknown to stock servers, so no length of it may close the connection where theirs would not.
        Some(t @ FrameType::Pong) if (DERP_PING_LEN_MIN..=DERP_PING_LEN_MAX).contains(&n) => Ok(Admission::Take(t)),
        _ if n > DERP_UNKNOWN_LEN_MAX => Err(DecodeError::TooLong { frame_type: byte, len }),
        _ => Ok(Admission::SkipUnknown),
    }
}

fn admit_at_client(byte: u8, len: u32) -> Result<Admission, DecodeError> {
    let n = len as usize;
    if n > DERP_CLIENT_FRAME_LEN_MAX {
        return Err(DecodeError::TooLong { frame_type: byte, len });
    }
    let Some(frame_type) = FrameType::from_byte(byte) else {
        return Ok(Admission::SkipUnknown);
    };
    let len_min = match frame_type {
        FrameType::ServerInfo | FrameType::KeepAlive | FrameType::Health => 0,
        FrameType::RecvPacket | FrameType::PeerGone | FrameType::PeerPresent => KEY_LEN,
        FrameType::Ping | FrameType::Pong | FrameType::Restarting => 8,
        FrameType::ServerKey
        | FrameType::ClientInfo
        | FrameType::SendPacket
        | FrameType::NotePreferred
        | FrameType::ForwardPacket
        | FrameType::WatchConns
        | FrameType::ClosePeer => return Ok(Admission::SkipUnknown),
    };
    Ok(if n >= len_min { Admission::Take(frame_type) } else { Admission::SkipMalformed })
}

/// Builds the frame from its whole payload, whose length has been admitted.
fn take(frame_type: FrameType, payload: BytesMut) -> Result<Frame, DecodeError> {
    let len = payload.len();
    parse(frame_type, payload)
        // Not reached: every admitted length covers what is read. A typed refusal is still better than a panic.
        .map_err(|UnexpectedEnd| DecodeError::Length { frame_type, len: u32::try_from(len).unwrap_or(u32::MAX) })?
        .ok_or(DecodeError::Magic)
}

/// `None` if a greeting's magic is wrong.
fn parse(frame_type: FrameType, mut payload: BytesMut) -> Result<Option<Frame>, UnexpectedEnd> {
    Ok(Some(match frame_type {
        FrameType::SendPacket => Frame::SendPacket { dst: take_key(&mut payload)?, payload: freeze(payload) },
        FrameType::RecvPacket => Frame::RecvPacket { src: take_key(&mut payload)?, payload: freeze(payload) },
        FrameType::ForwardPacket => {
            Frame::ForwardPacket { src: take_key(&mut payload)?, dst: take_key(&mut payload)?, payload: freeze(payload) }
        }
        FrameType::ClientInfo => Frame::ClientInfo { key: take_key(&mut payload)?, sealed: freeze(payload) },
        FrameType::ServerInfo => Frame::ServerInfo { sealed: freeze(payload) },
        FrameType::KeepAlive => Frame::KeepAlive,
        FrameType::WatchConns => Frame::WatchConns,
        FrameType::ServerKey => {
            let mut reader = Reader::new(&payload);
            if reader.array::<8>()? != MAGIC {
                return Ok(None);
            }
            Frame::ServerKey { key: reader.key()? }
        }
        FrameType::NotePreferred => Frame::NotePreferred { preferred: Reader::new(&payload).u8()? != 0 },
        FrameType::PeerGone => {
            let mut reader = Reader::new(&payload);
            let peer = reader.key()?;
            Frame::PeerGone { peer, reason: PeerGoneReason::from_byte(reader.u8().unwrap_or(0)) }
        }
        FrameType::PeerPresent => parse_peer_present(Reader::new(&payload))?,
        FrameType::ClosePeer => Frame::ClosePeer { peer: Reader::new(&payload).key()? },
        FrameType::Ping => Frame::Ping { data: Reader::new(&payload).array::<{ size_of::<PingData>() }>()? },
        FrameType::Pong => Frame::Pong { data: Reader::new(&payload).array::<{ size_of::<PingData>() }>()? },
        FrameType::Health => Frame::Health { problem: String::from_utf8_lossy(&payload).into_owned() },
        FrameType::Restarting => {
            let mut reader = Reader::new(&payload);
            Frame::Restarting { reconnect_in_ms: reader.u32()?, try_for_ms: reader.u32()? }
        }
    }))
}

/// Parts that are missing were not told (`derp.md` section 3.1).
fn parse_peer_present(mut reader: Reader<'_>) -> Result<Frame, UnexpectedEnd> {
    let peer = reader.key()?;
    let Ok([ip @ .., p0, p1]) = reader.array::<18>() else {
        return Ok(Frame::PeerPresent { peer, addr: None, flags: PresentFlags(0) });
    };
    let addr = SocketAddr::new(IpAddr::V6(Ipv6Addr::from(ip)).to_canonical(), u16::from_be_bytes([p0, p1]));
    let flags = PresentFlags(reader.u8().unwrap_or(0));
    Ok(Frame::PeerPresent { peer, addr: (ip != [0; 16]).then_some(addr), flags })
}

fn take_key(payload: &mut BytesMut) -> Result<NodePublic, UnexpectedEnd> {
    let key = *payload.first_chunk::<KEY_LEN>().ok_or(UnexpectedEnd)?;
    payload.advance(KEY_LEN);
    Ok(NodePublic::from_bytes(key))
}

fn freeze(payload: BytesMut) -> Bytes {
    // An empty slice would still hold the whole read buffer.
    if payload.is_empty() { Bytes::new() } else { payload.freeze() }
}

#[cfg(test)]
mod tests;
