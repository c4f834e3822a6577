//! Seeded simulation of presence: fleets of 3 to 7 nodes under loss, repetition, reordering, restarts, fences, cuts and copied data
//! directories, compared after every step with a reference. `SEED=n` replays one run, `SEEDS=n` sets how many there are.
#![allow(clippy::print_stderr, reason = "a failing seed must be seen")]

mod reference;
mod world;

use world::{Coverage, World};

const SEEDS: u64 = 50;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{variable} must be a number, not `{text}`")))
}

fn run(seed: u64) -> Coverage {
    eprintln!("seed {seed}");
    let mut world = World::new(seed);
    world.run();
    world.coverage
}

#[test]
fn every_invariant_holds_in_every_seeded_run() {
    if let Some(seed) = number("SEED") {
        eprintln!("{:?}", run(seed));
        return;
    }
    let runs: Vec<Coverage> = (0..number("SEEDS").unwrap_or(SEEDS)).map(run).collect();
    let total = |of: fn(&Coverage) -> usize| runs.iter().map(of).sum::<usize>();
    // A simulation without its faults is invalid, not passed.
    for (name, least, count) in [
        ("operations", 2_000, total(|run| run.operations)),
        ("stale messages", 100, total(|run| run.stale_messages_refused)),
        ("gaps", 50, total(|run| run.gaps)),
        ("impostors", 10, total(|run| run.impostors_refused)),
        ("restarts", 100, total(|run| run.restarts)),
        ("table restores", 10, total(|run| run.table_restores)),
        ("resets", 20, total(|run| run.resets)),
        ("fences", 50, total(|run| run.fences)),
        ("unfences", 20, total(|run| run.unfences)),
        ("drops", 5, total(|run| run.drops)),
        ("evictions", 3, total(|run| run.evictions)),
        ("owners lost", 100, total(|run| run.owners_lost)),
        ("owners back", 50, total(|run| run.owners_back)),
        ("gone notices", 100, total(|run| run.gone_told)),
        ("overlaps", 500, total(|run| run.overlaps)),
    ] {
        eprintln!("{name}: {count}");
        assert!(count >= least, "only {count} {name} in {} runs", runs.len());
    }
}
