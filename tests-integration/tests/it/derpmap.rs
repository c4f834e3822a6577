//! The DERP map: what its modes are good for, and that it changes only when it must. Clients take the nodes of a region in the order of the map and
//! reach a peer through the peer's home region, as stock ones do.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use causeway_client::{Trust, load_map};
use causeway_proto::derpmap::{DerpMap, Node};
use causeway_proto::id::RegionId;
use causeway_proto::key::NodePrivate;
use causeway_rpc::v1::GetClusterStatusRequest;
use causeway_tests_integration::client::{SETTLE, TestClient, exchange_all};
use causeway_tests_integration::cluster::{Cluster, wait_for};
use causeway_tests_integration::logs::Expected;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

const A: RegionId = RegionId(901);
const B: RegionId = RegionId(902);
const FOUR: [&str; 4] = ["a-1", "a-2", "b-1", "b-2"];

/// A silent node is fenced by then, and taken out of the map after a grace of one second.
const UNLISTED: Duration = Duration::from_secs(20);
const HEALED: Duration = Duration::from_secs(30);

pub(crate) async fn map_of(cluster: &Cluster, node: &str) -> anyhow::Result<DerpMap> {
    let trust = Trust::ca_file(&cluster.ready().ca_file)?;
    Ok(load_map(&format!("https://{}/derpmap", cluster.node(node).derp), Some(&trust)).await?)
}

/// Names in the map, region by region.
fn shown(map: &DerpMap) -> String {
    let names = |nodes: &[Node]| nodes.iter().map(|node| node.name.as_str()).collect::<Vec<_>>().join(" ");
    map.regions.iter().map(|(id, region)| format!("{id}: {}", names(&region.nodes))).collect::<Vec<_>>().join(" | ")
}

pub(crate) async fn wait_shown(cluster: &Cluster, nodes: &[&str], wanted: &str) -> anyhow::Result<Arc<DerpMap>> {
    let mut map = DerpMap::default();
    for node in nodes {
        let waited = wait_for(&format!("{node} to serve {wanted}"), UNLISTED, async || {
            map = map_of(cluster, node).await?;
            Ok((shown(&map) == wanted).then_some(()))
        })
        .await;
        waited.with_context(|| format!("it serves {}", shown(&map)))?;
    }
    Ok(Arc::new(map))
}

async fn leader(cluster: &Cluster) -> anyhow::Result<String> {
    let status = cluster.causeway_json("a-1", &["cluster", "status"]).await?;
    Ok(status["leader"].as_str().context("a leader")?.to_owned())
}

/// Sets how the map is made.
pub(crate) async fn apply(cluster: &Cluster, settings: &str) -> anyhow::Result<serde_json::Value> {
    let file = cluster.dir().join("map.toml");
    std::fs::write(&file, settings)?;
    let applied = cluster.causeway_json(&leader(cluster).await?, &["derpmap", "apply", file.to_str().context("path")?]).await?;
    let serious = |finding: &serde_json::Value| finding["level"] != "note";
    ensure!(!applied["findings"].as_array().context("findings")?.iter().any(serious), "the map has faults: {applied}");
    Ok(applied)
}

/// What the fleet serves has no errors and no warnings.
async fn check_served(cluster: &Cluster) -> anyhow::Result<()> {
    let ca = cluster.ready().ca_file.to_str().context("path")?;
    let checked = cluster.causeway_json("a-1", &["derpmap", "check", &cluster.ready().derpmap_url, "--tls-ca", ca]).await?;
    ensure!(checked["errors"] == 0 && checked["warnings"] == 0, "{checked}");
    Ok(())
}

/// The map as a client sees it whose network reaches only the nodes of one region: all others refuse.
fn reaching_only(map: &DerpMap, region: &str) -> Arc<DerpMap> {
    let mut map = map.clone();
    let nodes = map.regions.values_mut().flat_map(|region| &mut region.nodes);
    for node in nodes.filter(|node| !node.host_name.starts_with(region)) {
        node.derp_port = 1;
    }
    Arc::new(map)
}

/// A packet for a key may come by any of its connections.
async fn expect_at_one(connections: [&mut TestClient; 2], payload: &[u8]) -> anyhow::Result<()> {
    let [one, other] = connections;
    let (_, got) = tokio::select! {
        got = one.packet() => got?,
        got = other.packet() => got?,
    };
    ensure!(got == payload, "another packet came: {:?}", String::from_utf8_lossy(&got));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_each_reach_one_region_only_talk_in_a_cross_listed_fleet() -> anyhow::Result<()> {
    let cluster = Cluster::start(2, 2, &[]).await?;
    let (alice, bob) = (NodePrivate::generate(), NodePrivate::generate());
    let plain = wait_shown(&cluster, &FOUR, "901: a-1 a-2 | 902: b-1 b-2").await?;
    check_served(&cluster).await?;
    let refused = TestClient::connect_region(&cluster, &reaching_only(&plain, "a"), B, alice.clone()).await;
    ensure!(refused.is_err(), "in a plain map there is no way to the peer's home");

    let applied = apply(&cluster, "mode = 'cross-listed'").await?;
    assert_eq!(applied["edited_regions"], serde_json::json!([901, 902]));
    let map = wait_shown(&cluster, &FOUR, "901: a-1 a-2 b-1@901 | 902: b-1 b-2 a-1@902").await?;
    check_served(&cluster).await?;
    let (alices, bobs) = (reaching_only(&map, "a"), reaching_only(&map, "b"));
    // Each has its home, and a connection to the peer's home region: both end at the same node.
    let mut alice_home = TestClient::connect_region(&cluster, &alices, A, alice.clone()).await?;
    let mut bob_home = TestClient::connect_region(&cluster, &bobs, B, bob.clone()).await?;
    alice_home.sender().note_preferred(true)?;
    bob_home.sender().note_preferred(true)?;
    let mut alice_side = TestClient::connect_region(&cluster, &alices, B, alice).await?;
    assert_eq!((alice_home.node(), alice_side.node(), bob_home.node()), ("a-1", "a-1@902", "b-1"));
    tokio::time::sleep(SETTLE).await;
    alice_side.send(bob_home.key(), b"there").await?;
    bob_home.expect(alice_home.key(), b"there").await?;
    // Bob answers by a connection to Alice's home region, which ends at his own node.
    let mut bob_side = TestClient::connect_region(&cluster, &bobs, A, bob).await?;
    assert_eq!(bob_side.node(), "b-1@901");
    tokio::time::sleep(SETTLE).await;
    for round in 0..20_u8 {
        bob_side.send(alice_home.key(), &[round]).await?;
        expect_at_one([&mut alice_home, &mut alice_side], &[round]).await?;
        alice_side.send(bob_home.key(), &[round, 1]).await?;
        expect_at_one([&mut bob_home, &mut bob_side], &[round, 1]).await?;
    }
    let clients = [alice_home, alice_side, bob_home, bob_side];
    ensure!(clients.iter().all(|client| client.health().is_empty()), "two connections of one key raise no alarm");
    drop(clients);
    cluster.finish(&FOUR, &Expected::default()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_stays_with_a_substitute_is_reached() -> anyhow::Result<()> {
    let cluster = Cluster::start(2, 2, &[]).await?;
    let settings = "mode = 'single-region'\n[single_region]\nid = 900\ncode = 'all'\nname = 'All sites'";
    let applied = apply(&cluster, settings).await?;
    assert_eq!(applied["retired_regions"], serde_json::json!([901, 902]));
    // Who has one of the old regions as its home is still reached there.
    let map = wait_shown(&cluster, &FOUR, "900: a-1 a-2 b-1 b-2 | 901: a-1@901 | 902: a-1@902").await?;
    check_served(&cluster).await?;
    let all = RegionId(900);
    let further = TestClient::connect_region(&cluster, &reaching_only(&map, "b"), all, NodePrivate::generate()).await?;
    cluster.stop("a-1").await?;
    let stayed = TestClient::connect_region(&cluster, &map, all, NodePrivate::generate()).await?;
    cluster.start_node("a-1").await?;
    cluster.wait_healthy("a-1", HEALED).await?;
    // Nothing brings the others back to the first node.
    let fresh = TestClient::connect_region(&cluster, &map, all, NodePrivate::generate()).await?;
    stayed.sender().note_preferred(true)?;
    assert_eq!((fresh.node(), stayed.node(), further.node()), ("a-1", "a-2", "b-1"));
    assert_eq!(map_of(&cluster, "a-1").await?, *map);
    let mut clients = [fresh, stayed, further];
    exchange_all(&mut clients, "first, second and third of the region").await?;
    drop(clients);
    cluster.finish(&FOUR, &Expected::default()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_a_balancer_clients_land_anywhere_and_are_reached() -> anyhow::Result<()> {
    let cluster = Cluster::start(2, 2, &[]).await?;
    let balancer = Balancer::start(vec![cluster.node("a-1").derp.clone(), cluster.node("a-2").derp.clone()]).await?;
    // `localhost` stands in every node's certificate.
    let region =
        "[regions.901]\nmode = 'balanced'\n[regions.901.balancer]\nhost_name = 'localhost'\nipv4 = '127.0.0.1'\nipv6 = 'none'";
    let applied = apply(&cluster, &format!("{region}\nderp_port = {}", balancer.port)).await?;
    assert_eq!(applied["edited_regions"], serde_json::json!([901]));
    let map = wait_shown(&cluster, &FOUR, "901: balanced@901 | 902: b-1 b-2").await?;
    check_served(&cluster).await?;
    let mut clients = Vec::new();
    for _ in 0..4 {
        clients.push(TestClient::connect_region(&cluster, &map, A, NodePrivate::generate()).await?);
    }
    clients.push(TestClient::connect_region(&cluster, &map, B, NodePrivate::generate()).await?);
    exchange_all(&mut clients, "balanced").await?;
    for (node, clients) in [("a-1", 2), ("a-2", 2), ("b-1", 1), ("b-2", 0)] {
        let held = cluster.causeway_json(node, &["presence", "ls", "--node", node]).await?;
        assert_eq!(held.as_array().map(Vec::len), Some(clients), "{node}");
    }
    // A node behind the balancer that is gone for good is nobody's business.
    cluster.kill("a-2").await?;
    let landed = TestClient::connect_region(&cluster, &map, A, NodePrivate::generate()).await;
    let landed = match landed {
        Ok(landed) => landed,
        Err(_) => TestClient::connect_region(&cluster, &map, A, NodePrivate::generate()).await?,
    };
    wait_fenced(&cluster, "a-1", "a-2").await?;
    assert_eq!(map_of(&cluster, "a-1").await?, *map);
    drop((clients, landed, balancer));
    cluster.finish(&["a-1", "b-1", "b-2"], &Expected::default()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_is_gone_for_longer_than_the_grace_leaves_the_map_and_it_comes_back_as_it_was() -> anyhow::Result<()> {
    let cluster = Cluster::start(2, 2, &[]).await?;
    apply(&cluster, "grace_seconds = 1\n[regions.901]\nscore = 0.5").await?;
    let survivors = ["a-1", "a-2"];
    let original = wait_shown(&cluster, &FOUR, "901: a-1 a-2 | 902: b-1 b-2").await?;
    let scores = original.home_params.as_ref().and_then(|params| params.region_score.clone()).context("scores")?;
    assert_eq!(scores.get(&A), Some(&0.5));
    cluster.kill("b-2").await?;
    wait_shown(&cluster, &survivors, "901: a-1 a-2 | 902: b-1").await?;
    // The region's last node: its number stays for a while, with nodes of others, and is nobody's home any more.
    cluster.causeway_json(&leader(&cluster).await?, &["node", "evict", "b-2"]).await?;
    cluster.kill("b-1").await?;
    let retired = wait_shown(&cluster, &survivors, "901: a-1 a-2 | 902: a-1@902").await?;
    ensure!(retired.regions[&B].no_measure_no_home && retired.regions[&B].region_name == original.regions[&B].region_name);
    let peer = TestClient::connect_region(&cluster, &retired, B, NodePrivate::generate()).await?;
    assert_eq!(peer.node(), "a-1@902");
    drop(peer);
    wait_shown(&cluster, &survivors, "901: a-1 a-2").await?;
    cluster.start_node("b-1").await?;
    let again = wait_shown(&cluster, &["a-1", "a-2", "b-1"], "901: a-1 a-2 | 902: b-1").await?;
    assert_eq!(again.regions[&A], original.regions[&A]);
    assert_eq!(again.regions[&B].nodes[..], original.regions[&B].nodes[..1]);
    cluster.finish(&["a-1", "a-2", "b-1"], &Expected::default()).await
}

pub(crate) async fn wait_fenced(cluster: &Cluster, observer: &str, name: &str) -> anyhow::Result<()> {
    wait_for(&format!("{name} to be fenced"), UNLISTED, async || {
        let status = cluster.operator(observer).await?.get_cluster_status(GetClusterStatusRequest {}).await?.into_inner();
        let node = status.nodes.into_iter().find(|summary| summary.node.as_ref().is_some_and(|node| node.name == name));
        Ok(node.filter(|summary| summary.fenced).map(drop))
    })
    .await
}

/// Hands each connection to the next target.
struct Balancer {
    port: u16,
    cancel: CancellationToken,
}

impl Balancer {
    async fn start(targets: Vec<String>) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let (tasks, cancel) = (TaskTracker::new(), CancellationToken::new());
        let next = AtomicUsize::new(0);
        let accept = {
            let (tasks, cancel) = (tasks.clone(), cancel.clone());
            async move {
                while let Some(Ok((mut stream, _))) = cancel.run_until_cancelled(listener.accept()).await {
                    let target = targets[next.fetch_add(1, Ordering::Relaxed) % targets.len()].clone();
                    let cancel = cancel.clone();
                    tasks.spawn(async move {
                        if let Ok(mut onward) = TcpStream::connect(target).await {
                            cancel.run_until_cancelled(tokio::io::copy_bidirectional(&mut stream, &mut onward)).await;
                        }
                    });
                }
            }
        };
        tasks.spawn(accept);
        Ok(Self { port, cancel })
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}
