//! What stock clients live through where addresses are silent, which costs more than a refusal: hosts that each reach one region only, and
//! one whose region's first node is silent.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use causeway_client::{Client, ClientBuilder, ClientEvent, Trust};
use causeway_proto::id::RegionId;
use causeway_proto::key::NodePrivate;
use causeway_tests_integration::cluster::{Cluster, Node};
use causeway_tests_integration::logs::Expected;
use causeway_tests_integration::netns::{self, Host, Network, address};
use causeway_tests_integration::programs::Programs;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::derpmap::{apply, wait_shown};
use crate::interop::{LONG_VARIABLE, StockClient, derp_go};

const A: &str = "901";
const B: &str = "902";
const FOUR: [&str; 4] = ["a-1", "a-2", "b-1", "b-2"];

/// What stock clients give each node of a region.
const NODE_DIAL: Duration = Duration::from_millis(1500);

/// A hub for a fleet of two regions of two nodes, and two client hosts.
struct Site {
    network: Network,
    alice: Host,
    bob: Host,
    dir: TempDir,
}

impl Site {
    /// `None`, with a line that says so, where networks cannot be made.
    fn new() -> anyhow::Result<Option<Self>> {
        if !netns::is_available() {
            return Ok(None);
        }
        // On the hub nothing can be fetched any more.
        Programs::get()?;
        let mut network = Network::new(4)?;
        let (alice, bob) = (network.client()?, network.client()?);
        Ok(Some(Self { network, alice, bob, dir: tempfile::tempdir()? }))
    }

    /// Builds the stock client; `None`, with a line that says so, where Go is missing.
    fn stock_client(&self) -> anyhow::Result<Option<PathBuf>> {
        derp_go(self.dir.path())
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
}

/// A stock client in a process of its own, which is bounded in time.
struct Talker {
    client: StockClient,
    key: String,
    /// The server that holds its home connection.
    home: String,
}

impl Talker {
    async fn start(command: Command, cluster: &Cluster, map: &Path, homes: [&str; 2]) -> anyhow::Result<Self> {
        let mut client = StockClient::start(command, cluster, map, homes, "talk")?;
        let told = client.line("home ").await?;
        let (key, home) = told.split_once(' ').context("home KEY SERVER")?;
        Ok(Self { key: key.to_owned(), home: home.to_owned(), client })
    }

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
    let Some(stock) = site.stock_client()? else { return Ok(()) };
    for number in [3, 4] {
        site.alice.silence(address(number))?;
        site.bob.silence(address(number - 2))?;
    }
    site.run(async |cluster| {
        // In a plain map there is no way to the peer's home: silence, for as long as a stock client waits.
        let plain = site.map(cluster, "901: a-1 a-2 | 902: b-1 b-2").await?;
        let mut alice = Talker::start(site.alice.command(&stock), cluster, &plain, [A, B]).await?;
        let mut bob = Talker::start(site.bob.command(&stock), cluster, &plain, [B, A]).await?;
        let started = Instant::now();
        introduce(&mut alice, &mut bob).await?;
        for (content, said) in <[_; 2]>::from(tokio::try_join!(alice.client.end(), bob.client.end())?) {
            ensure!(!content && said.contains("FAIL talk: connect to"), "{said}");
        }
        ensure!(started.elapsed() >= 2 * NODE_DIAL, "two silent nodes took {:?}", started.elapsed());

        apply(cluster, "mode = 'cross-listed'").await?;
        let listed = site.map(cluster, "901: a-1 a-2 b-1@901 | 902: b-1 b-2 a-1@902").await?;
        let mut alice = Talker::start(site.alice.command(&stock), cluster, &listed, [A, B]).await?;
        let mut bob = Talker::start(site.bob.command(&stock), cluster, &listed, [B, A]).await?;
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
    let Some(stock) = site.stock_client()? else { return Ok(()) };
    site.alice.silence(address(1))?;
    site.run(async |cluster| {
        let map = site.map(cluster, "901: a-1 a-2 | 902: b-1 b-2").await?;
        let started = Instant::now();
        let mut alice = Talker::start(site.alice.command(&stock), cluster, &map, [A, A]).await?;
        ensure!(started.elapsed() >= NODE_DIAL, "a silent node took {:?}", started.elapsed());
        // The first node answers again, and nothing brings her back to it.
        site.alice.hear(address(1))?;
        let mut bob = Talker::start(site.bob.command(&stock), cluster, &map, [A, A]).await?;
        ensure!((name_of(cluster, &alice.home), name_of(cluster, &bob.home)) == ("a-2", "a-1"), "two nodes of the region");
        introduce(&mut alice, &mut bob).await?;
        tokio::try_join!(alice.content(), bob.content())?;
        Ok(())
    })
}

/// The next netcheck starts after 26 s at the latest, ends within 5 s, and the first node of the other region answers.
const LEFT: Duration = Duration::from_secs(35);

/// Waits for the next login of a client that chooses its region.
async fn login(client: &mut Client) -> anyhow::Result<RegionId> {
    let connected = async {
        loop {
            match client.recv().await.context("the client goes on")? {
                ClientEvent::Connected { region, .. } => return region.context("it has a map"),
                event => println!("{event:?}"),
            }
        }
    };
    tokio::time::timeout(LEFT, connected).await.context("no login")?
}

#[test]
fn a_home_that_falls_silent_is_left_after_the_next_netcheck() -> anyhow::Result<()> {
    if std::env::var_os(LONG_VARIABLE).is_none() {
        println!("skipped: takes half a minute; {LONG_VARIABLE}=1 runs it");
        return Ok(());
    }
    let Some(site) = Site::new()? else { return Ok(()) };
    site.run(async |cluster| {
        let map = wait_shown(cluster, &FOUR, "901: a-1 a-2 | 902: b-1 b-2").await?;
        let trust = Trust::ca_file(&cluster.ready().ca_file)?;
        site.alice.run(async || {
            let (tasks, cancel) = (TaskTracker::new(), CancellationToken::new());
            let builder = ClientBuilder::new(NodePrivate::generate()).trust(trust).nearest(map);
            let mut client = builder.start(&tasks, &cancel)?;
            let home = login(&mut client).await?;
            let (silent, other) = if home == RegionId(901) { ([1, 2], RegionId(902)) } else { ([3, 4], RegionId(901)) };
            silent.map(address).into_iter().try_for_each(|address| site.alice.silence(address))?;
            let started = Instant::now();
            let next = login(&mut client).await?;
            println!("left after {:?}", started.elapsed());
            ensure!(next == other, "the next home is {next}");
            Ok(())
        })
    })
}
