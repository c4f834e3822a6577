//! The epoch counter: raised and synced at each start, so that peers can tell this process's claims from its predecessor's.

use std::fs;
use std::io;
use std::path::PathBuf;

use causeway_proto::id::Epoch;

use crate::data_dir::write_durably;

/// Starts that a restored backup of the counter may have missed.
pub const EPOCH_AHEAD_MAX: u64 = 1 << 20;

/// Why the epoch counter cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum EpochError {
    /// The file cannot be read or written.
    #[error("epoch file {path}: {source}")]
    Io {
        /// The counter's file.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// The file holds no positive decimal number.
    #[error(
        "epoch file {path} is damaged: it must hold one positive decimal number; write the highest epoch that `causeway node get` shows at a peer into it"
    )]
    Damaged {
        /// The counter's file.
        path: PathBuf,
    },
}

/// The counter on disk. Only the process that holds the data directory's lock may use it.
#[derive(Debug)]
pub struct EpochCounter {
    path: PathBuf,
    epoch: Epoch,
}

impl EpochCounter {
    /// Raises the counter by one and syncs it; the first epoch ever is 1.
    ///
    /// # Errors
    /// [`EpochError`], naming the file.
    pub fn raise(path: PathBuf) -> Result<Self, EpochError> {
        let last = match fs::read_to_string(&path) {
            Ok(text) => match text.trim().parse::<u64>() {
                Ok(last) if last > 0 && last < u64::MAX / 2 => last,
                _ => return Err(EpochError::Damaged { path }),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(source) => return Err(EpochError::Io { path, source }),
        };
        let mut counter = Self { path, epoch: Epoch(last) };
        counter.store(Epoch(last + 1))?;
        Ok(counter)
    }

    /// This process's epoch.
    #[must_use]
    pub const fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Takes the epoch after the highest one that peers have seen under this node's id; does nothing if ours is higher already, or if
    /// theirs is further ahead than [`EPOCH_AHEAD_MAX`], because no backup is so old.
    ///
    /// # Errors
    /// [`EpochError::Io`], naming the file.
    pub fn pass(&mut self, highest_seen: Epoch) -> Result<(), EpochError> {
        if highest_seen < self.epoch {
            return Ok(());
        }
        if highest_seen.0 - self.epoch.0 > EPOCH_AHEAD_MAX {
            tracing::warn!(seen = %highest_seen, own = %self.epoch, "a peer tells of an epoch of this node that cannot be");
            return Ok(());
        }
        self.store(Epoch(highest_seen.0 + 1))
    }

    fn store(&mut self, epoch: Epoch) -> Result<(), EpochError> {
        write_durably(&self.path, format!("{epoch}\n").as_bytes())
            .map_err(|source| EpochError::Io { path: self.path.clone(), source })?;
        self.epoch = epoch;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_start_raises_the_counter_and_peers_may_push_it_further() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("epoch");
        assert_eq!(EpochCounter::raise(path.clone()).expect("first").epoch(), Epoch(1));
        let mut second = EpochCounter::raise(path.clone()).expect("second");
        second.pass(Epoch(1)).expect("lower changes nothing");
        assert_eq!(second.epoch(), Epoch(2));
        second.pass(Epoch(9)).expect("restored disk");
        assert_eq!(EpochCounter::raise(path.clone()).expect("third").epoch(), Epoch(11));
        let mut counter = EpochCounter::raise(path.clone()).expect("fourth");
        counter.pass(Epoch(u64::MAX)).expect("a lie changes nothing");
        assert_eq!(counter.epoch(), Epoch(12));
        fs::write(&path, "nonsense").expect("damage");
        assert!(matches!(EpochCounter::raise(path), Err(EpochError::Damaged { .. })));
    }
}
