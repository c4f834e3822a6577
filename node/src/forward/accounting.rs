//! The books of the packet path: accepted = delivered + dropped by reason + queued, at rest.
//!
//! Counters are sharded by thread, so that the packet path shares no cache line between cores.

use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use causeway_proto::packet::is_disco;

use super::DropReason;

/// What a packet carries, as far as stock dashboards tell packets apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PacketKind {
    /// Path discovery.
    Disco,
    /// Everything else.
    Other,
}

impl PacketKind {
    /// Every kind, in the order of their metric labels.
    pub const ALL: [Self; 2] = [Self::Disco, Self::Other];

    /// The kind of a payload.
    #[must_use]
    pub fn of(payload: &[u8]) -> Self {
        if is_disco(payload) { Self::Disco } else { Self::Other }
    }

    /// The metric label.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Disco => "disco",
            Self::Other => "other",
        }
    }
}

/// A few packets by [`PacketKind`], to be counted together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Tally {
    packets: [u64; PacketKind::ALL.len()],
    bytes: [u64; PacketKind::ALL.len()],
}

impl Tally {
    /// One packet.
    #[must_use]
    pub fn of(payload: &[u8]) -> Self {
        let mut tally = Self::default();
        tally.add(payload);
        tally
    }

    /// Adds a packet.
    pub fn add(&mut self, payload: &[u8]) {
        let kind = PacketKind::of(payload) as usize;
        self.packets[kind] += 1;
        self.bytes[kind] += payload.len() as u64;
    }

    /// Packets of all kinds.
    #[must_use]
    pub const fn packets(&self) -> u64 {
        self.packets[0] + self.packets[1]
    }

    /// Payload bytes of all kinds.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.bytes[0] + self.bytes[1]
    }
}

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

/// Weight of a new measurement in a moving average, as in stock servers.
const QUEUE_WEIGHT: f64 = 0.1;

/// Upper bounds of [`Books::writes`], in frames.
pub const WRITE_BOUNDS: [u64; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 15, 20, 25, 50, 100];

#[derive(Debug, Default)]
struct DroppedCounts {
    packets: [AtomicU64; PacketKind::ALL.len()],
    bytes: [AtomicU64; PacketKind::ALL.len()],
}

#[derive(Debug, Default)]
#[repr(align(128))]
struct Shard {
    accepted: [AtomicU64; AcceptedFrom::ALL.len()],
    accepted_bytes: [AtomicU64; AcceptedFrom::ALL.len()],
    accepted_disco: [AtomicU64; AcceptedFrom::ALL.len()],
    delivered: [AtomicU64; DeliveredTo::ALL.len()],
    delivered_bytes: [AtomicU64; DeliveredTo::ALL.len()],
    dropped: [DroppedCounts; DropReason::ALL.len()],
    writes: [AtomicU64; WRITE_BOUNDS.len() + 1],
    written_frames: AtomicU64,
    /// Bits of a moving average in milliseconds; 0 before the first measurement.
    queue_ms: AtomicU64,
    /// Pushed minus popped here; only the sum over shards means something.
    queued: AtomicI64,
}

/// Counts every packet once where it comes in and once where it ends.
#[derive(Debug, Default)]
pub struct Accounting {
    shards: [Shard; SHARDS],
}

/// Sums of the books at one moment.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Books {
    /// Packets by [`AcceptedFrom`].
    pub accepted: [u64; AcceptedFrom::ALL.len()],
    /// Payload bytes by [`AcceptedFrom`].
    pub accepted_bytes: [u64; AcceptedFrom::ALL.len()],
    /// Packets by [`AcceptedFrom`] that are disco.
    pub accepted_disco: [u64; AcceptedFrom::ALL.len()],
    /// Packets by [`DeliveredTo`].
    pub delivered: [u64; DeliveredTo::ALL.len()],
    /// Payload bytes by [`DeliveredTo`].
    pub delivered_bytes: [u64; DeliveredTo::ALL.len()],
    /// By [`DropReason`], in the order of [`DropReason::ALL`].
    pub dropped: [Tally; DropReason::ALL.len()],
    /// Writes to clients and nodes by the number of their frames: up to each of [`WRITE_BOUNDS`], and beyond the last.
    pub writes: [u64; WRITE_BOUNDS.len() + 1],
    /// Frames of all these writes.
    pub written_frames: u64,
    /// Milliseconds that packets wait in queues: a moving average.
    pub queue_ms: f64,
    /// Packets waiting in lanes or being written.
    pub queued: i64,
}

impl Books {
    /// What is accepted but neither delivered, dropped nor queued: 0 at rest.
    #[must_use]
    pub fn imbalance(&self) -> i128 {
        let sum = |counts: &[u64]| counts.iter().map(|count| i128::from(*count)).sum::<i128>();
        let dropped: i128 = self.dropped.iter().map(|dropped| i128::from(dropped.packets())).sum();
        sum(&self.accepted) - sum(&self.delivered) - dropped - i128::from(self.queued)
    }

    /// Packets dropped for `reason`.
    #[must_use]
    pub const fn dropped_for(&self, reason: DropReason) -> u64 {
        self.dropped[reason as usize].packets()
    }

    /// Packets and payload bytes of one kind dropped for `reason`.
    #[must_use]
    pub const fn dropped_of(&self, reason: DropReason, kind: PacketKind) -> (u64, u64) {
        let dropped = &self.dropped[reason as usize];
        (dropped.packets[kind as usize], dropped.bytes[kind as usize])
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
    pub fn accepted(&self, from: AcceptedFrom, payload: &[u8]) {
        let shard = self.shard();
        shard.accepted[from as usize].fetch_add(1, Ordering::Relaxed);
        shard.accepted_bytes[from as usize].fetch_add(payload.len() as u64, Ordering::Relaxed);
        if is_disco(payload) {
            shard.accepted_disco[from as usize].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts packets that left, which were queued before.
    pub fn delivered(&self, to: DeliveredTo, packets: u64, payload_bytes: u64) {
        let shard = self.shard();
        shard.delivered[to as usize].fetch_add(packets, Ordering::Relaxed);
        shard.delivered_bytes[to as usize].fetch_add(payload_bytes, Ordering::Relaxed);
        shard.queued.fetch_sub(packets.cast_signed(), Ordering::Relaxed);
    }

    /// Counts a packet that ends here and was in no queue.
    pub(crate) fn dropped(&self, reason: DropReason, payload: &[u8]) {
        self.shard().dropped[reason as usize].count(&Tally::of(payload));
    }

    /// Counts packets that end here and were queued.
    pub(crate) fn dropped_from_queue(&self, reason: DropReason, dropped: &Tally) {
        let shard = self.shard();
        shard.dropped[reason as usize].count(dropped);
        shard.queued.fetch_sub(dropped.packets().cast_signed(), Ordering::Relaxed);
    }

    /// Takes a measurement of how long a packet waited into the average.
    pub(crate) fn waited(&self, time: Duration) {
        let average = &self.shard().queue_ms;
        let before = f64::from_bits(average.load(Ordering::Relaxed));
        let new = before + QUEUE_WEIGHT * (time.as_secs_f64() * 1_000.0 - before);
        // Two threads of one shard may lose a measurement: it is an average.
        average.store(new.to_bits(), Ordering::Relaxed);
    }

    /// Counts a write of so many frames.
    pub(crate) fn written(&self, frames: usize) {
        let frames = frames as u64;
        let shard = self.shard();
        shard.writes[WRITE_BOUNDS.partition_point(|bound| *bound < frames)].fetch_add(1, Ordering::Relaxed);
        shard.written_frames.fetch_add(frames, Ordering::Relaxed);
    }

    /// Counts a packet that was put into a queue.
    pub(crate) fn queued(&self) {
        self.shard().queued.fetch_add(1, Ordering::Relaxed);
    }

    /// Sums all shards. Exact only while no packet moves.
    #[must_use]
    pub fn books(&self) -> Books {
        let (mut books, mut measured) = (Books::default(), 0.0);
        for shard in &self.shards {
            add(&mut books.accepted, &shard.accepted);
            add(&mut books.accepted_bytes, &shard.accepted_bytes);
            add(&mut books.accepted_disco, &shard.accepted_disco);
            add(&mut books.delivered, &shard.delivered);
            add(&mut books.delivered_bytes, &shard.delivered_bytes);
            for (sums, counts) in books.dropped.iter_mut().zip(&shard.dropped) {
                add(&mut sums.packets, &counts.packets);
                add(&mut sums.bytes, &counts.bytes);
            }
            add(&mut books.writes, &shard.writes);
            books.written_frames += shard.written_frames.load(Ordering::Relaxed);
            books.queued += shard.queued.load(Ordering::Relaxed);
            let queue_ms = f64::from_bits(shard.queue_ms.load(Ordering::Relaxed));
            if queue_ms > 0.0 {
                measured += 1.0;
                // The mean of the shards' averages so far.
                books.queue_ms += (queue_ms - books.queue_ms) / measured;
            }
        }
        books
    }
}

impl DroppedCounts {
    fn count(&self, dropped: &Tally) {
        for kind in PacketKind::ALL.map(|kind| kind as usize) {
            if dropped.packets[kind] > 0 {
                self.packets[kind].fetch_add(dropped.packets[kind], Ordering::Relaxed);
                self.bytes[kind].fetch_add(dropped.bytes[kind], Ordering::Relaxed);
            }
        }
    }
}

fn add(sums: &mut [u64], counters: &[AtomicU64]) {
    for (sum, counter) in sums.iter_mut().zip(counters) {
        *sum += counter.load(Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use causeway_proto::packet::DISCO_MAGIC;

    use super::*;

    #[test]
    fn the_books_balance_over_threads() {
        let accounting = Accounting::default();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..1_000 {
                        accounting.accepted(AcceptedFrom::Client, &[0; 10]);
                        accounting.queued();
                    }
                });
            }
        });
        assert_eq!(accounting.books().queued, 4_000);
        accounting.delivered(DeliveredTo::Link, 3_000, 30_000);
        let mut dropped = Tally::default();
        (0..1_000).for_each(|_| dropped.add(&[0; 10]));
        accounting.dropped_from_queue(DropReason::QueueHead, &dropped);
        let books = accounting.books();
        assert_eq!((books.imbalance(), books.queued), (0, 0));
        assert_eq!(books.dropped_for(DropReason::QueueHead), 1_000);
        assert_eq!(books.delivered_bytes[DeliveredTo::Link as usize], 30_000);
    }

    #[test]
    fn drops_are_told_apart_by_kind_and_writes_by_frames() {
        let accounting = Accounting::default();
        let disco = [&DISCO_MAGIC[..], &[0; 60]].concat();
        accounting.accepted(AcceptedFrom::Client, &disco);
        accounting.dropped(DropReason::UnknownDest, &disco);
        accounting.dropped(DropReason::UnknownDest, b"other");
        for frames in [1, 11, 15, 101] {
            accounting.written(frames);
        }
        let books = accounting.books();
        assert_eq!(books.accepted_disco, [1, 0, 0]);
        assert_eq!(books.dropped_of(DropReason::UnknownDest, PacketKind::Disco), (1, 66));
        assert_eq!(books.dropped_of(DropReason::UnknownDest, PacketKind::Other), (1, 5));
        assert_eq!((books.writes[1], books.writes[11], books.writes[16], books.written_frames), (1, 2, 1, 128));
    }

    #[test]
    fn the_time_in_queues_is_a_moving_average() {
        let accounting = Accounting::default();
        assert_eq!(accounting.books().queue_ms, 0.0);
        (0..200).for_each(|_| accounting.waited(Duration::from_millis(5)));
        assert!((accounting.books().queue_ms - 5.0).abs() < 0.01);
        accounting.waited(Duration::from_millis(15));
        assert!((accounting.books().queue_ms - 6.0).abs() < 0.01, "a tenth of the new one");
    }

    #[test]
    fn labels_and_indices_follow_the_lists() {
        for (index, reason) in DropReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index, "{}", reason.label());
        }
    }
}
