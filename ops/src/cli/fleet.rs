//! What is asked of a fleet's nodes: `causeway cluster`, `node`, `region`, `presence`, `derpmap` and `raft`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Subcommand, ValueEnum};

use super::values::{KeyArg, parse_wait_healthy};

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
    /// Makes a node read its configuration again, as SIGHUP does. Exit 1 if it refuses it; the one in force then goes on.
    Reload {
        /// Name or id; only voters pass it on to another node [default: the node asked].
        node: Option<String>,
    },
    /// Removes a node from the fleet for good; ask a voter. It can only return as a new node, with an empty data directory.
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
    Show {
        /// Prints it as YAML, for a file in `derp.paths` of Headscale.
        #[arg(long)]
        yaml: bool,
    },
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
        /// A JSON file, an https URL, `-` for standard input, or a YAML file of Headscale's `derp.paths`.
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
