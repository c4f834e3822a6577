//! A fleet and a stock derper, and what such a derper does at a node.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use causeway_client::{ClientBuilder, Connection, Endpoint, Event};
use causeway_proto::derp::frame::{PeerGoneReason, PresentFlags};
use causeway_proto::key::{MeshKey, NodePrivate, NodePublic};
use causeway_proto::packet::{DISCO_LEN_MIN, DISCO_MAGIC};
use causeway_rpc::v1::ClaimKind;
use causeway_tests_integration::client::{TestClient, exchange_in_order};
use causeway_tests_integration::cluster::{Cluster, wait_for};
use causeway_tests_integration::derper::{Derper, MeshWith};
use causeway_tests_integration::files::write_private;
use causeway_tests_integration::go::tailscale_program;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub(super) const NODES: [&str; 4] = ["a-1", "a-2", "b-1", "b-2"];

/// A link is dialled again after 5 s; then the flood has to arrive.
pub(super) const RELINK: Duration = Duration::from_secs(20);

/// Longer than anything takes to arrive that does arrive.
pub(super) const SILENCE: Duration = Duration::from_millis(700);

/// Two regions of two nodes and a stock derper that shares their DERP mesh key; nobody dials anybody yet.
pub(super) struct Mixed {
    pub(super) cluster: Cluster,
    pub(super) derper: Derper,
    program: PathBuf,
    mesh_key: MeshKey,
    _keys: tempfile::TempDir,
}

impl Mixed {
    pub(super) async fn start(sets: &[&str]) -> anyhow::Result<Option<Self>> {
        let Some(program) = tailscale_program("derper", Path::new(env!("CARGO_TARGET_TMPDIR")))? else { return Ok(None) };
        let keys = tempfile::tempdir()?;
        let key_file = keys.path().join("derp-mesh.key");
        let mesh_key = MeshKey::generate();
        write_private(&key_file, &mesh_key.expose_hex())?;
        let mut arguments = ["--regions", "2", "--nodes-per-region", "2"].map(str::to_owned).to_vec();
        arguments.extend(["--derp-mesh-key-file".to_owned(), key_file.display().to_string()]);
        arguments.extend(sets.iter().flat_map(|set| ["--set".to_owned(), (*set).to_owned()]));
        let mut cluster = Cluster::start_with(&arguments).await?;
        cluster.guard_secret(&mesh_key.expose_hex());
        Ok(Some(Self { cluster, derper: Derper::new(program.clone())?, program, mesh_key, _keys: keys }))
    }

    /// A second derper, which does not run yet.
    pub(super) fn another_derper(&self) -> anyhow::Result<Derper> {
        Derper::new(self.program.clone())
    }

    /// Starts the derper, dialling these nodes.
    pub(super) async fn start_derper(&mut self, nodes: &[&str]) -> anyhow::Result<()> {
        let with = nodes.iter().map(|node| self.mesh_name(node)).collect::<anyhow::Result<_>>()?;
        let key_file = self.cluster.ready().derp_mesh_key_file.clone();
        let mesh = MeshWith { key_file, with, ca_file: self.cluster.ready().ca_file.clone() };
        self.derper.start(Some(&mesh)).await
    }

    /// A node as a derper's `--mesh-with` names it.
    pub(super) fn mesh_name(&self, node: &str) -> anyhow::Result<String> {
        let (address, port) = self.cluster.node(node).derp.rsplit_once(':').context("HOST:PORT")?;
        Ok(format!("{node}.causeway.test:{port}/{address}"))
    }

    /// Restarts a node with these derpers to dial.
    pub(super) async fn dial_from(&self, node: &str, with: &[String], ca_file: &Path) -> anyhow::Result<()> {
        self.cluster.stop(node).await?;
        let with = format!("derp_mesh.with={with:?}");
        self.cluster.reconfigure(node, &[&with, &format!("derp_mesh.ca_file={}", ca_file.display())])?;
        self.cluster.start_node(node).await?;
        self.cluster.wait_healthy(node, RELINK).await
    }

    /// Restarts nodes so that they dial the derper.
    pub(super) async fn dial_derper_from(&self, nodes: &[&str]) -> anyhow::Result<()> {
        for node in nodes {
            self.dial_from(node, &[self.derper.mesh_name()], &self.derper.ca_file()).await?;
        }
        Ok(())
    }

    pub(super) async fn wait_linked(&self, nodes: &[&str]) -> anyhow::Result<()> {
        for node in nodes {
            self.wait_gauge(node, "causeway_derp_mesh_links_up", 1.0).await?;
        }
        Ok(())
    }

    pub(super) async fn wait_watched(&self, nodes: &[&str]) -> anyhow::Result<()> {
        for node in nodes {
            self.wait_gauge(node, "causeway_clients_mesh_peers", 1.0).await?;
        }
        Ok(())
    }

    pub(super) async fn wait_gauge(&self, node: &str, name: &str, wanted: f64) -> anyhow::Result<()> {
        wait_for(&format!("{name} of {node} to be {wanted}"), RELINK, async || {
            let value = self.cluster.metrics(node).await?.sum(name, &[]);
            Ok(value.filter(|value| (value - wanted).abs() < 0.5).map(drop))
        })
        .await
    }

    pub(super) async fn client_of_derper(&self) -> anyhow::Result<TestClient> {
        self.client_of_derper_as(NodePrivate::generate()).await
    }

    pub(super) async fn client_of_derper_as(&self, key: NodePrivate) -> anyhow::Result<TestClient> {
        client_of(&self.derper, key).await
    }

    /// Waits until `observers` know `key` as held by a derper that `watcher` watches.
    pub(super) async fn wait_behind(&self, observers: &[&str], key: NodePublic, watcher: &str) -> anyhow::Result<()> {
        for observer in observers {
            wait_for(&format!("{observer} to know {key} behind {watcher}"), RELINK, async || {
                let claims = self.cluster.presence(observer, key).await?.map(|entry| entry.claims).unwrap_or_default();
                let behind = claims.iter().find(|claim| claim.node_name == watcher && claim.valid);
                Ok(behind.filter(|claim| claim.kind == i32::from(ClaimKind::Derper)).map(drop))
            })
            .await?;
        }
        Ok(())
    }

    /// Waits until nobody of `observers` knows a claim that counts on `key`.
    pub(super) async fn wait_forgotten(&self, observers: &[&str], key: NodePublic) -> anyhow::Result<()> {
        for observer in observers {
            wait_for(&format!("{observer} to forget {key}"), RELINK, async || {
                let entry = self.cluster.presence(observer, key).await?;
                Ok((!entry.is_some_and(|entry| entry.claims.iter().any(|claim| claim.valid))).then_some(()))
            })
            .await?;
        }
        Ok(())
    }

    /// A connection with the mesh key to `node`: what a stock derper does there, step by step.
    pub(super) async fn mesh_peer(&self, node: &str, watch: bool) -> anyhow::Result<Peer> {
        self.mesh_peer_with(node, watch, self.mesh_key.clone()).await
    }

    pub(super) async fn mesh_peer_with(&self, node: &str, watch: bool, mesh_key: MeshKey) -> anyhow::Result<Peer> {
        let address = self.cluster.node(node).derp.parse().context("DERP address")?;
        let key = NodePrivate::generate();
        let (tasks, cancel) = (TaskTracker::new(), CancellationToken::new());
        let connection = ClientBuilder::new(key.clone())
            .endpoint(Endpoint::at(address, &format!("{node}.causeway.test")))
            .ca_file(&self.cluster.ready().ca_file)?
            .mesh_key(mesh_key)
            .can_ack_pings(false)
            .preferred(false)
            .watch_connections(watch)
            .connect(&tasks, &cancel)
            .await?;
        Ok(Peer { key: key.public(), connection, _cancel: cancel.drop_guard() })
    }
}

/// Connects `key` to a derper.
pub(super) async fn client_of(derper: &Derper, key: NodePrivate) -> anyhow::Result<TestClient> {
    let builder = ClientBuilder::new(key.clone()).trust(derper.trust()?).endpoint(derper.endpoint());
    TestClient::connect_by(builder, "a derper", key).await
}

pub(super) struct Peer {
    pub(super) key: NodePublic,
    pub(super) connection: Connection,
    _cancel: tokio_util::sync::DropGuard,
}

impl Peer {
    /// The next event that is no keep-alive, if one comes.
    pub(super) async fn next(&mut self) -> anyhow::Result<Option<Event>> {
        let next = async {
            loop {
                match self.connection.recv().await? {
                    Event::KeepAlive => {}
                    event => return anyhow::Ok(event),
                }
            }
        };
        tokio::time::timeout(SILENCE, next).await.ok().transpose()
    }

    /// Everything that comes until it is `enough` and then nothing more does.
    pub(super) async fn all(&mut self, enough: impl Fn(&[Event]) -> bool) -> anyhow::Result<Vec<Event>> {
        let mut all = Vec::new();
        wait_for("enough events", RELINK, async || {
            all.extend(self.next().await?);
            Ok(enough(&all).then_some(()))
        })
        .await
        .with_context(|| format!("{all:?}"))?;
        while let Some(event) = self.next().await? {
            all.push(event);
        }
        Ok(all)
    }
}

pub(super) fn present(events: &[Event], key: NodePublic) -> Vec<(bool, PresentFlags)> {
    let of_key = events.iter().filter_map(|event| match event {
        Event::PeerPresent { peer, addr, flags } if *peer == key => Some((addr.is_some(), *flags)),
        _ => None,
    });
    of_key.collect()
}

pub(super) fn gone(events: &[Event], key: NodePublic) -> usize {
    events
        .iter()
        .filter(|event| matches!(event, Event::PeerGone { peer, reason: PeerGoneReason::Disconnected } if *peer == key))
        .count()
}

pub(super) fn disco() -> Vec<u8> {
    let mut payload = vec![0; DISCO_LEN_MIN];
    payload[..DISCO_MAGIC.len()].copy_from_slice(&DISCO_MAGIC);
    payload
}

/// Sends until a packet arrives: each side may need a moment to learn of the other.
pub(super) async fn reach(from: &TestClient, to: &mut TestClient) -> anyhow::Result<()> {
    wait_for(&format!("a packet from {} to {}", from.node(), to.node()), RELINK, async || {
        from.send(to.key(), b"reach").await?;
        Ok(to.packet_within(Duration::from_millis(200)).await?.map(drop))
    })
    .await?;
    while to.packet_within(SILENCE).await?.is_some() {}
    Ok(())
}

pub(super) async fn both_ways(one: &mut TestClient, other: &mut TestClient) -> anyhow::Result<()> {
    for _ in 0..2 {
        reach(one, other).await?;
        reach(other, one).await?;
    }
    exchange_in_order(one, other, 200).await?;
    exchange_in_order(other, one, 200).await
}
