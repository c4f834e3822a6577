//! Claims that stale notices hide: bounded, the oldest makes room.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};

use causeway_proto::presence::{PresenceKey, Rank};
use parking_lot::Mutex;

/// Claims that stale notices hide at a time.
pub const HIDDEN_MAX: usize = 65_536;

/// Claims that stale notices hide.
#[derive(Debug, Default)]
pub(super) struct Hidden {
    /// Until the owner's log passes this sequence.
    pub(super) until_seq: papaya::HashMap<(PresenceKey, Rank), u64>,
    count: AtomicUsize,
    pub(super) order: Mutex<VecDeque<(PresenceKey, Rank)>>,
}

impl Hidden {
    pub(super) fn hide(&self, key: PresenceKey, rank: Rank, until_seq: u64) {
        let map = self.until_seq.pin();
        if map.insert((key, rank), until_seq).is_some() {
            return;
        }
        let mut order = self.order.lock();
        order.push_back((key, rank));
        if order.len() > HIDDEN_MAX
            && let Some(oldest) = order.pop_front()
        {
            map.remove(&oldest);
        }
        self.count.store(order.len(), Ordering::Relaxed);
    }

    pub(super) fn hides(&self, key: &PresenceKey, rank: Rank, seq: u64) -> bool {
        self.count.load(Ordering::Relaxed) > 0 && self.until_seq.pin().get(&(*key, rank)).is_some_and(|until| seq <= *until)
    }
}
