//! Nodes that must not run: each ends with a sentence that names the thing, and harms nobody. What needs no fleet is tested with `causewayd`
//! itself, in `node/tests/process.rs`.

use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use causeway_proto::key::MeshKey;
use causeway_tests_integration::client::{TestClient, exchange_all};
use causeway_tests_integration::cluster::{Cluster, wait_for};
use causeway_tests_integration::files::{copy_files, files_below, write_private};
use causeway_tests_integration::logs::Expected;
use tokio::process::Command;

/// A node that must not run has ended by then.
const ENDED: Duration = Duration::from_secs(30);

/// Starts `causewayd` with the configuration of `node`, every port anew, and `sets` on top.
fn another(cluster: &Cluster, node: &str, sets: &[String]) -> anyhow::Result<tokio::process::Child> {
    another_by(cluster, Command::new(cluster.programs().causewayd()), node, sets)
}

/// As [`another`], by a command that becomes `causewayd`.
pub(crate) fn another_by(
    cluster: &Cluster,
    mut command: Command,
    node: &str,
    sets: &[String],
) -> anyhow::Result<tokio::process::Child> {
    command.arg("--config").arg(cluster.node_dir(node).join("node.toml"));
    let socket = format!("operator.socket=\"{}\"", cluster.dir().join("another/operator.sock").display());
    let ports = ["derp.listen", "derp.plain_http_listen", "stun.listen", "mesh.listen", "metrics.listen"];
    for set in ports.map(|field| format!("{field}=\"127.0.0.1:0\"")).iter().chain([&socket]).chain(sets) {
        command.arg("--set").arg(set);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command.spawn().context("start causewayd")
}

/// Waits until it ends by itself, in failure, and gives what it said.
pub(crate) async fn refused(process: tokio::process::Child, named: &[&str]) -> anyhow::Result<()> {
    let Output { status, stdout, stderr } =
        tokio::time::timeout(ENDED, process.wait_with_output()).await.context("it runs on as if nothing were wrong")??;
    let said = format!("{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    ensure!(status.code().is_some_and(|code| code != 0), "it ended with {status}: {said}");
    for word in named {
        ensure!(said.contains(word), "`{word}` is not in what it said: {said}");
    }
    Ok(())
}

pub(crate) fn field(name: &str, value: &Path) -> String {
    format!("{name}=\"{}\"", value.display())
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_and_doubles_are_refused_and_the_fleet_goes_on() -> anyhow::Result<()> {
    let cluster = Cluster::start(3, 1, &[]).await?;
    let nodes = ["a-1", "b-1", "c-1"];
    let data_dir = cluster.node("b-1").data_dir.clone();

    // Its directory is in use.
    refused(another(&cluster, "b-1", &[])?, &["in use", &data_dir.display().to_string()]).await?;
    // Its directory is another node's.
    cluster.stop("c-1").await?;
    let foreign = field("data_dir", &cluster.node("c-1").data_dir);
    refused(another(&cluster, "b-1", &[foreign])?, &["c-1", "b-1", "data_dir"]).await?;
    cluster.start_node("c-1").await?;
    // A port is taken.
    let taken = format!("derp.listen=\"{}\"", cluster.node("a-1").derp);
    let fresh = field("data_dir", &cluster.dir().join("fresh"));
    refused(another(&cluster, "b-1", &[taken, fresh])?, &["derp.listen", &cluster.node("a-1").derp]).await?;
    // Another mesh key: the fleet is not its fleet.
    let key_file = cluster.dir().join("other.key");
    let key = MeshKey::generate().expose_hex();
    write_private(&key_file, &key)?;
    let stranger_dir = field("data_dir", &cluster.dir().join("stranger"));
    let sets = ["name=\"d-1\"".to_owned(), field("mesh_key_file", &key_file), stranger_dir];
    refused(another(&cluster, "b-1", &sets)?, &["mesh key"]).await?;

    // Beside a seed that says nothing, which may be of its fleet, it waits, and operators see what for.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let seed = format!("discovery.static=[\"{}\"]", silent.local_addr()?);
    let waits_dir = field("data_dir", &cluster.dir().join("waits"));
    let mut waits = another(&cluster, "b-1", &["name=\"d-1\"".to_owned(), field("mesh_key_file", &key_file), waits_dir, seed])?;
    let socket = cluster.dir().join("another/operator.sock");
    wait_for("why it is not ready", Duration::from_secs(20), async || {
        let get = Command::new(cluster.programs().causeway()).arg("--socket").arg(&socket).args(["node", "get"]).output().await?;
        let said = String::from_utf8_lossy(&get.stdout).into_owned();
        Ok((said.contains("not ready") && said.contains("mesh_key_file: wrong mesh key")).then_some(()))
    })
    .await?;
    waits.kill().await?;

    cluster.wait_healthy("a-1", Duration::from_secs(20)).await?;
    let mut clients = Vec::new();
    for node in nodes {
        clients.push(TestClient::connect(&cluster, node).await?);
    }
    exchange_all(&mut clients, "after all that").await?;
    drop(clients);
    let expected = Expected::default().line("refused a node on the mesh port");
    cluster.finish(&nodes, &expected).await
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_node_and_its_copy_only_one_runs_on() -> anyhow::Result<()> {
    let cluster = Cluster::start(3, 1, &[]).await?;
    cluster.stop("c-1").await?;
    let copy = cluster.dir().join("copy");
    copy_files(&cluster.node("c-1").data_dir, &copy, |_| true)?;
    cluster.start_node("c-1").await?;
    cluster.wait_healthy("a-1", Duration::from_secs(20)).await?;

    // The copy begins with an epoch that the fleet has seen. Whoever learns of a higher one than its own under its own name ends.
    let mut double = another(&cluster, "c-1", &[field("data_dir", &copy)])?;
    let (original, _) = cluster.node_process("c-1")?;
    let ended = tokio::time::timeout(ENDED, async {
        let mut ticks = tokio::time::interval(Duration::from_millis(50));
        loop {
            ticks.tick().await;
            if let Some(status) = double.try_wait()? {
                return anyhow::Ok(Some(status));
            }
            if std::fs::read_to_string(format!("/proc/{original}/comm")).is_err() {
                return Ok(None);
            }
        }
    });
    match ended.await.context("both run on")?? {
        Some(status) => {
            let said = double.wait_with_output().await?;
            let said = format!("{}{}", String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
            ensure!(
                !status.success() && said.contains("data directory") && said.contains("cop"),
                "the copy ended with {status}: {said}"
            );
        }
        None => {
            let said = std::fs::read_to_string(&cluster.node("c-1").log)?;
            ensure!(said.contains("data directory was copied"), "the original ended without saying why: {said}");
            double.kill().await?;
        }
    }
    let mut clients = vec![TestClient::connect(&cluster, "a-1").await?, TestClient::connect(&cluster, "b-1").await?];
    exchange_all(&mut clients, "the others").await?;
    drop(clients);
    let expected = Expected::default()
        .line("this node must stop reason=another process runs as this node")
        .line("a peer knows a higher epoch of this node")
        .line("refused a watch stream");
    cluster.finish(&["a-1", "b-1"], &expected).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_log_is_named_and_never_believed() -> anyhow::Result<()> {
    let cluster = Cluster::start(3, 1, &[]).await?;
    let client = TestClient::connect(&cluster, "a-1").await?;
    cluster.wait_held(&["a-1", "b-1", "c-1"], client.key(), "a-1", Duration::from_secs(5)).await?;
    cluster.stop("c-1").await?;
    let logs = files_below(&cluster.node("c-1").data_dir.join("raft"))?;
    let log = logs
        .into_iter()
        .filter(|file| file.to_string_lossy().contains("wal"))
        .max_by_key(|file| file.metadata().map_or(0, |m| m.len()));
    let log = log.context("the node keeps a log")?;
    let mut bytes = std::fs::read(&log)?;
    let middle = bytes.len() / 2;
    for byte in &mut bytes[middle..middle + 16] {
        *byte ^= 0x5a;
    }
    std::fs::write(&log, bytes)?;

    let started = cluster.start_node("c-1").await;
    let said = std::fs::read_to_string(&cluster.node("c-1").log)?;
    match started {
        // It refuses to start, and says what is damaged.
        Err(error) => ensure!(format!("{error:#}{said}").contains("raft"), "it does not say what is damaged: {error:#}"),
        // Or it relays on without Raft, and says so.
        Ok(()) => {
            let status = cluster.causeway_json("c-1", &["raft", "status"]).await?;
            ensure!(status["stopped_because"].as_str().is_some_and(|why| !why.is_empty()), "it believes a damaged log: {status}");
        }
    }
    let mut clients = vec![client, TestClient::connect(&cluster, "b-1").await?];
    exchange_all(&mut clients, "the others").await?;
    drop(clients);
    // The log's library names the place before the node names the file.
    let expected = Expected::default().line("ERROR chunked_wal::chunk: ");
    cluster.finish(&["a-1", "b-1"], &expected).await
}
