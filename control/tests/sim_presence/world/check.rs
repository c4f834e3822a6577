//! Compares nodes with the reference, and after healing with each other.

use std::collections::{BTreeMap, BTreeSet};

use causeway_control::presence::Table;
use causeway_proto::presence::{Op, PresenceKey, Rank};
use rand::Rng;

use super::KEYS;
use super::World;
use crate::reference;
use crate::reference::Truth;

impl World {
    /// Compares every running node with the reference.
    pub(super) fn check(&mut self) {
        let mut overlaps = 0;
        for node in self.nodes.iter_mut().filter(|node| node.up) {
            let context = format!("seed {}: node {}", self.seed, node.id);
            let own = node.reference.owner(node.id);
            (own.epoch, own.boot_id, own.live, own.seq) = (node.epoch, node.boot_id, true, node.log.last_seq());
            let expected = node.reference.claims(&self.truth);
            let mut found = BTreeMap::new();
            let mut valid_keys = BTreeSet::new();
            node.view.for_each(|key, candidates| {
                overlaps += usize::from(candidates.len() > 1);
                for candidate in candidates {
                    assert_eq!(candidate.rank.node, candidate.node, "{context}");
                    found.insert((key, candidate.node), (candidate.rank.clock_us, candidate.home, candidate.kind));
                    assert_eq!(
                        candidate.validity.is_valid(),
                        node.reference.is_valid(candidate.node),
                        "{context}: {candidate:?}"
                    );
                    if candidate.validity.is_valid() {
                        valid_keys.insert(key);
                    }
                }
            });
            assert_eq!(found, expected, "{context}: the view is the longest known prefix of every owner");
            let jitter = self.rng.random_range(0.0..1.0);
            for key in node.drain(jitter, self.now, &mut self.coverage) {
                assert!(!valid_keys.contains(&key), "{context}: told gone while a valid claim is known");
                self.coverage.gone_told += 1;
            }
            assert_eq!(node.present, valid_keys, "{context}: events tell exactly which keys are present");
            for n in 0..KEYS {
                let key = PresenceKey([n << 4; 32]);
                let preferred = node.view.prefer(&key, &|_| false).map(|candidate| candidate.rank);
                assert_eq!(preferred, node.reference.preferred(key, &self.truth, &self.regions), "{context}: preference");
                assert_eq!(node.view.has_valid_claim(&key), valid_keys.contains(&key), "{context}");
            }
            for owner in node.view.owners() {
                let knowledge = (node.reference.owner(owner.node).drops, owner.epoch, owner.seq);
                let known = node.known.entry(owner.node).or_default();
                assert!(knowledge >= *known, "{context}: {} was {known:?}, is {knowledge:?}; {owner:?}", owner.node);
                *known = knowledge;
            }
            if std::mem::replace(&mut node.checked, node.applied) != node.applied {
                check_table(&node.table, &self.history[node.applied], &self.truth, &context);
            }
        }
        self.coverage.overlaps += overlaps;
    }

    pub(super) fn check_converged(&self) {
        let mut digests = BTreeSet::new();
        for node in self.nodes.iter().filter(|node| node.up) {
            digests.insert(node.table.snapshot().digest());
            for n in 0..KEYS {
                let key = PresenceKey([n << 4; 32]);
                let seen: BTreeSet<_> = node.view.claims(&key).into_iter().map(|claim| (claim.rank, claim.home)).collect();
                let mut truth = BTreeSet::new();
                for owner in self.nodes.iter().filter(|owner| owner.up) {
                    let claims = self.truth.claims(owner.id, owner.epoch, owner.log.last_seq());
                    let claim = claims.get(&key).map(|(clock_us, home, _)| (*clock_us, *home));
                    truth.extend(claim.map(|(clock_us, home)| (Rank { clock_us, node: owner.id }, home)));
                }
                assert_eq!(seen, truth, "seed {}: node {} after healing", self.seed, node.id);
                assert!(node.view.claims(&key).iter().all(|claim| claim.validity.is_live()), "seed {}", self.seed);
            }
        }
        assert_eq!(digests.len(), 1, "seed {}: all tables are one", self.seed);
    }
}

pub(super) fn check_table(table: &Table, reference: &reference::Table, truth: &Truth, context: &str) {
    let mut found = BTreeMap::new();
    for (node, ops) in table.snapshot().claims_by_owner() {
        for op in ops {
            let Op::Claim { key, clock_us, home, kind } = op else { panic!("{context}: a table holds claims only") };
            found.insert((key, node), (clock_us, home, kind));
        }
    }
    let mut expected = BTreeMap::new();
    for (node, owner) in &reference.owners {
        if !owner.dropped {
            let claims = truth.claims(*node, owner.epoch, owner.seq);
            expected.extend(claims.into_iter().map(|(key, claim)| ((key, *node), claim)));
        }
        let stated = table.owner(*node).expect("known to both");
        assert_eq!((stated.epoch, stated.seq, stated.fenced_epoch), (owner.epoch, owner.seq, owner.fenced), "{context}: {node}");
    }
    assert_eq!(found, expected, "{context}: the table is the applied prefix of every owner");
}
