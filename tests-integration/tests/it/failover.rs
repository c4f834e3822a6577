//! Nodes that die, leaders that die, quorums that are lost; and how all of it heals.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use causeway_client::{Trust, load_map};
use causeway_rpc::v1::{GetClusterStatusRequest, GetNodeStatusRequest, GetRaftStatusRequest};
use causeway_tests_integration::client::{SETTLE, TestClient, exchange_all};
use causeway_tests_integration::cluster::{Cluster, wait_for};
use causeway_tests_integration::logs::Expected;
use causeway_tests_integration::metrics::http_status;

/// A dead node's claims stop counting by then, where its watch stream was live.
const CLAIMS_STOP: Duration = Duration::from_secs(3);
/// A dead node is fenced by then.
const FENCED: Duration = Duration::from_secs(8);
/// A dead leader is replaced by then (`lan` profile).
const NEW_LEADER: Duration = Duration::from_secs(3);
/// What a fleet may take to be whole again after its nodes are back.
const HEALED: Duration = Duration::from_secs(30);

/// Losing a peer is worth a warning on the nodes that had it.
fn lost_peers() -> Expected {
    Expected::default()
}

async fn epoch(cluster: &Cluster, node: &str) -> anyhow::Result<u64> {
    Ok(cluster.operator(node).await?.get_node_status(GetNodeStatusRequest {}).await?.into_inner().epoch)
}

/// The leader as `node` knows it, by name.
async fn leader(cluster: &Cluster, node: &str) -> anyhow::Result<Option<String>> {
    let status = cluster.operator(node).await?.get_raft_status(GetRaftStatusRequest {}).await?.into_inner();
    let leader = cluster.nodes().iter().find(|node| u64::from_str_radix(&node.node_id, 16) == Ok(status.leader));
    Ok(leader.map(|node| node.name.clone()))
}

async fn connect_all(cluster: &Cluster, nodes: &[&str]) -> anyhow::Result<Vec<TestClient>> {
    let mut clients = Vec::new();
    for node in nodes {
        clients.push(TestClient::connect(cluster, node).await?);
    }
    Ok(clients)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_node_takes_only_its_own_clients_with_it() -> anyhow::Result<()> {
    let cluster = Cluster::start(3, 2, &[]).await?;
    let (killed, survivors) = ("b-2", ["a-1", "a-2", "b-1", "c-1", "c-2"]);
    let victim = TestClient::connect(&cluster, killed).await?;
    let (key, private) = (victim.key(), victim.private());
    let from = TestClient::connect(&cluster, "a-2").await?;
    let mut to = TestClient::connect(&cluster, "c-2").await?;
    cluster.wait_held(&survivors, key, killed, Duration::from_secs(5)).await?;
    let epoch_before = epoch(&cluster, killed).await?;

    // A stream of packets between survivors, from before the kill until after the fence: none may be missing.
    let to_key = to.key();
    let stream = async {
        let mut ticks = tokio::time::interval(Duration::from_millis(5));
        let end = Instant::now() + FENCED;
        let mut sent = 0_u32;
        while Instant::now() < end {
            ticks.tick().await;
            from.send(to_key, &sent.to_be_bytes()).await?;
            sent += 1;
        }
        anyhow::Ok(sent)
    };
    let kill = async {
        cluster.kill(killed).await?;
        let killed_at = Instant::now();
        for observer in survivors {
            let left = CLAIMS_STOP.saturating_sub(killed_at.elapsed());
            wait_for(&format!("{observer} to stop counting the dead node's claims"), left, async || {
                let claims = cluster.presence(observer, key).await?.map(|entry| entry.claims).unwrap_or_default();
                Ok(claims.iter().all(|claim| !claim.valid).then_some(()))
            })
            .await?;
        }
        wait_for("the dead node to be fenced", FENCED.saturating_sub(killed_at.elapsed()), async || {
            let status = cluster.operator("a-1").await?.get_cluster_status(GetClusterStatusRequest {}).await?.into_inner();
            let dead = status.nodes.iter().find(|summary| summary.node.as_ref().is_some_and(|node| node.name == killed));
            Ok(dead.filter(|summary| summary.fenced).map(drop))
        })
        .await
    };
    let (sent, fenced) = tokio::join!(stream, kill);
    let sent = sent?;
    fenced?;
    for number in 0..sent {
        to.expect(from.key(), &number.to_be_bytes()).await.context("a packet between survivors")?;
    }

    // Its client, reconnecting elsewhere, is reachable at once.
    let mut moved = TestClient::connect_as(&cluster, "b-1", private).await?;
    tokio::time::sleep(SETTLE).await;
    from.send(key, b"found you").await?;
    moved.expect(from.key(), b"found you").await?;

    // The node comes back on its data: a higher epoch, nothing stale.
    cluster.start_node(killed).await?;
    cluster.wait_healthy("a-1", HEALED).await?;
    let epoch_after = epoch(&cluster, killed).await?;
    ensure!(epoch_after > epoch_before, "epoch {epoch_after} after {epoch_before}");
    cluster.wait_held(&["a-1", "c-2", killed], key, "b-1", Duration::from_secs(5)).await?;
    let entry = cluster.presence("a-1", key).await?.context("present")?;
    ensure!(!entry.claims.iter().any(|claim| claim.node_name == killed), "a stale claim came back: {entry:?}");
    drop((victim, from, to, moved));
    cluster.finish(&["a-1", "a-2", "b-1", "b-2", "c-1", "c-2"], &lost_peers()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_leader_is_replaced_and_presence_flows_meanwhile() -> anyhow::Result<()> {
    let cluster = Cluster::start(3, 2, &[]).await?;
    let old = leader(&cluster, "a-2").await?.context("a healthy fleet has a leader")?;
    let alive: Vec<&str> = cluster.nodes().iter().map(|node| node.name.as_str()).filter(|name| *name != old).collect();
    cluster.kill(&old).await?;
    let killed_at = Instant::now();
    let mut clients = connect_all(&cluster, &alive).await?;
    exchange_all(&mut clients, "without a leader").await?;
    for node in &alive {
        wait_for(&format!("{node} to have a new leader"), NEW_LEADER.saturating_sub(killed_at.elapsed()), async || {
            Ok(leader(&cluster, node).await?.filter(|new| *new != old))
        })
        .await?;
    }
    cluster.start_node(&old).await?;
    cluster.wait_healthy(alive[0], HEALED).await?;
    exchange_all(&mut clients, "with a new leader").await?;
    drop(clients);
    cluster.finish(&["a-1", "a-2", "b-1", "b-2", "c-1", "c-2"], &lost_peers()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_quorum_packets_flow_and_clients_are_admitted() -> anyhow::Result<()> {
    let cluster = Cluster::start(3, 2, &[]).await?;
    let all = ["a-1", "a-2", "b-1", "b-2", "c-1", "c-2"];
    let status = cluster.operator("a-1").await?.get_cluster_status(GetClusterStatusRequest {}).await?.into_inner();
    let name = |id: u64| {
        cluster.nodes().iter().find(|node| u64::from_str_radix(&node.node_id, 16) == Ok(id)).map(|node| node.name.clone())
    };
    let voters: Vec<String> = status.voters.iter().filter_map(|id| name(*id)).collect();
    ensure!(voters.len() == 3, "voters: {voters:?}");
    let alive: Vec<&str> = all.into_iter().filter(|node| !voters[..2].iter().any(|dead| dead == node)).collect();
    let mut before = connect_all(&cluster, &alive).await?;
    exchange_all(&mut before, "with a quorum").await?;

    cluster.kill(&voters[0]).await?;
    cluster.kill(&voters[1]).await?;
    exchange_all(&mut before, "right after the quorum was lost").await?;
    wait_for("the loss to be reported", Duration::from_secs(10), async || {
        let status = cluster.operator(alive[0]).await?.get_cluster_status(GetClusterStatusRequest {}).await?.into_inner();
        Ok((!status.quorum && !status.healthy && !status.problems.is_empty()).then_some(()))
    })
    .await?;
    let readyz = cluster.node(alive[0]).metrics.replace("/metrics", "/readyz");
    let (code, why) = wait_for("readyz to say so", Duration::from_secs(10), async || {
        let answer = http_status(&readyz).await?;
        Ok((answer.0 != 200).then_some(answer))
    })
    .await?;
    ensure!(code == 503 && !why.trim().is_empty(), "readyz says {code} {why:?}");

    // New clients are admitted and reachable, also at a node that was restarted in this state.
    let restarted = alive.iter().find(|node| **node != voters[2]).context("a learner is alive")?;
    drop(before);
    let url = format!("https://{}/derpmap", cluster.node(restarted).derp);
    let trust = Trust::ca_file(&cluster.ready().ca_file)?;
    let map = load_map(&url, Some(&trust)).await?;
    cluster.stop(restarted).await?;
    cluster.start_node(restarted).await?;
    ensure!(load_map(&url, Some(&trust)).await? == map, "the last DERP map is served although Raft has none");
    let mut after = connect_all(&cluster, &alive).await?;
    for (index, client) in after.iter().enumerate() {
        let others: Vec<&str> = alive.iter().enumerate().filter(|(other, _)| *other != index).map(|(_, node)| *node).collect();
        cluster.wait_held(&others, client.key(), client.node(), Duration::from_secs(5)).await?;
    }
    exchange_all(&mut after, "new clients without a quorum").await?;

    cluster.start_node(&voters[0]).await?;
    cluster.start_node(&voters[1]).await?;
    cluster.wait_healthy(alive[0], HEALED).await?;
    exchange_all(&mut after, "healed").await?;
    drop(after);
    cluster.finish(&all, &lost_peers()).await
}
