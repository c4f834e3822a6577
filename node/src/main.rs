//! `causewayd`: a Causeway relay node. Parses the command line and the configuration, then hands over to the library.

use std::io::Write;
use std::process::ExitCode;

use causeway_node::app::{self, Options};
use causeway_node::config::cli::{Cli, EXIT_FAILED, EXIT_OK, EXIT_USAGE};
use causeway_node::config::{Config, FileConfig, Source};
use causeway_node::telemetry::stderr::StandardError;
use clap::Parser;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let loaded = FileConfig::load(&cli.config, &cli.sets)
        .and_then(|file| Config::validate(&cli.config, &file).map(|config| (file, config)));
    let (file, config) = match loaded {
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
    let effective = file.to_line().unwrap_or_default();
    let source = Source { path: cli.config, sets: cli.sets, file };
    let options = Options { ready_file: cli.ready_file, leash: cli.leash, effective };
    match app::run(config, source, &options) {
        Ok(()) => {
            drop(StandardError.flush());
            ExitCode::from(EXIT_OK)
        }
        Err(error) => fail(EXIT_FAILED, &format_args!("{error:#}")),
    }
}

/// Says why on standard error, after all that was logged. Nothing can be done if that is closed or takes nothing.
fn fail(code: u8, error: &dyn std::fmt::Display) -> ExitCode {
    drop(StandardError.write_all(format!("causewayd: {error}\n").as_bytes()).and_then(|()| StandardError.flush()));
    ExitCode::from(code)
}
