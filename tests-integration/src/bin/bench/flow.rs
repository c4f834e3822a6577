//! Load: pairs of clients, each with a bounded number of packets in flight, so that a relay is kept busy and loses nothing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use causeway_client::{Event, Receiver, Sender};
use causeway_proto::key::NodePublic;
use tokio::sync::Semaphore;

use super::relay::Door;

/// Packets of a pair on their way: stock queues hold 32.
const WINDOW: usize = 24;
/// The receiver acknowledges so many packets at a time.
const ACK_EVERY: usize = 8;
/// Nothing arriving for so long is loss, not load.
const STALL: Duration = Duration::from_secs(5);

/// One direction of load between two clients.
pub(crate) struct Pair {
    source: (Sender, Receiver),
    sink: (Sender, Receiver),
    source_key: NodePublic,
    sink_key: NodePublic,
}

impl Pair {
    pub(crate) async fn connect(source: &Door, sink: &Door) -> anyhow::Result<Self> {
        let (source, source_key) = source.log_in().await?;
        let (sink, sink_key) = sink.log_in().await?;
        let (mut source, mut sink) = (source.split(), sink.split());
        let (source_key, sink_key) = (source_key.public(), sink_key.public());
        meet(&source.0, sink_key, &mut sink.1).await?;
        meet(&sink.0, source_key, &mut source.1).await?;
        Ok(Self { source, sink, source_key, sink_key })
    }

    /// The two clients: the source first.
    pub(crate) fn split(self) -> [(Sender, Receiver, NodePublic); 2] {
        let (source, sink) = (self.source, self.sink);
        [(source.0, source.1, self.source_key), (sink.0, sink.1, self.sink_key)]
    }

    /// Sends `packets` payloads of `payload_len` bytes and waits until all have arrived.
    async fn run(self, packets: usize, payload_len: usize) -> anyhow::Result<()> {
        let window = Arc::new(Semaphore::new(WINDOW));
        let (sender, acks) = self.source;
        let sending = send(sender, self.sink_key, Arc::clone(&window), packets, payload_len);
        let acknowledged = take_acks(acks, window, packets);
        let receiving = receive(self.sink, self.source_key, packets);
        tokio::try_join!(sending, acknowledged, receiving).map(drop)
    }
}

/// A packet that only says that the way is open; it may come several times.
const GREETING: [u8; 1] = [0];
/// Between two greetings: a login is known everywhere in about a network hop.
const GREETING_PERIOD: Duration = Duration::from_millis(2);

/// Sends greetings until one arrives.
async fn meet(sender: &Sender, key: NodePublic, receiver: &mut Receiver) -> anyhow::Result<()> {
    let arrived = async {
        loop {
            sender.send(&key, &GREETING).await?;
            if let Ok(event) = tokio::time::timeout(GREETING_PERIOD, receiver.recv()).await
                && matches!(event?, Event::Packet { .. })
            {
                return anyhow::Ok(());
            }
        }
    };
    tokio::time::timeout(STALL, arrived).await.context("two clients never met")?
}

/// The next packet that is no greeting.
pub(crate) async fn packet(receiver: &mut Receiver) -> anyhow::Result<NodePublic> {
    loop {
        if let Event::Packet { src, payload } = receiver.recv().await?
            && payload.len() > GREETING.len()
        {
            return Ok(src);
        }
    }
}

async fn send(sender: Sender, dst: NodePublic, window: Arc<Semaphore>, packets: usize, payload_len: usize) -> anyhow::Result<()> {
    let payload = vec![0x5a; payload_len];
    for _ in 0..packets {
        let permit = tokio::time::timeout(STALL, window.acquire()).await.context("no acknowledgement: packets are lost")??;
        permit.forget();
        sender.send(&dst, &payload).await?;
    }
    Ok(())
}

async fn take_acks(mut acks: Receiver, window: Arc<Semaphore>, packets: usize) -> anyhow::Result<()> {
    let mut acknowledged = 0;
    while acknowledged + ACK_EVERY <= packets {
        packet(&mut acks).await?;
        acknowledged += ACK_EVERY;
        window.add_permits(ACK_EVERY);
    }
    Ok(())
}

async fn receive(sink: (Sender, Receiver), source: NodePublic, packets: usize) -> anyhow::Result<()> {
    let (sender, mut receiver) = sink;
    let mut received = 0;
    while received < packets {
        let event =
            tokio::time::timeout(STALL, receiver.recv()).await.with_context(|| format!("{received} of {packets} arrived"))??;
        if let Event::Packet { src, .. } = event {
            ensure!(src == source, "a packet from {src} instead of {source}");
            received += 1;
            if received % ACK_EVERY == 0 {
                sender.send(&source, &[0; 8]).await?;
            }
        }
    }
    Ok(())
}

/// Runs all pairs at once; returns the seconds until the last packet arrived.
pub(crate) async fn run_all(pairs: Vec<Pair>, packets_each: usize, payload_len: usize) -> anyhow::Result<f64> {
    let started = Instant::now();
    let mut running = tokio::task::JoinSet::new();
    for pair in pairs {
        running.spawn(pair.run(packets_each, payload_len));
    }
    while let Some(ended) = running.join_next().await {
        ended??;
    }
    Ok(started.elapsed().as_secs_f64())
}
