//! The writing side of the view: what is known of each owner, and how watch, Raft and the own log change it. One writer at a time.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use causeway_proto::id::{BootId, Epoch, NodeId, RegionId};
use causeway_proto::presence::{Op, PresenceKey, Rank, unpack_ops};

use super::claims::{Claim, Claims};
use super::{IngestError, OwnerEntry, PresenceEvent, PresenceView, WatchInput, any_valid};
use crate::presence::owner_log::{LogIdentity, OwnerLog};
use crate::presence::prefer::Validity;
use crate::presence::table::{TableEvent, TableSnapshot, is_claims_in_key_order};
use crate::presence::{CLAIMS_PER_OWNER_MAX, OWNERS_MAX, exceeds_claims_max};

/// Events in one batch, so that what a slow subscriber pins is bounded.
const BATCH_EVENTS_MAX: usize = 1024;
/// Nodes a peer may vouch for.
pub(super) const HEARS_MAX: usize = OWNERS_MAX;
/// Owners and former owners whose claims are still being taken out; with more of those, claims are taken out at once.
const SLOTS_MAX: usize = 2 * OWNERS_MAX;
/// Bytes of the own log read at a time.
const OWN_READ_MAX: usize = 64 << 10;

/// What writers know of an owner.
#[derive(Debug)]
pub(super) struct Owner {
    pub(super) node: NodeId,
    pub(super) region: Option<RegionId>,
    pub(super) epoch: Epoch,
    pub(super) boot_id: BootId,
    pub(super) seq: Arc<AtomicU64>,
    /// Claims were dropped after a long fence: only a full set of them makes sense of more operations.
    pub(super) incomplete: bool,
    evicted: bool,
    fenced_epoch: Option<Epoch>,
    live: bool,
    was_live: bool,
    pub(super) hears: Arc<[NodeId]>,
    pub(super) last_heard: Option<Instant>,
    pub(super) claims: usize,
    /// Claims of a former process, to be taken out: nobody sees them, and the node has another slot.
    pub(super) retired: bool,
    /// As subscribers were told of the owner; `None` before it is published.
    published_valid: Option<bool>,
    /// How often its claims began or ceased to count, and up to which time its keys were gathered to be told one by one.
    pub(super) changes: u64,
    pub(super) gathered: u64,
}

impl Owner {
    fn new(node: NodeId) -> Self {
        Self {
            node,
            region: None,
            epoch: Epoch(0),
            boot_id: BootId::default(),
            seq: Arc::default(),
            incomplete: false,
            evicted: false,
            fenced_epoch: None,
            live: false,
            was_live: false,
            hears: Arc::default(),
            last_heard: None,
            claims: 0,
            retired: false,
            published_valid: None,
            changes: 0,
            gathered: 0,
        }
    }

    pub(super) fn seq(&self) -> u64 {
        self.seq.load(Ordering::Relaxed)
    }

    pub(super) fn is_fenced(&self) -> bool {
        self.fenced_epoch.is_some_and(|fenced| self.epoch <= fenced)
    }
}

#[derive(Debug, Default)]
pub(super) struct Writer {
    pub(super) owners: Vec<Owner>,
    pub(super) slots: BTreeMap<NodeId, usize>,
    /// Slots whose claims are all taken out. The oldest is used first, long after any reader saw a claim of its former owner.
    pub(super) free: VecDeque<usize>,
}

impl Writer {
    /// The owner's index, made if it is new.
    fn slot(&mut self, node: NodeId) -> Result<usize, IngestError> {
        if let Some(slot) = self.slots.get(&node) {
            return Ok(*slot);
        }
        if self.slots.len() >= OWNERS_MAX {
            return Err(IngestError::TooManyOwners);
        }
        self.take_slot(Owner::new(node)).ok_or(IngestError::TooManyOwners)
    }

    /// Gives `owner` a slot; `None` if all are taken.
    fn take_slot(&mut self, owner: Owner) -> Option<usize> {
        let node = owner.node;
        let slot = match self.free.pop_front() {
            Some(slot) => {
                self.owners[slot] = owner;
                slot
            }
            None if self.owners.len() < SLOTS_MAX => {
                self.owners.push(owner);
                self.owners.len() - 1
            }
            None => return None,
        };
        self.slots.insert(node, slot);
        Some(slot)
    }

    /// Moves a node to a slot without claims; its claims stay behind with the old one. `None` if no slot is left.
    fn retire(&mut self, slot: usize) -> Option<usize> {
        let old = &self.owners[slot];
        let successor = Owner { seq: Arc::default(), claims: 0, gathered: old.changes, hears: Arc::clone(&old.hears), ..*old };
        let taken = self.take_slot(successor)?;
        let old = &mut self.owners[slot];
        old.changes += u64::from(old.published_valid == Some(true));
        (old.retired, old.live, old.hears) = (true, false, Arc::default());
        Some(taken)
    }

    pub(super) fn validity(&self, own: NodeId, owner: &Owner) -> Validity {
        if owner.retired {
            return Validity::Lost;
        }
        if owner.node == own {
            return Validity::Own;
        }
        if owner.evicted {
            return Validity::Evicted;
        }
        if owner.live {
            return Validity::Live;
        }
        let vouches = |peer: &&Owner| peer.live && peer.hears.binary_search(&owner.node).is_ok();
        if let Some(peer) = self.owners.iter().filter(vouches).map(|peer| peer.node).min() {
            return Validity::Vouched(peer);
        }
        match (owner.was_live, owner.is_fenced()) {
            (_, true) => Validity::Fenced,
            (true, false) => Validity::Lost,
            (false, false) => Validity::Unfenced,
        }
    }
}

/// What one write learnt, until it is told to subscribers.
#[derive(Debug, Default)]
pub(super) struct News {
    pub(super) events: Vec<PresenceEvent>,
    /// Keys that lost a valid claim, in order, with whether the client said goodbye.
    pub(super) lost: BTreeMap<PresenceKey, bool>,
}

impl PresenceView {
    /// Learns a node's region.
    pub fn set_region(&self, node: NodeId, region: RegionId) {
        self.write(|writer, news| {
            let slot = writer.slot(node)?;
            if writer.owners[slot].region != Some(region) {
                writer.owners[slot].region = Some(region);
                self.publish(writer, news);
            }
            Ok(())
        })
        .unwrap_or_else(|error| tracing::warn!(%node, %error, "region of a node is not kept"));
    }

    /// Takes in what a watch stream of `node` in `epoch` said at `now`.
    ///
    /// # Errors
    /// [`IngestError`]: the stream must be closed.
    pub fn ingest_watch(&self, node: NodeId, epoch: Epoch, input: WatchInput, now: Instant) -> Result<(), IngestError> {
        if node == self.own {
            return Err(IngestError::Own);
        }
        self.write(|writer, news| {
            if let WatchInput::Hello { boot_id } = input {
                return self.hello(writer, news, LogIdentity { node, epoch, boot_id }, now);
            }
            let slot = writer.slots.get(&node).copied().ok_or(IngestError::NoHello)?;
            let owner = &mut writer.owners[slot];
            if epoch < owner.epoch {
                return Err(IngestError::LowerEpoch { highest: owner.epoch });
            }
            if epoch > owner.epoch || !owner.live {
                return Err(IngestError::NoHello);
            }
            match input {
                WatchInput::Hello { .. } => {}
                WatchInput::Snapshot { seq, ops } => self.watch_snapshot(writer, news, slot, seq, &ops)?,
                WatchInput::Delta { first_seq, ops } => self.extend(writer, news, slot, first_seq, &ops)?,
                WatchInput::Heartbeat { hears } => self.heartbeat(writer, news, slot, hears)?,
                WatchInput::Down => {
                    (owner.live, owner.hears) = (false, Arc::default());
                    self.publish(writer, news);
                    return Ok(());
                }
            }
            writer.owners[slot].last_heard = Some(now);
            Ok(())
        })
    }

    /// Takes in what Raft applied, in log order.
    pub fn ingest_table(&self, events: &[TableEvent]) {
        for event in events {
            self.write(|writer, news| self.table_event(writer, news, event)).unwrap_or_else(|error| {
                tracing::warn!(%error, "applied presence does not fit this node's view");
            });
        }
    }

    /// Takes in a whole table: after a start or the installation of a snapshot.
    pub fn ingest_table_snapshot(&self, snapshot: &TableSnapshot) {
        let mut claims = snapshot.claims_by_owner();
        for (node, owner) in snapshot.table().owners() {
            let mut events = Vec::new();
            if owner.epoch > Epoch(0) && !owner.dropped {
                let (epoch, boot_id, seq) = (owner.epoch, owner.boot_id, owner.seq);
                let ops = claims.remove(&node).unwrap_or_default();
                events.push(TableEvent::Replaced { node, epoch, boot_id, seq, ops });
            }
            events.push(match owner.fenced_epoch {
                Some(epoch) => TableEvent::Fenced { node, epoch },
                None => TableEvent::Unfenced { node },
            });
            if owner.dropped {
                events.push(TableEvent::Dropped { node, epoch: owner.epoch });
            }
            if owner.evicted {
                events.push(TableEvent::Evicted { node });
            }
            self.ingest_table(&events);
        }
    }

    /// Starts the own log of this process.
    pub(in crate::presence) fn open_own(&self, identity: LogIdentity) {
        self.write(|writer, news| {
            let slot = writer.slot(identity.node)?;
            self.open_epoch(writer, news, slot, identity.epoch, identity.boot_id);
            self.publish(writer, news);
            Ok(())
        })
        .expect("the own node is the first owner");
    }

    /// Catches up with the own log. Several callers may do so at once: operations count by their sequence.
    pub(in crate::presence) fn follow_own(&self, log: &OwnerLog) {
        loop {
            let next_seq = self.owners.load()[0].seq.load(Ordering::Relaxed) + 1;
            let caught_up = match log.ops_from(next_seq, OWN_READ_MAX) {
                Ok(batch) if batch.ops.is_empty() => return,
                Ok(batch) => self.write(|writer, news| self.extend(writer, news, 0, batch.first_seq, &batch.ops)),
                Err(_) => {
                    let snapshot = log.snapshot();
                    let ops = unpack_ops(&snapshot.packed).expect("packed by this process");
                    self.write(|writer, news| self.watch_snapshot(writer, news, 0, snapshot.seq, &ops))
                }
            };
            caught_up.expect("the own log is contiguous and within its limits");
        }
    }

    /// Somebody knows a higher epoch of this node than its own.
    pub fn own_epoch_seen(&self, epoch: Epoch) {
        let own = self.owners.load()[0].epoch;
        if own > Epoch(0) && epoch > own {
            self.superseded.send_if_modified(|seen| {
                let news = Some(epoch) > *seen;
                *seen = (*seen).max(Some(epoch));
                news
            });
        }
    }

    pub(super) fn write<T>(
        &self,
        write: impl FnOnce(&mut Writer, &mut News) -> Result<T, IngestError>,
    ) -> Result<T, IngestError> {
        let mut writer = self.writer.lock();
        let mut news = News::default();
        let result = write(&mut writer, &mut news);
        let owners = self.owners.load();
        let claims = self.claims.pin();
        for (key, clean) in news.lost {
            if claims.get(&key).is_none_or(|claims| !any_valid(&owners, claims.as_slice())) {
                news.events.push(PresenceEvent::LastClaimGone { key, clean });
            }
        }
        // Under the lock, so that subscribers see changes in their order.
        for batch in news.events.chunks(BATCH_EVENTS_MAX) {
            if self.events.send(batch.into()).is_err() {
                break;
            }
        }
        result
    }

    fn hello(&self, writer: &mut Writer, news: &mut News, hello: LogIdentity, now: Instant) -> Result<(), IngestError> {
        if hello.epoch == Epoch(0) {
            return Err(IngestError::Malformed);
        }
        let mut slot = writer.slot(hello.node)?;
        let owner = &writer.owners[slot];
        if owner.evicted {
            return Err(IngestError::Evicted);
        }
        if hello.epoch < owner.epoch {
            return Err(IngestError::LowerEpoch { highest: owner.epoch });
        }
        if hello.epoch == owner.epoch && hello.boot_id != owner.boot_id {
            return Err(IngestError::OtherBootId { epoch: owner.epoch });
        }
        if hello.epoch > owner.epoch {
            slot = self.open_epoch(writer, news, slot, hello.epoch, hello.boot_id);
        }
        let owner = &mut writer.owners[slot];
        (owner.live, owner.was_live, owner.last_heard) = (true, true, Some(now));
        self.publish(writer, news);
        Ok(())
    }

    fn watch_snapshot(&self, writer: &mut Writer, news: &mut News, slot: usize, seq: u64, ops: &[Op]) -> Result<(), IngestError> {
        if !is_claims_in_key_order(ops) || seq < ops.len() as u64 {
            return Err(IngestError::Malformed);
        }
        if ops.len() > CLAIMS_PER_OWNER_MAX {
            return Err(IngestError::TooManyClaims);
        }
        let owner = &writer.owners[slot];
        if owner.incomplete || seq > owner.seq() {
            self.replace(writer, news, slot, seq, ops);
        }
        Ok(())
    }

    fn heartbeat(&self, writer: &mut Writer, news: &mut News, slot: usize, mut hears: Vec<NodeId>) -> Result<(), IngestError> {
        if hears.len() > HEARS_MAX {
            return Err(IngestError::Malformed);
        }
        hears.sort_unstable();
        hears.dedup();
        if *writer.owners[slot].hears != *hears {
            writer.owners[slot].hears = hears.into();
            self.publish(writer, news);
        }
        Ok(())
    }

    fn table_event(&self, writer: &mut Writer, news: &mut News, event: &TableEvent) -> Result<(), IngestError> {
        let (TableEvent::Advanced { node, .. }
        | TableEvent::Replaced { node, .. }
        | TableEvent::Fenced { node, .. }
        | TableEvent::Unfenced { node }
        | TableEvent::Dropped { node, .. }
        | TableEvent::Evicted { node }) = event;
        if *node == self.own {
            if let TableEvent::Advanced { epoch, .. } | TableEvent::Replaced { epoch, .. } = event {
                self.own_epoch_seen(*epoch);
            }
            return Ok(());
        }
        let slot = writer.slot(*node)?;
        if writer.owners[slot].evicted {
            return Ok(());
        }
        match event {
            TableEvent::Advanced { epoch, boot_id, first_seq, ops, .. } => {
                let owner = &writer.owners[slot];
                if (*epoch, *boot_id) == (owner.epoch, owner.boot_id) && !owner.incomplete {
                    self.extend(writer, news, slot, *first_seq, ops)?;
                }
            }
            TableEvent::Replaced { epoch, boot_id, seq, ops, .. } => {
                self.table_replaced(writer, news, slot, (*epoch, *boot_id), *seq, ops);
            }
            TableEvent::Fenced { epoch, .. } => {
                writer.owners[slot].fenced_epoch = Some(*epoch);
                self.publish(writer, news);
            }
            TableEvent::Unfenced { .. } => {
                writer.owners[slot].fenced_epoch = None;
                self.publish(writer, news);
            }
            TableEvent::Dropped { epoch, .. } => {
                let owner = &writer.owners[slot];
                if owner.epoch == *epoch && !writer.validity(self.own, owner).is_valid() {
                    let slot = self.clear(writer, news, slot);
                    writer.owners[slot].incomplete = true;
                    self.publish(writer, news);
                }
            }
            TableEvent::Evicted { .. } => {
                let slot = self.clear(writer, news, slot);
                let owner = &mut writer.owners[slot];
                (owner.evicted, owner.live, owner.hears) = (true, false, Arc::default());
                self.publish(writer, news);
            }
        }
        Ok(())
    }

    fn table_replaced(
        &self,
        writer: &mut Writer,
        news: &mut News,
        mut slot: usize,
        (epoch, boot_id): (Epoch, BootId),
        seq: u64,
        ops: &[Op],
    ) {
        let owner = &writer.owners[slot];
        // Two processes with one epoch (a copied data directory): the one that speaks here is believed while it does.
        let other_process = epoch == owner.epoch && boot_id != owner.boot_id && !owner.live;
        if epoch > owner.epoch || other_process {
            slot = self.open_epoch(writer, news, slot, epoch, boot_id);
            self.publish(writer, news);
        }
        let owner = &writer.owners[slot];
        if (epoch, boot_id) == (owner.epoch, owner.boot_id) && (owner.incomplete || seq > owner.seq()) {
            self.replace(writer, news, slot, seq, ops);
        }
    }

    /// Adopts a higher epoch: nothing of it is known yet. Returns the owner's slot, to be published.
    fn open_epoch(&self, writer: &mut Writer, news: &mut News, slot: usize, epoch: Epoch, boot_id: BootId) -> usize {
        let slot = self.clear(writer, news, slot);
        let owner = &mut writer.owners[slot];
        (owner.epoch, owner.boot_id, owner.incomplete) = (epoch, boot_id, false);
        (owner.live, owner.was_live, owner.hears) = (false, false, Arc::default());
        slot
    }

    /// Applies what is new of consecutive operations.
    fn extend(&self, writer: &mut Writer, news: &mut News, slot: usize, first_seq: u64, ops: &[Op]) -> Result<(), IngestError> {
        let owner = &writer.owners[slot];
        let known = owner.seq();
        if first_seq == 0 || first_seq.checked_add(ops.len() as u64).is_none() {
            return Err(IngestError::Malformed);
        }
        if owner.incomplete || first_seq > known + 1 {
            return Err(IngestError::Gap { expected_seq: known + 1 });
        }
        let new = usize::try_from(known + 1 - first_seq).ok().and_then(|skip| ops.get(skip..)).unwrap_or_default();
        let claims = self.claims.pin();
        let held = |key: &PresenceKey| {
            let claim = claims.get(key)?.as_slice().iter().find(|claim| usize::from(claim.owner) == slot)?;
            Some(claim.clock_us)
        };
        if exceeds_claims_max(owner.claims, new, held) {
            return Err(IngestError::TooManyClaims);
        }
        for op in new {
            self.apply_op(writer, news, slot, op);
        }
        writer.owners[slot].seq.store(known + new.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Makes `ops`, claims sorted by key, the whole of an owner's claims.
    fn replace(&self, writer: &mut Writer, news: &mut News, slot: usize, seq: u64, ops: &[Op]) {
        for op in ops {
            self.apply_op(writer, news, slot, op);
        }
        if writer.owners[slot].claims > ops.len() {
            self.remove_where(writer, news, slot, |key| ops.binary_search_by_key(&key, Op::key).is_err());
        }
        let owner = &mut writer.owners[slot];
        owner.incomplete = false;
        owner.seq.store(seq, Ordering::Relaxed);
    }

    /// Ends all claims of a node. They are taken out later, so that this takes no time; returns the node's slot, to be published.
    fn clear(&self, writer: &mut Writer, news: &mut News, slot: usize) -> usize {
        let slot = match writer.owners[slot].claims {
            0 => slot,
            _ => writer.retire(slot).unwrap_or_else(|| {
                self.remove_where(writer, news, slot, |_| true);
                slot
            }),
        };
        writer.owners[slot].seq.store(0, Ordering::Relaxed);
        slot
    }

    /// Takes claims out by a walk over everything, while other writers wait.
    fn remove_where(&self, writer: &mut Writer, news: &mut News, slot: usize, gone: impl Fn(&PresenceKey) -> bool) {
        let of_owner = |(key, claims): (&PresenceKey, &Claims)| {
            let claim = claims.as_slice().iter().find(|claim| usize::from(claim.owner) == slot)?;
            Some(Op::Release { key: *key, clock_us: claim.clock_us, clean: false })
        };
        let all = writer.owners[slot].claims;
        let mut releases: Vec<Op> = self.claims.pin().iter().filter_map(of_owner).take(all).filter(|op| gone(op.key())).collect();
        // The map's order must not show.
        releases.sort_unstable_by_key(|op| *op.key());
        for release in &releases {
            self.apply_op(writer, news, slot, release);
        }
    }

    /// A claim replaces the owner's older claim of the key; a release ends the claim of exactly its rank.
    fn apply_op(&self, writer: &mut Writer, news: &mut News, slot: usize, op: &Op) {
        self.clock.observe(op.clock_us());
        let owner = &mut writer.owners[slot];
        let counts = self.owners.load().get(slot).is_some_and(|entry| entry.validity.is_valid());
        let map = self.claims.pin();
        let key = *op.key();
        let mut claims = map.get(&key).map_or_else(Vec::new, |claims| claims.as_slice().to_vec());
        let held = claims.iter().position(|claim| usize::from(claim.owner) == slot);
        let rank = Rank { clock_us: op.clock_us(), node: owner.node };
        match (*op, held) {
            (Op::Claim { clock_us, home, kind, .. }, held) => {
                let claim = Claim { clock_us, owner: u16::try_from(slot).expect("at most OWNERS_MAX"), kind, home };
                match held {
                    Some(index) if claims[index].clock_us >= clock_us => return,
                    Some(index) => claims[index] = claim,
                    None => {
                        claims.push(claim);
                        owner.claims += 1;
                    }
                }
                if counts {
                    news.events.push(PresenceEvent::Claimed { key, rank, home, kind });
                }
            }
            (Op::Release { clock_us, clean, .. }, Some(index)) if claims[index].clock_us == clock_us => {
                claims.swap_remove(index);
                owner.claims -= 1;
                if counts {
                    news.events.push(PresenceEvent::Released { key, rank, clean });
                }
                if counts || owner.changes != owner.gathered {
                    news.lost.insert(key, clean && counts);
                }
            }
            (Op::Release { .. }, _) => return,
        }
        match Claims::from_vec(claims) {
            Some(claims) => map.insert(key, claims),
            None => map.remove(&key),
        };
    }

    /// Lets readers see the owners as they are now, and tells whose claims stopped or began to count.
    fn publish(&self, writer: &mut Writer, news: &mut News) {
        let entry = |owner: &Owner| OwnerEntry {
            node: owner.node,
            region: owner.region,
            epoch: owner.epoch,
            validity: writer.validity(self.own, owner),
            hears: Arc::clone(&owner.hears),
            seq: Arc::clone(&owner.seq),
            retired: owner.retired,
        };
        let entries: Vec<OwnerEntry> = writer.owners.iter().map(entry).collect();
        self.publish_live(&entries);
        let mut untold = false;
        for (owner, entry) in writer.owners.iter_mut().zip(&entries) {
            let (node, valid) = (owner.node, entry.validity.is_valid());
            if !owner.retired {
                match (owner.published_valid.replace(valid), valid) {
                    (Some(true), false) => news.events.push(PresenceEvent::OwnerLost { node }),
                    (Some(false), true) => news.events.push(PresenceEvent::OwnerBack { node }),
                    _ => continue,
                }
                owner.changes += 1;
            }
            untold |= owner.claims > 0;
        }
        self.owners.store(Arc::new(entries));
        if untold {
            self.untold.notify_one();
        }
    }

    fn publish_live(&self, owners: &[OwnerEntry]) {
        let mut live: Vec<NodeId> =
            owners.iter().filter(|owner| owner.validity == Validity::Live).map(|owner| owner.node).collect();
        live.sort_unstable();
        self.live.send_if_modified(|last| {
            let news = **last != *live;
            if news {
                *last = live.into();
            }
            news
        });
    }
}
