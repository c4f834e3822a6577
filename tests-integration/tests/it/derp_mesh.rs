//! Stock derpers meshed with nodes of a fleet, in both directions. Needs Go, to build them.

mod mixed;
mod two_derpers;

use anyhow::ensure;
use causeway_client::{Event, Sender};
use causeway_proto::derp::frame::{PeerGoneReason, PresentFlags};
use causeway_proto::key::{MeshKey, NodePrivate, NodePublic};
use causeway_tests_integration::client::{TestClient, exchange_in_order};
use causeway_tests_integration::cluster::wait_for;
use causeway_tests_integration::logs::Expected;
use futures::FutureExt as _;

use mixed::{Mixed, NODES, RELINK, SILENCE, both_ways, disco, gone, present, reach};

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
