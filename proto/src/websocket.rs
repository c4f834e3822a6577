//! WebSocket (RFC 6455) as a server needs it to carry a byte stream: which requests may be upgraded, frames of a client stripped in
//! place, headers of our own. Message borders mean nothing (`derp.md` section 4.4), so no message is ever held.

use data_encoding::BASE64;

use crate::derp::upgrade::RequestHead;

/// The subprotocol of DERP.
pub const SUBPROTOCOL: &str = "derp";

/// Length of the random part of a client's handshake.
const KEY_LEN: usize = 16;

/// Longest payload of a control frame (RFC 6455 section 5.5).
pub const CONTROL_LEN_MAX: usize = 125;

/// Longest header of a client's frame: two bytes, a length of eight, a mask of four.
const CLIENT_HEADER_LEN_MAX: usize = 14;

/// Longest header of a server's frame, which has no mask.
pub const SERVER_HEADER_LEN_MAX: usize = 10;

const FIN: u8 = 0x80;
const RESERVED_BITS: u8 = 0x70;
const MASKED: u8 = 0x80;

const CONTINUATION: u8 = 0x0;
const TEXT: u8 = 0x1;
const BINARY: u8 = 0x2;
const CLOSE: u8 = 0x8;
const PING: u8 = 0x9;
const PONG: u8 = 0xA;

/// A request that names the subprotocol cannot become a WebSocket (RFC 6455 section 4.2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HandshakeError {
    /// HTTP/1.0.
    #[error("a WebSocket needs HTTP/1.1")]
    Version,
    /// `Connection` does not name the upgrade.
    #[error("a WebSocket needs `Connection: Upgrade`")]
    Connection,
    /// Another method than GET.
    #[error("a WebSocket needs GET")]
    Method,
    /// Another version of the protocol.
    #[error("only version 13 of WebSocket is spoken here")]
    ProtocolVersion,
    /// `Sec-WebSocket-Key` is missing, doubled, or not 16 bytes in base64.
    #[error("a WebSocket needs one Sec-WebSocket-Key of 16 bytes in base64")]
    Key,
}

impl HandshakeError {
    /// Status to answer with.
    #[must_use]
    pub const fn status(&self) -> u16 {
        match self {
            Self::Version | Self::Connection => 426,
            Self::Method => 405,
            Self::ProtocolVersion | Self::Key => 400,
        }
    }
}

/// A request that may become a WebSocket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handshake {
    /// As the client sent it, to be answered.
    pub key: String,
    /// It offers the subprotocol `derp` itself, not only one whose name holds that word.
    pub speaks_derp: bool,
}

impl Handshake {
    /// Checks a request whose `Upgrade` is `websocket`.
    ///
    /// # Errors
    /// [`HandshakeError`].
    pub fn of(head: &RequestHead) -> Result<Self, HandshakeError> {
        if head.minor_version == 0 {
            return Err(HandshakeError::Version);
        }
        if !head.lists("Connection", "upgrade") {
            return Err(HandshakeError::Connection);
        }
        if head.method != "GET" {
            return Err(HandshakeError::Method);
        }
        if head.header("Sec-WebSocket-Version") != Some("13") {
            return Err(HandshakeError::ProtocolVersion);
        }
        let mut keys = head.header_values("Sec-WebSocket-Key");
        let key = keys.next().filter(|key| BASE64.decode(key.as_bytes()).is_ok_and(|key| key.len() == KEY_LEN));
        match (key, keys.next()) {
            (Some(key), None) => Ok(Self { key: key.to_owned(), speaks_derp: head.lists("Sec-WebSocket-Protocol", SUBPROTOCOL) }),
            _ => Err(HandshakeError::Key),
        }
    }
}

/// Why a WebSocket is closed; the numbers of RFC 6455 section 7.4.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CloseCode(pub u16);

impl CloseCode {
    /// All is done.
    pub const NORMAL: Self = Self(1000);
    /// One side goes away.
    pub const GOING_AWAY: Self = Self(1001);
    /// The other side broke the protocol.
    pub const PROTOCOL: Self = Self(1002);
    /// A text message.
    pub const UNSUPPORTED: Self = Self(1003);
    /// A close without a code; never sent.
    pub const NONE: Self = Self(1005);
    /// The subprotocol is missing.
    pub const POLICY: Self = Self(1008);

    /// Whether the stream ended as it should.
    #[must_use]
    pub const fn is_orderly(self) -> bool {
        matches!(self, Self::NORMAL | Self::GOING_AWAY | Self::NONE)
    }
}

/// A client's bytes are not what may stand in this stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// A text message.
    #[error("a WebSocket text message where binary ones are spoken")]
    Text,
    /// A frame that RFC 6455 section 5 forbids.
    #[error("a WebSocket frame that the protocol forbids")]
    Protocol,
}

impl FrameError {
    /// What the client is told.
    #[must_use]
    pub const fn close_code(&self) -> CloseCode {
        match self {
            Self::Text => CloseCode::UNSUPPORTED,
            Self::Protocol => CloseCode::PROTOCOL,
        }
    }
}

/// The frame under way.
#[derive(Clone, Copy, Debug)]
enum State {
    /// So many bytes of a header are there.
    Header(usize),
    /// Payload of a binary message: bytes left, and which byte of the mask is next.
    Data { left: u64, at: usize },
    /// Payload of a control frame: its kind, bytes there and in all.
    Control { opcode: u8, have: usize, len: usize },
    /// The client closed.
    Closed(CloseCode),
}

/// Strips the frames of one client.
#[derive(Debug)]
pub struct Decoder {
    state: State,
    header: [u8; CLIENT_HEADER_LEN_MAX],
    mask: [u8; 4],
    control: [u8; CONTROL_LEN_MAX],
    /// A message has begun whose last frame is still to come.
    in_message: bool,
    /// Of the newest ping only: that is all that must be answered.
    pong: Option<Vec<u8>>,
}

impl Default for Decoder {
    fn default() -> Self {
        Self {
            state: State::Header(0),
            header: [0; CLIENT_HEADER_LEN_MAX],
            mask: [0; 4],
            control: [0; CONTROL_LEN_MAX],
            in_message: false,
            pong: None,
        }
    }
}

impl Decoder {
    /// Takes the next bytes of the connection, moves the payload in them to the front, and returns its length.
    ///
    /// # Errors
    /// [`FrameError`]; nothing more may be decoded.
    pub fn decode(&mut self, bytes: &mut [u8]) -> Result<usize, FrameError> {
        let (mut from, mut to) = (0, 0);
        while from < bytes.len() {
            match self.state {
                State::Header(have) => {
                    self.header[have] = bytes[from];
                    from += 1;
                    self.state = State::Header(have + 1);
                    self.finish_header(have + 1)?;
                }
                State::Data { left, at } => {
                    let len = (bytes.len() - from).min(usize::try_from(left).unwrap_or(usize::MAX));
                    bytes.copy_within(from..from + len, to);
                    unmask(&mut bytes[to..to + len], self.mask, at);
                    (from, to) = (from + len, to + len);
                    self.state = match left - len as u64 {
                        0 => State::Header(0),
                        left => State::Data { left, at: (at + len) % 4 },
                    };
                }
                State::Control { opcode, have, len } => {
                    let end = (have + bytes.len() - from).min(len);
                    self.control[have..end].copy_from_slice(&bytes[from..from + end - have]);
                    from += end - have;
                    self.state = State::Control { opcode, have: end, len };
                    self.finish_control()?;
                }
                // What follows a close is nothing.
                State::Closed(_) => break,
            }
        }
        Ok(to)
    }

    /// The payload of the newest ping, to be sent back.
    pub const fn take_pong(&mut self) -> Option<Vec<u8>> {
        self.pong.take()
    }

    /// The code of the client's close, once it has come.
    #[must_use]
    pub const fn closed(&self) -> Option<CloseCode> {
        match self.state {
            State::Closed(code) => Some(code),
            State::Header(_) | State::Data { .. } | State::Control { .. } => None,
        }
    }

    /// Whether the connection may end here without cutting a message.
    #[must_use]
    pub const fn is_at_border(&self) -> bool {
        matches!(self.state, State::Header(0) | State::Closed(_)) && !self.in_message
    }

    fn finish_header(&mut self, have: usize) -> Result<(), FrameError> {
        let header = &self.header[..have];
        let [first, second, ..] = *header else { return Ok(()) };
        let short_len = second & !MASKED;
        if have == 2 {
            self.check_kind(first, second)?;
        }
        let extra = match short_len {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        if have < 2 + extra + 4 {
            return Ok(());
        }
        let len = match &header[2..2 + extra] {
            [] => u64::from(short_len),
            long => long.iter().fold(0, |len, byte| len << 8 | u64::from(*byte)),
        };
        if len >> 63 != 0 {
            return Err(FrameError::Protocol);
        }
        self.mask.copy_from_slice(&header[2 + extra..]);
        self.begin_payload(first, len)
    }

    fn check_kind(&self, first: u8, second: u8) -> Result<(), FrameError> {
        let ends = first & FIN != 0;
        let right = match first & 0x0F {
            TEXT => return Err(FrameError::Text),
            BINARY => !self.in_message,
            CONTINUATION => self.in_message,
            CLOSE | PING | PONG => ends && usize::from(second & !MASKED) <= CONTROL_LEN_MAX,
            _ => false,
        };
        if right && first & RESERVED_BITS == 0 && second & MASKED != 0 { Ok(()) } else { Err(FrameError::Protocol) }
    }

    fn begin_payload(&mut self, first: u8, len: u64) -> Result<(), FrameError> {
        let opcode = first & 0x0F;
        if matches!(opcode, BINARY | CONTINUATION) {
            self.in_message = first & FIN == 0;
            self.state = if len == 0 { State::Header(0) } else { State::Data { left: len, at: 0 } };
            return Ok(());
        }
        // Checked: no control frame is longer than its buffer.
        self.state = State::Control { opcode, have: 0, len: usize::try_from(len).unwrap_or(CONTROL_LEN_MAX) };
        self.finish_control()
    }

    fn finish_control(&mut self) -> Result<(), FrameError> {
        let State::Control { opcode, have, len } = self.state else { return Ok(()) };
        if have < len {
            return Ok(());
        }
        let payload = &mut self.control[..len];
        unmask(payload, self.mask, 0);
        self.state = State::Header(0);
        match (opcode, &*payload) {
            (PING, payload) => self.pong = Some(payload.to_vec()),
            (CLOSE, []) => self.state = State::Closed(CloseCode::NONE),
            (CLOSE, [high, low, reason @ ..]) => {
                let code = u16::from_be_bytes([*high, *low]);
                let sendable = matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999);
                if !sendable || std::str::from_utf8(reason).is_err() {
                    return Err(FrameError::Protocol);
                }
                self.state = State::Closed(CloseCode(code));
            }
            (CLOSE, _) => return Err(FrameError::Protocol),
            // A pong nobody asked for.
            _ => {}
        }
        Ok(())
    }
}

fn unmask(bytes: &mut [u8], mask: [u8; 4], at: usize) {
    // Turned so that it begins with the next byte due; whole words are quick.
    let mask = [mask[at % 4], mask[(at + 1) % 4], mask[(at + 2) % 4], mask[(at + 3) % 4]];
    let mut words = bytes.chunks_exact_mut(4);
    for word in &mut words {
        word.iter_mut().zip(mask).for_each(|(byte, mask)| *byte ^= mask);
    }
    words.into_remainder().iter_mut().zip(mask).for_each(|(byte, mask)| *byte ^= mask);
}

/// The header of a binary message of one frame from the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageHeader {
    bytes: [u8; SERVER_HEADER_LEN_MAX],
    len: u8,
}

impl MessageHeader {
    /// The header before so many bytes.
    #[must_use]
    pub fn new(payload_len: usize) -> Self {
        let mut bytes = [0; SERVER_HEADER_LEN_MAX];
        bytes[0] = FIN | BINARY;
        let len = match payload_len {
            0..126 => {
                bytes[1] = payload_len as u8;
                2
            }
            126..=0xFFFF => {
                bytes[1] = 126;
                bytes[2..4].copy_from_slice(&(payload_len as u16).to_be_bytes());
                4
            }
            _ => {
                bytes[1] = 127;
                bytes[2..].copy_from_slice(&(payload_len as u64).to_be_bytes());
                10
            }
        };
        Self { bytes, len }
    }

    /// As on the wire.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

/// A pong with the bytes of a ping, which are at most [`CONTROL_LEN_MAX`].
#[must_use]
pub fn pong(payload: &[u8]) -> Vec<u8> {
    control(PONG, payload)
}

/// A close.
#[must_use]
pub fn close(code: CloseCode) -> Vec<u8> {
    if code == CloseCode::NONE { control(CLOSE, &[]) } else { control(CLOSE, &code.0.to_be_bytes()) }
}

fn control(opcode: u8, payload: &[u8]) -> Vec<u8> {
    debug_assert!(payload.len() <= CONTROL_LEN_MAX, "control frames are short");
    [&[FIN | opcode, payload.len() as u8], payload].concat()
}

#[cfg(test)]
mod tests;
