//! A region is lost: its clients find another node by themselves, and nothing is lost but what was under way.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail, ensure};
use causeway_client::{Client, ClientBuilder, ClientEvent, ClientHandle, Event, SendError};
use causeway_proto::derpmap::DerpMap;
use causeway_proto::id::RegionId;
use causeway_proto::key::{NodePrivate, NodePublic};
use causeway_tests_integration::client::SETTLE;
use causeway_tests_integration::cluster::{Cluster, wait_for};
use causeway_tests_integration::logs::Expected;
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::derpmap::{apply, map_of, wait_fenced, wait_shown};
use crate::interop::{StockClient, derp_go};

const A: RegionId = RegionId(901);
const B: RegionId = RegionId(902);
/// The map of three regions of one node, cross-listed.
const LISTED: &str = "901: a-1 b-1@901 c-1@901 | 902: b-1 c-1@902 a-1@902 | 903: c-1 a-1@903 b-1@903";

/// Between two packets of one flow.
const PACE: Duration = Duration::from_millis(5);
/// Packets that each flow sends before and after a loss.
const CALM: usize = 200;
/// Clients are back by then, on a busy machine too.
const BACK: Duration = Duration::from_secs(20);
const HEALED: Duration = Duration::from_secs(30);

/// A client that stays connected to the first node of its region that answers.
struct Resident {
    key: NodePublic,
    handle: ClientHandle,
    seen: Arc<Mutex<Seen>>,
    cancel: CancellationToken,
}

/// What happened to a resident.
#[derive(Default)]
struct Seen {
    /// When a login was answered, and by which node.
    logins: Vec<(Instant, String)>,
    /// Numbers in the packets, by sender, as they came.
    packets: BTreeMap<NodePublic, Vec<u32>>,
}

impl Resident {
    async fn start(cluster: &Cluster, map: &Arc<DerpMap>, region: RegionId) -> anyhow::Result<Self> {
        let (private, tasks, cancel) = (NodePrivate::generate(), TaskTracker::new(), CancellationToken::new());
        let key = private.public();
        let builder = ClientBuilder::new(private).region(Arc::clone(map), region).ca_file(&cluster.ready().ca_file)?;
        let client = builder.start(&tasks, &cancel)?;
        let (handle, seen) = (client.handle().clone(), Arc::<Mutex<Seen>>::default());
        tasks.spawn(note(client, Arc::clone(&seen)));
        let resident = Self { key, handle, seen, cancel };
        resident.logins(1).await?;
        Ok(resident)
    }

    fn node(&self) -> String {
        self.seen.lock().logins.last().map_or_else(String::new, |(_, node)| node.clone())
    }

    /// Waits until so many logins were answered; tells when the last of them was.
    async fn logins(&self, count: usize) -> anyhow::Result<Instant> {
        wait_for(&format!("login {count}"), BACK, async || Ok(self.seen.lock().logins.get(count - 1).map(|(at, _)| *at))).await
    }
}

impl Drop for Resident {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

async fn note(mut client: Client, seen: Arc<Mutex<Seen>>) {
    while let Some(event) = client.recv().await {
        match event {
            ClientEvent::Connected { info, .. } => seen.lock().logins.push((Instant::now(), info.node.clone())),
            ClientEvent::Received { event: Event::Packet { src, payload }, .. } => {
                let number = payload.as_ref().try_into().map(u32::from_be_bytes).expect("four bytes");
                seen.lock().packets.entry(src).or_default().push(number);
            }
            _ => {}
        }
    }
}

/// Numbered packets from one resident to another.
struct Flow<'a> {
    from: &'a Resident,
    to: &'a Resident,
    /// When each packet was taken by the sender's connection; its number is its place.
    sent: Vec<Instant>,
}

impl<'a> Flow<'a> {
    const fn new(from: &'a Resident, to: &'a Resident) -> Self {
        Self { from, to, sent: Vec::new() }
    }

    /// Sends one packet, unless the sender knows that it is not connected.
    fn send(&mut self) -> anyhow::Result<()> {
        let number = u32::try_from(self.sent.len())?;
        match self.from.handle.sender().and_then(|sender| sender.try_send(&self.to.key, &number.to_be_bytes())) {
            Ok(()) => self.sent.push(Instant::now()),
            Err(SendError::NotConnected | SendError::Closed(_)) => {}
            Err(error) => bail!("{error}"),
        }
        Ok(())
    }

    fn received(&self) -> Vec<u32> {
        self.to.seen.lock().packets.get(&self.from.key).cloned().unwrap_or_default()
    }
}

/// Checks that each of the packets `sent` came at most once, and that each that was not under way during an outage came. Tells how many are
/// lost.
fn count_lost<T: PartialOrd>(sent: &[T], received: &[u32], outages: &[[T; 2]]) -> anyhow::Result<usize> {
    let came: BTreeSet<_> = received.iter().copied().collect();
    ensure!(came.len() == received.len(), "{} packets came twice", received.len() - came.len());
    let lost = (0_u32..).zip(sent).filter(|(number, _)| !came.contains(number)).collect::<Vec<_>>();
    for (number, at) in &lost {
        let under_way = outages.iter().any(|[from, to]| (from..=to).contains(at));
        ensure!(under_way, "packet {number} of {} is lost, and was not under way", sent.len());
    }
    Ok(lost.len())
}

/// Sends on all flows at an even pace, until `event` has happened.
async fn talk_while<T>(flows: &mut [Flow<'_>], event: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let mut ticks = tokio::time::interval(PACE);
    let talk = async {
        loop {
            ticks.tick().await;
            flows.iter_mut().try_for_each(Flow::send)?;
        }
    };
    tokio::select! {
        talked = talk => talked,
        happened = event => happened,
    }
}

/// Sends so many packets on every flow, the last of which must arrive.
async fn talk_calmly(flows: &mut [Flow<'_>]) -> anyhow::Result<()> {
    let mut ticks = tokio::time::interval(PACE);
    for _ in 0..CALM {
        ticks.tick().await;
        flows.iter_mut().try_for_each(Flow::send)?;
    }
    for flow in flows {
        let last = u32::try_from(flow.sent.len() - 1)?;
        wait_for("the last packet", BACK, async || Ok(flow.received().contains(&last).then_some(()))).await?;
    }
    Ok(())
}

/// Talks while `loss` makes both residents of the lost node log in elsewhere. Tells during which time packets may get lost: from what was
/// under way at the start until both logins were answered, and as long after that as stock probers wait.
async fn talk_through(
    flows: &mut [Flow<'_>],
    lost: [&Resident; 2],
    loss: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<[Instant; 2]> {
    let logins = lost.map(|resident| resident.seen.lock().logins.len() + 1);
    let start = Instant::now();
    let back = talk_while(flows, async {
        let (one, other, ()) = tokio::try_join!(lost[0].logins(logins[0]), lost[1].logins(logins[1]), loss)?;
        Ok(one.max(other))
    });
    let back = back.await?;
    println!("back after {:?}", back - start);
    Ok([start - SETTLE, back + SETTLE])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_region_costs_a_cross_listed_fleet_no_packet_but_those_in_flight() -> anyhow::Result<()> {
    let cluster = Cluster::start(3, 1, &[]).await?;
    apply(&cluster, "mode = 'cross-listed'").await?;
    let map = wait_shown(&cluster, &["a-1", "b-1", "c-1"], LISTED).await?;
    // Alice and Bob meet in the region that is lost; Carol's packets come from another.
    let alice = Resident::start(&cluster, &map, B).await?;
    let bob = Resident::start(&cluster, &map, B).await?;
    let carol = Resident::start(&cluster, &map, A).await?;
    let nodes = || (alice.node(), bob.node(), carol.node());
    let at = |one: &str, other: &str, third: &str| (one.to_owned(), other.to_owned(), third.to_owned());
    ensure!(nodes() == at("b-1", "b-1", "a-1"), "{:?}", nodes());
    tokio::time::sleep(SETTLE).await;
    let mut flows = [(&alice, &bob), (&bob, &alice), (&carol, &bob), (&bob, &carol)].map(|(from, to)| Flow::new(from, to));
    talk_calmly(&mut flows).await?;

    // Both go on by the map they have: another node under the same region's name.
    let killed = talk_through(&mut flows, [&alice, &bob], cluster.kill("b-1")).await?;
    ensure!(nodes() == at("c-1@902", "c-1@902", "a-1"), "{:?}", nodes());
    talk_calmly(&mut flows).await?;

    // One node of a region that is away for a while edits no region. When it is back, nobody returns by himself; a newcomer is reached.
    wait_fenced(&cluster, "a-1", "b-1").await?;
    ensure!(map_of(&cluster, "a-1").await? == *map, "the map has changed");
    cluster.start_node("b-1").await?;
    cluster.wait_healthy("a-1", HEALED).await?;
    let late = Resident::start(&cluster, &map, B).await?;
    ensure!(late.node() == "b-1" && bob.node() == "c-1@902", "{} {}", late.node(), bob.node());
    tokio::time::sleep(SETTLE).await;
    let mut more = [Flow::new(&late, &bob), Flow::new(&bob, &late)];
    talk_calmly(&mut more).await?;

    // A node that ends in good order asks its clients to come back a little later, but there is another to go to.
    let stopped = talk_through(&mut flows, [&alice, &bob], cluster.stop("c-1")).await?;
    ensure!(nodes() == at("b-1", "b-1", "a-1"), "{:?}", nodes());
    talk_calmly(&mut flows).await?;
    talk_calmly(&mut more).await?;
    for flow in flows.iter().chain(&more) {
        let lost = count_lost(&flow.sent, &flow.received(), &[killed, stopped])?;
        println!("{} -> {}: {lost} of {} lost", flow.from.key, flow.to.key, flow.sent.len());
    }
    drop((flows, more));
    drop((alice, bob, carol, late));
    cluster.finish(&["a-1", "b-1"], &Expected::default()).await.context("after the loss")
}

/// A stock client that stays connected and sends to its peer.
struct Stayer {
    client: StockClient,
    key: String,
}

/// What a stock client sent, when, in nanoseconds since 1970, and which numbers came.
#[derive(Deserialize)]
struct Stayed {
    sent: Vec<u64>,
    received: Vec<u32>,
}

impl Stayer {
    async fn start(program: &Path, cluster: &Cluster, map: &Path) -> anyhow::Result<Self> {
        let mut client = StockClient::start(Command::new(program), cluster, map, ["902", "902"], "stay")?;
        let key = client.line("home ").await?;
        Ok(Self { client, key })
    }

    /// Waits for its next login, which must be at `node`; tells when it was.
    async fn login(&mut self, cluster: &Cluster, node: &str) -> anyhow::Result<u64> {
        let told = tokio::time::timeout(BACK, self.client.line("login ")).await.context("no login")??;
        let (at, server) = told.split_once(' ').context("login TIME SERVER")?;
        ensure!(server == cluster.node(node).derp_public_key, "it has logged in elsewhere than at {node}");
        Ok(at.parse()?)
    }

    async fn end(self) -> anyhow::Result<Stayed> {
        let (content, said) = self.client.end().await?;
        ensure!(content, "the stock client is not content: {said}");
        Ok(serde_json::from_str(said.lines().next().context("one line")?)?)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn interop_stock_clients_of_a_lost_region_lose_nothing_but_what_was_in_flight() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let Some(program) = derp_go(dir.path())? else { return Ok(()) };
    let cluster = Cluster::start(3, 1, &[]).await?;
    apply(&cluster, "mode = 'cross-listed'").await?;
    let map_file = dir.path().join("map.json");
    std::fs::write(&map_file, wait_shown(&cluster, &["a-1", "b-1", "c-1"], LISTED).await?.to_json())?;
    let mut alice = Stayer::start(&program, &cluster, &map_file).await?;
    let mut bob = Stayer::start(&program, &cluster, &map_file).await?;
    tokio::try_join!(alice.login(&cluster, "b-1"), bob.login(&cluster, "b-1"))?;
    alice.client.meet(&bob.key).await?;
    bob.client.meet(&alice.key).await?;
    let calm = PACE * u32::try_from(CALM)?;
    tokio::time::sleep(calm).await;

    let killed = u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos())?;
    cluster.kill("b-1").await?;
    let (one, other) = tokio::try_join!(alice.login(&cluster, "c-1"), bob.login(&cluster, "c-1"))?;
    let back = one.max(other);
    tokio::time::sleep(calm).await;
    let (alice, bob) = tokio::try_join!(alice.end(), bob.end())?;
    let settle = u64::try_from(SETTLE.as_nanos())?;
    for (from, to) in [(&alice, &bob), (&bob, &alice)] {
        let after = from.sent.iter().filter(|at| **at > back + settle).count();
        ensure!(after >= CALM / 2, "only {after} packets were sent after the loss");
        let lost = count_lost(&from.sent, &to.received, &[[killed - settle, back + settle]])?;
        println!("back after {:?}, {lost} of {} lost", Duration::from_nanos(back - killed), from.sent.len());
    }
    cluster.finish(&["a-1", "c-1"], &Expected::default()).await
}
