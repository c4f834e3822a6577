//! Measures what presence costs in memory: resident bytes per entry of the view and of the table, at 10^6 entries.
//!
//! Run with `cargo run --release -p causeway-control --example presence_memory [ENTRIES]`. Reads `/proc/self/status`.
#![allow(clippy::print_stdout, reason = "prints its result")]

use std::error::Error;
use std::time::Instant;

use causeway_control::presence::{Applied, Command, IngestError, Outcome, PresenceView, Table, WatchInput};
use causeway_proto::id::{BootId, Epoch, NodeId, RegionId};
use causeway_proto::presence::{ClaimKind, Op, PresenceKey};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Claims of one owner; below what one may hold.
const CLAIMS_PER_OWNER: usize = 50_000;
/// Claims in one command or delta, as a busy node sends them.
const BATCH: usize = 500;

fn resident_bytes() -> Result<usize, Box<dyn Error>> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS in /proc/self/status")?;
    let kib: usize = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib * 1024)
}

/// Owner logs of fresh random keys: (owner, first sequence, operations) in batches.
fn batches(entries: usize) -> impl Iterator<Item = (NodeId, u64, Vec<Op>)> {
    let mut rng = StdRng::seed_from_u64(1);
    (0..entries / BATCH).map(move |batch| {
        let per_owner = CLAIMS_PER_OWNER / BATCH;
        let ops = (0..BATCH).map(|_| Op::Claim {
            key: PresenceKey(rng.random()),
            clock_us: rng.random_range(0..1 << 50),
            home: true,
            kind: ClaimKind::Derp,
        });
        (NodeId(1 + (batch / per_owner) as u64), 1 + (batch % per_owner * BATCH) as u64, ops.collect())
    })
}

fn report(what: &str, before: usize, entries: usize, began: Instant) -> Result<(), Box<dyn Error>> {
    let grown = resident_bytes()?.saturating_sub(before);
    let (bytes, micros) = (grown as f64 / entries as f64, began.elapsed().as_secs_f64() * 1e6 / entries as f64);
    println!("{what}: {bytes:.1} bytes and {micros:.2} us per entry, {:.1} MiB for {entries}", grown as f64 / f64::from(1 << 20));
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let entries: usize = std::env::args().nth(1).map_or(Ok(1_000_000), |text| text.parse())?;
    let boot_id = BootId([1; 16]);

    let (before, began) = (resident_bytes()?, Instant::now());
    let view = PresenceView::new(NodeId(u64::MAX), RegionId(1));
    for (node, first_seq, ops) in batches(entries) {
        if first_seq == 1 {
            view.ingest_watch(node, Epoch(1), WatchInput::Hello { boot_id }, began)?;
        }
        view.ingest_watch(node, Epoch(1), WatchInput::Delta { first_seq, ops }, began)?;
    }
    report("view", before, view.count().claims, began)?;

    let (before, began) = (resident_bytes()?, Instant::now());
    let mut table = Table::default();
    for (node, first_seq, ops) in batches(entries) {
        let Applied { outcome, .. } = table.apply(&Command::Apply { node, epoch: Epoch(1), boot_id, first_seq, ops });
        if !matches!(outcome, Outcome::Applied { .. }) {
            return Err(format!("the table refused a batch: {outcome:?}").into());
        }
    }
    report("table", before, table.len(), began)?;

    let began = Instant::now();
    let snapshot = table.snapshot();
    let frozen = began.elapsed();
    let bytes: usize = snapshot.blocks().map(|block| block.len()).sum();
    println!("snapshot: frozen in {frozen:?}, {bytes} bytes written out in {:?}", began.elapsed());

    let began = Instant::now();
    view.ingest_watch(NodeId(1), Epoch(1), WatchInput::Down, began)?;
    let mut longest = began.elapsed();
    let owners = view.owners().len();
    std::thread::scope(|scope| -> Result<(), IngestError> {
        let telling = scope.spawn(|| view.tell_changed_owners());
        while !telling.is_finished() {
            let at = Instant::now();
            view.ingest_watch(NodeId(2), Epoch(1), WatchInput::Heartbeat { hears: Vec::new() }, at)?;
            longest = longest.max(at.elapsed());
        }
        Ok(())
    })?;
    println!("losing one of {owners} owners: told key by key in {:?}; a writer waited {longest:?} at most", began.elapsed());

    let keys: Vec<PresenceKey> = batches(entries).flat_map(|(_, _, ops)| ops.into_iter().map(|op| *op.key())).collect();
    let began = Instant::now();
    let found = keys.iter().filter(|key| view.prefer(key, &|_| false).is_some()).count();
    println!("look-up: {:.0} ns each, {found} found", began.elapsed().as_secs_f64() * 1e9 / keys.len() as f64);
    Ok(())
}
