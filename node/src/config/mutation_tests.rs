//! Changed copies of the documented example: whatever an operator's editor leaves behind is read or refused, never a panic.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::path::Path;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::{Config, FileConfig};

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

/// Reads a text as the program does, and what was read once more after printing it.
fn read(text: &str) {
    let path = Path::new("node.toml");
    match FileConfig::parse(path, text, &[]) {
        Ok(file) => {
            let printed = file.to_string();
            let again = FileConfig::parse(path, &printed, &[]).expect("what we print we read");
            assert_eq!(again.to_string(), printed);
            // It names problems, or not; files it may read are named in the text, and none of them is a device.
            drop(Config::validate(path, &file));
        }
        Err(error) => assert!(error.to_string().contains("node.toml"), "{error}"),
    }
}

#[test]
fn no_text_makes_the_configuration_panic() {
    // A failure prints its input, so the seed need not be known.
    let mut rng = StdRng::from_os_rng();
    let mut inputs = vec![EXAMPLE.as_bytes().to_vec()];
    for _ in 0..CHANGED_COPIES {
        let mut text = EXAMPLE.as_bytes().to_vec();
        change(&mut text, &mut rng);
        inputs.push(text);
    }
    for _ in 0..RANDOM_TEXTS {
        let pieces = rng.random_range(0..RANDOM_LEN_MAX);
        inputs.push((0..pieces).flat_map(|_| PIECES[rng.random_range(0..PIECES.len())].bytes()).collect());
    }
    for input in inputs {
        let text = String::from_utf8_lossy(&input).into_owned();
        assert!(std::panic::catch_unwind(|| read(&text)).is_ok(), "this configuration breaks it:\n{text}");
    }
}
