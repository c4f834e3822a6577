#![allow(clippy::unwrap_used, reason = "tests")]

use proptest::prelude::*;

use super::snapshot::{OWNER_LEN, RECORD_LEN};
use super::*;

const X: NodeId = NodeId(1);
const Y: NodeId = NodeId(2);
const BOOT: BootId = BootId([1; 16]);

fn key(n: u8) -> PresenceKey {
    PresenceKey([n; 32])
}

fn claim(n: u8, clock_us: u64) -> Op {
    Op::Claim { key: key(n), clock_us, home: n.is_multiple_of(2), kind: ClaimKind::Derp }
}

fn release(n: u8, clock_us: u64) -> Op {
    Op::Release { key: key(n), clock_us, clean: true }
}

fn apply(node: NodeId, epoch: u64, first_seq: u64, ops: Vec<Op>) -> Command {
    Command::Apply { node, epoch: Epoch(epoch), boot_id: BOOT, first_seq, ops }
}

fn table_after(commands: &[Command]) -> Table {
    let mut table = Table::default();
    for command in commands {
        table.apply(command);
    }
    table
}

fn ranks(table: &Table, n: u8) -> Vec<(u64, NodeId)> {
    table.claims(&key(n)).into_iter().map(|claim| (claim.rank.clock_us, claim.rank.node)).collect()
}

#[test]
fn claims_of_several_nodes_stand_side_by_side_and_a_release_ends_exactly_its_rank() {
    let mut table = table_after(&[apply(X, 1, 1, vec![claim(1, 10)]), apply(Y, 1, 1, vec![claim(1, 20)])]);
    assert_eq!(ranks(&table, 1), [(20, Y), (10, X)]);
    table.apply(&apply(Y, 1, 2, vec![release(1, 10), release(1, 19), release(2, 20)]));
    assert_eq!(ranks(&table, 1), [(20, Y), (10, X)], "none of these is Y's claim");
    table.apply(&apply(Y, 1, 5, vec![release(1, 20)]));
    assert_eq!(ranks(&table, 1), [(10, X)]);
    assert_eq!(table.len(), 1);
}

#[test]
fn a_change_of_home_is_a_new_rank_and_the_release_of_the_old_touches_it_not() {
    let table = table_after(&[apply(X, 1, 1, vec![claim(1, 10)]), apply(X, 1, 2, vec![claim(1, 11), release(1, 10)])]);
    assert_eq!(ranks(&table, 1), [(11, X)]);
}

#[test]
fn operations_are_applied_once_and_without_gaps() {
    let mut table = table_after(&[apply(X, 1, 1, vec![claim(1, 10), claim(2, 11)])]);
    let gap = table.apply(&apply(X, 1, 4, vec![claim(3, 12)]));
    assert_eq!(gap, Applied { outcome: Outcome::Refused(Refusal::Gap { expected_seq: 3 }), events: Vec::new() });
    let again = table.apply(&apply(X, 1, 1, vec![claim(1, 10), claim(2, 11)]));
    assert_eq!(again, Applied { outcome: Outcome::Unchanged { seq: 2 }, events: Vec::new() });
    let overlap = table.apply(&apply(X, 1, 2, vec![claim(2, 11), release(1, 10)]));
    assert_eq!(overlap.outcome, Outcome::Applied { seq: 3 });
    let new = TableEvent::Advanced { node: X, epoch: Epoch(1), boot_id: BOOT, first_seq: 3, ops: vec![release(1, 10)] };
    assert_eq!(overlap.events, [new]);
    assert_eq!(table.apply(&apply(X, 1, 0, vec![])).outcome, Outcome::Refused(Refusal::Malformed));
    assert_eq!(table.apply(&apply(X, 1, u64::MAX, vec![claim(1, 1)])).outcome, Outcome::Refused(Refusal::Malformed));
}

#[test]
fn a_higher_epoch_replaces_everything_and_lower_or_doubled_ones_are_refused() {
    let mut table = table_after(&[apply(X, 1, 1, vec![claim(1, 10)]), apply(X, 3, 1, vec![])]);
    assert!(table.is_empty(), "an empty first part announces the epoch");
    let refused = |refusal| Outcome::Refused(refusal);
    let lower = Refusal::LowerEpoch { highest: Epoch(3) };
    assert_eq!(table.apply(&apply(X, 2, 1, vec![claim(1, 10)])).outcome, refused(lower));
    let other = Command::Apply { node: X, epoch: Epoch(3), boot_id: BootId([2; 16]), first_seq: 1, ops: vec![] };
    assert_eq!(table.apply(&other).outcome, refused(Refusal::OtherBootId { epoch: Epoch(3) }));
    assert_eq!(table.apply(&apply(X, 4, 2, vec![claim(1, 10)])).outcome, refused(Refusal::Gap { expected_seq: 1 }));
    assert_eq!(table.apply(&apply(Y, 0, 1, vec![])).outcome, refused(Refusal::Malformed));
}

#[test]
fn a_fence_changes_validity_and_no_data() {
    let mut table = table_after(&[apply(X, 2, 1, vec![claim(1, 10)])]);
    assert_eq!(table.apply(&Command::Fence { node: X, epoch: Epoch(1) }).outcome, Outcome::Unchanged { seq: 1 });
    table.apply(&Command::Fence { node: X, epoch: Epoch(2) });
    assert!(table.claims(&key(1))[0].fenced);
    table.apply(&apply(X, 2, 2, vec![claim(2, 11)]));
    assert_eq!(table.len(), 2, "a fenced owner's log goes on");
    table.apply(&Command::Unfence { node: X, epoch: Epoch(2) });
    assert!(!table.claims(&key(1))[0].fenced);
    table.apply(&Command::Fence { node: X, epoch: Epoch(2) });
    table.apply(&apply(X, 3, 1, vec![claim(1, 30)]));
    assert!(!table.claims(&key(1))[0].fenced, "a new process is not the one that was silent");
}

#[test]
fn a_fence_may_run_ahead_of_the_table() {
    let mut table = table_after(&[apply(X, 1, 1, vec![claim(1, 10)]), Command::Fence { node: X, epoch: Epoch(2) }]);
    assert!(table.claims(&key(1))[0].fenced, "the process before the silent one is gone too");
    table.apply(&Command::Fence { node: Y, epoch: Epoch(5) });
    assert!(table.owner(Y).unwrap().is_fenced(), "a node without claims is fenced as well");
}

#[test]
fn dropped_claims_come_back_by_a_reset_only() {
    let mut table = table_after(&[apply(X, 1, 1, vec![claim(1, 10), claim(2, 11)])]);
    let drop = Command::DropFenced { node: X, epoch: Epoch(1) };
    assert_eq!(table.apply(&drop).outcome, Outcome::Unchanged { seq: 2 }, "it is not fenced");
    table.apply(&Command::Fence { node: X, epoch: Epoch(1) });
    assert_eq!(table.apply(&drop).events, [TableEvent::Dropped { node: X, epoch: Epoch(1) }]);
    assert!(table.is_empty());
    let needs_reset = Outcome::Refused(Refusal::NeedsReset { at_least_seq: 2 });
    assert_eq!(table.apply(&apply(X, 1, 3, vec![claim(3, 12)])).outcome, needs_reset);
    let reset = |seq, ops| Command::Reset { node: X, epoch: Epoch(1), boot_id: BOOT, seq, ops };
    assert_eq!(table.apply(&reset(1, vec![claim(1, 10)])).outcome, needs_reset);
    assert_eq!(table.apply(&reset(2, vec![claim(1, 10), claim(2, 11)])).outcome, Outcome::Applied { seq: 2 });
    assert_eq!(table.len(), 2);
    for malformed in [vec![claim(2, 1), claim(1, 2)], vec![claim(1, 1), claim(1, 2)], vec![release(1, 10)]] {
        assert_eq!(table.apply(&reset(9, malformed)).outcome, Outcome::Refused(Refusal::Malformed));
    }
}

#[test]
fn an_evicted_node_never_claims_again() {
    let mut table = table_after(&[apply(X, 1, 1, vec![claim(1, 10)]), Command::Evict { node: X }]);
    assert!(table.is_empty());
    assert_eq!(table.apply(&apply(X, 2, 1, vec![claim(1, 10)])).outcome, Outcome::Refused(Refusal::Evicted));
    let kept = Table::from_blocks(table.snapshot().blocks()).unwrap();
    assert!(kept.owner(X).unwrap().evicted, "a snapshot remembers it");
}

#[test]
fn an_owner_holds_a_bounded_number_of_claims_and_a_refused_batch_changes_nothing() {
    let many = |first: usize, count: usize| -> Vec<Op> {
        let key = |n: usize| {
            let mut key = [0; 32];
            key[..8].copy_from_slice(&n.to_be_bytes());
            PresenceKey(key)
        };
        let claim = |n| Op::Claim { key: key(n), clock_us: 1, home: false, kind: ClaimKind::Derp };
        (first..first + count).map(claim).collect()
    };
    let mut table = table_after(&[apply(X, 1, 1, many(0, CLAIMS_PER_OWNER_MAX))]);
    let before = table.snapshot().digest();
    let next_seq = CLAIMS_PER_OWNER_MAX as u64 + 1;
    let one_more = apply(X, 1, next_seq, many(CLAIMS_PER_OWNER_MAX, 1));
    assert_eq!(table.apply(&one_more).outcome, Outcome::Refused(Refusal::TooManyClaims));
    assert_eq!(table.snapshot().digest(), before);
    let mut swap = vec![Op::Release { key: *many(0, 1)[0].key(), clock_us: 1, clean: false }];
    swap.extend(many(CLAIMS_PER_OWNER_MAX, 1));
    swap.extend(many(1, 1));
    assert_eq!(table.apply(&apply(X, 1, next_seq, swap)).outcome, Outcome::Applied { seq: next_seq + 2 });
}

#[test]
fn blocks_that_no_table_makes_are_refused() {
    let table = table_after(&[apply(X, 1, 1, vec![claim(1, 10), claim(2, 11)]), apply(Y, 1, 1, vec![claim(1, 12)])]);
    let blocks: Vec<Vec<u8>> = table.snapshot().blocks().map(|block| block.to_vec()).collect();
    assert_eq!(blocks.len(), 2);
    let with = |owners: &[u8], claims: &[u8]| Table::from_blocks([owners, claims]).err();
    assert_eq!(with(&blocks[0], &blocks[1]), None);
    assert_eq!(Table::from_blocks(Vec::<Vec<u8>>::new()).err(), Some(BlockError::NoOwners));
    assert_eq!(with(&blocks[0][1..], &blocks[1]), Some(BlockError::Length(2 * OWNER_LEN - 1)));
    assert_eq!(with(&blocks[0], &blocks[1][1..]), Some(BlockError::Length(3 * RECORD_LEN - 1)));
    assert_eq!(with(&blocks[0], &blocks[1][RECORD_LEN..]), Some(BlockError::Count(X)));
    assert_eq!(with(&blocks[0][OWNER_LEN..], &blocks[1]), Some(BlockError::Count(X)));
    let doubled = [&blocks[1][..RECORD_LEN], &blocks[1][..]].concat();
    assert_eq!(with(&blocks[0], &doubled), Some(BlockError::Order));
    let mut bad_tag = blocks[1].clone();
    bad_tag[RECORD_LEN - 1] = 0x3f;
    assert_eq!(with(&blocks[0], &bad_tag), Some(BlockError::Tag(0x3f)));
}

/// Commands of two owners that mostly fit together.
fn commands() -> impl Strategy<Value = Vec<Command>> {
    let op =
        (0u8..6, 1u64..6, any::<bool>()).prop_map(|(n, clock, claims)| if claims { claim(n, clock) } else { release(n, clock) });
    let part = (1u64..6, prop::collection::vec(op, 0..5));
    let command = (0..20, 1u64..3, 1u64..4, part).prop_map(|(kind, node, epoch, (first_seq, ops))| {
        let (node, epoch) = (NodeId(node), Epoch(epoch));
        match kind {
            0 => Command::Fence { node, epoch },
            1 => Command::Unfence { node, epoch },
            2 => Command::DropFenced { node, epoch },
            3 => Command::Reset { node, epoch, boot_id: BOOT, seq: first_seq + 2, ops: vec![claim(3, 3)] },
            _ => Command::Apply { node, epoch, boot_id: BOOT, first_seq, ops },
        }
    });
    prop::collection::vec(command, 0..40)
}

proptest! {
    #[test]
    fn the_table_depends_only_on_the_log_even_through_snapshots(commands in commands(), cut in any::<prop::sample::Index>()) {
        let whole = table_after(&commands);
        let cut = cut.index(commands.len() + 1);
        let half = table_after(&commands[..cut]);
        let snapshot = half.snapshot();
        let digest = snapshot.digest();
        let mut live = half;
        let mut restored = Table::from_blocks(snapshot.blocks()).unwrap();
        for command in &commands[cut..] {
            prop_assert_eq!(live.apply(command), restored.apply(command));
        }
        prop_assert_eq!(live.snapshot().digest(), whole.snapshot().digest());
        prop_assert_eq!(restored.snapshot().digest(), whole.snapshot().digest());
        prop_assert_eq!(snapshot.digest(), digest, "a snapshot stays as it was taken");
        prop_assert_eq!(whole.len(), whole.snapshot().claims_by_owner().values().map(Vec::len).sum::<usize>());
    }

    #[test]
    fn nothing_at_or_below_the_applied_sequence_changes_anything(commands in commands()) {
        let mut table = table_after(&commands);
        let digest = table.snapshot().digest();
        let owners: Vec<_> = table.owners().map(|(node, owner)| (node, owner.clone())).collect();
        for (node, owner) in owners {
            for first_seq in 1..=owner.seq {
                let room = usize::try_from(owner.seq + 1 - first_seq).unwrap();
                let command = Command::Apply {
                    node,
                    epoch: owner.epoch,
                    boot_id: owner.boot_id,
                    first_seq,
                    ops: vec![claim(9, 99); room],
                };
                table.apply(&command);
            }
        }
        prop_assert_eq!(table.snapshot().digest(), digest);
    }
}
