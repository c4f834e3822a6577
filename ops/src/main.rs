//! `causeway`: the operator's command line.

use std::io::{self, Write};
use std::process::ExitCode;

use causeway_ops::cli::Cli;
use causeway_ops::command;
use causeway_ops::failure::Failure;
use clap::Parser;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    match command::run(cli, &mut io::stdout()).await {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever reads has read enough: `causeway presence ls | head`.
        Err(Failure::Failed(error)) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(failure) => {
            drop(writeln!(io::stderr(), "causeway: {failure}"));
            ExitCode::from(&failure)
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| cause.downcast_ref::<io::Error>().is_some_and(|io| io.kind() == io::ErrorKind::BrokenPipe))
}
