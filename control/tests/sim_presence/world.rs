//! A fleet in memory: real owner logs, views, tables and fence monitor; a network that loses, repeats and reorders; a Raft log.
//!
//! Everything is drawn from one seeded generator, and after each step every node is compared with the reference.

mod check;
mod faults;
mod node;
mod raft;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use causeway_control::presence::{Command, FenceMonitor, Table};
use causeway_proto::id::{BootId, Epoch, NodeId, RegionId};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::reference;
use crate::reference::Truth;
use node::{Node, Watch};

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
}
