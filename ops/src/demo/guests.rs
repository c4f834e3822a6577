//! The demo's DERP clients: one per region, staying connected, and measuring packets among themselves.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use causeway_client::{Client, ClientBuilder, ClientEvent, ClientHandle, Event, Trust, load_map};
use causeway_proto::derpmap::DerpMap;
use causeway_proto::key::{NodePrivate, NodePublic};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Packets that wait to be looked at; more are dropped, which the demo would show as lost.
const ARRIVALS_MAX: usize = 1024;
/// How long a client may take to connect.
const CONNECT_WAIT: Duration = Duration::from_secs(15);
/// How long a packet may take before it counts as lost.
const PACKET_WAIT: Duration = Duration::from_secs(1);

/// A packet that arrived.
#[derive(Debug)]
struct Arrival {
    src: NodePublic,
    number: u64,
    at: Instant,
}

/// One client.
#[derive(Debug)]
pub struct Guest {
    /// Code of its region.
    pub region: String,
    /// Its key.
    pub key: NodePublic,
    handle: ClientHandle,
    arrivals: mpsc::Receiver<Arrival>,
    place: watch::Receiver<Place>,
}

/// Where a client is.
#[derive(Debug, Default)]
struct Place {
    /// DERP key of the node it is connected to.
    node: Option<NodePublic>,
    /// Why the last attempt to connect failed.
    failure: String,
}

/// All clients, one per region; they end when this is dropped.
#[derive(Debug)]
pub struct Guests {
    /// By region, in the order of the map.
    pub all: Vec<Guest>,
    cancel: CancellationToken,
}

impl Drop for Guests {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

/// Fetches the map and connects a client to each of its regions.
///
/// # Errors
/// If the map cannot be fetched, or a region has no node that answers.
pub async fn arrive(derpmap_url: &str, ca_file: &Path) -> anyhow::Result<(Arc<DerpMap>, Guests)> {
    let trust = Trust::ca_file(ca_file)?;
    let map = Arc::new(load_map(derpmap_url, Some(&trust)).await?);
    let (tasks, cancel) = (TaskTracker::new(), CancellationToken::new());
    let mut guests = Guests { all: Vec::new(), cancel: cancel.clone() };
    for (id, region) in &map.regions {
        let key = NodePrivate::generate();
        let public = key.public();
        let builder = ClientBuilder::new(key).app_name("causeway demo").trust(trust.clone()).region(Arc::clone(&map), *id);
        guests.all.push(Guest::start(&region.region_code, public, builder, &tasks, &cancel)?);
    }
    for guest in &mut guests.all {
        guest.connected_elsewhere(None).await?;
    }
    Ok((map, guests))
}

impl Guest {
    fn start(
        region: &str,
        key: NodePublic,
        builder: ClientBuilder,
        tasks: &TaskTracker,
        cancel: &CancellationToken,
    ) -> anyhow::Result<Self> {
        let client = builder.start(tasks, cancel)?;
        let handle = client.handle().clone();
        let (arrived, arrivals) = mpsc::channel(ARRIVALS_MAX);
        let (at, place) = watch::channel(Place::default());
        tasks.spawn(follow(client, arrived, at));
        Ok(Self { region: region.to_owned(), key, handle, arrivals, place })
    }

    /// DERP key of the node the client is connected to.
    #[must_use]
    pub fn node(&self) -> Option<NodePublic> {
        self.place.borrow().node
    }

    /// Waits until the client is connected to a node that is not `before`; returns the node's DERP key.
    ///
    /// # Errors
    /// If that takes too long.
    pub async fn connected_elsewhere(&mut self, before: Option<NodePublic>) -> anyhow::Result<NodePublic> {
        let elsewhere = self.place.wait_for(|place| place.node.is_some() && place.node != before);
        if let Ok(Ok(place)) = timeout(CONNECT_WAIT, elsewhere).await {
            return place.node.context("the client has no node");
        }
        let (wait, failure) = (CONNECT_WAIT.as_secs(), &self.place.borrow().failure);
        bail!("the client of region {} is not connected after {wait} s: {failure}", self.region)
    }

    /// Sends one packet to `dst` and waits for it there; returns how long it took, or `None` if it was lost.
    ///
    /// # Errors
    /// If it cannot be sent.
    pub async fn send(&self, dst: &mut Self, number: u64) -> anyhow::Result<Option<Duration>> {
        let sent = Instant::now();
        self.handle.send(&dst.key, &number.to_be_bytes()).await?;
        let arrived = async {
            while let Some(arrival) = dst.arrivals.recv().await {
                // Late ones of earlier sends are skipped.
                if arrival.src == self.key && arrival.number == number {
                    return Some(arrival.at.duration_since(sent));
                }
            }
            None
        };
        Ok(timeout(PACKET_WAIT, arrived).await.ok().flatten())
    }
}

/// Takes all events of a client until it ends.
async fn follow(mut client: Client, arrived: mpsc::Sender<Arrival>, at: watch::Sender<Place>) {
    while let Some(event) = client.recv().await {
        match event {
            ClientEvent::Connected { info, .. } => at.send_modify(|place| place.node = Some(info.server_key)),
            ClientEvent::Disconnected { .. } => at.send_modify(|place| place.node = None),
            ClientEvent::ConnectFailed { error, .. } => at.send_modify(|place| place.failure = error.to_string()),
            ClientEvent::Received { event: Event::Packet { src, payload }, .. } => {
                if let Ok(number) = <[u8; 8]>::try_from(&payload[..]) {
                    let arrival = Arrival { src, number: u64::from_be_bytes(number), at: Instant::now() };
                    // A full queue is a packet lost, as the demo then says.
                    drop(arrived.try_send(arrival));
                }
            }
            _ => {}
        }
    }
}
