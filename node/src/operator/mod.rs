//! The `Operator` service: what operators ask of this node, answered from the control plane, the router and the clients here.

mod audit;
mod presence;
mod reload;
mod trace;

use std::sync::Arc;
use std::time::Instant;

use causeway_control::presence::PresenceView;
use causeway_control::{Admin, AdminError, presence::view::OwnerStatus};
use causeway_control::{Handles, MeshTls, NodeSet, PeerChannels, Status as ControlStatus};
use causeway_rpc::convert::presence_key;
use causeway_rpc::v1;
use causeway_rpc::v1::operator_server::{Operator, OperatorServer};
use futures::stream::BoxStream;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::Routes;
use tonic::{Request, Response, Status};
use tonic_health::ServingStatus;

use crate::clients::Registry;
use crate::ingress::http::Site;
use crate::ingress::operator::Caller;
use crate::lifecycle::clock::wall_clock_us;
use crate::mesh::{LinkStatus, Mesh};
use crate::router::Router;

pub use reload::{ConfigurationService, ReloadHandle};

/// Largest message of an operator.
const MESSAGE_LEN_MAX: usize = 1 << 20;

/// Largest answer: a DERP map, a list of nodes.
const ANSWER_LEN_MAX: usize = 16 << 20;

/// What the service answers from.
#[derive(Clone)]
pub struct OperatorParts {
    /// The control plane's questions.
    pub status: ControlStatus,
    /// The control plane's actions.
    pub admin: Admin,
    /// All known nodes.
    pub nodes: watch::Receiver<Arc<NodeSet>>,
    /// Who holds which key.
    pub view: Arc<PresenceView>,
    /// gRPC to other nodes.
    pub peers: PeerChannels,
    /// For the fleet CA's certificate.
    pub tls: Arc<MeshTls>,
    /// Epoch and boot id of this process, as in [`v1::NodeStatus`].
    pub epoch: u64,
    /// 32 hex digits.
    pub boot_id: String,
    /// Addresses as bound.
    pub listeners: v1::Listeners,
    /// Health and the DERP map.
    pub site: Arc<Site>,
    /// Clients here.
    pub registry: Arc<Registry>,
    /// Links to other nodes.
    pub mesh: Arc<Mesh>,
    /// Explains packets.
    pub router: Arc<Router>,
    /// Takes up a changed configuration.
    pub reload: ReloadHandle,
    /// When the process began to serve.
    pub started: Instant,
    /// A fleet of one, which peers cannot join.
    pub standalone: bool,
    /// Where streams run, and what ends them.
    pub tracker: TaskTracker,
    /// Ends them.
    pub cancel: CancellationToken,
}

impl std::fmt::Debug for OperatorParts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OperatorParts").field("epoch", &self.epoch).field("listeners", &self.listeners).finish_non_exhaustive()
    }
}

/// The service.
#[derive(Debug, Clone)]
pub struct OperatorService {
    parts: Arc<OperatorParts>,
}

impl OperatorService {
    /// The service with health and reflection beside it, for the operator's doors only.
    ///
    /// # Errors
    /// The schema that is built in cannot be read.
    pub async fn routes(parts: OperatorParts) -> Result<Routes, tonic_reflection::server::Error> {
        let (reporter, health) = tonic_health::server::health_reporter();
        reporter.set_service_status("causeway.v1.Operator", ServingStatus::Serving).await;
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(causeway_rpc::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .build_v1()?;
        let service = OperatorServer::new(Self { parts: Arc::new(parts) })
            .max_decoding_message_size(MESSAGE_LEN_MAX)
            .max_encoding_message_size(ANSWER_LEN_MAX);
        Ok(Routes::new(service).add_service(health).add_service(reflection))
    }

    fn own_record(&self) -> Option<v1::NodeRecord> {
        let nodes = self.parts.nodes.borrow();
        nodes.get(nodes.own()).map(|node| node.record.clone())
    }

    /// How this node sees each other one.
    fn peers(&self) -> Vec<v1::PeerStatus> {
        let nodes = Arc::clone(&self.parts.nodes.borrow());
        let owners = self.parts.view.owners();
        let links = self.parts.mesh.status();
        let now = Instant::now();
        let of = |id| (owners.iter().find(|owner| owner.node == id), links.iter().find(|link| link.node == id));
        nodes
            .others()
            .map(|node| {
                let (owner, link) = of(node.id());
                peer_status(&node.record, owner, link, now)
            })
            .collect()
    }
}

fn standalone() -> AdminError {
    let message = "this node is `standalone`, a fleet of one that no other node joins: how it grows stands in docs/operations/standalone.md";
    AdminError::Invalid(message.to_owned())
}

fn peer_status(record: &v1::NodeRecord, owner: Option<&OwnerStatus>, link: Option<&LinkStatus>, now: Instant) -> v1::PeerStatus {
    let heard = owner.and_then(|owner| owner.last_heard);
    v1::PeerStatus {
        node_id: record.node_id,
        name: record.name.clone(),
        watch_live: owner.is_some_and(|owner| owner.validity.is_live()),
        link_up: link.is_some_and(|link| link.up),
        // Never heard is as long ago as can be.
        last_heard_ms: heard.map_or(u64::MAX, |heard| whole_ms(now.saturating_duration_since(heard))),
        known_seq: owner.map_or(0, |owner| owner.seq),
        last_error: link.map(|link| link.last_error.clone()).unwrap_or_default(),
    }
}

fn whole_ms(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[tonic::async_trait]
impl Operator for OperatorService {
    type ListPresenceStream = BoxStream<'static, Result<v1::PresenceEntry, Status>>;
    type WatchPresenceStream = BoxStream<'static, Result<v1::PresenceChange, Status>>;

    async fn get_node_status(&self, _: Request<v1::GetNodeStatusRequest>) -> Result<Response<v1::NodeStatus>, Status> {
        let parts = &self.parts;
        let not_ready_because = parts.site.health.not_ready_because();
        let fleet_ca = if parts.standalone { Vec::new() } else { parts.tls.ca_certificate().to_vec() };
        Ok(Response::new(v1::NodeStatus {
            node: self.own_record(),
            epoch: parts.epoch,
            boot_id: parts.boot_id.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_ms: whole_ms(parts.started.elapsed()),
            listeners: Some(parts.listeners.clone()),
            ready: not_ready_because.is_empty(),
            not_ready_because,
            clients: parts.registry.len() as u64,
            clients_home: parts.registry.home_connections(),
            fleet_id: parts.status.fleet_id(),
            pid: std::process::id(),
            peers: self.peers(),
            fleet_ca_der: fleet_ca.into(),
        }))
    }

    async fn init_cluster(&self, request: Request<v1::InitClusterRequest>) -> Result<Response<v1::InitClusterResponse>, Status> {
        let caller = Caller::of(&request);
        let request = request.into_inner();
        let done = if self.parts.standalone { Err(standalone()) } else { self.parts.admin.init_cluster(request.clone()).await };
        let operator_ca = if request.operator_ca_der.is_empty() { "none" } else { "given" };
        let details = format!("voters={:?} join_policy={:?} operator_ca={operator_ca}", request.voters, request.join_policy);
        Ok(Response::new(audit::record(&caller, "init_cluster", &details, done)?))
    }

    async fn evict_node(&self, request: Request<v1::EvictNodeRequest>) -> Result<Response<v1::EvictNodeResponse>, Status> {
        let caller = Caller::of(&request);
        let node = request.into_inner().node;
        let done = self.parts.admin.evict(&node).await;
        let evicted = audit::record(&caller, "evict_node", &format!("node={node:?}"), done)?;
        Ok(Response::new(v1::EvictNodeResponse { node_id: evicted.0 }))
    }

    async fn get_cluster_status(&self, _: Request<v1::GetClusterStatusRequest>) -> Result<Response<v1::ClusterStatus>, Status> {
        Ok(Response::new(self.parts.status.cluster()))
    }

    async fn list_nodes(&self, _: Request<v1::ListNodesRequest>) -> Result<Response<v1::ListNodesResponse>, Status> {
        Ok(Response::new(v1::ListNodesResponse { nodes: self.parts.status.nodes() }))
    }

    async fn list_regions(&self, _: Request<v1::ListRegionsRequest>) -> Result<Response<v1::ListRegionsResponse>, Status> {
        Ok(Response::new(v1::ListRegionsResponse { regions: self.parts.status.regions() }))
    }

    async fn get_presence(&self, request: Request<v1::GetPresenceRequest>) -> Result<Response<v1::PresenceEntry>, Status> {
        let request = request.into_inner();
        let key = presence_key("key", &request.key)?;
        let entry = if request.consistent {
            let claims = self.parts.admin.consistent_claims(key).await?;
            presence::committed_entry(key, &claims, &self.parts.nodes.borrow())
        } else {
            presence::entry(key, &self.parts.view.claims(&key), &self.parts.nodes.borrow())
        };
        if entry.claims.is_empty() {
            return Err(Status::not_found("nobody in the fleet claims this key"));
        }
        Ok(Response::new(entry))
    }

    async fn list_presence(
        &self,
        request: Request<v1::ListPresenceRequest>,
    ) -> Result<Response<Self::ListPresenceStream>, Status> {
        let stream = presence::list(&self.parts, request.get_ref());
        Ok(Response::new(Box::pin(stream)))
    }

    async fn watch_presence(
        &self,
        request: Request<v1::WatchPresenceRequest>,
    ) -> Result<Response<Self::WatchPresenceStream>, Status> {
        let request = request.into_inner();
        let key = if request.key.is_empty() { None } else { Some(presence_key("key", &request.key)?) };
        let stream = presence::watch(Arc::clone(&self.parts), key, request.changes_only, wall_clock_us);
        Ok(Response::new(Box::pin(stream)))
    }

    async fn count_presence(&self, _: Request<v1::CountPresenceRequest>) -> Result<Response<v1::PresenceCount>, Status> {
        let counts = self.parts.view.count();
        Ok(Response::new(presence::counted(&counts, &self.parts.nodes.borrow())))
    }

    async fn get_derp_map(&self, _: Request<v1::GetDerpMapRequest>) -> Result<Response<v1::DerpMapDocument>, Status> {
        let document = self.parts.site.derp_map.current().map_err(|error| Status::internal(error.to_string()))?;
        let document = document.ok_or_else(|| Status::unavailable("this node has no DERP map yet: it is in no fleet"))?;
        let json = String::from_utf8(document.body.to_vec()).map_err(|error| Status::internal(error.to_string()))?;
        Ok(Response::new(v1::DerpMapDocument { json }))
    }

    async fn get_derp_map_settings(
        &self,
        _: Request<v1::GetDerpMapSettingsRequest>,
    ) -> Result<Response<v1::DerpMapSettings>, Status> {
        Ok(Response::new(self.parts.admin.derp_map_settings()))
    }

    async fn set_derp_map_settings(
        &self,
        request: Request<v1::SetDerpMapSettingsRequest>,
    ) -> Result<Response<v1::SetDerpMapSettingsResponse>, Status> {
        let caller = Caller::of(&request);
        let v1::SetDerpMapSettingsRequest { settings, dry_run } = request.into_inner();
        let settings = settings.ok_or_else(|| Status::invalid_argument("field settings: must be set"))?;
        let details = format!("settings={settings:?}");
        let done = self.parts.admin.set_derp_map(settings, dry_run).await;
        Ok(Response::new(if dry_run { done? } else { audit::record(&caller, "set_derp_map_settings", &details, done)? }))
    }

    async fn get_raft_status(&self, _: Request<v1::GetRaftStatusRequest>) -> Result<Response<v1::RaftStatus>, Status> {
        Ok(Response::new(self.parts.status.raft_with_leader().await))
    }

    async fn trace(&self, request: Request<v1::TraceRequest>) -> Result<Response<v1::TraceResponse>, Status> {
        Ok(Response::new(trace::trace(&self.parts, request.get_ref()).await?))
    }

    async fn reload_configuration(
        &self,
        request: Request<v1::ReloadConfigurationRequest>,
    ) -> Result<Response<v1::ReloadOutcome>, Status> {
        let caller = Caller::of(&request);
        Ok(Response::new(reload::reload(&self.parts, &caller, &request.get_ref().node).await?))
    }

    async fn ping(&self, request: Request<v1::PingRequest>) -> Result<Response<v1::PingResponse>, Status> {
        Ok(Response::new(self.parts.admin.ping(&request.get_ref().node).await?))
    }
}

impl OperatorParts {
    /// The control plane's part of it.
    #[must_use]
    pub fn new(
        control: &Handles,
        packets: PacketParts,
        site: Arc<Site>,
        listeners: v1::Listeners,
        reload: ReloadHandle,
        tasks: &crate::lifecycle::tasks::Tasks,
        standalone: bool,
    ) -> Self {
        Self {
            status: control.status.clone(),
            admin: control.admin.clone(),
            nodes: control.nodes.clone(),
            view: Arc::clone(&control.view),
            peers: control.peers.clone(),
            tls: Arc::clone(&control.mesh_tls),
            epoch: control.epoch.0,
            boot_id: format!("{:?}", control.boot_id),
            listeners,
            site,
            registry: packets.registry,
            mesh: packets.mesh,
            router: packets.router,
            reload,
            started: Instant::now(),
            standalone,
            tracker: tasks.tracker.clone(),
            cancel: tasks.cancel.clone(),
        }
    }
}

/// The packet path's part of it.
#[derive(Debug, Clone)]
pub struct PacketParts {
    /// Clients here.
    pub registry: Arc<Registry>,
    /// Links to other nodes.
    pub mesh: Arc<Mesh>,
    /// Explains packets.
    pub router: Arc<Router>,
}
