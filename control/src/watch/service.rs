//! `Watch.Follow`: who may follow, and one stream per follower.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use causeway_proto::id::{Epoch, NodeId};
use causeway_rpc::convert;
use causeway_rpc::v1;
use causeway_rpc::v1::watch_server::{Watch, WatchServer};
use futures::Stream;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::publisher::Publisher;
use super::{RefusedReason, WATCH_MESSAGE_SIZE_MAX, WatchMetrics};
use crate::config::WallClock;
use crate::identity::PeerIdentity;
use crate::presence::view::Cursor;
use crate::presence::{OWNERS_MAX, OwnerLog, PresenceView};

/// Serves this node's owner log to its peers.
#[derive(Clone)]
pub struct WatchService {
    inner: Arc<Inner>,
}

struct Inner {
    log: OwnerLog,
    view: Arc<PresenceView>,
    clock: WallClock,
    metrics: WatchMetrics,
    cancel: CancellationToken,
    /// The open stream of each follower, by a number of its own.
    streams: Mutex<HashMap<NodeId, (u64, CancellationToken)>>,
    next_stream: AtomicU64,
}

impl std::fmt::Debug for WatchService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WatchService").finish_non_exhaustive()
    }
}

impl WatchService {
    /// Serves `log`; `view` is this node's and says whom it hears. Streams end with `cancel`.
    #[must_use]
    pub fn new(
        log: OwnerLog,
        view: Arc<PresenceView>,
        clock: WallClock,
        metrics: WatchMetrics,
        cancel: CancellationToken,
    ) -> Self {
        let (streams, next_stream) = (Mutex::default(), AtomicU64::new(0));
        Self { inner: Arc::new(Inner { log, view, clock, metrics, cancel, streams, next_stream }) }
    }

    /// The gRPC service, for the mesh server's routes.
    #[must_use]
    pub fn into_server(self) -> WatchServer<Self> {
        WatchServer::new(self).max_decoding_message_size(WATCH_MESSAGE_SIZE_MAX).max_encoding_message_size(WATCH_MESSAGE_SIZE_MAX)
    }

    /// Whether the caller is the follower it says it is.
    fn identify(&self, request: &Request<v1::FollowRequest>) -> Result<NodeId, Status> {
        let Some(peer) = request.extensions().get::<PeerIdentity>() else {
            self.inner.metrics.refuse(RefusedReason::NoIdentity);
            return Err(Status::unauthenticated("no node certificate came with this call"));
        };
        let follower = NodeId(request.get_ref().follower_id);
        if follower != peer.node_id {
            self.inner.metrics.refuse(RefusedReason::WrongFollower);
            let message = format!("follower_id is {follower}, but the certificate is that of {}", peer.node_id);
            return Err(Status::permission_denied(message));
        }
        Ok(follower)
    }

    /// Registers a follower's stream and ends its former one, which can only be a broken connection's.
    fn open(&self, follower: NodeId) -> Result<OpenStream, Status> {
        let id = self.inner.next_stream.fetch_add(1, Ordering::Relaxed);
        let cancel = self.inner.cancel.child_token();
        let mut streams = self.inner.streams.lock();
        if streams.len() >= OWNERS_MAX && !streams.contains_key(&follower) {
            self.inner.metrics.refuse(RefusedReason::TooMany);
            return Err(Status::resource_exhausted(format!("{OWNERS_MAX} nodes follow already")));
        }
        if let Some((_, former)) = streams.insert(follower, (id, cancel.clone())) {
            former.cancel();
        }
        self.inner.metrics.streams_served.inc();
        Ok(OpenStream { inner: Arc::clone(&self.inner), follower, id, cancel })
    }
}

/// A stream's place in the register; leaves it when dropped.
struct OpenStream {
    inner: Arc<Inner>,
    follower: NodeId,
    id: u64,
    cancel: CancellationToken,
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.inner.metrics.streams_served.dec();
        let mut streams = self.inner.streams.lock();
        if streams.get(&self.follower).is_some_and(|(id, _)| *id == self.id) {
            streams.remove(&self.follower);
        }
    }
}

#[tonic::async_trait]
impl Watch for WatchService {
    type FollowStream = Pin<Box<dyn Stream<Item = Result<v1::WatchMessage, Status>> + Send>>;

    async fn follow(&self, request: Request<v1::FollowRequest>) -> Result<Response<Self::FollowStream>, Status> {
        let follower = self.identify(&request)?;
        let request = request.into_inner();
        let cursor = if request.epoch == 0 {
            Cursor::default()
        } else {
            let boot_id = convert::boot_id("boot_id", &request.boot_id)
                .inspect_err(|_| self.inner.metrics.refuse(RefusedReason::Malformed))?;
            Cursor { epoch: Epoch(request.epoch), boot_id, next_seq: request.next_seq }
        };
        let own = self.inner.log.identity();
        if cursor.epoch > own.epoch {
            // Only a word of a peer: the process stops when Raft says so, or else any node could stop all others.
            tracing::warn!(%follower, known = %cursor.epoch, own = %own.epoch, "a peer knows a higher epoch of this node");
        }
        let open = self.open(follower)?;
        let inner = &self.inner;
        let publisher = Publisher::new(
            inner.log.clone(),
            inner.view.live_nodes(),
            Arc::clone(&inner.clock),
            inner.metrics.clone(),
            open.cancel.clone(),
            cursor,
        );
        let stream = futures::stream::unfold((publisher, open), async |(mut publisher, open)| {
            let message = publisher.next().await?;
            Some((Ok(message), (publisher, open)))
        });
        Ok(Response::new(Box::pin(stream)))
    }
}
