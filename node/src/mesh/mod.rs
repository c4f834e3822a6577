//! Packet links to the other nodes: `causeway-link/1` over mutual TLS, on the same pump as clients (`architecture.md` section 4).
//!
//! Each node dials every other one; packets from A to B travel on the connections that A dialled, so that a path that works in one
//! direction only is used in that direction.

mod connection;
mod link;
pub mod metrics;
mod supervisor;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use causeway_control::presence::PresenceView;
use causeway_control::{MeshTls, NodeSet};
use causeway_proto::id::{Epoch, NodeId};
use causeway_proto::link::frame::{LinkFrame, Stale};
use causeway_proto::packet::Packet;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::forward::links::NodeLinks;
use crate::forward::{PacketForwarder, Verdict};
use crate::pump::PacketSpawner;
use crate::pump::lanes::PumpShared;
pub use link::MeshLink;
use metrics::MeshMetrics;

/// What the mesh needs of the node around it.
#[derive(Clone)]
pub struct MeshParts {
    /// This node.
    pub own: NodeId,
    /// Its process start.
    pub epoch: Epoch,
    /// Who may talk.
    pub tls: Arc<MeshTls>,
    /// The other nodes and where to dial them.
    pub nodes: watch::Receiver<Arc<NodeSet>>,
    /// Where stale notices go.
    pub view: Arc<PresenceView>,
    /// Books and memory of the pump.
    pub pump: PumpShared,
    /// Parallel connections to each node, 1 to [`STRIPES_MAX`].
    pub stripes: u8,
}

impl std::fmt::Debug for MeshParts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MeshParts").field("own", &self.own).field("stripes", &self.stripes).finish_non_exhaustive()
    }
}

/// Parallel connections to one node.
pub const STRIPES_MAX: u8 = 16;

/// Incoming connections of one node: its stripes, and as many again while it replaces them.
const INCOMING_PER_NODE_MAX: usize = 2 * STRIPES_MAX as usize;

/// Every link of a node.
#[derive(Debug)]
pub struct Mesh {
    parts: MeshParts,
    /// One writer, the supervisor; links of nodes that left are gone from it.
    links: ArcSwap<HashMap<NodeId, Arc<MeshLink>>>,
    incoming: Mutex<HashMap<NodeId, usize>>,
    metrics: MeshMetrics,
}

/// How the link to one node is, for operators.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkStatus {
    /// The other node.
    pub node: NodeId,
    /// Packets can be sent.
    pub up: bool,
    /// Connections that are up, and how many there should be.
    pub stripes_up: usize,
    /// Connections there should be.
    pub stripes: usize,
    /// The last round trip measured on any of them.
    pub round_trip: Option<Duration>,
    /// Why the last attempt to connect failed; empty if none did since it was up.
    pub last_error: String,
}

impl Mesh {
    /// A mesh without links.
    #[must_use]
    pub fn new(parts: MeshParts) -> Arc<Self> {
        let metrics = MeshMetrics::default();
        Arc::new(Self { parts, links: ArcSwap::default(), incoming: Mutex::default(), metrics })
    }

    /// Starts dialling every other node, and returns what takes their incoming links. Packets go to `router`.
    #[must_use]
    pub fn start(
        self: &Arc<Self>,
        router: Arc<dyn PacketForwarder>,
        spawner: PacketSpawner,
        cancel: CancellationToken,
    ) -> LinkAcceptor {
        spawner.spawn(supervisor::run(Arc::clone(self), spawner.clone(), cancel.clone()));
        LinkAcceptor { mesh: Arc::clone(self), router, spawner, cancel }
    }

    /// How each link is, ordered by node id.
    #[must_use]
    pub fn status(&self) -> Vec<LinkStatus> {
        let mut status: Vec<LinkStatus> = self.links.load().values().map(|link| link.status()).collect();
        status.sort_unstable_by_key(|link| link.node);
        status
    }

    /// This area's metrics.
    #[must_use]
    pub const fn metrics(&self) -> &MeshMetrics {
        &self.metrics
    }

    fn link(&self, node: NodeId) -> Option<Arc<MeshLink>> {
        self.links.load().get(&node).cloned()
    }

    /// Takes a place among the incoming connections of `node`.
    fn enter(self: &Arc<Self>, node: NodeId) -> Option<IncomingPlace> {
        let mut incoming = self.incoming.lock();
        let count = incoming.entry(node).or_default();
        if *count >= INCOMING_PER_NODE_MAX {
            return None;
        }
        *count += 1;
        Some(IncomingPlace { mesh: Arc::clone(self), node })
    }
}

impl NodeLinks for Mesh {
    fn is_up(&self, node: NodeId) -> bool {
        self.links.load().get(&node).is_some_and(|link| link.is_up())
    }

    fn forward_to(&self, node: NodeId, packet: Packet) -> Verdict {
        match self.links.load().get(&node) {
            Some(link) => link.forward(packet),
            None => Verdict::LinkDown(packet),
        }
    }

    fn tell_stale(&self, node: NodeId, stale: Stale) -> bool {
        self.links.load().get(&node).is_some_and(|link| link.send(LinkFrame::Stale(stale)))
    }
}

/// Takes the incoming links of other nodes: the mesh listener hands over connections with the ALPN `causeway-link/1`.
#[derive(Clone)]
pub struct LinkAcceptor {
    mesh: Arc<Mesh>,
    router: Arc<dyn PacketForwarder>,
    spawner: PacketSpawner,
    cancel: CancellationToken,
}

impl std::fmt::Debug for LinkAcceptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LinkAcceptor").finish_non_exhaustive()
    }
}

impl LinkAcceptor {
    /// Serves a link that `peer` dialled, on the packet runtime. `peer` is the node of the connection's certificate.
    ///
    /// As with clients, the socket should have been registered with the packet runtime's reactor.
    pub fn accept<Io>(&self, io: Io, peer: NodeId)
    where
        Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Some(place) = self.mesh.enter(peer) else {
            self.mesh.metrics.refused("too_many_links");
            tracing::warn!(%peer, "refused a link: the node has too many");
            return;
        };
        self.spawner.spawn(connection::serve(
            io,
            peer,
            place,
            Arc::clone(&self.router),
            self.spawner.clone(),
            self.cancel.child_token(),
        ));
    }
}

/// A place among the incoming connections of a node, given back on drop.
struct IncomingPlace {
    mesh: Arc<Mesh>,
    node: NodeId,
}

impl Drop for IncomingPlace {
    fn drop(&mut self) {
        let mut incoming = self.mesh.incoming.lock();
        if let Some(count) = incoming.get_mut(&self.node) {
            *count -= 1;
            if *count == 0 {
                incoming.remove(&self.node);
            }
        }
    }
}

#[cfg(test)]
mod tests;
