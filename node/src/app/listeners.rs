//! All listeners of a node: bound together before anything else starts, served together once everything is ready.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::ingress::door::Doors;
use crate::ingress::http::Door;
use crate::ingress::listener::{BindError, Listener};
use crate::ingress::mesh::{self, MeshDoor};
use crate::ingress::metrics::IngressMetrics;
use crate::ingress::operator::{self, OperatorPort};
use crate::ingress::stun::StunServer;
use crate::lifecycle::tasks::Tasks;

/// Addresses as bound.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bound {
    pub(super) derp: SocketAddr,
    pub(super) plain_http: Option<SocketAddr>,
    pub(super) stun: Option<SocketAddr>,
    pub(super) mesh: Option<SocketAddr>,
    pub(super) operator: Option<SocketAddr>,
    pub(super) metrics: Option<SocketAddr>,
}

/// Bound, but nobody is served yet: the kernel lets clients wait.
#[derive(Debug)]
pub(super) struct Listeners {
    pub(super) bound: Bound,
    derp: Listener,
    plain_http: Option<Listener>,
    metrics: Option<Listener>,
    mesh: Option<Listener>,
    operator: Option<Listener>,
    stun: Option<StunServer>,
}

impl Listeners {
    /// Binds every address of the configuration, or none.
    pub(super) fn bind(config: &Config, metrics: &IngressMetrics) -> Result<Self, BindError> {
        let optional = |field, address: Option<SocketAddr>| address.map(|address| Listener::bind(field, address)).transpose();
        let derp = Listener::bind("derp.listen", config.derp.listen)?;
        let plain_http = optional("derp.plain_http_listen", config.derp.plain_http_listen)?;
        let mesh = optional("mesh.listen", config.mesh.listen)?;
        let operator = optional("operator.listen", config.operator.listen)?;
        let metrics_listener = optional("metrics.listen", config.metrics_listen)?;
        let now = Instant::now();
        let stun =
            config.stun.map(|stun| StunServer::bind(stun, config.limits.stun_answers_per_second, metrics, now)).transpose()?;
        let address = |listener: &Option<Listener>| listener.as_ref().map(Listener::local_addr);
        let bound = Bound {
            derp: derp.local_addr(),
            plain_http: address(&plain_http),
            stun: stun.as_ref().map(StunServer::local_addr),
            mesh: address(&mesh),
            operator: address(&operator),
            metrics: address(&metrics_listener),
        };
        Ok(Self { bound, derp, plain_http, metrics: metrics_listener, mesh, operator, stun })
    }

    /// Serves them all. Returns what ends the listeners for clients.
    pub(super) fn serve(
        self,
        doors: &Arc<Doors>,
        mesh_door: &Arc<MeshDoor>,
        operator_port: OperatorPort,
        runtime: &Handle,
        tasks: &Tasks,
        metrics: &IngressMetrics,
    ) -> CancellationToken {
        let for_clients = tasks.cancel.child_token();
        let http = [
            (Door::Derp, Some(self.derp), &for_clients),
            (Door::Plain, self.plain_http, &for_clients),
            (Door::Metrics, self.metrics, &tasks.cancel),
        ];
        for (door, listener, cancel) in http {
            let Some(listener) = listener else { continue };
            let doors = Arc::clone(doors);
            let take = move |socket, remote| doors.take(door, socket, remote);
            tasks.spawn_on(runtime, listener.run(cancel.clone(), metrics.accept(door.label()), take));
        }
        if let Some(listener) = self.mesh {
            let door = Arc::clone(mesh_door);
            let take = move |socket, remote| door.take(socket, remote);
            tasks.spawn_on(runtime, listener.run(tasks.cancel.clone(), metrics.accept(mesh::LABEL), take));
        }
        if let Some(listener) = self.operator {
            let take = move |socket, remote| operator_port.take(socket, remote);
            tasks.spawn_on(runtime, listener.run(tasks.cancel.clone(), metrics.accept(operator::LABEL), take));
        }
        if let Some(stun) = self.stun {
            tasks.spawn_on(runtime, stun.run(for_clients.clone(), Instant::now));
        }
        for_clients
    }
}
