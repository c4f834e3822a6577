//! What validation reads of this machine: the files that a configuration names.

use std::fmt::Display;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use causeway_client::Trust;

use crate::admission::list::KeyList;

/// Largest key, certificate or seed file worth reading.
const KEY_FILE_LEN_MAX: u64 = 4096;

/// Where the files are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Files {
    /// On this machine.
    Here,
    /// There are none, and nothing is looked at: a text from nowhere may name any file.
    #[cfg(any(test, feature = "fuzzing"))]
    Nowhere,
}

impl Files {
    pub(super) fn exists(self, path: &Path) -> bool {
        self == Self::Here && path.exists()
    }

    pub(super) fn is_dir(self, path: &Path) -> bool {
        self == Self::Here && path.is_dir()
    }

    /// A small file that only its owner may read. Files among systemd credentials are guarded by their directory.
    pub(super) fn secret(self, path: &Path) -> Result<String, String> {
        self.there()?;
        let metadata = std::fs::metadata(path).map_err(|error| format!("cannot read: {error}"))?;
        if !metadata.is_file() {
            return Err("is not a file".into());
        }
        let credential = std::env::var_os("CREDENTIALS_DIRECTORY").is_some_and(|directory| path.starts_with(directory));
        let mode = metadata.permissions().mode() & 0o777;
        if mode & 0o077 != 0 && !credential {
            return Err(format!("may be read by others (mode {mode:03o}): wanted mode 600"));
        }
        if metadata.len() > KEY_FILE_LEN_MAX {
            return Err(format!("is longer than {KEY_FILE_LEN_MAX} bytes: wanted a key of 64 hex digits"));
        }
        std::fs::read_to_string(path).map_err(|error| format!("cannot read: {error}"))
    }

    /// A list of keys.
    pub(super) fn keys(self, path: &Path) -> Result<KeyList, String> {
        self.there()?;
        KeyList::load(path).map_err(text)
    }

    /// The roots in a file, or without one those of the system.
    pub(super) fn trust(self, ca_file: Option<&Path>) -> Result<Trust, String> {
        self.there()?;
        ca_file.map_or_else(Trust::system, Trust::ca_file).map_err(text)
    }

    fn there(self) -> Result<(), String> {
        if self == Self::Here { Ok(()) } else { Err("is not there".to_owned()) }
    }
}

fn text(error: impl Display) -> String {
    error.to_string()
}
