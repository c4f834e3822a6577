//! One node as a process: finding `causewayd`, starting it, waiting until it serves, ending it.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};

use super::layout::{NodeDir, remove_file, write_atomically};
use super::process::{Identity, STOP_GRACE, Stopped, detached};
use super::ready::NodeReady;
use super::spec::NodeSpec;

/// How often files that another process writes are looked at.
pub const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// Lines of a node's log shown when it fails.
const LOG_TAIL_LINES: usize = 12;
/// Names another `causewayd` than the one beside this program.
pub const CAUSEWAYD_VARIABLE: &str = "CAUSEWAYD";

/// Finds the `causewayd` to run: `$CAUSEWAYD`, else the one beside this program.
///
/// # Errors
/// Naming the places looked at.
pub fn causewayd() -> anyhow::Result<PathBuf> {
    if let Some(named) = std::env::var_os(CAUSEWAYD_VARIABLE).filter(|value| !value.is_empty()) {
        let path = std::path::absolute(&named)?;
        if !path.is_file() {
            bail!("{CAUSEWAYD_VARIABLE}={}: there is no such program", path.display());
        }
        return Ok(path);
    }
    let own = std::env::current_exe().context("this program's own path is unknown")?;
    // Test binaries live one folder deeper than the programs built with them.
    let folders = own.parent().into_iter().chain(own.parent().and_then(Path::parent));
    for folder in folders {
        let path = folder.join("causewayd");
        if path.is_file() {
            return Ok(path);
        }
    }
    bail!("causewayd is not beside {}: build it (cargo build), or name it in {CAUSEWAYD_VARIABLE}", own.display())
}

/// Finds the `causeway` program, to run parts of it as processes of their own: this one, or the one a test was built with.
///
/// # Errors
/// If this program's own path is unknown.
pub fn causeway() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("this program's own path is unknown")?;
    if own.file_name().is_some_and(|name| name == "causeway") {
        return Ok(own);
    }
    let beside = own.parent().and_then(Path::parent).map(|folder| folder.join("causeway"));
    Ok(beside.filter(|path| path.is_file()).unwrap_or(own))
}

/// Starts a node in the background and records which process it is.
///
/// # Errors
/// If the program cannot be started, or a file not written.
pub fn spawn(program: &Path, node: &NodeDir, spec: &NodeSpec, leash: &Path) -> anyhow::Result<Identity> {
    remove_file(&node.ready())?;
    remove_file(&node.stopped())?;
    let mut command = detached(program, &node.log())?;
    command.arg("--config").arg(node.config()).arg("--ready-file").arg(node.ready()).arg("--leash").arg(leash);
    for set in spec.listeners().iter().chain(&spec.set) {
        command.arg("--set").arg(set);
    }
    // A group of its own: Ctrl-C in a terminal reaches only this program, which then ends the nodes in good order.
    command.process_group(0);
    // Tokio reaps the child whenever it ends, although nobody waits for it here.
    let child =
        tokio::process::Command::from(command).spawn().with_context(|| format!("{}: cannot be started", program.display()))?;
    let pid = child.id().context("the node ended before its number was known")?;
    let identity = Identity::of(pid)?;
    identity.write(&node.process())?;
    Ok(identity)
}

/// Waits until the process serves.
///
/// # Errors
/// If it ends first (with the end of its log) or takes longer than `wait`.
///
/// # Cancel safety
/// Safe: nothing is consumed.
pub async fn await_ready(node: &NodeDir, process: &Identity, wait: Duration) -> anyhow::Result<NodeReady> {
    let serving = async {
        loop {
            if let Some(ready) = NodeReady::read(&node.ready())?
                && ready.pid == process.pid
            {
                return anyhow::Ok(ready);
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    };
    tokio::select! {
        ready = tokio::time::timeout(wait, serving) => {
            ready.map_err(|_| failed(node, &format!("does not serve after {} s", wait.as_secs())))?
        }
        () = process.ended() => Err(failed(node, "ended while starting")),
    }
}

/// An error that names the node, what happened, its log and the end of it.
#[must_use]
pub fn failed(node: &NodeDir, what: &str) -> anyhow::Error {
    anyhow::anyhow!("node {} {what}; the end of {}:\n{}", node.name(), node.log().display(), node.log_tail(LOG_TAIL_LINES))
}

/// Which process the node is, if it runs.
#[must_use]
pub fn running(node: &NodeDir) -> Option<Identity> {
    Identity::read(&node.process()).filter(Identity::is_alive)
}

/// Ends a node in good order; one that does not run is fine.
///
/// # Errors
/// If it cannot be ended or the mark not written.
pub async fn stop(node: &NodeDir) -> anyhow::Result<Stopped> {
    mark_stopped(node)?;
    match Identity::read(&node.process()) {
        Some(process) => process.stop(STOP_GRACE).await,
        None => Ok(Stopped::WasGone),
    }
}

/// Ends a node at once; returns whether it ran.
///
/// # Errors
/// If it cannot be ended or the mark not written.
pub async fn kill(node: &NodeDir) -> anyhow::Result<bool> {
    mark_stopped(node)?;
    match Identity::read(&node.process()) {
        Some(process) => process.kill().await,
        None => Ok(false),
    }
}

/// Says that the node is meant not to run, so that its end is not reported as a crash.
fn mark_stopped(node: &NodeDir) -> anyhow::Result<()> {
    write_atomically(&node.stopped(), "", 0o600)
}
