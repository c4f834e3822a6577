//! What makes files and asks no node: `causeway operator-ca`, `mesh-key` and `import`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

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
