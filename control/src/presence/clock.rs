//! The hybrid clock that mints ranks, and what is known of the peers' clocks. Reads no clock itself.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use causeway_proto::id::NodeId;
use causeway_proto::presence::Op;

/// Operations further ahead of the local wall clock than this are refused, with their whole batch.
pub const AHEAD_MAX_US: u64 = 3_600_000_000;
/// A clock further off than this from the median of its peers does not mint ranks on its own.
pub const STEP_MAX_US: i64 = 5_000_000;
/// Peers whose clocks are remembered.
const PEERS_MAX: usize = super::OWNERS_MAX;

/// Mints ranks: greater than everything seen, close to wall time. Shared, lock-free.
#[derive(Debug, Default)]
pub struct HybridClock {
    highest_us: AtomicU64,
    correction_us: AtomicI64,
}

impl HybridClock {
    /// Takes note of a rank seen anywhere.
    pub fn observe(&self, clock_us: u64) {
        self.highest_us.fetch_max(clock_us, Ordering::Relaxed);
    }

    /// A clock value greater than all minted and observed before, and at least `now_us` (wall time, corrected if it stepped).
    pub fn mint(&self, now_us: u64) -> u64 {
        let now_us = self.corrected(now_us);
        let next = |highest: u64| now_us.max(highest).saturating_add(1);
        let previous = self.highest_us.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |highest| Some(next(highest)));
        next(previous.unwrap_or_else(|highest| highest))
    }

    /// The greatest rank clock minted or observed.
    #[must_use]
    pub fn highest_us(&self) -> u64 {
        self.highest_us.load(Ordering::Relaxed)
    }

    /// Sets what is added to the local wall clock: 0, or the median offset of the peers once the local clock stepped.
    /// Returns what it was.
    pub fn set_correction_us(&self, correction_us: i64) -> i64 {
        self.correction_us.swap(correction_us, Ordering::Relaxed)
    }

    /// Local wall time as ranks and the "1 h ahead" check use it.
    #[must_use]
    pub fn corrected(&self, now_us: u64) -> u64 {
        now_us.saturating_add_signed(self.correction_us.load(Ordering::Relaxed))
    }

    /// Whether any of `ops` lies more than 1 h ahead of `now_us` (local wall time): the batch must be refused whole.
    #[must_use]
    pub fn too_far_ahead<'a>(&self, ops: impl IntoIterator<Item = &'a Op>, now_us: u64) -> bool {
        let limit = self.corrected(now_us).saturating_add(AHEAD_MAX_US);
        ops.into_iter().any(|op| op.clock_us() > limit)
    }
}

/// Offsets of the peers' clocks, as their hellos and heartbeats showed them.
#[derive(Debug, Default)]
pub struct PeerClocks {
    offsets_us: BTreeMap<NodeId, i64>,
}

impl PeerClocks {
    /// Records that `peer` said `peer_us` when the local wall clock read `local_us`.
    pub fn observe(&mut self, peer: NodeId, peer_us: u64, local_us: u64) {
        let offset = i64::try_from(i128::from(peer_us) - i128::from(local_us)).unwrap_or(i64::MAX);
        if self.offsets_us.len() < PEERS_MAX || self.offsets_us.contains_key(&peer) {
            self.offsets_us.insert(peer, offset);
        }
    }

    /// Forgets a peer that is no longer heard.
    pub fn forget(&mut self, peer: NodeId) {
        self.offsets_us.remove(&peer);
    }

    /// The median offset of the peers, microseconds; the local clock counts as one of them with offset 0.
    ///
    /// With the local clock among them, one peer that lies cannot move a fleet of two.
    #[must_use]
    pub fn median_offset_us(&self) -> i64 {
        let mut offsets: Vec<i64> = self.offsets_us.values().copied().chain([0]).collect();
        offsets.sort_unstable();
        // The lower middle of an even number, by magnitude: the smaller correction.
        let (low, high) = (offsets[(offsets.len() - 1) / 2], offsets[offsets.len() / 2]);
        if low.unsigned_abs() <= high.unsigned_abs() { low } else { high }
    }

    /// What must be added to the local clock: the median offset if it is more than 5 s, else nothing.
    #[must_use]
    pub fn correction_us(&self) -> i64 {
        let median = self.median_offset_us();
        if median.abs() > STEP_MAX_US { median } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use causeway_proto::presence::{ClaimKind, PresenceKey};

    use super::*;

    fn claim_at(clock_us: u64) -> Op {
        Op::Claim { key: PresenceKey([1; 32]), clock_us, home: false, kind: ClaimKind::Derp }
    }

    #[test]
    fn minted_ranks_exceed_wall_time_and_everything_seen() {
        let clock = HybridClock::default();
        assert_eq!(clock.mint(100), 101);
        assert_eq!(clock.mint(50), 102, "a clock that went back mints forward");
        clock.observe(1_000);
        assert_eq!((clock.mint(200), clock.highest_us()), (1_001, 1_001));
    }

    #[test]
    fn batches_more_than_an_hour_ahead_of_the_corrected_clock_are_told() {
        let clock = HybridClock::default();
        assert!(!clock.too_far_ahead(&[claim_at(AHEAD_MAX_US + 5)], 5));
        assert!(clock.too_far_ahead(&[claim_at(0), claim_at(AHEAD_MAX_US + 6)], 5));
        clock.set_correction_us(10);
        assert!(!clock.too_far_ahead(&[claim_at(AHEAD_MAX_US + 6)], 5));
    }

    #[test]
    fn a_stepped_clock_is_corrected_by_the_median_and_one_liar_moves_nothing() {
        let hour = 3_600_000_000;
        let mut clocks = PeerClocks::default();
        clocks.observe(NodeId(1), hour, 0);
        assert_eq!(clocks.correction_us(), 0, "one against one");
        clocks.observe(NodeId(2), hour + 1, 0);
        assert_eq!(clocks.correction_us(), i64::try_from(hour).expect("fits"));
        clocks.forget(NodeId(2));
        assert_eq!(clocks.correction_us(), 0);
        clocks.observe(NodeId(1), 0, 4_000_000);
        clocks.observe(NodeId(2), 0, 4_500_000);
        assert_eq!((clocks.median_offset_us(), clocks.correction_us()), (-4_000_000, 0), "within 5 s nothing is corrected");
    }
}
