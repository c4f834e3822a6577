//! What `make bench` runs: measures whole processes and prints medians. Nothing here is a test, and nothing is judged.
//!
//! `bench [forward] [latency] [presence] [memory] [--derper FILE] [--rounds N]`; without names, everything. With `--derper`, a stock
//! relay stands beside ours in the same run, in turns A-B-B-A.

#![expect(clippy::print_stdout, reason = "printing figures is its purpose")]

mod flow;
mod forward;
mod latency;
mod memory;
mod presence;
mod process;
mod relay;
mod statistics;

use std::path::PathBuf;

use anyhow::{Context as _, bail};

/// What to measure, and beside what.
#[derive(Debug)]
struct Plan {
    names: Vec<String>,
    derper: Option<PathBuf>,
    rounds: usize,
}

const NAMES: [&str; 4] = ["forward", "latency", "presence", "memory"];

impl Plan {
    fn read(mut arguments: impl Iterator<Item = String>) -> anyhow::Result<Self> {
        let mut plan = Self { names: Vec::new(), derper: None, rounds: 3 };
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--derper" => plan.derper = Some(arguments.next().context("--derper wants a file")?.into()),
                "--rounds" => plan.rounds = arguments.next().context("--rounds wants a number")?.parse().context("--rounds")?,
                name if NAMES.contains(&name) => plan.names.push(name.to_owned()),
                other => bail!("unknown argument `{other}`: one of {NAMES:?}, --derper FILE, --rounds N"),
            }
        }
        if plan.names.is_empty() {
            plan.names = NAMES.map(str::to_owned).to_vec();
        }
        Ok(plan)
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let plan = Plan::read(std::env::args().skip(1))?;
    process::describe_machine();
    for name in &plan.names {
        match name.as_str() {
            "forward" => forward::run(plan.derper.as_deref(), plan.rounds).await?,
            "latency" => latency::run(plan.derper.as_deref(), plan.rounds).await?,
            "presence" => presence::run().await?,
            _ => memory::run(plan.derper.as_deref()).await?,
        }
    }
    Ok(())
}
