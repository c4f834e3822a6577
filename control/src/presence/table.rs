//! What Raft applied: a deterministic function of the commands in log order, the only thing snapshots and consistent reads see.
//!
//! Records are packed and kept sorted in shards by key prefix, so that equal tables have equal bytes, an insertion moves a few
//! kilobytes at most, and a snapshot clones nothing but one `Arc` per shard.

mod outcome;
mod snapshot;

use std::collections::BTreeMap;
use std::sync::Arc;

use causeway_proto::id::{BootId, Epoch, NodeId};
use causeway_proto::presence::{ClaimKind, Op, PresenceKey, Rank};

use super::command::Command;
use super::limits::{CLAIMS_PER_OWNER_MAX, OWNERS_MAX};

pub use outcome::{Applied, Outcome, Refusal, TableEvent};
pub use snapshot::{BLOCK_SIZE_MAX, BlockError, TableSnapshot};

/// Shards by the first 12 bits of the key: about 12 KB each at 10^6 claims, 120 KB at 10^7.
const SHARD_BITS: u32 = 12;
const SHARDS: usize = 1 << SHARD_BITS;
/// One claim, without padding; integers big-endian, so that the derived order is (key, node).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Record {
    key: [u8; 32],
    node: [u8; 8],
    clock_us: [u8; 8],
    tag: u8,
}

const _: () = assert!(size_of::<Record>() == 49 && align_of::<Record>() == 1);

const TAG_HOME: u8 = 0x40;

impl Record {
    const fn at(key: &PresenceKey, node: NodeId) -> ([u8; 32], [u8; 8]) {
        (key.0, node.0.to_be_bytes())
    }

    const fn place(&self) -> ([u8; 32], [u8; 8]) {
        (self.key, self.node)
    }

    const fn owner(&self) -> NodeId {
        NodeId(u64::from_be_bytes(self.node))
    }

    const fn clock_us(&self) -> u64 {
        u64::from_be_bytes(self.clock_us)
    }
}

/// What the table knows of an owner.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TableOwner {
    /// The highest epoch applied; 0 if nothing was.
    pub epoch: Epoch,
    /// The process of that epoch.
    pub boot_id: BootId,
    /// The last sequence applied.
    pub seq: u64,
    /// This epoch and all before are fenced.
    pub fenced_epoch: Option<Epoch>,
    /// Its claims were dropped after a long fence; only a reset brings them back.
    pub dropped: bool,
    /// It left for good.
    pub evicted: bool,
    /// Claims it holds.
    pub claims: usize,
}

impl TableOwner {
    /// Whether its present epoch is fenced.
    #[must_use]
    pub fn is_fenced(&self) -> bool {
        self.fenced_epoch.is_some_and(|fenced| self.epoch <= fenced)
    }
}

/// A claim in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableClaim {
    /// When and by whom it was minted.
    pub rank: Rank,
    /// The owner's epoch.
    pub epoch: Epoch,
    /// The client calls it its home.
    pub home: bool,
    /// The front door.
    pub kind: ClaimKind,
    /// The owner's epoch is fenced.
    pub fenced: bool,
}

/// Presence as Raft applied it.
#[derive(Debug, Clone)]
pub struct Table {
    owners: BTreeMap<NodeId, TableOwner>,
    shards: Vec<Arc<Vec<Record>>>,
}

impl Default for Table {
    fn default() -> Self {
        Self { owners: BTreeMap::new(), shards: vec![Arc::default(); SHARDS] }
    }
}

fn shard_of(key: &[u8; 32]) -> usize {
    usize::from(u16::from_be_bytes([key[0], key[1]]) >> (16 - SHARD_BITS))
}

/// A log part's header, as the epoch rules see it.
struct Part {
    node: NodeId,
    epoch: Epoch,
    boot_id: BootId,
}

impl Table {
    /// Applies one command. Deterministic; reads no clock.
    pub fn apply(&mut self, command: &Command) -> Applied {
        let mut events = Vec::new();
        let outcome = self.try_apply(command, &mut events).unwrap_or_else(Outcome::Refused);
        Applied { outcome, events }
    }

    fn try_apply(&mut self, command: &Command, events: &mut Vec<TableEvent>) -> Result<Outcome, Refusal> {
        match command {
            Command::Apply { node, epoch, boot_id, first_seq, ops } => {
                self.advance(&Part { node: *node, epoch: *epoch, boot_id: *boot_id }, *first_seq, ops, events)
            }
            Command::Reset { node, epoch, boot_id, seq, ops } => {
                self.reset(&Part { node: *node, epoch: *epoch, boot_id: *boot_id }, *seq, ops, events)
            }
            Command::Fence { node, epoch } => self.fence(*node, *epoch, events),
            Command::Unfence { node, epoch } => self.unfence(*node, *epoch, events),
            Command::DropFenced { node, epoch } => self.drop_fenced(*node, *epoch, events),
            Command::Evict { node } => self.evict(*node, events),
        }
    }

    /// The owner's record if it may be written: `Ok(None)` if nothing is known of it.
    fn writable(&self, node: NodeId) -> Result<Option<&TableOwner>, Refusal> {
        match self.owners.get(&node) {
            Some(owner) if owner.evicted => Err(Refusal::Evicted),
            None if self.owners.len() >= OWNERS_MAX => Err(Refusal::TooManyOwners),
            owner => Ok(owner),
        }
    }

    /// Whether `part` opens a new epoch; refuses old epochs and a second process in the same one.
    fn opens_epoch(&self, part: &Part) -> Result<bool, Refusal> {
        if part.epoch == Epoch(0) {
            return Err(Refusal::Malformed);
        }
        let Some(owner) = self.writable(part.node)? else { return Ok(true) };
        if part.epoch < owner.epoch {
            return Err(Refusal::LowerEpoch { highest: owner.epoch });
        }
        if part.epoch == owner.epoch && part.boot_id != owner.boot_id {
            return Err(Refusal::OtherBootId { epoch: owner.epoch });
        }
        Ok(part.epoch > owner.epoch)
    }

    fn advance(&mut self, part: &Part, first_seq: u64, ops: &[Op], events: &mut Vec<TableEvent>) -> Result<Outcome, Refusal> {
        let opens = self.opens_epoch(part)?;
        let known = if opens { 0 } else { self.owners[&part.node].seq };
        if first_seq == 0 || first_seq.checked_add(ops.len() as u64).is_none() {
            return Err(Refusal::Malformed);
        }
        if first_seq > known + 1 {
            return Err(Refusal::Gap { expected_seq: known + 1 });
        }
        if !opens && self.owners[&part.node].dropped {
            return Err(Refusal::NeedsReset { at_least_seq: known });
        }
        let skip = usize::try_from(known + 1 - first_seq).unwrap_or(usize::MAX);
        let new = ops.get(skip..).unwrap_or_default();
        if new.is_empty() && !opens {
            return Ok(Outcome::Unchanged { seq: known });
        }
        let held = if opens { 0 } else { self.owners[&part.node].claims };
        let clock_of = |key: &PresenceKey| self.find(key, part.node).filter(|_| held > 0).map(Record::clock_us);
        if super::limits::exceeds_claims_max(held, new, clock_of) {
            return Err(Refusal::TooManyClaims);
        }
        if opens {
            self.open_epoch(part, 0);
            events.push(TableEvent::Replaced {
                node: part.node,
                epoch: part.epoch,
                boot_id: part.boot_id,
                seq: 0,
                ops: Vec::new(),
            });
        }
        for op in new {
            self.apply_op(part.node, op);
        }
        let seq = known + new.len() as u64;
        self.owner_mut(part.node).seq = seq;
        if !new.is_empty() {
            let (node, epoch, boot_id) = (part.node, part.epoch, part.boot_id);
            events.push(TableEvent::Advanced { node, epoch, boot_id, first_seq: known + 1, ops: new.to_vec() });
        }
        Ok(Outcome::Applied { seq })
    }

    fn reset(&mut self, part: &Part, seq: u64, ops: &[Op], events: &mut Vec<TableEvent>) -> Result<Outcome, Refusal> {
        let opens = self.opens_epoch(part)?;
        if !is_claims_in_key_order(ops) || seq < ops.len() as u64 {
            return Err(Refusal::Malformed);
        }
        if ops.len() > CLAIMS_PER_OWNER_MAX {
            return Err(Refusal::TooManyClaims);
        }
        if !opens {
            let owner = &self.owners[&part.node];
            if seq < owner.seq {
                return Err(Refusal::NeedsReset { at_least_seq: owner.seq });
            }
            if seq == owner.seq && !owner.dropped {
                return Ok(Outcome::Unchanged { seq });
            }
        }
        self.open_epoch(part, seq);
        for op in ops {
            self.apply_op(part.node, op);
        }
        let (node, epoch, boot_id) = (part.node, part.epoch, part.boot_id);
        events.push(TableEvent::Replaced { node, epoch, boot_id, seq, ops: ops.to_vec() });
        Ok(Outcome::Applied { seq })
    }

    fn fence(&mut self, node: NodeId, epoch: Epoch, events: &mut Vec<TableEvent>) -> Result<Outcome, Refusal> {
        let owner = self.writable(node)?;
        let seq = owner.map_or(0, |owner| owner.seq);
        if owner.is_some_and(|owner| epoch < owner.epoch || owner.fenced_epoch >= Some(epoch)) {
            return Ok(Outcome::Unchanged { seq });
        }
        self.owner_mut(node).fenced_epoch = Some(epoch);
        events.push(TableEvent::Fenced { node, epoch });
        Ok(Outcome::Applied { seq })
    }

    fn unfence(&mut self, node: NodeId, epoch: Epoch, events: &mut Vec<TableEvent>) -> Result<Outcome, Refusal> {
        let seq = self.writable(node)?.map_or(0, |owner| owner.seq);
        match self.owners.get_mut(&node) {
            Some(owner) if owner.fenced_epoch.is_some_and(|fenced| fenced <= epoch) => owner.fenced_epoch = None,
            _ => return Ok(Outcome::Unchanged { seq }),
        }
        events.push(TableEvent::Unfenced { node });
        Ok(Outcome::Applied { seq })
    }

    fn drop_fenced(&mut self, node: NodeId, epoch: Epoch, events: &mut Vec<TableEvent>) -> Result<Outcome, Refusal> {
        let Some(owner) = self.writable(node)? else { return Ok(Outcome::Unchanged { seq: 0 }) };
        let (seq, owner_epoch) = (owner.seq, owner.epoch);
        if owner_epoch > epoch || !owner.is_fenced() || owner.dropped {
            return Ok(Outcome::Unchanged { seq });
        }
        self.remove_claims(node);
        self.owner_mut(node).dropped = true;
        events.push(TableEvent::Dropped { node, epoch: owner_epoch });
        Ok(Outcome::Applied { seq })
    }

    fn evict(&mut self, node: NodeId, events: &mut Vec<TableEvent>) -> Result<Outcome, Refusal> {
        if self.owners.get(&node).is_some_and(|owner| owner.evicted) {
            return Ok(Outcome::Unchanged { seq: 0 });
        }
        self.writable(node)?;
        self.remove_claims(node);
        self.owners.insert(node, TableOwner { evicted: true, ..TableOwner::default() });
        events.push(TableEvent::Evicted { node });
        Ok(Outcome::Applied { seq: 0 })
    }

    /// Starts an owner's claims afresh; a fence of older epochs stays on record and does not touch this one.
    fn open_epoch(&mut self, part: &Part, seq: u64) {
        self.remove_claims(part.node);
        let owner = self.owner_mut(part.node);
        (owner.epoch, owner.boot_id, owner.seq, owner.dropped) = (part.epoch, part.boot_id, seq, false);
    }

    fn owner_mut(&mut self, node: NodeId) -> &mut TableOwner {
        self.owners.entry(node).or_default()
    }

    fn find(&self, key: &PresenceKey, node: NodeId) -> Option<&Record> {
        let shard = &self.shards[shard_of(&key.0)];
        shard.binary_search_by_key(&Record::at(key, node), Record::place).ok().map(|index| &shard[index])
    }

    /// A claim replaces the owner's older claim of the key; a release ends the claim of exactly its rank.
    fn apply_op(&mut self, node: NodeId, op: &Op) {
        let key = op.key();
        let shard = &mut self.shards[shard_of(&key.0)];
        let found = shard.binary_search_by_key(&Record::at(key, node), Record::place);
        match (*op, found) {
            (Op::Claim { key, clock_us, home, kind }, found) => {
                let tag = kind as u8 | if home { TAG_HOME } else { 0 };
                let record = Record { key: key.0, node: node.0.to_be_bytes(), clock_us: clock_us.to_be_bytes(), tag };
                match found {
                    Ok(index) if shard[index].clock_us() < clock_us => Arc::make_mut(shard)[index] = record,
                    Ok(_) => {}
                    Err(index) => {
                        Arc::make_mut(shard).insert(index, record);
                        self.owner_mut(node).claims += 1;
                    }
                }
            }
            (Op::Release { clock_us, .. }, Ok(index)) if shard[index].clock_us() == clock_us => {
                Arc::make_mut(shard).remove(index);
                self.owner_mut(node).claims -= 1;
            }
            (Op::Release { .. }, _) => {}
        }
    }

    fn remove_claims(&mut self, node: NodeId) {
        let Some(owner) = self.owners.get_mut(&node) else { return };
        if std::mem::take(&mut owner.claims) == 0 {
            return;
        }
        let node = node.0.to_be_bytes();
        for shard in &mut self.shards {
            if shard.iter().any(|record| record.node == node) {
                Arc::make_mut(shard).retain(|record| record.node != node);
            }
        }
    }

    /// All claims on a key, greatest rank first.
    #[must_use]
    pub fn claims(&self, key: &PresenceKey) -> Vec<TableClaim> {
        let shard = &self.shards[shard_of(&key.0)];
        let start = shard.partition_point(|record| record.key < key.0);
        let mut claims: Vec<_> =
            shard[start..].iter().take_while(|record| record.key == key.0).map(|record| self.claim(record)).collect();
        claims.sort_unstable_by_key(|claim| std::cmp::Reverse(claim.rank));
        claims
    }

    fn claim(&self, record: &Record) -> TableClaim {
        let node = record.owner();
        let owner = &self.owners[&node];
        TableClaim {
            rank: Rank { clock_us: record.clock_us(), node },
            epoch: owner.epoch,
            home: record.tag & TAG_HOME != 0,
            kind: kind_of(record.tag).expect("only checked tags are stored"),
            fenced: owner.is_fenced(),
        }
    }

    /// The owners, by node id.
    pub fn owners(&self) -> impl Iterator<Item = (NodeId, &TableOwner)> {
        self.owners.iter().map(|(node, owner)| (*node, owner))
    }

    /// One owner.
    #[must_use]
    pub fn owner(&self, node: NodeId) -> Option<&TableOwner> {
        self.owners.get(&node)
    }

    /// Claims of all owners.
    #[must_use]
    pub fn len(&self) -> usize {
        self.owners.values().map(|owner| owner.claims).sum()
    }

    /// Whether there is no claim.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A frozen copy that shares all shards; takes microseconds.
    #[must_use]
    pub fn snapshot(&self) -> TableSnapshot {
        TableSnapshot { table: self.clone() }
    }
}

fn kind_of(tag: u8) -> Option<ClaimKind> {
    ClaimKind::from_bits(tag & !TAG_HOME)
}

/// Whether `ops` are claims with strictly ascending keys.
pub(crate) fn is_claims_in_key_order(ops: &[Op]) -> bool {
    ops.iter().all(|op| matches!(op, Op::Claim { .. })) && ops.is_sorted_by(|a, b| a.key() < b.key())
}

#[cfg(test)]
mod tests;
