//! What the sides of a connection share: what is known of it, its outbox, and how it ends.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use causeway_proto::derp::frame::PingData;
use causeway_proto::derp::info::ServerInfo;
use causeway_proto::key::NodePublic;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::error::{ConnectionError, SendError};
use crate::outbox::{Outbox, Refused};

/// What is known of an established connection.
#[derive(Clone, Debug)]
pub struct ConnectionInfo {
    /// The node's name in the map, or the address that was dialled.
    pub node: String,
    /// The server's address, or the proxy's.
    pub remote_addr: SocketAddr,
    /// Ours.
    pub local_addr: SocketAddr,
    /// The server's key.
    pub server_key: NodePublic,
    /// The server's key was known or came from the TLS handshake, which saved a round trip (`derp.md` section 4.3).
    pub fast_start: bool,
    /// What the server answered to the login.
    pub server_info: ServerInfo,
}

/// Pings of ours that wait for their pong; at most [`causeway_proto::derp::ping::PINGS_OUTSTANDING_MAX`].
type Pings = HashMap<PingData, oneshot::Sender<()>>;

/// What the two sides and the writer of a connection share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) outbox: Outbox,
    pub(crate) pings: Mutex<Pings>,
    /// Packets dropped because the server announced a rate.
    pub(crate) rate_limited: AtomicU64,
    pub(crate) is_mesh_peer: bool,
    /// Cancelled when the connection is over, or when whoever started it wants it to be.
    pub(crate) over: CancellationToken,
    /// Cancelled when the writer has ended.
    pub(crate) drained: CancellationToken,
    pub(crate) info: ConnectionInfo,
}

impl Shared {
    /// Ends the connection; the first reason stays, and is returned.
    pub(crate) fn end(&self, error: ConnectionError) -> Arc<ConnectionError> {
        let reason = self.outbox.close(Arc::new(error));
        self.over.cancel();
        self.pings.lock().unwrap_or_else(PoisonError::into_inner).clear();
        reason
    }

    pub(crate) fn refused(&self, refused: &Refused) -> SendError {
        match refused {
            Refused::Full => SendError::Full,
            Refused::OverRate => {
                self.rate_limited.fetch_add(1, Ordering::Relaxed);
                SendError::RateLimited
            }
            Refused::Closed => SendError::Closed(self.outbox.closed().unwrap_or_else(|| Arc::new(ConnectionError::ClosedByUs))),
        }
    }
}
