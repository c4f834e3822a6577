//! Decides when the log is long enough for a snapshot, and whether there is one by now.

use super::log::Appended;

/// Keeps count of what the snapshots cover. Pure: told of the log and the snapshots from time to time.
#[derive(Debug, Default)]
pub(super) struct SnapshotDue {
    /// Bytes of the log that a snapshot stands for.
    covered_bytes: u64,
    /// The end of what a snapshot is due for.
    until: Option<Appended>,
}

impl SnapshotDue {
    /// Whether a snapshot is to be asked for now, given the last indices that are applied and that the newest snapshot holds.
    ///
    /// A snapshot holds what is applied, which comes later than appended; so one is due until it holds what made it due. It may be asked
    /// for more than once: a wish is not heeded while one is being built.
    pub(super) fn is_to_be_taken(&mut self, appended: Appended, bytes_max: u64, applied: u64, snapshot: u64) -> bool {
        if self.until.is_none() && appended.bytes - self.covered_bytes > bytes_max {
            self.until = Some(appended);
        }
        let Some(until) = self.until else { return false };
        if snapshot >= until.index {
            (self.covered_bytes, self.until) = (until.bytes, None);
            return false;
        }
        applied >= until.index
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn appended(bytes: u64, index: u64) -> Appended {
        Appended { bytes, index }
    }

    #[test]
    fn a_snapshot_is_due_until_it_holds_what_made_it_due() {
        let mut due = SnapshotDue::default();
        assert!(!due.is_to_be_taken(appended(100, 4), 100, 4, 0), "not more than allowed");
        assert!(!due.is_to_be_taken(appended(101, 5), 100, 4, 0), "a snapshot would not hold the last entry yet");
        assert!(due.is_to_be_taken(appended(150, 7), 100, 5, 0));
        assert!(due.is_to_be_taken(appended(150, 7), 100, 7, 3), "asked for while an older one was being built");
        assert!(!due.is_to_be_taken(appended(150, 7), 100, 7, 6));
        // What was appended since it became due counts for the next one.
        assert!(!due.is_to_be_taken(appended(201, 8), 100, 8, 6));
        assert!(due.is_to_be_taken(appended(202, 9), 100, 9, 6));
        assert!(!due.is_to_be_taken(appended(202, 9), 100, 9, 9));
    }
}
