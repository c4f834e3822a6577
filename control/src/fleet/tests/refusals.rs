//! What is refused, and by which words.

use super::*;

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
async fn a_leader_whose_clock_went_wrong_is_named_to_those_it_keeps_out() {
    let mut fleet = TestFleet::new();
    let ahead = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let seconds_ahead = Arc::clone(&ahead);
    let clock: crate::WallClock =
        Arc::new(move || SystemTime::now() + Duration::from_secs(seconds_ahead.load(std::sync::atomic::Ordering::Relaxed)));
    let mut nodes = vec![fleet.try_start_at(|addr| fleet.config("a1", 1, addr), None, clock).await.unwrap()];
    fleet.seeds.push(nodes[0].addr.to_string());
    nodes.push(fleet.start("b1", 2).await);
    nodes.push(fleet.start("c1", 3).await);
    let voters = vec!["a1".to_owned()];
    nodes[0].handles.admin.init_cluster(v1::InitClusterRequest { voters, ..init(3) }).await.unwrap();
    all_healthy(&nodes).await;
    ahead.store(60, std::sync::atomic::Ordering::Relaxed);
    fleet.seeds = nodes.iter().map(|node| node.addr.to_string()).collect();
    let late = fleet.start("d1", 4).await;
    eventually("both clocks are named", async || {
        late.handles.status.not_ready_because().iter().any(|reason| {
            ["does not admit this node", "the clock of node `d1` is", "behind that of node `a1`"]
                .iter()
                .all(|part| reason.contains(part))
        })
    })
    .await;
    nodes.push(late);
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
    let silent = starting.local_addr().unwrap();
    fleet.seeds = vec![stranger[0].addr.to_string(), silent.to_string()];
    nodes.push(fleet.start("c1", 3).await);
    let c1 = nodes[2].handles.status.clone();
    eventually("why it finds nobody is told", async || {
        c1.not_ready_because().iter().any(|reason| reason.starts_with("mesh_key_file: wrong mesh key"))
    })
    .await;
    // It was ours after all.
    drop(starting);
    let late = fleet.config("d1", 4, silent);
    nodes.push(fleet.try_start(|_| Config { seeds: Seeds::default(), ..late }, Some(silent)).await.unwrap());
    eventually("the other mesh key is forgotten", async || {
        !c1.not_ready_because().iter().any(|reason| reason.contains("mesh key"))
    })
    .await;
    nodes.into_iter().chain(stranger).for_each(|node| drop(node.kill()));
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
    let mut fleet_api = crate::fleet::fleet_client(channel.clone());
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
    assert!(status.message().contains("the clock of node `b1` is") && status.message().contains("behind"), "{status}");
    assert_eq!((status.code(), refused.counted(CallRefused::ClockOff)), (tonic::Code::FailedPrecondition, 1));
    assert!(a.cluster().healthy && a.handles.status.raft().term < 99);
    nodes.into_iter().for_each(|node| drop(node.kill()));
}
