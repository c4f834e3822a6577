//! The control plane of a node: who is in the fleet, who holds which client, and the consensus behind both.
//!
//! The node links this library, starts it once with [`ControlPlane::start`] and then only holds [`Handles`]. Nothing here touches
//! packets, and nothing the node serves to clients waits for Raft.

pub mod admin;
pub mod config;
pub mod data_dir;
pub mod discovery;
pub mod epoch;
pub mod error;
pub mod identity;
pub mod mesh_server;
pub mod peers;
pub mod presence;
pub mod status;
pub mod watch;

use std::sync::Arc;

use causeway_proto::id::{BootId, Epoch};
use rand::RngCore;
use tokio::sync;
use tonic::service::Routes;

pub use admin::{Admin, AdminError};
pub use config::{Config, Deps, RaftProfile, Seeds, WallClock};
pub use discovery::{NodeEntry, NodeSet};
pub use error::{Fatal, StartError};
pub use identity::{Alpn, MeshStream, MeshTls, MeshTlsError, PeerIdentity};
pub use peers::{ChannelUse, PeerChannels};
pub use status::Status;

use data_dir::DataDir;
use epoch::EpochCounter;
use identity::{FleetTrust, NodeKey};

/// What the rest of a node sees of its control plane. Its tasks end with the cancel token they were started with.
#[derive(Debug)]
pub struct Handles {
    /// This node, as peers see it.
    pub identity: PeerIdentity,
    /// This process's epoch.
    pub epoch: Epoch,
    /// Random at each process start.
    pub boot_id: BootId,
    /// All known nodes, this one included.
    pub nodes: sync::watch::Receiver<Arc<NodeSet>>,
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
    /// Set when the process must stop.
    pub fatal: sync::watch::Receiver<Option<Fatal>>,
}

/// Starts the control plane.
#[derive(Debug)]
pub struct ControlPlane;

impl ControlPlane {
    /// Opens the data directory, takes up the node's identity, looks for the fleet, and starts everything on `deps.tracker`.
    ///
    /// Does not wait for Raft.
    ///
    /// # Errors
    /// [`StartError`]: the message says what to do.
    #[expect(clippy::unused_async, reason = "asks the seeds for time and epoch")]
    pub async fn start(config: Config, _deps: Deps) -> Result<Handles, StartError> {
        let dir = DataDir::open(&config.data_dir, &config.name)?;
        let key = NodeKey::load_or_create(&dir.node_key_file())?;
        let identity = key.identity();
        let epoch = EpochCounter::raise(dir.epoch_file())?.epoch();
        let mut boot_id = BootId::default();
        rand::rng().fill_bytes(&mut boot_id.0);
        let mut record = config.record;
        record.node_id = identity.node_id.0;
        record.public_key = identity.public_key.to_vec().into();
        record.name = config.name;
        record.voter_eligible = config.voter_eligible;
        let trust = FleetTrust::new(&config.mesh_key, config.mesh_key_next.as_ref());
        let mesh_tls = Arc::new(MeshTls::new(trust, key));
        let own = NodeEntry { record, admitted: false, fenced: false };
        let (_, nodes) = sync::watch::channel(Arc::new(NodeSet::new(identity.node_id, [own])));
        let (_, fatal) = sync::watch::channel(None);
        Ok(Handles {
            identity,
            epoch,
            boot_id,
            peers: PeerChannels::new(Arc::clone(&mesh_tls), nodes.clone()),
            nodes,
            mesh_tls,
            routes: Routes::default(),
            status: Status {},
            admin: Admin {},
            fatal,
        })
    }
}
