//! The sending side of a connection, and the task that writes what it queues.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::BytesMut;
use causeway_proto::derp::encoder::{PACKET_HEADER_LEN, forward_packet_header, send_packet_header, to_bytes};
use causeway_proto::derp::frame::{Frame, PingData};
use causeway_proto::derp::ping::{PINGS_OUTSTANDING_MAX, PONG_TIMEOUT};
use causeway_proto::key::NodePublic;
use causeway_proto::limits::PACKET_LEN_MAX;
use tokio::io::{AsyncWriteExt, WriteHalf};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

use crate::error::{ConnectionError, PingError, SendError};
use crate::outbox::Refused;
use crate::shared::{ConnectionInfo, Shared};
use crate::transport::Transport;

/// A connection whose socket takes no byte for so long is dead.
pub const WRITE_STALL_MAX: Duration = Duration::from_secs(10);

/// Time for the last bytes of a connection that we close.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(1);

/// The sending side of a connection. Clones share one queue, which is bounded in bytes.
#[derive(Clone, Debug)]
pub struct Sender {
    shared: Arc<Shared>,
}

impl Sender {
    pub(crate) const fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

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

    /// Sends a ping and waits for its pong; returns the round trip. Somebody has to call [`Receiver::recv`](crate::Receiver::recv) meanwhile.
    ///
    /// # Errors
    /// [`PingError`]. A ping without pong says little about the connection by itself: servers answer one at a time.
    ///
    /// # Cancel safety
    /// A late pong is surfaced as [`Event::Pong`](crate::Event::Pong).
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

    /// Packets dropped so far because the server announced a rate ([`SendError::RateLimited`]).
    #[must_use]
    pub fn rate_limited(&self) -> u64 {
        self.shared.rate_limited.load(Ordering::Relaxed)
    }

    /// Tells the server whether this connection is the client's home.
    ///
    /// # Errors
    /// [`SendError::Full`], [`SendError::Closed`].
    pub fn note_preferred(&self, preferred: bool) -> Result<(), SendError> {
        self.control(&Frame::NotePreferred { preferred })
    }

    /// Asks for [`Event::PeerPresent`](crate::Event::PeerPresent) and [`Event::PeerGone`](crate::Event::PeerGone) of all clients of this node, those that are there already included.
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
pub(crate) async fn write_batches(shared: Arc<Shared>, mut write: WriteHalf<Transport>) {
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
