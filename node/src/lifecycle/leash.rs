//! `--leash FILE`: somebody holds an exclusive lock on FILE; when it becomes free, even by `kill -9`, the node ends.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use tokio_util::sync::CancellationToken;

/// The leash file cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("--leash {}: {source}: wanted a file on which the caller holds an exclusive lock", path.display())]
pub struct LeashError {
    path: PathBuf,
    source: io::Error,
}

/// Starts watching; the token is cancelled when the lock becomes free.
///
/// A thread of its own waits in the kernel, so nothing polls and nothing is missed. It ends with the process.
///
/// # Errors
/// [`LeashError`] if the file cannot be opened.
pub fn watch(path: &Path) -> Result<CancellationToken, LeashError> {
    let failed = |source| LeashError { path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    let released = CancellationToken::new();
    let token = released.clone();
    let wait = move || {
        // A lock that cannot be waited for counts as free: better to end than to stay behind for ever.
        while flock(&file, FlockOperation::LockShared) == Err(rustix::io::Errno::INTR) {}
        token.cancel();
    };
    std::thread::Builder::new().name("leash".into()).spawn(wait).map_err(failed)?;
    Ok(released)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn the_token_is_cancelled_when_the_holder_lets_go_and_not_before() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("leash");
        let holder = File::create(&path).expect("leash file");
        flock(&holder, FlockOperation::LockExclusive).expect("lock");
        let released = watch(&path).expect("watch");
        let early = tokio::time::timeout(Duration::from_millis(50), released.cancelled()).await;
        assert!(early.is_err(), "the lock is held");
        drop(holder);
        tokio::time::timeout(Duration::from_secs(10), released.cancelled()).await.expect("the lock is free");
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = watch(Path::new("/nonexistent/leash")).expect_err("missing");
        assert!(error.to_string().contains("--leash /nonexistent/leash"), "{error}");
    }
}
