//! gRPC channels to other nodes: made when first used, over [`MeshTls`], kept apart by what they carry.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use causeway_proto::id::NodeId;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::sync::watch;
use tonic::transport::{Channel, Endpoint};

use crate::discovery::NodeSet;
use crate::identity::{Alpn, EvictableStream, MeshTls, MeshTlsError};

/// HTTP/2 ping while a connection is open.
pub(crate) const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// A ping that is not answered for so long means a dead peer: 10 s after it was last heard.
pub(crate) const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// The default window caps a transcontinental stream at a few MB/s.
pub(crate) const STREAM_WINDOW: u32 = 8 << 20;
/// Room for several busy streams.
pub(crate) const CONNECTION_WINDOW: u32 = 16 << 20;
/// Largest gRPC message between nodes; snapshots go in pieces.
pub const MESSAGE_SIZE_MAX: usize = 4 << 20;

/// What a channel carries. Each use has a connection of its own, so that bulk never delays a heartbeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ChannelUse {
    /// Raft log entries.
    RaftLog,
    /// Raft heartbeats and votes.
    RaftHeartbeat,
    /// Raft snapshots.
    RaftSnapshot,
    /// Owner logs.
    Watch,
    /// Introductions, joins, fleet heartbeats, proposals, routing questions.
    Fleet,
}

/// Why there is no channel to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChannelError {
    /// Nothing tells where the node is.
    #[error("node {0} is not known")]
    Unknown(NodeId),
    /// Dialling ourselves is always a mistake.
    #[error("node {0} is this node")]
    Own(NodeId),
}

/// A lazily connected channel per (node, use).
#[derive(Debug, Clone)]
pub struct PeerChannels {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    tls: Arc<MeshTls>,
    nodes: watch::Receiver<Arc<NodeSet>>,
    channels: Mutex<HashMap<(NodeId, ChannelUse), (String, Channel)>>,
}

impl PeerChannels {
    /// Channels to the nodes of `nodes`; their addresses are looked up at each use.
    #[must_use]
    pub fn new(tls: Arc<MeshTls>, nodes: watch::Receiver<Arc<NodeSet>>) -> Self {
        Self { inner: Arc::new(Inner { tls, nodes, channels: Mutex::default() }) }
    }

    /// The channel to a node. It connects when first used and again after each failure; the peer must prove to be `node`.
    ///
    /// # Errors
    /// [`ChannelError`] if the node is unknown or this one.
    pub fn channel(&self, node: NodeId, channel_use: ChannelUse) -> Result<Channel, ChannelError> {
        let nodes = Arc::clone(&self.inner.nodes.borrow());
        if node == nodes.own() {
            return Err(ChannelError::Own(node));
        }
        let mut channels = self.inner.channels.lock();
        let Some(entry) = nodes.get(node) else {
            channels.retain(|(id, _), _| nodes.get(*id).is_some());
            return Err(ChannelError::Unknown(node));
        };
        let addr = &entry.record.mesh_addr;
        match channels.get(&(node, channel_use)) {
            Some((known, channel)) if known == addr => Ok(channel.clone()),
            _ => {
                let channel = self.connect_lazily(addr.clone(), Some(node));
                channels.insert((node, channel_use), (addr.clone(), channel.clone()));
                Ok(channel)
            }
        }
    }

    /// A channel to whichever node of the fleet answers at `addr` (a seed).
    #[must_use]
    pub fn seed_channel(&self, addr: &str) -> Channel {
        self.connect_lazily(addr.to_owned(), None)
    }

    /// Whether a seed refuses this node's certificate although we take its own, as in a change of mesh keys begun at the wrong end.
    pub(crate) async fn seed_refuses_us(&self, addr: &str) -> bool {
        self.inner.tls.is_refused_at(addr).await
    }

    /// Fingerprint of the mesh key that this node mints its certificate from.
    pub(crate) fn fingerprint(&self) -> String {
        self.inner.tls.fingerprint().to_owned()
    }

    fn connect_lazily(&self, addr: String, expected: Option<NodeId>) -> Channel {
        let tls = Arc::clone(&self.inner.tls);
        // The URI only fills HTTP/2's pseudo headers; the connector below dials `addr`.
        Endpoint::from_static("http://node.causeway.internal")
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .connect_with_connector_lazy(tower::service_fn(move |_| {
                let (tls, addr) = (Arc::clone(&tls), addr.clone());
                async move {
                    let (stream, peer) = tls.connect(&addr, expected, Alpn::Grpc).await?;
                    Ok::<_, MeshTlsError>(TokioIo::new(EvictableStream::new(stream, peer, tls)))
                }
            }))
    }
}
