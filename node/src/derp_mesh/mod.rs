//! Links to stock derpers that this node dials and watches, so that their clients are reachable from the whole fleet (`derp.md` section 8).
//!
//! A link is a client connection of this node's server key that logged in with the DERP mesh key: the derper tells on it who is connected
//! there, this node sends ForwardPacket on it. What it learns is claimed in presence, as worth less than any client of a node. The other
//! direction, derpers that dial this node, is a front door like any other (`ingress/derp`).

mod connection;
mod link;
pub mod metrics;
mod supervisor;
mod table;

use std::sync::Arc;

use causeway_client::Trust;
use causeway_control::NodeSet;
use causeway_proto::key::{MeshKey, NodePrivate};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config::Derper;
use crate::pump::PacketSpawner;
use crate::pump::lanes::PumpShared;
pub use link::DerperLink;
pub use table::{Derpers, KeysFull};

/// What the links need of the node around them.
#[derive(Clone)]
pub struct DerpMeshParts {
    /// The node's server key, as which it logs in.
    pub server_key: NodePrivate,
    /// The DERP mesh key.
    pub mesh_key: MeshKey,
    /// Whom to believe at the derpers; `None`: the system's roots.
    pub trust: Option<Trust>,
    /// The nodes of the fleet: one of them that is listed by mistake is not meshed with.
    pub nodes: watch::Receiver<Arc<NodeSet>>,
    /// Where the derpers' clients are kept.
    pub derpers: Arc<Derpers>,
    /// Books and memory of the pump.
    pub pump: PumpShared,
    /// Where connections live.
    pub spawner: PacketSpawner,
    /// Ends every link.
    pub cancel: CancellationToken,
}

impl std::fmt::Debug for DerpMeshParts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DerpMeshParts").finish_non_exhaustive()
    }
}

/// Keeps a link to each of `with` until cancelled.
pub fn start(parts: &DerpMeshParts, with: &[Derper]) {
    for derper in with {
        parts.spawner.spawn(supervisor::keep(parts.clone(), derper.clone()));
    }
}

#[cfg(test)]
mod tests;
