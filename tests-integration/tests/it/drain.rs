//! A node that stops, as those see it who watch it: stock derpers, monitoring.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use causeway_client::{ClientBuilder, Endpoint, Event, Watch, WatchEvent};
use causeway_proto::derp::frame::PeerGoneReason;
use causeway_proto::key::{MeshKey, NodePrivate, NodePublic};
use causeway_tests_integration::client::TestClient;
use causeway_tests_integration::cluster::Cluster;
use causeway_tests_integration::files::write_private;
use causeway_tests_integration::logs::Expected;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

const NODES: [&str; 2] = ["a-1", "a-2"];

/// Longer than a node takes to stop, or to start again.
const DEADLINE: Duration = Duration::from_secs(30);

async fn next(watch: &mut Watch) -> anyhow::Result<WatchEvent> {
    tokio::time::timeout(DEADLINE, watch.recv()).await.context("nothing happens")?.context("the watch is over")
}

/// Follows a watch that has connected until all of `keys` are present.
async fn until_present(watch: &mut Watch, keys: &[NodePublic]) -> anyhow::Result<()> {
    let mut missing: BTreeSet<_> = keys.iter().copied().collect();
    while !missing.is_empty() {
        match next(watch).await? {
            WatchEvent::Present { peer, .. } => {
                missing.remove(&peer);
            }
            WatchEvent::Connected { .. } => {}
            event => bail!("{event:?} while {missing:?} are missing"),
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_watches_a_node_that_stops_is_told_of_each_departure_and_comes_back_with_it() -> anyhow::Result<()> {
    let keys = tempfile::tempdir()?;
    let (key_file, mesh_key) = (keys.path().join("derp-mesh.key"), MeshKey::generate());
    write_private(&key_file, &mesh_key.expose_hex())?;
    let arguments = ["--regions", "1", "--nodes-per-region", "2", "--derp-mesh-key-file", &key_file.display().to_string()];
    let mut cluster = Cluster::start_with(&arguments.map(str::to_owned)).await?;
    cluster.guard_secret(&mesh_key.expose_hex());

    let watcher = NodePrivate::generate();
    let endpoint = Endpoint::at(cluster.node("a-1").derp.parse()?, "a-1.causeway.test");
    let (tasks, cancel) = (TaskTracker::new(), CancellationToken::new());
    let builder = ClientBuilder::new(watcher.clone()).endpoint(endpoint).ca_file(&cluster.ready().ca_file)?;
    let mut watch = builder.mesh_key(mesh_key).can_ack_pings(false).preferred(false).watch(&tasks, &cancel)?;

    let (one, two) = (TestClient::connect(&cluster, "a-1").await?, TestClient::connect(&cluster, "a-1").await?);
    // Two connections of one key are one client.
    let again = TestClient::connect_as(&cluster, "a-1", two.private()).await?;
    let sibling = TestClient::connect(&cluster, "a-2").await?;
    let (key_one, key_two) = (one.key(), two.key());
    until_present(&mut watch, &[key_one, key_two, sibling.key(), watcher.public()]).await?;

    cluster.stop("a-1").await?;
    let (mut gone, mut restarting) = (BTreeMap::<NodePublic, usize>::new(), None);
    let retry_in = loop {
        match next(&mut watch).await? {
            WatchEvent::Gone { peer, reason: PeerGoneReason::Disconnected } => {
                ensure!(restarting.is_none(), "the last word comes last");
                *gone.entry(peer).or_default() += 1;
            }
            WatchEvent::Received(Event::Restarting { reconnect_in, .. }) => restarting = Some(reconnect_in),
            WatchEvent::Failed { retry_in, .. } => break retry_in,
            // Told late, or the second connection of a key.
            WatchEvent::Present { .. } | WatchEvent::Received(Event::KeepAlive) => {}
            event => bail!("{event:?}"),
        }
    };
    ensure!(gone == BTreeMap::from([(key_one, 1), (key_two, 1)]), "{gone:?}");
    ensure!(restarting == Some(retry_in) && retry_in < Duration::from_secs(1), "{restarting:?}, {retry_in:?}");
    // The watch itself ends what it was not told the end of: the sibling's client is still where it was.
    let mut rest = BTreeSet::new();
    while rest.len() < 2 {
        match next(&mut watch).await? {
            WatchEvent::Gone { peer, reason: PeerGoneReason::MeshConnectionBroke } => ensure!(rest.insert(peer), "told twice"),
            event => bail!("{event:?}"),
        }
    }
    ensure!(rest == BTreeSet::from([sibling.key(), watcher.public()]), "{rest:?}");
    drop((one, two, again));

    cluster.start_node("a-1").await?;
    let back = TestClient::connect(&cluster, "a-1").await?;
    loop {
        match next(&mut watch).await? {
            // While nobody listened.
            WatchEvent::Failed { .. } => {}
            WatchEvent::Connected { .. } => break,
            event => bail!("{event:?}"),
        }
    }
    until_present(&mut watch, &[back.key(), sibling.key(), watcher.public()]).await?;
    cancel.cancel();
    drop((watch, back, sibling));
    cluster.finish(&NODES, &Expected::default()).await
}
