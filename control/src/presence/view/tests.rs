#![allow(clippy::unwrap_used, reason = "tests")]

use proptest::prelude::*;

use std::collections::{BTreeMap, BTreeSet};

use causeway_proto::presence::{ClaimKind, Op};

use super::from_watch::HEARS_MAX;
use super::tell::SLICE_KEYS_MAX;
use super::*;
use crate::presence::{CLAIMS_PER_OWNER_MAX, Command, OWNERS_MAX, OwnerLog, Table};

const OWN: NodeId = NodeId(1);
const X: NodeId = NodeId(2);
const Y: NodeId = NodeId(3);
const Z: NodeId = NodeId(4);
const E1: Epoch = Epoch(1);
const BOOT: BootId = BootId([1; 16]);

fn key(n: u64) -> PresenceKey {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&n.to_be_bytes());
    PresenceKey(key)
}

fn claim(n: u64, clock_us: u64) -> Op {
    Op::Claim { key: key(n), clock_us, home: false, kind: ClaimKind::Derp }
}

fn release(n: u64, clock_us: u64) -> Op {
    Op::Release { key: key(n), clock_us, clean: false }
}

fn view() -> PresenceView {
    PresenceView::new(OWN, RegionId(1))
}

fn watch(view: &PresenceView, node: NodeId, input: WatchInput) -> Result<(), IngestError> {
    let result = view.ingest_watch(node, E1, input, Instant::now());
    view.tell_changed_owners();
    result
}

fn hello(view: &PresenceView, node: NodeId) {
    watch(view, node, WatchInput::Hello { boot_id: BOOT }).unwrap();
}

fn delta(view: &PresenceView, node: NodeId, first_seq: u64, ops: Vec<Op>) {
    watch(view, node, WatchInput::Delta { first_seq, ops }).unwrap();
}

fn apply(view: &PresenceView, table: &mut Table, command: Command) {
    view.ingest_table(&table.apply(&command).events);
    view.tell_changed_owners();
}

fn raft(node: NodeId, first_seq: u64, ops: Vec<Op>) -> Command {
    Command::Apply { node, epoch: E1, boot_id: BOOT, first_seq, ops }
}

fn events(receiver: &mut broadcast::Receiver<EventBatch>) -> Vec<PresenceEvent> {
    let mut events = Vec::new();
    while let Ok(batch) = receiver.try_recv() {
        events.extend_from_slice(&batch);
    }
    events
}

fn preferred(view: &PresenceView, n: u64) -> Option<NodeId> {
    view.prefer(&key(n), &|_| false).map(|candidate| candidate.node)
}

#[test]
fn an_operation_counts_once_by_whichever_way_it_comes_first() {
    let (view, mut table) = (view(), Table::default());
    let mut receiver = view.subscribe();
    hello(&view, X);
    delta(&view, X, 1, vec![claim(1, 10), claim(2, 11)]);
    apply(&view, &mut table, raft(X, 1, vec![claim(1, 10)]));
    apply(&view, &mut table, raft(X, 2, vec![claim(2, 11), release(1, 10)]));
    delta(&view, X, 3, vec![release(1, 10)]);
    let claimed = |n, clock_us| PresenceEvent::Claimed {
        key: key(n),
        rank: Rank { clock_us, node: X },
        home: false,
        kind: ClaimKind::Derp,
    };
    let released = PresenceEvent::Released { key: key(1), rank: Rank { clock_us: 10, node: X }, clean: false };
    let gone = PresenceEvent::LastClaimGone { key: key(1), clean: false };
    assert_eq!(events(&mut receiver), [claimed(1, 10), claimed(2, 11), released, gone]);
    assert_eq!(view.cursor(X).next_seq, 4);
}

#[test]
fn one_cut_link_changes_nothing_and_a_dead_node_stops_counting_everywhere() {
    let view = view();
    let mut receiver = view.subscribe();
    for node in [X, Y] {
        hello(&view, node);
    }
    delta(&view, X, 1, vec![claim(1, 10)]);
    watch(&view, Y, WatchInput::Heartbeat { hears: vec![Z, X] }).unwrap();
    assert_eq!(view.heard_by(X), [Y]);
    events(&mut receiver);
    watch(&view, X, WatchInput::Down).unwrap();
    assert_eq!(events(&mut receiver), [], "Y still hears it");
    assert_eq!(view.claims(&key(1))[0].validity, Validity::Vouched(Y));
    assert!(!view.hears(X) && view.has_valid_claim(&key(1)));
    watch(&view, Y, WatchInput::Heartbeat { hears: vec![Z] }).unwrap();
    let gone = PresenceEvent::LastClaimGone { key: key(1), clean: false };
    assert_eq!(events(&mut receiver), [PresenceEvent::OwnerLost { node: X }, gone]);
    assert_eq!((view.claims(&key(1))[0].validity, preferred(&view, 1)), (Validity::Lost, None));
    hello(&view, X);
    let back = events(&mut receiver);
    assert_eq!(back[0], PresenceEvent::OwnerBack { node: X });
    assert!(matches!(back[1], PresenceEvent::Claimed { .. }) && back.len() == 2);
}

#[test]
fn who_was_never_heard_counts_until_raft_fences_it() {
    let (view, mut table) = (view(), Table::default());
    apply(&view, &mut table, raft(X, 1, vec![claim(1, 10)]));
    assert_eq!((view.claims(&key(1))[0].validity, preferred(&view, 1)), (Validity::Unfenced, Some(X)));
    apply(&view, &mut table, Command::Fence { node: X, epoch: E1 });
    assert_eq!((view.claims(&key(1))[0].validity, preferred(&view, 1)), (Validity::Fenced, None));
    hello(&view, X);
    assert_eq!(view.claims(&key(1))[0].validity, Validity::Live, "a live stream outweighs a fence");
    watch(&view, X, WatchInput::Down).unwrap();
    apply(&view, &mut table, Command::Unfence { node: X, epoch: E1 });
    assert_eq!(view.claims(&key(1))[0].validity, Validity::Lost, "its stream was live here, and broke");
    let restored = self::view();
    restored.ingest_table_snapshot(&table.snapshot());
    assert_eq!(preferred(&restored, 1), Some(X), "a restarted observer takes Raft's word");
}

#[test]
fn the_next_claim_takes_over_without_a_message() {
    let view = view();
    view.set_region(Y, RegionId(1));
    for (node, clock_us) in [(X, 30), (Y, 10), (Z, 20)] {
        hello(&view, node);
        delta(&view, node, 1, vec![claim(1, clock_us)]);
    }
    assert_eq!(preferred(&view, 1), Some(Y), "own region");
    delta(&view, Y, 2, vec![release(1, 10)]);
    assert_eq!(preferred(&view, 1), Some(X), "greatest rank");
    assert_eq!(view.prefer(&key(1), &|node| node == X).unwrap().node, Z, "the packet was at X already");
    watch(&view, X, WatchInput::Down).unwrap();
    assert_eq!(preferred(&view, 1), Some(Z));
    let nodes: Vec<_> = view.claims(&key(1)).into_iter().map(|claim| (claim.node, claim.why())).collect();
    let lost = "not valid: watch stream lost and nobody hears it".to_owned();
    assert_eq!(nodes, [(Z, "watch stream live".to_owned()), (X, lost)]);
}

#[test]
fn a_stale_claim_is_hidden_until_its_owners_log_goes_on() {
    let view = view();
    hello(&view, X);
    delta(&view, X, 1, vec![claim(1, 10)]);
    let rank = view.prefer(&key(1), &|_| false).unwrap().rank;
    view.hide(key(1), Rank { clock_us: 9, node: X });
    view.hide(key(2), rank);
    assert_eq!(preferred(&view, 1), Some(X), "no such claim is known");
    view.hide(key(1), rank);
    assert_eq!(preferred(&view, 1), None);
    assert!(view.claims(&key(1))[0].hidden && view.has_valid_claim(&key(1)));
    delta(&view, X, 2, vec![claim(2, 11)]);
    assert_eq!(preferred(&view, 1), Some(X), "the log went on and the claim is still in it");
}

#[test]
fn hidden_claims_are_bounded() {
    let hidden = Hidden::default();
    let rank = Rank { clock_us: 1, node: X };
    for n in 0..=HIDDEN_MAX as u64 {
        hidden.hide(key(n), rank, 5);
        hidden.hide(key(n), rank, 5);
    }
    assert!(!hidden.hides(&key(0), rank, 5), "the oldest made room");
    assert!(hidden.hides(&key(1), rank, 5) && !hidden.hides(&key(1), rank, 6));
    assert_eq!((hidden.until_seq.len(), hidden.order.lock().len()), (HIDDEN_MAX, HIDDEN_MAX));
}

#[test]
fn streams_of_old_processes_and_copies_are_refused() {
    let (view, mut table) = (view(), Table::default());
    assert_eq!(watch(&view, X, WatchInput::Down), Err(IngestError::NoHello));
    assert_eq!(watch(&view, OWN, WatchInput::Hello { boot_id: BOOT }), Err(IngestError::Own));
    hello(&view, X);
    delta(&view, X, 1, vec![claim(1, 10)]);
    let copy = WatchInput::Hello { boot_id: BootId([2; 16]) };
    assert_eq!(watch(&view, X, copy), Err(IngestError::OtherBootId { epoch: E1 }));
    // Raft tells of a newer process while the old stream still stands.
    let (epoch, boot_id) = (Epoch(2), BootId([3; 16]));
    apply(&view, &mut table, Command::Apply { node: X, epoch, boot_id, first_seq: 1, ops: vec![claim(2, 20)] });
    assert!(view.claims(&key(1)).is_empty() && !view.hears(X));
    let late = watch(&view, X, WatchInput::Delta { first_seq: 2, ops: vec![claim(3, 11)] });
    assert_eq!(late, Err(IngestError::LowerEpoch { highest: epoch }));
    assert_eq!(preferred(&view, 2), Some(X));
}

#[test]
fn malformed_and_oversized_input_changes_nothing() {
    let view = view();
    hello(&view, X);
    delta(&view, X, 1, vec![claim(1, 10)]);
    for input in [
        WatchInput::Snapshot { seq: 9, ops: vec![claim(2, 1), claim(1, 2)] },
        WatchInput::Snapshot { seq: 9, ops: vec![release(1, 10)] },
        WatchInput::Snapshot { seq: 1, ops: vec![claim(1, 1), claim(2, 2)] },
        WatchInput::Delta { first_seq: 0, ops: vec![] },
        WatchInput::Delta { first_seq: u64::MAX, ops: vec![claim(1, 1)] },
        WatchInput::Heartbeat { hears: vec![X; HEARS_MAX + 1] },
    ] {
        assert_eq!(watch(&view, X, input), Err(IngestError::Malformed));
    }
    let many: Vec<Op> = (0..=CLAIMS_PER_OWNER_MAX as u64).map(|n| claim(n, 1)).collect();
    let snapshot = WatchInput::Snapshot { seq: many.len() as u64, ops: many.clone() };
    assert_eq!(watch(&view, X, snapshot), Err(IngestError::TooManyClaims));
    assert_eq!(watch(&view, X, WatchInput::Delta { first_seq: 2, ops: many }), Err(IngestError::TooManyClaims));
    let gap = watch(&view, X, WatchInput::Delta { first_seq: 3, ops: vec![claim(2, 11)] });
    assert_eq!(gap, Err(IngestError::Gap { expected_seq: 2 }));
    assert_eq!((view.count().claims, view.cursor(X).next_seq), (1, 2));
}

#[test]
fn nodes_are_bounded() {
    let view = view();
    for n in 0..OWNERS_MAX as u64 {
        view.set_region(NodeId(n), RegionId(1));
    }
    let one_more = watch(&view, NodeId(u64::MAX), WatchInput::Hello { boot_id: BOOT });
    assert_eq!(one_more, Err(IngestError::TooManyOwners));
}

#[test]
fn a_snapshot_tells_only_what_changed_in_bounded_batches() {
    let view = view();
    let mut receiver = view.subscribe();
    hello(&view, X);
    let ops: Vec<Op> = (0..2_500).map(|n| claim(n, 10)).collect();
    watch(&view, X, WatchInput::Snapshot { seq: 2_500, ops: ops.clone() }).unwrap();
    let mut sizes = Vec::new();
    while let Ok(batch) = receiver.try_recv() {
        sizes.push(batch.len());
    }
    assert_eq!(sizes, [1024, 1024, 452]);
    watch(&view, X, WatchInput::Snapshot { seq: 2_501, ops: ops[1..].to_vec() }).unwrap();
    let released = PresenceEvent::Released { key: key(0), rank: Rank { clock_us: 10, node: X }, clean: false };
    let gone = PresenceEvent::LastClaimGone { key: key(0), clean: false };
    assert_eq!(events(&mut receiver), [released, gone]);
    watch(&view, X, WatchInput::Snapshot { seq: 2_500, ops }).unwrap();
    assert_eq!(events(&mut receiver), [], "an older snapshot is no news");
}

fn restart(view: &PresenceView, node: NodeId, epoch: u64, ops: Vec<Op>) {
    view.ingest_watch(node, Epoch(epoch), WatchInput::Hello { boot_id: BOOT }, Instant::now()).unwrap();
    view.ingest_watch(node, Epoch(epoch), WatchInput::Delta { first_seq: 1, ops }, Instant::now()).unwrap();
}

#[test]
fn the_claims_of_a_former_process_are_not_seen_and_are_taken_out_in_slices() {
    let view = view();
    let mut receiver = view.subscribe();
    let count = 3 * SLICE_KEYS_MAX as u64;
    restart(&view, X, 1, (0..count).map(|n| claim(n, 10)).collect());
    restart(&view, Y, 1, vec![claim(1, 10)]);
    restart(&view, X, 2, vec![claim(0, 20)]);
    assert!(view.claims(&key(2)).is_empty() && !view.has_valid_claim(&key(2)), "before anything is taken out");
    assert_eq!((preferred(&view, 0), preferred(&view, 1), view.count().claims), (Some(X), Some(Y), 2));
    events(&mut receiver);
    view.tell_changed_owners();
    let gone: Vec<_> = (2..count).map(|n| PresenceEvent::LastClaimGone { key: key(n), clean: false }).collect();
    assert_eq!(events(&mut receiver), gone);
    assert_eq!(view.claims.len(), 2);
    view.tell_changed_owners();
    assert_eq!(events(&mut receiver), [], "told once");
}

#[test]
fn restarts_use_up_neither_slots_nor_memory() {
    let view = view();
    for epoch in 1..=2 * OWNERS_MAX as u64 {
        restart(&view, X, epoch, vec![claim(epoch, epoch)]);
        view.tell_changed_owners();
    }
    assert_eq!((view.claims.len(), view.writer.lock().owners.len()), (1, 3));
    // Faster than they are taken out.
    for epoch in 1..=3 * OWNERS_MAX as u64 {
        restart(&view, Y, epoch, vec![claim(epoch, epoch)]);
    }
    assert_eq!((view.count().claims, view.writer.lock().owners.len()), (2, 2 * OWNERS_MAX));
    view.tell_changed_owners();
    assert_eq!(view.claims.len(), 2);
}

#[test]
fn others_write_while_the_keys_of_a_lost_owner_are_told() {
    let view = Arc::new(view());
    let mut receiver = view.subscribe();
    let count = 20 * SLICE_KEYS_MAX as u64;
    restart(&view, X, 1, (0..count).map(|n| claim(n, 10)).collect());
    restart(&view, Y, 1, vec![]);
    events(&mut receiver);
    view.ingest_watch(X, E1, WatchInput::Down, Instant::now()).unwrap();
    let teller = std::thread::spawn({
        let view = Arc::clone(&view);
        move || view.tell_changed_owners()
    });
    for n in 0..500 {
        view.ingest_watch(Y, E1, WatchInput::Delta { first_seq: n + 1, ops: vec![claim(n, 20)] }, Instant::now()).unwrap();
    }
    teller.join().unwrap();
    let mut present: BTreeSet<PresenceKey> = (0..count).map(key).collect();
    for event in events(&mut receiver) {
        match event {
            PresenceEvent::Claimed { key, .. } => present.insert(key),
            PresenceEvent::LastClaimGone { key, .. } => present.remove(&key),
            _ => false,
        };
    }
    assert_eq!(present, (0..500).map(key).collect(), "events lead to what the view says");
}

#[test]
fn a_higher_epoch_of_this_very_node_stops_the_process() {
    let (view, mut table) = (Arc::new(view()), Table::default());
    let log = OwnerLog::new(OWN, Epoch(5), BOOT, Arc::clone(&view));
    log.claim(key(1), ClaimKind::Derp, true, 1).unwrap();
    let superseded = view.superseded();
    apply(&view, &mut table, raft(OWN, 1, vec![claim(2, 1)]));
    assert_eq!(*superseded.borrow(), None, "claims of the process before are no news");
    assert!(view.claims(&key(2)).is_empty() && view.has_valid_claim(&key(1)));
    apply(&view, &mut table, Command::Apply { node: OWN, epoch: Epoch(6), boot_id: BOOT, first_seq: 1, ops: vec![] });
    assert_eq!(*superseded.borrow(), Some(Epoch(6)));
}

#[test]
fn claims_dropped_after_a_long_fence_stay_where_their_owner_is_live() {
    let mut table = Table::default();
    let (live, lost) = (view(), view());
    let commands =
        [raft(X, 1, vec![claim(1, 10)]), Command::Fence { node: X, epoch: E1 }, Command::DropFenced { node: X, epoch: E1 }];
    hello(&live, X);
    for command in commands {
        let events = table.apply(&command).events;
        live.ingest_table(&events);
        lost.ingest_table(&events);
    }
    assert_eq!((preferred(&live, 1), live.cursor(X).next_seq), (Some(X), 2));
    assert_eq!((lost.claims(&key(1)).len(), lost.cursor(X).next_seq), (0, 0), "it has to start over");
    hello(&lost, X);
    let gap = watch(&lost, X, WatchInput::Delta { first_seq: 2, ops: vec![claim(2, 11)] });
    assert_eq!(gap, Err(IngestError::Gap { expected_seq: 1 }));
    watch(&lost, X, WatchInput::Snapshot { seq: 1, ops: vec![claim(1, 10)] }).unwrap();
    assert_eq!(preferred(&lost, 1), Some(X));
}

#[test]
fn counts_are_of_valid_claims() {
    let view = view();
    for node in [X, Y] {
        hello(&view, node);
        delta(&view, node, 1, vec![claim(1, 10), Op::Claim { key: key(node.0), clock_us: 11, home: true, kind: ClaimKind::Tx3 }]);
    }
    let by_node = BTreeMap::from([(X, 2), (Y, 2)]);
    assert_eq!(view.count(), PresenceCounts { keys: 3, claims: 4, home_claims: 2, by_node });
    watch(&view, X, WatchInput::Down).unwrap();
    let by_node = BTreeMap::from([(Y, 2)]);
    assert_eq!(view.count(), PresenceCounts { keys: 2, claims: 2, home_claims: 1, by_node });
}

/// Owner logs as owners write them: ranks ascend, a claim may be repeated, a release may be of an older rank.
fn owner_log() -> impl Strategy<Value = Vec<Op>> {
    let step = (0u64..5, any::<bool>(), any::<bool>(), 0u64..3);
    prop::collection::vec(step, 0..25).prop_map(|steps| {
        let mut ops: Vec<Op> = Vec::new();
        for (clock, (n, home, claims, back)) in (1..).zip(steps) {
            let claim = Op::Claim { key: key(n), clock_us: 10 * clock, home, kind: ClaimKind::Derp };
            let earlier = ops.iter().rev().filter(|op| matches!(op, Op::Claim { .. }) && *op.key() == key(n));
            let released = earlier.map(Op::clock_us).nth(usize::try_from(back).unwrap());
            match released {
                Some(clock_us) if !claims => ops.push(Op::Release { key: key(n), clock_us, clean: home }),
                _ => ops.push(claim),
            }
        }
        ops
    })
}

/// How a part of a log travels: by which way, from where, how far.
fn deliveries() -> impl Strategy<Value = Vec<(usize, bool, prop::sample::Index, prop::sample::Index)>> {
    prop::collection::vec((0usize..3, any::<bool>(), any::<prop::sample::Index>(), any::<prop::sample::Index>()), 0..40)
}

fn seen(view: &PresenceView) -> BTreeMap<PresenceKey, Vec<Candidate>> {
    let mut seen = BTreeMap::new();
    view.for_each(|key, claims| {
        seen.insert(key, claims);
    });
    seen
}

proptest! {
    #[test]
    fn the_view_depends_on_prefixes_alone_and_preference_never_on_arrival_order(
        logs in prop::collection::vec(owner_log(), 3),
        deliveries in deliveries(),
    ) {
        let nodes = [X, Y, Z];
        let view = view();
        for node in nodes {
            hello(&view, node);
            view.set_region(node, RegionId(node.0 % 2));
        }
        let mut tables = Table::default();
        for (owner, by_watch, from, to) in deliveries {
            let log = &logs[owner];
            let from = from.index(log.len() + 1);
            let ops = log[from..from + to.index(log.len() + 1 - from)].to_vec();
            let first_seq = from as u64 + 1;
            if by_watch {
                let known = view.cursor(nodes[owner]).next_seq;
                let result = watch(&view, nodes[owner], WatchInput::Delta { first_seq, ops });
                prop_assert_eq!(result.is_ok(), first_seq <= known);
            } else {
                apply(&view, &mut tables, raft(nodes[owner], first_seq, ops));
            }
        }
        // The same prefixes, each in one piece, the owners in the other order.
        let straight = self::view();
        for (owner, node) in nodes.into_iter().enumerate().rev() {
            straight.set_region(node, RegionId(node.0 % 2));
            hello(&straight, node);
            let known = usize::try_from(view.cursor(node).next_seq - 1).unwrap();
            delta(&straight, node, 1, logs[owner][..known].to_vec());
        }
        prop_assert_eq!(seen(&view), seen(&straight));
        for n in 0..5 {
            prop_assert_eq!(view.prefer(&key(n), &|_| false), straight.prefer(&key(n), &|_| false));
        }
    }
}
