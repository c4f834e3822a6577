//! Frames of `causeway-link/1`, from and to bytes: `u32` body length, `u8` type, body. Same shape as DERP's decoder and encoder.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::codec::{Reader, UnexpectedEnd};
use crate::id::{Epoch, NodeId};
use crate::key::NodePublic;
use crate::limits::{LINK_BODY_LEN_MAX, LINK_HEADER_LEN, LINK_PACKET_FIXED_LEN, LINK_TRACE_LEN, PACKET_LEN_MAX};
use crate::link::PROTOCOL_VERSION;
use crate::packet::{Class, PATH_LEN_MAX, Packet, Path, REDIRECTS_MAX, Route, TraceContext};
use crate::presence::{PresenceKey, Rank};

/// Body lengths of the frames of fixed size.
const HELLO_LEN: usize = 1 + 8 + 8 + 1 + 1;
const STALE_LEN: usize = 32 + 8 + 8 + 8;
const PING_LEN: usize = 8;

const FLAG_TRACE: u8 = 0x01;
const FLAG_FROM_DERPER: u8 = 0x02;

/// Longest of what precedes a payload.
const PACKET_HEADER_LEN_MAX: usize = LINK_HEADER_LEN + LINK_BODY_LEN_MAX - PACKET_LEN_MAX;

/// First frame in each direction: who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Protocol version, [`PROTOCOL_VERSION`].
    pub version: u8,
    /// The sender; must be the node of its certificate.
    pub node: NodeId,
    /// Its process start.
    pub epoch: Epoch,
    /// Which of the parallel connections this is, from 0.
    pub stripe: u8,
    /// How many there are, at least 1.
    pub stripes: u8,
}

impl Hello {
    /// With our protocol version.
    #[must_use]
    pub const fn new(node: NodeId, epoch: Epoch, stripe: u8, stripes: u8) -> Self {
        Self { version: PROTOCOL_VERSION, node, epoch, stripe, stripes }
    }
}

/// Tells a packet's origin that its target does not hold the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stale {
    /// The packet's destination.
    pub key: PresenceKey,
    /// Who was thought to hold it.
    pub target: NodeId,
    /// Rank of the claim that was used.
    pub rank_used: Rank,
}

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkFrame {
    /// Who speaks.
    Hello(Hello),
    /// A packet; its route is always present.
    Packet(Packet),
    /// A claim is out of date.
    Stale(Stale),
    /// Asks for a Pong.
    Ping([u8; 8]),
    /// Answers a Ping.
    Pong([u8; 8]),
    /// Sign of life.
    KeepAlive,
}

/// First byte after the length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
#[allow(missing_docs, reason = "each is the frame of the same name in [`LinkFrame`]")]
pub enum LinkFrameType {
    Hello = 1,
    Packet = 2,
    Stale = 3,
    Ping = 4,
    Pong = 5,
    KeepAlive = 6,
}

impl LinkFrameType {
    const fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Hello,
            2 => Self::Packet,
            3 => Self::Stale,
            4 => Self::Ping,
            5 => Self::Pong,
            6 => Self::KeepAlive,
            _ => return None,
        })
    }

    const fn len_allowed(self, len: usize) -> bool {
        match self {
            Self::Hello => len == HELLO_LEN,
            Self::Packet => len >= LINK_PACKET_FIXED_LEN && len <= LINK_BODY_LEN_MAX,
            Self::Stale => len == STALE_LEN,
            Self::Ping | Self::Pong => len == PING_LEN,
            Self::KeepAlive => len == 0,
        }
    }
}

/// The other node broke the protocol: close the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    /// Longer than any frame.
    #[error("link frame of {0} bytes is longer than any that is taken")]
    TooLong(u32),
    /// Wrong length for its type.
    #[error("{frame_type:?} frame of {len} bytes")]
    Length {
        /// The frame.
        frame_type: LinkFrameType,
        /// Length of its body in bytes.
        len: u32,
    },
    /// A payload of more than [`PACKET_LEN_MAX`] bytes.
    #[error("payload of {0} bytes is above {PACKET_LEN_MAX}")]
    PayloadTooLong(usize),
    /// Another protocol version.
    #[error("link protocol version {0}, this node speaks {PROTOCOL_VERSION}")]
    Version(u8),
    /// Stripe number not below the count, or a count of 0.
    #[error("stripe {stripe} of {stripes}")]
    Stripe {
        /// Number given.
        stripe: u8,
        /// Count given.
        stripes: u8,
    },
    /// A packet without a sender.
    #[error("packet without a source key")]
    ZeroSource,
    /// Unknown class.
    #[error("unknown packet class {0}")]
    Class(u8),
    /// Unknown flag bits.
    #[error("unknown packet flags {0:#04x}")]
    Flags(u8),
    /// More redirects than [`REDIRECTS_MAX`].
    #[error("{0} redirects are more than {REDIRECTS_MAX}")]
    Redirects(u8),
    /// No node on the path, or more than [`PATH_LEN_MAX`].
    #[error("path of {0} nodes")]
    PathLength(u8),
    /// A node is twice on the path.
    #[error("a node is twice on the path")]
    PathLoop,
    /// Trace context with an all-zero trace id.
    #[error("trace context without a trace id")]
    ZeroTrace,
}

impl LinkError {
    /// Fixed label for counting.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::TooLong(_) => "frame_too_long",
            Self::Length { .. } => "frame_length",
            Self::PayloadTooLong(_) => "payload_too_long",
            Self::Version(_) => "version",
            Self::Stripe { .. } => "stripe",
            Self::ZeroSource => "zero_source",
            Self::Class(_) => "class",
            Self::Flags(_) => "flags",
            Self::Redirects(_) => "redirects",
            Self::PathLength(_) => "path_length",
            Self::PathLoop => "path_loop",
            Self::ZeroTrace => "zero_trace",
        }
    }
}

/// Turns a byte stream into link frames. Owns no buffer.
#[derive(Debug, Default)]
pub struct LinkDecoder {
    /// Bytes of an unknown frame that have not arrived yet.
    skip: usize,
    skipped_unknown: u64,
}

impl LinkDecoder {
    /// At the start of a stream.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next frame off the front of `buf`; `None` if more bytes are needed. Unknown types, of a later version of this
    /// protocol, are skipped.
    ///
    /// # Errors
    /// [`LinkError`]: the link must be closed.
    pub fn decode(&mut self, buf: &mut BytesMut) -> Result<Option<LinkFrame>, LinkError> {
        loop {
            let arrived = self.skip.min(buf.len());
            buf.advance(arrived);
            self.skip -= arrived;
            if self.skip > 0 {
                return Ok(None);
            }
            let Some(&[l0, l1, l2, l3, byte]) = buf.first_chunk::<LINK_HEADER_LEN>() else {
                return Ok(None);
            };
            let len = u32::from_be_bytes([l0, l1, l2, l3]);
            if len as usize > LINK_BODY_LEN_MAX {
                return Err(LinkError::TooLong(len));
            }
            let Some(frame_type) = LinkFrameType::from_byte(byte) else {
                buf.advance(LINK_HEADER_LEN);
                self.skip = len as usize;
                self.skipped_unknown += 1;
                continue;
            };
            if !frame_type.len_allowed(len as usize) {
                return Err(LinkError::Length { frame_type, len });
            }
            if buf.len() - LINK_HEADER_LEN < len as usize {
                return Ok(None);
            }
            buf.advance(LINK_HEADER_LEN);
            return parse(frame_type, buf.split_to(len as usize)).map(Some);
        }
    }

    /// Whether the stream may end here: no frame has begun.
    #[must_use]
    pub fn at_boundary(&self, buf: &BytesMut) -> bool {
        self.skip == 0 && buf.is_empty()
    }

    /// How many frames of unknown type were skipped since the last call.
    pub const fn take_skipped(&mut self) -> u64 {
        std::mem::replace(&mut self.skipped_unknown, 0)
    }
}

fn parse(frame_type: LinkFrameType, body: BytesMut) -> Result<LinkFrame, LinkError> {
    let len = u32::try_from(body.len()).unwrap_or(u32::MAX);
    let short = |UnexpectedEnd| LinkError::Length { frame_type, len };
    let mut reader = Reader::new(&body);
    match frame_type {
        LinkFrameType::Hello => parse_hello(&mut reader).map_err(short)?.map(LinkFrame::Hello),
        LinkFrameType::Packet => parse_packet(body),
        LinkFrameType::Stale => parse_stale(&mut reader).map(LinkFrame::Stale).map_err(short),
        LinkFrameType::Ping => reader.array().map(LinkFrame::Ping).map_err(short),
        LinkFrameType::Pong => reader.array().map(LinkFrame::Pong).map_err(short),
        LinkFrameType::KeepAlive => Ok(LinkFrame::KeepAlive),
    }
}

fn parse_hello(reader: &mut Reader<'_>) -> Result<Result<Hello, LinkError>, UnexpectedEnd> {
    let hello = Hello {
        version: reader.u8()?,
        node: NodeId(reader.u64()?),
        epoch: Epoch(reader.u64()?),
        stripe: reader.u8()?,
        stripes: reader.u8()?,
    };
    Ok(if hello.version != PROTOCOL_VERSION {
        Err(LinkError::Version(hello.version))
    } else if hello.stripe >= hello.stripes {
        Err(LinkError::Stripe { stripe: hello.stripe, stripes: hello.stripes })
    } else {
        Ok(hello)
    })
}

fn parse_stale(reader: &mut Reader<'_>) -> Result<Stale, UnexpectedEnd> {
    Ok(Stale { key: PresenceKey(reader.array()?), target: NodeId(reader.u64()?), rank_used: read_rank(reader)? })
}

fn read_rank(reader: &mut Reader<'_>) -> Result<Rank, UnexpectedEnd> {
    Ok(Rank { clock_us: reader.u64()?, node: NodeId(reader.u64()?) })
}

/// What precedes a payload, before it is judged.
struct PacketHead {
    src: NodePublic,
    dst: NodePublic,
    class: u8,
    flags: u8,
    redirects: u8,
    path_len: u8,
    origin: NodeId,
    target: NodeId,
    rank_used: Rank,
}

impl PacketHead {
    fn read(reader: &mut Reader<'_>) -> Result<Self, UnexpectedEnd> {
        Ok(Self {
            src: reader.key()?,
            dst: reader.key()?,
            class: reader.u8()?,
            flags: reader.u8()?,
            redirects: reader.u8()?,
            path_len: reader.u8()?,
            origin: NodeId(reader.u64()?),
            target: NodeId(reader.u64()?),
            rank_used: read_rank(reader)?,
        })
    }

    fn class(&self) -> Result<Class, LinkError> {
        match self.class {
            0 => Ok(Class::Liveness),
            1 => Ok(Class::Data),
            other => Err(LinkError::Class(other)),
        }
    }

    fn check(&self) -> Result<(), LinkError> {
        if self.src.is_zero() {
            return Err(LinkError::ZeroSource);
        }
        if self.flags & !(FLAG_TRACE | FLAG_FROM_DERPER) != 0 {
            return Err(LinkError::Flags(self.flags));
        }
        if self.redirects > REDIRECTS_MAX {
            return Err(LinkError::Redirects(self.redirects));
        }
        if self.path_len == 0 || usize::from(self.path_len) > PATH_LEN_MAX {
            return Err(LinkError::PathLength(self.path_len));
        }
        Ok(())
    }
}

fn parse_packet(mut body: BytesMut) -> Result<LinkFrame, LinkError> {
    let len = u32::try_from(body.len()).unwrap_or(u32::MAX);
    let short = |UnexpectedEnd| LinkError::Length { frame_type: LinkFrameType::Packet, len };
    let mut reader = Reader::new(&body);
    let head = PacketHead::read(&mut reader).map_err(short)?;
    head.check()?;
    let class = head.class()?;
    let mut path = Path::default();
    for _ in 0..head.path_len {
        let node = NodeId(reader.u64().map_err(short)?);
        if path.contains(node) {
            return Err(LinkError::PathLoop);
        }
        path.push(node).map_err(|_| LinkError::PathLength(head.path_len))?;
    }
    let trace = if head.flags & FLAG_TRACE == 0 { None } else { Some(read_trace(&mut reader).map_err(short)?) };
    if trace.is_some_and(|t| t.trace_id == [0; 16]) {
        return Err(LinkError::ZeroTrace);
    }
    let payload_len = reader.rest().len();
    if payload_len > PACKET_LEN_MAX {
        return Err(LinkError::PayloadTooLong(payload_len));
    }
    let PacketHead { src, dst, redirects, origin, target, rank_used, flags, .. } = head;
    body.advance(body.len() - payload_len);
    // An empty slice would still hold the whole read buffer.
    let payload = if body.is_empty() { Bytes::new() } else { body.freeze() };
    let from_derper = flags & FLAG_FROM_DERPER != 0;
    let route = Route { origin, target, rank_used, redirects, path, from_derper, trace };
    Ok(LinkFrame::Packet(Packet { src, dst, class, payload, route: Some(route) }))
}

fn read_trace(reader: &mut Reader<'_>) -> Result<TraceContext, UnexpectedEnd> {
    Ok(TraceContext { trace_id: reader.array()?, span_id: reader.array()? })
}

/// A packet without a route cannot travel on a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a packet needs a route to travel on a link")]
pub struct MissingRoute;

/// Appends a frame, a packet with its payload included.
///
/// # Errors
/// [`MissingRoute`]; nothing is appended then.
pub fn encode(frame: &LinkFrame, out: &mut BytesMut) -> Result<(), MissingRoute> {
    match frame {
        LinkFrame::Packet(packet) => {
            let route = packet.route.as_ref().ok_or(MissingRoute)?;
            out.reserve(packet_header_len(route) + packet.payload.len());
            encode_packet_header(packet, route, out);
            out.put_slice(&packet.payload);
        }
        LinkFrame::Hello(hello) => encode_hello(hello, out),
        LinkFrame::Stale(stale) => encode_stale(stale, out),
        LinkFrame::Ping(data) => put_fixed(LinkFrameType::Ping, data, out),
        LinkFrame::Pong(data) => put_fixed(LinkFrameType::Pong, data, out),
        LinkFrame::KeepAlive => put_fixed(LinkFrameType::KeepAlive, &[], out),
    }
    Ok(())
}

/// Length of what [`encode_packet_header`] appends.
#[must_use]
pub fn packet_header_len(route: &Route) -> usize {
    let trace_len = if route.trace.is_some() { LINK_TRACE_LEN } else { 0 };
    LINK_HEADER_LEN + LINK_PACKET_FIXED_LEN + route.path.as_slice().len() * 8 + trace_len
}

/// Appends everything of a packet's frame but the payload, which has to follow. `route` stands in for the packet's own.
pub fn encode_packet_header(packet: &Packet, route: &Route, out: &mut BytesMut) {
    // Put together on the stack: one check of the buffer's room instead of one per field.
    let mut header = [0; PACKET_HEADER_LEN_MAX];
    let mut rest = &mut header[..];
    let body_len = packet_header_len(route) - LINK_HEADER_LEN + packet.payload.len();
    put_header(LinkFrameType::Packet, body_len, &mut rest);
    rest.put_slice(packet.src.as_bytes());
    rest.put_slice(packet.dst.as_bytes());
    rest.put_u8(packet.class as u8);
    rest.put_u8(flags_of(route));
    rest.put_u8(route.redirects);
    let path = route.path.as_slice();
    rest.put_u8(u8::try_from(path.len()).unwrap_or(u8::MAX));
    rest.put_u64(route.origin.0);
    rest.put_u64(route.target.0);
    put_rank(&route.rank_used, &mut rest);
    for node in path {
        rest.put_u64(node.0);
    }
    if let Some(trace) = &route.trace {
        rest.put_slice(&trace.trace_id);
        rest.put_slice(&trace.span_id);
    }
    let len = PACKET_HEADER_LEN_MAX - rest.len();
    out.put_slice(&header[..len]);
}

const fn flags_of(route: &Route) -> u8 {
    let trace = if route.trace.is_some() { FLAG_TRACE } else { 0 };
    let from_derper = if route.from_derper { FLAG_FROM_DERPER } else { 0 };
    trace | from_derper
}

/// Appends a Hello frame.
pub fn encode_hello(hello: &Hello, out: &mut BytesMut) {
    put_header(LinkFrameType::Hello, HELLO_LEN, out);
    out.put_u8(hello.version);
    out.put_u64(hello.node.0);
    out.put_u64(hello.epoch.0);
    out.put_u8(hello.stripe);
    out.put_u8(hello.stripes);
}

/// Appends a Stale frame.
pub fn encode_stale(stale: &Stale, out: &mut BytesMut) {
    put_header(LinkFrameType::Stale, STALE_LEN, out);
    out.put_slice(&stale.key.0);
    out.put_u64(stale.target.0);
    put_rank(&stale.rank_used, out);
}

fn put_rank(rank: &Rank, out: &mut impl BufMut) {
    out.put_u64(rank.clock_us);
    out.put_u64(rank.node.0);
}

fn put_fixed(frame_type: LinkFrameType, body: &[u8], out: &mut BytesMut) {
    put_header(frame_type, body.len(), out);
    out.put_slice(body);
}

fn put_header(frame_type: LinkFrameType, body_len: usize, out: &mut impl BufMut) {
    out.put_u32(u32::try_from(body_len).unwrap_or(u32::MAX));
    out.put_u8(frame_type as u8);
}

#[cfg(test)]
mod tests;
