//! What can be typed after `causeway`. Doing it is `command`'s work.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::output::Format;

/// Operates a Causeway relay fleet.
///
/// Exit codes: 0 done, 1 failed, 2 usage, 3 not found, 4 unreachable.
#[derive(Debug, Parser)]
#[command(name = "causeway", version, about, propagate_version = true)]
pub struct Cli {
    /// Options every command takes.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options every command takes. Each may also come from the environment or the configuration file.
#[derive(Debug, Clone, Default, Args)]
pub struct Global {
    /// How results are printed [default: table].
    #[arg(short, long, global = true, value_enum)]
    pub output: Option<Format>,
    /// Operator socket of a node on this machine [env: CAUSEWAY_SOCKET] [default: /var/lib/causeway/operator.sock].
    #[arg(long, global = true, value_name = "PATH", conflicts_with = "endpoint")]
    pub socket: Option<PathBuf>,
    /// Operator port of a node; needs --cert, --key and --ca [env: CAUSEWAY_ENDPOINT].
    #[arg(long, global = true, value_name = "HOST:PORT")]
    pub endpoint: Option<String>,
    /// Operator certificate, PEM, as issued by `causeway operator-ca issue` [env: CAUSEWAY_CERT].
    #[arg(long, global = true, value_name = "FILE")]
    pub cert: Option<PathBuf>,
    /// Private key of the operator certificate, PEM [env: CAUSEWAY_KEY].
    #[arg(long, global = true, value_name = "FILE")]
    pub key: Option<PathBuf>,
    /// Certificate of the fleet's CA, PEM (`causeway cluster ca` prints it) [env: CAUSEWAY_CA].
    #[arg(long, global = true, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// How long to wait for an answer, such as 500ms, 30s, 2m [env: CAUSEWAY_TIMEOUT] [default: 30s].
    #[arg(long, global = true, value_name = "TIME", value_parser = parse_duration)]
    pub timeout: Option<Duration>,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Runs a whole fleet on this machine, in the foreground, for development and tests.
    Dev(DevArgs),
    /// Brings up a fleet, sends packets between all its regions, kills a node, and shows what happens.
    Demo(DemoArgs),
    /// Runs single nodes on this machine in the background; what Terraform's local target calls.
    #[command(subcommand)]
    Local(LocalCommand),
    /// Forms a fleet, and tells how it is.
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// Nodes of the fleet.
    #[command(subcommand)]
    Node(NodeCommand),
    /// Regions of the fleet.
    #[command(subcommand)]
    Region(RegionCommand),
    /// Who holds which client key.
    #[command(subcommand)]
    Presence(PresenceCommand),
    /// The DERP map: prints the one the fleet serves, changes how it is made, checks any map.
    Derpmap {
        /// What to do with it [default: print it].
        #[command(subcommand)]
        command: Option<DerpmapCommand>,
    },
    /// The consensus group.
    #[command(subcommand)]
    Raft(RaftCommand),
    /// Shows which nodes a packet from SRC to DST would pass, and why.
    Trace {
        /// Key of the sender: `nodekey:HEX` or 64 hex digits.
        src: KeyArg,
        /// Key of the receiver.
        dst: KeyArg,
    },
    /// Measures a round trip over the mesh, from the node asked to another.
    Ping {
        /// Name or id of the other node.
        node: String,
        /// How many round trips.
        #[arg(short, long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
        count: u32,
    },
    /// The operators' own certificate authority, independent of the mesh key.
    #[command(subcommand)]
    OperatorCa(OperatorCaCommand),
    /// The secret all nodes of a fleet share.
    #[command(subcommand)]
    MeshKey(MeshKeyCommand),
    /// Makes a node's configuration from what ran before.
    #[command(subcommand)]
    Import(ImportCommand),
    /// Prints the version of this program.
    Version,
    /// Prints a completion script.
    Completion {
        /// The shell it is for.
        shell: Shell,
    },
}

/// Shells with a completion script.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Shell {
    /// GNU Bash.
    Bash,
    /// Z shell.
    Zsh,
    /// fish.
    Fish,
}

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

/// Forming a fleet and asking how it is.
#[derive(Debug, Subcommand)]
pub enum ClusterCommand {
    /// Forms the fleet, once. Repeating it with the same voters changes nothing.
    Init {
        /// Names or ids of the voters, an odd number [default: one eligible node per region].
        #[arg(long, value_delimiter = ',')]
        voters: Vec<String>,
        /// Whether whoever holds the mesh key may join. With `open` a stolen mesh key can add nodes until it is rotated.
        #[arg(long, value_enum, default_value = "open")]
        join: JoinPolicy,
        /// Certificate of the operators' CA, PEM, which operator ports will trust.
        #[arg(long, value_name = "FILE")]
        operator_ca: Option<PathBuf>,
        /// Waits until so many nodes are seen before forming the fleet.
        #[arg(long, default_value_t = 0)]
        expect: u32,
    },
    /// Leader, voters, nodes, and in sentences what is lost. Exit 1 with --wait if it stays unhealthy.
    Status {
        /// Waits for a state, such as `healthy=120s`.
        #[arg(long, value_name = "healthy=TIME", value_parser = parse_wait_healthy)]
        wait: Option<Duration>,
    },
    /// Prints the certificate of the fleet's CA, PEM: what --ca of other machines takes.
    Ca,
}

/// Who may join a fleet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum JoinPolicy {
    /// Whoever holds the mesh key.
    Open,
    /// Nobody further.
    Closed,
}

/// Nodes of the fleet.
#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// Lists all nodes.
    Ls,
    /// Shows one node: with a name as the node asked knows it, without one the node asked itself.
    Get {
        /// Name or id.
        node: Option<String>,
    },
    /// Removes a node from the fleet for good; ask the leader. It can only return as a new node, with an empty data directory.
    Evict {
        /// Name or id.
        node: String,
    },
}

/// Regions of the fleet.
#[derive(Debug, Subcommand)]
pub enum RegionCommand {
    /// Lists all regions.
    Ls,
}

/// Who holds which client key.
#[derive(Debug, Subcommand)]
pub enum PresenceCommand {
    /// All claims of one key, which is preferred and why.
    Get {
        /// `nodekey:HEX` or 64 hex digits.
        // An id of its own: `key` is the global flag.
        #[arg(id = "client_key", value_name = "KEY")]
        key: KeyArg,
        /// Reads what Raft has committed, by a quorum round trip, instead of the node's own view.
        #[arg(long)]
        consistent: bool,
    },
    /// Lists keys and where they are.
    Ls {
        /// Only claims of this node (name or id).
        #[arg(long, conflicts_with = "region")]
        node: Option<String>,
        /// Only claims in this region (code or id).
        #[arg(long)]
        region: Option<String>,
        /// At most so many keys; 0 is all.
        #[arg(long, default_value_t = 1000)]
        limit: u32,
    },
    /// Follows changes until Ctrl-C.
    Watch {
        /// Only this key.
        #[arg(id = "client_key", value_name = "KEY")]
        key: Option<KeyArg>,
        /// Leaves out what is present at the start.
        #[arg(long)]
        changes_only: bool,
    },
    /// Counts keys and claims.
    Count,
}

/// The DERP map.
#[derive(Debug, Subcommand)]
pub enum DerpmapCommand {
    /// Prints the map the fleet serves.
    Show,
    /// Prints how the map is made, in the form that `derpmap apply` takes.
    Settings,
    /// Changes how the map is made, for the whole fleet; ask a voter. Says which regions that edits, and checks the new map.
    Apply {
        /// The settings, TOML (`docs/operations/derp-map.md`); `-` is standard input. What it leaves out gets its default.
        file: PathBuf,
        /// Only says what it would edit.
        #[arg(long)]
        dry_run: bool,
    },
    /// Tells what clients, probers and Headscale would trip over in a map. Exit 1 if it has errors.
    Check {
        /// A JSON file, an https URL, or `-` for standard input.
        source: String,
        /// Certificate that the URL's server is checked against, PEM [default: the system's roots].
        #[arg(long, value_name = "FILE")]
        tls_ca: Option<PathBuf>,
    },
}

/// The consensus group.
#[derive(Debug, Subcommand)]
pub enum RaftCommand {
    /// State of the node asked, and its members.
    Status,
}

/// The operators' own certificate authority.
#[derive(Debug, Subcommand)]
pub enum OperatorCaCommand {
    /// Makes a CA: DIR/operator-ca.pem (give it to `cluster init`) and DIR/operator-ca-key.pem (keep it offline).
    New {
        /// Where it is written.
        #[arg(long)]
        dir: PathBuf,
        /// How long it is valid, in days.
        #[arg(long, default_value_t = 3650, value_parser = clap::value_parser!(u32).range(1..=36500))]
        days: u32,
    },
    /// Issues a certificate for one operator: OUT/NAME.pem and OUT/NAME-key.pem.
    Issue {
        /// Who it is for: 1 to 63 letters, digits, `.`, `-` or `_`.
        name: String,
        /// What it allows.
        #[arg(long, value_enum)]
        role: Role,
        /// Directory of `operator-ca new`.
        #[arg(long)]
        dir: PathBuf,
        /// Where it is written [default: the directory of the CA].
        #[arg(long)]
        out: Option<PathBuf>,
        /// How long it is valid, in days.
        #[arg(long, default_value_t = 90, value_parser = clap::value_parser!(u32).range(1..=3650))]
        days: u32,
    },
}

/// What an operator may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// Reads.
    Viewer,
    /// Reads and changes.
    Operator,
}

impl Role {
    /// The Organization of the certificate.
    #[must_use]
    pub const fn organization(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
        }
    }
}

/// The secret all nodes of a fleet share.
#[derive(Debug, Subcommand)]
pub enum MeshKeyCommand {
    /// Writes a fresh random key to FILE, readable by its owner only; never overwrites.
    New {
        /// Where it is written.
        file: PathBuf,
    },
}

/// What ran before.
#[derive(Debug, Subcommand)]
pub enum ImportCommand {
    /// From the command line of a stock derper, the files it names, and its variables in this command's environment.
    ///
    /// Says of each flag what became of it. Exit code 2: the flags contradict themselves, or ask for what no node does.
    Derper(DerperArgs),
}

/// Options of `causeway import derper`.
#[derive(Debug, Clone, Args)]
pub struct DerperArgs {
    /// Where causewayd.toml and the key files are written; nothing is overwritten.
    #[arg(long, value_name = "DIR", required_unless_present = "check")]
    pub out: Option<PathBuf>,
    /// Writes nothing: prints the configuration.
    #[arg(long, conflicts_with = "out")]
    pub check: bool,
    /// Name of the node [default: the host name].
    #[arg(long)]
    pub name: Option<String>,
    /// The region's id in your DERP map.
    #[arg(long, default_value_t = 900, value_name = "ID")]
    pub region_id: u64,
    /// The region's short code in your DERP map.
    #[arg(long, default_value = "derp", value_name = "CODE")]
    pub region_code: String,
    /// Where the node will keep its state.
    #[arg(long, default_value = "/var/lib/causeway", value_name = "DIR")]
    pub data_dir: PathBuf,
    /// The derper's flags, after `--`.
    #[arg(last = true, value_name = "FLAGS")]
    pub flags: Vec<String>,
}

/// A client key as typed: `nodekey:HEX` or 64 hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyArg(pub causeway_proto::key::NodePublic);

impl std::str::FromStr for KeyArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.starts_with("privkey:") {
            return Err("this is a private key: give the public one (`nodekey:` and 64 hex digits)".to_owned());
        }
        let hex = text.strip_prefix("nodekey:").unwrap_or(text);
        let key = causeway_proto::key::NodePublic::from_untyped_hex(hex)
            .map_err(|_| "a key is `nodekey:` and 64 hex digits, or the 64 digits alone".to_owned())?;
        Ok(Self(key))
    }
}

/// Parses `500ms`, `30s`, `2m`, `1h`.
///
/// # Errors
/// A sentence saying what would be right.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let wrong = || "a time is a number and a unit, such as 500ms, 30s, 2m, 1h".to_owned();
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let milliseconds_per_unit = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(wrong()),
    };
    number.checked_mul(milliseconds_per_unit).map(Duration::from_millis).ok_or_else(wrong)
}

fn parse_wait_healthy(text: &str) -> Result<Duration, String> {
    let time = text.strip_prefix("healthy=").ok_or("the only state to wait for is `healthy=TIME`, such as healthy=120s")?;
    parse_duration(time)
}

fn parse_set(text: &str) -> Result<String, String> {
    match text.split_once('=') {
        Some((key, _)) if !key.trim().is_empty() => Ok(text.to_owned()),
        _ => Err("a setting is KEY=VALUE with a TOML path as KEY, such as limits.clients=100".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn dev_takes_flags_or_one_action() {
        let cli =
            Cli::try_parse_from(["causeway", "dev", "--regions", "2", "--bind", "127.0.0.1,::1", "--set", "log.format=json"])
                .expect("valid");
        let Command::Dev(DevArgs { action: None, run }) = cli.command else { panic!("dev") };
        assert_eq!((run.regions, run.nodes_per_region, run.bind.len()), (2, 2, 2));
        assert_eq!(run.set, ["log.format=json"]);

        let cli = Cli::try_parse_from(["causeway", "dev", "kill", "b-1", "--dir", "/x"]).expect("valid");
        let Command::Dev(DevArgs { action: Some(DevAction::Kill(node)), .. }) = cli.command else { panic!("kill") };
        assert_eq!(node.node, "b-1");
    }

    #[test]
    fn wrong_usage_is_refused() {
        for wrong in [
            &["causeway", "dev", "--regions", "0"][..],
            &["causeway", "dev", "--regions", "27"],
            &["causeway", "dev", "--set", "novalue"],
            &["causeway", "dev", "kill", "b-1"],
            &["causeway", "presence", "get", "abc"],
            &["causeway", "--socket", "/x", "--endpoint", "h:1", "node", "ls"],
            &["causeway", "local", "status", "--state-dir", "/x", "--wait", "120s"],
            &["causeway", "--timeout", "10", "node", "ls"],
            &["causeway", "-o", "xml", "node", "ls"],
        ] {
            assert_eq!(Cli::try_parse_from(wrong).expect_err("refused").exit_code(), 2, "{wrong:?}");
        }
    }

    #[test]
    fn keys_are_taken_in_both_forms_and_private_keys_are_not_echoed() {
        let private = causeway_proto::key::NodePrivate::generate();
        let public = private.public();
        assert_eq!(public.to_text().parse(), Ok(KeyArg(public)));
        assert_eq!(public.to_untyped_hex().parse(), Ok(KeyArg(public)));
        let refused = private.expose_text().parse::<KeyArg>().expect_err("private");
        assert!(refused.contains("private key") && !refused.contains(&private.expose_text()[8..]));
    }

    #[test]
    fn durations() {
        for (text, ms) in [("500ms", 500), ("30s", 30_000), ("2m", 120_000), ("1h", 3_600_000)] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)));
        }
        for wrong in ["", "s", "5", "5d", "-1s", "99999999999999999999s", "18446744073709551615h"] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
        assert_eq!(parse_wait_healthy("healthy=2m"), Ok(Duration::from_secs(120)));
    }
}
