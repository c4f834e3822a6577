//! One established DERP connection: a sender and a receiver that work apart from each other.
//!
//! The sender side may be cloned; a writer task owns the socket's write half. The receiver decodes in the caller's task: without a task
//! that calls [`Receiver::recv`], pings are not answered and a dead connection is not noticed.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use causeway_proto::derp::encoder::to_bytes;
use causeway_proto::derp::frame::{Frame, PeerGoneReason, PingData, PresentFlags};
use causeway_proto::derp::handshake::client::ClientSession;
use causeway_proto::derp::info::ServerInfo;
use causeway_proto::key::NodePublic;
use tokio::io::{AsyncReadExt, ReadHalf};
use tokio::time::{Instant, Sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::endpoint::Endpoint;
use crate::error::{ConnectError, ConnectionError};
use crate::login::{LoggedIn, Login, is_hang_up, log_in};
use crate::outbox::Outbox;
use crate::rate::TokenBucket;
use crate::sender::{Sender, write_batches};
use crate::shared::{ConnectionInfo, Shared};
use crate::transport::Transport;

/// A connection on which not a byte came for so long is dead; servers send a keep-alive at least every 65 s.
pub const READ_TIMEOUT: Duration = Duration::from_secs(120);

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
        let logged_in = log_in(endpoint, ideal_node, login, deadline).await?;
        Ok(Self::start(logged_in, login, tasks, cancel.child_token()))
    }

    fn start(logged_in: LoggedIn, login: &Login, tasks: &TaskTracker, over: CancellationToken) -> Self {
        let LoggedIn { transport, buffer, session, info } = logged_in;
        let (read, write) = tokio::io::split(transport);
        let shared = Arc::new(Shared {
            outbox: Outbox::default(),
            pings: Mutex::default(),
            rate_limited: AtomicU64::new(0),
            is_mesh_peer: login.info.mesh_key.is_some(),
            over,
            drained: CancellationToken::new(),
            info,
        });
        shared.outbox.set_limit(limit_of(&shared.info.server_info));
        let sender = Sender::new(Arc::clone(&shared));
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

fn limit_of(info: &ServerInfo) -> Option<TokenBucket> {
    let rate = u64::try_from(info.token_bucket_bytes_per_second).unwrap_or(0);
    let burst = u64::try_from(info.token_bucket_bytes_burst).unwrap_or(0);
    TokenBucket::new(rate, burst, Instant::now().into_std())
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
