//! The leash: a file locked exclusively by whoever runs a fleet. When its holder ends, however it ends, the kernel frees the lock,
//! and every process that waits for it ends too.

use std::fs::File;
use std::path::Path;

use anyhow::Context;
use rustix::fs::FlockOperation;
use tokio_util::sync::CancellationToken;

use super::layout::FileLock;

/// Takes the leash: as long as the returned lock lives, so does the fleet.
///
/// # Errors
/// If another process holds it.
pub fn hold(path: &Path) -> anyhow::Result<FileLock> {
    FileLock::try_now(path)
}

/// Whether nobody holds the leash now. A missing file counts as free.
#[must_use]
pub fn is_free(path: &Path) -> bool {
    File::open(path).map_or(true, |file| rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared).is_ok())
}

/// Cancels the returned token once nobody holds `path` exclusively any more. A missing file counts as free.
///
/// The wait is a thread of its own, because the kernel call blocks; it ends with the process.
///
/// # Errors
/// If the file cannot be opened for another reason, or the thread cannot start.
pub fn watch(path: &Path) -> anyhow::Result<CancellationToken> {
    let freed = CancellationToken::new();
    let file = match File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            freed.cancel();
            return Ok(freed);
        }
        other => other.with_context(|| format!("leash {}: cannot be opened", path.display()))?,
    };
    let cancel = freed.clone();
    std::thread::Builder::new()
        .name("leash".to_owned())
        .spawn(move || {
            // Any other error means that the lock can never be had: ending is the safe side.
            let _result = rustix::io::retry_on_intr(|| rustix::fs::flock(&file, FlockOperation::LockShared));
            cancel.cancel();
        })
        .context("the leash's thread cannot be started")?;
    Ok(freed)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn several_watchers_learn_that_the_leash_is_free_and_not_before() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("leash");
        let held = hold(&path).expect("taken");
        hold(&path).expect_err("only once");
        assert!(!is_free(&path));
        let watchers = [watch(&path).expect("watch"), watch(&path).expect("watch")];
        tokio::time::timeout(Duration::from_millis(50), watchers[0].cancelled()).await.expect_err("still held");
        drop(held);
        for watcher in watchers {
            tokio::time::timeout(Duration::from_secs(10), watcher.cancelled()).await.expect("freed");
        }
    }

    #[tokio::test]
    async fn a_missing_leash_is_free() {
        let dir = tempfile::tempdir().expect("dir");
        assert!(watch(&dir.path().join("none")).expect("watch").is_cancelled());
        assert!(is_free(&dir.path().join("none")));
    }
}
