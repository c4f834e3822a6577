//! The command line of `causewayd`.

use std::path::PathBuf;

use clap::Parser;

/// Exit code of a clean end.
pub const EXIT_OK: u8 = 0;
/// Exit code when the node failed at start or while running.
pub const EXIT_FAILED: u8 = 1;
/// Exit code of a bad command line or configuration.
pub const EXIT_USAGE: u8 = 2;

/// A Causeway relay node.
#[derive(Debug, Clone, Parser)]
#[command(name = "causewayd", version, about, long_about = None)]
pub struct Cli {
    /// Configuration file (TOML). `node/config.example.toml` documents every field.
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,

    /// Checks the configuration and ends: exit code 0 if it is valid, 2 if not.
    #[arg(long)]
    pub check: bool,

    /// Prints the effective configuration (defaults and --set included, secrets redacted) and ends.
    #[arg(long)]
    pub print_config: bool,

    /// Writes FILE (JSON, atomically) once every listener is bound and clients are served.
    #[arg(long, value_name = "FILE")]
    pub ready_file: Option<PathBuf>,

    /// Ends when nobody holds an exclusive lock (flock) on FILE any more.
    #[arg(long, value_name = "FILE")]
    pub leash: Option<PathBuf>,

    /// Overrides a field, as a TOML path: --set region.id=901. Repeatable; the last one wins.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub sets: Vec<String>,
}
