//! The relays under measurement: our fleets, and a stock derper beside them.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::Context as _;
use causeway_client::{ClientBuilder, Connection, Endpoint, Trust};
use causeway_proto::key::NodePrivate;
use causeway_tests_integration::cluster::{Cluster, Node};
use causeway_tests_integration::derper;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Limits that would measure themselves instead of the relay.
const UNLIMITED: [&str; 4] = [
    "limits.key_rate_bits_per_second=0",
    "limits.authenticated_per_ipv4=20000",
    "limits.accepts_per_second_per_source=20000",
    "limits.accept_burst_per_source=20000",
];

/// A fleet without the limits that a load generator on one address would meet.
pub(crate) async fn fleet(regions: u32, nodes_per_region: u32) -> anyhow::Result<Cluster> {
    Cluster::start(regions, nodes_per_region, &UNLIMITED).await
}

/// Where clients log in, and whom they trust there.
#[derive(Clone)]
pub(crate) struct Door {
    endpoint: Endpoint,
    trust: Trust,
    tasks: TaskTracker,
    cancel: CancellationToken,
}

impl Door {
    /// The DERP door of a node of ours.
    pub(crate) fn of(cluster: &Cluster, node: &Node) -> anyhow::Result<Self> {
        let addr: SocketAddr = node.derp.parse().with_context(|| format!("address {}", node.derp))?;
        let trust = Trust::ca_file(&cluster.ready().ca_file)?;
        Ok(Self::new(Endpoint::at(addr, &format!("{}.causeway.test", node.name)), trust))
    }

    fn new(endpoint: Endpoint, trust: Trust) -> Self {
        Self { endpoint, trust, tasks: TaskTracker::new(), cancel: CancellationToken::new() }
    }

    /// Logs a fresh key in.
    pub(crate) async fn log_in(&self) -> anyhow::Result<(Connection, NodePrivate)> {
        let key = NodePrivate::generate();
        let builder = ClientBuilder::new(key.clone()).endpoint(self.endpoint.clone()).trust(self.trust.clone());
        Ok((builder.connect(&self.tasks, &self.cancel).await?, key))
    }
}

/// A stock derper with TLS, for comparison in the same run.
pub(crate) struct Derper {
    process: derper::Derper,
    trust: Trust,
}

impl Derper {
    /// Starts `program` on a free loopback port with a certificate of its own.
    pub(crate) async fn start(program: &Path) -> anyhow::Result<Self> {
        let mut process = derper::Derper::new(program.to_owned())?;
        process.start(None).await?;
        let trust = process.trust()?;
        Ok(Self { process, trust })
    }

    pub(crate) fn door(&self) -> Door {
        Door::new(self.process.endpoint(), self.trust.clone())
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.pid().expect("it was started")
    }
}
