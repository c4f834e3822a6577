//! A fleet of real processes: `causeway dev` in a directory of its own, ended by this harness whatever happens.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use causeway_ops::fleet::node::CAUSEWAYD_VARIABLE;
use causeway_proto::key::NodePublic;
use causeway_rpc::v1::operator_client::OperatorClient;
use causeway_rpc::v1::{GetClusterStatusRequest, GetPresenceRequest, PresenceEntry};
use serde::Deserialize;
use tempfile::TempDir;
use tokio::sync::{Semaphore, SemaphorePermit};
use tonic::transport::{Channel, Endpoint, Uri};

use crate::logs::{self, Expected};
use crate::metrics::{Accounting, Scrape, http_get};
use crate::programs::Programs;

/// A fleet on a busy machine may take this long to become healthy.
const START_DEADLINE: Duration = Duration::from_secs(60);
/// `causeway dev` may take this long to stop its nodes.
const STOP_DEADLINE: Duration = Duration::from_secs(20);
/// How often a condition is looked at again.
const POLL: Duration = Duration::from_millis(20);
/// How many lines of output an error shows.
const TAIL_LINES: usize = 30;

/// The right to load the machine: fleets share its cores, so they run one at a time, or their time bounds would measure each other.
#[derive(Debug)]
pub struct Turn(#[expect(dead_code, reason = "held until the fleet has ended")] SemaphorePermit<'static>);

impl Turn {
    /// Waits for the turn.
    ///
    /// # Errors
    /// Never: the semaphore is not closed.
    pub async fn take() -> anyhow::Result<Self> {
        static MACHINE: Semaphore = Semaphore::const_new(1);
        Ok(Self(MACHINE.acquire().await?))
    }
}

/// The ready file of `causeway dev`, version 1.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ready {
    /// 1.
    pub version: u32,
    /// Where the DERP map is served.
    pub derpmap_url: String,
    /// CA of the nodes' TLS certificates, PEM.
    pub ca_file: PathBuf,
    /// Whether clients must skip certificate checks.
    pub insecure: bool,
    /// The fleet's mesh key.
    pub mesh_key_file: PathBuf,
    /// The DERP mesh key; empty unless stock derpers may mesh.
    pub derp_mesh_key_file: PathBuf,
    /// The first node's operator socket.
    pub operator_socket: PathBuf,
    /// Every node, in order.
    pub nodes: Vec<Node>,
}

/// One node of the ready file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// Such as `a-1`.
    pub name: String,
    /// The region's code.
    pub region: String,
    /// The region's number in the DERP map.
    pub region_id: u64,
    /// Process id at the time the file was written.
    pub pid: u32,
    /// DERP over TLS.
    pub derp: String,
    /// DERP and probes over plain HTTP; empty: off.
    pub plain_http: String,
    /// STUN.
    pub stun: String,
    /// Prometheus metrics.
    pub metrics: String,
    /// The node's operator API.
    pub operator_socket: PathBuf,
    /// DERP server key, 64 hex digits, at the time the file was written.
    pub derp_public_key: String,
    /// 16 hex digits.
    pub node_id: String,
    /// What the node keeps.
    pub data_dir: PathBuf,
    /// Its output.
    pub log: PathBuf,
}

/// A running fleet. Dropping it ends every process and removes its directory.
#[derive(Debug)]
pub struct Cluster {
    programs: Programs,
    ready: Ready,
    dev: Child,
    /// Runs in place of `causewayd`.
    stand_in: Option<PathBuf>,
    /// What no output may hold, beside the keys in the fleet's own files.
    secrets: Vec<String>,
    // These last, in this order: the directory is removed after the processes have ended, then the next fleet may start.
    dir: TempDir,
    _turn: Turn,
}

impl Cluster {
    /// Starts `regions` x `nodes_per_region` nodes, each with the configuration fields `sets` (`KEY=VALUE`), and waits
    /// until the fleet is healthy.
    ///
    /// # Errors
    /// The programs do not build, or the fleet does not become healthy; the error shows what `causeway dev` said.
    pub async fn start(regions: u32, nodes_per_region: u32, sets: &[&str]) -> anyhow::Result<Self> {
        let mut arguments = vec!["--regions".to_owned(), regions.to_string()];
        arguments.extend(["--nodes-per-region".to_owned(), nodes_per_region.to_string()]);
        arguments.extend(sets.iter().flat_map(|set| ["--set".to_owned(), (*set).to_owned()]));
        Self::start_with(&arguments).await
    }

    /// Starts a fleet with any arguments of `causeway dev` but `--dir` and `--ready-file`.
    ///
    /// # Errors
    /// See [`Self::start`].
    pub async fn start_with(arguments: &[String]) -> anyhow::Result<Self> {
        Self::start_as(None, arguments).await
    }

    /// As [`Self::start_with`], but every node is started by the program `stand_in`, which must become `causewayd` by `exec`.
    ///
    /// # Errors
    /// See [`Self::start`].
    pub async fn start_as(stand_in: Option<&Path>, arguments: &[String]) -> anyhow::Result<Self> {
        let turn = Turn::take().await?;
        let programs = Programs::get()?;
        let dir = tempfile::Builder::new().prefix("cw").tempdir()?;
        let ready_file = dir.path().join("ready.json");
        let output = std::fs::File::create(dir.path().join("dev.log"))?;
        let mut dev = Command::new(programs.causeway())
            .arg("dev")
            .envs(stand_in.map(|program| (CAUSEWAYD_VARIABLE, program)))
            .args(arguments)
            .arg("--dir")
            .arg(dir.path().join("fleet"))
            .arg("--ready-file")
            .arg(&ready_file)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("run {}", programs.causeway().display()))?;
        let started = wait_for("the fleet to become healthy", START_DEADLINE, async || {
            if let Some(status) = dev.try_wait()? {
                bail!("causeway dev ended early: {status}");
            }
            Ok(ready_file.exists().then_some(()))
        })
        .await;
        let ready = started.and_then(|()| read_ready(&ready_file));
        match ready {
            Ok(ready) => {
                let stand_in = stand_in.map(Path::to_owned);
                Ok(Self { programs, ready, dev, stand_in, secrets: Vec::new(), dir, _turn: turn })
            }
            Err(error) => {
                end(&mut dev);
                let said = tail(&dir.path().join("dev.log"));
                Err(error.context(format!("causeway dev said:\n{said}")))
            }
        }
    }

    /// What the ready file says.
    #[must_use]
    pub const fn ready(&self) -> &Ready {
        &self.ready
    }

    /// The programs it runs.
    #[must_use]
    pub const fn programs(&self) -> &Programs {
        &self.programs
    }

    /// All nodes, in the order of the ready file.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.ready.nodes
    }

    /// The node of that name.
    ///
    /// # Panics
    /// There is none.
    #[must_use]
    pub fn node(&self, name: &str) -> &Node {
        self.ready.nodes.iter().find(|node| node.name == name).unwrap_or_else(|| panic!("no node is called {name}"))
    }

    /// A directory that goes with the fleet.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Ends a node in good order, and returns when its process is gone.
    ///
    /// # Errors
    /// `causeway dev stop` failed.
    pub async fn stop(&self, node: &str) -> anyhow::Result<()> {
        self.dev_action("stop", node).await
    }

    /// Starts a stopped or killed node on its data directory and ports, and returns when it serves.
    ///
    /// # Errors
    /// `causeway dev start` failed.
    pub async fn start_node(&self, node: &str) -> anyhow::Result<()> {
        self.dev_action("start", node).await
    }

    /// Ends a node at once (SIGKILL).
    ///
    /// # Errors
    /// `causeway dev kill` failed.
    pub async fn kill(&self, node: &str) -> anyhow::Result<()> {
        self.dev_action("kill", node).await
    }

    async fn dev_action(&self, action: &str, node: &str) -> anyhow::Result<()> {
        let output = tokio::process::Command::new(self.programs.causeway())
            .envs(self.stand_in.as_ref().map(|program| (CAUSEWAYD_VARIABLE, program)))
            .args(["dev", action, node, "--dir"])
            .arg(self.fleet_dir())
            .stdin(Stdio::null())
            .output()
            .await?;
        ensure!(output.status.success(), "causeway dev {action} {node}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// Names a secret that lies in no file of the fleet's directory: no output may hold it.
    pub fn guard_secret(&mut self, secret: &str) {
        self.secrets.push(secret.to_owned());
    }

    /// Adds configuration fields (`KEY=VALUE`) to a stopped node; they hold from its next start.
    ///
    /// # Errors
    /// The node's specification cannot be changed.
    pub fn reconfigure(&self, node: &str, sets: &[&str]) -> anyhow::Result<()> {
        let file = self.node_dir(node).join("node.json");
        let mut spec: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&file)?)?;
        let mut all = spec["set"].as_array().cloned().unwrap_or_default();
        all.extend(sets.iter().map(|set| serde_json::Value::from(*set)));
        spec["set"] = all.into();
        std::fs::write(&file, spec.to_string()).with_context(|| format!("write {}", file.display()))
    }

    /// The process id and the mesh port of a node, as of its last start.
    ///
    /// # Errors
    /// The node has not written its ready file.
    pub fn node_process(&self, node: &str) -> anyhow::Result<(u32, SocketAddr)> {
        #[derive(Deserialize)]
        struct NodeReady {
            pid: u32,
            mesh: SocketAddr,
        }
        let file = self.node_dir(node).join("ready.json");
        let text = std::fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        let ready: NodeReady = serde_json::from_str(&text).with_context(|| format!("{}", file.display()))?;
        Ok((ready.pid, ready.mesh))
    }

    /// The directory of a node: configuration, certificates, data, log.
    #[must_use]
    pub fn node_dir(&self, node: &str) -> PathBuf {
        self.fleet_dir().join(node)
    }

    fn fleet_dir(&self) -> PathBuf {
        self.dir.path().join("fleet")
    }

    /// Runs `causeway` with `arguments` against the operator socket of `node`.
    ///
    /// # Errors
    /// It cannot be run at all, or prints a secret; its exit code is in the output.
    pub async fn causeway(&self, node: &str, arguments: &[&str]) -> anyhow::Result<std::process::Output> {
        let mut command = tokio::process::Command::new(self.programs.causeway());
        command.arg("--socket").arg(&self.node(node).operator_socket).args(arguments).stdin(Stdio::null());
        let output = command.output().await?;
        let secrets = self.all_secrets()?;
        for text in [&output.stdout, &output.stderr] {
            ensure!(!logs::holds_secret(&String::from_utf8_lossy(text), &secrets), "causeway {arguments:?} printed a secret");
        }
        Ok(output)
    }

    /// Runs `causeway -o json` and parses what it prints.
    ///
    /// # Errors
    /// It failed, or printed no JSON.
    pub async fn causeway_json(&self, node: &str, arguments: &[&str]) -> anyhow::Result<serde_json::Value> {
        let output = self.causeway(node, &[&["-o", "json"], arguments].concat()).await?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "causeway {arguments:?} at {node}: {}: {said}", output.status);
        serde_json::from_slice(&output.stdout).with_context(|| format!("causeway {arguments:?} printed no JSON"))
    }

    /// A client of a node's operator API, over its Unix socket.
    ///
    /// # Errors
    /// The node does not answer.
    pub async fn operator(&self, node: &str) -> anyhow::Result<OperatorClient<Channel>> {
        operator_at(&self.node(node).operator_socket).await
    }

    /// One scrape of a node's metrics.
    ///
    /// # Errors
    /// The node does not answer.
    pub async fn metrics(&self, node: &str) -> anyhow::Result<Scrape> {
        Scrape::read(&self.node(node).metrics).await
    }

    /// What a node knows of a key; `None` if nothing.
    ///
    /// # Errors
    /// The node does not answer.
    pub async fn presence(&self, node: &str, key: NodePublic) -> anyhow::Result<Option<PresenceEntry>> {
        let request = GetPresenceRequest { key: key.as_bytes().to_vec().into(), consistent: false };
        match self.operator(node).await?.get_presence(request).await {
            Ok(entry) => Ok(Some(entry.into_inner())),
            Err(status) if status.code() == tonic::Code::NotFound => Ok(None),
            Err(status) => Err(status.into()),
        }
    }

    /// Waits until every node of `observers` prefers the claim of node `holder` on `key`.
    ///
    /// # Errors
    /// That does not come true in time.
    pub async fn wait_held(&self, observers: &[&str], key: NodePublic, holder: &str, deadline: Duration) -> anyhow::Result<()> {
        for observer in observers {
            wait_for(&format!("{observer} to prefer {holder} for {key}"), deadline, async || {
                let entry = self.presence(observer, key).await?;
                let preferred = entry.and_then(|entry| entry.claims.into_iter().find(|claim| claim.preferred));
                Ok(preferred.filter(|claim| claim.valid && claim.node_name == holder).map(drop))
            })
            .await?;
        }
        Ok(())
    }

    /// Waits until `node` calls the whole fleet healthy.
    ///
    /// # Errors
    /// It does not, in time; the error has the last problems it named.
    pub async fn wait_healthy(&self, node: &str, deadline: Duration) -> anyhow::Result<()> {
        let mut problems = Vec::new();
        let waited = wait_for("a healthy fleet", deadline, async || {
            let Ok(mut operator) = self.operator(node).await else { return Ok(None) };
            let Ok(status) = operator.get_cluster_status(GetClusterStatusRequest {}).await else { return Ok(None) };
            let status = status.into_inner();
            problems = status.problems;
            Ok(status.healthy.then_some(()))
        })
        .await;
        waited.with_context(|| format!("{node} says: {problems:?}"))
    }

    /// Waits until the packets of `nodes` are all accounted for.
    ///
    /// # Errors
    /// They are not, after ten seconds of rest.
    pub async fn wait_balanced(&self, nodes: &[&str]) -> anyhow::Result<Vec<Accounting>> {
        let mut balanced = Vec::new();
        for node in nodes {
            let mut last = None;
            let waited = wait_for("packets to be accounted for", Duration::from_secs(10), async || {
                let accounting = self.metrics(node).await?.accounting();
                last = Some(accounting);
                Ok((accounting.balances() && accounting.queued == 0.0).then_some(accounting))
            })
            .await;
            balanced.push(waited.with_context(|| format!("{node}: {}", last.map_or("no scrape".to_owned(), |a| a.to_string())))?);
        }
        Ok(balanced)
    }

    /// Ends the fleet as Ctrl-C does, and checks what every fleet test must leave: packets of `alive` accounted for, no
    /// unexpected line in a log, no secret in any output, no process and no file of the fleet left.
    ///
    /// # Errors
    /// What was found.
    pub async fn finish(mut self, alive: &[&str], expected: &Expected) -> anyhow::Result<()> {
        self.wait_balanced(alive).await?;
        let secrets = self.all_secrets()?;
        for node in alive {
            let exported = http_get(&self.node(node).metrics).await?;
            ensure!(!logs::holds_secret(&exported, &secrets), "the metrics of {node} hold a secret");
        }
        let fleet_logs = self.ready.nodes.iter().map(|node| node.log.clone()).collect::<Vec<_>>();
        let pids = self.node_pids();
        // The logs go with the fleet's directory: keep what they said until the end.
        let kept = self.dir.path().join("kept");
        std::fs::create_dir(&kept)?;
        let kept_logs = fleet_logs.iter().zip(&self.ready.nodes).map(|(log, node)| (log, kept.join(&node.name)));
        for (log, copy) in kept_logs.clone() {
            std::fs::hard_link(log, copy).with_context(|| format!("keep {}", log.display()))?;
        }
        end(&mut self.dev);
        let dev_log = std::fs::read_to_string(self.dir.path().join("dev.log"))?;
        ensure!(!logs::holds_secret(&dev_log, &secrets), "causeway dev printed a secret");
        for (log, copy) in kept_logs {
            let text = String::from_utf8_lossy(&std::fs::read(&copy)?).into_owned();
            ensure!(!logs::holds_secret(&text, &secrets), "{} holds a secret", log.display());
            let unexpected = logs::unexpected_lines(&copy, expected)?;
            ensure!(unexpected.is_empty(), "{} holds unexpected lines:\n{}", log.display(), unexpected.join("\n"));
        }
        wait_for("all nodes to end", STOP_DEADLINE, async || Ok(pids.iter().all(|pid| !runs_causewayd(*pid)).then_some(())))
            .await?;
        ensure!(!self.fleet_dir().exists(), "the fleet's directory is still there");
        Ok(())
    }

    /// The mesh key, the nodes' identities, the keys of their certificates and of the CA, and what tests named.
    fn all_secrets(&self) -> anyhow::Result<Vec<String>> {
        let mut secrets = logs::secrets_below(&self.fleet_dir())?;
        // The mesh key, and of every node its identity and the key of its certificate; the CA's key as well.
        ensure!(secrets.len() >= 2 + 2 * self.ready.nodes.len(), "only {} secrets were found: look elsewhere", secrets.len());
        secrets.extend(self.secrets.iter().cloned());
        Ok(secrets)
    }

    fn node_pids(&self) -> Vec<u32> {
        let as_of_now = |node: &Node| self.node_process(&node.name).map_or(node.pid, |(pid, _)| pid);
        self.ready.nodes.iter().map(as_of_now).collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        end(&mut self.dev);
        if std::thread::panicking() {
            for node in &self.ready.nodes {
                tracing::error!(node = node.name, log = tail(&node.log), "end of a node's log");
            }
        }
    }
}

/// A client of the operator API at a Unix socket.
///
/// # Errors
/// Nobody answers there.
pub async fn operator_at(socket: &Path) -> anyhow::Result<OperatorClient<Channel>> {
    let path = socket.to_owned();
    let connector = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { tokio::net::UnixStream::connect(path).await.map(hyper_util::rt::TokioIo::new) }
    });
    // The name is never resolved: the connector knows the socket.
    let channel = Endpoint::from_static("http://operator.invalid").connect_with_connector(connector).await;
    Ok(OperatorClient::new(channel.with_context(|| format!("connect {}", socket.display()))?))
}

/// Looks at `condition` again and again until it gives a value.
///
/// # Errors
/// The deadline passed, or the condition failed for good.
pub async fn wait_for<T>(
    what: &str,
    deadline: Duration,
    mut condition: impl AsyncFnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let mut ticks = tokio::time::interval(POLL);
    let wait = async {
        loop {
            ticks.tick().await;
            if let Some(value) = condition().await? {
                return Ok(value);
            }
        }
    };
    match tokio::time::timeout(deadline, wait).await {
        Ok(result) => result,
        Err(_) => bail!("waited {deadline:?} for {what}"),
    }
}

fn read_ready(file: &Path) -> anyhow::Result<Ready> {
    let text = std::fs::read_to_string(file)?;
    let ready: Ready = serde_json::from_str(&text).context("ready file")?;
    ensure!(ready.version == 1, "the ready file has version {}", ready.version);
    Ok(ready)
}

/// Ends `causeway dev` as Ctrl-C does; kills it if that does not help (its nodes then end through their leash).
fn end(dev: &mut Child) {
    if !matches!(dev.try_wait(), Ok(None)) {
        return;
    }
    signal(dev.id(), rustix::process::Signal::TERM);
    let deadline = Instant::now() + STOP_DEADLINE;
    while matches!(dev.try_wait(), Ok(None)) {
        if Instant::now() >= deadline {
            signal(dev.id(), rustix::process::Signal::KILL);
            break;
        }
        std::thread::park_timeout(POLL);
    }
    // Reaps it; it has ended or was killed.
    drop(dev.wait());
}

fn signal(pid: u32, signal: rustix::process::Signal) {
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
    if let Some(pid) = pid {
        // It may have ended in between: nothing to do then.
        rustix::process::kill_process(pid, signal).ok();
    }
}

fn runs_causewayd(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // A zombie has ended; its parent has only not looked yet.
    stat.contains("(causewayd)") && !stat.contains(") Z ")
}

fn tail(file: &Path) -> String {
    let text = std::fs::read(file).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines = text.lines().collect::<Vec<_>>();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}
