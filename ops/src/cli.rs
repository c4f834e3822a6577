//! What can be typed after `causeway`. Doing it is `command`'s work.

mod files;
mod fleet;
mod machine;
mod values;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::output::Format;

pub use files::{DerperArgs, ImportCommand, MeshKeyCommand, OperatorCaCommand, Role};
pub use fleet::{ClusterCommand, DerpmapCommand, JoinPolicy, NodeCommand, PresenceCommand, RaftCommand, RegionCommand};
pub use machine::{DemoArgs, DemoBy, DevAction, DevArgs, DevNode, DevRunArgs, LocalCommand, StateDir};
pub use values::{KeyArg, parse_duration};

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
}
