//! The ready file: written once clients are served, so that scripts and the fleet tools can wait for it and learn the ports.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Version of the format.
pub const VERSION: u32 = 1;

/// What the file says; documented in `docs/operations/configuration.md`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// [`VERSION`].
    pub version: u32,
    /// The node's name.
    pub name: String,
    /// 16 hex digits.
    pub node_id: String,
    /// Process id.
    pub pid: u32,
    /// Raised at each start.
    pub epoch: u64,
    /// `HOST:PORT` of DERP over TLS.
    pub derp: String,
    /// `HOST:PORT` of plain HTTP; empty: off.
    pub plain_http: String,
    /// `HOST:PORT` of STUN; empty: off.
    pub stun: String,
    /// `HOST:PORT` of the mesh port; empty: off.
    pub mesh: String,
    /// `HOST:PORT` of the operator port; empty: off.
    pub operator: String,
    /// Path of the operator socket.
    pub operator_socket: String,
    /// URL of the metrics; empty: off.
    pub metrics: String,
    /// 64 hex digits.
    pub derp_public_key: String,
}

/// The file on disk, removed again on drop.
#[derive(Debug)]
pub struct ReadyFile {
    path: PathBuf,
}

/// The ready file cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("--ready-file {}: {source}", path.display())]
pub struct ReadyFileError {
    path: PathBuf,
    source: io::Error,
}

impl ReadyFile {
    /// Removes what an earlier process may have left.
    ///
    /// # Errors
    /// [`ReadyFileError`] if it cannot be removed.
    pub fn clear(path: &Path) -> Result<(), ReadyFileError> {
        match fs::remove_file(path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(ReadyFileError { path: path.to_owned(), source }),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Writes the file so that a reader sees all of it or none.
    ///
    /// # Errors
    /// [`ReadyFileError`].
    pub fn write(path: &Path, ready: &Ready) -> Result<Self, ReadyFileError> {
        let failed = |source| ReadyFileError { path: path.to_owned(), source };
        let temporary = path.with_added_extension(format!("{}.tmp", ready.pid));
        let mut text = serde_json::to_vec_pretty(ready).map_err(|error| failed(error.into()))?;
        text.push(b'\n');
        fs::File::create(&temporary).and_then(|mut file| file.write_all(&text)).map_err(failed)?;
        fs::rename(&temporary, path).map_err(failed)?;
        Ok(Self { path: path.to_owned() })
    }
}

impl Drop for ReadyFile {
    fn drop(&mut self) {
        // The process ends either way; a file left behind is cleared by the next start.
        drop(fs::remove_file(&self.path));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_holds_every_field_and_goes_away_with_its_process() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("ready.json");
        let ready = Ready {
            version: VERSION,
            name: "a-1".into(),
            node_id: "00".repeat(8),
            pid: 7,
            epoch: 3,
            derp: "127.0.0.1:1".into(),
            plain_http: String::new(),
            stun: String::new(),
            mesh: "127.0.0.1:2".into(),
            operator: String::new(),
            operator_socket: "/run/x.sock".into(),
            metrics: "http://127.0.0.1:3/metrics".into(),
            derp_public_key: "ab".repeat(32),
        };
        let file = ReadyFile::write(&path, &ready).expect("written");
        let text = fs::read_to_string(&path).expect("readable");
        assert_eq!(serde_json::from_str::<Ready>(&text).expect("JSON"), ready);
        assert_eq!(fs::read_dir(dir.path()).expect("listable").count(), 1, "no temporary file stays");
        drop(file);
        assert!(!path.exists());
        ReadyFile::clear(&path).expect("nothing to clear is fine");
    }
}
