//! Cuts, restarts, copied data directories, evictions; and the end of them all.

use std::time::Duration;

use causeway_control::presence::{Command, Outcome, Table, WatchInput};
use causeway_proto::id::{Epoch, NodeId};
use causeway_proto::presence::{ClaimKind, Op, PresenceKey};
use rand::Rng;

use super::World;
use super::node::Node;

impl World {
    pub(super) fn cut_or_mend(&mut self) {
        let (from, to) = (self.pick(), self.pick());
        let pair = (self.nodes[from].id, self.nodes[to].id);
        if self.cut.remove(&pair) {
            return;
        }
        self.cut.insert(pair);
        self.watches.retain(|watch| (watch.from, watch.to) != pair);
        self.down(pair.0, pair.1);
    }

    /// A process dies, or a dead one comes back with the next epoch and the table it had stored.
    pub(super) fn restart(&mut self) {
        let index = self.pick();
        let node = &mut self.nodes[index];
        if self.evicted == Some(node.id) {
            return;
        }
        if node.up {
            node.up = false;
            return;
        }
        self.start(index);
    }

    pub(super) fn start(&mut self, index: usize) {
        let boot_id = self.boot_id();
        let old = &self.nodes[index];
        let (id, epoch) = (old.id, Epoch(old.epoch.0 + 1));
        let blocks: Vec<_> = old.stored.0.blocks().collect();
        let table = Table::from_blocks(&blocks).expect("own blocks");
        assert_eq!(table.snapshot().digest(), old.stored.0.digest(), "seed {}: a table survives its blocks", self.seed);
        let mut node = Node::start(id, epoch, boot_id, &self.regions, (table.snapshot(), old.stored.1));
        node.reference.table(&self.history[old.stored.1]);
        self.truth.logs.insert((id, epoch), Vec::new());
        self.nodes[index] = node;
        self.coverage.restarts += 1;
        // It announces its epoch, as the proposer does at start.
        self.proposals.push(Command::Apply { node: id, epoch, boot_id, first_seq: 1, ops: Vec::new() });
    }

    /// A second process with a copy of a node's data directory: nothing of it may ever count.
    pub(super) fn impostor(&mut self) {
        let Some((from, to)) = self.pick_pair() else { return };
        let boot_id = self.boot_id();
        let (node, observer) = (&self.nodes[from], &self.nodes[to]);
        let (id, epoch) = (node.id, node.epoch);
        if observer.reference.owners.get(&id).is_some_and(|owner| owner.epoch >= epoch && !owner.evicted) {
            let result = observer.view.ingest_watch(id, epoch, WatchInput::Hello { boot_id }, self.now);
            assert!(result.is_err(), "seed {}: two processes in one epoch", self.seed);
            self.coverage.impostors_refused += 1;
        }
        if self.leader_table.owner(id).is_some_and(|owner| owner.epoch >= epoch) {
            let op = Op::Claim { key: PresenceKey([255; 32]), clock_us: 1, home: true, kind: ClaimKind::Derp };
            let outcome = self.append(Command::Apply { node: id, epoch, boot_id, first_seq: 1, ops: vec![op] });
            assert!(matches!(outcome, Outcome::Refused(_)), "seed {}: two processes in one epoch", self.seed);
        }
    }

    pub(super) fn rare(&mut self) {
        if self.evicted.is_none() && self.nodes.len() > 3 && self.rng.random_bool(0.2) {
            let index = self.pick();
            let id = self.nodes[index].id;
            self.evicted = Some(id);
            self.nodes[index].up = false;
            self.append(Command::Evict { node: id });
            self.monitor.forget(id);
        }
        // Several nodes become unreachable for one at once: it loses sight of a part of the fleet.
        let Some(observer) = self.pick_up() else { return };
        let to = self.nodes[observer].id;
        let ids: Vec<NodeId> = self.nodes.iter().map(|node| node.id).collect();
        for from in ids {
            if self.rng.random_bool(0.7) {
                self.down(from, to);
            }
        }
    }

    /// Mends everything; then all nodes must agree, and with the truth.
    pub(super) fn heal(&mut self) {
        self.cut.clear();
        self.unheard.clear();
        self.watches.clear();
        self.proposals.clear();
        for index in 0..self.nodes.len() {
            if !self.nodes[index].up && self.evicted != Some(self.nodes[index].id) {
                self.start(index);
            }
        }
        self.proposals.clear();
        for index in 0..self.nodes.len() {
            if self.nodes[index].up {
                self.settle_proposals(index);
            }
        }
        self.now += Duration::from_secs(2);
        for _ in 0..3 {
            self.tick_leader();
            self.now += Duration::from_secs(2);
        }
        for to in 0..self.nodes.len() {
            for from in 0..self.nodes.len() {
                if from != to && self.nodes[from].up && self.nodes[to].up {
                    let (from_id, to_id) = (self.nodes[from].id, self.nodes[to].id);
                    self.down(from_id, to_id);
                    self.open_stream(from, to);
                }
            }
        }
        for watch in std::mem::take(&mut self.watches) {
            self.deliver(watch);
        }
        for index in 0..self.nodes.len() {
            if self.nodes[index].up {
                self.apply_until(index, self.raft_log.len());
            }
        }
        self.check();
        self.check_converged();
    }
}
