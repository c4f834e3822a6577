//! Takes a fleet down and removes its files: at the end of whoever ran it, or, as a process of its own, when that one was killed.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Stdio;

use anyhow::Context;

use super::layout::{FleetDir, make_private_dir, remove_dir};
use super::process::Identity;
use super::{leash, local, node, prepare};

/// Starts the process that takes the fleet in `dir` down once `leash` is free, and then removes the directory `remove`.
///
/// # Errors
/// If it cannot be started.
pub fn start(leash: &Path, dir: &FleetDir, remove: Option<&Path>) -> anyhow::Result<Identity> {
    let mut command = std::process::Command::new(node::causeway()?);
    command.args(["dev", "sweep", "--leash"]).arg(leash).arg("--fleet").arg(dir.path());
    if let Some(remove) = remove {
        command.arg("--remove").arg(remove);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0).current_dir("/");
    let child = tokio::process::Command::from(command).spawn().context("the sweeper cannot be started")?;
    Identity::of(child.id().context("the sweeper ended at once")?)
}

/// What that process does.
///
/// # Errors
/// If a node cannot be ended or a file not removed.
pub async fn run(leash: &Path, dir: &Path, remove_dir: Option<&Path>) -> anyhow::Result<()> {
    let dir = FleetDir::new(dir)?;
    leash::watch(leash)?.cancelled().await;
    end_nodes(&dir).await?;
    remove(&dir, remove_dir)
}

/// Ends all nodes, also ones started by other processes, and their supervisors.
///
/// # Errors
/// If a node cannot be ended.
pub async fn end_nodes(dir: &FleetDir) -> anyhow::Result<()> {
    let nodes = dir.nodes()?;
    futures::future::try_join_all(nodes.iter().map(local::stop)).await.map(drop)
}

/// Removes everything the fleet made, and the directory `whole` with all that is in it. Without one, the fleet's own directory, which
/// somebody else made, is given back without the fleet's files.
///
/// # Errors
/// Naming the file.
pub fn remove(dir: &FleetDir, whole: Option<&Path>) -> anyhow::Result<()> {
    if let Some(whole) = whole {
        return remove_dir(whole);
    }
    for node in dir.nodes()? {
        remove_dir(node.path())?;
    }
    prepare::remove_fleet(dir)?;
    make_private_dir(dir.path())
}
