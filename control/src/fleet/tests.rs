//! Fleets in this process: real sockets, TLS and disks; each node on a runtime of its own, so that it can be killed.
#![allow(clippy::unwrap_used, reason = "tests")]

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
            seeds: Seeds { static_list: self.seeds.clone(), file: None },
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

fn mapped(node: &TestNode) -> Vec<String> {
    let map = Arc::clone(&node.handles.derp_map.borrow());
    map.regions.values().flat_map(|region| region.nodes.iter().map(|node| node.name.clone())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_fleet_forms_takes_claims_survives_its_leader_and_takes_it_back() {
    let mut fleet = TestFleet::new();
    let mut nodes = fleet.start_all(&[("a1", 1), ("a2", 1), ("b1", 2), ("c1", 3)]).await;
    // Two operators at once, at different nodes: one fleet.
    let (one, other) = tokio::join!(nodes[1].handles.admin.init_cluster(init(4)), nodes[3].handles.admin.init_cluster(init(4)));
    let (formed, other) = (one.unwrap(), other.unwrap());
    assert!(formed.fleet_id == other.fleet_id && formed.already != other.already, "{formed:?} {other:?}");
    assert_eq!(if formed.already { &other } else { &formed }.voters.len(), 3);
    all_healthy(&nodes).await;
    for node in &nodes {
        assert_eq!(mapped(node), ["a1", "a2", "b1", "c1"]);
        assert_eq!(node.handles.status.fleet_id(), formed.fleet_id);
    }
    let again = nodes[3].handles.admin.init_cluster(init(4)).await.unwrap();
    assert!(again.already && again.fleet_id == formed.fleet_id);

    // Through a learner, and read through another node.
    nodes[1].claim(key(1));
    let a2 = (nodes[1].id(), Epoch(1));
    eventually("a committed claim", async || nodes[2].committed(key(1)).await == Some(vec![a2])).await;
    assert!(nodes[1].handles.admin.ping("c1").await.unwrap().rtt_us > 0);

    let leader = NodeId(nodes[0].cluster().leader);
    let position = nodes.iter().position(|node| node.id() == leader).unwrap();
    let killed = nodes.remove(position).kill();
    let took = eventually("a new leader", async || {
        nodes.iter().any(|node| node.handles.status.raft().state == "leader" && node.cluster().quorum)
    })
    .await;
    assert!(took < Duration::from_secs(3), "a new leader took {took:?}");
    nodes[0].claim(key(2));
    eventually("a claim under the new leader", async || nodes[1].committed(key(2)).await.is_some_and(|claims| claims.len() == 1))
        .await;
    eventually("the dead node fenced and off the map", async || {
        nodes.iter().all(|node| !mapped(node).contains(&killed.name) && node.cluster().nodes.iter().any(|node| node.fenced))
    })
    .await;

    nodes.push(fleet.restart(killed).await);
    assert_eq!(nodes[3].handles.epoch, Epoch(2));
    all_healthy(&nodes).await;
    assert_eq!(mapped(&nodes[0]), ["a1", "a2", "b1", "c1"]);
    nodes.into_iter().for_each(|node| drop(node.kill()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn without_a_quorum_presence_flows_on_and_everything_heals() {
    let mut fleet = TestFleet::new();
    let mut nodes = fleet.start_all(&[("a1", 1), ("b1", 2), ("c1", 3), ("a2", 1)]).await;
    nodes[0].handles.admin.init_cluster(init(4)).await.unwrap();
    all_healthy(&nodes).await;
    let learner = nodes.pop().unwrap();
    let (gone1, gone2) = (nodes.pop().unwrap().kill(), nodes.pop().unwrap().kill());
    let a1 = &nodes[0];
    eventually("the loss is told", async || {
        let cluster = a1.cluster();
        !cluster.quorum
            && cluster.voters_unreachable.len() == 2
            && cluster.problems.iter().any(|problem| problem.contains("no quorum"))
    })
    .await;
    assert!(!a1.handles.status.not_ready_because().is_empty());
    a1.claim(key(3));
    eventually("a claim by watch alone", async || learner.handles.view.has_valid_claim(&key(3))).await;
    assert!(a1.committed(key(3)).await.is_none());

    // A node started in this state serves and is heard.
    let learner = fleet.restart(learner.kill()).await;
    learner.claim(key(4));
    eventually("the restarted node's claim", async || a1.handles.view.has_valid_claim(&key(4))).await;

    nodes.push(fleet.restart(gone1).await);
    nodes.push(fleet.restart(gone2).await);
    nodes.push(learner);
    all_healthy(&nodes).await;
    let expected = Some(vec![(nodes[0].id(), Epoch(1))]);
    eventually("what was claimed meanwhile is committed", async || nodes[1].committed(key(3)).await == expected).await;
    nodes.into_iter().for_each(|node| drop(node.kill()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_whole_fleet_restarts_from_its_disks_snapshots_included() {
    let mut fleet = TestFleet::new();
    let nodes = fleet.start_all(&[("a1", 1), ("b1", 2), ("c1", 3)]).await;
    let formed = nodes[0].handles.admin.init_cluster(init(3)).await.unwrap();
    all_healthy(&nodes).await;
    nodes[2].claim(key(5));
    eventually("a committed claim", async || nodes[0].committed(key(5)).await.is_some_and(|claims| claims.len() == 1)).await;
    for node in &nodes {
        node.handles.status.fleet.consensus.snapshot().await.unwrap();
        eventually("a snapshot", async || node.handles.status.raft().snapshot_index > 0).await;
    }
    let killed: Vec<Killed> = nodes.into_iter().map(TestNode::kill).collect();
    let mut nodes = Vec::new();
    for killed in killed {
        nodes.push(fleet.restart(killed).await);
    }
    all_healthy(&nodes).await;
    assert_eq!(nodes[1].handles.status.fleet_id(), formed.fleet_id);
    // The new processes announced their epochs, which ended the claims of the old ones.
    eventually("nothing stale", async || nodes[1].committed(key(5)).await == Some(vec![])).await;
    nodes[2].claim(key(5));
    let again = Some(vec![(nodes[2].id(), Epoch(2))]);
    eventually("the claim of the new process", async || nodes[0].committed(key(5)).await == again).await;

    // The log is gone: a node that joins now needs the snapshot.
    for node in &nodes {
        let consensus = &node.handles.status.fleet.consensus;
        let applied = node.handles.status.raft().applied_index;
        consensus.snapshot().await.unwrap();
        eventually("a newer snapshot", async || node.handles.status.raft().snapshot_index >= applied).await;
        consensus.purge().await;
        eventually("a shorter log", async || node.handles.status.raft().purged_index >= applied).await;
    }
    nodes.push(fleet.start("d1", 4).await);
    all_healthy(&nodes).await;
    assert!(nodes[3].handles.status.raft().snapshot_index > 0, "installed, not replayed");
    assert_eq!(nodes[3].handles.status.fleet_id(), formed.fleet_id);
    let applied = |node: &TestNode| node.handles.status.fleet.consensus.machine().read(|state| state.table.snapshot().digest());
    eventually("equal tables", async || nodes.iter().all(|node| applied(node) == applied(&nodes[0]))).await;
    nodes.into_iter().for_each(|node| drop(node.kill()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_standalone_node_forms_its_own_fleet_and_an_evicted_one_stops() {
    let fleet = TestFleet::new();
    let standalone = |addr| Config { standalone: true, ..fleet.config("a1", 1, addr) };
    let node = fleet.try_start(standalone, None).await.unwrap();
    let nodes = [node];
    all_healthy(&nodes).await;
    nodes[0].claim(key(6));
    eventually("a committed claim", async || nodes[0].committed(key(6)).await.is_some_and(|claims| claims.len() == 1)).await;
    nodes[0].handles.admin.evict("a1").await.unwrap();
    let mut fatal = nodes[0].handles.fatal.clone();
    tokio::time::timeout(PATIENCE, fatal.wait_for(|fatal| *fatal == Some(Fatal::Evicted))).await.unwrap().unwrap();
    nodes.into_iter().for_each(|node| drop(node.kill()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn eviction_cuts_what_is_open_to_the_evicted_node() {
    let mut fleet = TestFleet::new();
    let nodes = fleet.start_all(&[("a1", 1), ("b1", 2), ("c1", 3)]).await;
    let voters = vec!["a1".to_owned()];
    nodes[0].handles.admin.init_cluster(v1::InitClusterRequest { voters, ..init(3) }).await.unwrap();
    all_healthy(&nodes).await;
    nodes[2].claim(key(7));
    eventually("a claim to end", async || nodes[1].handles.view.has_valid_claim(&key(7))).await;
    // A stream that the evicted node holds open and that speaks every second.
    let channel = nodes[2].handles.peers.channel(nodes[1].id(), crate::ChannelUse::Watch).unwrap();
    let follow = v1::FollowRequest { follower_id: nodes[2].id().0, ..Default::default() };
    let mut open = v1::watch_client::WatchClient::new(channel.clone()).follow(follow.clone()).await.unwrap().into_inner();
    open.message().await.unwrap().expect("a hello");
    let refused = nodes[1].handles.admin.evict("c1").await.unwrap_err().to_string();
    assert!(refused.contains("ask node `a1`"), "{refused}");
    nodes[0].handles.admin.evict("c1").await.unwrap();
    let ended = async { while let Ok(Some(_)) = open.message().await {} };
    tokio::time::timeout(Duration::from_secs(5), ended).await.expect("the open stream is cut within 5 s");
    // Its own follower may have taken the stream's place before: what counts is that it is out for good.
    eventually("it is not let in again", async || {
        v1::watch_client::WatchClient::new(channel.clone()).follow(follow.clone()).await.is_err()
    })
    .await;
    eventually("its claims are gone", async || !nodes[1].handles.view.has_valid_claim(&key(7))).await;
    eventually("the fleet is healthy without it", async || {
        let cluster = nodes[0].cluster();
        cluster.healthy && cluster.nodes.len() == 2
    })
    .await;
    nodes.into_iter().for_each(|node| drop(node.kill()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_copied_data_directory_stops_the_process_that_was_first() {
    let mut fleet = TestFleet::new();
    let nodes = fleet.start_all(&[("a1", 1), ("b1", 2)]).await;
    nodes[0].handles.admin.init_cluster(init(2)).await.unwrap();
    all_healthy(&nodes).await;
    let copy = fleet.dir.path().join("copy");
    copy_dir(&fleet.data_dir("b1").join("identity"), &copy.join("identity"));
    let config = |addr| Config { data_dir: copy.clone(), ..fleet.config("b1", 2, addr) };
    let second = fleet.try_start(config, None).await.unwrap();
    let mut fatal = nodes[1].handles.fatal.clone();
    let reason = tokio::time::timeout(PATIENCE, fatal.wait_for(Option::is_some)).await.unwrap().unwrap().clone().unwrap();
    assert!(reason.to_string().contains("data directory was copied"), "{reason}");
    assert!(second.handles.epoch > nodes[1].handles.epoch);
    drop(second.kill());
    nodes.into_iter().for_each(|node| drop(node.kill()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_word_of_a_peer_that_does_not_lead_ends_no_process() {
    let mut fleet = TestFleet::new();
    let mut nodes = fleet.start_all(&[("a1", 1), ("b1", 2), ("c1", 3)]).await;
    nodes[0].handles.admin.init_cluster(init(3)).await.unwrap();
    all_healthy(&nodes).await;
    let leader = NodeId(nodes[0].cluster().leader);
    let (told, liar) = {
        let mut others = nodes.iter().filter(|node| node.id() != leader);
        (others.next().unwrap(), others.next().unwrap())
    };
    let lie = v1::EpochSeen { epoch: 99, boot_id: vec![9; 16].into() };
    let control = &told.handles.status.fleet;
    control.heard_of_ourselves(liar.id(), Some(&lie), false);
    assert!(told.handles.fatal.borrow().is_none());
    // Over the wire at the next start: it is neither believed nor does it use up the counter.
    let process = super::Incarnation { epoch: Epoch(u64::MAX), boot_id: causeway_proto::id::BootId([9; 16]) };
    let told_id = told.id();
    liar.handles.status.fleet.saw(told_id, process);
    fleet.seeds = vec![liar.addr.to_string()];
    let position = nodes.iter().position(|node| node.id() == told_id).unwrap();
    let again = fleet.restart(nodes.remove(position).kill()).await;
    assert_eq!(again.handles.epoch, Epoch(2));
    nodes.push(again);
    all_healthy(&nodes).await;
    assert!(nodes[2].handles.fatal.borrow().is_none());
    let leader = NodeId(nodes[2].cluster().leader);
    nodes[2].handles.status.fleet.heard_of_ourselves(leader, Some(&lie), false);
    assert!(nodes[2].handles.fatal.borrow().is_some(), "the elected leader's word counts");
    nodes.into_iter().for_each(|node| drop(node.kill()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn nodes_that_others_name_are_asked_before_a_fleet_is_formed() {
    let mut fleet = TestFleet::new();
    let nodes = fleet.start_all(&[("a1", 1), ("b1", 2)]).await;
    let a1 = &nodes[0].handles.status.fleet;
    eventually("two nodes that know each other", async || a1.directory.nodes().len() == 2).await;
    let before = a1.directory.nodes();
    // Known to b1 only, and it does not answer.
    let named = nodes[1].handles.status.fleet.directory.introduce(sample_record("c1", 3), true, Instant::now()).unwrap();
    let (asked, seen) = super::bootstrap::describe_everybody(a1, before).await.unwrap();
    assert!(asked.get(named).is_some() && asked.len() == 3);
    assert_eq!(seen.keys().copied().collect::<Vec<_>>(), [nodes[1].id()]);
    nodes.into_iter().for_each(|node| drop(node.kill()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_long_log_is_followed_by_a_snapshot() {
    let fleet = TestFleet::new();
    let nodes = [fleet.try_start(|addr| Config { standalone: true, ..fleet.config("a1", 1, addr) }, None).await.unwrap()];
    all_healthy(&nodes).await;
    let (status, cancel) = (&nodes[0].handles.status, CancellationToken::new());
    let snapshots = status.fleet.consensus.clone().take_snapshots(8 << 10, Duration::from_millis(10), cancel.clone());
    let snapshots = nodes[0].runtime.spawn(snapshots);
    let index = async || status.raft().snapshot_index;
    for round in 0..2 {
        let before = index().await;
        for n in 0..=255 {
            nodes[0].claim(PresenceKey([n; 32]));
        }
        eventually("a newer snapshot", async || index().await > before).await;
        assert!(before > 0 || round == 0);
    }
    cancel.cancel();
    snapshots.await.unwrap();
    nodes.into_iter().for_each(|node| drop(node.kill()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_log_that_ends_early_is_repaired_by_the_leader() {
    let mut fleet = TestFleet::new();
    let mut nodes = fleet.start_all(&[("a1", 1), ("b1", 2), ("c1", 3), ("d1", 4)]).await;
    let voters = ["a1", "b1", "c1"].map(str::to_owned).to_vec();
    nodes[0].handles.admin.init_cluster(v1::InitClusterRequest { voters, ..init(4) }).await.unwrap();
    all_healthy(&nodes).await;
    // Of a learner: its votes are not at stake.
    let killed = nodes.pop().unwrap().kill();
    let (log, copy) = (fleet.data_dir("d1").join("raft/0/log"), fleet.dir.path().join("copy"));
    copy_dir(&log, &copy);
    nodes.push(fleet.restart(killed).await);
    all_healthy(&nodes).await;
    for n in 0..20 {
        nodes[0].claim(key(n));
    }
    eventually("committed", async || nodes[0].committed(key(19)).await.is_some_and(|claims| claims.len() == 1)).await;
    eventually("applied at the learner", async || {
        nodes[3].handles.status.raft().applied_index >= nodes[0].handles.status.raft().applied_index
    })
    .await;
    let killed = nodes.pop().unwrap().kill();
    let term = nodes[0].handles.status.raft().term;
    fs::remove_dir_all(&log).unwrap();
    copy_dir(&copy, &log);
    nodes.push(fleet.restart(killed).await);
    all_healthy(&nodes).await;
    let digest = |node: &TestNode| node.handles.status.fleet.consensus.machine().read(|state| state.table.snapshot().digest());
    eventually("equal tables", async || nodes.iter().all(|node| digest(node) == digest(&nodes[0]))).await;
    assert_eq!(nodes[0].handles.status.raft().term, term, "by the leader that knew it to be further");
    nodes.into_iter().for_each(|node| drop(node.kill()));
}

fn copy_dir(from: &std::path::Path, to: &std::path::Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_restored_disk_takes_an_epoch_above_the_highest_seen() {
    let mut fleet = TestFleet::new();
    let mut nodes = fleet.start_all(&[("a1", 1), ("b1", 2)]).await;
    nodes[0].handles.admin.init_cluster(init(2)).await.unwrap();
    all_healthy(&nodes).await;
    let killed = nodes.pop().unwrap().kill();
    // As a backup from before the first start would have it.
    fs::remove_file(fleet.data_dir("b1").join("identity/epoch")).unwrap();
    let again = fleet.restart(killed).await;
    assert_eq!(again.handles.epoch, Epoch(2));
    nodes.push(again);
    all_healthy(&nodes).await;
    nodes.into_iter().for_each(|node| drop(node.kill()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_makes_a_start_unsafe_is_refused_by_name() {
    let mut fleet = TestFleet::new();
    let nodes = fleet.start_all(&[("a1", 1)]).await;

    let in_use = fleet.try_start(|addr| fleet.config("a1", 1, addr), None).await.err().expect("in use").to_string();
    assert!(in_use.contains("in use by another process"), "{in_use}");
    let ahead: crate::WallClock = Arc::new(|| SystemTime::now() + Duration::from_secs(2 * 3600));
    let off = fleet.try_start_at(|addr| fleet.config("b1", 2, addr), None, ahead).await.err().expect("clock").to_string();
    assert!(off.contains("this node's clock") && off.contains("ahead of its peers"), "{off}");
    assert_eq!(nodes[0].handles.status.nodes().len(), 1, "nobody takes note of it");
    let no_region = |addr| {
        let mut config = fleet.config("c1", 3, addr);
        config.record.region = None;
        config
    };
    let error = fleet.try_start(no_region, None).await.err().expect("no region").to_string();
    assert!(error.contains("region"), "{error}");
    let strange_key = MeshKey::generate();
    let stranger = |addr| Config { mesh_key: strange_key.clone(), ..fleet.config("d1", 4, addr) };
    let error = fleet.try_start(stranger, None).await.err().expect("wrong mesh key").to_string();
    let fingerprints = [&strange_key, &fleet.mesh_key].map(|key| FleetCa::derive(key).fingerprint().to_owned());
    assert!(error.contains("mesh_key_file") && fingerprints.iter().all(|print| error.contains(print)), "{error}");
    let knows_the_next = |addr| Config { mesh_key_next: Some(fleet.mesh_key.clone()), ..stranger(addr) };
    let error = fleet.try_start(knows_the_next, None).await.err().expect("they refuse its key").to_string();
    assert!(error.contains("mesh_key_file") && error.contains("refuses our certificate"), "{error}");
    nodes.into_iter().for_each(|node| drop(node.kill()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn one_seed_of_another_mesh_key_stops_nobody() {
    let mut strangers = TestFleet::new();
    let stranger = strangers.start_all(&[("x1", 9)]).await;
    let mut fleet = TestFleet::new();
    let mut nodes = fleet.start_all(&[("a1", 1)]).await;
    fleet.seeds.push(stranger[0].addr.to_string());
    nodes.push(fleet.start("b1", 2).await);
    // A seed that accepts and says nothing may be a node of ours that is starting.
    let starting = TcpListener::bind("127.0.0.1:0").await.unwrap();
    fleet.seeds = vec![stranger[0].addr.to_string(), starting.local_addr().unwrap().to_string()];
    nodes.push(fleet.start("c1", 3).await);
    nodes.into_iter().chain(stranger).for_each(|node| drop(node.kill()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn two_fleets_of_one_mesh_key_keep_apart() {
    let mut fleet = TestFleet::new();
    let standalone =
        |fleet: &TestFleet, name: &str, region, addr| Config { standalone: true, ..fleet.config(name, region, addr) };
    let first = fleet.try_start(|addr| standalone(&fleet, "a1", 1, addr), None).await.unwrap();
    fleet.seeds = vec![first.addr.to_string()];
    let second = fleet.try_start(|addr| standalone(&fleet, "b1", 2, addr), None).await.unwrap();
    for node in [&first, &second] {
        eventually("a fleet of one each", async || node.cluster().healthy && node.cluster().nodes.len() == 1).await;
    }
    assert_ne!(first.handles.status.fleet_id(), second.handles.status.fleet_id());
    [first, second].into_iter().for_each(|node| drop(node.kill()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_node_speaks_only_for_itself() {
    use crate::refusals::CallRefused;
    use causeway_proto::id::BootId;
    use causeway_rpc::v1::raft_client::RaftClient;

    let mut fleet = TestFleet::new();
    let nodes = fleet.start_all(&[("a1", 1), ("b1", 2)]).await;
    nodes[0].handles.admin.init_cluster(init(2)).await.unwrap();
    all_healthy(&nodes).await;
    let (a, b) = (&nodes[0], &nodes[1]);
    let channel = b.handles.peers.channel(a.id(), crate::ChannelUse::Fleet).unwrap();
    let mut fleet_api = super::fleet_client(channel.clone());
    let command = |node, fence| {
        let (epoch, boot_id) = (Epoch(1), BootId([1; 16]));
        let command = if fence {
            crate::presence::Command::Fence { node, epoch }
        } else {
            crate::presence::Command::Apply { node, epoch, boot_id, first_seq: 1, ops: Vec::new() }
        };
        v1::ProposeRequest { command: command.encode() }
    };
    let heartbeat = v1::FleetHeartbeat { node_id: a.id().0, epoch: 9, boot_id: vec![1; 16].into(), clock_us: 0 };
    let introduction = Some(a.handles.status.fleet.introduction());
    let vote = Some(v1::RaftBallot { term: 99, node_id: a.id().0, committed: false });
    let ballot = v1::RaftVoteRequest { vote, ..Default::default() };
    let denied = [
        fleet_api.propose(command(a.id(), false)).await.err(),
        fleet_api.propose(command(b.id(), true)).await.err(),
        fleet_api.heartbeat(heartbeat).await.err(),
        fleet_api.describe(v1::DescribeRequest { caller: introduction }).await.err(),
        RaftClient::new(channel).vote(ballot).await.err(),
    ];
    for status in denied {
        assert_eq!(status.expect("refused").code(), tonic::Code::PermissionDenied);
    }
    let refused = &a.handles.metrics.calls_refused;
    assert_eq!((refused.counted(CallRefused::NotItself), refused.counted(CallRefused::NotAllowed)), (4, 1));
    assert!(fleet_api.propose(v1::ProposeRequest { command: vec![0xff; 9].into() }).await.is_err());
    assert_eq!(refused.counted(CallRefused::Malformed), 1);
    let caller = Some(v1::Introduction { clock_us: 0, ..b.handles.status.fleet.introduction() });
    let status = fleet_api.join(v1::JoinRequest { caller }).await.expect_err("its clock is off");
    assert_eq!((status.code(), refused.counted(CallRefused::ClockOff)), (tonic::Code::FailedPrecondition, 1));
    assert!(a.cluster().healthy && a.handles.status.raft().term < 99);
    nodes.into_iter().for_each(|node| drop(node.kill()));
}

/// Runs in a process of its own that may not write long files: the log cannot grow, as on a full disk.
const NO_ROOM: &str = "CAUSEWAY_TEST_NO_ROOM";

#[test]
fn a_node_that_cannot_write_leaves_raft_says_why_and_goes_on() {
    let test = "fleet::tests::with_no_room_on_disk";
    // Ignored signals stay ignored in the child, so that a write beyond the limit fails instead of killing it.
    let script = format!("trap '' XFSZ; ulimit -f 128; exec \"$0\" --exact {test} --include-ignored");
    let exe = std::env::current_exe().unwrap();
    let output = std::process::Command::new("sh").arg("-c").arg(script).arg(exe).env(NO_ROOM, "1").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "run by the test above, under a limit"]
async fn with_no_room_on_disk() {
    if std::env::var_os(NO_ROOM).is_none() {
        return;
    }
    let fleet = TestFleet::new();
    let standalone = |addr| Config { standalone: true, ..fleet.config("a1", 1, addr) };
    let nodes = [fleet.try_start(standalone, None).await.unwrap()];
    all_healthy(&nodes).await;
    let status = &nodes[0].handles.status;
    let mut count: u64 = 0;
    eventually("the log's end", async || {
        for _ in 0..100 {
            count += 1;
            let mut bytes = [0; 32];
            bytes[..8].copy_from_slice(&count.to_be_bytes());
            nodes[0].claim(PresenceKey(bytes));
        }
        status.raft().state == "shutdown"
    })
    .await;
    let why = status.raft().stopped_because;
    assert!(why.contains("File too large"), "{why}");
    assert!(status.not_ready_because().iter().any(|reason| reason.contains("left raft")), "{:?}", status.not_ready_because());
    // Presence does not need Raft.
    nodes[0].claim(key(9));
    assert!(nodes[0].handles.view.has_valid_claim(&key(9)));
    assert!(nodes[0].handles.fatal.borrow().is_none());
    nodes.into_iter().for_each(|node| drop(node.kill()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_panic_of_raft_shows_and_the_others_go_on() {
    let mut fleet = TestFleet::new();
    let nodes = fleet.start_all(&[("a1", 1), ("b1", 2), ("c1", 3)]).await;
    nodes[0].handles.admin.init_cluster(init(3)).await.unwrap();
    all_healthy(&nodes).await;
    let leader = NodeId(nodes[0].cluster().leader);
    let led = nodes.iter().find(|node| node.id() == leader).unwrap();
    let status = &led.handles.status;
    status.fleet.consensus.panic().await;
    eventually("the end of raft here", async || status.raft().state == "shutdown").await;
    assert_eq!(status.raft().stopped_because, "its task panicked");
    assert!(status.not_ready_because().iter().any(|reason| reason.contains("left raft (its task panicked)")));
    assert!(!status.fleet.consensus.is_leader() && status.fleet.consensus.leader().is_none());
    let others = || nodes.iter().filter(|node| node.id() != leader);
    eventually("another leader", async || {
        others().all(|node| ![0, leader.0].contains(&node.cluster().leader) && node.handles.status.not_ready_because().is_empty())
    })
    .await;
    // Presence does not need Raft.
    led.claim(key(9));
    eventually("the claim at the others", async || others().all(|node| node.handles.view.has_valid_claim(&key(9)))).await;
    nodes.into_iter().for_each(|node| drop(node.kill()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_damaged_log_is_refused_by_name_and_left_as_it_is() {
    let fleet = TestFleet::new();
    let standalone = |addr| Config { standalone: true, ..fleet.config("a1", 1, addr) };
    let nodes = [fleet.try_start(standalone, None).await.unwrap()];
    all_healthy(&nodes).await;
    for n in 0..50 {
        nodes[0].claim(key(n));
    }
    eventually("committed claims", async || nodes[0].committed(key(49)).await.is_some_and(|claims| claims.len() == 1)).await;
    let killed = nodes.into_iter().map(TestNode::kill).next().unwrap();
    let log = fleet.data_dir("a1").join("raft/0/log");
    let file =
        fs::read_dir(&log).unwrap().map(|entry| entry.unwrap().path()).find(|path| path.to_string_lossy().ends_with(".wal"));
    let file = file.unwrap();
    let mut bytes = fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0xff;
    fs::write(&file, &bytes).unwrap();
    let began = Instant::now();
    let error = loop {
        let start = fleet.try_start(|addr| Config { standalone: true, ..fleet.config("a1", 1, addr) }, Some(killed.addr)).await;
        match start.err().expect("a damaged log").to_string() {
            error if error.contains("in use") && began.elapsed() < PATIENCE => {
                tokio::time::sleep(Duration::from_millis(20)).await
            }
            error => break error,
        }
    };
    assert!(error.contains(file.to_str().unwrap()) && error.contains("damaged"), "{error}");
    assert_eq!(fs::read(&file).unwrap(), bytes);
}
