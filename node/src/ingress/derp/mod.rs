//! DERP: login and the life of a client connection on the packet pump (`derp.md`).

mod accept;
mod connection;
mod metrics;
mod replay;

use std::sync::Arc;
use std::time::Duration;

use causeway_proto::derp::handshake::server::ServerIdentity;
use causeway_proto::key::NodePublic;
use tokio_util::sync::CancellationToken;

pub use accept::{Opening, UpgradedStream};
pub use metrics::DerpMetrics;

use crate::admission::Admission;
use crate::clients::Registry;
use crate::config::Cidr;
use crate::forward::Accounting;
use crate::pump::PacketSpawner;
use crate::router::Router;
use accept::MeshTries;
use replay::ReplayCache;

/// What the DERP door needs of the node around it.
#[derive(Clone)]
pub struct DerpParts {
    /// The server's key, and the mesh keys it takes.
    pub identity: Arc<ServerIdentity>,
    /// Where stock derpers may mesh from; empty: nowhere.
    pub mesh_sources: Vec<Cidr>,
    /// Who may log in.
    pub admission: Arc<dyn Admission>,
    /// Where clients are registered.
    pub registry: Arc<Registry>,
    /// Where packets go.
    pub router: Arc<Router>,
    /// The node's books.
    pub accounting: Arc<Accounting>,
    /// Where connections live after login.
    pub spawner: PacketSpawner,
    /// Ends every connection.
    pub cancel: CancellationToken,
    /// Mean time between keep-alives; up to 5 s are added per connection.
    pub keep_alive: Duration,
}

impl std::fmt::Debug for DerpParts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DerpParts").field("mesh_sources", &self.mesh_sources).finish_non_exhaustive()
    }
}

/// Default of [`DerpParts::keep_alive`] (`derp.md` section 5.2).
pub const KEEP_ALIVE: Duration = Duration::from_secs(60);

/// The DERP door of a node.
#[derive(Debug)]
pub struct DerpServer {
    parts: DerpParts,
    replays: ReplayCache,
    mesh_tries: MeshTries,
    metrics: DerpMetrics,
}

impl DerpServer {
    /// A door that is open.
    #[must_use]
    pub fn new(parts: DerpParts) -> Arc<Self> {
        Arc::new(Self {
            parts,
            replays: ReplayCache::default(),
            mesh_tries: MeshTries::default(),
            metrics: DerpMetrics::default(),
        })
    }

    /// The server's public key, as in the MetaCert and the upgrade response.
    #[must_use]
    pub fn public_key(&self) -> NodePublic {
        self.parts.identity.public()
    }

    /// This area's metrics.
    #[must_use]
    pub const fn metrics(&self) -> &DerpMetrics {
        &self.metrics
    }
}

#[cfg(test)]
mod tests;
