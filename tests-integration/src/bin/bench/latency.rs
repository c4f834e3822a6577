//! How long a packet takes: one client asks, the other answers, nothing else happens.

use std::path::Path;
use std::time::Instant;

use anyhow::Context as _;
use causeway_client::{Receiver, Sender};
use causeway_proto::key::NodePublic;

use super::flow::{Pair, packet};
use super::relay::{Derper, Door, fleet};
use super::statistics::percentile;

const EXCHANGES: usize = 2_000;
const PAYLOAD: [u8; 148] = [0x5a; 148];

async fn answer(sender: Sender, mut receiver: Receiver, asker: NodePublic) -> anyhow::Result<()> {
    for _ in 0..EXCHANGES {
        packet(&mut receiver).await?;
        sender.send(&asker, &PAYLOAD).await?;
    }
    Ok(())
}

async fn exchange(from: &Door, to: &Door) -> anyhow::Result<Vec<f64>> {
    let [(sender, mut receiver, asker), (answer_sender, answer_receiver, answerer)] = Pair::connect(from, to).await?.split();
    let mut answering = tokio::task::JoinSet::new();
    answering.spawn(answer(answer_sender, answer_receiver, asker));
    let mut one_way_us = Vec::with_capacity(EXCHANGES);
    for _ in 0..EXCHANGES {
        let sent = Instant::now();
        sender.send(&answerer, &PAYLOAD).await?;
        packet(&mut receiver).await?;
        one_way_us.push(sent.elapsed().as_secs_f64() * 1e6 / 2.0);
    }
    answering.join_next().await.context("the answering client")???;
    Ok(one_way_us)
}

pub(crate) async fn run(derper: Option<&Path>, rounds: usize) -> anyhow::Result<()> {
    let cluster = fleet(2, 1).await?;
    let (door_a, door_b) = (Door::of(&cluster, cluster.node("a-1"))?, Door::of(&cluster, cluster.node("b-1"))?);
    let mut settings = vec![("one node", door_a.clone(), door_a.clone()), ("one hop", door_a, door_b)];
    let stock = match derper {
        Some(program) => Some(Derper::start(program).await?),
        None => None,
    };
    settings.extend(stock.as_ref().map(|stock| ("stock derper, one node", stock.door(), stock.door())));
    let mut samples = vec![Vec::new(); settings.len()];
    for _ in 0..rounds {
        let there_and_back = (0..settings.len()).chain((0..settings.len()).rev());
        for index in there_and_back {
            let (_, from, to) = &settings[index];
            samples[index].extend(exchange(from, to).await?);
        }
    }
    println!("\nlatency: {}-byte packets, one at a time, half a round trip, {} runs of {EXCHANGES}", PAYLOAD.len(), 2 * rounds);
    for ((name, ..), sample) in settings.iter().zip(&mut samples) {
        let (p50, p99) = (percentile(sample, 50.0), percentile(sample, 99.0));
        println!("  {name:32} p50 {p50:6.0} us   p99 {p99:6.0} us");
    }
    Ok(())
}
