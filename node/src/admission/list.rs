//! A file of client keys, one per line. Text after `#` is a comment.

use std::collections::HashSet;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use causeway_proto::key::NodePublic;
use parking_lot::Mutex;

use crate::lifecycle::file_stamp::FileStamp;

/// Most keys of a list.
pub const LIST_KEYS_MAX: usize = 1 << 20;

/// Largest list that is read: so many keys, and as much again in comments.
const FILE_LEN_MAX: u64 = 160 << 20;

/// A list cannot be used. Never echoes a line: it may hold a private key put into the wrong file.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    /// The file cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A line is no key.
    #[error("{}, line {line}: wanted a client's public key, `nodekey:` and 64 hex digits, or a comment after `#`", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
    },
    /// The file or the list is too long.
    #[error("{}: wanted at most {LIST_KEYS_MAX} keys and {FILE_LEN_MAX} bytes", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
    },
}

/// A file and the keys of its last good version.
pub struct KeyList {
    path: PathBuf,
    keys: ArcSwap<HashSet<NodePublic>>,
    seen: Mutex<FileStamp>,
}

impl fmt::Debug for KeyList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyList").field("path", &self.path).field("keys", &self.len()).finish_non_exhaustive()
    }
}

impl KeyList {
    /// Reads a file.
    ///
    /// # Errors
    /// [`ListError`].
    pub fn load(path: &Path) -> Result<Self, ListError> {
        // Before the content: a file that changes meanwhile is read again.
        let seen = Mutex::new(FileStamp::of(path));
        Ok(Self { path: path.to_owned(), keys: ArcSwap::from_pointee(read(path)?), seen })
    }

    /// Whether the key is in the list.
    #[must_use]
    pub fn contains(&self, key: &NodePublic) -> bool {
        self.keys.load().contains(key)
    }

    /// How many keys it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.keys.load().len()
    }

    /// Whether it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is wrong with the file as it is now. Blocks.
    pub(super) fn fault(&self) -> Option<ListError> {
        read(&self.path).err()
    }

    /// Whether the file has changed since the last call.
    pub(super) fn has_changed(&self) -> bool {
        let now = FileStamp::of(&self.path);
        std::mem::replace(&mut *self.seen.lock(), now) != now
    }

    /// Reads the file again. Blocks.
    ///
    /// # Errors
    /// [`ListError`]; the last good version stands.
    pub(super) fn reload(&self) -> Result<(), ListError> {
        self.keys.store(Arc::new(read(&self.path)?));
        Ok(())
    }
}

fn read(path: &Path) -> Result<HashSet<NodePublic>, ListError> {
    let failed = |source| ListError::Read { path: path.to_owned(), source };
    if std::fs::metadata(path).map_err(failed)?.len() > FILE_LEN_MAX {
        return Err(ListError::TooLong { path: path.to_owned() });
    }
    parse(path, &std::fs::read(path).map_err(failed)?)
}

fn parse(path: &Path, text: &[u8]) -> Result<HashSet<NodePublic>, ListError> {
    let mut keys = HashSet::new();
    for (index, line) in text.split(|byte| *byte == b'\n').enumerate() {
        let line = line.split(|byte| *byte == b'#').next().unwrap_or_default().trim_ascii();
        if line.is_empty() {
            continue;
        }
        let wrong = || ListError::Line { path: path.to_owned(), line: index + 1 };
        let key: NodePublic = std::str::from_utf8(line).ok().and_then(|line| line.parse().ok()).ok_or_else(wrong)?;
        keys.insert(key);
        if keys.len() > LIST_KEYS_MAX {
            return Err(ListError::TooLong { path: path.to_owned() });
        }
    }
    Ok(keys)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::fs;

    use causeway_proto::key::NodePrivate;

    use super::*;

    #[test]
    fn keys_and_comments_are_read_and_a_bad_line_is_named_but_not_shown() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("allow");
        let [one, two, other] = [(); 3].map(|()| NodePrivate::generate().public());
        let text = format!("# team\n\n  {} # laptop\r\n{}", one.to_text(), two.to_text());
        fs::write(&path, &text).unwrap();
        let list = KeyList::load(&path).unwrap();
        assert!(list.contains(&one) && list.contains(&two) && !list.contains(&other) && list.len() == 2);
        for bad in ["privkey:5a5b5c", &one.to_untyped_hex(), "nodekey:12", "\u{fe}"] {
            fs::write(&path, format!("{text}\n{bad}\n")).unwrap();
            let error = KeyList::load(&path).unwrap_err().to_string();
            assert!(error.contains("allow, line 5: wanted") && !error.contains(bad), "{error}");
        }
        let error = KeyList::load(&dir.path().join("none")).unwrap_err().to_string();
        assert!(error.contains("none: "), "{error}");
    }

    #[test]
    fn a_changed_file_is_noticed_once_and_a_bad_one_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deny");
        let key = NodePrivate::generate().public();
        fs::write(&path, key.to_text()).unwrap();
        let list = KeyList::load(&path).unwrap();
        assert!(!list.has_changed());
        fs::write(&path, "nonsense").unwrap();
        assert!(list.has_changed() && !list.has_changed());
        assert!(list.reload().is_err() && list.contains(&key));
        fs::remove_file(&path).unwrap();
        assert!(list.has_changed() && list.reload().is_err() && list.contains(&key));
        fs::write(&path, "# nobody").unwrap();
        assert!(list.has_changed() && list.reload().is_ok() && list.is_empty());
    }
}
