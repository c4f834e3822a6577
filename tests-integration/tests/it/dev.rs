//! `causeway dev` itself: acting on nodes, and what is left when it ends, however it ends.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use causeway_tests_integration::cluster::{Turn, wait_for};
use causeway_tests_integration::programs::Programs;
use serde_json::Value;
use tempfile::TempDir;

const START: Duration = Duration::from_secs(90);
const END: Duration = Duration::from_secs(30);

/// A `causeway dev` whose directory and ready file the test looks into.
struct Dev {
    programs: Programs,
    process: Child,
    base: TempDir,
    ready: Value,
    _turn: Turn,
}

impl Dev {
    async fn start(arguments: &[&str]) -> anyhow::Result<Self> {
        let programs = Programs::get()?;
        let turn = Turn::take().await?;
        let base = tempfile::Builder::new().prefix("cwdev").tempdir()?;
        let file = base.path().join("ready.json");
        let log = std::fs::File::create(base.path().join("said"))?;
        let mut process = Command::new(programs.causeway())
            .args(["-o", "json", "dev", "--ready-file"])
            .arg(&file)
            .arg("--dir")
            .arg(base.path().join("fleet"))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let said = base.path().join("said");
        let up = wait_for("the fleet", START, async || {
            ensure!(process.try_wait()?.is_none(), "it ended: {}", std::fs::read_to_string(&said)?);
            Ok(file.exists().then_some(()))
        });
        if let Err(error) = up.await {
            drop(process.kill());
            return Err(error.context(std::fs::read_to_string(&said)?));
        }
        let ready = read(&file)?;
        Ok(Self { programs, process, base, ready, _turn: turn })
    }

    fn dir(&self) -> std::path::PathBuf {
        self.base.path().join("fleet")
    }

    fn act(&self, action: &str, node: &str) -> anyhow::Result<(i32, Value, String)> {
        let output =
            Command::new(self.programs.causeway()).args(["-o", "json", "dev", action, node, "--dir"]).arg(self.dir()).output()?;
        let value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        Ok((output.status.code().context("a signal")?, value, String::from_utf8_lossy(&output.stderr).into_owned()))
    }

    fn pids(&self) -> Vec<u64> {
        self.ready["nodes"].as_array().into_iter().flatten().filter_map(|node| node["pid"].as_u64()).collect()
    }

    fn said(&self) -> String {
        std::fs::read_to_string(self.base.path().join("said")).unwrap_or_default()
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

fn read(file: &Path) -> anyhow::Result<Value> {
    Ok(serde_json::from_str(&std::fs::read_to_string(file)?)?)
}

/// Whether a node runs under this number; a zombie is dead.
fn runs(pid: u64) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.contains("(causewayd)") && !stat.contains(") Z ")
}

fn send(signal: rustix::process::Signal, process: &Child) -> anyhow::Result<()> {
    let pid = rustix::process::Pid::from_child(process);
    Ok(rustix::process::kill_process(pid, signal)?)
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_are_stopped_killed_and_started_and_the_ready_file_follows() -> anyhow::Result<()> {
    let mut dev = Dev::start(&["--regions", "2", "--nodes-per-region", "1"]).await?;
    let (code, answer, why) = dev.act("stop", "b-1")?;
    ensure!(code == 0 && answer["ran"] == true, "{why}");
    ensure!(!runs(dev.pids()[1]), "stop returns when the process is gone");
    let (code, answer, why) = dev.act("stop", "b-1")?;
    ensure!(code == 0 && answer["ran"] == false, "stopping again changes nothing: {why}");

    let (code, started, why) = dev.act("start", "b-1")?;
    ensure!(code == 0, "{why}");
    let before = &dev.ready["nodes"][1];
    for kept in ["node_id", "derp", "stun", "metrics", "plain_http", "operator_socket"] {
        ensure!(started[kept] == before[kept], "{kept}: {} was {}", started[kept], before[kept]);
    }
    ensure!(started["pid"] != before["pid"] && started["derp_public_key"] != before["derp_public_key"]);
    let file = dev.base.path().join("ready.json");
    wait_for("the ready file to follow", END, async || Ok((read(&file)?["nodes"][1] == started).then_some(()))).await?;
    let (code, again, why) = dev.act("start", "b-1")?;
    ensure!(code == 0 && again == started, "starting what runs changes nothing: {why}");

    let (code, answer, why) = dev.act("kill", "b-1")?;
    ensure!(code == 0 && answer["ran"] == true, "{why}");
    let (code, _, why) = dev.act("kill", "c-1")?;
    ensure!(code == 3 && why.contains("a-1, b-1"), "{why}");

    // A node that ends by itself is reported, with the end of its log; the others go on.
    let first = u32::try_from(dev.pids()[0])?;
    let pid = rustix::process::Pid::from_raw(first.cast_signed()).context("pid")?;
    rustix::process::kill_process(pid, rustix::process::Signal::KILL)?;
    wait_for("the report", END, async || Ok(dev.said().contains("node a-1 ended by itself").then_some(()))).await?;
    ensure!(dev.process.try_wait()?.is_none(), "dev goes on: {}", dev.said());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_fleet_leaves_nothing() -> anyhow::Result<()> {
    let mut dev = Dev::start(&["--regions", "1", "--nodes-per-region", "2"]).await?;
    let pids = dev.pids();
    ensure!(pids.len() == 2 && pids.iter().all(|&pid| runs(pid)));
    send(rustix::process::Signal::INT, &dev.process)?;
    let status = wait_for("dev to end", END, async || Ok(dev.process.try_wait()?)).await?;
    ensure!(status.success(), "{status}: {}", dev.said());
    ensure!(pids.iter().all(|&pid| !runs(pid)), "a node is left");
    ensure!(!dev.dir().exists() && !dev.base.path().join("ready.json").exists(), "a file is left");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_fleet_ends_by_itself_and_leaves_nothing() -> anyhow::Result<()> {
    let mut dev = Dev::start(&["--regions", "1", "--nodes-per-region", "2"]).await?;
    // One node was started by another process: the leash holds it as well.
    ensure!(dev.act("stop", "a-2")?.0 == 0);
    let (code, started, why) = dev.act("start", "a-2")?;
    ensure!(code == 0, "{why}");
    let pids = [dev.pids()[0], started["pid"].as_u64().context("pid")?];
    dev.process.kill()?;
    dev.process.wait()?;
    wait_for("the nodes to end", END, async || Ok(pids.iter().all(|&pid| !runs(pid)).then_some(()))).await?;
    let dir = dev.dir();
    wait_for("the files to go", END, async || Ok((!dir.exists()).then_some(()))).await?;
    Ok(())
}
