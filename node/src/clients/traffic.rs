//! What one connection has carried: bytes both ways, and about how many keys sent to it.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use causeway_proto::key::NodePublic;

/// Counters of one connection. Reading and writing it are two tasks, each of which writes its own counter.
#[derive(Debug, Default)]
pub struct Traffic {
    received: AtomicU64,
    sent: AtomicU64,
    senders: OnceLock<Box<SenderEstimate>>,
}

impl Traffic {
    /// Bytes of frames that came from the client.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Bytes of frames written to the client.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// About how many different keys the client was sent packets of.
    #[must_use]
    pub fn unique_senders(&self) -> u64 {
        self.senders.get().map_or(0, |senders| senders.estimate())
    }

    /// Called by the reader only.
    pub(crate) fn note_received(&self, bytes: usize) {
        self.received.store(self.received() + bytes as u64, Ordering::Relaxed);
    }

    /// Called by the writer only.
    pub(crate) fn note_sent(&self, bytes: usize) {
        self.sent.store(self.sent() + bytes as u64, Ordering::Relaxed);
    }

    /// Called by the writer only.
    pub(crate) fn note_sender(&self, source: &NodePublic) {
        self.senders.get_or_init(Box::default).add(source);
    }
}

/// Registers of the estimate: 512 bytes per connection that got a packet; the error is about 5 %.
const REGISTERS: usize = 512;
const INDEX_BITS: u32 = REGISTERS.trailing_zeros();

/// HyperLogLog: how many different keys were added, without remembering any (Flajolet and others, 2007).
#[derive(Debug)]
struct SenderEstimate {
    registers: [AtomicU8; REGISTERS],
}

impl Default for SenderEstimate {
    fn default() -> Self {
        Self { registers: [const { AtomicU8::new(0) }; REGISTERS] }
    }
}

impl SenderEstimate {
    fn add(&self, key: &NodePublic) {
        let mut hasher = DefaultHasher::new();
        key.as_bytes().hash(&mut hasher);
        let hash = hasher.finish();
        let register = &self.registers[(hash >> (u64::BITS - INDEX_BITS)) as usize];
        // The bit set below the index bounds the count of leading zeros.
        let rank = ((hash << INDEX_BITS) | (1 << (INDEX_BITS - 1))).leading_zeros() + 1;
        register.fetch_max(u8::try_from(rank).unwrap_or(u8::MAX), Ordering::Relaxed);
    }

    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an estimate far below 2^53, never negative")]
    fn estimate(&self) -> u64 {
        let ranks = self.registers.iter().map(|register| register.load(Ordering::Relaxed));
        let registers = REGISTERS as f64;
        let sum: f64 = ranks.clone().map(|rank| 0.5f64.powi(i32::from(rank))).sum();
        let raw = 0.7213 / (1.0 + 1.079 / registers) * registers * registers / sum;
        let untouched = ranks.filter(|rank| *rank == 0).count();
        // Few keys are counted better by the registers that none of them touched.
        let small = raw <= 2.5 * registers && untouched > 0;
        let estimate = if small { registers * (registers / untouched as f64).ln() } else { raw };
        estimate.round() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u64) -> NodePublic {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&n.to_be_bytes());
        NodePublic::from_bytes(bytes)
    }

    #[test]
    fn senders_are_estimated_within_a_few_percent_and_repeats_change_nothing() {
        for count in [1, 10, 100, 1_000, 10_000, 100_000] {
            let traffic = Traffic::default();
            assert_eq!(traffic.unique_senders(), 0);
            for n in (0..count).chain(0..count) {
                traffic.note_sender(&key(n));
            }
            let estimate = traffic.unique_senders();
            let error = (estimate as f64 - count as f64).abs() / count as f64;
            // Three standard errors; few keys are exact.
            assert!(error < 0.14 && (count > 10 || estimate == count), "{count}: {estimate}");
        }
    }

    #[test]
    fn bytes_add_up() {
        let traffic = Traffic::default();
        traffic.note_received(37);
        traffic.note_sent(5);
        traffic.note_sent(6);
        assert_eq!((traffic.received(), traffic.sent()), (37, 11));
    }
}
