//! Runs the bodies of the fuzz targets over their committed corpora, over changed copies of them, and over random bytes: what a fuzzer
//! does, in the time of an ordinary test.

use std::fs;
use std::path::Path;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::{TARGETS, Target};

/// Changed copies of each corpus file, and random inputs, per target.
const CHANGED_COPIES: usize = 40;
const RANDOM_INPUTS: usize = 300;
const RANDOM_LEN_MAX: usize = 512;

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut files: Vec<_> = fs::read_dir(&folder)
        .unwrap_or_else(|e| panic!("{} cannot be read: {e}", folder.display()))
        .map(|entry| entry.expect("an entry of the folder").path())
        .collect();
    files.sort();
    files.iter().map(|file| fs::read(file).expect("a corpus file")).collect()
}

/// Says which input made a target fail: in hex, to be added to its corpus.
fn run(name: &str, target: Target, input: &[u8]) {
    let result = std::panic::catch_unwind(|| target(input));
    assert!(result.is_ok(), "{name} fails for {}", data_encoding::HEXLOWER.encode(input));
}

/// Overwrites, inserts or removes some bytes.
fn change(bytes: &mut Vec<u8>, rng: &mut StdRng) {
    for _ in 0..rng.random_range(1..4) {
        if bytes.is_empty() {
            return;
        }
        let at = rng.random_range(0..bytes.len());
        match rng.random_range(0..4) {
            0 => bytes[at] = rng.random(),
            1 => bytes[at] ^= 1 << rng.random_range(0..8),
            2 => bytes.insert(at, rng.random()),
            _ => {
                bytes.remove(at);
            }
        }
    }
}

#[test]
fn every_target_takes_its_corpus_and_every_corpus_has_a_target() {
    for (name, target) in TARGETS {
        let corpus = corpus(name);
        assert!(!corpus.is_empty(), "{name} has no corpus");
        for input in corpus {
            run(name, target, &input);
        }
    }
    let folders = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus")).expect("the corpora");
    for folder in folders {
        let name = folder.expect("a folder").file_name();
        assert!(TARGETS.iter().any(|(target, _)| *target == name), "{} has no target", name.display());
    }
}

#[test]
fn every_target_has_a_fuzzer_that_runs_it() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let manifest = fs::read_to_string(folder.join("Cargo.toml")).expect("the fuzzers' manifest");
    for (name, _) in TARGETS {
        let fuzzer = fs::read_to_string(folder.join("fuzz_targets").join(format!("{name}.rs"))).expect("a fuzzer");
        assert!(fuzzer.contains(&format!("fuzz::{name}(data)")) && manifest.contains(&format!("name = \"{name}\"")), "{name}");
    }
}

#[test]
fn no_target_fails_for_changed_or_random_bytes() {
    // A failure prints its input, so the seed need not be known.
    let mut rng = StdRng::from_os_rng();
    for (name, target) in TARGETS {
        for input in corpus(name) {
            for _ in 0..CHANGED_COPIES {
                let mut input = input.clone();
                change(&mut input, &mut rng);
                run(name, target, &input);
            }
        }
        for _ in 0..RANDOM_INPUTS {
            let mut input = vec![0; rng.random_range(0..RANDOM_LEN_MAX)];
            rng.fill(&mut input[..]);
            run(name, target, &input);
        }
    }
}
