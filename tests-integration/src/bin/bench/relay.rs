//! The relays under measurement: our fleets, and a stock derper beside them.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use causeway_client::{ClientBuilder, Connection, Endpoint, Trust};
use causeway_proto::key::NodePrivate;
use causeway_tests_integration::cluster::{Cluster, Node};
use tempfile::TempDir;
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
    process: Child,
    addr: SocketAddr,
    trust: Trust,
    _dir: TempDir,
}

const DERPER_NAME: &str = "derper.causeway.test";
const START_DEADLINE: Duration = Duration::from_secs(10);

impl Derper {
    /// Starts `program` on a free loopback port with a certificate of its own.
    pub(crate) async fn start(program: &Path) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let certified = rcgen::generate_simple_self_signed([DERPER_NAME.to_owned()])?;
        let write = |suffix, contents: &str| std::fs::write(dir.path().join(format!("{DERPER_NAME}.{suffix}")), contents);
        write("crt", &pem("CERTIFICATE", certified.cert.der()))?;
        write("key", &pem("PRIVATE KEY", &certified.signing_key.serialize_der()))?;
        let trust = Trust::ca_file(dir.path().join(format!("{DERPER_NAME}.crt")))?;
        // Another process may take the port in between: then derper says so and the run fails.
        let addr = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let process = Command::new(program)
            .args(["-a", &addr.to_string(), "-certmode", "manual", "-hostname", DERPER_NAME, "-http-port", "-1", "-stun=false"])
            .arg("-certdir")
            .arg(dir.path())
            .arg("-c")
            .arg(dir.path().join("derper.key"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("run {}", program.display()))?;
        let derper = Self { process, addr, trust, _dir: dir };
        let door = derper.door();
        causeway_tests_integration::cluster::wait_for("derper to answer", START_DEADLINE, async || Ok(door.log_in().await.ok()))
            .await?;
        Ok(derper)
    }

    pub(crate) fn door(&self) -> Door {
        Door::new(Endpoint::at(self.addr, DERPER_NAME), self.trust.clone())
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }
}

impl Drop for Derper {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

fn pem(label: &str, der: &[u8]) -> String {
    let body = data_encoding::BASE64.encode(der);
    let lines = body.as_bytes().chunks(64).map(|line| String::from_utf8_lossy(line)).collect::<Vec<_>>();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}
