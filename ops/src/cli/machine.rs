//! What runs on this machine: `causeway dev`, `demo` and `local`.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use super::values::{parse_duration, parse_set, parse_wait_healthy};

/// Options of `causeway dev`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct DevArgs {
    /// Acts on one node of a running fleet instead of starting one.
    #[command(subcommand)]
    pub action: Option<DevAction>,
    /// The fleet to run.
    #[command(flatten)]
    pub run: DevRunArgs,
}

/// The fleet `causeway dev` runs.
#[derive(Debug, Clone, Args)]
pub struct DevRunArgs {
    /// How many regions.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=26))]
    pub regions: u32,
    /// How many nodes in each region.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub nodes_per_region: u32,
    /// Where the fleet lives; must be empty or absent [default: a fresh temporary directory, removed at the end].
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// Written once the fleet is healthy: where everything is, as JSON (`docs/operations/dev.md`).
    #[arg(long, value_name = "FILE")]
    pub ready_file: Option<PathBuf>,
    /// A configuration field of every node, as a TOML path, such as `limits.clients=100`; repeatable.
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_set)]
    pub set: Vec<String>,
    /// Mesh key of stock derpers that may mesh with this fleet on the DERP port.
    #[arg(long, value_name = "FILE")]
    pub derp_mesh_key_file: Option<PathBuf>,
    /// Addresses the nodes bind, one per node in order; the last one also serves all further nodes.
    #[arg(long, value_name = "ADDR", value_delimiter = ',', default_value = "127.0.0.1")]
    pub bind: Vec<IpAddr>,
}

/// What can be done to one node of a running `causeway dev`.
#[derive(Debug, Subcommand)]
pub enum DevAction {
    /// Ends a node in good order (SIGTERM).
    Stop(DevNode),
    /// Starts a stopped or killed node again, on its data directory and ports.
    Start(DevNode),
    /// Ends a node at once (SIGKILL).
    Kill(DevNode),
    /// Ends and removes what a `causeway dev` that died left behind.
    #[command(hide = true)]
    Sweep {
        /// Locked exclusively while the fleet shall live.
        #[arg(long)]
        leash: PathBuf,
        /// The fleet's directory.
        #[arg(long)]
        fleet: PathBuf,
        /// A directory to remove with all that is in it.
        #[arg(long)]
        remove: Option<PathBuf>,
    },
}

/// One node of a running `causeway dev`.
#[derive(Debug, Args)]
pub struct DevNode {
    /// The node's name, such as `a-1`.
    pub node: String,
    /// The fleet's directory, as given to or printed by `causeway dev`.
    #[arg(long)]
    pub dir: PathBuf,
}

/// Options of `causeway demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Leaves after the tour instead of waiting for Ctrl-C.
    #[arg(long)]
    pub once: bool,
    /// What brings the fleet up; `auto` takes Terraform where it is on the PATH.
    #[arg(long, value_enum, default_value = "auto")]
    pub by: DemoBy,
    /// The repository's `terraform` folder [default: the one of the current directory or one above].
    #[arg(long, value_name = "DIR")]
    pub terraform_dir: Option<PathBuf>,
}

/// What brings a demo's fleet up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DemoBy {
    /// Terraform or OpenTofu if one is there, else the code of `causeway dev`.
    Auto,
    /// `terraform apply` (or `tofu apply`) of `terraform/fleets/local`.
    Terraform,
    /// The code of `causeway dev`.
    Dev,
}

/// Where the nodes of `causeway local` live.
#[derive(Debug, Clone, Args)]
pub struct StateDir {
    /// Directory of the fleet on this machine.
    #[arg(long, value_name = "DIR")]
    pub state_dir: PathBuf,
}

/// Nodes run in the background, each under a supervisor that restarts it when it crashes.
///
/// Every command may be killed at any point and run again.
#[derive(Debug, Subcommand)]
pub enum LocalCommand {
    /// Starts one node; first stops what an earlier attempt left. Exit 0: its listeners serve.
    Start {
        /// Where the fleet lives; its mesh key and CA are made here when absent.
        #[command(flatten)]
        state: StateDir,
        /// The node as JSON text, or `@FILE` (`docs/operations/cli.md` has the fields).
        #[arg(long, value_name = "JSON")]
        config: String,
        /// Ends the node when nobody holds an exclusive lock on FILE any more.
        #[arg(long, value_name = "FILE")]
        leash: Option<PathBuf>,
        /// How long the node may take to serve.
        #[arg(long, value_name = "TIME", default_value = "60s", value_parser = parse_duration)]
        wait: Duration,
    },
    /// Stops one node and waits for its end. Exit 0: it does not run, whether or not it did.
    Stop {
        /// Where the fleet lives.
        #[command(flatten)]
        state: StateDir,
        /// The node's name.
        #[arg(long)]
        node: String,
        /// Removes the node's directory too, and the fleet's own files with the last node.
        #[arg(long)]
        remove: bool,
    },
    /// Lists the nodes and whether they run.
    List {
        /// Where the fleet lives.
        #[command(flatten)]
        state: StateDir,
    },
    /// Forms the fleet from the nodes started, and waits until it is healthy. Repeating it changes nothing.
    Init {
        /// Where the fleet lives.
        #[command(flatten)]
        state: StateDir,
        /// Names of the voters [default: one node per region, an odd number of them].
        #[arg(long, value_delimiter = ',')]
        voters: Vec<String>,
        /// Certificate of the operators' CA, PEM.
        #[arg(long, value_name = "FILE")]
        operator_ca: Option<PathBuf>,
        /// How long forming and healing may take.
        #[arg(long, value_name = "TIME", default_value = "60s", value_parser = parse_duration)]
        wait: Duration,
    },
    /// Sets how the fleet makes its DERP map, as `derpmap apply` does. Repeating it changes nothing.
    Derpmap {
        /// Where the fleet lives.
        #[command(flatten)]
        state: StateDir,
        /// All settings as JSON text, or `@FILE`: the fields of `docs/operations/derp-map.toml`.
        #[arg(long, value_name = "JSON")]
        settings: String,
        /// How long it may take until a leader takes them.
        #[arg(long, value_name = "TIME", default_value = "60s", value_parser = parse_duration)]
        wait: Duration,
    },
    /// Tells how the fleet is, as `causeway dev`'s ready file does, with its health. Exit 0 with --wait: it is healthy.
    Status {
        /// Where the fleet lives.
        #[command(flatten)]
        state: StateDir,
        /// Same as `-o json`.
        #[arg(long)]
        json: bool,
        /// Waits for a state, such as `healthy=120s`.
        #[arg(long, value_name = "healthy=TIME", value_parser = parse_wait_healthy)]
        wait: Option<Duration>,
        /// Writes the JSON here as well, atomically.
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
    },
    /// Stops every node of the directory and removes all the fleet made there.
    Clean {
        /// Where the fleet lives.
        #[command(flatten)]
        state: StateDir,
    },
    /// Keeps one node running; started by `local start`.
    #[command(hide = true)]
    Supervise {
        /// Where the fleet lives.
        #[command(flatten)]
        state: StateDir,
        /// The node's name.
        #[arg(long)]
        node: String,
        /// See `local start`.
        #[arg(long)]
        leash: Option<PathBuf>,
    },
}
