//! From an endpoint to a session: the stream, TLS, the upgrade, the login and its answer (`derp.md` section 4).

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use causeway_proto::derp::handshake::Step;
use causeway_proto::derp::handshake::client::{AwaitServerInfo, ClientHandshake, ClientSession, HandshakeError};
use causeway_proto::derp::info::{ClientInfo, ServerInfo};
use causeway_proto::derp::meta_cert::MetaCert;
use causeway_proto::derp::upgrade::{ResponseHead, UpgradeRequest};
use causeway_proto::key::{NodePrivate, NodePublic};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, timeout_at};

use crate::dial::Route;
use crate::endpoint::Endpoint;
use crate::error::{ConfigError, ConnectError, Phase};
use crate::shared::ConnectionInfo;
use crate::transport::Transport;

/// Time for everything up to the answer to the login (`derp.md` section 4.7).
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Room made for one read while logging in: answers are a few hundred bytes.
const LOGIN_READ_LEN: usize = 2048;

/// What a login says, and how the server is reached; the same for every node that is tried.
#[derive(Clone, Debug)]
pub(crate) struct Login {
    pub(crate) key: NodePrivate,
    pub(crate) info: ClientInfo,
    pub(crate) route: Route,
    /// The only key that the server may have.
    pub(crate) server_key: Option<NodePublic>,
    pub(crate) preferred: bool,
    /// Asks for all clients of the node right after the login; needs the mesh key.
    pub(crate) watch: bool,
}

/// A login that was answered, in its parts: for a relay that drives the frames itself. Nothing beyond the login was sent.
#[derive(Debug)]
pub struct LoggedIn {
    pub(crate) transport: Transport,
    /// Received behind the answer.
    pub(crate) buffer: BytesMut,
    pub(crate) session: ClientSession,
    pub(crate) info: ConnectionInfo,
}

impl LoggedIn {
    /// What is known of the connection.
    #[must_use]
    pub const fn info(&self) -> &ConnectionInfo {
        &self.info
    }

    /// The byte stream, what was received already and not decoded yet, and what decodes it.
    #[must_use]
    pub fn into_parts(self) -> (impl AsyncRead + AsyncWrite + Unpin + Send + 'static, BytesMut, ClientSession) {
        (self.transport, self.buffer, self.session)
    }
}

/// Connects to `endpoint` and logs in; waits for the server's answer, all of it until `deadline`. `ideal_node` names the node that would
/// have been better.
pub(crate) async fn log_in(
    endpoint: &Endpoint,
    ideal_node: Option<&str>,
    login: &Login,
    deadline: Instant,
) -> Result<LoggedIn, ConnectError> {
    let reached = within(deadline, Phase::Dial, login.route.reach(endpoint)).await?;
    let (addr, local_addr) = (reached.remote_addr, reached.local_addr);
    let tls = Transport::new(reached.socket, endpoint, login.route.trust.as_ref());
    let (transport, meta) = within(deadline, Phase::Tls, tls).await?;

    let known_key = known_key(addr, login.server_key, meta)?;
    let mut greeter = Greeter { transport, addr, deadline, buffer: BytesMut::new() };
    let (server_info, session) = greeter.log_in(endpoint, ideal_node, login, known_key).await?;
    let info = ConnectionInfo {
        node: endpoint.name.clone(),
        remote_addr: addr,
        local_addr,
        server_key: session.server_key,
        fast_start: known_key.is_some(),
        server_info,
    };
    Ok(LoggedIn { transport: greeter.transport, buffer: greeter.buffer, session, info })
}

/// The server's key, if it is known before the server says it: expected, or from its MetaCert. They must not differ.
fn known_key(addr: SocketAddr, expected: Option<NodePublic>, meta: Option<MetaCert>) -> Result<Option<NodePublic>, ConnectError> {
    let shown = meta.map(|meta| meta.server_key);
    match (expected, shown) {
        (Some(expected), Some(shown)) if expected != shown => {
            Err(ConnectError::Handshake { addr, source: HandshakeError::OtherServerKey { expected, shown } })
        }
        _ => Ok(expected.or(shown)),
    }
}

async fn within<T>(
    deadline: Instant,
    phase: Phase,
    step: impl Future<Output = Result<T, ConnectError>>,
) -> Result<T, ConnectError> {
    timeout_at(deadline, step).await.unwrap_or(Err(ConnectError::Timeout { limit: CONNECT_TIMEOUT, phase }))
}

/// Upgrade and login over a fresh byte stream.
struct Greeter {
    transport: Transport,
    addr: SocketAddr,
    deadline: Instant,
    /// Received and not used yet.
    buffer: BytesMut,
}

impl Greeter {
    async fn log_in(
        &mut self,
        endpoint: &Endpoint,
        ideal_node: Option<&str>,
        login: &Login,
        known_key: Option<NodePublic>,
    ) -> Result<(ServerInfo, ClientSession), ConnectError> {
        let host = endpoint.host_header();
        let request = UpgradeRequest { host: &host, fast_start: known_key.is_some(), ideal_node }
            .to_bytes()
            .map_err(|_| ConfigError::ServerName(endpoint.host_name.clone()))?;
        let handshake = ClientHandshake::new(login.key.clone(), login.info.clone());
        let waiting = match known_key {
            Some(server_key) => {
                let (client_info, waiting) = handshake.fast_start(server_key).map_err(|e| self.handshake(e))?;
                // One write, one TLS record: the server reads the login together with the request.
                self.send(Phase::Upgrade, &[&request[..], &client_info[..]].concat()).await?;
                waiting
            }
            None => {
                self.send(Phase::Upgrade, &request).await?;
                self.read_switch().await?;
                let (client_info, waiting) = self.read_greeting(handshake).await?;
                self.send(Phase::Login, &client_info).await?;
                waiting
            }
        };
        self.read_server_info(waiting).await
    }

    async fn read_switch(&mut self) -> Result<(), ConnectError> {
        loop {
            match ResponseHead::take(&mut self.buffer) {
                Ok(Some(head)) if head.switched() => return Ok(()),
                Ok(Some(head)) => return Err(self.upgrade(format!("HTTP status {}", head.status))),
                Ok(None) => self.receive(Phase::Upgrade).await?,
                Err(e) => return Err(self.upgrade(e.to_string())),
            }
        }
    }

    async fn read_greeting(&mut self, mut handshake: ClientHandshake) -> Result<(Bytes, AwaitServerInfo), ConnectError> {
        loop {
            match handshake.read_greeting(&mut self.buffer).map_err(|e| self.handshake(e))? {
                Step::Done(done) => return Ok(done),
                Step::More(again) => handshake = again,
            }
            self.receive(Phase::Login).await?;
        }
    }

    async fn read_server_info(&mut self, mut waiting: AwaitServerInfo) -> Result<(ServerInfo, ClientSession), ConnectError> {
        loop {
            match waiting.read_server_info(&mut self.buffer).map_err(|e| self.handshake(e))? {
                Step::Done(done) => return Ok(done),
                Step::More(again) => waiting = again,
            }
            self.receive(Phase::Login).await?;
        }
    }

    async fn send(&mut self, phase: Phase, bytes: &[u8]) -> Result<(), ConnectError> {
        let addr = self.addr;
        let transport = &mut self.transport;
        let write = async {
            transport.write_all(bytes).await?;
            transport.flush().await
        };
        within(self.deadline, phase, async { write.await.map_err(|source| ConnectError::Io { addr, phase, source }) }).await
    }

    /// Reads something; every phase bounds what it takes before it asks for more.
    async fn receive(&mut self, phase: Phase) -> Result<(), ConnectError> {
        self.buffer.reserve(LOGIN_READ_LEN);
        let addr = self.addr;
        let read = self.transport.read_buf(&mut self.buffer);
        within(self.deadline, phase, async {
            match read.await {
                Ok(0) => Err(ConnectError::Closed { addr, phase }),
                Ok(_) => Ok(()),
                // A server that refuses a client often resets the connection, since it has not read all of the login.
                Err(e) if is_hang_up(&e) => Err(ConnectError::Closed { addr, phase }),
                Err(source) => Err(ConnectError::Io { addr, phase, source }),
            }
        })
        .await
    }

    const fn handshake(&self, source: HandshakeError) -> ConnectError {
        ConnectError::Handshake { addr: self.addr, source }
    }

    const fn upgrade(&self, why: String) -> ConnectError {
        ConnectError::Upgrade { addr: self.addr, why }
    }
}

/// The other side is gone, politely or not. Without TLS's own goodbye a closed socket is an unexpected end.
pub(crate) fn is_hang_up(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
}
