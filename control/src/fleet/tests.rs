//! Fleets in this process: real sockets, TLS and disks; each node on a runtime of its own, so that it can be killed.
#![allow(clippy::unwrap_used, reason = "tests")]

mod disks;
mod formation;
mod identity;
mod refusals;

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use causeway_proto::id::{Epoch, NodeId};
use causeway_proto::key::MeshKey;
use causeway_proto::presence::{ClaimKind, PresenceKey};
use causeway_rpc::v1;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::identity::FleetCa;
use crate::raft::fleet_state::sample_record;
use crate::{Alpn, Config, ControlPlane, Deps, Fatal, Handles, RaftProfile, Seeds, StartError, mesh_server};

/// Longest wait for anything here, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(40);

struct TestFleet {
    dir: TempDir,
    mesh_key: MeshKey,
    seeds: Vec<String>,
}

struct TestNode {
    handles: Handles,
    runtime: Runtime,
    addr: SocketAddr,
    name: String,
    region: u64,
}

impl TestFleet {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), mesh_key: MeshKey::generate(), seeds: Vec::new() }
    }

    fn config(&self, name: &str, region: u64, addr: SocketAddr) -> Config {
        Config {
            name: name.to_owned(),
            data_dir: self.data_dir(name),
            mesh_key: self.mesh_key.clone(),
            mesh_key_next: None,
            record: v1::NodeRecord { mesh_addr: addr.to_string(), ..sample_record(name, region) },
            seeds: Seeds { static_list: self.seeds.clone(), ..Seeds::default() },
            profile: RaftProfile::Lan,
            voter_eligible: true,
            standalone: false,
        }
    }

    fn data_dir(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Starts a node on a port of its own, or again on the one it had.
    async fn try_start(
        &self,
        config: impl FnOnce(SocketAddr) -> Config,
        addr: Option<SocketAddr>,
    ) -> Result<TestNode, StartError> {
        self.try_start_at(config, addr, Arc::new(SystemTime::now)).await
    }

    async fn try_start_at(
        &self,
        config: impl FnOnce(SocketAddr) -> Config,
        addr: Option<SocketAddr>,
        clock: crate::WallClock,
    ) -> Result<TestNode, StartError> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let addr = addr.unwrap_or_else(|| ([127, 0, 0, 1], 0).into());
        let listener = runtime.spawn(listen(addr)).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let config = config(addr);
        let (name, region) = (config.name.clone(), config.record.region.as_ref().map_or(0, |region| region.id));
        let deps = Deps { tracker: TaskTracker::new(), cancel: CancellationToken::new(), clock, tracing: crate::Tracing::OFF };
        let started = runtime.spawn(async move {
            let handles = ControlPlane::start(config, deps.clone()).await?;
            serve(listener, &handles, &deps);
            Ok(handles)
        });
        match started.await.unwrap() {
            Ok(handles) => Ok(TestNode { handles, runtime, addr, name, region }),
            Err(error) => {
                runtime.shutdown_background();
                Err(error)
            }
        }
    }

    async fn start(&self, name: &str, region: u64) -> TestNode {
        self.try_start(|addr| self.config(name, region, addr), None).await.unwrap()
    }

    /// Starts the nodes, all with the first one as their seed.
    async fn start_all(&mut self, names: &[(&str, u64)]) -> Vec<TestNode> {
        let mut nodes = Vec::new();
        for (name, region) in names {
            nodes.push(self.start(name, *region).await);
            self.seeds = vec![nodes[0].addr.to_string()];
        }
        nodes
    }

    /// Starts a killed node again, with its directory and port.
    async fn restart(&self, killed: Killed) -> TestNode {
        let began = Instant::now();
        loop {
            let again = self.try_start(|addr| self.config(&killed.name, killed.region, addr), Some(killed.addr)).await;
            match again {
                Ok(node) => return node,
                // The tasks of a runtime that was shut down end a moment later.
                Err(StartError::DataDir(_) | StartError::Raft(_)) if began.elapsed() < PATIENCE => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(error) => panic!("{error}"),
            }
        }
    }
}

struct Killed {
    addr: SocketAddr,
    name: String,
    region: u64,
}

impl TestNode {
    /// Ends the node as `kill -9` would: no task runs on, every socket closes.
    fn kill(self) -> Killed {
        self.runtime.shutdown_background();
        Killed { addr: self.addr, name: self.name, region: self.region }
    }

    fn id(&self) -> NodeId {
        self.handles.identity.node_id
    }

    fn claim(&self, key: PresenceKey) {
        self.handles.owner_log.claim(key, ClaimKind::Derp, true, crate::watch::micros(SystemTime::now())).unwrap();
    }

    fn cluster(&self) -> v1::ClusterStatus {
        self.handles.status.cluster()
    }

    async fn committed(&self, key: PresenceKey) -> Option<Vec<(NodeId, Epoch)>> {
        let claims = self.handles.admin.consistent_claims(key).await.ok()?;
        Some(claims.iter().map(|claim| (claim.rank.node, claim.epoch)).collect())
    }
}

/// Binds; the port of a killed node becomes free a moment after its runtime was shut down.
async fn listen(addr: SocketAddr) -> TcpListener {
    let began = Instant::now();
    loop {
        match TcpListener::bind(addr).await {
            Ok(listener) => return listener,
            Err(error) => assert!(began.elapsed() < PATIENCE, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn serve(listener: TcpListener, handles: &Handles, deps: &Deps) {
    let (connections, incoming) = mpsc::channel(64);
    let tls = Arc::clone(&handles.mesh_tls);
    let tracker = deps.tracker.clone();
    deps.tracker.spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let (tls, connections) = (Arc::clone(&tls), connections.clone());
            tracker.spawn(async move {
                if let Ok((stream, peer, Alpn::Grpc)) = tls.accept(socket).await {
                    drop(connections.send((stream, peer)).await);
                }
            });
        }
    });
    let (routes, tls) = (handles.routes.clone(), Arc::clone(&handles.mesh_tls));
    let serving = mesh_server::serve(ReceiverStream::new(incoming), routes, tls, deps.cancel.clone());
    deps.tracker.spawn(serving);
}

/// Waits for something to become true.
async fn eventually(what: &str, mut is: impl AsyncFnMut() -> bool) -> Duration {
    let began = Instant::now();
    while !is().await {
        assert!(began.elapsed() < PATIENCE, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    began.elapsed()
}

async fn all_healthy(nodes: &[TestNode]) {
    for node in nodes {
        eventually("a healthy fleet", async || {
            let cluster = node.cluster();
            cluster.healthy && cluster.nodes.len() == nodes.len() && node.handles.status.not_ready_because().is_empty()
        })
        .await;
    }
}

fn init(expected_nodes: u32) -> v1::InitClusterRequest {
    v1::InitClusterRequest { expected_nodes, wait_ms: 20_000, ..Default::default() }
}

fn key(byte: u8) -> PresenceKey {
    PresenceKey([byte; 32])
}

async fn set_derp_map(nodes: &[TestNode], settings: v1::DerpMapSettings) {
    eventually("a leader to take settings", async || {
        for node in nodes {
            if node.handles.admin.set_derp_map(settings.clone(), false).await.is_ok() {
                return true;
            }
        }
        false
    })
    .await;
}

fn mapped(node: &TestNode) -> Vec<String> {
    let Some(map) = node.handles.derp_map.borrow().clone() else { return Vec::new() };
    map.regions.values().flat_map(|region| region.nodes.iter().map(|node| node.name.clone())).collect()
}

fn copy_dir(from: &std::path::Path, to: &std::path::Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}
