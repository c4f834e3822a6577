//! One key on two machines that both call their node home: a copied disk image, say.

use std::time::Duration;

use anyhow::ensure;
use causeway_proto::key::{NodePrivate, NodePublic};
use causeway_tests_integration::client::TestClient;
use causeway_tests_integration::cluster::Cluster;
use causeway_tests_integration::logs::Expected;
use futures::future::try_join_all;

const NODES: [&str; 2] = ["a-1", "b-1"];

/// The alarm takes 30 s of both being alive, and each look at them 5 s.
const ALARM_DEADLINE: Duration = Duration::from_secs(60);

/// How often a busy machine sends.
const PACE: Duration = Duration::from_millis(500);

/// A connection of a machine, which answers pings and, if it is busy, sends to a peer.
struct Machine {
    client: TestClient,
    sends_to: Option<NodePublic>,
}

impl Machine {
    async fn start(cluster: &Cluster, node: &str, key: NodePrivate, home: bool) -> anyhow::Result<Self> {
        let client = TestClient::connect_as(cluster, node, key).await?;
        client.sender().note_preferred(home)?;
        Ok(Self { client, sends_to: None })
    }

    async fn live(&mut self) -> anyhow::Result<()> {
        if let Some(peer) = self.sends_to {
            self.client.send(peer, b"still here").await?;
        }
        ensure!(self.client.packet_within(PACE).await?.is_none(), "nobody sends to it");
        Ok(())
    }
}

/// Lets all machines live until the nodes count so many alarms, now and so far, and each of the first `clones` was told `told`.
async fn live_until(
    cluster: &Cluster,
    machines: &mut [Machine],
    alarms: (f64, f64),
    clones: usize,
    told: impl Fn(&[String]) -> bool,
) -> anyhow::Result<()> {
    let deadline = tokio::time::Instant::now() + ALARM_DEADLINE;
    loop {
        try_join_all(machines.iter_mut().map(Machine::live)).await?;
        let health: Vec<_> = machines[..clones].iter().map(|machine| machine.client.health()).collect();
        let mut counted = Vec::new();
        for node in NODES {
            let metrics = cluster.metrics(node).await?;
            let count = |name| metrics.sum(name, &[]).unwrap_or_default();
            counted.push((count("causeway_clients_clone_alarms"), count("causeway_clients_clone_alarms_raised_total")));
        }
        if health.iter().all(|health| told(health)) && counted.iter().all(|counted| *counted == alarms) {
            return Ok(());
        }
        ensure!(tokio::time::Instant::now() < deadline, "told {health:?}, counted {counted:?}, not {alarms:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn both_copies_of_a_machine_are_told_and_the_one_that_stays_is_healthy_again() -> anyhow::Result<()> {
    let cluster = Cluster::start(2, 1, &[]).await?;
    let [busy, idle, stock, mover] = [(); 4].map(|()| NodePrivate::generate());
    let peer = TestClient::connect(&cluster, "b-1").await?;
    let start = async |node, key: &NodePrivate, home| Machine::start(&cluster, node, key.clone(), home).await;

    // Two machines and their copies: the first pair sends all the time, the second is silent but for its pongs.
    let mut machines = vec![start("a-1", &busy, true).await?, start("a-1", &idle, true).await?];
    machines.extend([start("b-1", &busy, true).await?, start("b-1", &idle, true).await?]);
    for machine in machines.iter_mut().filter(|machine| machine.client.key() == busy.public()) {
        machine.sends_to = Some(peer.key());
    }
    // What stock clients do: a home, a connection to another region, one more to the home's node on behalf of a third region; and a
    // move to another node, where the old connection ends after the new one stands.
    machines.extend([start("a-1", &stock, true).await?, start("b-1", &stock, false).await?, start("a-1", &stock, false).await?]);
    let moves_away = start("a-1", &mover, true).await?;
    machines.push(start("b-1", &mover, true).await?);
    moves_away.client.close().await;

    live_until(&cluster, &mut machines, (2.0, 2.0), 4, |told| told.len() == 1 && !told[0].is_empty()).await?;
    for Machine { client, .. } in &machines[4..] {
        ensure!(client.health().is_empty(), "an ordinary client at {} is told {:?}", client.node(), client.health());
    }

    for copy in machines.drain(2..4) {
        copy.client.close().await;
    }
    live_until(&cluster, &mut machines, (0.0, 2.0), 2, |told| told.len() == 2 && told[1].is_empty()).await?;
    for Machine { client, .. } in &machines[2..] {
        ensure!(client.health().is_empty(), "an ordinary client at {} is told {:?}", client.node(), client.health());
    }
    drop((machines, peer));
    cluster.finish(&NODES, &Expected::default().line("clone alarm")).await
}
