//! The client's side of a login.
//!
//! `ClientHandshake` -> (with fast start at once, else after the greeting) ClientInfo bytes and `AwaitServerInfo` ->
//! ServerInfo and the [`ClientSession`].

use bytes::{Bytes, BytesMut};

use super::Step;
use crate::derp::decoder::{DecodeError, Decoder};
use crate::derp::encoder;
use crate::derp::frame::{Frame, FrameType};
use crate::derp::info::{ClientInfo, InfoError, ServerInfo};
use crate::derp::seal::{BoxKey, OpenError};
use crate::key::{NodePrivate, NodePublic};
use crate::limits::DERP_SERVER_INFO_LEN_MAX;

/// The server's side of the login is not DERP: close the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HandshakeError {
    /// Not the frame that has to come, or of a wrong length.
    #[error(transparent)]
    Frame(#[from] DecodeError),
    /// The server's key is of low order: everybody could read the login.
    #[error("the server's key is of low order")]
    LowOrderKey,
    /// The server is not the one that the login was sealed for.
    #[error("the server has the key {shown}, not {expected}")]
    OtherServerKey {
        /// Known beforehand, or from its MetaCert.
        expected: NodePublic,
        /// What it says.
        shown: NodePublic,
    },
    /// ServerInfo was not sealed by the server for us.
    #[error(transparent)]
    Box(#[from] OpenError),
    /// What the box holds is no ServerInfo.
    #[error(transparent)]
    Info(#[from] InfoError),
}

impl HandshakeError {
    /// Fixed label for counting.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Frame(e) => e.reason(),
            Self::LowOrderKey => "low_order_key",
            Self::OtherServerKey { .. } => "other_server_key",
            Self::Box(_) => "sealed_box",
            Self::Info(_) => "server_info_json",
        }
    }
}

/// Does not know the server's key yet.
#[derive(Debug)]
pub struct ClientHandshake {
    private: NodePrivate,
    info: ClientInfo,
    decoder: Decoder,
}

impl ClientHandshake {
    /// Starts a login as `private`.
    #[must_use]
    pub const fn new(private: NodePrivate, info: ClientInfo) -> Self {
        Self { private, info, decoder: Decoder::greeting() }
    }

    /// Fast start (`derp.md` section 4.3): the server's key is known, in general from its MetaCert. The bytes go right behind the HTTP
    /// request. The greeting, which comes nevertheless, must name the same key.
    ///
    /// # Errors
    /// [`HandshakeError::LowOrderKey`].
    pub fn fast_start(self, server_key: NodePublic) -> Result<(Bytes, AwaitServerInfo), HandshakeError> {
        self.log_in(server_key, Some(Decoder::greeting()))
    }

    /// Reads the greeting off the front of `buf`; then the bytes are to be sent.
    ///
    /// # Errors
    /// [`HandshakeError`].
    pub fn read_greeting(mut self, buf: &mut BytesMut) -> Result<Step<Self, (Bytes, AwaitServerInfo)>, HandshakeError> {
        match self.decoder.decode(buf)? {
            None => Ok(Step::More(self)),
            Some(Frame::ServerKey { key }) => self.log_in(key, None).map(Step::Done),
            Some(other) => Err(unexpected(&other, FrameType::ServerKey)),
        }
    }

    fn log_in(self, server_key: NodePublic, greeting: Option<Decoder>) -> Result<(Bytes, AwaitServerInfo), HandshakeError> {
        if server_key.is_low_order() {
            return Err(HandshakeError::LowOrderKey);
        }
        let box_key = BoxKey::new(&self.private, &server_key);
        let login = Frame::ClientInfo { key: self.private.public(), sealed: box_key.seal(&self.info.to_json()) };
        Ok((encoder::to_bytes(&login), AwaitServerInfo { server_key, box_key, greeting, decoder: Decoder::client() }))
    }
}

fn unexpected(frame: &Frame, expected: FrameType) -> HandshakeError {
    DecodeError::Unexpected { frame_type: frame.frame_type() as u8, expected }.into()
}

/// Has sent its login.
#[derive(Debug)]
pub struct AwaitServerInfo {
    server_key: NodePublic,
    box_key: BoxKey,
    /// The greeting is to come.
    greeting: Option<Decoder>,
    decoder: Decoder,
}

impl AwaitServerInfo {
    /// Reads ServerInfo off the front of `buf`; bytes after it stay for the session. With fast start the greeting comes before it.
    ///
    /// # Errors
    /// [`HandshakeError`].
    pub fn read_server_info(mut self, buf: &mut BytesMut) -> Result<Step<Self, (ServerInfo, ClientSession)>, HandshakeError> {
        if self.greeting.is_some() && !self.read_late_greeting(buf)? {
            return Ok(Step::More(self));
        }
        let Some(frame) = self.decoder.decode(buf)? else {
            return Ok(Step::More(self));
        };
        let Frame::ServerInfo { sealed } = frame else {
            return Err(unexpected(&frame, FrameType::ServerInfo));
        };
        let session = ClientSession { server_key: self.server_key, decoder: self.decoder, box_key: self.box_key };
        let info = session.open_server_info(&sealed)?;
        Ok(Step::Done((info, session)))
    }

    /// `false` if more bytes are needed. A server that leaves the greeting out is as good.
    fn read_late_greeting(&mut self, buf: &mut BytesMut) -> Result<bool, HandshakeError> {
        let (Some(first), Some(greeting)) = (buf.first(), &mut self.greeting) else {
            return Ok(false);
        };
        if *first == FrameType::ServerKey as u8 {
            match greeting.decode(buf)? {
                Some(Frame::ServerKey { key }) if key != self.server_key => {
                    return Err(HandshakeError::OtherServerKey { expected: self.server_key, shown: key });
                }
                Some(_) => {}
                None => return Ok(false),
            }
        }
        self.greeting = None;
        Ok(true)
    }
}

/// A logged-in connection as the client sees it.
#[derive(Debug)]
pub struct ClientSession {
    /// The server's key.
    pub server_key: NodePublic,
    /// Decodes what follows ServerInfo.
    pub decoder: Decoder,
    box_key: BoxKey,
}

impl ClientSession {
    /// Opens a ServerInfo frame; servers may send it again.
    ///
    /// # Errors
    /// [`HandshakeError`].
    pub fn open_server_info(&self, sealed: &[u8]) -> Result<ServerInfo, HandshakeError> {
        if sealed.len() > DERP_SERVER_INFO_LEN_MAX {
            let len = u32::try_from(sealed.len()).unwrap_or(u32::MAX);
            return Err(DecodeError::Length { frame_type: FrameType::ServerInfo, len }.into());
        }
        Ok(ServerInfo::from_json(&self.box_key.open(sealed)?)?)
    }
}
