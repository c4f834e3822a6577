//! One DERP connection: TCP, TLS, upgrade, login, then a sender and a receiver that work apart from each other.
//!
//! The sender side may be cloned; a writer task owns the socket's write half. The receiver decodes in the caller's task: without a task
//! that calls [`Receiver::recv`], pings are not answered and a dead connection is not noticed.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use causeway_proto::derp::encoder::{PACKET_HEADER_LEN, forward_packet_header, send_packet_header, to_bytes};
use causeway_proto::derp::frame::{Frame, PeerGoneReason, PingData, PresentFlags};
use causeway_proto::derp::handshake::Step;
use causeway_proto::derp::handshake::client::{AwaitServerInfo, ClientHandshake, ClientSession, HandshakeError};
use causeway_proto::derp::info::{ClientInfo, ServerInfo};
use causeway_proto::derp::meta_cert::MetaCert;
use causeway_proto::derp::ping::{PINGS_OUTSTANDING_MAX, PONG_TIMEOUT};
use causeway_proto::derp::upgrade::{ResponseHead, UpgradeRequest};
use causeway_proto::key::{NodePrivate, NodePublic};
use causeway_proto::limits::PACKET_LEN_MAX;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::oneshot;
use tokio::time::{Instant, Sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::dial::{Endpoint, Transport, dial};
use crate::error::{ConfigError, ConnectError, ConnectionError, Phase, PingError, SendError};
use crate::outbox::{Outbox, Refused};
use crate::rate::TokenBucket;
use crate::tls::Trust;

/// Time for everything up to the answer to the login (`derp.md` section 4.7).
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection on which not a byte came for so long is dead; servers send a keep-alive at least every 65 s.
pub const READ_TIMEOUT: Duration = Duration::from_secs(120);

/// A connection whose socket takes no byte for so long is dead.
pub const WRITE_STALL_MAX: Duration = Duration::from_secs(10);

/// Time for the last bytes of a connection that we close.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(1);

/// Room made for one read while logging in: answers are a few hundred bytes.
const LOGIN_READ_LEN: usize = 2048;

/// Room made for one read of a session.
const READ_LEN: usize = 32 * 1024;

/// With less room than this in the buffer, more is made before reading.
const READ_LEN_MIN: usize = 4 * 1024;

/// What the server tells a client.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A packet. Its payload is a slice of the read buffer: copy it if it is kept for long.
    Packet {
        /// Sender.
        src: NodePublic,
        /// At most 65,536 bytes from a stock server.
        payload: Bytes,
    },
    /// Sign of life.
    KeepAlive,
    /// A peer left, or was not here when we sent to it.
    PeerGone {
        /// The peer.
        peer: NodePublic,
        /// Which of the two.
        reason: PeerGoneReason,
    },
    /// A key is connected; only after [`Sender::watch_connections`].
    PeerPresent {
        /// The key.
        peer: NodePublic,
        /// Its address, if the server tells.
        addr: Option<SocketAddr>,
        /// What kind of client it is.
        flags: PresentFlags,
    },
    /// The server asked for a sign of life; it has been answered.
    Ping {
        /// Its bytes.
        data: PingData,
    },
    /// A pong that answers no [`Sender::ping`] of ours.
    Pong {
        /// Its bytes.
        data: PingData,
    },
    /// A problem to show to the user; empty: it is over.
    Health {
        /// The problem.
        problem: String,
    },
    /// The server is about to restart.
    Restarting {
        /// Wait so long before connecting again.
        reconnect_in: Duration,
        /// Then keep trying for so long before calling it a failure.
        try_for: Duration,
    },
    /// The server changed what it said at login. Its rate is obeyed already.
    ServerInfo(ServerInfo),
}

/// What is known of an established connection.
#[derive(Clone, Debug)]
pub struct ConnectionInfo {
    /// The node's name in the map, or the address that was dialled.
    pub node: String,
    /// The server's address.
    pub remote_addr: SocketAddr,
    /// Ours.
    pub local_addr: SocketAddr,
    /// The server's key.
    pub server_key: NodePublic,
    /// The server's key came from the TLS handshake, which saved a round trip (`derp.md` section 4.3).
    pub fast_start: bool,
    /// What the server answered to the login.
    pub server_info: ServerInfo,
}

/// What a login says; the same for every node that is tried.
#[derive(Clone, Debug)]
pub(crate) struct Login {
    pub(crate) key: NodePrivate,
    pub(crate) info: ClientInfo,
    /// `None`: the system's roots.
    pub(crate) trust: Option<Trust>,
    pub(crate) preferred: bool,
    /// Asks for all clients of the node right after the login; needs the mesh key.
    pub(crate) watch: bool,
}

/// One established DERP connection.
///
/// Ends when it is closed, when its receiver is dropped, when the token it was started with is cancelled, or when the network or the
/// server ends it. It never reconnects: see [`Client`](crate::Client).
#[derive(Debug)]
pub struct Connection {
    sender: Sender,
    receiver: Receiver,
}

impl Connection {
    /// Connects to `endpoint` and logs in; waits for the server's answer, all of it until `deadline`. The writer runs on `tasks` until
    /// the connection ends. `ideal_node` names the node that would have been better.
    pub(crate) async fn open(
        endpoint: &Endpoint,
        ideal_node: Option<&str>,
        login: &Login,
        deadline: Instant,
        tasks: &TaskTracker,
        cancel: &CancellationToken,
    ) -> Result<Self, ConnectError> {
        let (stream, addr) = within(deadline, Phase::Dial, dial(endpoint)).await?;
        let local_addr = stream.local_addr().map_err(|source| ConnectError::Io { addr, phase: Phase::Dial, source })?;
        let tls = Transport::new(stream, endpoint, login.trust.as_ref());
        let (transport, meta) = within(deadline, Phase::Tls, tls).await?;

        let mut greeter = Greeter { transport, addr, deadline, buffer: BytesMut::new() };
        let (server_info, session) = greeter.log_in(endpoint, ideal_node, login, meta).await?;
        let info = ConnectionInfo {
            node: endpoint.name.clone(),
            remote_addr: addr,
            local_addr,
            server_key: session.server_key,
            fast_start: meta.is_some(),
            server_info,
        };
        Ok(Self::start(greeter.transport, greeter.buffer, session, info, login, tasks, cancel.child_token()))
    }

    fn start(
        transport: Transport,
        buffer: BytesMut,
        session: ClientSession,
        info: ConnectionInfo,
        login: &Login,
        tasks: &TaskTracker,
        over: CancellationToken,
    ) -> Self {
        let (read, write) = tokio::io::split(transport);
        let shared = Arc::new(Shared {
            outbox: Outbox::default(),
            pings: Mutex::default(),
            is_mesh_peer: login.info.mesh_key.is_some(),
            over,
            drained: CancellationToken::new(),
            info,
        });
        shared.outbox.set_limit(limit_of(&shared.info.server_info));
        let sender = Sender { shared: Arc::clone(&shared) };
        // The outbox is empty: there is room.
        if login.preferred {
            sender.note_preferred(true).ok();
        }
        if login.watch {
            sender.watch_connections().ok();
        }
        tasks.spawn(write_batches(Arc::clone(&shared), write));
        let silence = Box::pin(tokio::time::sleep(READ_TIMEOUT));
        Self { sender, receiver: Receiver { shared, session, read, buffer, silence, last_read: Instant::now() } }
    }

    /// What is known of the connection.
    #[must_use]
    pub fn info(&self) -> &ConnectionInfo {
        self.sender.info()
    }

    /// The sending side.
    #[must_use]
    pub const fn sender(&self) -> &Sender {
        &self.sender
    }

    /// Receives the next event: see [`Receiver::recv`].
    ///
    /// # Errors
    /// Why the connection is over.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn recv(&mut self) -> Result<Event, Arc<ConnectionError>> {
        self.receiver.recv().await
    }

    /// The two sides, for different tasks.
    #[must_use]
    pub fn split(self) -> (Sender, Receiver) {
        (self.sender, self.receiver)
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
        meta: Option<MetaCert>,
    ) -> Result<(ServerInfo, ClientSession), ConnectError> {
        let host = endpoint.host_header();
        let request = UpgradeRequest { host: &host, fast_start: meta.is_some(), ideal_node }
            .to_bytes()
            .map_err(|_| ConfigError::ServerName(endpoint.host_name.clone()))?;
        let handshake = ClientHandshake::new(login.key.clone(), login.info.clone());
        let waiting = match meta {
            Some(meta) => {
                let (client_info, waiting) = handshake.fast_start(meta.server_key).map_err(|e| self.handshake(e))?;
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
fn is_hang_up(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
}

fn limit_of(info: &ServerInfo) -> Option<TokenBucket> {
    let rate = u64::try_from(info.token_bucket_bytes_per_second).unwrap_or(0);
    let burst = u64::try_from(info.token_bucket_bytes_burst).unwrap_or(0);
    TokenBucket::new(rate, burst, Instant::now().into_std())
}

/// Pings of ours that wait for their pong; at most [`PINGS_OUTSTANDING_MAX`].
type Pings = HashMap<PingData, oneshot::Sender<()>>;

#[derive(Debug)]
struct Shared {
    outbox: Outbox,
    pings: Mutex<Pings>,
    is_mesh_peer: bool,
    /// Cancelled when the connection is over, or when whoever started it wants it to be.
    over: CancellationToken,
    /// Cancelled when the writer has ended.
    drained: CancellationToken,
    info: ConnectionInfo,
}

impl Shared {
    /// Ends the connection; the first reason stays, and is returned.
    fn end(&self, error: ConnectionError) -> Arc<ConnectionError> {
        let reason = self.outbox.close(Arc::new(error));
        self.over.cancel();
        self.pings.lock().unwrap_or_else(PoisonError::into_inner).clear();
        reason
    }

    fn refused(&self, refused: &Refused) -> SendError {
        match refused {
            Refused::Full => SendError::Full,
            Refused::OverRate => SendError::RateLimited,
            Refused::Closed => SendError::Closed(self.outbox.closed().unwrap_or_else(|| Arc::new(ConnectionError::ClosedByUs))),
        }
    }
}

/// The sending side of a connection. Clones share one queue, which is bounded in bytes.
#[derive(Clone, Debug)]
pub struct Sender {
    shared: Arc<Shared>,
}

impl Sender {
    /// What is known of the connection.
    #[must_use]
    pub fn info(&self) -> &ConnectionInfo {
        &self.shared.info
    }

    /// Queues a packet; waits while the queue is full.
    ///
    /// # Errors
    /// [`SendError::TooLong`] and [`SendError::RateLimited`]: the packet is dropped, the connection goes on.
    /// [`SendError::Closed`]: connect anew.
    ///
    /// # Cancel safety
    /// The packet is not queued unless it returns.
    pub async fn send(&self, dst: &NodePublic, payload: &[u8]) -> Result<(), SendError> {
        loop {
            let room = self.shared.outbox.room();
            match self.try_send(dst, payload) {
                Err(SendError::Full) => room.await,
                done => return done,
            }
        }
    }

    /// Queues a packet, or refuses it at once.
    ///
    /// # Errors
    /// As [`Self::send`], and [`SendError::Full`].
    pub fn try_send(&self, dst: &NodePublic, payload: &[u8]) -> Result<(), SendError> {
        check_len(payload)?;
        let header = send_packet_header(dst, payload.len());
        self.push(&header, payload, Some(PACKET_HEADER_LEN + payload.len()))
    }

    /// Queues a packet on behalf of another key, as mesh peers do; waits while the queue is full. The announced rate does not apply.
    ///
    /// # Errors
    /// As [`Self::send`], and [`SendError::NotMeshPeer`].
    ///
    /// # Cancel safety
    /// The packet is not queued unless it returns.
    pub async fn forward_packet(&self, src: &NodePublic, dst: &NodePublic, payload: &[u8]) -> Result<(), SendError> {
        self.need_mesh_key()?;
        check_len(payload)?;
        let header = forward_packet_header(src, dst, payload.len());
        loop {
            let room = self.shared.outbox.room();
            match self.push(&header, payload, None) {
                Err(SendError::Full) => room.await,
                done => return done,
            }
        }
    }

    fn push(&self, header: &[u8], payload: &[u8], cost: Option<usize>) -> Result<(), SendError> {
        self.shared.outbox.push_packet(header, payload, cost).map_err(|r| self.shared.refused(&r))
    }

    fn control(&self, frame: &Frame) -> Result<(), SendError> {
        self.shared.outbox.push_control(&to_bytes(frame)).map_err(|r| self.shared.refused(&r))
    }

    /// Sends a ping and waits for its pong; returns the round trip. Somebody has to call [`Receiver::recv`] meanwhile.
    ///
    /// # Errors
    /// [`PingError`]. A ping without pong says little about the connection by itself: servers answer one at a time.
    ///
    /// # Cancel safety
    /// A late pong is surfaced as [`Event::Pong`].
    pub async fn ping(&self) -> Result<Duration, PingError> {
        let data: PingData = rand::random();
        let (answered, answer) = oneshot::channel();
        {
            let mut pings = self.shared.pings.lock().unwrap_or_else(PoisonError::into_inner);
            // Forget those whose caller is gone.
            pings.retain(|_, waiting| !waiting.is_closed());
            if pings.len() >= PINGS_OUTSTANDING_MAX {
                return Err(SendError::TooManyPings(pings.len()).into());
            }
            pings.insert(data, answered);
        }
        let sent = Instant::now();
        self.control(&Frame::Ping { data })?;
        match timeout(PONG_TIMEOUT, answer).await {
            Ok(Ok(())) => Ok(sent.elapsed()),
            Ok(Err(_)) => Err(PingError::Send(self.shared.refused(&Refused::Closed))),
            Err(_) => Err(PingError::Timeout(PONG_TIMEOUT)),
        }
    }

    /// Tells the server whether this connection is the client's home.
    ///
    /// # Errors
    /// [`SendError::Full`], [`SendError::Closed`].
    pub fn note_preferred(&self, preferred: bool) -> Result<(), SendError> {
        self.control(&Frame::NotePreferred { preferred })
    }

    /// Asks for [`Event::PeerPresent`] and [`Event::PeerGone`] of all clients of this node, those that are there already included.
    ///
    /// # Errors
    /// [`SendError::NotMeshPeer`], [`SendError::Full`], [`SendError::Closed`].
    pub fn watch_connections(&self) -> Result<(), SendError> {
        self.need_mesh_key()?;
        self.control(&Frame::WatchConns)
    }

    /// Asks the server to close all connections of a key.
    ///
    /// # Errors
    /// [`SendError::NotMeshPeer`], [`SendError::Full`], [`SendError::Closed`].
    pub fn close_peer(&self, peer: &NodePublic) -> Result<(), SendError> {
        self.need_mesh_key()?;
        self.control(&Frame::ClosePeer { peer: *peer })
    }

    fn need_mesh_key(&self) -> Result<(), SendError> {
        if self.shared.is_mesh_peer { Ok(()) } else { Err(SendError::NotMeshPeer) }
    }

    /// Closes the connection once what is queued has been written, or could not be within a short time. Final.
    pub async fn close(&self) {
        self.shared.end(ConnectionError::ClosedByUs);
        self.shared.drained.cancelled().await;
    }

    /// Waits until the connection is over; returns why.
    pub async fn closed(&self) -> Arc<ConnectionError> {
        self.shared.over.cancelled().await;
        self.shared.end(ConnectionError::ClosedByUs)
    }
}

const fn check_len(payload: &[u8]) -> Result<(), SendError> {
    if payload.len() > PACKET_LEN_MAX {
        return Err(SendError::TooLong { len: payload.len(), max: PACKET_LEN_MAX });
    }
    Ok(())
}

/// Writes what senders queue, all that is there at a time, until the connection is over.
async fn write_batches(shared: Arc<Shared>, mut write: WriteHalf<Transport>) {
    let mut batch = BytesMut::new();
    let mut cancelled = false;
    loop {
        // `take` loses nothing when it is dropped.
        let taken = tokio::select! {
            biased;
            () = shared.over.cancelled(), if !cancelled => {
                cancelled = true;
                shared.end(ConnectionError::ClosedByUs);
                continue;
            }
            taken = shared.outbox.take(&mut batch) => taken,
        };
        if !taken {
            break;
        }
        let stall = if cancelled { SHUTDOWN_TIMEOUT } else { WRITE_STALL_MAX };
        if let Err(error) = write_batch(&mut write, &batch, stall).await {
            let reason = shared.end(error);
            tracing::debug!(node = %shared.info.node, %reason, "connection ended while writing");
            break;
        }
        batch.clear();
    }
    // The goodbye of TLS, if the socket still takes it; nothing depends on it.
    timeout(SHUTDOWN_TIMEOUT, write.shutdown()).await.ok();
    shared.drained.cancel();
}

async fn write_batch(write: &mut WriteHalf<Transport>, batch: &[u8], stall: Duration) -> Result<(), ConnectionError> {
    let mut written = 0;
    while written < batch.len() {
        match timeout(stall, write.write(&batch[written..])).await {
            Ok(Ok(0)) => return Err(ConnectionError::Write(io::ErrorKind::WriteZero.into())),
            Ok(Ok(n)) => written += n,
            Ok(Err(e)) => return Err(ConnectionError::Write(e)),
            Err(_) => return Err(ConnectionError::WriteStalled(stall)),
        }
    }
    match timeout(stall, write.flush()).await {
        Ok(flushed) => flushed.map_err(ConnectionError::Write),
        Err(_) => Err(ConnectionError::WriteStalled(stall)),
    }
}

/// The receiving side of a connection. Dropping it closes the connection.
#[derive(Debug)]
pub struct Receiver {
    shared: Arc<Shared>,
    session: ClientSession,
    read: ReadHalf<Transport>,
    buffer: BytesMut,
    /// Fires at the earliest moment the connection could be dead; re-armed then, not at every read.
    silence: Pin<Box<Sleep>>,
    last_read: Instant,
}

impl Receiver {
    /// What is known of the connection.
    #[must_use]
    pub fn info(&self) -> &ConnectionInfo {
        &self.shared.info
    }

    /// Receives the next event. Pings are answered and pongs of [`Sender::ping`] consumed on the way.
    ///
    /// # Errors
    /// Why the connection is over; the same at every further call.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn recv(&mut self) -> Result<Event, Arc<ConnectionError>> {
        loop {
            match self.next_buffered() {
                Ok(Some(event)) => return Ok(event),
                Ok(None) => {}
                Err(error) => return Err(self.shared.end(error)),
            }
            if let Some(reason) = self.shared.outbox.closed() {
                return Err(reason);
            }
            if let Err(error) = self.read_more().await {
                return Err(self.shared.end(error));
            }
        }
    }

    /// The next event among the bytes received so far.
    fn next_buffered(&mut self) -> Result<Option<Event>, ConnectionError> {
        while let Some(frame) = self.session.decoder.decode(&mut self.buffer)? {
            if let Some(event) = self.handle(frame)? {
                return Ok(Some(event));
            }
        }
        Ok(None)
    }

    fn handle(&self, frame: Frame) -> Result<Option<Event>, ConnectionError> {
        Ok(Some(match frame {
            Frame::RecvPacket { src, payload } => Event::Packet { src, payload },
            Frame::KeepAlive => Event::KeepAlive,
            Frame::PeerGone { peer, reason } => Event::PeerGone { peer, reason },
            Frame::PeerPresent { peer, addr, flags } => Event::PeerPresent { peer, addr, flags },
            Frame::Ping { data } => {
                // Without room for it the server misses one answer, as with any loss.
                self.shared.outbox.push_control(&to_bytes(&Frame::Pong { data })).ok();
                Event::Ping { data }
            }
            Frame::Pong { data } => {
                let waiting = self.shared.pings.lock().unwrap_or_else(PoisonError::into_inner).remove(&data);
                match waiting.map(|waiting| waiting.send(())) {
                    Some(Ok(())) => return Ok(None),
                    Some(Err(())) | None => Event::Pong { data },
                }
            }
            Frame::Health { problem } => Event::Health { problem },
            Frame::Restarting { reconnect_in_ms, try_for_ms } => Event::Restarting {
                reconnect_in: Duration::from_millis(reconnect_in_ms.into()),
                try_for: Duration::from_millis(try_for_ms.into()),
            },
            Frame::ServerInfo { sealed } => {
                let info = self.session.open_server_info(&sealed)?;
                self.shared.outbox.set_limit(limit_of(&info));
                Event::ServerInfo(info)
            }
            // Frames of clients: the decoder skips them.
            Frame::ServerKey { .. }
            | Frame::ClientInfo { .. }
            | Frame::SendPacket { .. }
            | Frame::NotePreferred { .. }
            | Frame::ForwardPacket { .. }
            | Frame::WatchConns
            | Frame::ClosePeer { .. } => return Ok(None),
        }))
    }

    async fn read_more(&mut self) -> Result<(), ConnectionError> {
        if self.buffer.capacity() - self.buffer.len() < READ_LEN_MIN {
            self.buffer.reserve(READ_LEN);
        }
        loop {
            // `read_buf`, `sleep` and `cancelled` all lose nothing when they are dropped.
            tokio::select! {
                biased;
                read = self.read.read_buf(&mut self.buffer) => return match read {
                    Ok(0) => Err(self.end_of_stream()),
                    Ok(_) => {
                        self.last_read = Instant::now();
                        Ok(())
                    }
                    Err(e) if is_hang_up(&e) => Err(self.end_of_stream()),
                    Err(e) => Err(ConnectionError::Read(e)),
                },
                () = self.shared.over.cancelled() => return Err(ConnectionError::ClosedByUs),
                () = self.silence.as_mut() => {
                    let deadline = self.last_read + READ_TIMEOUT;
                    if Instant::now() >= deadline {
                        return Err(ConnectionError::Silent(READ_TIMEOUT));
                    }
                    self.silence.as_mut().reset(deadline);
                }
            }
        }
    }

    fn end_of_stream(&self) -> ConnectionError {
        if self.session.decoder.at_boundary(&self.buffer) { ConnectionError::ClosedByServer } else { ConnectionError::Truncated }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.shared.end(ConnectionError::ClosedByUs);
    }
}
