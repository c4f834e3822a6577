//! What waits to be written to one connection: control, liveness, data, each bounded; and the memory all of them share.
//!
//! The router pushes, the connection's writer pops. A push never waits: a full liveness or data lane drops its oldest packet, a full
//! control lane closes the connection.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use causeway_proto::limits::PACKET_LEN_MAX;
use causeway_proto::packet::{Class, Packet};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::stopwatch::Stopwatch;
use super::{buffers, wake};
use crate::forward::accounting::{Accounting, DeliveredTo, Tally};
use crate::forward::{DropReason, PacketForwarder, Verdict};

/// Bounds of one connection's lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneLimits {
    /// Control frames.
    pub control: usize,
    /// Packets in the liveness lane.
    pub liveness: usize,
    /// Packets in the data lane.
    pub data: usize,
    /// Bytes of both packet lanes together.
    pub bytes: usize,
    /// Gets less when the memory of all lanes together runs short.
    pub shrinks: bool,
}

/// Default of a client's [`LaneLimits::bytes`]: 32 packets of the greatest size, because a prober keeps 30 under way and takes
/// any loss for a failure (`derp.md` section 17).
pub const CLIENT_QUEUE_BYTES: usize = 33 * PACKET_LEN_MAX;

const _: () = assert!(32 * (PACKET_LEN_MAX + PACKET_OVERHEAD) <= CLIENT_QUEUE_BYTES);

impl LaneLimits {
    /// A client: 32 + 32 packets; control frames are answers and notices, few by their own limiters.
    pub const CLIENT: Self = Self { control: 256, liveness: 32, data: 32, bytes: CLIENT_QUEUE_BYTES, shrinks: true };
    /// A link to a stock derper: 2,048 packets, 4 MiB. Its control frames are one request and pongs.
    pub const DERPER: Self = Self { control: 16, liveness: 512, data: 1_536, bytes: 4 * 1024 * 1024, shrinks: false };
    /// A link to another node: 4,096 packets, 8 MiB.
    pub const LINK: Self = Self { control: 4_096, liveness: 1_024, data: 3_072, bytes: 8 * 1024 * 1024, shrinks: false };
}

/// What a queued packet costs beside its payload: the header and its place in the lane.
const PACKET_OVERHEAD: usize = size_of::<Waiting>();

/// Packets of one connection that may wait as slices of the chunk they were read into: about what one read brings. A writer that
/// keeps up takes them from there; more than that wait for longer, and small ones are copied so that they do not hold whole chunks.
const UNCOPIED_MAX: usize = 16;

/// A packet in a lane.
#[derive(Debug)]
struct Waiting {
    packet: Packet,
    /// The payload is an allocation of its own, not a slice of a read chunk.
    copied: bool,
}

impl Waiting {
    /// Its share of the connection's own bound.
    const fn cost(&self) -> usize {
        cost_of(&self.packet)
    }

    /// The most memory it may keep from being freed.
    fn held(&self) -> usize {
        if self.copied { self.cost() } else { uncopied_cost(&self.packet) }
    }
}

const fn cost_of(packet: &Packet) -> usize {
    packet.payload.len() + PACKET_OVERHEAD
}

fn uncopied_cost(packet: &Packet) -> usize {
    packet.payload.len().max(buffers::CHUNK_MAX) + PACKET_OVERHEAD
}

/// Memory of all lanes of a node together, and of what their writers are writing.
#[derive(Debug)]
pub struct MemoryBudget {
    used: AtomicUsize,
    max: usize,
}

/// Default of [`MemoryBudget::new`]'s `max`: 256 MiB.
pub const MEMORY_BUDGET_BYTES: usize = 256 * 1024 * 1024;

/// What one client may hold above 75 % of the budget, and above 90 %.
const BYTES_ABOVE_75_PERCENT: usize = 64 * 1024;
const BYTES_ABOVE_90_PERCENT: usize = 16 * 1024;

impl MemoryBudget {
    /// A budget of `max` bytes.
    #[must_use]
    pub const fn new(max: usize) -> Self {
        Self { used: AtomicUsize::new(0), max }
    }

    /// Bytes in use.
    #[must_use]
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// What a client with the given own cap may hold now.
    fn cap(&self, own: usize) -> usize {
        let used = self.used();
        // In this order: 10 * used cannot overflow for a budget that fits into memory.
        if 10 * used > 9 * self.max {
            own.min(BYTES_ABOVE_90_PERCENT)
        } else if 4 * used > 3 * self.max {
            own.min(BYTES_ABOVE_75_PERCENT)
        } else {
            own
        }
    }

    fn take(&self, bytes: usize) -> bool {
        self.take_up_to(self.max, bytes)
    }

    /// Room that is used for speed only: refused above half of the budget.
    fn take_spare(&self, bytes: usize) -> bool {
        self.take_up_to(self.max / 2, bytes)
    }

    fn take_up_to(&self, max: usize, bytes: usize) -> bool {
        if self.used.fetch_add(bytes, Ordering::Relaxed) + bytes > max {
            self.give_back(bytes);
            return false;
        }
        true
    }

    /// Counts what is allocated already, and cannot be refused any more.
    pub(super) fn add(&self, bytes: usize) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn give_back(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// What every connection of a node shares about its queues.
#[derive(Clone, Debug)]
pub struct PumpShared {
    /// The node's books.
    pub accounting: Arc<Accounting>,
    /// Memory of all lanes.
    pub budget: Arc<MemoryBudget>,
}

impl PumpShared {
    /// Fresh books and the default budget.
    #[must_use]
    pub fn new() -> Self {
        Self { accounting: Arc::default(), budget: Arc::new(MemoryBudget::new(MEMORY_BUDGET_BYTES)) }
    }
}

impl Default for PumpShared {
    fn default() -> Self {
        Self::new()
    }
}

/// Why a control frame was not queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ControlRefused {
    /// The lane is full, which closed the connection.
    #[error("the control lane is full")]
    Full,
    /// The connection was closed before.
    #[error("the connection is closed")]
    Closed,
}

struct Lanes<C> {
    control: VecDeque<C>,
    pong: Option<[u8; 8]>,
    liveness: VecDeque<Waiting>,
    data: VecDeque<Waiting>,
    /// Cost of both packet lanes.
    bytes: usize,
    /// Memory that their packets hold.
    held: usize,
    /// Packets in them that are slices of read chunks.
    uncopied: usize,
    /// Follows packets of the data lane.
    stopwatch: Stopwatch,
    /// What it measured, until it is counted.
    waited: Option<Duration>,
    control_max: usize,
    writer_sleeps: bool,
    finishing: bool,
    closed: bool,
}

impl<C> Lanes<C> {
    const fn lane(&mut self, class: Class) -> &mut VecDeque<Waiting> {
        match class {
            Class::Liveness => &mut self.liveness,
            Class::Data => &mut self.data,
        }
    }

    fn push_back(&mut self, waiting: Waiting) {
        self.bytes += waiting.cost();
        self.held += waiting.held();
        self.uncopied += usize::from(!waiting.copied);
        let class = waiting.packet.class;
        self.lane(class).push_back(waiting);
        if class == Class::Data {
            self.stopwatch.pushed(self.data.len());
        }
    }

    fn pop_front(&mut self, class: Class) -> Option<Waiting> {
        let waiting = self.lane(class).pop_front()?;
        self.bytes -= waiting.cost();
        self.held -= waiting.held();
        self.uncopied -= usize::from(!waiting.copied);
        if class == Class::Data {
            self.waited = self.stopwatch.popped().or(self.waited);
        }
        Some(waiting)
    }

    /// Moves packets from the head of a lane until `budget` is used up, but at least one; returns what they cost.
    fn pop_lane(&mut self, class: Class, budget: usize, batch: &mut Batch<C>) -> usize {
        let mut taken = 0;
        while taken < budget {
            let Some(waiting) = self.pop_front(class) else { break };
            taken += waiting.cost();
            batch.payload_bytes += waiting.packet.payload.len();
            batch.packets.push(waiting.packet);
        }
        taken
    }
}

/// The queues of one connection. `C` is its kind of control frame.
pub struct Outbox<C> {
    lanes: Mutex<Lanes<C>>,
    wakes: Arc<Notify>,
    stalled: AtomicBool,
    limits: LaneLimits,
    to: DeliveredTo,
    shared: PumpShared,
}

impl<C> std::fmt::Debug for Outbox<C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outbox").field("to", &self.to).finish_non_exhaustive()
    }
}

/// What the writer takes at once.
#[derive(Debug)]
pub struct Batch<C> {
    /// Control frames, in order.
    pub control: Vec<C>,
    /// The answer to the last ping.
    pub pong: Option<[u8; 8]>,
    /// Packets, in the order to write.
    pub packets: Vec<Packet>,
    /// Payload bytes of `packets`.
    pub payload_bytes: usize,
}

impl<C> Default for Batch<C> {
    fn default() -> Self {
        Self { control: Vec::new(), pong: None, packets: Vec::new(), payload_bytes: 0 }
    }
}

impl<C> Batch<C> {
    /// Whether there is nothing to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.control.is_empty() && self.pong.is_none() && self.packets.is_empty()
    }

    pub(crate) fn clear(&mut self) {
        self.control.clear();
        self.pong = None;
        self.packets.clear();
        self.payload_bytes = 0;
    }
}

/// Most control frames in one batch, so that a watcher's flood leaves room for packets.
const BATCH_CONTROL: usize = 256;

/// Lane memory that an idle connection may keep; what a burst took beyond is given back.
const IDLE_CAPACITY: usize = 4;

impl<C> Outbox<C> {
    /// Empty lanes of a connection to `to`.
    #[must_use]
    pub fn new(limits: LaneLimits, to: DeliveredTo, shared: PumpShared) -> Self {
        let lanes = Lanes {
            control: VecDeque::new(),
            pong: None,
            liveness: VecDeque::new(),
            data: VecDeque::new(),
            bytes: 0,
            held: 0,
            uncopied: 0,
            stopwatch: Stopwatch::default(),
            waited: None,
            control_max: limits.control,
            writer_sleeps: false,
            finishing: false,
            closed: false,
        };
        Self { lanes: Mutex::new(lanes), wakes: Arc::new(Notify::new()), stalled: AtomicBool::new(false), limits, to, shared }
    }

    /// Queues a control frame; one that comes after [`Self::finish`] is forgotten.
    ///
    /// # Errors
    /// [`ControlRefused`]; a full lane closes the connection.
    pub fn push_control(&self, frame: C) -> Result<(), ControlRefused> {
        let mut lanes = self.lanes.lock();
        if lanes.closed {
            return Err(ControlRefused::Closed);
        }
        if lanes.finishing {
            return Ok(());
        }
        if lanes.control.len() >= lanes.control_max {
            self.close_locked(&mut lanes);
            return Err(ControlRefused::Full);
        }
        lanes.control.push_back(frame);
        self.wake(&mut lanes);
        Ok(())
    }

    /// Puts the answer to a ping into its one slot; false if one waits there already.
    pub fn push_pong(&self, data: [u8; 8]) -> bool {
        let mut lanes = self.lanes.lock();
        if lanes.closed || lanes.pong.is_some() {
            return false;
        }
        lanes.pong = Some(data);
        self.wake(&mut lanes);
        true
    }

    /// Raises the bound of the control lane: a watcher gets one frame per client.
    pub fn raise_control_limit(&self, control: usize) {
        let mut lanes = self.lanes.lock();
        lanes.control_max = lanes.control_max.max(control);
    }

    /// Takes nothing more: the writer ends as soon as it has written what waits.
    pub fn finish(&self) {
        let mut lanes = self.lanes.lock();
        lanes.finishing = true;
        self.wake(&mut lanes);
    }

    /// Closes the lanes: what waits is dropped, the writer ends.
    pub fn close(&self) {
        self.close_locked(&mut self.lanes.lock());
    }

    /// Whether the lanes take nothing any more.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.lanes.lock().closed
    }

    /// Whether the writer has made no progress for too long although something waits.
    #[must_use]
    pub fn is_stalled(&self) -> bool {
        self.stalled.load(Ordering::Relaxed)
    }

    pub(crate) fn set_stalled(&self, stalled: bool) {
        self.stalled.store(stalled, Ordering::Relaxed);
    }

    pub(crate) const fn to(&self) -> DeliveredTo {
        self.to
    }

    pub(crate) fn budget(&self) -> &MemoryBudget {
        &self.shared.budget
    }

    pub(crate) fn accounting(&self) -> &Accounting {
        &self.shared.accounting
    }

    /// Waits until there may be something to pop. Cancel safe: a wake is kept for the next wait.
    pub(crate) async fn wait(&self) {
        self.wakes.notified().await;
    }

    /// Takes the next batch, up to about `max_bytes` of packets. If there is nothing, notes that the writer goes to sleep; false if nothing
    /// will come any more.
    pub fn pop(&self, batch: &mut Batch<C>, max_bytes: usize) -> bool {
        let mut guard = self.lanes.lock();
        let lanes = &mut *guard;
        if lanes.closed {
            return false;
        }
        batch.pong = lanes.pong.take();
        let control = lanes.control.len().min(BATCH_CONTROL);
        batch.control.extend(lanes.control.drain(..control));
        let held = lanes.held;
        // Liveness goes first, but leaves a quarter to data that waits.
        let first_share = if lanes.data.is_empty() { max_bytes } else { max_bytes / 4 * 3 };
        let taken = lanes.pop_lane(Class::Liveness, first_share, batch);
        lanes.pop_lane(Class::Data, max_bytes.saturating_sub(taken), batch);
        let freed = held - lanes.held;
        let waited = lanes.waited.take();
        lanes.writer_sleeps = batch.is_empty();
        if lanes.writer_sleeps {
            lanes.control.shrink_to(IDLE_CAPACITY);
            lanes.liveness.shrink_to(0);
            lanes.data.shrink_to(0);
        }
        let goes_on = !(lanes.writer_sleeps && lanes.finishing);
        drop(guard);
        if freed > 0 {
            self.shared.budget.give_back(freed);
        }
        if let Some(waited) = waited {
            self.shared.accounting.waited(waited);
        }
        goes_on
    }

    fn wake(&self, lanes: &mut Lanes<C>) {
        if std::mem::take(&mut lanes.writer_sleeps) {
            wake::wake(&self.wakes);
        }
    }

    fn close_locked(&self, lanes: &mut Lanes<C>) {
        if std::mem::replace(&mut lanes.closed, true) {
            return;
        }
        let mut dropped = Tally::default();
        lanes.liveness.iter().chain(&lanes.data).for_each(|waiting| dropped.add(&waiting.packet.payload));
        self.shared.accounting.dropped_from_queue(DropReason::GoneDisconnected, &dropped);
        self.shared.budget.give_back(std::mem::take(&mut lanes.held));
        (lanes.bytes, lanes.uncopied) = (0, 0);
        lanes.control = VecDeque::new();
        lanes.liveness = VecDeque::new();
        lanes.data = VecDeque::new();
        self.wakes.notify_one();
    }

    /// Makes room for `cost` bytes in the lane of `class`: drops the oldest data first, then the oldest of the lane itself.
    fn make_room(&self, lanes: &mut Lanes<C>, class: Class, cost: usize) -> bool {
        let cap = if self.limits.shrinks { self.shared.budget.cap(self.limits.bytes) } else { self.limits.bytes };
        let mut dropped = Tally::default();
        let fits = loop {
            let (len, max) = match class {
                Class::Liveness => (lanes.liveness.len(), self.limits.liveness),
                Class::Data => (lanes.data.len(), self.limits.data),
            };
            if len < max && lanes.bytes + cost <= cap {
                break true;
            }
            // A full lane drops its own oldest; full memory takes the oldest data, which is worth least.
            let own_is_full = len >= max;
            let from =
                if class == Class::Liveness && (own_is_full || lanes.data.is_empty()) { Class::Liveness } else { Class::Data };
            let Some(victim) = lanes.pop_front(from) else { break false };
            self.shared.budget.give_back(victim.held());
            dropped.add(&victim.packet.payload);
        };
        if let Some(waited) = lanes.waited.take() {
            self.shared.accounting.waited(waited);
        }
        if dropped.packets() > 0 {
            self.shared.accounting.dropped_from_queue(DropReason::QueueHead, &dropped);
        }
        fits
    }

    /// Takes memory for the packet: it stays a slice of its chunk if it is large or likely to leave at once, else it is copied.
    /// Returns whether it was copied, or `None` if there is no memory.
    fn hold(&self, lanes: &Lanes<C>, packet: &mut Packet) -> Option<bool> {
        let budget = &self.shared.budget;
        if packet.payload.len() > buffers::CHUNK_MAX / 2 {
            return budget.take(uncopied_cost(packet)).then_some(false);
        }
        if lanes.uncopied < UNCOPIED_MAX && budget.take_spare(uncopied_cost(packet)) {
            return Some(false);
        }
        if !budget.take(cost_of(packet)) {
            return None;
        }
        packet.payload = Bytes::copy_from_slice(&packet.payload);
        Some(true)
    }

    fn refuse(&self, reason: DropReason, payload: &[u8]) -> Verdict {
        self.shared.accounting.dropped(reason, payload);
        Verdict::Dropped(reason)
    }
}

impl<C: Send> PacketForwarder for Outbox<C> {
    /// Queues the packet; gives it back as `NotHere` if the connection is closed or finishes.
    fn forward(&self, mut packet: Packet) -> Verdict {
        let cost = cost_of(&packet);
        let mut guard = self.lanes.lock();
        let lanes = &mut *guard;
        if lanes.closed || lanes.finishing {
            return Verdict::NotHere(packet);
        }
        if !self.make_room(lanes, packet.class, cost) {
            return self.refuse(DropReason::QueueTail, &packet.payload);
        }
        let Some(copied) = self.hold(lanes, &mut packet) else {
            return self.refuse(DropReason::QueueMemory, &packet.payload);
        };
        self.shared.accounting.queued();
        lanes.push_back(Waiting { packet, copied });
        self.wake(lanes);
        Verdict::Queued
    }
}

impl<C> Drop for Outbox<C> {
    fn drop(&mut self) {
        self.close();
    }
}

#[cfg(test)]
mod tests;
