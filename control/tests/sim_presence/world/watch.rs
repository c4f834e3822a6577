//! Clients come and go; what their nodes tell each other of it.

use causeway_control::presence::{IngestError, WatchInput};
use causeway_proto::id::NodeId;
use causeway_proto::presence::{ClaimKind, PresenceKey, unpack_ops};
use rand::Rng;

use super::KEYS;
use super::World;
use super::node::Watch;

impl World {
    pub(super) fn change_clients(&mut self) {
        let Some(index) = self.pick_up() else { return };
        let key = PresenceKey([self.rng.random_range(0..KEYS) << 4; 32]);
        let now_us = self.now_us.saturating_add_signed(self.rng.random_range(-2_000_000..2_000_000));
        let flag = self.rng.random_bool(0.5);
        let node = &self.nodes[index];
        match self.rng.random_range(0..10) {
            0..5 => {
                let kind = if self.rng.random_bool(0.3) { ClaimKind::Derper } else { ClaimKind::Derp };
                node.log.claim(key, kind, flag, now_us).expect("few keys");
            }
            5..7 => {
                node.log.set_home(key, flag, now_us);
            }
            _ => {
                let own = node.view.claims(&key).into_iter().find(|claim| claim.node == node.id);
                if let Some(claim) = own {
                    assert!(node.log.release(key, claim.rank, flag), "the own view shows what the log holds");
                    assert!(!node.log.release(key, claim.rank, flag), "a release ends a claim once");
                }
            }
        }
        let log = self.truth.logs.get_mut(&(node.id, node.epoch)).expect("made at start");
        let new = node.log.ops_from(log.len() as u64 + 1, usize::MAX).expect("the ring is long");
        self.coverage.operations += new.ops.len();
        log.extend(new.ops);
    }

    /// A follower dials: hello, then a snapshot or what is missing.
    pub(super) fn dial(&mut self) {
        let Some((from, to)) = self.pick_pair() else { return };
        self.open_stream(from, to);
    }

    pub(super) fn open_stream(&mut self, from: usize, to: usize) {
        let (owner, observer) = (&self.nodes[from], &self.nodes[to]);
        let hello = WatchInput::Hello { boot_id: owner.boot_id };
        let cursor = observer.view.cursor(owner.id);
        let same_process = (cursor.epoch, cursor.boot_id) == (owner.epoch, owner.boot_id);
        let rest = match owner.log.ops_from(cursor.next_seq, usize::MAX) {
            Ok(batch) if same_process && cursor.next_seq > 0 => {
                (!batch.ops.is_empty()).then_some(WatchInput::Delta { first_seq: batch.first_seq, ops: batch.ops })
            }
            _ => {
                let snapshot = owner.log.snapshot();
                Some(WatchInput::Snapshot { seq: snapshot.seq, ops: unpack_ops(&snapshot.packed).expect("own packing") })
            }
        };
        let (from, to, epoch) = (owner.id, observer.id, owner.epoch);
        self.watches.push(Watch { from, to, epoch, input: hello });
        self.watches.extend(rest.map(|input| Watch { from, to, epoch, input }));
    }

    pub(super) fn heartbeat_watch(&mut self) {
        let Some((from, to)) = self.pick_pair() else { return };
        let (owner, observer) = (&self.nodes[from], &self.nodes[to]);
        let hears = owner.view.live_nodes().borrow().to_vec();
        let (from, to, epoch) = (owner.id, observer.id, owner.epoch);
        self.watches.push(Watch { from, to, epoch, input: WatchInput::Heartbeat { hears } });
        // What the log grew since, or a part of it from anywhere before.
        let first_seq = self.rng.random_range(1..=owner.log.last_seq() + 1);
        if let Ok(batch) = owner.log.ops_from(first_seq, usize::MAX) {
            let keep = self.rng.random_range(0..=batch.ops.len());
            let ops = batch.ops[..keep].to_vec();
            self.watches.push(Watch { from, to, epoch, input: WatchInput::Delta { first_seq, ops } });
        }
    }

    /// Delivers something on its way: mostly in order, sometimes from the middle, twice, or never.
    pub(super) fn deliver_watch(&mut self) {
        for _ in 0..self.rng.random_range(1..6) {
            if self.watches.is_empty() {
                return;
            }
            let any = self.rng.random_range(0..self.watches.len());
            let index = if self.rng.random_bool(0.7) { 0 } else { any };
            let watch = if self.rng.random_bool(0.15) { self.watches[index].clone() } else { self.watches.remove(index) };
            if !self.rng.random_bool(0.05) {
                self.deliver(watch);
            }
        }
    }

    pub(super) fn deliver(&mut self, watch: Watch) {
        let Some(node) = self.nodes.iter_mut().find(|node| node.id == watch.to && node.up) else { return };
        let Watch { from, epoch, input, .. } = watch;
        let reference = &mut node.reference;
        let welcome = match &input {
            WatchInput::Hello { boot_id } => reference.hello(from, epoch, *boot_id),
            _ if !reference.may_speak(from, epoch) => false,
            WatchInput::Snapshot { seq, .. } => {
                reference.snapshot(from, *seq);
                true
            }
            WatchInput::Delta { first_seq, ops } => reference.delta(from, *first_seq, first_seq + ops.len() as u64 - 1),
            WatchInput::Heartbeat { hears } => {
                reference.owner(from).hears = hears.iter().copied().collect();
                true
            }
            WatchInput::Down => {
                let owner = reference.owner(from);
                owner.live = false;
                owner.hears.clear();
                true
            }
        };
        let result = node.view.ingest_watch(from, epoch, input, self.now);
        assert_eq!(result.is_ok(), welcome, "seed {}: {from} to {}: {result:?}", self.seed, node.id);
        match result {
            Err(IngestError::Gap { .. }) => self.coverage.gaps += 1,
            Err(IngestError::LowerEpoch { .. } | IngestError::NoHello) => self.coverage.stale_messages_refused += 1,
            _ => {}
        }
    }

    pub(super) fn break_stream(&mut self) {
        let (from, to) = (self.pick(), self.pick());
        let (from, to) = (self.nodes[from].id, self.nodes[to].id);
        self.down(from, to);
    }

    pub(super) fn down(&mut self, from: NodeId, to: NodeId) {
        let Some(node) = self.nodes.iter_mut().find(|node| node.id == to && from != to) else { return };
        let epoch = node.reference.owner(from).epoch;
        if node.reference.may_speak(from, epoch) {
            self.deliver(Watch { from, to, epoch, input: WatchInput::Down });
        }
    }
}
