//! Nodes that are evicted, copied, restored or slandered.

use causeway_rpc::v1::change_request::Change;

use super::*;

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
    let nodes = fleet.start_all(&[("a1", 1), ("b1", 2), ("c1", 3), ("d1", 4)]).await;
    let voters = ["a1", "b1", "d1"].map(str::to_owned).to_vec();
    nodes[0].handles.admin.init_cluster(v1::InitClusterRequest { voters, ..init(4) }).await.unwrap();
    all_healthy(&nodes).await;
    nodes[2].claim(key(7));
    eventually("a claim to end", async || nodes[1].handles.view.has_valid_claim(&key(7))).await;
    // A stream that the evicted node holds open and that speaks every second.
    let channel = nodes[2].handles.peers.channel(nodes[1].id(), crate::ChannelUse::Watch).unwrap();
    let follow = v1::FollowRequest { follower_id: nodes[2].id().0, ..Default::default() };
    let mut open = v1::watch_client::WatchClient::new(channel.clone()).follow(follow.clone()).await.unwrap().into_inner();
    open.message().await.unwrap().expect("a hello");
    // Only the word of voters changes who is in the fleet.
    let refused = nodes[2].handles.admin.evict("b1").await.unwrap_err().to_string();
    assert!(["does not vote", "node `a1`", "node `b1`", "node `d1`"].iter().all(|part| refused.contains(part)), "{refused}");
    let leader = NodeId(nodes[0].cluster().leader);
    let to_leader = nodes[2].handles.peers.channel(leader, crate::ChannelUse::Fleet).unwrap();
    let settings = v1::DerpMapSettings { grace_s: 60, ..Default::default() };
    for change in [Change::EvictNode(nodes[1].id().0), Change::DerpMap(settings.clone())] {
        let change = v1::ChangeRequest { change: Some(change) };
        let refused = crate::fleet::fleet_client(to_leader.clone()).change(change).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::PermissionDenied);
    }
    assert!(nodes[2].handles.admin.set_derp_map(settings.clone(), false).await.is_err(), "nor what clients are told");
    nodes[2].handles.admin.set_derp_map(settings.clone(), true).await.unwrap();
    let other_voter = nodes.iter().find(|node| ![leader, nodes[2].id()].contains(&node.id())).unwrap();
    other_voter.handles.admin.set_derp_map(settings.clone(), false).await.unwrap();
    eventually("the settings at every node", async || {
        nodes.iter().all(|node| node.handles.admin.derp_map_settings() == settings)
    })
    .await;
    other_voter.handles.admin.evict("c1").await.unwrap();
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
        cluster.healthy && cluster.nodes.len() == 3
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
    let process = crate::fleet::Incarnation { epoch: Epoch(u64::MAX), boot_id: causeway_proto::id::BootId([9; 16]) };
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
