//! The mesh port: mutual TLS, then by ALPN to the gRPC server or to the packet links.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use causeway_control::{Alpn, MeshStream, MeshTls, MeshTlsError, PeerIdentity, mesh_server};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::Routes;

use super::metrics::IngressMetrics;
use crate::lifecycle::runtimes::adopt;
use crate::lifecycle::tasks::Tasks;

/// Handshakes at the same time. Peers are few; strangers must not crowd them out.
const HANDSHAKES_MAX: usize = 256;

/// Accepted gRPC connections that wait for the server.
const GRPC_QUEUE: usize = 64;

/// Requests under way may end for so long after shutdown began; watch streams end with it.
const GRPC_GRACE: Duration = Duration::from_secs(1);

/// The label of this door in metrics.
pub const LABEL: &str = "mesh";

/// Takes the packet links of peers.
pub type TakeLink = Arc<dyn Fn(MeshStream, PeerIdentity) + Send + Sync>;

/// What the door is made of.
#[derive(Clone)]
pub struct MeshDoorParts {
    /// Mutual TLS.
    pub tls: Arc<MeshTls>,
    /// Control's services, and the node's own.
    pub routes: Routes,
    /// Where links go.
    pub take_link: TakeLink,
    /// Where handshakes and gRPC run.
    pub control: Handle,
    /// Whose reactor the sockets belong to: a link stays there.
    pub packet: Handle,
    /// Root of the tasks.
    pub tasks: Tasks,
    /// Counts what happens.
    pub metrics: IngressMetrics,
}

impl std::fmt::Debug for MeshDoorParts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MeshDoorParts").field("metrics", &self.metrics).finish_non_exhaustive()
    }
}

/// The door that other nodes come in by.
pub struct MeshDoor {
    parts: MeshDoorParts,
    grpc: mpsc::Sender<(MeshStream, PeerIdentity)>,
    handshakes: Arc<Semaphore>,
}

impl std::fmt::Debug for MeshDoor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MeshDoor").finish_non_exhaustive()
    }
}

impl MeshDoor {
    /// Starts the gRPC server and opens the door.
    #[must_use]
    pub fn open(parts: MeshDoorParts) -> Arc<Self> {
        let (grpc, connections) = mpsc::channel(GRPC_QUEUE);
        let cancel = parts.tasks.cancel.clone();
        let server =
            mesh_server::serve(ReceiverStream::new(connections), parts.routes.clone(), Arc::clone(&parts.tls), cancel.clone());
        let serve = async move {
            let cut = async {
                cancel.cancelled().await;
                tokio::time::sleep(GRPC_GRACE).await;
            };
            tokio::select! {
                ended = server => if let Err(error) = ended {
                    tracing::error!(%error, "the gRPC server of the mesh port ended");
                },
                () = cut => {}
            }
        };
        parts.tasks.spawn_on(&parts.control, serve);
        Arc::new(Self { parts, grpc, handshakes: Arc::new(Semaphore::new(HANDSHAKES_MAX)) })
    }

    /// Takes an accepted socket.
    pub fn take(self: &Arc<Self>, socket: std::net::TcpStream, remote: SocketAddr) {
        let Ok(turn) = Arc::clone(&self.handshakes).try_acquire_owned() else {
            return self.parts.metrics.refused(LABEL, "handshake_queue");
        };
        let Ok(socket) = adopt(&self.parts.packet, socket) else {
            return self.parts.metrics.refused(LABEL, "reactor");
        };
        let door = Arc::clone(self);
        let handshake = async move {
            let accepted = tokio::select! {
                () = door.parts.tasks.cancel.cancelled() => return,
                accepted = door.parts.tls.accept(socket) => accepted,
            };
            drop(turn);
            match accepted {
                Ok((stream, peer, Alpn::Link)) => (door.parts.take_link)(stream, peer),
                Ok((stream, peer, Alpn::Grpc)) => {
                    // The server takes connections as fast as they are accepted; this ends with it.
                    if door.grpc.send((stream, peer)).await.is_err() {
                        door.parts.metrics.refused(LABEL, "shutdown");
                    }
                }
                Err(error) => {
                    door.parts.metrics.refused(LABEL, reason(&error));
                    log_refused(remote, &error);
                }
            }
        };
        self.parts.tasks.spawn_on(&self.parts.control, handshake);
    }
}

/// A wrong mesh key is an operator's mistake and worth a line; anybody may knock with anything else.
fn log_refused(remote: SocketAddr, error: &MeshTlsError) {
    match error {
        MeshTlsError::WrongMeshKey { .. } | MeshTlsError::NotAllowed(_) | MeshTlsError::CertificateTime => {
            tracing::warn!(%remote, %error, "refused a node on the mesh port");
        }
        _ => tracing::debug!(%remote, %error, "refused a connection on the mesh port"),
    }
}

const fn reason(error: &MeshTlsError) -> &'static str {
    match error {
        MeshTlsError::WrongMeshKey { .. } => "wrong_mesh_key",
        MeshTlsError::WrongNode { .. } => "wrong_node",
        MeshTlsError::NotAllowed(_) => "not_allowed",
        MeshTlsError::CertificateTime => "certificate_time",
        MeshTlsError::Protocol => "protocol",
        MeshTlsError::Timeout => "timeout",
        _ => "io",
    }
}
