//! The server's side of a login.
//!
//! `ServerHandshake` (send [`ServerHandshake::greeting`], read ClientInfo) -> `PendingLogin` (the caller admits or drops it) ->
//! [`PendingLogin::accept`] -> bytes of ServerInfo and the [`ServerSession`].

use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::Step;
use crate::derp::decoder::{DecodeError, Decoder};
use crate::derp::encoder;
use crate::derp::frame::{Frame, FrameType};
use crate::derp::info::{ClientInfo, InfoError, ServerInfo};
use crate::derp::seal::{BoxKey, BoxNonce, OpenError, nonce_of};
use crate::key::{KEY_LEN, MeshKey, NodePrivate, NodePublic};
use crate::limits::DERP_CLIENT_INFO_LEN_DEFAULT;

/// A login is refused: close the connection without a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LoginError {
    /// Not a ClientInfo frame of an allowed length.
    #[error(transparent)]
    Frame(#[from] DecodeError),
    /// The client's key is all zero.
    #[error("the client's key is all zero")]
    ZeroKey,
    /// The client's key is of low order, so its box proves nothing.
    #[error("the client's key is of low order")]
    LowOrderKey,
    /// The client's key has its unused top bit set: a second name for another key, with which its login could be replayed.
    #[error("the client's key is not in canonical form")]
    NonCanonicalKey,
    /// The box was not sealed by that key for this server.
    #[error(transparent)]
    Box(#[from] OpenError),
    /// What the box holds is no ClientInfo.
    #[error(transparent)]
    Info(#[from] InfoError),
}

impl LoginError {
    /// Fixed label for counting.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Frame(e) => e.reason(),
            Self::ZeroKey => "zero_key",
            Self::LowOrderKey => "low_order_key",
            Self::NonCanonicalKey => "non_canonical_key",
            Self::Box(_) => "sealed_box",
            Self::Info(InfoError::Depth) => "login_json_depth",
            Self::Info(InfoError::Json { .. }) => "login_json",
        }
    }
}

/// The DERP mesh keys that give a login the rights of a mesh peer.
#[derive(Clone, Debug, Default)]
pub struct MeshKeys {
    /// Taken, and used for dialling.
    pub current: Option<MeshKey>,
    /// Still taken.
    pub previous: Option<MeshKey>,
}

impl MeshKeys {
    /// Whether `offered` is one of the keys. Takes the same time whichever matches, or none.
    #[must_use]
    pub fn matches(&self, offered: &MeshKey) -> bool {
        let one = |key: &Option<MeshKey>| key.as_ref().is_some_and(|key| key == offered);
        // Not `||`: that would end early.
        one(&self.current) | one(&self.previous)
    }
}

/// What all logins of one server share.
#[derive(Debug)]
pub struct ServerIdentity {
    private: NodePrivate,
    public: NodePublic,
    mesh_keys: MeshKeys,
    login_len_max: usize,
}

impl ServerIdentity {
    /// With the default limit of [`DERP_CLIENT_INFO_LEN_DEFAULT`] bytes on a ClientInfo frame.
    #[must_use]
    pub fn new(private: NodePrivate, mesh_keys: MeshKeys) -> Self {
        Self { public: private.public(), private, mesh_keys, login_len_max: DERP_CLIENT_INFO_LEN_DEFAULT }
    }

    /// Takes ClientInfo frames of up to `len` bytes.
    #[must_use]
    pub const fn with_login_len_max(mut self, len: usize) -> Self {
        self.login_len_max = len;
        self
    }

    /// The server's public key.
    #[must_use]
    pub const fn public(&self) -> NodePublic {
        self.public
    }
}

/// A proven login: what admission decides on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    /// The client's key, proven by its box.
    pub key: NodePublic,
    /// What the client says.
    pub info: ClientInfo,
    /// Of the box: seen twice with the same key, it is a replay.
    pub nonce: BoxNonce,
    /// Knows one of the mesh keys.
    pub is_mesh_peer: bool,
}

/// Waits for ClientInfo.
#[derive(Debug)]
pub struct ServerHandshake {
    identity: Arc<ServerIdentity>,
    decoder: Decoder,
}

impl ServerHandshake {
    /// Starts a login.
    #[must_use]
    pub fn new(identity: Arc<ServerIdentity>) -> Self {
        let decoder = Decoder::login(identity.login_len_max);
        Self { identity, decoder }
    }

    /// The ServerKey frame: the first thing to send, after the HTTP answer if there is one.
    #[must_use]
    pub fn greeting(&self) -> Bytes {
        encoder::to_bytes(&Frame::ServerKey { key: self.identity.public })
    }

    /// Reads ClientInfo off the front of `buf`. Bytes after it stay for the session.
    ///
    /// # Errors
    /// [`LoginError`].
    pub fn read_login(mut self, buf: &mut BytesMut) -> Result<Step<Self, PendingLogin>, LoginError> {
        match self.decoder.decode(buf)? {
            None => Ok(Step::More(self)),
            Some(Frame::ClientInfo { key, sealed }) => self.open(key, &sealed).map(Step::Done),
            Some(other) => {
                let frame_type = other.frame_type() as u8;
                Err(DecodeError::Unexpected { frame_type, expected: FrameType::ClientInfo }.into())
            }
        }
    }

    fn open(self, key: NodePublic, sealed: &[u8]) -> Result<PendingLogin, LoginError> {
        if key.is_zero() {
            return Err(LoginError::ZeroKey);
        }
        if key.as_bytes()[KEY_LEN - 1] & 0x80 != 0 {
            return Err(LoginError::NonCanonicalKey);
        }
        if key.is_low_order() {
            return Err(LoginError::LowOrderKey);
        }
        let box_key = BoxKey::new(&self.identity.private, &key);
        let nonce = nonce_of(sealed).ok_or(OpenError)?;
        let info = ClientInfo::from_json(&box_key.open(sealed)?)?;
        let is_mesh_peer = info.mesh_key.as_ref().is_some_and(|offered| self.identity.mesh_keys.matches(offered));
        Ok(PendingLogin { login: Login { key, info, nonce, is_mesh_peer }, box_key })
    }
}

/// A proven login that waits for admission. Dropping it (and the connection) refuses it.
#[derive(Debug)]
pub struct PendingLogin {
    login: Login,
    box_key: BoxKey,
}

impl PendingLogin {
    /// Who wants in.
    #[must_use]
    pub const fn login(&self) -> &Login {
        &self.login
    }

    /// Lets the client in: the ServerInfo frame, which must be the next that is sent, and the session.
    #[must_use]
    pub fn accept(self, info: &ServerInfo) -> (Bytes, ServerSession) {
        let answer = encoder::to_bytes(&Frame::ServerInfo { sealed: self.box_key.seal(&info.to_json()) });
        (answer, ServerSession { login: self.login, decoder: Decoder::server(), box_key: self.box_key })
    }
}

/// A logged-in client as the server sees it.
#[derive(Debug)]
pub struct ServerSession {
    /// Who it is.
    pub login: Login,
    /// Decodes what follows the login.
    pub decoder: Decoder,
    box_key: BoxKey,
}

impl ServerSession {
    /// A later ServerInfo frame, with which the token bucket can be changed.
    #[must_use]
    pub fn server_info(&self, info: &ServerInfo) -> Bytes {
        encoder::to_bytes(&Frame::ServerInfo { sealed: self.box_key.seal(&info.to_json()) })
    }
}
