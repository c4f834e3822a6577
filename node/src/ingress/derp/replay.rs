//! Logins seen before: a captured login frame is taken once (`threat-model.md` 4.2).

use std::collections::{HashSet, VecDeque};
use std::hash::{BuildHasher, RandomState};

use causeway_proto::key::NodePublic;
use parking_lot::Mutex;

/// Logins remembered; the oldest is forgotten first. Memory is taken as logins come.
const REMEMBERED_MAX: usize = 1 << 20;

/// The last logins of this process, as keyed hashes of (key, nonce).
#[derive(Debug)]
pub(super) struct ReplayCache {
    hasher: RandomState,
    seen: Mutex<Seen>,
    max: usize,
}

#[derive(Debug, Default)]
struct Seen {
    hashes: HashSet<u64>,
    by_age: VecDeque<u64>,
}

impl Default for ReplayCache {
    fn default() -> Self {
        Self::with_max(REMEMBERED_MAX)
    }
}

impl ReplayCache {
    fn with_max(max: usize) -> Self {
        Self { hasher: RandomState::new(), seen: Mutex::default(), max }
    }

    /// Notes a login; false if it was seen before.
    pub(super) fn is_fresh(&self, key: &NodePublic, nonce: &[u8]) -> bool {
        let hash = self.hasher.hash_one((key, nonce));
        let mut seen = self.seen.lock();
        if !seen.hashes.insert(hash) {
            return false;
        }
        seen.by_age.push_back(hash);
        if seen.by_age.len() > self.max
            && let Some(oldest) = seen.by_age.pop_front()
        {
            seen.hashes.remove(&oldest);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_is_taken_once_while_it_is_remembered() {
        let cache = ReplayCache::with_max(2);
        let key = NodePublic::from_bytes([1; 32]);
        assert!(cache.is_fresh(&key, &[1]));
        assert!(!cache.is_fresh(&key, &[1]));
        assert!(cache.is_fresh(&NodePublic::from_bytes([2; 32]), &[1]));
        assert!(cache.is_fresh(&key, &[2]), "the third forgets the first");
        assert!(cache.is_fresh(&key, &[1]));
        assert_eq!(cache.seen.lock().hashes.len(), 2);
    }
}
