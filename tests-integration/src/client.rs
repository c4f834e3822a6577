//! DERP clients of a fleet under test.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use causeway_client::{ClientBuilder, Endpoint, Event, Receiver, Sender};
use causeway_proto::derp::frame::PeerGoneReason;
use causeway_proto::derpmap::DerpMap;
use causeway_proto::id::RegionId;
use causeway_proto::key::{NodePrivate, NodePublic};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::cluster::Cluster;

/// Stock probers let so much time pass between the answer to a login and the first packet. The packet must arrive.
pub const SETTLE: Duration = Duration::from_millis(100);
/// A packet that has not arrived by then never will.
const PACKET_DEADLINE: Duration = Duration::from_secs(5);

/// One connection of one key to one node.
#[derive(Debug)]
pub struct TestClient {
    key: NodePrivate,
    node: String,
    sender: Sender,
    receiver: Receiver,
    packets: VecDeque<(NodePublic, Bytes)>,
    gone: Vec<(NodePublic, PeerGoneReason)>,
    health: Vec<String>,
    tasks: TaskTracker,
    cancel: CancellationToken,
}

impl TestClient {
    /// Connects a fresh key to `node`, over TLS, trusting the fleet's CA only. It does not call the node its home.
    ///
    /// # Errors
    /// The login fails.
    pub async fn connect(cluster: &Cluster, node: &str) -> anyhow::Result<Self> {
        Self::connect_as(cluster, node, NodePrivate::generate()).await
    }

    /// Connects `key` to `node`.
    ///
    /// # Errors
    /// The login fails.
    pub async fn connect_as(cluster: &Cluster, node: &str, key: NodePrivate) -> anyhow::Result<Self> {
        let address = cluster.node(node).derp.parse().context("DERP address")?;
        let endpoint = Endpoint::at(address, &format!("{node}.causeway.test"));
        let builder = ClientBuilder::new(key.clone()).preferred(false).endpoint(endpoint).ca_file(&cluster.ready().ca_file)?;
        Self::connect_by(builder, node, key).await
    }

    /// Connects `key` to the first node of a region that answers, in the order of `map`; [`Self::node`] is its name there.
    ///
    /// # Errors
    /// No node of the region takes the login.
    pub async fn connect_region(
        cluster: &Cluster,
        map: &Arc<DerpMap>,
        region: RegionId,
        key: NodePrivate,
    ) -> anyhow::Result<Self> {
        let builder = ClientBuilder::new(key.clone()).preferred(false).region(Arc::clone(map), region);
        let builder = builder.ca_file(&cluster.ready().ca_file)?;
        Self::login(builder, key).await.with_context(|| format!("log in at region {region}"))
    }

    /// Connects `key` as `builder` says, wherever that is; [`Self::node`] is `node`.
    ///
    /// # Errors
    /// The login fails.
    pub async fn connect_by(builder: ClientBuilder, node: &str, key: NodePrivate) -> anyhow::Result<Self> {
        let mut client = Self::login(builder, key).await.with_context(|| format!("log in at {node}"))?;
        node.clone_into(&mut client.node);
        Ok(client)
    }

    async fn login(builder: ClientBuilder, key: NodePrivate) -> anyhow::Result<Self> {
        let (tasks, cancel) = (TaskTracker::new(), CancellationToken::new());
        let connection = builder.connect(&tasks, &cancel).await?;
        let node = connection.info().node.clone();
        let (sender, receiver) = connection.split();
        let (packets, gone, health) = (VecDeque::new(), Vec::new(), Vec::new());
        Ok(Self { key, node, sender, receiver, packets, gone, health, tasks, cancel })
    }

    /// Its key.
    #[must_use]
    pub fn key(&self) -> NodePublic {
        self.key.public()
    }

    /// Its private key, to connect it elsewhere.
    #[must_use]
    pub fn private(&self) -> NodePrivate {
        self.key.clone()
    }

    /// The node it is connected to.
    #[must_use]
    pub fn node(&self) -> &str {
        &self.node
    }

    /// The sending side, for everything this type does not wrap.
    #[must_use]
    pub const fn sender(&self) -> &Sender {
        &self.sender
    }

    /// What the server said was wrong, so far; an empty text where it said that it is over.
    #[must_use]
    pub fn health(&self) -> &[String] {
        &self.health
    }

    /// Queues a packet.
    ///
    /// # Errors
    /// The connection is closed.
    pub async fn send(&self, to: NodePublic, payload: &[u8]) -> anyhow::Result<()> {
        Ok(self.sender.send(&to, payload).await?)
    }

    /// The next packet.
    ///
    /// # Errors
    /// None comes, or the connection closes.
    pub async fn packet(&mut self) -> anyhow::Result<(NodePublic, Bytes)> {
        self.packet_within(PACKET_DEADLINE).await?.with_context(|| format!("no packet came at {}", self.node))
    }

    /// The next packet, or `None` if none comes in time.
    ///
    /// # Errors
    /// The connection closes.
    pub async fn packet_within(&mut self, deadline: Duration) -> anyhow::Result<Option<(NodePublic, Bytes)>> {
        let wait = async {
            while self.packets.is_empty() {
                let event = self.receiver.recv().await?;
                note(event, &mut self.packets, &mut self.gone, &mut self.health);
            }
            anyhow::Ok(())
        };
        match tokio::time::timeout(deadline, wait).await {
            Ok(result) => result?,
            Err(_) => return Ok(None),
        }
        Ok(self.packets.pop_front())
    }

    /// The next packet, which must be `payload` from `from`.
    ///
    /// # Errors
    /// Another packet or none comes.
    pub async fn expect(&mut self, from: NodePublic, payload: &[u8]) -> anyhow::Result<()> {
        let (src, got) = self.packet().await?;
        ensure!(src == from, "the packet is from {src}, not {from}");
        ensure!(got == payload, "the packet is {:?}, not {:?}", String::from_utf8_lossy(&got), String::from_utf8_lossy(payload));
        Ok(())
    }

    /// Waits until the server says that `peer` is gone.
    ///
    /// # Errors
    /// It does not, in time.
    pub async fn expect_gone(&mut self, peer: NodePublic, deadline: Duration) -> anyhow::Result<PeerGoneReason> {
        let wait = async {
            loop {
                if let Some(at) = self.gone.iter().position(|(gone, _)| *gone == peer) {
                    return anyhow::Ok(self.gone.remove(at).1);
                }
                let event = self.receiver.recv().await?;
                note(event, &mut self.packets, &mut self.gone, &mut self.health);
            }
        };
        tokio::time::timeout(deadline, wait).await.context("the server did not say that the peer is gone")?
    }

    /// Sends a ping and waits for its answer.
    ///
    /// # Errors
    /// None comes.
    pub async fn ping(&mut self) -> anyhow::Result<Duration> {
        let sender = self.sender.clone();
        let ping = sender.ping();
        tokio::pin!(ping);
        loop {
            tokio::select! {
                result = &mut ping => return Ok(result?),
                event = self.receiver.recv() => note(event?, &mut self.packets, &mut self.gone, &mut self.health),
            }
        }
    }

    /// Closes the connection and waits until its tasks have ended.
    pub async fn close(self) {
        self.sender.close().await;
        self.cancel.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl Drop for TestClient {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

fn note(
    event: Event,
    packets: &mut VecDeque<(NodePublic, Bytes)>,
    gone: &mut Vec<(NodePublic, PeerGoneReason)>,
    health: &mut Vec<String>,
) {
    match event {
        Event::Packet { src, payload } => packets.push_back((src, Bytes::copy_from_slice(&payload))),
        Event::PeerGone { peer, reason } => gone.push((peer, reason)),
        Event::Health { problem } => health.push(problem),
        _ => {}
    }
}

/// Sends from every client to every other, [`SETTLE`] after the last login, and checks that each packet arrives once and nothing else does.
///
/// # Errors
/// A packet is missing, doubled or foreign.
pub async fn exchange_all(clients: &mut [TestClient], round: &str) -> anyhow::Result<()> {
    tokio::time::sleep(SETTLE).await;
    let names: BTreeMap<_, _> = clients.iter().map(|client| (client.key(), client.node.clone())).collect();
    for from in clients.iter() {
        for to in clients.iter().filter(|to| to.key() != from.key()) {
            from.send(to.key(), format!("{round}: {} to {}", from.node, to.node).as_bytes()).await?;
        }
    }
    for to in clients.iter_mut() {
        let mut missing: BTreeMap<_, _> = names.iter().filter(|(key, _)| **key != to.key()).collect();
        while !missing.is_empty() {
            let Some((src, payload)) = to.packet_within(PACKET_DEADLINE).await? else {
                bail!("{round}: nothing came at {} from {:?}", to.node, missing.values());
            };
            let Some(from) = missing.remove(&src) else {
                bail!("{round}: a packet too many at {}: {:?}", to.node, String::from_utf8_lossy(&payload));
            };
            ensure!(payload == format!("{round}: {from} to {}", to.node), "{round}: wrong packet at {}", to.node);
        }
    }
    Ok(())
}

/// Sends `count` numbered packets, few at a time so that no queue overflows, and checks that each arrives once and in order.
///
/// # Errors
/// A packet is missing, doubled or out of order.
pub async fn exchange_in_order(from: &mut TestClient, to: &mut TestClient, count: u32) -> anyhow::Result<()> {
    /// Half of what a stock server queues for one client.
    const BURST: usize = 16;
    let numbers = (0..count).collect::<Vec<_>>();
    for burst in numbers.chunks(BURST) {
        for number in burst {
            from.send(to.key(), &number.to_be_bytes()).await?;
        }
        for number in burst {
            to.expect(from.key(), &number.to_be_bytes()).await.with_context(|| format!("packet {number} of {count}"))?;
        }
    }
    Ok(())
}
