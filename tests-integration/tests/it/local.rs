//! `causeway local`: nodes in the background, as Terraform runs them.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use causeway_tests_integration::cluster::{Turn, wait_for};
use causeway_tests_integration::programs::Programs;
use serde_json::{Value, json};
use tempfile::TempDir;

const WAIT: Duration = Duration::from_secs(60);

struct Local {
    programs: Programs,
    base: TempDir,
    _turn: Turn,
}

impl Local {
    async fn new() -> anyhow::Result<Self> {
        let base = tempfile::Builder::new().prefix("cwlocal").tempdir()?;
        Ok(Self { programs: Programs::get()?, base, _turn: Turn::take().await? })
    }

    fn dir(&self) -> PathBuf {
        self.base.path().join("fleet")
    }

    fn command(&self, action: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.programs.causeway());
        command.args(["-o", "json", "local", action, "--state-dir"]).arg(self.dir()).args(arguments).stdin(Stdio::null());
        command
    }

    fn run(&self, action: &str, arguments: &[&str]) -> anyhow::Result<Value> {
        let output = self.command(action, arguments).output()?;
        ensure!(output.status.success(), "local {action}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    fn start(&self, name: &str, region: u64) -> anyhow::Result<Value> {
        self.run("start", &["--config", &config(name, region).to_string()])
    }

    fn node(&self, name: &str) -> anyhow::Result<Value> {
        let nodes = self.run("list", &[])?;
        let found = nodes.as_array().into_iter().flatten().find(|node| node["name"] == name);
        found.cloned().with_context(|| format!("{name} is not listed"))
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        drop(self.command("clean", &[]).output());
    }
}

fn config(name: &str, region: u64) -> Value {
    json!({ "name": name, "region": { "id": region, "code": format!("r{region}") }, "bind": "127.0.0.1" })
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn kill(pid: &Value) -> anyhow::Result<()> {
    let pid = i32::try_from(pid.as_i64().context("pid")?)?;
    let pid = rustix::process::Pid::from_raw(pid).context("pid")?;
    Ok(rustix::process::kill_process(pid, rustix::process::Signal::KILL)?)
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_start_form_a_fleet_come_back_after_a_crash_and_leave_without_a_trace() -> anyhow::Result<()> {
    let local = Local::new().await?;
    let first = local.start("r1-1", 901)?;
    local.start("r2-1", 902)?;
    ensure!(first["running"] == true && first["supervised"] == true, "{first}");
    let unformed = local.command("status", &["--wait", "healthy=1ms"]).output()?;
    ensure!(unformed.status.code() == Some(1), "a fleet that is not formed is not healthy");

    let formed = local.run("init", &["--wait", "60s"])?;
    ensure!(formed["healthy"] == true && formed["nodes"].as_array().map(Vec::len) == Some(2), "{formed}");
    let again = local.run("init", &["--wait", "60s"])?;
    ensure!(again["fleet_id"] == formed["fleet_id"], "a second init changes nothing");

    // Started again while it runs: the old process ends first, identity and ports stay.
    let restarted = local.start("r1-1", 901)?;
    for kept in ["node_id", "derp", "mesh", "metrics"] {
        ensure!(restarted[kept] == first[kept], "{kept}: {restarted} {first}");
    }
    ensure!(restarted["pid"] != first["pid"]);

    // A crash: the supervisor starts it again.
    kill(&restarted["pid"])?;
    wait_for("the supervisor to start the node again", WAIT, async || {
        let node = local.node("r1-1")?;
        Ok((node["running"] == true && node["pid"] != restarted["pid"]).then_some(()))
    })
    .await?;
    let file = local.base.path().join("status.json");
    let file_text = file.to_str().context("path")?;
    let status = local.run("status", &["--json", "--wait", "healthy=60s", "--file", file_text])?;
    ensure!(status["healthy"] == true && status["leader"] == "r1-1", "{status}");
    let written: Value = serde_json::from_str(&std::fs::read_to_string(&file)?)?;
    ensure!(written["fleet_id"] == formed["fleet_id"]);

    // A node never outlives its supervisor.
    let supervisor: Value = serde_json::from_str(&std::fs::read_to_string(local.dir().join("r2-1/supervisor.json"))?)?;
    kill(&supervisor["pid"])?;
    wait_for("the node to end with its supervisor", WAIT, async || Ok((local.node("r2-1")?["running"] == false).then_some(())))
        .await?;

    local.run("stop", &["--node", "r1-1"])?;
    ensure!(local.node("r1-1")?["running"] == false);
    for name in ["r1-1", "r2-1", "r2-1"] {
        local.run("stop", &["--node", name, "--remove"])?;
    }
    ensure!(!local.dir().exists(), "the last node takes the fleet's files with it");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_node_is_refused_with_the_end_of_its_log_and_nothing_runs() -> anyhow::Result<()> {
    let local = Local::new().await?;
    let mut wrong = config("r1-1", 901);
    wrong["set"] = json!(["limits.nonsense=1"]);
    let refused = local.command("start", &["--config", &wrong.to_string()]).output()?;
    ensure!(refused.status.code() == Some(1) && said(&refused).contains("nonsense"), "{}", said(&refused));
    ensure!(local.node("r1-1")?["supervised"] == false, "a node that never served is not started again");
    let unknown = local.command("start", &["--config", r#"{"name":"x","colour":1}"#]).output()?;
    ensure!(unknown.status.code() == Some(2) && said(&unknown).contains("colour"), "{}", said(&unknown));

    let leash = local.base.path().join("leash");
    std::fs::write(&leash, "")?;
    let text = config("r1-1", 901).to_string();
    let free = local.command("start", &["--config", &text, "--leash"]).arg(&leash).output()?;
    ensure!(free.status.code() == Some(1) && said(&free).contains("leash"), "{}", said(&free));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_on_a_leash_ends_with_its_holder() -> anyhow::Result<()> {
    let local = Local::new().await?;
    let leash = local.base.path().join("leash");
    let held = std::fs::File::create(&leash)?;
    rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive)?;
    let text = config("r1-1", 901).to_string();
    let started = local.command("start", &["--config", &text, "--leash"]).arg(&leash).output()?;
    ensure!(started.status.success(), "{}", said(&started));
    drop(held);
    wait_for("node and supervisor to end", WAIT, async || {
        let node = local.node("r1-1")?;
        Ok((node["running"] == false && node["supervised"] == false).then_some(()))
    })
    .await?;
    Ok(())
}
