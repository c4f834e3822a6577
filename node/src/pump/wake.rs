//! Wakes that wait until a batch of packets is pushed: one wake of each destination per batch.

use std::cell::RefCell;
use std::sync::Arc;

use tokio::sync::Notify;

/// Destinations touched by one batch; more are woken at once.
const DEFERRED_MAX: usize = 256;

#[derive(Default)]
struct Deferred {
    depth: usize,
    sleepers: Vec<Arc<Notify>>,
}

thread_local! {
    static DEFERRED: RefCell<Deferred> = RefCell::default();
}

/// Runs `batch` and then wakes every writer it gave work to. `batch` is synchronous, so no other task sees its deferral.
pub(crate) fn after<T>(batch: impl FnOnce() -> T) -> T {
    struct Flush;
    impl Drop for Flush {
        fn drop(&mut self) {
            let sleepers = DEFERRED.with_borrow_mut(|deferred| {
                deferred.depth -= 1;
                if deferred.depth == 0 { std::mem::take(&mut deferred.sleepers) } else { Vec::new() }
            });
            sleepers.iter().for_each(|sleeper| sleeper.notify_one());
            DEFERRED.with_borrow_mut(|deferred| {
                // The list's memory is kept for the next batch of this thread.
                if deferred.sleepers.capacity() == 0 {
                    deferred.sleepers = sleepers;
                    deferred.sleepers.clear();
                }
            });
        }
    }
    DEFERRED.with_borrow_mut(|deferred| deferred.depth += 1);
    let _flush = Flush;
    batch()
}

/// Wakes a writer: at once, or at the end of the batch that runs on this thread.
pub(crate) fn wake(sleeper: &Arc<Notify>) {
    let at_once = DEFERRED.with_borrow_mut(|deferred| {
        if deferred.depth == 0 || deferred.sleepers.len() >= DEFERRED_MAX {
            return true;
        }
        deferred.sleepers.push(Arc::clone(sleeper));
        false
    });
    if at_once {
        sleeper.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn a_sleeper_is_woken_after_the_batch_and_at_once_outside_of_one() {
        let sleeper = Arc::new(Notify::new());
        after(|| {
            wake(&sleeper);
            assert!(sleeper.notified().now_or_never().is_none(), "not before the batch ends");
        });
        assert!(sleeper.notified().now_or_never().is_some());
        wake(&sleeper);
        assert!(sleeper.notified().now_or_never().is_some());
    }
}
