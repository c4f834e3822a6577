//! Follows the set of nodes: keeps the links to every other one dialled.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use causeway_control::{Alpn, MeshStream, MeshTlsError};
use causeway_proto::id::NodeId;
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::link::MeshLink;
use super::{Mesh, connection};
use crate::pump::PacketSpawner;

/// First and longest wait before dialling again; the wait doubles, and varies by half.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(2);

/// Time for a TCP connection; TLS has its own.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Unsent bytes the kernel holds: what waits longer waits in our lanes, where order and dropping are ours.
const NOTSENT_LOWAT: u32 = 128 * 1024;

/// Unacknowledged bytes for so long end the connection.
const USER_TIMEOUT: Duration = Duration::from_secs(10);

/// A node being dialled.
struct Dialled {
    addr: String,
    link: Arc<MeshLink>,
    cancel: CancellationToken,
}

/// Keeps one link per other node until cancelled.
pub(super) async fn run(mesh: Arc<Mesh>, spawner: PacketSpawner, cancel: CancellationToken) {
    let mut nodes = mesh.parts.nodes.clone();
    let mut dialled: HashMap<NodeId, Dialled> = HashMap::new();
    loop {
        let wanted = wanted(&mesh, &nodes.borrow_and_update());
        let leaves = |node: &NodeId, dialled: &Dialled| wanted.get(node) != Some(&dialled.addr);
        for (_, left) in dialled.extract_if(|node, dialled| leaves(node, dialled)) {
            left.cancel.cancel();
        }
        for (node, addr) in wanted {
            dialled.entry(node).or_insert_with(|| dial(&mesh, node, addr, &spawner, &cancel));
        }
        mesh.links.store(Arc::new(dialled.iter().map(|(node, dialled)| (*node, Arc::clone(&dialled.link))).collect()));
        tokio::select! {
            () = cancel.cancelled() => return,
            changed = nodes.changed() => if changed.is_err() { return },
        }
    }
}

/// Every other node that says where to dial it.
fn wanted(mesh: &Mesh, nodes: &causeway_control::NodeSet) -> HashMap<NodeId, String> {
    let others = nodes.iter().filter(|node| node.id() != mesh.parts.own && !node.record.mesh_addr.is_empty());
    others.map(|node| (node.id(), node.record.mesh_addr.clone())).collect()
}

fn dial(mesh: &Arc<Mesh>, node: NodeId, addr: String, spawner: &PacketSpawner, cancel: &CancellationToken) -> Dialled {
    let link = Arc::new(MeshLink::new(node, mesh.parts.stripes));
    let cancel = cancel.child_token();
    for stripe in 0..mesh.parts.stripes {
        spawner.spawn(keep_stripe(
            Arc::clone(mesh),
            Arc::clone(&link),
            node,
            addr.clone(),
            stripe,
            spawner.clone(),
            cancel.clone(),
        ));
    }
    Dialled { addr, link, cancel }
}

/// Keeps one connection of a link up.
async fn keep_stripe(
    mesh: Arc<Mesh>,
    link: Arc<MeshLink>,
    node: NodeId,
    addr: String,
    stripe: u8,
    spawner: PacketSpawner,
    cancel: CancellationToken,
) {
    let mut backoff = BACKOFF_MIN;
    loop {
        let attempt = async {
            let io = connect(&mesh, node, &addr).await.map_err(|error| error.to_string())?;
            tracing::debug!(%node, stripe, "link connected");
            Ok(connection::run_dialled(io, &mesh, &link, stripe, spawner.clone(), cancel.child_token()).await)
        };
        let outcome = tokio::select! {
            () = cancel.cancelled() => return,
            outcome = attempt => outcome,
        };
        let error = match outcome {
            Ok((was_up, end)) => {
                if was_up {
                    backoff = BACKOFF_MIN;
                }
                end.to_string()
            }
            Err(error) => {
                mesh.metrics.dial_failed();
                error
            }
        };
        if *link.last_error.lock() != error {
            tracing::info!(%node, stripe, %error, "link is down");
            *link.last_error.lock() = error;
        }
        tokio::select! {
            () = cancel.cancelled() => return,
            () = sleep(backoff.mul_f64(rand::random_range(0.5..1.5))) => backoff = (2 * backoff).min(BACKOFF_MAX),
            () = link.retry.notified() => backoff = BACKOFF_MIN,
        }
    }
}

async fn connect(mesh: &Mesh, node: NodeId, addr: &str) -> Result<MeshStream, MeshTlsError> {
    let socket =
        timeout(CONNECT_TIMEOUT, TcpStream::connect(addr)).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    tune(&socket)?;
    let (stream, _) = mesh.parts.tls.connect_over(socket, Some(node), Alpn::Link).await?;
    Ok(stream)
}

fn tune(socket: &TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let socket = SockRef::from(socket);
    socket.set_tcp_notsent_lowat(NOTSENT_LOWAT)?;
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))
}
