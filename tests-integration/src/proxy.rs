//! Cuts single node-to-node connections: a proxy before every node's mesh port, which knows the process that dials.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::cluster::{Cluster, wait_for};

/// Forming anew after every node was restarted behind its proxy.
const HEALTHY_DEADLINE: Duration = Duration::from_secs(60);

/// Proxies before the mesh ports of all nodes of a fleet. Dropping it closes every connection.
#[derive(Debug)]
pub struct MeshProxies {
    shared: Arc<Shared>,
    tasks: TaskTracker,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    cancel: CancellationToken,
}

#[derive(Debug, Default)]
struct State {
    /// Pairs of node names, the smaller first.
    cut: BTreeSet<(String, String)>,
    /// Process id and name of every node, as of its last start.
    nodes: Vec<(u32, String)>,
    /// Every open connection: who dials whom, and how to close it.
    open: Vec<(String, String, CancellationToken)>,
}

impl MeshProxies {
    /// Restarts every node of the fleet with a proxy as its advertised mesh address, and waits until the fleet is healthy.
    ///
    /// # Errors
    /// A node does not come back.
    pub async fn interpose(cluster: &Cluster) -> anyhow::Result<Self> {
        let shared = Arc::new(Shared { state: Mutex::default(), cancel: CancellationToken::new() });
        let proxies = Self { shared, tasks: TaskTracker::new() };
        for node in cluster.nodes() {
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            let address = listener.local_addr()?;
            cluster.stop(&node.name).await?;
            cluster.reconfigure(&node.name, &[&format!("advertise.mesh=\"{address}\"")])?;
            cluster.start_node(&node.name).await?;
            let (pid, target) = cluster.node_process(&node.name)?;
            proxies.shared.state.lock().nodes.push((pid, node.name.clone()));
            let (shared, tasks, name) = (proxies.shared.clone(), proxies.tasks.clone(), node.name.clone());
            proxies.tasks.spawn(async move { shared.accept(&listener, &name, target, &tasks).await });
        }
        let first = cluster.nodes().first().context("a fleet has nodes")?;
        cluster.wait_healthy(&first.name, HEALTHY_DEADLINE).await?;
        // Whatever was dialled around the proxies, on addresses from before, must be gone for a cut to mean anything.
        let pairs = cluster.nodes().len() * (cluster.nodes().len() - 1);
        let mut connected = BTreeSet::new();
        let all = wait_for("all pairs to be connected through the proxies", HEALTHY_DEADLINE, async || {
            connected = proxies.shared.state.lock().open.iter().map(|(from, to, _)| (from.clone(), to.clone())).collect();
            Ok((connected.len() == pairs).then_some(()))
        })
        .await;
        all.with_context(|| format!("only these are: {connected:?}"))?;
        Ok(proxies)
    }

    /// Closes every connection between two nodes, in both directions, and refuses new ones.
    pub async fn cut(&self, one: &str, other: &str) {
        let closed = {
            let mut state = self.shared.state.lock();
            state.cut.insert(pair(one, other));
            let between = |from: &str, to: &str| pair(from, to) == pair(one, other);
            state.open.iter().filter(|(from, to, _)| between(from, to)).map(|(_, _, close)| close.clone()).collect::<Vec<_>>()
        };
        for close in closed {
            close.cancel();
        }
        tokio::task::yield_now().await;
    }

    /// Lets all connections through again.
    pub async fn mend(&self) {
        self.shared.state.lock().cut.clear();
        tokio::task::yield_now().await;
    }
}

impl Drop for MeshProxies {
    fn drop(&mut self) {
        self.shared.cancel.cancel();
    }
}

impl Shared {
    async fn accept(self: Arc<Self>, listener: &TcpListener, node: &str, target: SocketAddr, tasks: &TaskTracker) {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = self.cancel.cancelled() => return,
            };
            let Ok((stream, from)) = accepted else { continue };
            let (shared, node) = (self.clone(), node.to_owned());
            tasks.spawn(async move { shared.relay(stream, from, node, target).await });
        }
    }

    async fn relay(&self, mut stream: TcpStream, from: SocketAddr, to: String, target: SocketAddr) {
        let close = self.cancel.child_token();
        let Some(dialler) = self.dialler(from) else { return };
        {
            let mut state = self.state.lock();
            if state.cut.contains(&pair(&dialler, &to)) {
                return;
            }
            state.open.push((dialler, to, close.clone()));
        }
        if let Ok(mut onward) = TcpStream::connect(target).await {
            // Either end closing, or a cut, ends both sides.
            tokio::select! {
                _ = tokio::io::copy_bidirectional(&mut stream, &mut onward) => {}
                () = close.cancelled() => {}
            }
        }
        close.cancel();
        self.state.lock().open.retain(|(_, _, token)| !token.is_cancelled());
    }

    /// The node whose process holds the local end of a connection from `address`.
    fn dialler(&self, address: SocketAddr) -> Option<String> {
        let inode = socket_inode(address)?;
        let nodes = self.state.lock().nodes.clone();
        nodes.into_iter().find(|(pid, _)| holds_socket(*pid, &inode)).map(|(_, name)| name)
    }
}

fn pair(one: &str, other: &str) -> (String, String) {
    let (small, large) = if one < other { (one, other) } else { (other, one) };
    (small.to_owned(), large.to_owned())
}

/// The inode of the IPv4 TCP socket bound to `address`, as the kernel lists it.
fn socket_inode(address: SocketAddr) -> Option<String> {
    let SocketAddr::V4(address) = address else { return None };
    let wanted = format!("{:08X}:{:04X}", u32::from_ne_bytes(address.ip().octets()), address.port());
    let table = std::fs::read_to_string("/proc/net/tcp").ok()?;
    let line = table.lines().find(|line| line.split_whitespace().nth(1) == Some(&wanted))?;
    line.split_whitespace().nth(9).map(str::to_owned)
}

fn holds_socket(pid: u32, inode: &str) -> bool {
    let wanted = format!("socket:[{inode}]");
    let Ok(descriptors) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    descriptors.flatten().any(|entry| std::fs::read_link(entry.path()).is_ok_and(|link| link.to_str() == Some(&wanted)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_dialling_process_is_found_by_its_socket() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let stream = TcpStream::connect(listener.local_addr().expect("address")).await.expect("connect");
        let (_accepted, from) = listener.accept().await.expect("accept");
        let inode = socket_inode(from).expect("listed");
        assert!(holds_socket(std::process::id(), &inode));
        assert!(!holds_socket(1, &inode) || std::process::id() == 1);
        drop(stream);
    }
}
