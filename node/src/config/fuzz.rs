//! What the fuzzer of the configuration runs: it fails by a panic, if reading or checking a text panics or breaks a promise.

use std::path::Path;

use super::{Config, FileConfig};

/// Reads and checks a configuration as the program does, without looking at the files that it names. Behind the first NUL stand
/// overrides (`--set`), a NUL between each two. What was read is printed, and read alike.
pub fn config(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut parts = text.split('\0');
    let file = parts.next().unwrap_or_default();
    let sets: Vec<String> = parts.map(str::to_owned).collect();
    let path = Path::new("node.toml");
    match FileConfig::parse(path, file, &sets) {
        Ok(file) => {
            let printed = file.to_string();
            let again = FileConfig::parse(path, &printed, &[]).expect("what we print we read");
            assert_eq!(again.to_string(), printed);
            drop(file.to_line());
            if let Err(error) = Config::validate_without_files(path, &file) {
                assert!(!error.problems.is_empty(), "a refusal says why");
                assert!(error.problems.iter().all(|problem| !problem.message.is_empty()), "{error}");
            }
        }
        Err(error) => assert!(error.to_string().contains("node.toml"), "{error}"),
    }
}
