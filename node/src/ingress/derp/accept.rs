//! Takes an upgraded HTTP connection, drives the login, registers the client and hands it to the packet pump.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use bytes::BytesMut;
use causeway_proto::derp::handshake::Step;
use causeway_proto::derp::handshake::server::{Login, LoginError, PendingLogin, ServerHandshake, ServerSession};
use causeway_proto::derp::info::ServerInfo;
use causeway_proto::derp::upgrade::switching_protocols;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::{DerpServer, connection};
use crate::admission::{Applicant, Decision};
use crate::clients::{ClientFacts, RegisterError, Registration};
use crate::limits::bucket::{Rate, TokenBucket};
use crate::limits::connections::{Permit, Refusal};

/// How DERP begins on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// With a 101 response, written here in one flush with the first frame.
    Upgrade,
    /// `Derp-Fast-Start: 1`: without a response.
    FastStart,
    /// Inside a WebSocket, whose handshake has been answered.
    WebSocket,
}

/// A connection whose HTTP request asked for DERP.
///
/// The socket below `io` must have been registered with the packet runtime's reactor (`TcpStream::from_std` inside
/// `Handle::enter`), because the connection lives there after login.
#[derive(Debug)]
pub struct UpgradedStream<Io> {
    /// TLS, plain or WebSocket stream, TCP_NODELAY set.
    pub io: Io,
    /// Bytes read beyond the blank line that ends the request's head.
    pub buffered: BytesMut,
    /// The client's address.
    pub remote: SocketAddr,
    /// What the kernel calls the socket below; none if it does not say.
    pub socket: Option<u64>,
    /// What has been answered, and what will be.
    pub opening: Opening,
    /// Value of a non-empty `Ideal-Node` header.
    pub ideal_node: Option<String>,
    /// The connection's place inside the limits.
    pub permit: Permit,
}

/// Why a connection was closed before its login was answered.
#[derive(Debug, thiserror::Error)]
enum AcceptError {
    #[error("login took too long")]
    Timeout,
    #[error("closed to make room for others")]
    Evicted,
    #[error("the client closed before login")]
    Eof,
    #[error(transparent)]
    Login(#[from] LoginError),
    #[error("the login was seen before")]
    Replay,
    #[error("too many wrong mesh keys of this source")]
    MeshTries,
    #[error("admission denied")]
    Denied,
    #[error(transparent)]
    Limit(#[from] Refusal),
    #[error(transparent)]
    Register(#[from] RegisterError),
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl AcceptError {
    const fn reason(&self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Evicted => "evicted",
            Self::Eof => "eof",
            Self::Login(error) => error.reason(),
            Self::Replay => "replay",
            Self::MeshTries => "mesh_tries",
            Self::Denied => "denied",
            Self::Limit(refusal) => refusal.label(),
            Self::Register(RegisterError::OwnerLogFull) => "owner_log_full",
            Self::Io(_) => "io",
        }
    }
}

/// Room offered to a read during login.
const LOGIN_READ_ROOM: usize = 2 * 1024;

impl DerpServer {
    /// Logs the client in within its deadline and hands the connection to the packet runtime. Returns when that is done; failures
    /// are counted and close the connection.
    pub async fn serve<Io>(self: &Arc<Self>, stream: UpgradedStream<Io>)
    where
        Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        self.metrics.accepted(stream.opening);
        let remote = stream.remote;
        if let Err(error) = self.accept(stream).await {
            self.metrics.refused(error.reason());
            tracing::debug!(%remote, %error, "DERP login refused");
        }
    }

    async fn accept<Io>(self: &Arc<Self>, mut stream: UpgradedStream<Io>) -> Result<(), AcceptError>
    where
        Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let deadline = stream.permit.login_deadline().into();
        let evicted = stream.permit.evicted();
        let (session, registration) = tokio::select! {
            () = self.parts.cancel.cancelled() => return Err(AcceptError::Eof),
            () = evicted.cancelled() => return Err(AcceptError::Evicted),
            // Dropped with whatever it has registered when one of the others comes first.
            login = tokio::time::timeout_at(deadline, self.log_in(&mut stream)) => login.map_err(|_| AcceptError::Timeout)??,
        };
        self.metrics.logged_in();
        connection::start(self, stream.io, stream.buffered, session, registration, stream.permit);
        Ok(())
    }

    async fn log_in<Io>(&self, stream: &mut UpgradedStream<Io>) -> Result<(ServerSession, Registration), AcceptError>
    where
        Io: AsyncRead + AsyncWrite + Unpin,
    {
        let handshake = ServerHandshake::new(Arc::clone(&self.parts.identity));
        let mut greeting = BytesMut::new();
        if stream.opening == Opening::Upgrade {
            greeting.extend_from_slice(&switching_protocols(&self.public_key()));
        }
        greeting.extend_from_slice(&handshake.greeting());
        stream.io.write_all(&greeting).await?;
        stream.io.flush().await?;

        let pending = read_login(handshake, &mut stream.io, &mut stream.buffered).await?;
        let login = pending.login();
        let applicant = Applicant { key: login.key, source: stream.remote.ip().to_canonical() };
        let is_mesh_peer = self.check(login, applicant.source)?;
        let decided_at = self.parts.admission.generation();
        if !is_mesh_peer {
            self.admit(applicant).await?;
        }
        stream.permit.authenticate()?;
        let facts = ClientFacts {
            key: login.key,
            remote: stream.remote,
            is_mesh_peer,
            is_prober: login.info.is_prober,
            is_not_ideal: stream.ideal_node.is_some(),
            can_ack_pings: login.info.can_ack_pings,
            socket: stream.socket,
        };
        // Registered before the answer, so that whoever has the answer can be reached.
        let registration = self.parts.registry.register(facts, self.parts.cancel.child_token(), now())?;
        if !is_mesh_peer && self.parts.admission.generation() != decided_at {
            // What changed meanwhile was not looked at for a connection that was not there yet.
            self.admit(applicant).await?;
        }
        let info = if is_mesh_peer { ServerInfo::current() } else { self.parts.registry.limits().rates.server_info() };
        let (answer, session) = pending.accept(&info);
        stream.io.write_all(&answer).await?;
        stream.io.flush().await?;
        Ok((session, registration))
    }

    /// Decides on a proven login; whether it has the rights of a mesh peer.
    fn check(&self, login: &Login, source: IpAddr) -> Result<bool, AcceptError> {
        if !self.replays.is_fresh(&login.key, &login.nonce) {
            return Err(AcceptError::Replay);
        }
        let is_mesh_peer = login.is_mesh_peer && self.parts.mesh_sources.iter().any(|network| network.contains(source));
        if login.info.mesh_key.is_some() && !is_mesh_peer {
            self.metrics.mesh_tries_refused.inc();
            if !self.mesh_tries.may_try(source, now()) {
                return Err(AcceptError::MeshTries);
            }
        }
        Ok(is_mesh_peer)
    }

    async fn admit(&self, applicant: Applicant) -> Result<(), AcceptError> {
        match self.parts.admission.decide(applicant).await {
            Decision::Allow => Ok(()),
            Decision::Deny(_) => Err(AcceptError::Denied),
        }
    }
}

async fn read_login<Io: AsyncRead + Unpin>(
    mut handshake: ServerHandshake,
    io: &mut Io,
    buffered: &mut BytesMut,
) -> Result<PendingLogin, AcceptError> {
    loop {
        match handshake.read_login(buffered)? {
            Step::Done(pending) => return Ok(pending),
            Step::More(again) => handshake = again,
        }
        // The handshake refuses a long frame by its length, so the buffer stays below it and one read.
        buffered.reserve(LOGIN_READ_ROOM);
        if io.read_buf(buffered).await? == 0 {
            return Err(AcceptError::Eof);
        }
    }
}

/// Wrong mesh keys that one source may offer.
const MESH_TRIES: Rate = Rate { per_second: 0, burst: 5 };

/// How long tries are remembered: five per minute and source.
const MESH_TRIES_PERIOD: std::time::Duration = std::time::Duration::from_secs(60);

/// Sources remembered; when full, every further one is refused until the period ends.
const MESH_TRIES_SOURCES_MAX: usize = 4_096;

/// Wrong mesh keys by source, forgotten each minute.
#[derive(Debug, Default)]
pub(super) struct MeshTries {
    period: Mutex<(Option<Instant>, HashMap<IpAddr, TokenBucket>)>,
}

impl MeshTries {
    fn may_try(&self, source: IpAddr, now: Instant) -> bool {
        let mut period = self.period.lock();
        let (since, tries) = &mut *period;
        if since.is_none_or(|since| now.saturating_duration_since(since) >= MESH_TRIES_PERIOD) {
            *since = Some(now);
            tries.clear();
        }
        if tries.len() >= MESH_TRIES_SOURCES_MAX && !tries.contains_key(&source) {
            return false;
        }
        tries.entry(source).or_insert_with(|| TokenBucket::new(MESH_TRIES, now)).take(1, now)
    }
}

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
