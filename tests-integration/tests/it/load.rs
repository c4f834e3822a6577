//! Many clients at once: idle ones beside busy ones, bursts to hundreds, crowds that do not read, a bulk transfer.

use std::time::Instant;

use anyhow::{Context as _, ensure};
use causeway_proto::limits::PACKET_LEN_MAX;
use causeway_tests_integration::client::{SETTLE, TestClient, exchange_in_order};
use causeway_tests_integration::cluster::Cluster;
use causeway_tests_integration::logs::Expected;
use tokio::task::JoinSet;

const NODES: [&str; 2] = ["a-1", "b-1"];
/// All clients of a test share one address, which is what the limits per source are about.
const ONE_SOURCE: [&str; 4] = [
    "limits.key_rate_bits_per_second=0",
    "limits.authenticated_per_ipv4=20000",
    "limits.accepts_per_second_per_source=20000",
    "limits.accept_burst_per_source=20000",
];
/// Logins under way at once: enough to keep both nodes busy, few enough that none waits for its turn until its deadline.
const LOGINS_AT_ONCE: usize = 16;

/// `count` fresh clients, by turns at each node.
async fn connect_many(cluster: &Cluster, count: usize) -> anyhow::Result<Vec<TestClient>> {
    let mut clients = Vec::with_capacity(count);
    while clients.len() < count {
        let batch = (clients.len()..count).take(LOGINS_AT_ONCE);
        let logins = batch.map(|number| TestClient::connect(cluster, NODES[number % NODES.len()]));
        clients.extend(futures::future::try_join_all(logins).await?);
    }
    Ok(clients)
}

/// Resident memory of a node, in bytes.
fn resident_bytes(cluster: &Cluster, node: &str) -> anyhow::Result<u64> {
    let (pid, _) = cluster.node_process(node)?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>().context("VmRSS")? * 1024)
}

#[tokio::test(flavor = "multi_thread")]
async fn busy_pairs_beside_thousands_of_idle_clients_lose_nothing() -> anyhow::Result<()> {
    const PAIRS: usize = 100;
    const PACKETS: u32 = 64;
    /// Of a debug build, TLS and DERP buffers included.
    const BYTES_PER_IDLE_CLIENT: u64 = 32 * 1024;

    let count = if std::env::var_os("CAUSEWAY_LONG_TESTS").is_some() { 10_000 } else { 2_000 };
    let cluster = Cluster::start(2, 1, &ONE_SOURCE).await?;
    let first = connect_many(&cluster, 2).await?;
    let empty = resident_bytes(&cluster, "a-1")?;
    let mut idle = connect_many(&cluster, count).await?;
    let filled = resident_bytes(&cluster, "a-1")?;
    let each = filled.saturating_sub(empty) / (count as u64 / 2);
    println!("{count} idle clients: {each} bytes of resident memory each");
    ensure!(each < BYTES_PER_IDLE_CLIENT, "an idle client costs {each} bytes");

    // By turns two pairs within a node each, and two across the regions.
    let mut talkers = connect_many(&cluster, 2 * PAIRS).await?.into_iter();
    tokio::time::sleep(SETTLE).await;
    let mut pairs = JoinSet::new();
    while let (Some(a), Some(b), Some(c), Some(d)) = (talkers.next(), talkers.next(), talkers.next(), talkers.next()) {
        let (other, last) = if pairs.len() % 4 == 0 { ((a, c), (b, d)) } else { ((a, b), (c, d)) };
        pairs.spawn(talk(other.0, other.1, PACKETS));
        pairs.spawn(talk(last.0, last.1, PACKETS));
    }
    let spoken = pairs.len();
    while let Some(pair) = pairs.join_next().await {
        pair??;
    }
    ensure!(spoken == PAIRS, "{spoken} pairs talked");

    // Nobody was forgotten: control frames pass, and packets do.
    for client in idle.iter_mut().step_by(50) {
        client.ping().await?;
    }
    let (last, rest) = idle.split_last_mut().context("idle clients")?;
    exchange_in_order(&mut rest[0], last, 32).await?;
    drop((first, idle));
    cluster.finish(&NODES, &Expected::default()).await
}

async fn talk(mut one: TestClient, mut other: TestClient, packets: u32) -> anyhow::Result<()> {
    exchange_in_order(&mut one, &mut other, packets).await?;
    exchange_in_order(&mut other, &mut one, packets).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_to_four_hundred_peers_arrives_whole() -> anyhow::Result<()> {
    const PEERS: usize = 400;
    /// To each of them, without waiting: well within what a node queues for one client.
    const BURST: u32 = 8;

    let cluster = Cluster::start(2, 1, &ONE_SOURCE).await?;
    let mut peers = connect_many(&cluster, PEERS).await?;
    let sender = TestClient::connect(&cluster, "a-1").await?;
    tokio::time::sleep(SETTLE).await;
    for number in 0..BURST {
        for peer in &peers {
            sender.send(peer.key(), &number.to_be_bytes()).await?;
        }
    }
    for peer in &mut peers {
        for number in 0..BURST {
            peer.expect(sender.key(), &number.to_be_bytes()).await?;
        }
    }
    drop((peers, sender));
    cluster.finish(&NODES, &Expected::default()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_that_does_not_read_stays_within_the_memory_set() -> anyhow::Result<()> {
    const CROWD: usize = 60;
    const QUEUES_BYTES: u64 = 16 << 20;
    /// What else may grow while packets flow: TLS records and buffers of readers and writers.
    const SLACK_BYTES: u64 = 64 << 20;
    /// 60 queues of 33 x 64 KiB would be 124 MiB, and come on top of what the sockets take.
    const ROUNDS: u32 = 100;

    let total = format!("limits.queue_bytes_total={QUEUES_BYTES}");
    let sets = [ONE_SOURCE.as_slice(), &[total.as_str()]].concat();
    let cluster = Cluster::start(2, 1, &sets).await?;
    let crowd = connect_many(&cluster, CROWD).await?;
    let flooder = TestClient::connect(&cluster, "a-1").await?;
    let mut alice = TestClient::connect(&cluster, "a-1").await?;
    let mut bob = TestClient::connect(&cluster, "b-1").await?;
    tokio::time::sleep(SETTLE).await;
    let empty = [resident_bytes(&cluster, "a-1")?, resident_bytes(&cluster, "b-1")?];

    let packet = vec![0x5a; PACKET_LEN_MAX];
    for round in 0..ROUNDS {
        for deaf in &crowd {
            flooder.send(deaf.key(), &packet).await?;
        }
        // Through the same nodes and the same link, while queues overflow and connections are cut.
        exchange_in_order(&mut alice, &mut bob, 4).await.with_context(|| format!("round {round}"))?;
        for (node, empty) in NODES.iter().zip(empty) {
            let grown = resident_bytes(&cluster, node)?.saturating_sub(empty);
            ensure!(grown < QUEUES_BYTES + SLACK_BYTES, "{node} grew by {grown} bytes in round {round}");
        }
    }
    let mut lost = 0.0;
    for node in NODES {
        lost += cluster.metrics(node).await?.sum("causeway_packets_dropped_total", &[]).unwrap_or(0.0);
    }
    ensure!(lost > 0.0, "nothing was dropped: the crowd was not slow");
    exchange_in_order(&mut alice, &mut bob, 64).await?;
    drop((crowd, flooder, alice, bob));
    cluster.finish(&NODES, &Expected::default()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_megabytes_cross_two_nodes_in_order_with_thirty_packets_under_way() -> anyhow::Result<()> {
    /// As many as a stock prober keeps under way, of its size.
    const UNDER_WAY: usize = 30;
    const BYTES: usize = 100_000_000;

    let cluster = Cluster::start(2, 1, &ONE_SOURCE).await?;
    let from = TestClient::connect(&cluster, "a-1").await?;
    let mut to = TestClient::connect(&cluster, "b-1").await?;
    tokio::time::sleep(SETTLE).await;
    let count = BYTES.div_ceil(PACKET_LEN_MAX);
    let packet_of = |number: usize| {
        let mut packet = vec![number as u8; PACKET_LEN_MAX];
        packet[..8].copy_from_slice(&(number as u64).to_be_bytes());
        packet
    };
    let begun = Instant::now();
    let mut sent = 0;
    for number in 0..count {
        while sent < count && sent < number + UNDER_WAY {
            from.send(to.key(), &packet_of(sent)).await?;
            sent += 1;
        }
        let (src, packet) = to.packet().await.with_context(|| format!("packet {number} of {count}"))?;
        ensure!(src == from.key() && packet == packet_of(number), "packet {number} is lost, doubled, changed or out of order");
    }
    println!("{} MB in {:.1} s", BYTES / 1_000_000, begun.elapsed().as_secs_f64());
    drop((from, to));
    cluster.finish(&NODES, &Expected::default()).await
}
