//! Tells one version of a file from another, for files that are read again when they change.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::SystemTime;

/// A version of a file: when it was written, its length and its inode; nothing while it cannot be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileStamp(Option<(SystemTime, u64, u64)>);

impl FileStamp {
    /// The version that is there now. Links are followed, so that a link that is turned counts.
    #[must_use]
    pub fn of(path: &Path) -> Self {
        let looked = || {
            let metadata = std::fs::metadata(path).ok()?;
            Some((metadata.modified().ok()?, metadata.len(), metadata.ino()))
        };
        Self(looked())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn content_links_and_absence_make_a_version() {
        let dir = tempfile::tempdir().expect("a directory");
        let [one, other, link] = ["one", "other", "link"].map(|name| dir.path().join(name));
        fs::write(&one, "text").expect("written");
        fs::write(&other, "text").expect("written");
        std::os::unix::fs::symlink(&one, &link).expect("linked");
        let first = FileStamp::of(&link);
        assert_eq!(first, FileStamp::of(&one));
        fs::remove_file(&link).expect("removed");
        assert!(FileStamp::of(&link) != first && FileStamp::of(&link) == FileStamp::of(&dir.path().join("none")));
        std::os::unix::fs::symlink(&other, &link).expect("linked");
        assert_ne!(FileStamp::of(&link), first, "a link that was turned");
        fs::write(&one, "longer text").expect("written");
        assert_ne!(FileStamp::of(&one), first);
    }
}
