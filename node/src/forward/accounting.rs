//! The books of the packet path: accepted = delivered + dropped by reason + queued, at rest.
//!
//! Counters are sharded by thread, so that the packet path shares no cache line between cores.

use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};

use super::DropReason;

/// Who handed a packet to this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AcceptedFrom {
    /// A client connected here.
    Client,
    /// Another node of the fleet, over a link.
    Link,
    /// A stock derper that forwarded it over the DERP mesh.
    StockMesh,
}

/// Whom a packet was written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DeliveredTo {
    /// A client connected here.
    Client,
    /// Another node of the fleet, over a link.
    Link,
    /// A stock derper's own connection.
    StockMesh,
}

impl AcceptedFrom {
    /// Every source, in the order of their metric labels.
    pub const ALL: [Self; 3] = [Self::Client, Self::Link, Self::StockMesh];

    /// The metric label.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Link => "link",
            Self::StockMesh => "stock_mesh",
        }
    }
}

impl DeliveredTo {
    /// Every receiver, in the order of their metric labels.
    pub const ALL: [Self; 3] = [Self::Client, Self::Link, Self::StockMesh];

    /// The metric label.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Link => "link",
            Self::StockMesh => "stock_mesh",
        }
    }
}

/// Enough that few threads share one.
const SHARDS: usize = 16;

#[derive(Debug, Default)]
#[repr(align(128))]
struct Shard {
    accepted: [AtomicU64; AcceptedFrom::ALL.len()],
    accepted_bytes: [AtomicU64; AcceptedFrom::ALL.len()],
    delivered: [AtomicU64; DeliveredTo::ALL.len()],
    delivered_bytes: [AtomicU64; DeliveredTo::ALL.len()],
    dropped: [AtomicU64; DropReason::ALL.len()],
    /// Pushed minus popped here; only the sum over shards means something.
    queued: AtomicI64,
}

/// Counts every packet once where it comes in and once where it ends.
#[derive(Debug, Default)]
pub struct Accounting {
    shards: [Shard; SHARDS],
}

/// Sums of the books at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Books {
    /// Packets by [`AcceptedFrom`].
    pub accepted: [u64; AcceptedFrom::ALL.len()],
    /// Payload bytes by [`AcceptedFrom`].
    pub accepted_bytes: [u64; AcceptedFrom::ALL.len()],
    /// Packets by [`DeliveredTo`].
    pub delivered: [u64; DeliveredTo::ALL.len()],
    /// Payload bytes by [`DeliveredTo`].
    pub delivered_bytes: [u64; DeliveredTo::ALL.len()],
    /// Packets by [`DropReason`], in the order of [`DropReason::ALL`].
    pub dropped: [u64; DropReason::ALL.len()],
    /// Packets waiting in lanes or being written.
    pub queued: i64,
}

impl Books {
    /// What is accepted but neither delivered, dropped nor queued: 0 at rest.
    #[must_use]
    pub fn imbalance(&self) -> i128 {
        let sum = |counts: &[u64]| counts.iter().map(|count| i128::from(*count)).sum::<i128>();
        sum(&self.accepted) - sum(&self.delivered) - sum(&self.dropped) - i128::from(self.queued)
    }

    /// Packets dropped for `reason`.
    #[must_use]
    pub fn dropped_for(&self, reason: DropReason) -> u64 {
        self.dropped[reason as usize]
    }
}

static NEXT_SHARD: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static SHARD: usize = NEXT_SHARD.fetch_add(1, Ordering::Relaxed) % SHARDS;
}

impl Accounting {
    fn shard(&self) -> &Shard {
        &self.shards[SHARD.with(|shard| *shard)]
    }

    /// Counts a packet that came in.
    pub fn accepted(&self, from: AcceptedFrom, payload_len: usize) {
        let shard = self.shard();
        shard.accepted[from as usize].fetch_add(1, Ordering::Relaxed);
        shard.accepted_bytes[from as usize].fetch_add(payload_len as u64, Ordering::Relaxed);
    }

    /// Counts packets that left, which were queued before.
    pub fn delivered(&self, to: DeliveredTo, packets: u64, payload_bytes: u64) {
        let shard = self.shard();
        shard.delivered[to as usize].fetch_add(packets, Ordering::Relaxed);
        shard.delivered_bytes[to as usize].fetch_add(payload_bytes, Ordering::Relaxed);
        shard.queued.fetch_sub(packets.cast_signed(), Ordering::Relaxed);
    }

    /// Counts a packet that ends here and was in no queue.
    pub(crate) fn dropped(&self, reason: DropReason) {
        self.shard().dropped[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts packets that end here and were queued.
    pub(crate) fn dropped_from_queue(&self, reason: DropReason, packets: u64) {
        let shard = self.shard();
        shard.dropped[reason as usize].fetch_add(packets, Ordering::Relaxed);
        shard.queued.fetch_sub(packets.cast_signed(), Ordering::Relaxed);
    }

    /// Counts a packet that was put into a queue.
    pub(crate) fn queued(&self) {
        self.shard().queued.fetch_add(1, Ordering::Relaxed);
    }

    /// Sums all shards. Exact only while no packet moves.
    #[must_use]
    pub fn books(&self) -> Books {
        let mut books = Books::default();
        for shard in &self.shards {
            add(&mut books.accepted, &shard.accepted);
            add(&mut books.accepted_bytes, &shard.accepted_bytes);
            add(&mut books.delivered, &shard.delivered);
            add(&mut books.delivered_bytes, &shard.delivered_bytes);
            add(&mut books.dropped, &shard.dropped);
            books.queued += shard.queued.load(Ordering::Relaxed);
        }
        books
    }
}

fn add(sums: &mut [u64], counters: &[AtomicU64]) {
    for (sum, counter) in sums.iter_mut().zip(counters) {
        *sum += counter.load(Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_books_balance_over_threads() {
        let accounting = Accounting::default();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..1_000 {
                        accounting.accepted(AcceptedFrom::Client, 10);
                        accounting.queued();
                    }
                });
            }
        });
        assert_eq!(accounting.books().queued, 4_000);
        accounting.delivered(DeliveredTo::Link, 3_000, 30_000);
        accounting.dropped_from_queue(DropReason::QueueHead, 1_000);
        let books = accounting.books();
        assert_eq!((books.imbalance(), books.queued), (0, 0));
        assert_eq!(books.dropped_for(DropReason::QueueHead), 1_000);
        assert_eq!(books.delivered_bytes[DeliveredTo::Link as usize], 30_000);
    }

    #[test]
    fn labels_and_indices_follow_the_lists() {
        for (index, reason) in DropReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index, "{}", reason.label());
        }
    }
}
