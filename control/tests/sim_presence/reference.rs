//! The rules of presence written down as simply as possible: numbers of known prefixes, and the ground truth to look them up in.

use std::collections::{BTreeMap, BTreeSet};

use causeway_control::presence::Command;
use causeway_proto::id::{BootId, Epoch, NodeId, RegionId};
use causeway_proto::presence::{ClaimKind, Op, PresenceKey, Rank};

/// A claim of one owner: clock, home, kind.
pub(crate) type Claims = BTreeMap<PresenceKey, (u64, bool, ClaimKind)>;

/// Every owner log ever written, by (owner, epoch).
#[derive(Default)]
pub(crate) struct Truth {
    pub(crate) logs: BTreeMap<(NodeId, Epoch), Vec<Op>>,
}

impl Truth {
    /// What an owner holds after the first `seq` operations of its log.
    pub(crate) fn claims(&self, node: NodeId, epoch: Epoch, seq: u64) -> Claims {
        let mut claims = Claims::new();
        let log = self.logs.get(&(node, epoch)).map_or(&[][..], Vec::as_slice);
        for op in &log[..usize::try_from(seq).expect("small")] {
            match *op {
                Op::Claim { key, clock_us, home, kind } => {
                    claims.insert(key, (clock_us, home, kind));
                }
                Op::Release { key, clock_us, .. } => {
                    if claims.get(&key).is_some_and(|(held, ..)| *held == clock_us) {
                        claims.remove(&key);
                    }
                }
            }
        }
        claims
    }
}

/// An owner in the reference table.
#[derive(Default, Clone, Debug, PartialEq)]
pub(crate) struct TableOwner {
    pub(crate) epoch: Epoch,
    pub(crate) boot_id: BootId,
    pub(crate) seq: u64,
    pub(crate) fenced: Option<Epoch>,
    pub(crate) dropped: bool,
    pub(crate) evicted: bool,
}

impl TableOwner {
    fn is_fenced(&self) -> bool {
        self.fenced >= Some(self.epoch)
    }
}

/// The reference table: who is known up to where.
#[derive(Default, Clone)]
pub(crate) struct Table {
    pub(crate) owners: BTreeMap<NodeId, TableOwner>,
}

impl Table {
    /// Applies a command; whether anything changed.
    pub(crate) fn apply(&mut self, command: &Command) -> bool {
        let before = self.owners.get(&command.node()).cloned();
        let mut owner = before.clone().unwrap_or_default();
        if owner.evicted {
            return false;
        }
        match command {
            Command::Apply { epoch, boot_id, first_seq, ops, .. } => {
                let opens = *epoch > owner.epoch;
                if *epoch < owner.epoch || (!opens && (*boot_id != owner.boot_id || owner.dropped)) {
                    return false;
                }
                let known = if opens { 0 } else { owner.seq };
                let last = first_seq + ops.len() as u64 - 1;
                if *first_seq > known + 1 || (!opens && last <= known) {
                    return false;
                }
                (owner.epoch, owner.boot_id, owner.seq, owner.dropped) = (*epoch, *boot_id, last.max(known), false);
            }
            Command::Reset { epoch, boot_id, seq, .. } => {
                let opens = *epoch > owner.epoch;
                let same_process = *epoch == owner.epoch && *boot_id == owner.boot_id;
                let news = *seq > owner.seq || (*seq == owner.seq && owner.dropped);
                if !(opens || (same_process && news)) {
                    return false;
                }
                (owner.epoch, owner.boot_id, owner.seq, owner.dropped) = (*epoch, *boot_id, *seq, false);
            }
            Command::Fence { epoch, .. } if *epoch >= owner.epoch => owner.fenced = owner.fenced.max(Some(*epoch)),
            Command::Unfence { epoch, .. } if owner.fenced.is_some_and(|fenced| fenced <= *epoch) => owner.fenced = None,
            Command::DropFenced { epoch, .. } if before.is_some() && owner.is_fenced() && owner.epoch <= *epoch => {
                owner.dropped = true;
            }
            Command::Evict { .. } => owner = TableOwner { evicted: true, ..TableOwner::default() },
            _ => return false,
        }
        let changed = before.as_ref() != Some(&owner);
        self.owners.insert(command.node(), owner);
        changed
    }
}

/// An owner in a reference view.
#[derive(Default, Clone, Debug)]
pub(crate) struct ViewOwner {
    pub(crate) epoch: Epoch,
    pub(crate) boot_id: BootId,
    pub(crate) seq: u64,
    pub(crate) incomplete: bool,
    pub(crate) live: bool,
    pub(crate) was_live: bool,
    pub(crate) hears: BTreeSet<NodeId>,
    pub(crate) fenced: Option<Epoch>,
    pub(crate) evicted: bool,
    /// How often its claims were dropped: only then may knowledge go back.
    pub(crate) drops: usize,
}

impl ViewOwner {
    fn open(&mut self, epoch: Epoch, boot_id: BootId) {
        *self = Self { epoch, boot_id, fenced: self.fenced, drops: self.drops, ..Self::default() };
    }
}

/// The reference view of one observer.
pub(crate) struct View {
    pub(crate) own: NodeId,
    pub(crate) owners: BTreeMap<NodeId, ViewOwner>,
}

impl View {
    pub(crate) fn new(own: NodeId) -> Self {
        Self { own, owners: BTreeMap::new() }
    }

    pub(crate) fn owner(&mut self, node: NodeId) -> &mut ViewOwner {
        self.owners.entry(node).or_default()
    }

    /// Whether a hello is welcome; takes it in if so.
    pub(crate) fn hello(&mut self, node: NodeId, epoch: Epoch, boot_id: BootId) -> bool {
        let owner = self.owner(node);
        if owner.evicted || epoch < owner.epoch || (epoch == owner.epoch && boot_id != owner.boot_id) {
            return false;
        }
        if epoch > owner.epoch {
            owner.open(epoch, boot_id);
        }
        (owner.live, owner.was_live) = (true, true);
        true
    }

    /// Whether a stream of that epoch may speak.
    pub(crate) fn may_speak(&mut self, node: NodeId, epoch: Epoch) -> bool {
        let owner = self.owner(node);
        owner.epoch == epoch && owner.live
    }

    /// Whether operations up to `last` are welcome; takes them in if so.
    pub(crate) fn delta(&mut self, node: NodeId, first_seq: u64, last: u64) -> bool {
        let owner = self.owner(node);
        if owner.incomplete || first_seq > owner.seq + 1 {
            return false;
        }
        owner.seq = owner.seq.max(last);
        true
    }

    pub(crate) fn snapshot(&mut self, node: NodeId, seq: u64) {
        let owner = self.owner(node);
        owner.seq = if owner.incomplete { seq } else { owner.seq.max(seq) };
        owner.incomplete = false;
    }

    /// Takes in an applied command that changed the table; `owner` is the table's record after it.
    pub(crate) fn applied(&mut self, command: &Command, table: &TableOwner) {
        let node = command.node();
        if node == self.own {
            return;
        }
        if self.owner(node).evicted {
            return;
        }
        match command {
            Command::Apply { epoch, boot_id, .. } => self.advance(node, *epoch, *boot_id, table.seq, false),
            Command::Reset { epoch, boot_id, seq, .. } => self.advance(node, *epoch, *boot_id, *seq, true),
            Command::Fence { .. } | Command::Unfence { .. } => self.owner(node).fenced = table.fenced,
            Command::DropFenced { .. } => self.dropped(node, table.epoch),
            Command::Evict { .. } => {
                let owner = self.owner(node);
                owner.open(owner.epoch, owner.boot_id);
                owner.evicted = true;
                owner.drops += 1;
            }
        }
    }

    fn advance(&mut self, node: NodeId, epoch: Epoch, boot_id: BootId, seq: u64, whole: bool) {
        let owner = self.owner(node);
        if epoch > owner.epoch {
            owner.open(epoch, boot_id);
        }
        if (epoch, boot_id) == (owner.epoch, owner.boot_id) && (whole || !owner.incomplete) {
            owner.seq = owner.seq.max(seq);
            owner.incomplete = false;
        }
    }

    fn dropped(&mut self, node: NodeId, epoch: Epoch) {
        if self.owner(node).epoch == epoch && !self.is_valid(node) {
            let owner = self.owner(node);
            (owner.incomplete, owner.seq) = (true, 0);
            owner.drops += 1;
        }
    }

    /// Takes in a whole table.
    pub(crate) fn table(&mut self, table: &Table) {
        for (node, known) in &table.owners {
            if *node == self.own || self.owner(*node).evicted {
                continue;
            }
            if known.epoch > Epoch(0) && !known.dropped {
                self.advance(*node, known.epoch, known.boot_id, known.seq, true);
            }
            self.owner(*node).fenced = known.fenced;
            if known.dropped {
                self.dropped(*node, known.epoch);
            }
            if known.evicted {
                let owner = self.owner(*node);
                owner.open(owner.epoch, owner.boot_id);
                owner.evicted = true;
                owner.drops += 1;
            }
        }
    }

    /// The rule of validity: live here, heard by a live peer, or never live here in this epoch and not fenced.
    pub(crate) fn is_valid(&self, node: NodeId) -> bool {
        let Some(owner) = self.owners.get(&node) else { return node == self.own };
        if owner.evicted {
            return false;
        }
        let vouched = self.owners.values().any(|peer| peer.live && peer.hears.contains(&node));
        node == self.own || owner.live || vouched || (!owner.was_live && owner.fenced < Some(owner.epoch))
    }

    /// All claims that the view must have, by key and owner.
    pub(crate) fn claims(&self, truth: &Truth) -> BTreeMap<(PresenceKey, NodeId), (u64, bool, ClaimKind)> {
        let mut all = BTreeMap::new();
        for (node, owner) in &self.owners {
            for (key, claim) in truth.claims(*node, owner.epoch, owner.seq) {
                all.insert((key, *node), claim);
            }
        }
        all
    }

    /// The claim that the router must choose.
    pub(crate) fn preferred(&self, key: PresenceKey, truth: &Truth, regions: &BTreeMap<NodeId, RegionId>) -> Option<Rank> {
        let claims =
            self.claims(truth).into_iter().filter(|((of, node), _)| *of == key && *node != self.own && self.is_valid(*node));
        let place = |((_, node), (clock_us, home, kind)): ((PresenceKey, NodeId), (u64, bool, ClaimKind))| {
            let rank = Rank { clock_us, node };
            (kind != ClaimKind::Derper, self.owners[&node].live, regions[&node] == regions[&self.own], home, rank)
        };
        claims.map(place).max().map(|(.., rank)| rank)
    }
}
