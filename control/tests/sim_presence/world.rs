//! A fleet in memory: real owner logs, views, tables and fence monitor; a network that loses, repeats and reorders; a Raft log.
//!
//! Everything is drawn from one seeded generator, and after each step every node is compared with the reference.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use causeway_control::presence::fence::Member;
use causeway_control::presence::{
    Command, EventBatch, FenceMonitor, GoneTimers, IngestError, Outcome, OwnerLog, PresenceEvent, PresenceView, Refusal, Table,
    TableSnapshot, WatchInput,
};
use causeway_proto::id::{BootId, Epoch, NodeId, RegionId};
use causeway_proto::presence::{ClaimKind, Op, PresenceKey, unpack_ops};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::broadcast;

use crate::reference;
use crate::reference::Truth;

const KEYS: u8 = 12;
const STEPS: usize = 450;

/// What a run went through; a run without its faults proves nothing.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Coverage {
    pub(crate) operations: usize,
    pub(crate) stale_messages_refused: usize,
    pub(crate) gaps: usize,
    pub(crate) impostors_refused: usize,
    pub(crate) restarts: usize,
    pub(crate) table_restores: usize,
    pub(crate) resets: usize,
    pub(crate) fences: usize,
    pub(crate) unfences: usize,
    pub(crate) drops: usize,
    pub(crate) evictions: usize,
    pub(crate) owners_lost: usize,
    pub(crate) owners_back: usize,
    pub(crate) gone_told: usize,
    pub(crate) overlaps: usize,
}

/// A message on its way from an owner to an observer.
#[derive(Debug, Clone)]
struct Watch {
    from: NodeId,
    to: NodeId,
    epoch: Epoch,
    input: WatchInput,
}

struct Node {
    id: NodeId,
    epoch: Epoch,
    boot_id: BootId,
    up: bool,
    view: Arc<PresenceView>,
    log: OwnerLog,
    events: broadcast::Receiver<EventBatch>,
    /// Keys with a valid claim, by events alone.
    present: BTreeSet<PresenceKey>,
    gone: GoneTimers,
    reference: reference::View,
    table: Table,
    applied: usize,
    /// The index at which the table was compared with the reference.
    checked: usize,
    /// What survives a restart: a snapshot and the log index it was taken at.
    stored: (TableSnapshot, usize),
    /// What the view knows of each owner's log: times its claims were dropped, epoch, sequence.
    known: BTreeMap<NodeId, (usize, Epoch, u64)>,
}

pub(crate) struct World {
    seed: u64,
    rng: StdRng,
    now: Instant,
    now_us: u64,
    nodes: Vec<Node>,
    regions: BTreeMap<NodeId, RegionId>,
    truth: Truth,
    watches: Vec<Watch>,
    proposals: Vec<Command>,
    raft_log: Vec<Command>,
    /// The table after the whole Raft log, and the reference's.
    leader_table: Table,
    leader_digest: [u8; 32],
    leader_reference: reference::Table,
    /// The reference table after each index.
    history: Vec<reference::Table>,
    monitor: FenceMonitor,
    /// Pairs (from, to) between which nothing passes.
    cut: BTreeSet<(NodeId, NodeId)>,
    /// Nodes the leader does not hear.
    unheard: BTreeSet<NodeId>,
    evicted: Option<NodeId>,
    boots: u128,
    pub(crate) coverage: Coverage,
}

impl Node {
    fn start(
        id: NodeId,
        epoch: Epoch,
        boot_id: BootId,
        regions: &BTreeMap<NodeId, RegionId>,
        stored: (TableSnapshot, usize),
    ) -> Self {
        let view = Arc::new(PresenceView::new(id, regions[&id]));
        for (node, region) in regions {
            view.set_region(*node, *region);
        }
        let events = view.subscribe();
        let log = OwnerLog::new(id, epoch, boot_id, Arc::clone(&view));
        view.ingest_table_snapshot(&stored.0);
        Self {
            id,
            epoch,
            boot_id,
            up: true,
            view,
            log,
            events,
            present: BTreeSet::new(),
            gone: GoneTimers::default(),
            reference: reference::View::new(id),
            table: stored.0.table().clone(),
            applied: stored.1,
            checked: usize::MAX,
            stored,
            known: BTreeMap::new(),
        }
    }

    /// Follows the events, with the jitter of `rng`; returns the keys told to be gone.
    fn drain(&mut self, jitter: f64, now: Instant, coverage: &mut Coverage) -> Vec<PresenceKey> {
        self.view.tell_changed_owners();
        let mut told = Vec::new();
        while let Ok(batch) = self.events.try_recv() {
            for event in batch.iter() {
                match *event {
                    PresenceEvent::Claimed { key, .. } => {
                        self.present.insert(key);
                        self.gone.handle_claimed(&key);
                    }
                    PresenceEvent::LastClaimGone { key, clean } => {
                        // May be repeated: keys of changed owners are told after what happened since.
                        self.present.remove(&key);
                        if self.gone.handle_gone(key, clean, jitter, now) && !self.view.has_valid_claim(&key) {
                            told.push(key);
                        }
                    }
                    PresenceEvent::OwnerLost { .. } => coverage.owners_lost += 1,
                    PresenceEvent::OwnerBack { .. } => coverage.owners_back += 1,
                    _ => {}
                }
            }
        }
        told.extend(self.gone.handle_timeout(|key| self.view.has_valid_claim(key), now));
        told
    }
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let count = rng.random_range(3..=7);
        let ids: Vec<NodeId> = (1..=count).map(|n| NodeId(n * 11)).collect();
        let regions = ids.iter().map(|id| (*id, RegionId(1 + id.0 % 3))).collect();
        let now = Instant::now();
        let mut world = Self {
            seed,
            rng,
            now,
            now_us: 1_000_000_000,
            nodes: Vec::new(),
            regions,
            truth: Truth::default(),
            watches: Vec::new(),
            proposals: Vec::new(),
            raft_log: Vec::new(),
            leader_table: Table::default(),
            leader_digest: Table::default().snapshot().digest(),
            leader_reference: reference::Table::default(),
            history: vec![reference::Table::default()],
            monitor: FenceMonitor::default(),
            cut: BTreeSet::new(),
            unheard: BTreeSet::new(),
            evicted: None,
            boots: 0,
            coverage: Coverage::default(),
        };
        for id in ids {
            let boot_id = world.boot_id();
            let stored = (Table::default().snapshot(), 0);
            world.nodes.push(Node::start(id, Epoch(1), boot_id, &world.regions, stored));
            world.truth.logs.insert((id, Epoch(1)), Vec::new());
        }
        world.lead();
        world
    }

    pub(crate) fn run(&mut self) {
        for _ in 0..STEPS {
            self.step();
            self.check();
        }
        self.heal();
    }

    fn step(&mut self) {
        let advance_ms = if self.rng.random_bool(0.01) { 200_000 } else { self.rng.random_range(0..200) };
        self.now += Duration::from_millis(advance_ms);
        self.now_us += advance_ms * 1000;
        match self.rng.random_range(0..100) {
            0..25 => (0..3).for_each(|_| self.change_clients()),
            25..33 => self.dial(),
            33..55 => self.deliver_watch(),
            55..60 => self.heartbeat_watch(),
            60..64 => self.break_stream(),
            64..72 => self.propose(),
            72..80 => self.commit(),
            80..88 => self.apply(),
            88..92 => self.tick_leader(),
            92..94 => self.cut_or_mend(),
            94..96 => self.restart(),
            96..97 => self.impostor(),
            97..98 => self.stop_or_start_hearing(),
            98..99 => self.store_table(),
            _ => self.rare(),
        }
    }

    fn boot_id(&mut self) -> BootId {
        self.boots += 1;
        BootId(self.boots.to_be_bytes())
    }

    fn pick(&mut self) -> usize {
        self.rng.random_range(0..self.nodes.len())
    }

    fn pick_up(&mut self) -> Option<usize> {
        let index = self.pick();
        self.nodes[index].up.then_some(index)
    }

    fn pick_pair(&mut self) -> Option<(usize, usize)> {
        let (from, to) = (self.pick_up()?, self.pick_up()?);
        let passes = from != to && !self.cut.contains(&(self.nodes[from].id, self.nodes[to].id));
        passes.then_some((from, to))
    }

    fn change_clients(&mut self) {
        let Some(index) = self.pick_up() else { return };
        let key = PresenceKey([self.rng.random_range(0..KEYS) << 4; 32]);
        let now_us = self.now_us.saturating_add_signed(self.rng.random_range(-2_000_000..2_000_000));
        let flag = self.rng.random_bool(0.5);
        let node = &self.nodes[index];
        match self.rng.random_range(0..10) {
            0..5 => {
                node.log.claim(key, ClaimKind::Derp, flag, now_us).expect("few keys");
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
    fn dial(&mut self) {
        let Some((from, to)) = self.pick_pair() else { return };
        self.open_stream(from, to);
    }

    fn open_stream(&mut self, from: usize, to: usize) {
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

    fn heartbeat_watch(&mut self) {
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
    fn deliver_watch(&mut self) {
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

    fn deliver(&mut self, watch: Watch) {
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

    fn break_stream(&mut self) {
        let (from, to) = (self.pick(), self.pick());
        let (from, to) = (self.nodes[from].id, self.nodes[to].id);
        self.down(from, to);
    }

    fn down(&mut self, from: NodeId, to: NodeId) {
        let Some(node) = self.nodes.iter_mut().find(|node| node.id == to && from != to) else { return };
        let epoch = node.reference.owner(from).epoch;
        if node.reference.may_speak(from, epoch) {
            self.deliver(Watch { from, to, epoch, input: WatchInput::Down });
        }
    }

    /// A node proposes a part of its log, wherever it believes the table to stand, or starts over with a reset.
    fn propose(&mut self) {
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
    fn commit(&mut self) {
        if self.proposals.is_empty() {
            return;
        }
        let index = self.rng.random_range(0..self.proposals.len());
        let command = if self.rng.random_bool(0.2) { self.proposals[index].clone() } else { self.proposals.remove(index) };
        if !self.rng.random_bool(0.1) {
            self.append(command);
        }
    }

    fn append(&mut self, command: Command) -> Outcome {
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
    fn apply(&mut self) {
        let Some(index) = self.pick_up() else { return };
        let end = self.rng.random_range(self.nodes[index].applied..=self.raft_log.len());
        self.apply_until(index, end);
    }

    fn apply_until(&mut self, index: usize, end: usize) {
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

    fn lead(&mut self) {
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

    fn tick_leader(&mut self) {
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

    fn stop_or_start_hearing(&mut self) {
        let index = self.pick();
        let id = self.nodes[index].id;
        if !self.unheard.remove(&id) {
            self.unheard.insert(id);
        }
    }

    fn cut_or_mend(&mut self) {
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
    fn restart(&mut self) {
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

    fn start(&mut self, index: usize) {
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

    fn store_table(&mut self) {
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

    /// A second process with a copy of a node's data directory: nothing of it may ever count.
    fn impostor(&mut self) {
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

    fn rare(&mut self) {
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

    /// Compares every running node with the reference.
    fn check(&mut self) {
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

    /// Mends everything; then all nodes must agree, and with the truth.
    fn heal(&mut self) {
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

    /// Proposes what the table lacks until it has everything, as the proposer does.
    fn settle_proposals(&mut self, index: usize) {
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

    fn check_converged(&self) {
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
                    truth.extend(
                        claim.map(|(clock_us, home)| (causeway_proto::presence::Rank { clock_us, node: owner.id }, home)),
                    );
                }
                assert_eq!(seen, truth, "seed {}: node {} after healing", self.seed, node.id);
                assert!(node.view.claims(&key).iter().all(|claim| claim.validity.is_live()), "seed {}", self.seed);
            }
        }
        assert_eq!(digests.len(), 1, "seed {}: all tables are one", self.seed);
    }
}

fn check_table(table: &Table, reference: &reference::Table, truth: &Truth, context: &str) {
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
