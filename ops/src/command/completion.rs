//! `causeway completion` and `causeway version`.

use clap::CommandFactory;
use serde::Serialize;

use crate::cli::{Cli, Shell};
use crate::failure::Failure;
use crate::output::Output;

#[derive(Serialize)]
struct Version {
    version: &'static str,
}

/// Prints the version of this program.
///
/// # Errors
/// If the output cannot be written.
pub fn version(output: &mut Output<'_>) -> Result<(), Failure> {
    let version = env!("CARGO_PKG_VERSION");
    Ok(output.one(&Version { version }, || format!("causeway {version}"))?)
}

/// Prints a completion script, whatever the format.
///
/// # Errors
/// If the output cannot be written.
pub fn print(shell: Shell, output: &mut Output<'_>) -> Result<(), Failure> {
    let generator = match shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    let mut script = Vec::new();
    clap_complete::generate(generator, &mut Cli::command(), "causeway", &mut script);
    Ok(output.raw(&script)?)
}
