//! What becomes of Raft's log and snapshots, and of a node whose Raft has ended.

use super::*;

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
    fs::remove_dir_all(&log).unwrap();
    copy_dir(&copy, &log);
    nodes.push(fleet.restart(killed).await);
    all_healthy(&nodes).await;
    let digest = |node: &TestNode| node.handles.status.fleet.consensus.machine().read(|state| state.table.snapshot().digest());
    eventually("equal tables", async || nodes.iter().all(|node| digest(node) == digest(&nodes[0]))).await;
    // Also at the leader that knew it to be further.
    assert!(nodes.iter().all(|node| node.handles.status.raft().stopped_because.is_empty()));
    nodes.into_iter().for_each(|node| drop(node.kill()));
}

/// Runs in a process of its own that may not write long files: the log cannot grow, as on a full disk.
const NO_ROOM: &str = "CAUSEWAY_TEST_NO_ROOM";

#[test]
fn a_node_that_cannot_write_leaves_raft_says_why_and_goes_on() {
    let test = "fleet::tests::disks::with_no_room_on_disk";
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
