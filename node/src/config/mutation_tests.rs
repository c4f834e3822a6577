//! Changed copies of the documented example and of the fuzzer's seeds: whatever an operator's editor leaves behind is read or refused, never a panic.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::fs;
use std::path::Path;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::fuzz;

/// Changed copies, and random texts.
const CHANGED_COPIES: usize = 2_000;
const RANDOM_TEXTS: usize = 500;
const RANDOM_LEN_MAX: usize = 300;

const EXAMPLE: &str = include_str!("../../config.example.toml");

/// What configurations are made of, and what breaks them.
const PIECES: [&str; 20] = [
    "=",
    "\"",
    "'''",
    "[",
    "]",
    "[[",
    "\n",
    "#",
    "{",
    "}",
    ",",
    ".",
    "\\u{0}",
    "\u{fffd}",
    "-1",
    "1e999",
    "true",
    "18446744073709551616",
    "nan",
    "\0",
];

fn change(text: &mut Vec<u8>, rng: &mut StdRng) {
    for _ in 0..rng.random_range(1..4) {
        let at = rng.random_range(0..text.len().max(1)).min(text.len());
        match rng.random_range(0..4) {
            0 => {
                let piece = PIECES[rng.random_range(0..PIECES.len())];
                text.splice(at..at, piece.bytes());
            }
            1 => text.truncate(at),
            2 => {
                let end = rng.random_range(at..=text.len());
                text.drain(at..end.min(at + 40));
            }
            _ => {
                let end = rng.random_range(at..=text.len()).min(at + 40);
                let copy = text[at..end].to_vec();
                let to = rng.random_range(0..=text.len());
                text.splice(to..to, copy);
            }
        }
    }
}

/// The fuzzer's seeds.
fn seeds() -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/config");
    fs::read_dir(folder).unwrap().map(|entry| fs::read(entry.unwrap().path()).unwrap()).collect()
}

#[test]
fn the_seeds_of_the_fuzzer_are_read() {
    let seeds = seeds();
    assert!(seeds.len() >= 4);
    for seed in seeds {
        fuzz::config(&seed);
        let text = String::from_utf8(seed).unwrap();
        let file = text.split('\0').next().unwrap();
        assert!(
            super::FileConfig::parse(Path::new("node.toml"), file, &[]).is_ok(),
            "a seed that is refused at once teaches little: {file}"
        );
    }
}

#[test]
fn no_text_makes_the_configuration_panic() {
    // A failure prints its input, so the seed need not be known.
    let mut rng = StdRng::from_os_rng();
    let mut inputs = vec![EXAMPLE.as_bytes().to_vec()];
    let mut sources = seeds();
    sources.push(EXAMPLE.as_bytes().to_vec());
    for _ in 0..CHANGED_COPIES {
        let mut text = sources[rng.random_range(0..sources.len())].clone();
        change(&mut text, &mut rng);
        inputs.push(text);
    }
    for _ in 0..RANDOM_TEXTS {
        let pieces = rng.random_range(0..RANDOM_LEN_MAX);
        inputs.push((0..pieces).flat_map(|_| PIECES[rng.random_range(0..PIECES.len())].bytes()).collect());
    }
    for input in inputs {
        let broken = std::panic::catch_unwind(|| fuzz::config(&input)).is_err();
        assert!(!broken, "this configuration breaks it:\n{}", String::from_utf8_lossy(&input));
    }
}
