//! Two stock derpers and two nodes of one region: each of the four is meshed with the three others.

use std::path::{Path, PathBuf};

use anyhow::ensure;
use causeway_proto::key::NodePrivate;
use causeway_tests_integration::client::{TestClient, exchange_in_order};
use causeway_tests_integration::cluster::wait_for;
use causeway_tests_integration::derper::{Derper, MeshWith};
use causeway_tests_integration::logs::Expected;

use super::mixed::{Mixed, NODES, RELINK, SILENCE, both_ways, client_of};

const NEAR: [&str; 2] = ["a-1", "a-2"];

/// The roots of everybody in one file.
fn bundle(mixed: &Mixed, other: &Derper, dir: &Path) -> anyhow::Result<PathBuf> {
    let mut roots = String::new();
    for file in [mixed.cluster.ready().ca_file.clone(), mixed.derper.ca_file(), other.ca_file()] {
        roots += &std::fs::read_to_string(file)?;
    }
    let path = dir.join("roots.pem");
    std::fs::write(&path, roots)?;
    Ok(path)
}

/// Packets that the nodes of the region took from derpers and gave to derpers.
async fn over_the_border(mixed: &Mixed) -> anyhow::Result<f64> {
    let mut packets = 0.0;
    for node in NEAR {
        let metrics = mixed.cluster.metrics(node).await?;
        packets += metrics.sum("causeway_packets_accepted_total", &[("from", "stock_mesh")]).unwrap_or_default();
        packets += metrics.sum("causeway_packets_delivered_total", &[("to", "stock_mesh")]).unwrap_or_default();
    }
    Ok(packets)
}

async fn links(mixed: &Mixed, wanted: f64) -> anyhow::Result<()> {
    for node in NEAR {
        mixed.wait_gauge(node, "causeway_derp_mesh_links_up", wanted).await?;
        mixed.wait_gauge(node, "causeway_clients_mesh_peers", wanted).await?;
    }
    Ok(())
}

/// Exchanges packets that must not pass from one kind of server to the other.
async fn among_themselves(mixed: &Mixed, one: &mut TestClient, other: &mut TestClient) -> anyhow::Result<()> {
    both_ways(one, other).await?;
    let before = over_the_border(mixed).await?;
    exchange_in_order(one, other, 100).await?;
    exchange_in_order(other, one, 100).await?;
    let after = over_the_border(mixed).await?;
    ensure!(before == after, "{} packets of {} and {} took a detour", after - before, one.node(), other.node());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn two_derpers_and_two_nodes_that_all_mesh_double_loop_and_lose_nothing() -> anyhow::Result<()> {
    let Some(mut mixed) = Mixed::start(&[]).await? else { return Ok(()) };
    let mut other = mixed.another_derper()?;
    let dir = tempfile::tempdir()?;
    let ca_file = bundle(&mixed, &other, dir.path())?;
    let nodes = NEAR.iter().map(|node| mixed.mesh_name(node)).collect::<anyhow::Result<Vec<_>>>()?;
    let derpers = [mixed.derper.mesh_name(), other.mesh_name()];
    for node in NEAR {
        mixed.dial_from(node, &derpers, &ca_file).await?;
    }
    let key_file = mixed.cluster.ready().derp_mesh_key_file.clone();
    for (derper, sibling) in [(&mut mixed.derper, &derpers[1]), (&mut other, &derpers[0])] {
        let with = [&nodes[..], std::slice::from_ref(sibling)].concat();
        derper.start(Some(&MeshWith { key_file: key_file.clone(), with, ca_file: ca_file.clone() })).await?;
    }
    links(&mixed, 2.0).await?;

    let mut stock = client_of(&mixed.derper, NodePrivate::generate()).await?;
    let mut stock_other = client_of(&other, NodePrivate::generate()).await?;
    let mut one = TestClient::connect(&mixed.cluster, "a-1").await?;
    let mut two = TestClient::connect(&mixed.cluster, "a-2").await?;
    for key in [stock.key(), stock_other.key()] {
        mixed.wait_behind(&["a-1"], key, "a-1").await?;
        mixed.wait_behind(&["a-2"], key, "a-2").await?;
    }
    // Across.
    for ours in [&mut one, &mut two] {
        both_ways(&mut stock, ours).await?;
        both_ways(&mut stock_other, ours).await?;
    }
    // Each kind by itself.
    among_themselves(&mixed, &mut stock, &mut stock_other).await?;
    among_themselves(&mixed, &mut one, &mut two).await?;

    // One key at both derpers: a packet goes to one of them.
    let mut again = client_of(&other, stock.private()).await?;
    for node in NEAR {
        mixed.wait_gauge(node, "causeway_derp_mesh_shared_keys", 1.0).await?;
    }
    exchange_in_order(&mut one, &mut stock, 50).await?;
    ensure!(again.packet_within(SILENCE).await?.is_none(), "a packet was doubled");
    // The connection goes that got them: the other one takes over.
    stock.close().await;
    for node in NEAR {
        mixed.wait_gauge(node, "causeway_derp_mesh_shared_keys", 0.0).await?;
    }
    exchange_in_order(&mut one, &mut again, 50).await?;
    exchange_in_order(&mut two, &mut again, 50).await?;

    // One derper dies, and takes only its own clients with it.
    let survivor = client_of(&mixed.derper, NodePrivate::generate()).await?;
    mixed.wait_behind(&["a-1"], survivor.key(), "a-1").await?;
    let (lost, mut survivor) = (stock_other.key(), survivor);
    other.kill();
    links(&mixed, 1.0).await?;
    mixed.wait_forgotten(&NODES, lost).await?;
    both_ways(&mut survivor, &mut two).await?;

    for client in [&mut one, &mut two, &mut survivor] {
        ensure!(client.packet_within(SILENCE).await?.is_none(), "a packet too many at {}", client.node());
    }
    wait_for("nothing to be under way", RELINK, async || {
        let mut queued = 0.0;
        for node in NEAR {
            queued += mixed.cluster.metrics(node).await?.accounting().queued;
        }
        Ok((queued == 0.0).then_some(()))
    })
    .await?;
    drop((stock_other, again, survivor, one, two));
    mixed.cluster.finish(&NODES, &Expected::default()).await
}
