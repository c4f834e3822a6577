//! Stock derpers meshed with nodes of a fleet, in both directions. Needs Go, to build them.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use causeway_client::{ClientBuilder, Connection, Endpoint, Event, Sender};
use causeway_proto::derp::frame::{PeerGoneReason, PresentFlags};
use causeway_proto::key::{MeshKey, NodePrivate, NodePublic};
use causeway_proto::packet::{DISCO_LEN_MIN, DISCO_MAGIC};
use causeway_rpc::v1::ClaimKind;
use causeway_tests_integration::client::{TestClient, exchange_in_order};
use causeway_tests_integration::cluster::{Cluster, wait_for};
use causeway_tests_integration::derper::{Derper, MeshWith};
use causeway_tests_integration::files::write_private;
use causeway_tests_integration::go::tailscale_program;
use causeway_tests_integration::logs::Expected;
use futures::FutureExt as _;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

const NODES: [&str; 4] = ["a-1", "a-2", "b-1", "b-2"];

/// A link is dialled again after 5 s; then the flood has to arrive.
const RELINK: Duration = Duration::from_secs(20);

/// Longer than anything takes to arrive that does arrive.
const SILENCE: Duration = Duration::from_millis(700);

/// Two regions of two nodes and a stock derper that shares their DERP mesh key; nobody dials anybody yet.
struct Mixed {
    cluster: Cluster,
    derper: Derper,
    mesh_key: MeshKey,
    _keys: tempfile::TempDir,
}

impl Mixed {
    async fn start(sets: &[&str]) -> anyhow::Result<Option<Self>> {
        let Some(program) = tailscale_program("derper", Path::new(env!("CARGO_TARGET_TMPDIR")))? else { return Ok(None) };
        let keys = tempfile::tempdir()?;
        let key_file = keys.path().join("derp-mesh.key");
        let mesh_key = MeshKey::generate();
        write_private(&key_file, &mesh_key.expose_hex())?;
        let mut arguments = ["--regions", "2", "--nodes-per-region", "2"].map(str::to_owned).to_vec();
        arguments.extend(["--derp-mesh-key-file".to_owned(), key_file.display().to_string()]);
        arguments.extend(sets.iter().flat_map(|set| ["--set".to_owned(), (*set).to_owned()]));
        let mut cluster = Cluster::start_with(&arguments).await?;
        cluster.guard_secret(&mesh_key.expose_hex());
        Ok(Some(Self { cluster, derper: Derper::new(program)?, mesh_key, _keys: keys }))
    }

    /// Starts the derper, dialling these nodes.
    async fn start_derper(&mut self, nodes: &[&str]) -> anyhow::Result<()> {
        let with = nodes.iter().map(|node| self.mesh_name(node)).collect::<anyhow::Result<_>>()?;
        let key_file = self.cluster.ready().derp_mesh_key_file.clone();
        let mesh = MeshWith { key_file, with, ca_file: self.cluster.ready().ca_file.clone() };
        self.derper.start(Some(&mesh)).await
    }

    /// A node as a derper's `--mesh-with` names it.
    fn mesh_name(&self, node: &str) -> anyhow::Result<String> {
        let (address, port) = self.cluster.node(node).derp.rsplit_once(':').context("HOST:PORT")?;
        Ok(format!("{node}.causeway.test:{port}/{address}"))
    }

    /// Restarts a node with these derpers to dial.
    async fn dial_from(&self, node: &str, with: &[String], ca_file: &Path) -> anyhow::Result<()> {
        self.cluster.stop(node).await?;
        let with = format!("derp_mesh.with={with:?}");
        self.cluster.reconfigure(node, &[&with, &format!("derp_mesh.ca_file={}", ca_file.display())])?;
        self.cluster.start_node(node).await?;
        self.cluster.wait_healthy(node, RELINK).await
    }

    /// Restarts nodes so that they dial the derper.
    async fn dial_derper_from(&self, nodes: &[&str]) -> anyhow::Result<()> {
        for node in nodes {
            self.dial_from(node, &[self.derper.mesh_name()], &self.derper.ca_file()).await?;
        }
        Ok(())
    }

    async fn wait_linked(&self, nodes: &[&str]) -> anyhow::Result<()> {
        for node in nodes {
            self.wait_gauge(node, "causeway_derp_mesh_links_up", 1.0).await?;
        }
        Ok(())
    }

    async fn wait_watched(&self, nodes: &[&str]) -> anyhow::Result<()> {
        for node in nodes {
            self.wait_gauge(node, "causeway_clients_mesh_peers", 1.0).await?;
        }
        Ok(())
    }

    async fn wait_gauge(&self, node: &str, name: &str, wanted: f64) -> anyhow::Result<()> {
        wait_for(&format!("{name} of {node} to be {wanted}"), RELINK, async || {
            let value = self.cluster.metrics(node).await?.sum(name, &[]);
            Ok(value.filter(|value| (value - wanted).abs() < 0.5).map(drop))
        })
        .await
    }

    async fn client_of_derper(&self) -> anyhow::Result<TestClient> {
        self.client_of_derper_as(NodePrivate::generate()).await
    }

    async fn client_of_derper_as(&self, key: NodePrivate) -> anyhow::Result<TestClient> {
        let builder = ClientBuilder::new(key.clone()).trust(self.derper.trust()?).endpoint(self.derper.endpoint());
        TestClient::connect_by(builder, "the derper", key).await
    }

    /// Waits until `observers` know `key` as held by a derper that `watcher` watches.
    async fn wait_behind(&self, observers: &[&str], key: NodePublic, watcher: &str) -> anyhow::Result<()> {
        for observer in observers {
            wait_for(&format!("{observer} to know {key} behind {watcher}"), RELINK, async || {
                let claims = self.cluster.presence(observer, key).await?.map(|entry| entry.claims).unwrap_or_default();
                let behind = claims.iter().find(|claim| claim.node_name == watcher && claim.valid);
                Ok(behind.filter(|claim| claim.kind == i32::from(ClaimKind::Derper)).map(drop))
            })
            .await?;
        }
        Ok(())
    }

    /// Waits until nobody of `observers` knows a claim that counts on `key`.
    async fn wait_forgotten(&self, observers: &[&str], key: NodePublic) -> anyhow::Result<()> {
        for observer in observers {
            wait_for(&format!("{observer} to forget {key}"), RELINK, async || {
                let entry = self.cluster.presence(observer, key).await?;
                Ok((!entry.is_some_and(|entry| entry.claims.iter().any(|claim| claim.valid))).then_some(()))
            })
            .await?;
        }
        Ok(())
    }

    /// A connection with the mesh key to `node`: what a stock derper does there, step by step.
    async fn mesh_peer(&self, node: &str, watch: bool) -> anyhow::Result<Peer> {
        self.mesh_peer_with(node, watch, self.mesh_key.clone()).await
    }

    async fn mesh_peer_with(&self, node: &str, watch: bool, mesh_key: MeshKey) -> anyhow::Result<Peer> {
        let address = self.cluster.node(node).derp.parse().context("DERP address")?;
        let key = NodePrivate::generate();
        let (tasks, cancel) = (TaskTracker::new(), CancellationToken::new());
        let connection = ClientBuilder::new(key.clone())
            .endpoint(Endpoint::at(address, &format!("{node}.causeway.test")))
            .ca_file(&self.cluster.ready().ca_file)?
            .mesh_key(mesh_key)
            .can_ack_pings(false)
            .preferred(false)
            .watch_connections(watch)
            .connect(&tasks, &cancel)
            .await?;
        Ok(Peer { key: key.public(), connection, _cancel: cancel.drop_guard() })
    }
}

struct Peer {
    key: NodePublic,
    connection: Connection,
    _cancel: tokio_util::sync::DropGuard,
}

impl Peer {
    /// The next event that is no keep-alive, if one comes.
    async fn next(&mut self) -> anyhow::Result<Option<Event>> {
        let next = async {
            loop {
                match self.connection.recv().await? {
                    Event::KeepAlive => {}
                    event => return anyhow::Ok(event),
                }
            }
        };
        tokio::time::timeout(SILENCE, next).await.ok().transpose()
    }

    /// Everything that comes until it is `enough` and then nothing more does.
    async fn all(&mut self, enough: impl Fn(&[Event]) -> bool) -> anyhow::Result<Vec<Event>> {
        let mut all = Vec::new();
        wait_for("enough events", RELINK, async || {
            all.extend(self.next().await?);
            Ok(enough(&all).then_some(()))
        })
        .await
        .with_context(|| format!("{all:?}"))?;
        while let Some(event) = self.next().await? {
            all.push(event);
        }
        Ok(all)
    }
}

fn present(events: &[Event], key: NodePublic) -> Vec<(bool, PresentFlags)> {
    let of_key = events.iter().filter_map(|event| match event {
        Event::PeerPresent { peer, addr, flags } if *peer == key => Some((addr.is_some(), *flags)),
        _ => None,
    });
    of_key.collect()
}

fn gone(events: &[Event], key: NodePublic) -> usize {
    events
        .iter()
        .filter(|event| matches!(event, Event::PeerGone { peer, reason: PeerGoneReason::Disconnected } if *peer == key))
        .count()
}

fn disco() -> Vec<u8> {
    let mut payload = vec![0; DISCO_LEN_MIN];
    payload[..DISCO_MAGIC.len()].copy_from_slice(&DISCO_MAGIC);
    payload
}

/// Sends until a packet arrives: each side may need a moment to learn of the other.
async fn reach(from: &TestClient, to: &mut TestClient) -> anyhow::Result<()> {
    wait_for(&format!("a packet from {} to {}", from.node(), to.node()), RELINK, async || {
        from.send(to.key(), b"reach").await?;
        Ok(to.packet_within(Duration::from_millis(200)).await?.map(drop))
    })
    .await?;
    while to.packet_within(SILENCE).await?.is_some() {}
    Ok(())
}

async fn both_ways(one: &mut TestClient, other: &mut TestClient) -> anyhow::Result<()> {
    for _ in 0..2 {
        reach(one, other).await?;
        reach(other, one).await?;
    }
    exchange_in_order(one, other, 200).await?;
    exchange_in_order(other, one, 200).await
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_a_stock_derper_and_of_the_whole_fleet_reach_each_other() -> anyhow::Result<()> {
    let Some(mut mixed) = Mixed::start(&["derp_mesh.announce=fleet"]).await? else { return Ok(()) };
    mixed.start_derper(&["a-1"]).await?;
    mixed.dial_derper_from(&["a-1"]).await?;
    mixed.wait_linked(&["a-1"]).await?;
    mixed.wait_watched(&["a-1"]).await?;

    let mut stock = mixed.client_of_derper().await?;
    let mut near = TestClient::connect(&mixed.cluster, "a-1").await?;
    let mut sibling = TestClient::connect(&mixed.cluster, "a-2").await?;
    let mut far = TestClient::connect(&mixed.cluster, "b-1").await?;
    mixed.wait_behind(&NODES, stock.key(), "a-1").await?;
    for client in [&mut near, &mut sibling, &mut far] {
        both_ways(&mut stock, client).await?;
    }

    // A client of ours goes before one of a derper, wherever it is; when it goes the derper's is back.
    let mut moved = TestClient::connect_as(&mixed.cluster, "b-2", stock.private()).await?;
    mixed.cluster.wait_held(&NODES, stock.key(), "b-2", RELINK).await?;
    exchange_in_order(&mut near, &mut moved, 20).await?;
    exchange_in_order(&mut far, &mut moved, 20).await?;
    ensure!(stock.packet_within(SILENCE).await?.is_none(), "a packet was doubled");
    moved.close().await;
    mixed.cluster.wait_held(&["a-1", "b-1"], stock.key(), "a-1", RELINK).await?;
    exchange_in_order(&mut far, &mut stock, 20).await?;
    // The same at the very node that watches the derper.
    let mut moved = TestClient::connect_as(&mixed.cluster, "a-1", stock.private()).await?;
    exchange_in_order(&mut near, &mut moved, 20).await?;
    mixed.cluster.wait_held(&["b-1"], stock.key(), "a-1", RELINK).await?;
    moved.close().await;
    mixed.wait_behind(&NODES, stock.key(), "a-1").await?;
    exchange_in_order(&mut far, &mut stock, 20).await?;

    // The derper dies: its clients are nowhere, and those who talked to them are told. It comes back, and so do they.
    let key = stock.private();
    mixed.derper.kill();
    mixed.wait_forgotten(&NODES, key.public()).await?;
    let reason = far.expect_gone(key.public(), RELINK).await?;
    ensure!(reason == PeerGoneReason::Disconnected, "{reason:?}");
    let before = mixed.cluster.metrics("b-1").await?.sum("causeway_packets_dropped_total", &[("reason", "unknown_dest")]);
    far.send(key.public(), b"into the void").await?;
    wait_for("the drop to be counted", RELINK, async || {
        let now = mixed.cluster.metrics("b-1").await?.sum("causeway_packets_dropped_total", &[("reason", "unknown_dest")]);
        Ok((now > before).then_some(()))
    })
    .await?;
    mixed.start_derper(&["a-1"]).await?;
    mixed.wait_linked(&["a-1"]).await?;
    mixed.wait_watched(&["a-1"]).await?;
    let mut stock = mixed.client_of_derper_as(key).await?;
    mixed.wait_behind(&NODES, stock.key(), "a-1").await?;
    both_ways(&mut stock, &mut far).await?;

    let scrape = mixed.cluster.metrics("a-1").await?;
    let delivered = scrape.sum("causeway_packets_delivered_total", &[("to", "stock_mesh")]).unwrap_or_default();
    let accepted = scrape.sum("causeway_packets_accepted_total", &[("from", "stock_mesh")]).unwrap_or_default();
    ensure!(delivered >= 800.0 && accepted >= 800.0, "to and from the derper: {delivered}, {accepted}");
    ensure!(
        scrape.sum("causeway_derp_mesh_links_ended_total", &[]).is_some_and(|ended| ended >= 1.0),
        "the lost link is counted"
    );
    drop((stock, near, sibling, far));
    mixed.cluster.finish(&NODES, &Expected::default()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_of_a_region_and_a_derper_that_all_watch_each_other_double_nothing() -> anyhow::Result<()> {
    let Some(mut mixed) = Mixed::start(&[]).await? else { return Ok(()) };
    mixed.start_derper(&["a-1", "a-2"]).await?;
    mixed.dial_derper_from(&["a-1", "a-2"]).await?;
    mixed.wait_linked(&["a-1", "a-2"]).await?;
    mixed.wait_watched(&["a-1", "a-2"]).await?;

    let mut stock = mixed.client_of_derper().await?;
    let mut one = TestClient::connect(&mixed.cluster, "a-1").await?;
    let mut two = TestClient::connect(&mixed.cluster, "a-2").await?;
    let mut far = TestClient::connect(&mixed.cluster, "b-1").await?;
    for watcher in ["a-1", "a-2"] {
        mixed.wait_behind(&NODES, stock.key(), watcher).await?;
    }
    both_ways(&mut stock, &mut one).await?;
    both_ways(&mut stock, &mut two).await?;
    exchange_in_order(&mut far, &mut stock, 200).await?;

    // Clients of another region are not announced: the derper knows of no way there, and says so.
    stock.send(far.key(), &disco()).await?;
    ensure!(
        stock.expect_gone(far.key(), RELINK).await? == PeerGoneReason::NotHere,
        "the derper knows a client of the far region"
    );
    ensure!(far.packet_within(SILENCE).await?.is_none(), "a packet came from the derper");

    // What one derper forwards goes to no other, neither here nor through a sibling.
    for node in ["a-1", "b-1"] {
        let mut peer = mixed.mesh_peer(node, false).await?;
        let source = NodePrivate::generate().public();
        peer.connection.sender().forward_packet(&source, &stock.key(), &disco()).await?;
        let answer = peer.next().await?;
        let not_here = Event::PeerGone { peer: stock.key(), reason: PeerGoneReason::NotHere };
        ensure!(answer == Some(not_here), "{node} answers {answer:?}");
        // To a client of ours it goes, though, over our own links.
        peer.connection.sender().forward_packet(&source, &two.key(), b"forwarded").await?;
        two.expect(source, b"forwarded").await?;
    }
    ensure!(stock.packet_within(SILENCE).await?.is_none(), "a packet was forwarded by two derpers");
    let dropped = mixed.cluster.metrics("a-1").await?.sum("causeway_packets_dropped_total", &[("reason", "unknown_dest_on_fwd")]);
    ensure!(dropped.is_some_and(|dropped| dropped >= 1.0), "the drop is counted: {dropped:?}");

    // One of the two nodes dies: packets go through the other.
    mixed.cluster.kill("a-1").await?;
    drop(one);
    reach(&far, &mut stock).await?;
    exchange_in_order(&mut far, &mut stock, 100).await?;
    both_ways(&mut stock, &mut two).await?;
    drop((stock, two, far));
    mixed.cluster.finish(&["a-2", "b-1", "b-2"], &Expected::default()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_sees_the_clients_of_the_region_and_closes_them() -> anyhow::Result<()> {
    let Some(mut mixed) = Mixed::start(&[]).await? else { return Ok(()) };
    // The derper holds a client, and a-1 watches it: that is no news to whoever watches a-1.
    mixed.start_derper(&[]).await?;
    mixed.dial_derper_from(&["a-1"]).await?;
    mixed.wait_linked(&["a-1"]).await?;
    let stock = mixed.client_of_derper().await?;
    mixed.wait_behind(&["a-1"], stock.key(), "a-1").await?;
    let here = TestClient::connect(&mixed.cluster, "a-1").await?;
    let sibling = TestClient::connect(&mixed.cluster, "a-2").await?;
    let far = TestClient::connect(&mixed.cluster, "b-1").await?;
    mixed.cluster.wait_held(&["a-1"], sibling.key(), "a-2", RELINK).await?;
    mixed.cluster.wait_held(&["a-1"], far.key(), "b-1", RELINK).await?;

    let mut peer = mixed.mesh_peer("a-1", true).await?;
    let flood = peer.all(|events| events.len() >= 3).await?;
    ensure!(present(&flood, peer.key) == [(true, PresentFlags::MESH_PEER)], "the watcher itself: {flood:?}");
    ensure!(present(&flood, here.key()) == [(true, PresentFlags::REGULAR)], "a client here: {flood:?}");
    ensure!(present(&flood, sibling.key()) == [(false, PresentFlags::REGULAR)], "a client of the sibling: {flood:?}");
    ensure!(present(&flood, far.key()).is_empty() && present(&flood, stock.key()).is_empty(), "none of others: {flood:?}");

    // Another connection of a key here is told of again; one elsewhere is no news, and no connection is missed while one is left.
    let second = TestClient::connect_as(&mixed.cluster, "a-1", here.private()).await?;
    let third = TestClient::connect_as(&mixed.cluster, "a-2", here.private()).await?;
    wait_for("a-1 to know of the third connection", RELINK, async || {
        let claims = mixed.cluster.presence("a-1", here.key()).await?.map_or(0, |entry| entry.claims.len());
        Ok((claims == 2).then_some(()))
    })
    .await?;
    let key = here.key();
    here.close().await;
    second.close().await;
    let news = peer.all(|events| !events.is_empty()).await?;
    ensure!(present(&news, key).len() == 1 && gone(&news, key) == 0, "{news:?}");
    third.close().await;
    let sibling_key = sibling.key();
    sibling.close().await;
    let news = peer.all(|events| events.len() >= 2).await?;
    ensure!(gone(&news, key) == 1 && gone(&news, sibling_key) == 1, "{news:?}");

    // ClosePeer closes every connection of a key.
    let mut one = TestClient::connect(&mixed.cluster, "a-1").await?;
    let mut two = TestClient::connect_as(&mixed.cluster, "a-1", one.private()).await?;
    peer.connection.sender().close_peer(&one.key())?;
    for client in [&mut one, &mut two] {
        ensure!(client.packet_within(RELINK).await.is_err(), "a connection of the key stays open");
    }
    let news = peer.all(|events| gone(events, one.key()) > 0).await?;
    ensure!(present(&news, one.key()).len() == 2 && gone(&news, one.key()) == 1, "{news:?}");

    // With another mesh key one is an ordinary client, and each of these frames ends its connection.
    let attempts: [fn(&Sender, &NodePublic); 3] = [
        |sender, _| drop(sender.watch_connections()),
        |sender, other| drop(sender.close_peer(other)),
        |sender, other| drop(sender.forward_packet(other, other, b"forged").now_or_never()),
    ];
    for attempt in attempts {
        let mut stranger = mixed.mesh_peer_with("a-1", false, MeshKey::generate()).await?;
        attempt(stranger.connection.sender(), &far.key());
        let ended = async { while stranger.connection.recv().await.is_ok() {} };
        ensure!(tokio::time::timeout(RELINK, ended).await.is_ok(), "a stranger stays connected");
    }
    drop((stock, far, peer));
    mixed.cluster.finish(&NODES, &Expected::default()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_names_the_node_itself_or_its_siblings_does_no_harm() -> anyhow::Result<()> {
    let Some(mixed) = Mixed::start(&[]).await? else { return Ok(()) };
    let with = [mixed.mesh_name("a-1")?, mixed.mesh_name("a-2")?];
    mixed.dial_from("a-1", &with, &mixed.cluster.ready().ca_file).await?;
    for said in ["this derper is this node itself", "it is a node of this fleet"] {
        wait_for(said, RELINK, async || {
            Ok(std::fs::read_to_string(&mixed.cluster.node("a-1").log)?.contains(said).then_some(()))
        })
        .await?;
    }
    let client = TestClient::connect(&mixed.cluster, "a-2").await?;
    mixed.cluster.wait_held(&["a-1", "b-1"], client.key(), "a-2", RELINK).await?;
    let claims = mixed.cluster.presence("b-1", client.key()).await?.map(|entry| entry.claims).unwrap_or_default();
    ensure!(claims.len() == 1, "a node claims what its sibling holds: {claims:?}");
    let scrape = mixed.cluster.metrics("a-1").await?;
    ensure!(scrape.sum("causeway_derp_mesh_links_up", &[]) == Some(0.0), "it is linked to nobody");
    drop(client);
    mixed.cluster.finish(&NODES, &Expected::default()).await
}
