//! Stock software: Tailscale's own Go client code and its prober, against nodes of one region and of another.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};
use causeway_proto::derpmap::DerpMap;
use causeway_proto::key::MeshKey;
use causeway_tests_integration::cluster::Cluster;
use causeway_tests_integration::files::write_private;
use causeway_tests_integration::go;
use causeway_tests_integration::logs::Expected;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdout};

/// Set by `make soak`: what takes minutes by itself runs as well.
pub(crate) const LONG_VARIABLE: &str = "CAUSEWAY_LONG_TESTS";

/// Builds the scenario runner; `None` where Go is missing.
pub(crate) fn derp_go(into: &Path) -> anyhow::Result<Option<PathBuf>> {
    go::interop_program("derp-go", &["."], into)
}

/// One of two stock clients that run in processes of their own and are told of each other. It is killed on drop.
pub(crate) struct StockClient {
    process: Child,
    output: BufReader<ChildStdout>,
}

impl StockClient {
    /// Starts `scenario` of `derp_go`, which is run as `command` says, with its home and its peer's in `map`.
    pub(crate) fn start(
        mut command: Command,
        cluster: &Cluster,
        map: &Path,
        homes: [&str; 2],
        scenario: &str,
    ) -> anyhow::Result<Self> {
        command.arg("-map").arg(map).arg("-ca").arg(&cluster.ready().ca_file);
        command.args(["-home", homes[0], "-peer-home", homes[1], scenario]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = tokio::process::Command::from(command).kill_on_drop(true).spawn()?;
        let output = BufReader::new(process.stdout.take().context("piped")?);
        Ok(Self { process, output })
    }

    /// What its next line says after `start`.
    pub(crate) async fn line(&mut self, start: &str) -> anyhow::Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line).await?;
        let said = line.trim().strip_prefix(start).map(str::to_owned);
        said.with_context(|| format!("the stock client says {line:?} instead of {start}"))
    }

    /// Tells it the other's key.
    pub(crate) async fn meet(&mut self, peer: &str) -> anyhow::Result<()> {
        let input = self.process.stdin.as_mut().context("piped")?;
        Ok(input.write_all(format!("peer {peer}\n").as_bytes()).await?)
    }

    /// Closes its input. What it says then, and whether it is content.
    pub(crate) async fn end(mut self) -> anyhow::Result<(bool, String)> {
        drop(self.process.stdin.take());
        let mut said = String::new();
        self.output.read_to_string(&mut said).await?;
        Ok((self.process.wait().await?.success(), said))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn interop_stock_go_clients_and_mesh_peers_pass_every_scenario() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let Some(program) = derp_go(dir.path())? else { return Ok(()) };
    let mesh_key_file = dir.path().join("derp-mesh.key");
    write_private(&mesh_key_file, &MeshKey::generate().expose_hex())?;
    let mesh_key = mesh_key_file.to_str().context("path")?;
    let arguments = ["--regions", "2", "--nodes-per-region", "2", "--derp-mesh-key-file", mesh_key];
    let cluster = Cluster::start_with(&arguments.map(str::to_owned)).await?;

    let map_file = dir.path().join("map.json");
    std::fs::write(&map_file, cluster.causeway("a-1", &["-o", "json", "derpmap"]).await?.stdout)?;
    let mut command = tokio::process::Command::new(program);
    command.arg("-map").arg(&map_file).arg("-ca").arg(&cluster.ready().ca_file).arg("-mesh-key-file").arg(&mesh_key_file);
    if std::env::var_os(LONG_VARIABLE).is_some() {
        command.arg("-long");
    }
    let output = command.args(["-strict", "all"]).output().await?;
    let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("{said}");
    ensure!(output.status.success(), "stock clients are not content:\n{said}{errors}");
    let passed = said.lines().filter(|line| line.starts_with("ok ")).count();
    ensure!(passed >= 32, "only {passed} scenarios ran:\n{said}");
    // Scenarios that try a wrong mesh key or misuse frames are worth a warning.
    cluster.finish(&["a-1", "a-2", "b-1", "b-2"], &Expected::default().line("mesh").line("client")).await
}

/// Writes the map of a fleet as the stock prober needs it; names the file.
async fn prober_map(cluster: &Cluster) -> anyhow::Result<PathBuf> {
    let mut map = DerpMap::from_json(&cluster.causeway("a-1", &["-o", "json", "derpmap"]).await?.stdout)?;
    for node in map.regions.values_mut().flat_map(|region| &mut region.nodes) {
        // Its TLS check dials the host name, which therefore DNS must know, and it takes "none" for an address.
        "localhost".clone_into(&mut node.host_name);
        node.ipv6.clear();
    }
    let file = cluster.dir().join("prober-map.json");
    std::fs::write(&file, map.to_json())?;
    Ok(file)
}

// Its queuing delay probe is not here: in this release the program never runs it (it waits for its turn for less than no time). The
// scenario `queuing-delay` above measures the same.
#[tokio::test(flavor = "multi_thread")]
async fn interop_the_stock_prober_finds_nothing_wrong_with_two_nodes_of_a_region() -> anyhow::Result<()> {
    let Some(derpprobe) = go::tailscale_program("derpprobe", Path::new(env!("CARGO_TARGET_TMPDIR")))? else { return Ok(()) };
    let cluster = Cluster::start(1, 2, &[]).await?;
    let map = prober_map(&cluster).await?;
    let size = if std::env::var_os(LONG_VARIABLE).is_some() { "100000000" } else { "1000000" };
    let mut command = tokio::process::Command::new(derpprobe);
    command.args(["-once", "-spread=false", "-bw-interval", "10m", "-bw-probe-size-bytes", size]);
    command.arg("-derp-map").arg(format!("file://{}", map.display())).env("SSL_CERT_FILE", &cluster.ready().ca_file);
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output().await?;
    let said = String::from_utf8_lossy(&output.stderr);
    println!("{said}");
    ensure!(output.status.success(), "the prober is not content:\n{said}");
    let good: Vec<_> = said.lines().filter_map(|line| line.split_once(" good: ").map(|(_, probe)| probe)).collect();
    for (class, probes) in [("/tls: ", 2), ("/udp: ", 2), ("/mesh: ", 4), ("/bw: ", 4)] {
        assert_eq!(good.iter().filter(|probe| probe.contains(class)).count(), probes, "probes {class} in:\n{said}");
    }
    cluster.finish(&["a-1", "a-2"], &Expected::default()).await
}
