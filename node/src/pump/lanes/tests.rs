#![allow(clippy::unwrap_used, reason = "tests")]

use bytes::Bytes;
use causeway_proto::key::NodePublic;
use proptest::prelude::*;

use super::*;

fn packet(class: Class, tag: u8, len: usize) -> Packet {
    let src = NodePublic::from_bytes([tag; 32]);
    Packet { src, dst: NodePublic::default(), class, payload: Bytes::from(vec![tag; len]), route: None }
}

fn outbox(limits: LaneLimits) -> (Outbox<u32>, PumpShared) {
    let shared = PumpShared::new();
    (Outbox::new(limits, DeliveredTo::Client, shared.clone()), shared)
}

/// Pushes as a reader does: the packet is counted as accepted first.
fn push(outbox: &Outbox<u32>, shared: &PumpShared, packet: Packet) -> Verdict {
    shared.accounting.accepted(crate::forward::accounting::AcceptedFrom::Client, &packet.payload);
    outbox.forward(packet)
}

fn tags(batch: &Batch<u32>) -> Vec<u8> {
    batch.packets.iter().map(|packet| packet.src.as_bytes()[0]).collect()
}

fn pop(outbox: &Outbox<u32>, max_bytes: usize) -> Batch<u32> {
    let mut batch = Batch::default();
    assert!(outbox.pop(&mut batch, max_bytes));
    batch
}

#[test]
fn a_full_lane_drops_its_own_oldest_and_keeps_order() {
    let (outbox, shared) = outbox(LaneLimits { liveness: 2, data: 3, ..LaneLimits::CLIENT });
    for tag in 0..5 {
        assert_eq!(push(&outbox, &shared, packet(Class::Data, tag, 10)), Verdict::Queued);
        assert_eq!(push(&outbox, &shared, packet(Class::Liveness, 100 + tag, 10)), Verdict::Queued);
    }
    let batch = pop(&outbox, usize::MAX);
    assert_eq!(tags(&batch), [103, 104, 2, 3, 4], "liveness first, each lane in order, the oldest gone");
    let books = shared.accounting.books();
    assert_eq!((books.dropped_for(DropReason::QueueHead), books.queued), (5, 5));
    shared.accounting.delivered(DeliveredTo::Client, 5, 50);
    assert_eq!(shared.accounting.books().imbalance(), 0);
    assert_eq!(shared.budget.used(), 0);
}

#[test]
fn full_bytes_take_the_oldest_data_before_liveness() {
    let (outbox, shared) = outbox(LaneLimits { bytes: 3 * (1_000 + PACKET_OVERHEAD), ..LaneLimits::CLIENT });
    for tag in 0..3 {
        assert_eq!(push(&outbox, &shared, packet(Class::Data, tag, 1_000)), Verdict::Queued);
    }
    assert_eq!(push(&outbox, &shared, packet(Class::Liveness, 9, 1_000)), Verdict::Queued);
    assert_eq!(tags(&pop(&outbox, usize::MAX)), [9, 1, 2]);
    for tag in 0..3 {
        assert_eq!(push(&outbox, &shared, packet(Class::Liveness, tag, 1_000)), Verdict::Queued);
    }
    let refused = push(&outbox, &shared, packet(Class::Data, 9, 1_000));
    assert_eq!(refused, Verdict::Dropped(DropReason::QueueTail), "data never pushes liveness out");
}

#[test]
fn liveness_leaves_a_quarter_of_a_batch_to_data() {
    let (outbox, shared) = outbox(LaneLimits::CLIENT);
    let cost = 1_000 + PACKET_OVERHEAD;
    for tag in 0..20 {
        assert_eq!(push(&outbox, &shared, packet(Class::Liveness, tag, 1_000)), Verdict::Queued);
        assert_eq!(push(&outbox, &shared, packet(Class::Data, 100 + tag, 1_000)), Verdict::Queued);
    }
    assert_eq!(tags(&pop(&outbox, 8 * cost)), [0, 1, 2, 3, 4, 5, 100, 101]);
}

#[test]
fn a_full_control_lane_closes_and_closing_accounts_for_what_waits() {
    let (outbox, shared) = outbox(LaneLimits { control: 2, ..LaneLimits::CLIENT });
    assert_eq!(push(&outbox, &shared, packet(Class::Data, 1, 10)), Verdict::Queued);
    assert_eq!((outbox.push_control(1), outbox.push_control(2)), (Ok(()), Ok(())));
    assert_eq!(outbox.push_control(3), Err(ControlRefused::Full));
    assert_eq!(outbox.push_control(4), Err(ControlRefused::Closed));
    assert!(outbox.is_closed());
    assert!(!outbox.pop(&mut Batch::default(), 1));
    let late = packet(Class::Data, 2, 10);
    assert_eq!(outbox.forward(late.clone()), Verdict::NotHere(late), "the packet comes back for the next alternative");
    let books = shared.accounting.books();
    assert_eq!((books.dropped_for(DropReason::GoneDisconnected), books.queued, books.imbalance()), (1, 0, 0));
    assert_eq!(shared.budget.used(), 0);
}

#[test]
fn finishing_lanes_take_nothing_more_and_end_when_all_that_waits_is_taken() {
    let (outbox, shared) = outbox(LaneLimits::CLIENT);
    assert_eq!(push(&outbox, &shared, packet(Class::Data, 1, 10)), Verdict::Queued);
    assert_eq!(outbox.push_control(1), Ok(()));
    outbox.finish();
    let late = packet(Class::Data, 2, 10);
    assert_eq!(outbox.forward(late.clone()), Verdict::NotHere(late), "the packet comes back for the next alternative");
    assert_eq!(outbox.push_control(2), Ok(()), "what comes too late ends no connection");
    let batch = pop(&outbox, 100);
    assert_eq!((&batch.control[..], tags(&batch)), (&[1][..], vec![1]));
    assert!(!outbox.pop(&mut Batch::default(), 1) && !outbox.is_closed());
}

#[test]
fn one_pong_waits_at_a_time() {
    let (outbox, _) = outbox(LaneLimits::CLIENT);
    assert!(outbox.push_pong([1; 8]));
    assert!(!outbox.push_pong([2; 8]));
    assert_eq!(pop(&outbox, 1).pong, Some([1; 8]));
    assert!(outbox.push_pong([3; 8]));
}

#[test]
fn the_shared_budget_shrinks_every_client_before_it_refuses() {
    let shared = PumpShared { accounting: Arc::default(), budget: Arc::new(MemoryBudget::new(1_000_000)) };
    let full = |share: usize| {
        let outbox: Outbox<u32> = Outbox::new(LaneLimits::LINK, DeliveredTo::Link, shared.clone());
        let len = share - PACKET_OVERHEAD;
        assert_eq!(outbox.forward(packet(Class::Data, 1, len)), Verdict::Queued);
        outbox
    };
    let client: Outbox<u32> = Outbox::new(LaneLimits::CLIENT, DeliveredTo::Client, shared.clone());
    let held = |outbox: &Outbox<u32>| outbox.lanes.lock().bytes;
    let fill = |outbox: &Outbox<u32>| {
        for _ in 0..40 {
            let _verdict = outbox.forward(packet(Class::Data, 1, 10_000));
        }
    };
    let _most = full(760_000);
    fill(&client);
    assert!(held(&client) <= BYTES_ABOVE_75_PERCENT && held(&client) > 40_000, "{}", held(&client));
    let _more = full(150_000);
    fill(&client);
    assert!(held(&client) <= BYTES_ABOVE_90_PERCENT && held(&client) > 0, "{}", held(&client));
    let huge: Outbox<u32> = Outbox::new(
        LaneLimits::LINK,
        DeliveredTo::Link,
        PumpShared { accounting: Arc::default(), budget: Arc::new(MemoryBudget::new(10)) },
    );
    assert_eq!(huge.forward(packet(Class::Data, 1, 10)), Verdict::Dropped(DropReason::QueueMemory));
}

/// A read chunk that counts how many of its kind live.
struct Chunk(Vec<u8>, Arc<AtomicUsize>);

impl Chunk {
    fn new(live: &Arc<AtomicUsize>) -> Self {
        live.fetch_add(buffers::CHUNK_MAX, Ordering::Relaxed);
        Self(vec![0; buffers::CHUNK_MAX], Arc::clone(live))
    }
}

impl AsRef<[u8]> for Chunk {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        self.1.fetch_sub(buffers::CHUNK_MAX, Ordering::Relaxed);
    }
}

/// The worst case: each small payload is all that keeps a chunk of its own from being freed, and no client reads.
#[test]
fn small_payloads_hold_no_more_memory_than_the_budget_counts() {
    let live = Arc::new(AtomicUsize::new(0));
    let max = 16 << 20;
    let shared = PumpShared { accounting: Arc::default(), budget: Arc::new(MemoryBudget::new(max)) };
    let clients: Vec<Outbox<u32>> =
        (0..100).map(|_| Outbox::new(LaneLimits::CLIENT, DeliveredTo::Client, shared.clone())).collect();
    for round in 0..40 {
        for client in &clients {
            let payload = Bytes::from_owner(Chunk::new(&live)).slice(100..1_300);
            assert_eq!(client.forward(Packet { payload, ..packet(Class::Data, round, 0) }), Verdict::Queued);
        }
        let copied = |client: &Outbox<u32>| {
            client.lanes.lock().data.iter().filter(|waiting| waiting.copied).map(Waiting::cost).sum::<usize>()
        };
        let held = live.load(Ordering::Relaxed) + clients.iter().map(copied).sum::<usize>();
        assert!(held <= shared.budget.used() && shared.budget.used() <= max, "{held} held, {} counted", shared.budget.used());
    }
    assert!(live.load(Ordering::Relaxed) <= max / 2, "chunks are given up first");
    assert_eq!(clients.iter().map(|client| client.lanes.lock().data.len()).sum::<usize>(), 3_200, "all lanes are full");
    drop(clients);
    assert_eq!((live.load(Ordering::Relaxed), shared.budget.used()), (0, 0));
}

#[test]
fn a_writer_that_keeps_up_gets_payloads_where_they_were_read() {
    let (outbox, _) = outbox(LaneLimits::CLIENT);
    for _ in 0..100 {
        let sent = packet(Class::Data, 1, 1_200);
        let at = sent.payload.as_ptr() as usize;
        assert_eq!(outbox.forward(sent), Verdict::Queued);
        assert_eq!(pop(&outbox, usize::MAX).packets[0].payload.as_ptr() as usize, at);
    }
    for _ in 0..32 {
        assert_eq!(outbox.forward(packet(Class::Data, 1, 1_200)), Verdict::Queued);
    }
    assert_eq!(outbox.lanes.lock().uncopied, UNCOPIED_MAX);
}

#[derive(Debug, Clone)]
enum Step {
    Push(Class, usize),
    Pop(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let class = prop_oneof![Just(Class::Liveness), Just(Class::Data)];
    prop_oneof![4 => (class, 0usize..70_000).prop_map(|(class, len)| Step::Push(class, len)), 1 => (1usize..100_000).prop_map(Step::Pop)]
}

proptest! {
    #[test]
    fn bounds_order_and_books_hold_whatever_happens(steps in prop::collection::vec(step(), 1..200), ends_closed: bool) {
        let limits = LaneLimits { liveness: 5, data: 7, ..LaneLimits::CLIENT };
        let (outbox, shared) = outbox(limits);
        let mut next = 0u64;
        let mut last_seen = [0u64; 2];
        for step in steps {
            match step {
                Step::Push(class, len) => {
                    next += 1;
                    let mut numbered = packet(class, 0, len);
                    let mut key = [0; 32];
                    key[..8].copy_from_slice(&next.to_be_bytes());
                    numbered.src = NodePublic::from_bytes(key);
                    let _verdict = push(&outbox, &shared, numbered);
                }
                Step::Pop(max_bytes) => {
                    let batch = pop(&outbox, max_bytes);
                    for packet in &batch.packets {
                        let number = u64::from_be_bytes(packet.src.as_bytes()[..8].try_into().unwrap());
                        let last = &mut last_seen[packet.class as usize];
                        prop_assert!(number > *last, "order within a lane");
                        *last = number;
                    }
                    shared.accounting.delivered(DeliveredTo::Client, batch.packets.len() as u64, batch.payload_bytes as u64);
                }
            }
            let lanes = outbox.lanes.lock();
            prop_assert!(lanes.liveness.len() <= limits.liveness && lanes.data.len() <= limits.data && lanes.bytes <= limits.bytes);
            prop_assert_eq!(lanes.held, shared.budget.used());
            prop_assert!(lanes.bytes <= lanes.held && lanes.uncopied <= limits.liveness + limits.data);
            let queued = || lanes.liveness.iter().chain(&lanes.data);
            prop_assert_eq!(lanes.bytes, queued().map(Waiting::cost).sum::<usize>());
            prop_assert_eq!(lanes.held, queued().map(Waiting::held).sum::<usize>());
            let waiting = (lanes.liveness.len() + lanes.data.len()) as i64;
            drop(lanes);
            let books = shared.accounting.books();
            prop_assert_eq!((books.imbalance(), books.queued), (0, waiting));
        }
        if ends_closed {
            outbox.close();
        }
        drop(outbox);
        prop_assert_eq!(shared.budget.used(), 0);
    }
}
