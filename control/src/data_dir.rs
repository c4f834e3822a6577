//! The node's data directory: one process at a time, one node for ever.
//!
//! ```text
//! DATA_DIR/lock                 flock held while a process uses the directory
//! DATA_DIR/identity/node.key    Ed25519 identity key
//! DATA_DIR/identity/name        the node's name, written on first start
//! DATA_DIR/identity/epoch       counter raised at each start
//! DATA_DIR/raft/0/              log and snapshots of Raft group 0
//! DATA_DIR/derpmap.json         the last DERP map that was served
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

/// Why the data directory cannot be used. Every message names the directory or file.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// A file or directory cannot be read or made.
    #[error("data directory: {path}: {source}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// Another process holds the lock.
    #[error("data directory {path} is in use by another process: stop that process, or give this node a directory of its own")]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// The directory belongs to a node of another name.
    #[error(
        "{path} is the data directory of node `{owner}`, not of `{name}`: set `data_dir` to this node's own directory, or `name` to `{owner}`"
    )]
    OtherNode {
        /// The directory.
        path: PathBuf,
        /// The name it was first used under.
        owner: String,
        /// The name in the configuration.
        name: String,
    },
}

impl DataDirError {
    pub(crate) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }
}

/// A locked data directory. The lock ends when this is dropped.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    _lock: File,
}

impl DataDir {
    /// Makes (mode 0700) or opens the directory, locks it, and checks that it belongs to the node called `name`.
    ///
    /// # Errors
    /// [`DataDirError`], naming the directory.
    pub fn open(path: &Path, name: &str) -> Result<Self, DataDirError> {
        let identity = path.join("identity");
        let mut builder = fs::DirBuilder::new();
        std::os::unix::fs::DirBuilderExt::mode(builder.recursive(true), 0o700);
        builder.create(&identity).map_err(DataDirError::io(&identity))?;
        let lock_path = path.join("lock");
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock_path)
            .map_err(DataDirError::io(&lock_path))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(DataDirError::InUse { path: path.to_owned() }),
            Err(error) => return Err(DataDirError::io(&lock_path)(error.into())),
        }
        let dir = Self { path: path.to_owned(), _lock: lock };
        dir.check_name(name)?;
        Ok(dir)
    }

    fn check_name(&self, name: &str) -> Result<(), DataDirError> {
        let path = self.path.join("identity/name");
        match fs::read_to_string(&path) {
            Ok(owner) if owner.trim_end() == name => Ok(()),
            Ok(owner) => Err(DataDirError::OtherNode {
                path: self.path.clone(),
                owner: owner.trim_end().to_owned(),
                name: name.to_owned(),
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                write_durably(&path, format!("{name}\n").as_bytes()).map_err(DataDirError::io(&path))
            }
            Err(error) => Err(DataDirError::io(&path)(error)),
        }
    }

    /// Where the identity key is kept.
    #[must_use]
    pub fn node_key_file(&self) -> PathBuf {
        self.path.join("identity/node.key")
    }

    /// Where the epoch counter is kept.
    #[must_use]
    pub fn epoch_file(&self) -> PathBuf {
        self.path.join("identity/epoch")
    }

    /// Where the last DERP map is kept.
    #[must_use]
    pub fn derp_map_file(&self) -> PathBuf {
        self.path.join("derpmap.json")
    }

    /// The directory of a Raft group's log and snapshots.
    #[must_use]
    pub fn raft_dir(&self, group: u32) -> PathBuf {
        self.path.join("raft").join(group.to_string())
    }
}

/// Replaces a file so that after a crash it holds either the old or the new content: written aside, synced, renamed, directory synced.
///
/// # Errors
/// Any I/O error; the old content stands then.
pub(crate) fn write_durably(path: &Path, content: &[u8]) -> io::Result<()> {
    let aside = path.with_extension("tmp");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&aside)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&aside, path)?;
    sync_dir(path.parent().unwrap_or(Path::new(".")))
}

/// Makes renames and new files of a directory durable.
pub(crate) fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_process_and_one_node_per_directory() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("a1");
        let held = DataDir::open(&path, "a1").expect("fresh directory");
        let error = DataDir::open(&path, "a1").expect_err("in use").to_string();
        assert!(error.contains("a1") && error.contains("in use by another process"), "{error}");
        drop(held);
        let error = DataDir::open(&path, "b1").expect_err("another node's").to_string();
        assert!(error.contains("data directory of node `a1`"), "{error}");
        DataDir::open(&path, "a1").expect("free again");
    }
}
