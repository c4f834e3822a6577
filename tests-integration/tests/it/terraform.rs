//! `terraform apply` of `terraform/fleets/local`, for real: apply, an empty second plan, packets, destroy without a trace.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use causeway_client::{ClientBuilder, Event, Trust, load_map};
use causeway_proto::derpmap::DerpMap;
use causeway_proto::id::RegionId;
use causeway_proto::key::NodePrivate;
use causeway_tests_integration::client::SETTLE;
use causeway_tests_integration::cluster::{Turn, wait_for};
use causeway_tests_integration::files::{copy_files, files_below};
use causeway_tests_integration::programs::{Programs, repository};
use serde_json::Value;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// A working copy of the local root, with everything Terraform writes inside a directory of its own.
struct Workspace {
    terraform: &'static str,
    programs: Programs,
    dir: TempDir,
    network: String,
    _turn: Turn,
}

impl Workspace {
    /// `None` where neither Terraform nor OpenTofu is installed.
    async fn new() -> anyhow::Result<Option<Self>> {
        let installed = ["terraform", "tofu"].into_iter().find(|program| Command::new(program).arg("version").output().is_ok());
        let Some(terraform) = installed else {
            println!("skipped: neither terraform nor tofu is installed");
            return Ok(None);
        };
        let dir = tempfile::Builder::new().prefix("cwtf").tempdir()?;
        let is_hcl = |file: &Path| file.extension().is_some_and(|extension| extension == "tf");
        let is_ours = |file: &Path| is_hcl(file) && !file.components().any(|part| part.as_os_str() == ".terraform");
        copy_files(&repository().join("terraform"), &dir.path().join("terraform"), is_ours)?;
        // A demo on the same machine must not share addresses.
        let network = format!("127.{}.0.0/16", 100 + std::process::id() % 100);
        Ok(Some(Self { terraform, programs: Programs::get()?, dir, network, _turn: Turn::take().await? }))
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("terraform/fleets/local")
    }

    fn state_dir(&self) -> PathBuf {
        self.dir.path().join("fleet")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let cli = serde_json::json!({ "path": self.programs.causeway() });
        let mut command = Command::new(self.terraform);
        command
            .arg(format!("-chdir={}", self.root().display()))
            .args(arguments)
            .env("CHECKPOINT_DISABLE", "1")
            .env("TF_IN_AUTOMATION", "1")
            .env("TF_CLI_CONFIG_FILE", "/dev/null")
            .env("TF_VAR_cli", cli.to_string())
            .env("TF_VAR_state_dir", self.state_dir())
            .env("TF_VAR_network", &self.network)
            .stdin(Stdio::null());
        command
    }

    fn succeed(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = self.command(arguments).output()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success(), "terraform {arguments:?}: {said}{}", String::from_utf8_lossy(&output.stderr));
        Ok(said)
    }

    fn apply(&self, variables: &[&str]) -> anyhow::Result<String> {
        self.succeed(&[&["apply", "-auto-approve", "-input=false", "-no-color", "-parallelism=20"], variables].concat())
    }

    fn plan_is_empty(&self, variables: &[&str]) -> anyhow::Result<()> {
        let output =
            self.command(&[&["plan", "-detailed-exitcode", "-input=false", "-no-color"], variables].concat()).output()?;
        ensure!(output.status.code() == Some(0), "the plan is not empty: {}", String::from_utf8_lossy(&output.stdout));
        Ok(())
    }

    fn outputs(&self) -> anyhow::Result<BTreeMap<String, Value>> {
        let all: BTreeMap<String, Value> = serde_json::from_str(&self.succeed(&["output", "-json"])?)?;
        Ok(all.into_iter().map(|(name, output)| (name, output["value"].clone())).collect())
    }

    /// Node name to process id, of the nodes that run.
    fn running(&self) -> anyhow::Result<BTreeMap<String, u64>> {
        let output = Command::new(self.programs.causeway())
            .args(["-o", "json", "local", "list", "--state-dir"])
            .arg(self.state_dir())
            .output()?;
        let nodes: Vec<Value> = serde_json::from_slice(&output.stdout).context("local list")?;
        let running = nodes.iter().filter(|node| node["running"] == true);
        Ok(running.filter_map(|node| Some((node["name"].as_str()?.to_owned(), node["pid"].as_u64()?))).collect())
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        // Also where Terraform itself is broken.
        let clean = Command::new(self.programs.causeway()).args(["local", "clean", "--state-dir"]).arg(self.state_dir()).output();
        drop(clean);
    }
}

/// Every file below `dir` that holds `needle`.
fn files_holding(dir: &Path, needle: &str) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for file in files_below(dir)? {
        if String::from_utf8_lossy(&std::fs::read(&file)?).contains(needle) {
            found.push(file);
        }
    }
    Ok(found)
}

async fn packet_across(map: &DerpMap, trust: &Trust, from: RegionId, to: RegionId) -> anyhow::Result<()> {
    let (tasks, cancel) = (TaskTracker::new(), CancellationToken::new());
    let map = std::sync::Arc::new(map.clone());
    let connect = async |key: &NodePrivate, region| {
        let builder = ClientBuilder::new(key.clone()).region(map.clone(), region).trust(trust.clone());
        builder.connect(&tasks, &cancel).await
    };
    let (sender_key, receiver_key) = (NodePrivate::generate(), NodePrivate::generate());
    let sender = connect(&sender_key, from).await?;
    let receiver = connect(&receiver_key, to).await?;
    let (sender, _sender_events) = sender.split();
    let (_sender, mut receiver) = receiver.split();
    tokio::time::sleep(SETTLE).await;
    sender.send(&receiver_key.public(), b"across").await?;
    let wait = async {
        loop {
            if let Event::Packet { src, payload } = receiver.recv().await? {
                return anyhow::Ok((src, payload));
            }
        }
    };
    let (src, payload) = tokio::time::timeout(Duration::from_secs(5), wait).await.context("no packet came")??;
    ensure!(src == sender_key.public() && payload[..] == b"across"[..], "wrong packet");
    cancel.cancel();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_local_fleet_is_applied_unchanged_by_a_second_plan_and_destroyed_without_a_trace() -> anyhow::Result<()> {
    let Some(workspace) = Workspace::new().await? else { return Ok(()) };
    let init = workspace.succeed(&["init", "-input=false", "-no-color"])?;
    ensure!(!workspace.root().join(".terraform.lock.hcl").exists(), "nothing was to be downloaded: {init}");
    let mut printed = workspace.apply(&[])?;
    let pids = workspace.running()?;
    ensure!(pids.len() == 6, "six nodes run: {pids:?}");
    workspace.plan_is_empty(&[])?;
    ensure!(workspace.running()? == pids, "a plan touches nothing");

    let outputs = workspace.outputs()?;
    let text = |name: &str| outputs.get(name).and_then(Value::as_str).with_context(|| format!("output {name}"));
    let trust = Trust::ca_file(text("ca_file")?)?;
    let served = load_map(text("derpmap_url")?, Some(&trust)).await?;
    let planned = DerpMap::from_json(text("derp_map_json")?.as_bytes())?;
    assert_eq!(served.regions, planned.regions, "the map the fleet serves is the map that was planned");
    packet_across(&served, &trust, RegionId(901), RegionId(903)).await?;
    let sockets = outputs["operator_sockets"].as_object().context("operator_sockets")?;
    for (node, socket) in sockets {
        let socket = socket.as_str().context("path")?;
        let status = Command::new(workspace.programs.causeway()).args(["--socket", socket, "cluster", "status"]).output()?;
        ensure!(status.status.success(), "{node}: {}", String::from_utf8_lossy(&status.stderr));
    }

    // A setting changes every process and no identity.
    let ids = |workspace: &Workspace| -> anyhow::Result<Value> {
        let status: Value = serde_json::from_str(&std::fs::read_to_string(workspace.state_dir().join("status.json"))?)?;
        let nodes = status["nodes"].as_array().context("nodes")?;
        Ok(nodes.iter().map(|node| serde_json::json!([node["name"], node["node_id"]])).collect())
    };
    let before = ids(&workspace)?;
    let set = ["-var", "set=[\"log.format=\\\"json\\\"\"]"];
    printed += &workspace.apply(&set)?;
    workspace.plan_is_empty(&set)?;
    assert_eq!(ids(&workspace)?, before, "nodes keep their identity");
    let restarted = workspace.running()?;
    ensure!(
        restarted.len() == 6 && restarted.iter().all(|(name, pid)| pids[name] != *pid),
        "every process is new: {restarted:?}"
    );

    // The mesh key is in its file and nowhere else: not in the state, not in an output, not in a log.
    let mesh_key_file = workspace.state_dir().join("mesh.key");
    let mesh_key = std::fs::read_to_string(&mesh_key_file)?.trim().to_owned();
    ensure!(mesh_key.len() == 64);
    assert_eq!(files_holding(workspace.dir.path(), &mesh_key)?, [mesh_key_file]);
    ensure!(!printed.contains(&mesh_key), "Terraform printed the mesh key");

    workspace.succeed(&["destroy", "-auto-approve", "-input=false", "-no-color", "-parallelism=20"])?;
    for pid in restarted.values() {
        // Ended, but perhaps not yet collected by its parent.
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        ensure!(!stat.contains("(causewayd)") || stat.contains(") Z "), "process {pid} still runs");
    }
    ensure!(!workspace.state_dir().exists(), "files are left in {}", workspace.state_dir().display());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_apply_that_was_killed_is_repaired_by_the_next_and_a_region_more_touches_nobody() -> anyhow::Result<()> {
    let Some(workspace) = Workspace::new().await? else { return Ok(()) };
    workspace.succeed(&["init", "-input=false", "-no-color"])?;
    let region =
        |code: &str, id: u32, voters: u32| format!("{code}={{derp_region_id={id},title=\"{code}\",nodes=1,voters={voters}}}");
    let two = format!("regions={{{},{}}}", region("fra", 901, 1), region("nyc", 902, 0));
    let three = format!("regions={{{},{},{}}}", region("fra", 901, 1), region("nyc", 902, 0), region("sin", 903, 0));

    // Killed in the middle: as soon as the first node's files are there.
    let mut apply = workspace
        .command(&["apply", "-auto-approve", "-input=false", "-no-color", "-var", &two])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let first = workspace.state_dir().join("fra-1/node.json");
    wait_for("the first node to start", Duration::from_secs(30), async || Ok(first.exists().then_some(()))).await?;
    apply.kill()?;
    apply.wait()?;

    workspace.apply(&["-var", &two])?;
    workspace.plan_is_empty(&["-var", &two])?;
    let before = workspace.running()?;
    ensure!(before.len() == 2, "both nodes run: {before:?}");
    workspace.apply(&["-var", &three])?;
    let mut after = workspace.running()?;
    ensure!(after.remove("sin-1").is_some(), "the new region runs");
    assert_eq!(after, before, "the others were not touched");
    workspace.succeed(&["destroy", "-auto-approve", "-input=false", "-no-color", "-var", &three])?;
    ensure!(!workspace.state_dir().exists(), "files are left in {}", workspace.state_dir().display());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_map_is_made_as_the_variable_says() -> anyhow::Result<()> {
    let Some(workspace) = Workspace::new().await? else { return Ok(()) };
    workspace.succeed(&["init", "-input=false", "-no-color"])?;
    let regions =
        "regions={fra={derp_region_id=901,title=\"fra\",nodes=1,voters=1},nyc={derp_region_id=902,title=\"nyc\",nodes=1}}";
    let with = |settings: &str| [String::from("-var"), regions.to_owned(), String::from("-var"), format!("derp_map={settings}")];
    let cross_listed = with("{mode=\"cross-listed\",grace_seconds=60,regions={fra={score=0.8}}}");
    let cross_listed = cross_listed.each_ref().map(String::as_str);
    workspace.apply(&cross_listed)?;
    workspace.plan_is_empty(&cross_listed)?;
    let outputs = workspace.outputs()?;
    let text = |name: &str| outputs.get(name).and_then(Value::as_str).with_context(|| format!("output {name}"));
    ensure!(text("derp_map_json").is_err(), "only the fleet knows the map");
    let (url, trust) = (text("derpmap_url")?.to_owned(), Trust::ca_file(text("ca_file")?)?);
    let wait_names = async |wanted: &[&str]| {
        wait_for("the map", Duration::from_secs(10), async || {
            let map = load_map(&url, Some(&trust)).await?;
            let names: Vec<String> = map.regions[&RegionId(901)].nodes.iter().map(|node| node.name.clone()).collect();
            Ok((names == wanted).then_some(map))
        })
        .await
    };
    let map = wait_names(&["fra-1", "nyc-1@901"]).await?;
    let scores = map.home_params.and_then(|params| params.region_score).context("scores")?;
    assert_eq!(scores.into_iter().collect::<Vec<_>>(), [(RegionId(901), 0.8)]);
    let pids = workspace.running()?;

    let plain = with("{}");
    let plain = plain.each_ref().map(String::as_str);
    workspace.apply(&plain)?;
    workspace.plan_is_empty(&plain)?;
    wait_names(&["fra-1"]).await?;
    assert_eq!(workspace.running()?, pids, "no node is touched");

    // What the fleet refuses, Terraform tells; the settings in force stay.
    let refused = with("{regions={nyc={mode=\"balanced\"}}}");
    let output = workspace.command(&["apply", "-auto-approve", "-input=false", "-no-color"]).args(&refused).output()?;
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(!output.status.success() && said.contains("regions.902.balancer: is missing"), "{said}");
    workspace.apply(&plain)?;
    wait_names(&["fra-1"]).await?;
    workspace.succeed(&["destroy", "-auto-approve", "-input=false", "-no-color", "-var", regions])?;
    ensure!(!workspace.state_dir().exists(), "files are left in {}", workspace.state_dir().display());
    Ok(())
}
