//! This node's owner log: the only place where claims of this node are made, numbered and ended.
//!
//! Watch streams and the Raft proposer read it by sequence, from a bounded ring of recent operations or from a snapshot of the
//! present claims. The node's own [`PresenceView`] follows it the same way, before a call here returns.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use causeway_proto::id::{BootId, Epoch, NodeId};
use causeway_proto::presence::{ClaimKind, Op, PACKED_OP_LEN, PresenceKey, Rank, pack_ops, unpack_ops};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::limits::CLAIMS_PER_OWNER_MAX;
use super::log_identity::LogIdentity;
use super::view::PresenceView;

/// Operations kept for readers that resume: 16 s at the 2,000 operations/s a node may sustain (`threat-model.md` 4.4), 1.8 MB.
pub const RING_OPS_MAX: usize = 32_768;
/// Bytes of the log that the own view reads at a time.
const VIEW_READ_MAX: usize = 64 << 10;

/// The node holds [`CLAIMS_PER_OWNER_MAX`] claims: refuse the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this node holds {CLAIMS_PER_OWNER_MAX} claims, as many as it may")]
pub struct OwnerLogFull;

/// The ring does not reach back (or forward) to the sequence asked for: take a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("operations from sequence {asked} are not kept; the oldest kept is {oldest}")]
pub struct TooOld {
    /// The sequence asked for.
    pub asked: u64,
    /// The oldest sequence kept.
    pub oldest: u64,
}

/// Consecutive operations of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Sequence of the first operation.
    pub first_seq: u64,
    /// Operations from there on; empty if there is nothing new.
    pub ops: Vec<Op>,
}

impl Batch {
    /// The sequence after the last operation: where to go on.
    #[must_use]
    pub const fn next_seq(&self) -> u64 {
        self.first_seq + self.ops.len() as u64
    }
}

/// All claims as of a sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnerSnapshot {
    /// The last sequence included.
    pub seq: u64,
    /// Packed claims, sorted by key; a whole number of [`PACKED_OP_LEN`].
    pub packed: Bytes,
}

#[derive(Debug, Clone, Copy)]
struct Held {
    clock_us: u64,
    home: bool,
    kind: ClaimKind,
}

#[derive(Debug, Default)]
struct State {
    seq: u64,
    ring: VecDeque<Op>,
    claims: BTreeMap<PresenceKey, Held>,
    snapshot: Option<OwnerSnapshot>,
}

impl State {
    fn append(&mut self, op: Op) {
        if self.ring.len() == RING_OPS_MAX {
            self.ring.pop_front();
        }
        self.ring.push_back(op);
        self.seq += 1;
        self.snapshot = None;
    }

    fn claim(&mut self, key: PresenceKey, held: Held) {
        let Held { clock_us, home, kind } = held;
        let old = self.claims.insert(key, held);
        self.append(Op::Claim { key, clock_us, home, kind });
        if let Some(old) = old {
            self.append(Op::Release { key, clock_us: old.clock_us, clean: true });
        }
    }

    fn oldest(&self) -> u64 {
        self.seq + 1 - self.ring.len() as u64
    }
}

#[derive(Debug)]
struct Inner {
    identity: LogIdentity,
    view: Arc<PresenceView>,
    state: Mutex<State>,
    last_seq: watch::Sender<u64>,
}

/// Handle to this node's owner log; cheap to clone, every call holds a lock for microseconds.
#[derive(Debug, Clone)]
pub struct OwnerLog {
    inner: Arc<Inner>,
}

impl OwnerLog {
    /// An empty log of this process, followed by `view`, which must be this node's.
    #[must_use]
    pub fn new(node: NodeId, epoch: Epoch, boot_id: BootId, view: Arc<PresenceView>) -> Self {
        let identity = LogIdentity { node, epoch, boot_id };
        view.open_own(identity);
        Self { inner: Arc::new(Inner { identity, view, state: Mutex::default(), last_seq: watch::channel(0).0 }) }
    }

    /// Whose log this is.
    #[must_use]
    pub fn identity(&self) -> LogIdentity {
        self.inner.identity
    }

    /// The node's own view, which follows this log.
    #[must_use]
    pub fn view(&self) -> &PresenceView {
        &self.inner.view
    }

    /// States that this node holds `key`; `now_us` is the wall clock, microseconds since the Unix epoch.
    ///
    /// A key that is claimed already gets a new rank: the new claim and the release of the old one go out in one batch.
    ///
    /// # Errors
    /// [`OwnerLogFull`].
    pub fn claim(&self, key: PresenceKey, kind: ClaimKind, home: bool, now_us: u64) -> Result<Rank, OwnerLogFull> {
        let clock_us = {
            let mut state = self.inner.state.lock();
            if state.claims.len() >= CLAIMS_PER_OWNER_MAX && !state.claims.contains_key(&key) {
                return Err(OwnerLogFull);
            }
            let clock_us = self.mint(now_us);
            state.claim(key, Held { clock_us, home, kind });
            clock_us
        };
        self.published();
        Ok(self.rank(clock_us))
    }

    /// Changes whether a held key is home here; the claim gets a new rank if that is news. `None` if the key is not held.
    pub fn set_home(&self, key: PresenceKey, home: bool, now_us: u64) -> Option<Rank> {
        let clock_us = {
            let mut state = self.inner.state.lock();
            let held = *state.claims.get(&key)?;
            if held.home == home {
                return Some(self.rank(held.clock_us));
            }
            let clock_us = self.mint(now_us);
            state.claim(key, Held { clock_us, home, kind: held.kind });
            clock_us
        };
        self.published();
        Some(self.rank(clock_us))
    }

    /// Ends the claim of exactly this rank; `clean` if the client closed the connection. Whether there was such a claim.
    pub fn release(&self, key: PresenceKey, rank: Rank, clean: bool) -> bool {
        {
            let mut state = self.inner.state.lock();
            if state.claims.get(&key).is_none_or(|held| held.clock_us != rank.clock_us) {
                return false;
            }
            state.claims.remove(&key);
            state.append(Op::Release { key, clock_us: rank.clock_us, clean });
        }
        self.published();
        true
    }

    /// The last sequence; 0 before the first operation.
    #[must_use]
    pub fn last_seq(&self) -> u64 {
        *self.inner.last_seq.borrow()
    }

    /// Claims held now.
    #[must_use]
    pub fn len(&self) -> usize {
        self.inner.state.lock().claims.len()
    }

    /// The rank of the claim on `key`, if it is held.
    #[must_use]
    pub fn rank_of(&self, key: &PresenceKey) -> Option<Rank> {
        let clock_us = self.inner.state.lock().claims.get(key)?.clock_us;
        Some(self.rank(clock_us))
    }

    /// Claims of one kind held now, by a walk over all.
    #[must_use]
    pub fn count_of(&self, kind: ClaimKind) -> usize {
        self.inner.state.lock().claims.values().filter(|held| held.kind == kind).count()
    }

    /// Whether no claim is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tells of each new last sequence, at once.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.inner.last_seq.subscribe()
    }

    /// Operations from sequence `seq` on, as many as pack into `max_bytes` (at least one if there is any).
    ///
    /// # Errors
    /// [`TooOld`] if the ring does not hold `seq` and it is not the next one either.
    pub fn ops_from(&self, seq: u64, max_bytes: usize) -> Result<Batch, TooOld> {
        let state = self.inner.state.lock();
        let oldest = state.oldest();
        if seq < oldest || seq > state.seq + 1 {
            return Err(TooOld { asked: seq, oldest });
        }
        let skip = usize::try_from(seq - oldest).unwrap_or(usize::MAX);
        let ops = state.ring.iter().skip(skip).take((max_bytes / PACKED_OP_LEN).max(1)).copied().collect();
        Ok(Batch { first_seq: seq, ops })
    }

    /// All claims as of the last sequence. Shared between readers until the next operation.
    #[must_use]
    pub fn snapshot(&self) -> OwnerSnapshot {
        let mut state = self.inner.state.lock();
        if let Some(snapshot) = &state.snapshot {
            return snapshot.clone();
        }
        let ops: Vec<Op> = state
            .claims
            .iter()
            .map(|(key, held)| Op::Claim { key: *key, clock_us: held.clock_us, home: held.home, kind: held.kind })
            .collect();
        let snapshot = OwnerSnapshot { seq: state.seq, packed: pack_ops(&ops) };
        state.snapshot = Some(snapshot.clone());
        snapshot
    }

    /// Called under the lock, so that the ranks of a key ascend in the log.
    fn mint(&self, now_us: u64) -> u64 {
        self.inner.view.clock().mint(now_us)
    }

    fn rank(&self, clock_us: u64) -> Rank {
        Rank { clock_us, node: self.inner.identity.node }
    }

    /// Several callers may do so at once: operations count by their sequence.
    fn catch_view_up(&self) {
        let view = &self.inner.view;
        loop {
            match self.ops_from(view.own_seq() + 1, VIEW_READ_MAX) {
                Ok(batch) if batch.ops.is_empty() => return,
                Ok(batch) => view.extend_own(batch.first_seq, &batch.ops),
                Err(TooOld { .. }) => {
                    let snapshot = self.snapshot();
                    view.replace_own(snapshot.seq, &unpack_ops(&snapshot.packed).expect("packed by this process"));
                }
            }
        }
    }

    /// Lets the own view catch up, then wakes the readers.
    fn published(&self) {
        self.catch_view_up();
        let seq = self.inner.state.lock().seq;
        self.inner.last_seq.send_if_modified(|last| {
            let news = seq > *last;
            *last = seq.max(*last);
            news
        });
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use causeway_proto::id::RegionId;

    const OWN: NodeId = NodeId(7);

    fn key(n: u64) -> PresenceKey {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&n.to_be_bytes());
        PresenceKey(key)
    }

    fn log() -> (OwnerLog, Arc<PresenceView>) {
        let view = Arc::new(PresenceView::new(OWN, RegionId(1)));
        (OwnerLog::new(OWN, Epoch(1), BootId([1; 16]), Arc::clone(&view)), view)
    }

    #[test]
    fn a_change_of_home_is_a_claim_and_the_release_of_the_old_in_one_batch() {
        let (log, view) = log();
        let first = log.claim(key(1), ClaimKind::Derp, false, 100).unwrap();
        assert_eq!(log.set_home(key(1), false, 200), Some(first), "no news, no new rank");
        let second = log.set_home(key(1), true, 50).unwrap();
        assert!(second > first);
        let ops = log.ops_from(2, usize::MAX).unwrap().ops;
        let claim = Op::Claim { key: key(1), clock_us: second.clock_us, home: true, kind: ClaimKind::Derp };
        assert_eq!(ops, [claim, Op::Release { key: key(1), clock_us: first.clock_us, clean: true }]);
        let own = view.claims(&key(1));
        assert_eq!((own.len(), own[0].rank, own[0].home), (1, second, true));
        assert_eq!(log.set_home(key(2), true, 1), None);
    }

    #[test]
    fn a_release_ends_exactly_its_rank() {
        let (log, view) = log();
        let old = log.claim(key(1), ClaimKind::Derp, false, 1).unwrap();
        let new = log.claim(key(1), ClaimKind::Derp, false, 1).unwrap();
        assert!(!log.release(key(1), old, true), "it was replaced");
        assert!(view.has_valid_claim(&key(1)));
        assert!(log.release(key(1), new, true));
        assert!(!log.release(key(1), new, true));
        assert!(!view.has_valid_claim(&key(1)) && log.is_empty());
        assert_eq!(log.last_seq(), 4);
    }

    #[test]
    fn a_rank_exceeds_the_best_known_for_the_key() {
        let (log, view) = log();
        let (node, epoch) = (NodeId(8), Epoch(1));
        let now = std::time::Instant::now();
        view.ingest_watch(node, epoch, super::super::WatchInput::Hello { boot_id: BootId([2; 16]) }, now).unwrap();
        let ahead = Op::Claim { key: key(1), clock_us: 5_000, home: true, kind: ClaimKind::Derp };
        view.ingest_watch(node, epoch, super::super::WatchInput::Delta { first_seq: 1, ops: vec![ahead] }, now).unwrap();
        assert_eq!(log.claim(key(1), ClaimKind::Derp, false, 100).unwrap().clock_us, 5_001);
    }

    #[test]
    fn readers_resume_within_the_ring_and_take_a_snapshot_beyond_it() {
        let (log, _) = log();
        assert_eq!(log.ops_from(1, 1), Ok(Batch { first_seq: 1, ops: Vec::new() }));
        assert_eq!(log.ops_from(2, 1), Err(TooOld { asked: 2, oldest: 1 }), "nothing is known of the future");
        let mut news = log.subscribe();
        for n in 0..=RING_OPS_MAX as u64 {
            log.claim(key(n % 10), ClaimKind::Derp, false, n).unwrap();
        }
        assert!(news.has_changed().unwrap());
        let last = *news.borrow_and_update();
        let oldest = last + 1 - RING_OPS_MAX as u64;
        assert_eq!(log.ops_from(oldest - 1, 1), Err(TooOld { asked: oldest - 1, oldest }));
        assert_eq!(log.ops_from(oldest, 3 * PACKED_OP_LEN + 1).unwrap().ops.len(), 3);
        let snapshot = log.snapshot();
        assert_eq!((snapshot.seq, unpack_ops(&snapshot.packed).unwrap().len()), (last, 10));
        assert_eq!(snapshot.packed.as_ptr(), log.snapshot().packed.as_ptr(), "readers share it");
    }

    #[test]
    fn a_node_holds_a_bounded_number_of_claims() {
        let (log, _) = log();
        for n in 0..CLAIMS_PER_OWNER_MAX as u64 {
            log.claim(key(n), ClaimKind::Derp, false, 1).unwrap();
        }
        assert_eq!(log.claim(key(u64::MAX), ClaimKind::Derp, false, 1), Err(OwnerLogFull));
        let rank = log.claim(key(0), ClaimKind::Derp, true, 1).unwrap();
        assert!(log.release(key(0), rank, false));
        assert!(log.claim(key(u64::MAX), ClaimKind::Derp, false, 1).is_ok());
    }

    #[test]
    fn concurrent_changes_leave_view_and_log_equal_and_ranks_ascending() {
        let (log, view) = log();
        std::thread::scope(|scope| {
            for thread in 0..4u64 {
                let log = log.clone();
                scope.spawn(move || {
                    for n in 0..400 {
                        let rank = log.claim(key((n + thread) % 5), ClaimKind::Derp, n % 2 == 0, n).unwrap();
                        if n % 3 == 0 {
                            log.release(key((n + thread) % 5), rank, false);
                        }
                    }
                });
            }
        });
        let mut last = [0; 5];
        for op in log.ops_from(1, usize::MAX).unwrap().ops {
            if let Op::Claim { key, clock_us, .. } = op {
                let last = &mut last[usize::from(key.0[7])];
                assert!(clock_us > *last, "ranks of a key ascend in the log");
                *last = clock_us;
            }
        }
        let held = unpack_ops(&log.snapshot().packed).unwrap();
        let mut seen = Vec::new();
        view.for_each(|key, claims| seen.push((key, claims[0].rank.clock_us)));
        seen.sort_unstable();
        assert_eq!(seen, held.iter().map(|op| (*op.key(), op.clock_us())).collect::<Vec<_>>());
        assert_eq!(view.cursor(OWN).next_seq, log.last_seq() + 1);
    }
}
