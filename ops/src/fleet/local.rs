//! Nodes in the background, each under a supervisor that restarts it: `causeway local`, Terraform's local target.
//!
//! Two locks make every command safe to kill and repeat: a supervisor holds its node's `supervisor.lock`, and that lock is the node's
//! leash, so a node never outlives its supervisor.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::health::{self, Asked};
use super::layout::{FleetDir, NodeDir, remove_dir, remove_file};
use super::process::{Identity, STOP_GRACE, detached};
use super::ready::{FleetNode, NodeReady, VERSION};
use super::spec::NodeSpec;
use super::{leash, node, prepare};

/// How often a start makes way for an earlier one that is still at it.
const START_ATTEMPTS_MAX: u32 = 3;
/// First pause before a crashed node is started again; doubles up to [`RESTART_PAUSE_MAX`].
const RESTART_PAUSE: Duration = Duration::from_millis(200);
/// Longest pause before a crashed node is started again.
const RESTART_PAUSE_MAX: Duration = Duration::from_secs(10);
/// A node that ran this long has not crashed at once: the pause begins anew.
const STEADY_RUN: Duration = Duration::from_secs(60);
/// A supervisor needs its node's time to stop, and a little for itself.
const SUPERVISOR_GRACE: Duration = Duration::from_secs(15);

/// A node as `local list` and `local status` show it.
#[derive(Debug, Clone, Serialize)]
pub struct LocalNode {
    /// Whether its process runs.
    pub running: bool,
    /// Whether its supervisor runs.
    pub supervised: bool,
    /// Node-to-node address; empty until it served once.
    pub mesh: String,
    /// The rest, as in the ready file of `causeway dev`.
    #[serde(flatten)]
    pub node: FleetNode,
}

/// How the fleet is: the JSON of `local status`.
#[derive(Debug, Clone, Serialize)]
pub struct LocalStatus {
    /// Version of this format.
    pub version: u32,
    /// Whether nothing is wrong.
    pub healthy: bool,
    /// What is wrong, a sentence each.
    pub problems: Vec<String>,
    /// Empty until the fleet is formed.
    pub fleet_id: String,
    /// Name of the leader; empty while none is known.
    pub leader: String,
    /// URL of the DERP map; its certificate is signed by `ca_file`.
    pub derpmap_url: String,
    /// CA of the nodes' TLS certificates.
    pub ca_file: PathBuf,
    /// The fleet CA, which `--ca` of operators takes.
    pub fleet_ca_file: PathBuf,
    /// The secret the nodes share.
    pub mesh_key_file: PathBuf,
    /// Operator socket of the first node.
    pub operator_socket: PathBuf,
    /// All nodes.
    pub nodes: Vec<LocalNode>,
}

/// Starts a node under a supervisor and waits until it serves; first stops what an earlier attempt left.
///
/// # Errors
/// If the node is misconfigured, or does not serve within `wait` (with the end of its log).
pub async fn start(fleet: &FleetDir, mut spec: NodeSpec, leash: Option<&Path>, wait: Duration) -> anyhow::Result<LocalNode> {
    node::causewayd()?;
    if let Some(leash) = leash.filter(|leash| leash::is_free(leash)) {
        anyhow::bail!("--leash {}: nobody holds a lock on it, so the node would end at once", leash.display());
    }
    prepare::fleet(fleet)?;
    let dir = fleet.node(&spec.name)?;
    stop(&dir).await?;
    for _ in 0..START_ATTEMPTS_MAX {
        match attempt_start(fleet, &dir, &mut spec, leash, wait).await {
            Ok(true) => return describe(&dir),
            Ok(false) => stop(&dir).await?,
            Err(error) => {
                stop(&dir).await?;
                return Err(error);
            }
        }
    }
    anyhow::bail!("node {}: others keep starting it at the same time", spec.name)
}

/// Returns false if an earlier attempt, whose caller was killed, was still at it and came first.
async fn attempt_start(
    fleet: &FleetDir,
    dir: &NodeDir,
    spec: &mut NodeSpec,
    leash: Option<&Path>,
    wait: Duration,
) -> anyhow::Result<bool> {
    if dir.spec().exists() {
        keep_ports(spec, &prepare::read_spec(dir)?);
    }
    prepare::node(fleet, spec)?;
    for stale in [dir.ready(), dir.process(), dir.supervisor(), dir.stopped()] {
        remove_file(&stale)?;
    }
    let mut command = detached(&node::causeway()?, &dir.log())?;
    command.args(["local", "supervise", "--node", &spec.name, "--state-dir"]).arg(fleet.path()).current_dir("/");
    if let Some(leash) = leash {
        command.arg("--leash").arg(std::path::absolute(leash)?);
    }
    let child = command.spawn().context("the supervisor cannot be started")?;
    let own = Identity::of(child.id())?;
    let served = await_served(dir, &own, wait).await;
    if supervisor(dir).is_some_and(|other| other != own) {
        return Ok(false);
    }
    prepare::pin(fleet, dir, &served?)?;
    Ok(true)
}

/// The supervisor of the node, if it runs.
fn supervisor(dir: &NodeDir) -> Option<Identity> {
    Identity::read(&dir.supervisor()).filter(Identity::is_alive)
}

async fn await_served(dir: &NodeDir, supervisor: &Identity, wait: Duration) -> anyhow::Result<NodeReady> {
    let serving = async {
        loop {
            if let Some(process) = node::running(dir)
                && let Some(ready) = NodeReady::read(&dir.ready())?
                && ready.pid == process.pid
            {
                return anyhow::Ok(ready);
            }
            tokio::time::sleep(node::POLL_INTERVAL).await;
        }
    };
    tokio::select! {
        ready = tokio::time::timeout(wait, serving) => {
            ready.map_err(|_| node::failed(dir, &format!("does not serve after {} s", wait.as_secs())))?
        }
        () = supervisor.ended() => Err(node::failed(dir, "did not start")),
    }
}

/// A node started again keeps the ports it had, where the new specification leaves them open.
fn keep_ports(spec: &mut NodeSpec, before: &NodeSpec) {
    if spec.bind != before.bind {
        return;
    }
    let (new, old) = (&mut spec.ports, &before.ports);
    for (new, old) in [
        (&mut new.derp, old.derp),
        (&mut new.plain_http, old.plain_http),
        (&mut new.stun, old.stun),
        (&mut new.mesh, old.mesh),
        (&mut new.metrics, old.metrics),
    ] {
        if *new == 0 {
            *new = old;
        }
    }
}

/// Ends a node and its supervisor; ones that do not run are fine.
///
/// # Errors
/// If a process cannot be ended.
pub async fn stop(dir: &NodeDir) -> anyhow::Result<()> {
    if let Some(supervisor) = Identity::read(&dir.supervisor()) {
        supervisor.stop(SUPERVISOR_GRACE).await.with_context(|| format!("supervisor of node {}", dir.name()))?;
    }
    // Normally gone by now: a supervisor that was killed leaves its node to the leash.
    if let Some(process) = Identity::read(&dir.process()) {
        process.stop(STOP_GRACE).await.with_context(|| format!("node {}", dir.name()))?;
    }
    Ok(())
}

/// Ends a node, and with `remove` also removes its directory, and the fleet's own files with the last node.
///
/// # Errors
/// If a process cannot be ended or a file not removed.
pub async fn leave(fleet: &FleetDir, name: &str, remove: bool) -> anyhow::Result<()> {
    let dir = fleet.node(name)?;
    stop(&dir).await?;
    if !remove {
        return Ok(());
    }
    prepare::remove_node(fleet, &dir)
}

/// Ends all nodes and removes everything the fleet made.
///
/// # Errors
/// If a process cannot be ended or a file not removed.
pub async fn clean(fleet: &FleetDir) -> anyhow::Result<Vec<String>> {
    let nodes = fleet.nodes()?;
    futures::future::try_join_all(nodes.iter().map(stop)).await?;
    for node in &nodes {
        remove_dir(node.path())?;
    }
    if fleet.path().exists() {
        prepare::remove_fleet(fleet)?;
    }
    Ok(nodes.iter().map(|node| node.name().to_owned()).collect())
}

/// A node as its files tell.
///
/// # Errors
/// If its specification cannot be read.
pub fn describe(dir: &NodeDir) -> anyhow::Result<LocalNode> {
    let spec = prepare::read_spec(dir)?;
    let process = node::running(dir);
    let ready = NodeReady::read(&dir.ready())?;
    let served = ready.is_some();
    let ready = ready.unwrap_or_else(|| NodeReady { name: spec.name.clone(), ..NodeReady::default() });
    let mesh = ready.mesh.clone();
    let mut node = FleetNode::new(ready, dir, &spec.region.code, spec.region.id);
    // The pid is that of the process that runs now, not of the one that wrote the file.
    node.pid = process.as_ref().map_or(0, |process| process.pid);
    Ok(LocalNode { running: process.is_some() && served, supervised: supervisor(dir).is_some(), mesh, node })
}

/// The nodes there are, as [`health`] asks them.
///
/// # Errors
/// If the directory cannot be read.
pub fn asked(fleet: &FleetDir) -> anyhow::Result<Vec<Asked>> {
    Ok(fleet.nodes()?.iter().map(|node| Asked { name: node.name().to_owned(), socket: node.socket() }).collect())
}

/// How the fleet is now.
///
/// # Errors
/// If its files cannot be read.
pub async fn status(fleet: &FleetDir) -> anyhow::Result<LocalStatus> {
    let nodes: Vec<LocalNode> = fleet.nodes()?.iter().map(describe).collect::<anyhow::Result<_>>()?;
    let mut report = health::ask(&asked(fleet)?).await;
    if nodes.is_empty() {
        report.problems.push(format!("{}: there is no node here", fleet.path().display()));
    }
    let cluster = report.cluster.unwrap_or_default();
    let leader = cluster.nodes.iter().filter_map(|summary| summary.node.as_ref()).find(|record| record.node_id == cluster.leader);
    let serving = nodes.iter().find(|node| node.running).or(nodes.first());
    Ok(LocalStatus {
        version: VERSION,
        healthy: report.problems.is_empty(),
        problems: report.problems,
        fleet_id: cluster.fleet_id.clone(),
        leader: leader.map(|record| record.name.clone()).unwrap_or_default(),
        derpmap_url: serving.map(|node| format!("https://{}/derpmap", node.node.derp)).unwrap_or_default(),
        ca_file: fleet.ca(),
        fleet_ca_file: fleet.fleet_ca(),
        mesh_key_file: fleet.mesh_key(),
        operator_socket: serving.map(|node| node.node.operator_socket.clone()).unwrap_or_default(),
        nodes,
    })
}

/// The supervisor's own work: keeps a node running until it is asked to end, or `leash` is free.
///
/// A node that ends before it ever served is not started again: its configuration is wrong, and `start` reports it.
///
/// # Errors
/// If another supervisor has this node, or the node ended before it ever served.
pub async fn supervise(fleet: &FleetDir, name: &str, leash: Option<&Path>) -> anyhow::Result<()> {
    // A session of its own: neither the terminal nor Terraform's process group reaches it. Refused only to a group leader,
    // which this process is when typed into a shell.
    let _result = rustix::process::setsid();
    let dir = fleet.node(name)?;
    let own_lock = dir.path().join("supervisor.lock");
    let _held = leash::hold(&own_lock).with_context(|| format!("node {name} has a supervisor already"))?;
    Identity::own()?.write(&dir.supervisor())?;
    // The tasks wait for signals as long as the process lives: there is nothing to join them with.
    let ending = ending(leash, &TaskTracker::new())?;
    let program = node::causewayd()?;
    let mut pause = RESTART_PAUSE;
    let mut served = false;
    loop {
        let spec = prepare::read_spec(&dir)?;
        let started = tokio::time::Instant::now();
        let process = node::spawn(&program, &dir, &spec, &own_lock)?;
        tokio::select! {
            () = ending.cancelled() => {
                process.stop(STOP_GRACE).await?;
                return Ok(());
            }
            () = process.ended() => {}
        }
        served |= NodeReady::read(&dir.ready()).is_ok_and(|ready| ready.is_some_and(|ready| ready.pid == process.pid));
        if !served {
            anyhow::bail!("node {name} ended before it served; it is not started again");
        }
        if started.elapsed() > STEADY_RUN {
            pause = RESTART_PAUSE;
        }
        eprint_line(&format!(
            "supervisor: node {name} (process {}) ended, starts again in {} ms",
            process.pid,
            pause.as_millis()
        ));
        if ending.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
            return Ok(());
        }
        pause = (pause * 2).min(RESTART_PAUSE_MAX);
    }
}

fn eprint_line(text: &str) {
    use std::io::Write;
    drop(writeln!(std::io::stderr().lock(), "{text}"));
}

/// Cancelled by SIGTERM, SIGINT, or the leash.
fn ending(leash: Option<&Path>, tasks: &TaskTracker) -> anyhow::Result<CancellationToken> {
    let ending = match leash {
        Some(leash) => leash::watch(leash)?,
        None => CancellationToken::new(),
    };
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        let mut stream = signal(kind).context("signals cannot be waited for")?;
        let ending = ending.clone();
        tasks.spawn(async move {
            stream.recv().await;
            ending.cancel();
        });
    }
    Ok(ending)
}
