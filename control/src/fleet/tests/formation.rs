//! Fleets that form, lose nodes and heal.

use super::*;

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
        eventually("the map", async || mapped(node) == ["a1", "a2", "b1", "c1"]).await;
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
    eventually("the dead node fenced", async || nodes.iter().all(|node| node.cluster().nodes.iter().any(|node| node.fenced)))
        .await;
    assert!(nodes.iter().all(|node| mapped(node) == ["a1", "a2", "b1", "c1"]), "who is away briefly stays listed");
    set_derp_map(&nodes, v1::DerpMapSettings { grace_s: 1, ..Default::default() }).await;
    let rest: Vec<&str> = ["a1", "a2", "b1", "c1"].into_iter().filter(|name| *name != killed.name).collect();
    eventually("the dead node off the map", async || {
        nodes.iter().all(|node| {
            let map = mapped(node);
            let own_nodes: Vec<&str> = map.iter().map(String::as_str).filter(|name| !name.contains('@')).collect();
            own_nodes == rest
        })
    })
    .await;

    nodes.push(fleet.restart(killed).await);
    assert_eq!(nodes[3].handles.epoch, Epoch(2));
    all_healthy(&nodes).await;
    eventually("the node listed again", async || nodes.iter().all(|node| mapped(node) == ["a1", "a2", "b1", "c1"])).await;
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
async fn nodes_that_others_name_are_asked_before_a_fleet_is_formed() {
    let mut fleet = TestFleet::new();
    let nodes = fleet.start_all(&[("a1", 1), ("b1", 2)]).await;
    let a1 = &nodes[0].handles.status.fleet;
    eventually("two nodes that know each other", async || a1.directory.nodes().len() == 2).await;
    let before = a1.directory.nodes();
    // Known to b1 only, and it does not answer.
    let named = nodes[1].handles.status.fleet.directory.introduce(sample_record("c1", 3), true, Instant::now()).unwrap();
    let (asked, seen) = crate::fleet::bootstrap::describe_everybody(a1, before).await.unwrap();
    assert!(asked.get(named).is_some() && asked.len() == 3);
    assert_eq!(seen.keys().copied().collect::<Vec<_>>(), [nodes[1].id()]);
    nodes.into_iter().for_each(|node| drop(node.kill()));
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
