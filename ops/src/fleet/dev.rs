//! A whole fleet under one foreground process: `causeway dev`, and the demo where Terraform is not there.
//!
//! All state is in files, so that `causeway dev stop|start|kill` act from other processes. The leash ties every node to the process
//! that holds this value; a sweeper process removes what is left if that process is killed.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::health::{self, Asked, Init};
use super::layout::{FileLock, FleetDir, NodeDir, remove_file, write_atomically};
use super::process::{Identity, STOP_GRACE};
use super::progress::Progress;
use super::ready::{FleetNode, FleetReady, NodeReady, VERSION};
use super::spec::{NodeSpec, Ports, RegionSpec};
use super::{leash, node, prepare, sweeper};
use crate::cli::DevRunArgs;
use crate::failure::Failure;

/// Number of the first region in the DERP map; 900 to 999 are for private relays.
const FIRST_REGION_ID: u64 = 901;
/// Most nodes of a fleet: a full mesh of links.
const NODES_MAX: usize = 64;
/// How long a node may take from its start until it serves.
const SERVE_WAIT: Duration = Duration::from_secs(60);
/// How long a fleet may take to form.
const INIT_WAIT: Duration = Duration::from_secs(30);
/// How long a formed fleet may take until every node is well.
const HEALTHY_WAIT: Duration = Duration::from_secs(60);
/// How often the watch over an ended node looks whether it was started again.
const RESTART_LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// What `dev start` of another process needs to know.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct DevState {
    version: u32,
    causewayd: PathBuf,
}

/// A fleet that runs as long as this value is kept; end it with [`DevFleet::down`].
#[derive(Debug)]
pub struct DevFleet {
    dir: FleetDir,
    /// Whether the directory was made here.
    made_dir: bool,
    nodes: Vec<(NodeDir, NodeSpec)>,
    derp_mesh_key_file: Option<PathBuf>,
    ready_file: Option<PathBuf>,
    sweeper: Option<Identity>,
    watches: TaskTracker,
    stop_watching: CancellationToken,
    progress: Progress,
    /// Last, so that it is freed last.
    _leash: FileLock,
}

/// The nodes that `args` ask for.
///
/// # Errors
/// If there are too many.
pub fn specs(args: &DevRunArgs) -> anyhow::Result<Vec<NodeSpec>> {
    let mut specs = Vec::new();
    for (index, code) in ('a'..='z').take(args.regions as usize).enumerate() {
        for ordinal in 1..=args.nodes_per_region {
            let bind = args.bind.get(specs.len()).or(args.bind.last()).copied().unwrap_or(IpAddr::from([127, 0, 0, 1]));
            let mut spec = NodeSpec {
                name: format!("{code}-{ordinal}"),
                region: RegionSpec {
                    id: FIRST_REGION_ID + index as u64,
                    code: code.to_string(),
                    name: format!("Region {}", code.to_ascii_uppercase()),
                    latitude: None,
                    longitude: None,
                },
                bind,
                host_name: String::new(),
                ports: Ports::default(),
                raft_profile: "lan".to_owned(),
                voter_eligible: true,
                derp_mesh_key_file: args.derp_mesh_key_file.as_deref().map(std::path::absolute).transpose()?,
                set: args.set.clone(),
            };
            spec.complete()?;
            specs.push(spec);
        }
    }
    if specs.len() > NODES_MAX {
        return Err(Failure::Usage(format!(
            "--regions x --nodes-per-region: {} nodes are too many, at most {NODES_MAX}",
            specs.len()
        ))
        .into());
    }
    if args.bind.len() > specs.len() {
        return Err(Failure::Usage(format!("--bind: {} addresses for {} nodes", args.bind.len(), specs.len())).into());
    }
    Ok(specs)
}

impl DevFleet {
    /// Lays the fleet out and takes its leash; starts nothing yet.
    ///
    /// # Errors
    /// If the directory is in use or not empty, or a file cannot be made.
    pub fn lay_out(args: &DevRunArgs, progress: Progress) -> anyhow::Result<Self> {
        if let Some(file) = &args.derp_mesh_key_file
            && !file.is_file()
        {
            return Err(Failure::NotFound(format!("--derp-mesh-key-file {}: there is no such file", file.display())).into());
        }
        let specs = specs(args)?;
        let causewayd = node::causewayd()?;
        let (dir, made_dir) = choose_dir(args.dir.as_deref())?;
        prepare::fleet(&dir)?;
        let leash = leash::hold(&dir.leash())?;
        let sweeper = Some(sweeper::start(&dir.leash(), &dir, made_dir.then(|| dir.path()))?);
        let state = DevState { version: VERSION, causewayd };
        write_atomically(&dir.dev_state(), &serde_json::to_string(&state)?, 0o600)?;
        let mut nodes = Vec::new();
        for spec in specs {
            nodes.push((prepare::node(&dir, &spec)?, spec));
        }
        Ok(Self {
            dir,
            made_dir,
            nodes,
            derp_mesh_key_file: args.derp_mesh_key_file.as_deref().map(std::path::absolute).transpose()?,
            ready_file: args.ready_file.as_deref().map(std::path::absolute).transpose()?,
            sweeper,
            watches: TaskTracker::new(),
            stop_watching: CancellationToken::new(),
            progress,
            _leash: leash,
        })
    }

    /// The fleet's directory.
    #[must_use]
    pub const fn dir(&self) -> &FleetDir {
        &self.dir
    }

    /// Starts all nodes, forms the fleet, waits until it is healthy, and writes the ready file.
    ///
    /// # Errors
    /// Naming the node and the end of its log, or what is not healthy.
    ///
    /// # Cancel safety
    /// May be dropped at any point; [`DevFleet::down`] then ends what was started.
    pub async fn bring_up(&mut self) -> anyhow::Result<FleetReady> {
        let program = read_state(&self.dir)?.causewayd;
        self.progress.say(&format!("{} nodes start in {}", self.nodes.len(), self.dir.path().display()));
        let mut processes = Vec::new();
        for (node, spec) in &self.nodes {
            processes.push(node::spawn(&program, node, spec, &self.dir.leash())?);
        }
        let (dir, progress) = (&self.dir, self.progress);
        let starts = self.nodes.iter().zip(&processes).map(|((node, _), process)| async move {
            let ready = node::await_ready(node, process, SERVE_WAIT).await?;
            prepare::pin(dir, node, &ready)?;
            progress.say(&format!("{} serves: DERP {}, process {}", ready.name, ready.derp, ready.pid));
            anyhow::Ok(())
        });
        futures::future::try_join_all(starts).await?;

        let specs: Vec<NodeSpec> = self.nodes.iter().map(|(_, spec)| spec.clone()).collect();
        let init =
            Init { voters: health::default_voters(&specs), nodes: specs.len(), operator_ca_der: Vec::new(), wait: INIT_WAIT };
        let voters = init.voters.join(", ");
        let first = self.first()?.0.socket();
        let formed = health::init(first.clone(), init).await?;
        self.progress.say(&format!("fleet {} is formed, voters {voters}", formed.fleet_id));
        let asked: Vec<Asked> =
            self.nodes.iter().map(|(node, _)| Asked { name: node.name().to_owned(), socket: node.socket() }).collect();
        health::wait_healthy(&asked, HEALTHY_WAIT).await?;
        health::export_fleet_ca(&self.dir, first).await?;
        let ready = self.publish()?;
        self.progress.say("healthy: every node sees a leader and has a watch stream and a link to every other");
        self.watch_nodes();
        Ok(ready)
    }

    fn first(&self) -> anyhow::Result<&(NodeDir, NodeSpec)> {
        self.nodes.first().context("a fleet has at least one node")
    }

    /// Where everything is now.
    ///
    /// # Errors
    /// If a node has no ready file.
    pub fn ready(&self) -> anyhow::Result<FleetReady> {
        describe(&self.dir, &self.nodes, self.derp_mesh_key_file.clone().unwrap_or_default())
    }

    /// Writes the ready file, if one was asked for.
    fn publish(&self) -> anyhow::Result<FleetReady> {
        let ready = self.ready()?;
        if let Some(file) = &self.ready_file {
            write_atomically(file, &format!("{}\n", serde_json::to_string(&ready)?), 0o644)?;
        }
        Ok(ready)
    }

    /// Reports nodes that end, and keeps the ready file true when they come back.
    fn watch_nodes(&self) {
        for (node, _) in &self.nodes {
            let watch = NodeWatch {
                node: node.clone(),
                all: self.nodes.clone(),
                dir: self.dir.clone(),
                derp_mesh_key_file: self.derp_mesh_key_file.clone().unwrap_or_default(),
                ready_file: self.ready_file.clone(),
                progress: self.progress,
            };
            let stop = self.stop_watching.clone();
            self.watches.spawn(async move { stop.run_until_cancelled(watch.run()).await });
        }
    }

    /// Ends every node and removes everything that was made.
    ///
    /// # Errors
    /// If a node cannot be ended or a file not removed.
    pub async fn down(mut self) -> anyhow::Result<()> {
        self.stop_watching.cancel();
        self.watches.close();
        self.watches.wait().await;
        let swept = sweeper::end_nodes(&self.dir).await;
        if let Some(file) = &self.ready_file {
            remove_file(file)?;
        }
        swept?;
        self.progress.say("all nodes are stopped");
        if let Some(sweeper) = self.sweeper.take() {
            sweeper.kill().await?;
        }
        sweeper::remove(&self.dir, self.made_dir.then(|| self.dir.path()))
    }
}

/// Watches one node from its start to the end of the fleet.
struct NodeWatch {
    node: NodeDir,
    all: Vec<(NodeDir, NodeSpec)>,
    dir: FleetDir,
    derp_mesh_key_file: PathBuf,
    ready_file: Option<PathBuf>,
    progress: Progress,
}

impl NodeWatch {
    async fn run(self) {
        loop {
            let Some(process) = Identity::read(&self.node.process()) else {
                tokio::time::sleep(RESTART_LOOK_INTERVAL).await;
                continue;
            };
            process.ended().await;
            let name = self.node.name();
            if self.node.stopped().exists() {
                self.progress.say(&format!(
                    "{name} was stopped; `causeway dev start {name} --dir {}` starts it",
                    self.dir.path().display()
                ));
            } else {
                let why = node::failed(&self.node, "ended by itself");
                self.progress.say(&format!(
                    "{why}\n{name} stays down; `causeway dev start {name} --dir {}` starts it",
                    self.dir.path().display()
                ));
            }
            self.await_restart(&process).await;
        }
    }

    async fn await_restart(&self, before: &Identity) {
        loop {
            let ready = NodeReady::read(&self.node.ready()).ok().flatten();
            if let Some(process) = node::running(&self.node)
                && process != *before
                && ready.is_some_and(|ready| ready.pid == process.pid)
            {
                break;
            }
            tokio::time::sleep(RESTART_LOOK_INTERVAL).await;
        }
        self.progress.say(&format!("{} serves again", self.node.name()));
        if let Some(file) = &self.ready_file
            && let Ok(ready) = describe(&self.dir, &self.all, self.derp_mesh_key_file.clone())
            && let Ok(text) = serde_json::to_string(&ready)
            && let Err(error) = write_atomically(file, &format!("{text}\n"), 0o644)
        {
            self.progress.say(&format!("{error:#}"));
        }
    }
}

fn describe(dir: &FleetDir, nodes: &[(NodeDir, NodeSpec)], derp_mesh_key_file: PathBuf) -> anyhow::Result<FleetReady> {
    let mut ready = Vec::new();
    for (node, spec) in nodes {
        if let Some(file) = NodeReady::read(&node.ready())? {
            ready.push(FleetNode::new(file, node, &spec.region.code, spec.region.id));
        }
    }
    let first = ready.first().context("no node serves")?;
    Ok(FleetReady {
        version: VERSION,
        derpmap_url: format!("https://{}/derpmap", first.derp),
        ca_file: dir.ca(),
        insecure: false,
        mesh_key_file: dir.mesh_key(),
        derp_mesh_key_file,
        operator_socket: first.operator_socket.clone(),
        nodes: ready,
    })
}

fn choose_dir(asked: Option<&Path>) -> anyhow::Result<(FleetDir, bool)> {
    let Some(path) = asked else {
        // Kept by name, because it is removed by whoever outlives the other: this process or the sweeper.
        let made =
            tempfile::Builder::new().prefix("causeway-dev-").tempdir().context("no temporary directory can be made")?.keep();
        return Ok((FleetDir::new(&made)?, true));
    };
    let existed = path.exists();
    if existed {
        let mut entries = std::fs::read_dir(path).with_context(|| format!("--dir {}: cannot be listed", path.display()))?;
        if entries.next().is_some() {
            let why = format!("--dir {}: is not empty; name a new directory, or remove what is in it", path.display());
            return Err(Failure::Usage(why).into());
        }
    }
    Ok((FleetDir::new(path)?, !existed))
}

fn read_state(dir: &FleetDir) -> anyhow::Result<DevState> {
    let path = dir.dev_state();
    let text = std::fs::read_to_string(&path)
        .map_err(|error| Failure::NotFound(format!("--dir {}: no `causeway dev` runs here ({error})", dir.path().display())))?;
    serde_json::from_str(&text).with_context(|| format!("{}: not understood", path.display()))
}

/// A node of a fleet that another process runs.
///
/// # Errors
/// [`Failure::NotFound`] if there is no fleet in `dir`, or it has no such node.
pub fn find(dir: &Path, name: &str) -> anyhow::Result<(FleetDir, NodeDir)> {
    let fleet = FleetDir::new(dir)?;
    read_state(&fleet)?;
    let nodes = fleet.nodes()?;
    match nodes.iter().find(|node| node.name() == name) {
        Some(node) => Ok((fleet, node.clone())),
        None => {
            let names: Vec<&str> = nodes.iter().map(NodeDir::name).collect();
            Err(Failure::NotFound(format!("there is no node {name:?} in {}; there are {}", dir.display(), names.join(", ")))
                .into())
        }
    }
}

/// Starts a node of a fleet that another process runs, and waits until it serves. One that runs is fine.
///
/// # Errors
/// If the fleet is gone or the node does not start.
pub async fn start_again(fleet: &FleetDir, node: &NodeDir) -> anyhow::Result<FleetNode> {
    let state = read_state(fleet)?;
    if leash::is_free(&fleet.leash()) {
        bail!("the `causeway dev` of {} has ended; start a new one", fleet.path().display());
    }
    let spec = prepare::read_spec(node)?;
    let process = match node::running(node) {
        Some(process) => process,
        None => node::spawn(&state.causewayd, node, &spec, &fleet.leash())?,
    };
    let ready = node::await_ready(node, &process, SERVE_WAIT + STOP_GRACE).await?;
    Ok(FleetNode::new(ready, node, &spec.region.code, spec.region.id))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command, DevArgs};

    fn args(more: &[&str]) -> DevRunArgs {
        let cli = Cli::try_parse_from(["causeway", "dev"].iter().chain(more)).expect("valid");
        let Command::Dev(DevArgs { run, .. }) = cli.command else { panic!("dev") };
        run
    }

    #[test]
    fn nodes_are_named_by_region_and_addresses_given_in_order() {
        let specs = specs(&args(&["--regions", "2", "--bind", "127.0.0.2,127.0.0.3"])).expect("specs");
        let told: Vec<(String, u64, String)> =
            specs.iter().map(|spec| (spec.name.clone(), spec.region.id, spec.bind.to_string())).collect();
        let expected =
            [("a-1", 901, "127.0.0.2"), ("a-2", 901, "127.0.0.3"), ("b-1", 902, "127.0.0.3"), ("b-2", 902, "127.0.0.3")];
        assert_eq!(told, expected.map(|(name, id, bind)| (name.to_owned(), id, bind.to_owned())));
        assert_eq!(specs[0].host_name, "a-1.causeway.test");
    }

    #[test]
    fn too_many_nodes_or_addresses_are_refused() {
        let code = |error: anyhow::Error| Failure::from(error).code();
        assert_eq!(code(specs(&args(&["--regions", "26", "--nodes-per-region", "3"])).expect_err("78 nodes")), 2);
        let five = "127.0.0.1,127.0.0.2,127.0.0.3,127.0.0.4,127.0.0.5";
        assert_eq!(code(specs(&args(&["--regions", "2", "--bind", five])).expect_err("5 addresses")), 2);
    }

    #[test]
    fn a_directory_in_use_and_a_missing_fleet_are_told() {
        let dir = tempfile::tempdir().expect("dir");
        std::fs::write(dir.path().join("x"), "").expect("file");
        assert_eq!(Failure::from(choose_dir(Some(dir.path())).expect_err("not empty")).code(), 2);
        assert_eq!(Failure::from(find(dir.path(), "a-1").expect_err("no fleet")).code(), 3);
    }
}
