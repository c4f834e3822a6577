//! gRPC channels to other nodes: made when first used, over [`MeshTls`], kept apart by what they carry.

use std::collections::HashMap;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use causeway_proto::id::NodeId;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::sync::watch;
use tonic::body::Body;
use tonic::transport::channel::ResponseFuture;
use tonic::transport::{Channel, Endpoint};
use tower::Service;

use crate::config::Tracing;
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

/// A connection to another node. Each call, be it unary or a stream, carries the trace that it is made in.
#[derive(Debug, Clone)]
pub struct PeerChannel {
    channel: Channel,
    inject: fn(&mut http::HeaderMap),
}

impl Service<http::Request<Body>> for PeerChannel {
    type Response = http::Response<Body>;
    type Error = tonic::transport::Error;
    type Future = ResponseFuture;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.channel.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        (self.inject)(request.headers_mut());
        self.channel.call(request)
    }
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
    tracing: Tracing,
    channels: Mutex<HashMap<(NodeId, ChannelUse), (String, PeerChannel)>>,
}

impl PeerChannels {
    /// Channels to the nodes of `nodes`; their addresses are looked up at each use.
    #[must_use]
    pub fn new(tls: Arc<MeshTls>, nodes: watch::Receiver<Arc<NodeSet>>, tracing: Tracing) -> Self {
        Self { inner: Arc::new(Inner { tls, nodes, tracing, channels: Mutex::default() }) }
    }

    /// The channel to a node. It connects when first used and again after each failure; the peer must prove to be `node`.
    ///
    /// # Errors
    /// [`ChannelError`] if the node is unknown or this one.
    pub fn channel(&self, node: NodeId, channel_use: ChannelUse) -> Result<PeerChannel, ChannelError> {
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
    pub fn seed_channel(&self, addr: &str) -> PeerChannel {
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

    fn connect_lazily(&self, addr: String, expected: Option<NodeId>) -> PeerChannel {
        let tls = Arc::clone(&self.inner.tls);
        // The URI only fills HTTP/2's pseudo headers; the connector below dials `addr`.
        let channel = Endpoint::from_static("http://node.causeway.internal")
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
            }));
        PeerChannel { channel, inject: self.inner.tracing.inject }
    }
}
