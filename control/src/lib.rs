//! The control plane of a node: who is in the fleet, who holds which client, and the consensus behind both.
//!
//! The node links this library, starts it once with [`ControlPlane::start`] and then only holds [`Handles`]. Nothing here touches
//! packets, and nothing the node serves to clients waits for Raft.

pub mod admin;
pub mod config;
pub mod data_dir;
mod derpmap;
pub mod discovery;
pub mod epoch;
pub mod error;
mod fleet;
mod followers;
pub mod identity;
pub mod mesh_server;
pub mod metrics;
pub mod peers;
pub mod presence;
pub mod raft;
mod refusals;
mod start;
pub mod status;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod watch;

use std::sync::Arc;

use causeway_proto::derpmap::DerpMap;
use causeway_proto::id::{BootId, Epoch};
use tokio::sync;
use tonic::service::Routes;

pub use admin::{Admin, CommittedClaim};
pub use config::{Config, Deps, RaftProfile, Tracing, WallClock};
pub use derpmap::build::entry as derp_map_entry;
pub use discovery::{NodeEntry, NodeSet, Seeds};
pub use error::{AdminError, Fatal, StartError};
pub use identity::{Alpn, MeshStream, MeshTls, MeshTlsError, PeerIdentity};
pub use metrics::ControlMetrics;
pub use peers::{ChannelUse, PeerChannel, PeerChannels};
pub use start::ControlPlane;
pub use status::Status;

use presence::{OwnerLog, PresenceView};

/// What the rest of a node sees of its control plane. Its tasks end with the cancel token they were started with.
#[derive(Debug)]
pub struct Handles {
    /// This node, as peers see it.
    pub identity: PeerIdentity,
    /// This process's epoch.
    pub epoch: Epoch,
    /// Random at each process start.
    pub boot_id: BootId,
    /// Who holds which client, as known here.
    pub view: Arc<PresenceView>,
    /// This node's own claims.
    pub owner_log: OwnerLog,
    /// All known nodes, this one included.
    pub nodes: sync::watch::Receiver<Arc<NodeSet>>,
    /// The map that clients are served: the newest that Raft has, else the last one of before. `None`: this node has none yet.
    pub derp_map: sync::watch::Receiver<Option<Arc<DerpMap>>>,
    /// Makes and accepts node-to-node connections, packet links as well.
    pub mesh_tls: Arc<MeshTls>,
    /// gRPC channels to other nodes.
    pub peers: PeerChannels,
    /// The control plane's services, for [`mesh_server::serve`]; the node may add its own.
    pub routes: Routes,
    /// What operators see.
    pub status: Status,
    /// What operators do.
    pub admin: Admin,
    /// What is counted here, to be registered by the node.
    pub metrics: ControlMetrics,
    /// Set when the process must stop.
    pub fatal: sync::watch::Receiver<Option<Fatal>>,
}
