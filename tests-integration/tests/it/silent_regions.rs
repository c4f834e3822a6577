//! What stock clients live through where addresses are silent, which costs more than a refusal: hosts that each reach one region only, and
//! one whose region's first node is silent.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use causeway_tests_integration::cluster::{Cluster, Node};
use causeway_tests_integration::logs::Expected;
use causeway_tests_integration::netns::{self, Host, Network, address};
use causeway_tests_integration::programs::Programs;
use tempfile::TempDir;

use crate::derpmap::{apply, wait_shown};
use crate::interop::{StockClient, derp_go};

const A: &str = "901";
const B: &str = "902";
const FOUR: [&str; 4] = ["a-1", "a-2", "b-1", "b-2"];

/// What stock clients give each node of a region.
const NODE_DIAL: Duration = Duration::from_millis(1500);

/// A hub for a fleet of two regions of two nodes, two client hosts, and the stock client that runs on them.
struct Site {
    network: Network,
    alice: Host,
    bob: Host,
    program: PathBuf,
    dir: TempDir,
}

impl Site {
    /// `None`, with a line that says so, where something is missing.
    fn new() -> anyhow::Result<Option<Self>> {
        let dir = tempfile::tempdir()?;
        if !netns::is_available() {
            return Ok(None);
        }
        // On the hub nothing can be fetched any more.
        let (Some(program), _) = (derp_go(dir.path())?, Programs::get()?) else { return Ok(None) };
        let mut network = Network::new(4)?;
        let (alice, bob) = (network.client()?, network.client()?);
        Ok(Some(Self { network, alice, bob, program, dir }))
    }

    /// Runs `test` with a fleet on the hub: a-1 has its first address, b-2 its fourth.
    fn run(&self, test: impl AsyncFnOnce(&Cluster) -> anyhow::Result<()> + Send) -> anyhow::Result<()> {
        let bind = [1, 2, 3, 4].map(|number| address(number).to_string()).join(",");
        let arguments = ["--regions", "2", "--nodes-per-region", "2", "--bind", &bind].map(str::to_owned);
        self.network.hub().run(async || {
            let cluster = Cluster::start_with(&arguments).await?;
            test(&cluster).await?;
            cluster.finish(&FOUR, &Expected::default()).await
        })
    }

    /// Writes the map that is served now.
    async fn map(&self, cluster: &Cluster, shown: &str) -> anyhow::Result<PathBuf> {
        let file = self.dir.path().join("map.json");
        std::fs::write(&file, wait_shown(cluster, &FOUR, shown).await?.to_json())?;
        Ok(file)
    }

    async fn talker(&self, host: &Host, cluster: &Cluster, map: &Path, homes: [&str; 2]) -> anyhow::Result<Talker> {
        let mut client = StockClient::start(host.command(&self.program), cluster, map, homes, "talk")?;
        let told = client.line("home ").await?;
        let (key, home) = told.split_once(' ').context("home KEY SERVER")?;
        Ok(Talker { key: key.to_owned(), home: home.to_owned(), client })
    }
}

/// A stock client in a process of its own, which is bounded in time.
struct Talker {
    client: StockClient,
    key: String,
    /// The server that holds its home connection.
    home: String,
}

impl Talker {
    /// Talks to the end; tells the server of its connection to the peer's home region.
    async fn content(mut self) -> anyhow::Result<String> {
        let side = self.client.line("side ").await?;
        let (content, said) = self.client.end().await?;
        ensure!(content, "the stock client is not content: {said}");
        Ok(side)
    }
}

async fn introduce(one: &mut Talker, other: &mut Talker) -> anyhow::Result<()> {
    one.client.meet(&other.key).await?;
    other.client.meet(&one.key).await
}

/// The name of the node with this server key.
fn name_of<'a>(cluster: &'a Cluster, server: &str) -> &'a str {
    let found = cluster.nodes().iter().find(|node: &&Node| node.derp_public_key == server);
    found.map_or("no node of the fleet", |node| node.name.as_str())
}

#[test]
fn interop_stock_clients_that_each_reach_one_region_only_talk_by_a_cross_listed_map() -> anyhow::Result<()> {
    let Some(site) = Site::new()? else { return Ok(()) };
    for number in [3, 4] {
        site.alice.silence(address(number))?;
        site.bob.silence(address(number - 2))?;
    }
    site.run(async |cluster| {
        // In a plain map there is no way to the peer's home: silence, for as long as a stock client waits.
        let plain = site.map(cluster, "901: a-1 a-2 | 902: b-1 b-2").await?;
        let mut alice = site.talker(&site.alice, cluster, &plain, [A, B]).await?;
        let mut bob = site.talker(&site.bob, cluster, &plain, [B, A]).await?;
        let started = Instant::now();
        introduce(&mut alice, &mut bob).await?;
        for (content, said) in <[_; 2]>::from(tokio::try_join!(alice.client.end(), bob.client.end())?) {
            ensure!(!content && said.contains("FAIL talk: connect to"), "{said}");
        }
        ensure!(started.elapsed() >= 2 * NODE_DIAL, "two silent nodes took {:?}", started.elapsed());

        apply(cluster, "mode = 'cross-listed'").await?;
        let listed = site.map(cluster, "901: a-1 a-2 b-1@901 | 902: b-1 b-2 a-1@902").await?;
        let mut alice = site.talker(&site.alice, cluster, &listed, [A, B]).await?;
        let mut bob = site.talker(&site.bob, cluster, &listed, [B, A]).await?;
        ensure!((name_of(cluster, &alice.home), name_of(cluster, &bob.home)) == ("a-1", "b-1"), "each in its own region");
        introduce(&mut alice, &mut bob).await?;
        let (alice_side, bob_side) = tokio::try_join!(alice.content(), bob.content())?;
        // The connection to the peer's home region has ended at a node that answers.
        ensure!((name_of(cluster, &alice_side), name_of(cluster, &bob_side)) == ("a-1", "b-1"), "each in its own region");
        Ok(())
    })
}

#[test]
fn interop_a_stock_client_that_stays_with_a_fallback_node_is_reached() -> anyhow::Result<()> {
    let Some(site) = Site::new()? else { return Ok(()) };
    site.alice.silence(address(1))?;
    site.run(async |cluster| {
        let map = site.map(cluster, "901: a-1 a-2 | 902: b-1 b-2").await?;
        let started = Instant::now();
        let mut alice = site.talker(&site.alice, cluster, &map, [A, A]).await?;
        ensure!(started.elapsed() >= NODE_DIAL, "a silent node took {:?}", started.elapsed());
        // The first node answers again, and nothing brings her back to it.
        site.alice.hear(address(1))?;
        let mut bob = site.talker(&site.bob, cluster, &map, [A, A]).await?;
        ensure!((name_of(cluster, &alice.home), name_of(cluster, &bob.home)) == ("a-2", "a-1"), "two nodes of the region");
        introduce(&mut alice, &mut bob).await?;
        tokio::try_join!(alice.content(), bob.content())?;
        Ok(())
    })
}
