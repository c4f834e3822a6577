//! Seeds from a file that deployment tooling rewrites: a JSON list of HOST:PORT.

use std::fs::{self, File};
use std::io::Read;
use std::path::PathBuf;
use std::time::SystemTime;

use super::{Discovery, SEEDS_MAX, is_address};

/// Largest file that is read.
const FILE_SIZE_MAX: u64 = 256 << 10;

/// A file, read again when its time of change or length changes. While it is missing or malformed the last good list stands.
#[derive(Debug)]
pub struct SeedFile {
    path: PathBuf,
    read_at: Option<(SystemTime, u64)>,
    seeds: Vec<String>,
}

impl SeedFile {
    /// Reads `path` at the first call of [`Discovery::seeds`].
    #[must_use]
    pub const fn new(path: PathBuf) -> Self {
        Self { path, read_at: None, seeds: Vec::new() }
    }

    fn read(&self, length: u64) -> Result<Vec<String>, String> {
        if length > FILE_SIZE_MAX {
            return Err(format!("{length} bytes are more than {FILE_SIZE_MAX}"));
        }
        let mut text = String::new();
        let file = File::open(&self.path).map_err(|error| error.to_string())?;
        file.take(FILE_SIZE_MAX).read_to_string(&mut text).map_err(|error| error.to_string())?;
        let seeds: Vec<String> =
            serde_json::from_str(&text).map_err(|error| format!("it must be a JSON list of \"HOST:PORT\": {error}"))?;
        match seeds.iter().find(|seed| !is_address(seed)) {
            Some(seed) => Err(format!("`{seed}` is not HOST:PORT")),
            None if seeds.len() > SEEDS_MAX => Err(format!("more than {SEEDS_MAX} seeds")),
            None => Ok(seeds),
        }
    }
}

impl Discovery for SeedFile {
    fn seeds(&mut self) -> Vec<String> {
        let Ok(metadata) = fs::metadata(&self.path) else { return self.seeds.clone() };
        let stamp = (metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH), metadata.len());
        if self.read_at != Some(stamp) {
            self.read_at = Some(stamp);
            match self.read(metadata.len()) {
                Ok(seeds) => self.seeds = seeds,
                Err(reason) => {
                    tracing::warn!(file = %self.path.display(), reason, "the seed file cannot be used; the last good list stands");
                }
            }
        }
        self.seeds.clone()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn the_file_is_read_again_and_a_bad_one_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("seeds.json");
        let mut file = SeedFile::new(path.clone());
        assert!(file.seeds().is_empty());
        fs::write(&path, r#"["127.0.0.1:1", "[::1]:22"]"#).unwrap();
        assert_eq!(file.seeds(), ["127.0.0.1:1", "[::1]:22"]);
        for bad in [r#"["nowhere"]"#, "{}", "[", r#"["host:0"]"#] {
            fs::write(&path, bad).unwrap();
            assert_eq!(file.seeds(), ["127.0.0.1:1", "[::1]:22"], "{bad}");
        }
        fs::write(&path, r#"["relay.example:7443"]"#).unwrap();
        assert_eq!(file.seeds(), ["relay.example:7443"]);
    }
}
