//! Machines that fail their node: a clock that is off, a disk that is full.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use causeway_tests_integration::client::{TestClient, exchange_all};
use causeway_tests_integration::cluster::{Cluster, wait_for};
use causeway_tests_integration::logs::Expected;
use causeway_tests_integration::programs::Programs;

use crate::startup_errors::{another_by, field, refused};

/// Where distributions put the library that shifts a process's clock.
const FAKETIME: [&str; 3] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketime.so.1",
    "/usr/lib/faketime/libfaketime.so.1",
];
/// A node notices that its disk is full at the next entry of the log, and says so within a heartbeat or two.
const NOTICED: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_clock_is_hours_off_says_so_and_ends() -> anyhow::Result<()> {
    let Some(library) = FAKETIME.into_iter().find(|path| Path::new(path).exists()) else {
        println!("skipped: libfaketime is not installed");
        return Ok(());
    };
    let cluster = Cluster::start(3, 1, &[]).await?;
    let mut clients = vec![TestClient::connect(&cluster, "a-1").await?, TestClient::connect(&cluster, "b-1").await?];
    for (shift, direction) in [("+3h", "ahead of"), ("-3h", "behind")] {
        let mut command = tokio::process::Command::new(cluster.programs().causewayd());
        // Only the wall clock: timers run on as they would on that machine.
        command.env("LD_PRELOAD", library).env("FAKETIME", shift).env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        let fresh = field("data_dir", &cluster.dir().join(direction.replace(' ', "-")));
        let node = another_by(&cluster, command, "b-1", &["name=\"d-1\"".to_owned(), fresh])?;
        refused(node, &["clock", direction]).await?;
        for name in ["a-1", "b-1", "c-1"] {
            let status = cluster.causeway_json(name, &["cluster", "status"]).await?;
            let listed = status["nodes"].as_array().context("nodes")?.len();
            ensure!(listed == 3 && status["healthy"] == true, "{name} takes note of a node with a wrong clock: {status}");
        }
    }
    exchange_all(&mut clients, "after a stranger with a wrong clock").await?;
    let raft = cluster.causeway_json("a-1", &["raft", "status"]).await?;
    ensure!(raft["members"].as_array().is_some_and(|members| members.len() == 3), "it was never taken in: {raft}");
    drop(clients);
    cluster.finish(&["a-1", "b-1", "c-1"], &Expected::default()).await
}

/// Whether this process may mount, in a mount namespace of its own.
fn may_mount() -> bool {
    let tried = Command::new("unshare").args(["--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]).stderr(Stdio::null()).status();
    tried.is_ok_and(|status| status.success())
}

/// A program that becomes `causewayd`; the data directory of node `c-1` is a disk of 1 MiB that only it sees.
fn with_a_small_disk(dir: &Path) -> anyhow::Result<PathBuf> {
    let program = dir.join("causewayd-on-a-small-disk");
    let causewayd = Programs::get()?.causewayd();
    let script = format!(
        "#!/bin/sh\nset -eu\ncase \"$2\" in\n*/c-1/node.toml)\n  data=\"${{2%/node.toml}}/data\"\n  mkdir -p \"$data\"\n  \
         exec unshare --mount sh -c 'mount -t tmpfs -o size=1m,mode=700 tmpfs \"$1\"; shift; exec \"$@\"' sh \"$data\" '{0}' \"$@\" ;;\n\
         *) exec '{0}' \"$@\" ;;\nesac\n",
        causewayd.display()
    );
    std::fs::write(&program, script)?;
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o700))?;
    Ok(program)
}

/// Writes until the disk has no room; returns how much that took.
fn fill(file: &mut File) -> usize {
    let mut written = 0;
    for size in [64 << 10, 4 << 10, 64, 1] {
        let block = vec![0; size];
        while file.write_all(&block).is_ok() {
            written += size;
        }
    }
    written
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_a_full_disk_relays_on_without_raft_and_says_so() -> anyhow::Result<()> {
    if !may_mount() {
        println!("skipped: no right to mount");
        return Ok(());
    }
    let scripts = tempfile::tempdir()?;
    let arguments = ["--regions", "3", "--nodes-per-region", "1"].map(str::to_owned);
    let cluster = Cluster::start_as(Some(&with_a_small_disk(scripts.path())?), &arguments).await?;
    let mut clients = Vec::new();
    for node in ["a-1", "b-1", "c-1"] {
        clients.push(TestClient::connect(&cluster, node).await?);
    }
    exchange_all(&mut clients, "with room on the disk").await?;

    let (pid, _) = cluster.node_process("c-1")?;
    let data = cluster.node("c-1").data_dir.strip_prefix("/")?.to_owned();
    let filler = Path::new("/proc").join(pid.to_string()).join("root").join(data).join("filler");
    let mut filler = OpenOptions::new().write(true).create_new(true).open(&filler).context("the node's own disk")?;
    ensure!(fill(&mut filler) > 0, "the disk was full before");
    // Every login is an entry of the log; the last page of its file may hold some more of them.
    let why = wait_for("c-1 to leave Raft", NOTICED, async || {
        TestClient::connect(&cluster, "a-1").await?.close().await;
        let status = cluster.causeway_json("c-1", &["raft", "status"]).await?;
        Ok(status["stopped_because"].as_str().filter(|why| !why.is_empty()).map(str::to_owned))
    })
    .await?;
    ensure!(why.contains("No space left on device"), "the status does not say that the disk is full: {why}");
    let status = cluster.causeway_json("c-1", &["cluster", "status"]).await?;
    ensure!(status["problems"].to_string().contains("left raft"), "the status does not say what is lost: {status}");
    ensure!(cluster.metrics("c-1").await?.sum("causeway_raft_stopped", &[]) == Some(1.0), "the metric says so");

    // It relays on, and takes new clients.
    clients.push(TestClient::connect(&cluster, "c-1").await?);
    exchange_all(&mut clients, "with a full disk").await?;

    // A start on the full disk fails, and names the directory; nobody else is touched.
    drop(clients.pop());
    let enter = format!("--target={pid}");
    let mut command = tokio::process::Command::new("nsenter");
    command.args([&enter, "--mount"]).arg(cluster.programs().causewayd());
    let fresh = cluster.node("c-1").data_dir.join("fresh");
    let another = another_by(&cluster, command, "c-1", &["name=\"d-1\"".to_owned(), field("data_dir", &fresh)])?;
    refused(another, &["fresh", "space"]).await?;

    drop((clients, filler));
    // The log's library reports its disk, and at the end that its writer has gone.
    let expected = Expected::default()
        .line("FlushWorker failed: No space left on device")
        .line("raft has ended on this node")
        .line("ChunkedWal shutdown failed: Failed to send");
    cluster.finish(&["a-1", "b-1"], &expected).await
}
