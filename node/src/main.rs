//! `causewayd`: a Causeway relay node. Parses the command line and the configuration, then hands over to the library.

use std::io::Write;
use std::process::ExitCode;

use causeway_node::config::cli::{Cli, EXIT_FAILED, EXIT_OK, EXIT_USAGE};
use causeway_node::config::{Config, FileConfig};
use clap::Parser;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let loaded = FileConfig::load(&cli.config, &cli.sets)
        .and_then(|file| Config::validate(&cli.config, &file).map(|config| (file, config)));
    let (file, _config) = match loaded {
        Ok(loaded) => loaded,
        Err(error) => return fail(EXIT_USAGE, &error),
    };
    if cli.print_config {
        return match write!(std::io::stdout(), "{file}") {
            Ok(()) => ExitCode::from(EXIT_OK),
            Err(error) => fail(EXIT_FAILED, &error),
        };
    }
    if cli.check {
        return ExitCode::from(EXIT_OK);
    }
    fail(EXIT_FAILED, &"the front doors are not part of this build yet")
}

/// Says why on standard error. Nothing can be done if that is closed.
fn fail(code: u8, error: &dyn std::fmt::Display) -> ExitCode {
    drop(writeln!(std::io::stderr(), "causewayd: {error}"));
    ExitCode::from(code)
}
