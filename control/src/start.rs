//! Starts the control plane: the one place that wires its parts.

use std::collections::BTreeSet;
use std::sync::Arc;

use causeway_proto::derpmap::DerpMap;
use causeway_proto::id::{BootId, NodeId};
use causeway_rpc::v1;
use rand::RngCore;
use tokio::sync::watch;
use tonic::service::Routes;

use crate::config::{Config, Deps};
use crate::data_dir::DataDir;
use crate::derpmap::keeper::keep_map_listing;
use crate::derpmap::serve::{MapFile, ServedMap};
use crate::discovery::{Directory, DiscoveryMetrics, sources};
use crate::epoch::EpochCounter;
use crate::error::{Fatal, StartError};
use crate::fleet::{self, Fleet, FleetService, Incarnation, Own};
use crate::followers::follow_all;
use crate::identity::{FleetTrust, MeshTls, NodeKey};
use crate::presence::{OwnerLog, PresenceView};
use crate::raft::Consensus;
use crate::raft::fleet_state::check_record;
use crate::raft::types::GROUP_ID;
use crate::refusals::CallsRefused;
use crate::watch::{Follower, WatchMetrics, WatchService};
use crate::{Admin, ControlMetrics, Handles, PeerChannels, Status};

/// Starts the control plane.
#[derive(Debug)]
pub struct ControlPlane;

impl ControlPlane {
    /// Opens the data directory, takes up the node's identity, looks for the fleet, and starts everything on `deps.tracker`.
    ///
    /// Waits about a second at most for peers, and not for Raft. The caller serves [`Handles::routes`] on the mesh port next.
    ///
    /// # Errors
    /// [`StartError`]: the message says what to do.
    pub async fn start(config: Config, deps: Deps) -> Result<Handles, StartError> {
        let dir = DataDir::open(&config.data_dir, &config.name)?;
        let key = NodeKey::load_or_create(&dir.node_key_file())?;
        let mut counter = EpochCounter::raise(dir.epoch_file())?;
        let mut own = describe_ourselves(&config, &key, &counter)?;
        let trust = FleetTrust::new(&config.mesh_key, config.mesh_key_next.as_ref());
        let mesh_tls = Arc::new(MeshTls::new(trust, key));
        let directory = Arc::new(Directory::new(own.record.clone()));
        let peers = PeerChannels::new(Arc::clone(&mesh_tls), directory.subscribe(), deps.tracing);

        let discovery = DiscoveryMetrics::default();
        let mut sources = sources(&config.seeds, &discovery, &deps.tracker, &deps.cancel).await;
        let mut seeds: BTreeSet<String> = sources.iter_mut().flat_map(|source| source.seeds()).collect();
        seeds.remove(&own.record.mesh_addr);
        let seen = fleet::first_contact(seeds, &own, &deps.clock, &peers, &directory).await?;
        if let Some(seen) = seen.filter(|seen| seen.boot_id != own.boot_id) {
            counter.pass(seen.epoch)?;
            own.epoch = counter.epoch();
        }

        let (id, region) = (own.id(), own.record.region.as_ref().map_or(0, |region| region.id));
        let view = Arc::new(PresenceView::new(id, causeway_proto::id::RegionId(region)));
        let owner_log = OwnerLog::new(id, own.epoch, own.boot_id, Arc::clone(&view));
        let raft_dir = dir.raft_dir(GROUP_ID);
        let (tracker, cancel) = (&deps.tracker, &deps.cancel);
        let sender = v1::RaftSender { epoch: own.epoch.0, boot_id: own.boot_id.0.to_vec().into() };
        let consensus =
            Consensus::open(&raft_dir, id, sender, config.profile, Arc::clone(&view), peers.clone(), tracker, cancel).await?;
        let served_map = ServedMap::new(MapFile::new(dir.derp_map_file()), &own.record, config.standalone);
        let fleet = Arc::new(Fleet::new(own, &deps, dir, consensus, Arc::clone(&directory), peers, view, owner_log));

        let metrics = ControlMetrics {
            watch: WatchMetrics::default(),
            calls_refused: CallsRefused::default(),
            discovery,
            fleet: Arc::clone(&fleet),
        };
        let derp_map = start_tasks(&fleet, &config, sources, &mesh_tls, &metrics.watch, served_map, &deps);
        Ok(handles(fleet, mesh_tls, metrics, derp_map, &deps))
    }
}

fn describe_ourselves(config: &Config, key: &NodeKey, counter: &EpochCounter) -> Result<Own, StartError> {
    let identity = key.identity();
    let mut boot_id = BootId::default();
    rand::rng().fill_bytes(&mut boot_id.0);
    let mut record = config.record.clone();
    record.node_id = identity.node_id.0;
    record.public_key = identity.public_key.to_vec().into();
    record.name.clone_from(&config.name);
    record.voter_eligible = config.voter_eligible;
    check_record(&record).map_err(|expected| StartError::Config { field: "record", expected: expected.to_owned() })?;
    Ok(Own { identity, record, epoch: counter.epoch(), boot_id })
}

fn start_tasks(
    fleet: &Arc<Fleet>,
    config: &Config,
    sources: Vec<Box<dyn crate::discovery::Discovery>>,
    mesh_tls: &Arc<MeshTls>,
    watch_metrics: &WatchMetrics,
    served_map: ServedMap,
    deps: &Deps,
) -> watch::Receiver<Option<Arc<DerpMap>>> {
    let (tracker, cancel) = (&deps.tracker, &deps.cancel);
    let follower =
        Follower::new(Arc::clone(&fleet.view), Arc::new(fleet.peers.clone()), Arc::clone(&deps.clock), watch_metrics.clone());
    let nodes = fleet.directory.subscribe();
    tracker.spawn(follow_all(Arc::new(follower), Arc::clone(&fleet.view), nodes, tracker.clone(), cancel.clone()));
    tracker.spawn(follow_state(Arc::clone(fleet), Arc::clone(mesh_tls), cancel.clone()));
    tracker.spawn(tell_changed_owners(Arc::clone(&fleet.view), tracker.clone(), cancel.clone()));
    tracker.spawn(stop_when_superseded(Arc::clone(fleet), cancel.clone()));
    tracker.spawn(fleet::meet_and_join(Arc::clone(fleet), sources, cancel.clone()));
    tracker.spawn(fleet::send_heartbeats(Arc::clone(fleet), cancel.clone()));
    tracker.spawn(fleet::drive_fences(Arc::clone(fleet), cancel.clone()));
    tracker.spawn(fleet::keep_members(Arc::clone(fleet), cancel.clone()));
    tracker.spawn(fleet::propose_own_log(Arc::clone(fleet), cancel.clone()));
    if config.standalone {
        tracker.spawn(fleet::keep_standalone_formed(Arc::clone(fleet), cancel.clone()));
    }
    tracker.spawn(keep_map_listing(Arc::clone(fleet), cancel.clone()));
    let derp_map = served_map.subscribe();
    tracker.spawn(served_map.follow(fleet.consensus.machine().subscribe(), cancel.clone()));
    derp_map
}

fn handles(
    fleet: Arc<Fleet>,
    mesh_tls: Arc<MeshTls>,
    metrics: ControlMetrics,
    derp_map: watch::Receiver<Option<Arc<DerpMap>>>,
    deps: &Deps,
) -> Handles {
    let watch_service = WatchService::new(
        fleet.owner_log.clone(),
        Arc::clone(&fleet.view),
        Arc::clone(&deps.clock),
        metrics.watch.clone(),
        deps.cancel.clone(),
    );
    let refused = metrics.calls_refused.clone();
    let known = Arc::clone(&fleet);
    let is_newest = Arc::new(move |node, epoch, boot_id| known.is_newest(node, Incarnation { epoch, boot_id }));
    let routes = Routes::new(FleetService::new(Arc::clone(&fleet), refused.clone()).into_server())
        .add_service(fleet.consensus.service(refused, is_newest, deps.cancel.clone()).into_server())
        .add_service(watch_service.into_server());
    Handles {
        identity: fleet.own.identity,
        epoch: fleet.own.epoch,
        boot_id: fleet.own.boot_id,
        view: Arc::clone(&fleet.view),
        owner_log: fleet.owner_log.clone(),
        nodes: fleet.directory.subscribe(),
        derp_map,
        mesh_tls,
        peers: fleet.peers.clone(),
        routes,
        status: Status { fleet: Arc::clone(&fleet) },
        admin: Admin { fleet: Arc::clone(&fleet) },
        metrics,
        fatal: fleet.fatal(),
    }
}

/// Hands what Raft applied to the node set and to TLS.
async fn follow_state(fleet: Arc<Fleet>, mesh_tls: Arc<MeshTls>, cancel: tokio_util::sync::CancellationToken) {
    let mut changes = fleet.consensus.machine().subscribe();
    changes.mark_changed();
    while let Some(Ok(())) = cancel.run_until_cancelled(changes.changed()).await {
        let view = Arc::clone(&changes.borrow_and_update());
        let evicted: BTreeSet<NodeId> = view.fleet.evicted.keys().copied().collect();
        if evicted.contains(&fleet.own.id()) {
            fleet.fail(Fatal::Evicted);
        }
        mesh_tls.set_evicted(evicted);
        fleet.directory.update(view);
    }
}

/// Tells what owners lost and back mean for their keys, on a thread that may be held up.
async fn tell_changed_owners(
    view: Arc<PresenceView>,
    tracker: tokio_util::task::TaskTracker,
    cancel: tokio_util::sync::CancellationToken,
) {
    while cancel.run_until_cancelled(view.changed_owners()).await.is_some() {
        let view = Arc::clone(&view);
        if tracker.spawn_blocking(move || view.tell_changed_owners()).await.is_err() {
            return;
        }
    }
}

/// Stops the process when presence shows a higher epoch under this node's id.
async fn stop_when_superseded(fleet: Arc<Fleet>, cancel: tokio_util::sync::CancellationToken) {
    let mut superseded = fleet.view.superseded();
    let seen = cancel.run_until_cancelled(superseded.wait_for(Option::is_some)).await;
    if let Some(Ok(seen)) = seen
        && let Some(theirs) = *seen
    {
        fleet.fail(Fatal::OwnEpochSuperseded { ours: fleet.own.epoch, theirs });
    }
}
