//! The one wiring file: what a node is made of, in the order in which it starts.

mod limits;
mod listeners;
mod record;
mod reload;

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use causeway_control::{ControlPlane, Handles};
use causeway_proto::derp::handshake::server::{MeshKeys, ServerIdentity};
use causeway_proto::key::NodePublic;
use causeway_rpc::v1;
use prometheus_client::registry::Registry as MetricsRegistry;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::admission::{self, Policy};
use crate::clients::{self, Registry, RegistryParts};
use crate::config::metrics::ConfigMetrics;
use crate::config::{Announce, Config, SHUTDOWN_DEADLINE, Source};
use crate::derp_mesh::{self, DerpMeshParts, Derpers};
use crate::forward::PacketForwarder;
use crate::forward::links::NodeLinks;
use crate::ingress::debug::{DebugPages, DebugParts};
use crate::ingress::derp::{DerpParts, DerpServer, KEEP_ALIVE};
use crate::ingress::door::{Balancers, DoorParts, Doors};
use crate::ingress::http::bootstrap_dns::SystemResolver;
use crate::ingress::http::{BootstrapDns, DebugDesk, DerpMapDocument, Site};
use crate::ingress::mesh::{MeshDoor, MeshDoorParts};
use crate::ingress::metrics::IngressMetrics;
use crate::ingress::operator::{OperatorDoor, OperatorPort, OperatorSocket};
use crate::ingress::round_trips;
use crate::ingress::server_key::server_key;
use crate::ingress::tls::ServerCertificate;
use crate::lifecycle::clock::wall_clock;
use crate::lifecycle::health::Health;
use crate::lifecycle::leash;
use crate::lifecycle::ready_file::{self, Ready, ReadyFile};
use crate::lifecycle::runtimes::Runtimes;
use crate::lifecycle::shutdown::{Signals, Wanted};
use crate::lifecycle::tasks::Tasks;
use crate::limits::connections::ConnectionGate;
use crate::mesh::{Mesh, MeshParts};
use crate::operator::{ConfigurationService, OperatorParts, OperatorService, PacketParts, ReloadHandle};
use crate::pump::PacketSpawner;
use crate::pump::lanes::{MemoryBudget, PumpShared};
use crate::router::explain::RoutingService;
use crate::router::metrics::PacketBooks;
use crate::router::{Router, RouterParts};
use crate::telemetry::exporter::{Exporter, registry};
use crate::telemetry::grpc::TraceLayer;
use crate::telemetry::logs::{self, LogFilter};
use crate::telemetry::process;
use crate::telemetry::traces::{Traces, sample};
use listeners::Listeners;
use reload::Reloader;

/// What the command line adds to the configuration.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// `--ready-file`.
    pub ready_file: Option<PathBuf>,
    /// `--leash`.
    pub leash: Option<PathBuf>,
    /// The effective configuration as text, for the log.
    pub effective: String,
}

/// Runs a node until it is told to end.
///
/// # Errors
/// It cannot start, or must stop; nothing is left half started.
pub fn run(config: Config, source: Source, options: &Options) -> anyhow::Result<()> {
    let runtimes =
        Runtimes::start(config.control_threads, config.packet_threads).context("cannot start the runtimes' threads")?;
    let ended = runtimes.block_on(supervise(config, source, options, &runtimes));
    runtimes.stop();
    ended
}

/// Telemetry around the node's life.
async fn supervise(config: Config, source: Source, options: &Options, runtimes: &Runtimes) -> anyhow::Result<()> {
    let traces = config.otlp.as_ref().map(|otlp| Traces::start(otlp, &config.name, &config.region.code)).transpose()?;
    let log_filter = logs::init(&config.log_filter, config.log_format, traces.as_ref())?;
    process::count_panics();
    tracing::info!(version = env!("CARGO_PKG_VERSION"), node = %config.name, config = %options.effective, "starting");

    let tasks = Tasks::default();
    let ended = live(config, (source, log_filter), options, runtimes, &tasks).await;
    if let Err(left) = tasks.end(SHUTDOWN_DEADLINE).await {
        tracing::warn!(%left, "shutdown was cut short");
    }
    if let Some(Err(error)) = traces.map(|traces| traces.flush()) {
        tracing::warn!(%error, "the last traces were not exported");
    }
    ended
}

/// From the first listener to the signal that ends it all.
async fn live(
    config: Config,
    (source, log_filter): (Source, LogFilter),
    options: &Options,
    runtimes: &Runtimes,
    tasks: &Tasks,
) -> anyhow::Result<()> {
    let mut signals = Signals::catch().context("cannot catch signals")?;
    let leash = options.leash.as_deref().map(leash::watch).transpose()?;
    if let Some(path) = &options.ready_file {
        ReadyFile::clear(path)?;
    }
    let metrics = IngressMetrics::default();
    let listeners = Listeners::bind(&config, &metrics)?;
    let (reload, mut reloads) = ReloadHandle::new();
    let mut node = start(&config, listeners, metrics, reload, runtimes, tasks).await?;
    let _ready_file = options.ready_file.as_ref().map(|path| ReadyFile::write(path, &node.ready)).transpose()?;
    tracing::info!(ready = ?node.ready, "serving");
    let mut reloader = Reloader {
        source,
        doors: Arc::clone(&node.doors),
        clients: Arc::clone(&node.clients),
        admission: Arc::clone(&node.admission),
        log_filter,
        metrics: node.config_metrics.clone(),
    };

    let leash_released = async {
        match &leash {
            Some(released) => released.cancelled().await,
            None => std::future::pending().await,
        }
    };
    let mut leash_released = std::pin::pin!(leash_released);
    loop {
        tokio::select! {
            wanted = signals.next() => match wanted {
                Wanted::Reload => drop(reloader.reload()),
                Wanted::End(signal) => {
                    tracing::info!(signal, "shutting down");
                    break;
                }
            },
            // An operator who does not wait for the answer finds it in the log.
            Some(asked) = reloads.recv() => drop(asked.send(reloader.reload())),
            () = &mut leash_released => {
                tracing::info!("shutting down: nobody holds the leash any more");
                break;
            }
            fatal = fatal(&mut node.control) => return Err(fatal.into()),
        }
    }
    // Whoever comes back at once comes back elsewhere.
    node.listening.cancel();
    node.clients.shut_down().await;
    Ok(())
}

/// Waits until the control plane says that the process must stop.
async fn fatal(control: &mut Handles) -> causeway_control::Fatal {
    loop {
        if let Some(fatal) = control.fatal.borrow_and_update().clone() {
            return fatal;
        }
        if control.fatal.changed().await.is_err() {
            // The control plane is being shut down.
            std::future::pending::<()>().await;
        }
    }
}

/// What must be kept while the node runs.
struct Node {
    control: Handles,
    /// Ends the listeners for clients.
    listening: CancellationToken,
    clients: Arc<Registry>,
    admission: Arc<Policy>,
    doors: Arc<Doors>,
    config_metrics: ConfigMetrics,
    ready: Ready,
}

async fn start(
    config: &Config,
    listeners: Listeners,
    metrics: IngressMetrics,
    reload: ReloadHandle,
    runtimes: &Runtimes,
    tasks: &Tasks,
) -> anyhow::Result<Node> {
    // Identity towards clients.
    let server_key = server_key(&config.derp)?;
    let derp_public_key = server_key.public();
    let names = record::certificate_names(&config.advertise);
    let certificate = ServerCertificate::load(&config.tls, &names, &derp_public_key, wall_clock())?;
    let tls = TlsAcceptor::from(certificate.server_config()?);

    // Control plane.
    let record = record::node_record(config, &listeners.bound, &derp_public_key, certificate.pin());
    let control = ControlPlane::start(record::control_config(config, record), record::control_deps(tasks)).await?;

    // Packet path.
    let packets = PacketPath::start(config, &control, runtimes, tasks);
    start_derp_mesh(config, &server_key, &control, &packets, tasks);
    let admission = start_admission(config, &packets.registry, runtimes, tasks);
    let derp = derp_server(config, server_key, &admission, &packets, tasks);

    // What operators and probes see.
    let config_metrics = ConfigMetrics::default();
    let health = Health::default();
    let status = control.status.clone();
    health.add(move || status.not_ready_because());
    let served = Arc::clone(&certificate);
    health.add(move || served.not_ready_because(wall_clock()));
    let exporter = Exporter::new(metrics_registry(&metrics, &control, &packets, &derp, &admission, &config_metrics));
    let pages = DebugPages::new(DebugParts {
        exporter: exporter.clone(),
        registry: Arc::clone(&packets.registry),
        view: Arc::clone(&control.view),
        admission: Arc::<Policy>::clone(&admission),
        server_key: derp_public_key,
        region: config.region.id,
        started: wall_clock(),
        clock: wall_clock,
    });
    let site = Arc::new(Site {
        node_name: config.name.clone(),
        host_name: config.advertise.host_name.clone(),
        https_port: config.advertise.derp_port.unwrap_or(listeners.bound.derp.port()),
        home: config.http.home.clone(),
        plain_serves_derp: config.derp.plain_http_serves_derp,
        trusted_proxies: config.http.trusted_proxies.clone(),
        debug: DebugDesk {
            networks: config.http.debug_networks.clone(),
            key: config.http.debug_key.clone(),
            has_mesh_key: config.derp_mesh.is_some(),
            started: tokio::time::Instant::now(),
            pages,
        },
        bootstrap_dns: bootstrap_dns(config, &metrics, runtimes, tasks)?,
        derp_map: DerpMapDocument::new(control.derp_map.clone()),
        challenges: certificate.challenges(),
        clock: wall_clock,
        health: health.clone(),
        exporter,
        metrics: metrics.clone(),
    });

    // Front doors.
    let control_runtime = runtimes.control();
    let doors = Doors::new(DoorParts {
        tls,
        site: Arc::clone(&site),
        derp,
        gate: ConnectionGate::new(limits::connection_limits(&config.limits)),
        balancers: Balancers { derp: config.proxy_protocol.derp.clone(), plain_http: config.proxy_protocol.plain_http.clone() },
        proxied: limits::count(config.limits.unauthenticated),
        handshakes: limits::handshakes(&config.limits),
        control: control_runtime.clone(),
        packet: runtimes.packet().clone(),
        tasks: tasks.clone(),
        metrics: metrics.clone(),
    });
    let mesh_door = MeshDoor::open(MeshDoorParts {
        tls: Arc::clone(&control.mesh_tls),
        routes: TraceLayer::CONTINUES.on(control
            .routes
            .clone()
            .add_service(RoutingService::new(Arc::clone(&packets.router), control.peers.clone()).server())
            .add_service(ConfigurationService::new(reload.clone(), control.status.clone()).server())),
        take_link: {
            let acceptor = packets.acceptor.clone();
            Arc::new(move |stream, peer| acceptor.accept(stream, peer.node_id))
        },
        control: control_runtime.clone(),
        packet: runtimes.packet().clone(),
        tasks: tasks.clone(),
        metrics: metrics.clone(),
    });
    let ready = ready(config, &control, &listeners, &derp_public_key);
    let parts = OperatorParts::new(&control, packets.for_operators(), site, shown(&ready), reload, tasks, config.standalone);
    let (operator_door, serve_operators) =
        OperatorDoor::new(OperatorService::routes(parts).await?, metrics.clone(), tasks.cancel.clone());
    tasks.spawn_on(control_runtime, serve_operators);
    let socket = OperatorSocket::bind(&config.operator.socket)?;
    tasks.spawn_on(control_runtime, socket.run(Arc::clone(&operator_door), tasks.cancel.clone()));
    let operator_port = OperatorPort {
        door: operator_door,
        tls: Arc::clone(&control.mesh_tls),
        status: control.status.clone(),
        runtime: control_runtime.clone(),
        tasks: tasks.clone(),
    };
    let clients_by = [Some(listeners.bound.derp), listeners.bound.plain_http].into_iter().flatten().collect();
    let round_trips = metrics.round_trips().clone();
    let registry = Arc::clone(&packets.registry);
    tasks.spawn_on(control_runtime, round_trips::keep_reading(registry, clients_by, round_trips, tasks.cancel.clone()));
    let listening = listeners.serve(&doors, &mesh_door, operator_port, control_runtime, tasks, &metrics);
    if let Some(pin) = certificate.pin() {
        record::tell_map_entry(&pin, &control.nodes.borrow());
    }
    // An ACME directory asks at the doors: they must be open.
    tasks.spawn_on(control_runtime, certificate.keep(tasks.clone(), metrics, wall_clock));
    Ok(Node { control, listening, clients: packets.registry, admission, doors, config_metrics, ready })
}

/// Clients, links and the router between them.
struct PacketPath {
    pump: PumpShared,
    registry: Arc<Registry>,
    mesh: Arc<Mesh>,
    derpers: Arc<Derpers>,
    router: Arc<Router>,
    acceptor: crate::mesh::LinkAcceptor,
    spawner: PacketSpawner,
}

impl PacketPath {
    fn start(config: &Config, control: &Handles, runtimes: &Runtimes, tasks: &Tasks) -> Self {
        let budget = MemoryBudget::new(limits::count(config.limits.queue_bytes_total));
        let pump = PumpShared { accounting: Arc::default(), budget: Arc::new(budget) };
        let own = control.identity.node_id;
        let registry = Registry::new(RegistryParts {
            owner_log: control.owner_log.clone(),
            clock: Arc::new(wall_clock),
            pump: pump.clone(),
            limits: limits::client_limits(&config.limits),
            announce: config.derp_mesh.as_ref().map_or(Announce::Region, |mesh| mesh.announce),
        });
        let derpers = Derpers::new(Arc::clone(&registry), config.derp_mesh.as_ref().map_or(0, |mesh| mesh.keys_max));
        let mesh = Mesh::new(MeshParts {
            own,
            epoch: control.epoch,
            tls: Arc::clone(&control.mesh_tls),
            nodes: control.nodes.clone(),
            view: Arc::clone(&control.view),
            pump: pump.clone(),
            stripes: config.mesh.stripes,
        });
        let router = Router::new(RouterParts {
            own,
            registry: Arc::clone(&registry),
            view: Arc::clone(&control.view),
            links: Arc::clone(&mesh) as Arc<dyn NodeLinks>,
            derpers: Arc::clone(&derpers),
            accounting: Arc::clone(&pump.accounting),
            sampler: sample,
        });
        let spawner = PacketSpawner::new(tasks.tracker.clone(), runtimes.packet().clone());
        let acceptor = mesh.start(Arc::clone(&router) as Arc<dyn PacketForwarder>, spawner.clone(), tasks.cancel.clone());
        let events = clients::events::follow(Arc::clone(&registry), Arc::clone(&control.view), own, tasks.cancel.clone());
        tasks.spawn_on(runtimes.control(), events);
        Self { pump, registry, mesh, derpers, router, acceptor, spawner }
    }
}

impl PacketPath {
    fn for_operators(&self) -> PacketParts {
        PacketParts { registry: Arc::clone(&self.registry), mesh: Arc::clone(&self.mesh), router: Arc::clone(&self.router) }
    }
}

/// Who may log in, and the tasks that keep it true.
fn start_admission(config: &Config, clients: &Arc<Registry>, runtimes: &Runtimes, tasks: &Tasks) -> Arc<Policy> {
    let runtime = runtimes.control();
    let policy = Policy::new(&config.admission, runtime.clone(), tasks.clone());
    reload::warn_if_open(&policy);
    tasks.spawn_on(runtime, admission::watch::lists(Arc::clone(&policy), tasks.cancel.clone()));
    let recheck = admission::watch::clients(Arc::clone(&policy), Arc::clone(clients), tasks.cancel.clone());
    tasks.spawn_on(runtime, recheck);
    policy
}

/// Dials the stock derpers of the configuration.
fn start_derp_mesh(
    config: &Config,
    server_key: &causeway_proto::key::NodePrivate,
    control: &Handles,
    packets: &PacketPath,
    tasks: &Tasks,
) {
    let Some(mesh) = &config.derp_mesh else { return };
    let parts = DerpMeshParts {
        server_key: server_key.clone(),
        mesh_key: mesh.key.clone(),
        trust: mesh.trust.clone(),
        nodes: control.nodes.clone(),
        derpers: Arc::clone(&packets.derpers),
        pump: packets.pump.clone(),
        spawner: packets.spawner.clone(),
        cancel: tasks.cancel.clone(),
    };
    derp_mesh::start(&parts, &mesh.with);
}

fn derp_server(
    config: &Config,
    server_key: causeway_proto::key::NodePrivate,
    admission: &Arc<Policy>,
    packets: &PacketPath,
    tasks: &Tasks,
) -> Arc<DerpServer> {
    let mesh_keys = MeshKeys { current: config.derp_mesh.as_ref().map(|mesh| mesh.key.clone()), previous: None };
    DerpServer::new(DerpParts {
        identity: Arc::new(ServerIdentity::new(server_key, mesh_keys)),
        mesh_sources: config.derp_mesh.as_ref().map(|mesh| mesh.allow.clone()).unwrap_or_default(),
        admission: Arc::<Policy>::clone(admission),
        registry: Arc::clone(&packets.registry),
        router: Arc::clone(&packets.router),
        accounting: Arc::clone(&packets.pump.accounting),
        spawner: packets.spawner.clone(),
        cancel: tasks.cancel.clone(),
        keep_alive: KEEP_ALIVE,
    })
}

/// Resolves the names for clients without DNS, if there are any.
fn bootstrap_dns(
    config: &Config,
    metrics: &IngressMetrics,
    runtimes: &Runtimes,
    tasks: &Tasks,
) -> anyhow::Result<Arc<BootstrapDns>> {
    let dns = BootstrapDns::new(metrics.bootstrap_dns().clone());
    if let Some(names) = &config.bootstrap_dns {
        let resolver = SystemResolver::new(&names.servers).context("bootstrap_dns: cannot ask the system's DNS servers")?;
        let refresh = Arc::clone(&dns).keep_fresh(names.clone(), resolver, tasks.cancel.clone());
        tasks.spawn_on(runtimes.control(), refresh);
    }
    Ok(dns)
}

fn metrics_registry(
    ingress: &IngressMetrics,
    control: &Handles,
    packets: &PacketPath,
    derp: &DerpServer,
    admission: &Policy,
    config: &ConfigMetrics,
) -> MetricsRegistry {
    let mut registry = registry();
    config.register(&mut registry);
    admission.metrics().register(&mut registry);
    ingress.register(&mut registry);
    control.metrics.register(&mut registry);
    packets.router.metrics().register(&mut registry);
    packets.registry.metrics().register(&mut registry);
    packets.mesh.metrics().register(&mut registry);
    packets.derpers.metrics().register(&mut registry);
    derp.metrics().register(&mut registry);
    registry.register_collector(Box::new(PacketBooks(Arc::clone(&packets.pump.accounting))));
    registry
}

/// The same addresses for operators.
fn shown(ready: &Ready) -> v1::Listeners {
    v1::Listeners {
        derp: ready.derp.clone(),
        plain_http: ready.plain_http.clone(),
        stun: ready.stun.clone(),
        mesh: ready.mesh.clone(),
        operator: ready.operator.clone(),
        operator_socket: ready.operator_socket.clone(),
        metrics: ready.metrics.clone(),
    }
}

fn ready(config: &Config, control: &Handles, listeners: &Listeners, derp_public_key: &NodePublic) -> Ready {
    let bound = &listeners.bound;
    let shown = |address: Option<std::net::SocketAddr>| address.map(|address| address.to_string()).unwrap_or_default();
    Ready {
        version: ready_file::VERSION,
        name: config.name.clone(),
        node_id: control.identity.node_id.to_string(),
        pid: std::process::id(),
        epoch: control.epoch.0,
        derp: bound.derp.to_string(),
        plain_http: shown(bound.plain_http),
        stun: shown(bound.stun),
        mesh: shown(bound.mesh),
        operator: shown(bound.operator),
        operator_socket: config.operator.socket.display().to_string(),
        metrics: bound.metrics.map(|address| format!("http://{address}/metrics")).unwrap_or_default(),
        derp_public_key: derp_public_key.to_untyped_hex(),
    }
}
