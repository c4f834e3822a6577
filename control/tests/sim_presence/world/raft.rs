//! Proposals, the Raft log, its application at every node, and the leader's fences.

use causeway_control::presence::fence::Member;
use causeway_control::presence::{Command, Outcome, Refusal};
use causeway_proto::presence::unpack_ops;
use rand::Rng;

use super::World;
use super::check::check_table;

impl World {
    /// A node proposes a part of its log, wherever it believes the table to stand, or starts over with a reset.
    pub(super) fn propose(&mut self) {
        let Some(index) = self.pick_up() else { return };
        let node = &self.nodes[index];
        let (id, epoch, boot_id) = (node.id, node.epoch, node.boot_id);
        let applied = self.leader_table.owner(id).filter(|owner| owner.epoch == epoch);
        let reset = applied.is_some_and(|owner| owner.dropped) || self.rng.random_bool(0.05);
        let command = if reset {
            let snapshot = node.log.snapshot();
            Command::Reset {
                node: id,
                epoch,
                boot_id,
                seq: snapshot.seq,
                ops: unpack_ops(&snapshot.packed).expect("own packing"),
            }
        } else {
            let next_seq = applied.map_or(1, |owner| owner.seq + 1);
            let first_seq = if self.rng.random_bool(0.3) { self.rng.random_range(1..=next_seq + 1) } else { next_seq };
            let Ok(batch) = node.log.ops_from(first_seq, usize::MAX) else { return };
            let keep = self.rng.random_range(0..=batch.ops.len());
            Command::Apply { node: id, epoch, boot_id, first_seq, ops: batch.ops[..keep].to_vec() }
        };
        self.proposals.push(command);
    }

    /// The leader commits a proposal: any of those on their way, perhaps once more, or loses it.
    pub(super) fn commit(&mut self) {
        if self.proposals.is_empty() {
            return;
        }
        let index = self.rng.random_range(0..self.proposals.len());
        let command = if self.rng.random_bool(0.2) { self.proposals[index].clone() } else { self.proposals.remove(index) };
        if !self.rng.random_bool(0.1) {
            self.append(command);
        }
    }

    pub(super) fn append(&mut self, command: Command) -> Outcome {
        let node = command.node();
        let before = self.leader_digest;
        let applied = self.leader_table.apply(&command);
        let changed = self.leader_reference.apply(&command);
        let context = format!("seed {}: {command:?} gave {:?}", self.seed, applied.outcome);
        assert_eq!(matches!(applied.outcome, Outcome::Applied { .. }), changed, "{context}");
        self.leader_digest = self.leader_table.snapshot().digest();
        assert_eq!(before != self.leader_digest, changed, "{context}");
        check_table(&self.leader_table, &self.leader_reference, &self.truth, &context);
        assert_eq!(applied.events.is_empty(), !changed, "{context}");
        match (&command, changed) {
            (Command::Reset { .. }, true) => self.coverage.resets += 1,
            (Command::Fence { .. }, true) => self.coverage.fences += 1,
            (Command::Unfence { .. }, true) => self.coverage.unfences += 1,
            (Command::DropFenced { .. }, true) => self.coverage.drops += 1,
            (Command::Evict { .. }, true) => self.coverage.evictions += 1,
            _ => {}
        }
        if let Outcome::Refused(Refusal::Gap { .. }) = applied.outcome {
            self.coverage.gaps += 1;
        }
        if let Some(owner) = self.leader_table.owner(node) {
            self.monitor.applied(Member::of_table(node, owner), self.now);
        }
        self.raft_log.push(command);
        self.history.push(self.leader_reference.clone());
        applied.outcome
    }

    /// A node applies some of the log it does not have yet.
    pub(super) fn apply(&mut self) {
        let Some(index) = self.pick_up() else { return };
        let end = self.rng.random_range(self.nodes[index].applied..=self.raft_log.len());
        self.apply_until(index, end);
    }

    pub(super) fn apply_until(&mut self, index: usize, end: usize) {
        let node = &mut self.nodes[index];
        while node.applied < end {
            let command = &self.raft_log[node.applied];
            let bytes = command.encode();
            let applied = node.table.apply(&Command::decode(&bytes).expect("own encoding"));
            node.view.ingest_table(&applied.events);
            if matches!(applied.outcome, Outcome::Applied { .. }) {
                let owner = &self.history[node.applied + 1].owners[&command.node()];
                node.reference.applied(command, owner);
            }
            node.applied += 1;
        }
    }

    /// Proposes what the table lacks until it has everything, as the proposer does.
    pub(super) fn settle_proposals(&mut self, index: usize) {
        let node = &self.nodes[index];
        let (id, epoch, boot_id) = (node.id, node.epoch, node.boot_id);
        let snapshot = node.log.snapshot();
        let first_seq = self.leader_table.owner(id).filter(|owner| owner.epoch == epoch).map_or(1, |owner| owner.seq + 1);
        let ops = node.log.ops_from(first_seq, usize::MAX).expect("the ring is long").ops;
        let outcome = self.append(Command::Apply { node: id, epoch, boot_id, first_seq, ops });
        if let Outcome::Refused(Refusal::NeedsReset { at_least_seq }) = outcome {
            assert!(snapshot.seq >= at_least_seq);
            let ops = unpack_ops(&snapshot.packed).expect("own packing");
            let outcome = self.append(Command::Reset { node: id, epoch, boot_id, seq: snapshot.seq, ops });
            assert_eq!(outcome, Outcome::Applied { seq: snapshot.seq });
        }
    }

    pub(super) fn store_table(&mut self) {
        let index = self.pick();
        let node = &mut self.nodes[index];
        node.stored = (node.table.snapshot(), node.applied);
        // A lagging node is sent the leader's snapshot instead of the log.
        if node.up && self.rng.random_bool(0.3) {
            let snapshot = self.leader_table.snapshot();
            node.view.ingest_table_snapshot(&snapshot);
            node.reference.table(&self.leader_reference);
            node.table = snapshot.table().clone();
            node.applied = self.raft_log.len();
            self.coverage.table_restores += 1;
        }
    }

    pub(super) fn lead(&mut self) {
        let members: Vec<Member> = self
            .nodes
            .iter()
            .map(|node| match self.leader_table.owner(node.id) {
                Some(owner) => Member::of_table(node.id, owner),
                None => Member { node: node.id, epoch: node.epoch, fenced: false, dropped: false },
            })
            .collect();
        self.monitor.became_leader(members, self.now);
    }

    pub(super) fn tick_leader(&mut self) {
        for node in &self.nodes {
            if node.up && !self.unheard.contains(&node.id) {
                self.monitor.heartbeat(node.id, node.epoch, self.now);
            }
        }
        let commands = self.monitor.handle_timeout(self.now);
        for command in commands {
            // A proposal may be lost.
            if self.rng.random_bool(0.8) {
                self.append(command);
            }
        }
        if self.rng.random_bool(0.02) {
            self.monitor.lost_leadership();
            self.lead();
        }
    }

    pub(super) fn stop_or_start_hearing(&mut self) {
        let index = self.pick();
        let id = self.nodes[index].id;
        if !self.unheard.remove(&id) {
            self.unheard.insert(id);
        }
    }
}
