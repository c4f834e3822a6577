//! The one answer to "who holds K?" at this node: per key, the claims of all owners' longest known prefixes.
//!
//! Fed by watch, by Raft and by the own log; an operation counts only if its sequence is beyond what is known of its owner, so it
//! does not matter by which way it came first. Reads take no lock; writers take turns.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use arc_swap::ArcSwap;
use causeway_proto::id::{BootId, Epoch, NodeId, RegionId};
use causeway_proto::presence::{ClaimKind, Op, PresenceKey, Rank, unpack_ops};
use parking_lot::Mutex;
use tokio::sync::{broadcast, watch};

use super::clock::HybridClock;
use super::owner_log::{LogIdentity, OwnerLog};
use super::prefer::{Candidate, Validity};
use super::table::{TableEvent, TableSnapshot, is_claims_in_key_order};
use super::{CLAIMS_PER_OWNER_MAX, OWNERS_MAX};

/// Event batches a subscriber may fall behind; then it must look afresh at the keys it cares for.
pub const EVENT_BATCHES_MAX: usize = 1024;
/// Events in one batch, so that what a slow subscriber pins is bounded.
const BATCH_EVENTS_MAX: usize = 1024;
/// Claims that stale notices hide at a time.
pub const HIDDEN_MAX: usize = 65_536;
/// Nodes a peer may vouch for.
const HEARS_MAX: usize = OWNERS_MAX;
/// Bytes of the own log read at a time.
const OWN_READ_MAX: usize = 64 << 10;

/// What changed at this observer. Sent in batches, in the order it was learnt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum PresenceEvent {
    /// A claim began to count here: it is new, or its owner is back and nobody else held the key.
    Claimed {
        /// The key.
        key: PresenceKey,
        /// The claim.
        rank: Rank,
        /// The client calls it its home.
        home: bool,
        /// The front door.
        kind: ClaimKind,
    },
    /// The owner ended the claim of this rank.
    Released {
        /// The key.
        key: PresenceKey,
        /// The claim.
        rank: Rank,
        /// The client said goodbye.
        clean: bool,
    },
    /// All claims of this node stopped counting here.
    OwnerLost {
        /// The node.
        node: NodeId,
    },
    /// They count again.
    OwnerBack {
        /// The node.
        node: NodeId,
    },
    /// No valid claim on the key is left.
    LastClaimGone {
        /// The key.
        key: PresenceKey,
        /// The client said goodbye to the node that held it last.
        clean: bool,
    },
}

/// Events that belong together.
pub type EventBatch = Arc<[PresenceEvent]>;

/// What a watch stream says of its owner, in the epoch the stream's hello named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WatchInput {
    /// The stream is up.
    Hello {
        /// The owner's process.
        boot_id: BootId,
    },
    /// All claims as of `seq`.
    Snapshot {
        /// The last sequence included.
        seq: u64,
        /// Claims only, sorted by key.
        ops: Vec<Op>,
    },
    /// Consecutive operations.
    Delta {
        /// Sequence of the first.
        first_seq: u64,
        /// The operations.
        ops: Vec<Op>,
    },
    /// A sign of life.
    Heartbeat {
        /// Nodes whose watch stream is live at the owner.
        hears: Vec<NodeId>,
    },
    /// The stream is no longer live.
    Down,
}

/// Why input of a watch stream was refused. Nothing of it took effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IngestError {
    /// A higher epoch of the owner is known: this stream is of an old process.
    #[error("epoch is below the highest known, {highest}")]
    LowerEpoch {
        /// The highest epoch known.
        highest: Epoch,
    },
    /// Two processes offer the same epoch: a copied data directory.
    #[error("epoch {epoch} belongs to another process")]
    OtherBootId {
        /// The epoch.
        epoch: Epoch,
    },
    /// Operations are missing before these: follow again.
    #[error("expected sequence {expected_seq}")]
    Gap {
        /// The first sequence not known.
        expected_seq: u64,
    },
    /// No hello of this epoch came before.
    #[error("the stream said no hello")]
    NoHello,
    /// The owner would hold more than [`CLAIMS_PER_OWNER_MAX`] claims.
    #[error("more than {CLAIMS_PER_OWNER_MAX} claims of one node")]
    TooManyClaims,
    /// More than [`OWNERS_MAX`] nodes.
    #[error("more than {OWNERS_MAX} nodes")]
    TooManyOwners,
    /// The owner left the fleet for good.
    #[error("the node is evicted")]
    Evicted,
    /// A snapshot with releases or unordered keys, epoch or sequence 0.
    #[error("the message is malformed")]
    Malformed,
    /// A node's own claims come from its own log only.
    #[error("that node is this one")]
    Own,
}

/// Up to where an owner's log is known: what a follower asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cursor {
    /// The highest epoch known; 0 if none.
    pub epoch: Epoch,
    /// Its process.
    pub boot_id: BootId,
    /// The first sequence not known; 0 if a snapshot is needed.
    pub next_seq: u64,
}

/// What is known of an owner, for operators.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnerStatus {
    /// The node.
    pub node: NodeId,
    /// Its region, if known.
    pub region: Option<RegionId>,
    /// Its highest known epoch; 0 if none.
    pub epoch: Epoch,
    /// The process of that epoch.
    pub boot_id: BootId,
    /// The last sequence known of its log.
    pub seq: u64,
    /// Whether its claims count here, and why.
    pub validity: Validity,
    /// Raft has fenced its epoch.
    pub fenced: bool,
    /// Claims known of it.
    pub claims: usize,
    /// When its watch stream last said anything.
    pub last_heard: Option<Instant>,
    /// The nodes it hears, by its last heartbeat.
    pub hears: Arc<[NodeId]>,
}

/// How much is present, counting valid claims only.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PresenceCounts {
    /// Distinct keys.
    pub keys: usize,
    /// Claims.
    pub claims: usize,
    /// Claims that are home.
    pub home_claims: usize,
    /// Claims of each node that holds any.
    pub by_node: BTreeMap<NodeId, usize>,
}

/// A claim in the map; the owner is an index, so that it takes 16 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Claim {
    clock_us: u64,
    owner: u16,
    kind: ClaimKind,
    home: bool,
}

/// Claims of one key, at most one per owner; nearly always a single one.
#[derive(Debug, Clone)]
enum Claims {
    One(Claim),
    Many(Box<[Claim]>),
}

const _: () = assert!(size_of::<Claim>() == 16 && size_of::<Claims>() == 24);

impl Claims {
    fn as_slice(&self) -> &[Claim] {
        match self {
            Self::One(claim) => std::slice::from_ref(claim),
            Self::Many(claims) => claims,
        }
    }

    fn from_vec(claims: Vec<Claim>) -> Option<Self> {
        match claims.as_slice() {
            [] => None,
            [claim] => Some(Self::One(*claim)),
            _ => Some(Self::Many(claims.into_boxed_slice())),
        }
    }
}

/// What readers need of an owner; replaced as a whole whenever anything in it changes.
#[derive(Debug, Clone)]
struct OwnerEntry {
    node: NodeId,
    region: Option<RegionId>,
    epoch: Epoch,
    validity: Validity,
    hears: Arc<[NodeId]>,
    /// Shared with the writer: moves without replacing the entry.
    seq: Arc<AtomicU64>,
}

/// What writers know of an owner.
#[derive(Debug)]
struct Owner {
    node: NodeId,
    region: Option<RegionId>,
    epoch: Epoch,
    boot_id: BootId,
    seq: Arc<AtomicU64>,
    /// Claims were dropped after a long fence: only a full set of them makes sense of more operations.
    incomplete: bool,
    evicted: bool,
    fenced_epoch: Option<Epoch>,
    live: bool,
    was_live: bool,
    hears: Arc<[NodeId]>,
    last_heard: Option<Instant>,
    claims: usize,
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
        }
    }

    fn seq(&self) -> u64 {
        self.seq.load(Ordering::Relaxed)
    }

    fn is_fenced(&self) -> bool {
        self.fenced_epoch.is_some_and(|fenced| self.epoch <= fenced)
    }
}

#[derive(Debug, Default)]
struct Writer {
    owners: Vec<Owner>,
    slots: BTreeMap<NodeId, usize>,
}

impl Writer {
    /// The owner's index, made if it is new.
    fn slot(&mut self, node: NodeId) -> Result<usize, IngestError> {
        if let Some(slot) = self.slots.get(&node) {
            return Ok(*slot);
        }
        if self.owners.len() >= OWNERS_MAX {
            return Err(IngestError::TooManyOwners);
        }
        self.owners.push(Owner::new(node));
        self.slots.insert(node, self.owners.len() - 1);
        Ok(self.owners.len() - 1)
    }

    fn validity(&self, own: NodeId, owner: &Owner) -> Validity {
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
struct News {
    events: Vec<PresenceEvent>,
    /// Keys that lost a valid claim, in order, with whether the client said goodbye.
    lost: BTreeMap<PresenceKey, bool>,
}

/// Claims that stale notices hide.
#[derive(Debug, Default)]
struct Hidden {
    /// Until the owner's log passes this sequence.
    until_seq: papaya::HashMap<(PresenceKey, Rank), u64>,
    count: AtomicUsize,
    order: Mutex<std::collections::VecDeque<(PresenceKey, Rank)>>,
}

impl Hidden {
    fn hide(&self, key: PresenceKey, rank: Rank, until_seq: u64) {
        let map = self.until_seq.pin();
        if map.insert((key, rank), until_seq).is_some() {
            return;
        }
        let mut order = self.order.lock();
        order.push_back((key, rank));
        if order.len() > HIDDEN_MAX
            && let Some(oldest) = order.pop_front()
        {
            map.remove(&oldest);
        }
        self.count.store(order.len(), Ordering::Relaxed);
    }

    fn hides(&self, key: &PresenceKey, rank: Rank, seq: u64) -> bool {
        self.count.load(Ordering::Relaxed) > 0 && self.until_seq.pin().get(&(*key, rank)).is_some_and(|until| seq <= *until)
    }
}

/// Presence as this node knows it.
#[derive(Debug)]
pub struct PresenceView {
    own: NodeId,
    region: RegionId,
    claims: papaya::HashMap<PresenceKey, Claims>,
    owners: ArcSwap<Vec<OwnerEntry>>,
    hidden: Hidden,
    writer: Mutex<Writer>,
    clock: HybridClock,
    events: broadcast::Sender<EventBatch>,
    live: watch::Sender<Arc<[NodeId]>>,
    superseded: watch::Sender<Option<Epoch>>,
}

impl PresenceView {
    /// An empty view of the observer `own` in `region`.
    #[must_use]
    pub fn new(own: NodeId, region: RegionId) -> Self {
        let view = Self {
            own,
            region,
            claims: papaya::HashMap::new(),
            owners: ArcSwap::default(),
            hidden: Hidden::default(),
            writer: Mutex::default(),
            clock: HybridClock::default(),
            events: broadcast::channel(EVENT_BATCHES_MAX).0,
            live: watch::channel(Arc::default()).0,
            superseded: watch::channel(None).0,
        };
        view.set_region(own, region);
        view
    }

    /// This node.
    #[must_use]
    pub const fn own(&self) -> NodeId {
        self.own
    }

    /// The clock that mints this node's ranks; it has seen every rank of the view.
    #[must_use]
    pub const fn clock(&self) -> &HybridClock {
        &self.clock
    }

    // Reads: lock-free.

    /// The best usable claim of another node, leaving out nodes for which `excluded` holds.
    pub fn prefer(&self, key: &PresenceKey, excluded: &dyn Fn(NodeId) -> bool) -> Option<Candidate> {
        let claims = self.claims.pin();
        let claims = claims.get(key)?.as_slice();
        // After the claims: their owners are then in it.
        let owners = self.owners.load();
        claims
            .iter()
            .filter_map(|claim| self.candidate(&owners, key, claim))
            .filter(|candidate| candidate.node != self.own && candidate.is_usable() && !excluded(candidate.node))
            .max_by_key(Candidate::preference)
    }

    /// All claims on a key, this node's own and those that do not count included, preferred first.
    #[must_use]
    pub fn claims(&self, key: &PresenceKey) -> Vec<Candidate> {
        let claims = self.claims.pin();
        let Some(claims) = claims.get(key) else { return Vec::new() };
        self.candidates(&self.owners.load(), key, claims)
    }

    /// Whether any node, this one included, has a claim that counts.
    #[must_use]
    pub fn has_valid_claim(&self, key: &PresenceKey) -> bool {
        let claims = self.claims.pin();
        let Some(claims) = claims.get(key) else { return false };
        any_valid(&self.owners.load(), claims.as_slice())
    }

    /// Hides the claim of `rank` until its owner's log passes what is known of it now: its target said it is stale.
    pub fn hide(&self, key: PresenceKey, rank: Rank) {
        let owners = self.owners.load();
        let Some(slot) = owners.iter().position(|owner| owner.node == rank.node) else { return };
        let claims = self.claims.pin();
        let known = claims.get(&key).is_some_and(|claims| {
            claims.as_slice().iter().any(|claim| usize::from(claim.owner) == slot && claim.clock_us == rank.clock_us)
        });
        if known && rank.node != self.own {
            self.hidden.hide(key, rank, owners[slot].seq.load(Ordering::Relaxed));
        }
    }

    /// Whether the node's watch stream is live here.
    #[must_use]
    pub fn hears(&self, node: NodeId) -> bool {
        self.owners.load().iter().any(|owner| owner.node == node && owner.validity == Validity::Live)
    }

    /// Live peers that hear `node`: they can be transit to it. Ordered by node id.
    #[must_use]
    pub fn heard_by(&self, node: NodeId) -> Vec<NodeId> {
        let owners = self.owners.load();
        let hears = owners.iter().filter(|peer| peer.hears.binary_search(&node).is_ok());
        let mut peers: Vec<NodeId> = hears.map(|peer| peer.node).collect();
        peers.sort_unstable();
        peers
    }

    /// Changes from now on. A subscriber that falls behind [`EVENT_BATCHES_MAX`] batches must look afresh at its keys.
    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<EventBatch> {
        self.events.subscribe()
    }

    /// The nodes whose watch stream is live here, sorted; heartbeats carry them to the peers.
    #[must_use]
    pub fn live_nodes(&self) -> watch::Receiver<Arc<[NodeId]>> {
        self.live.subscribe()
    }

    /// Set once somebody knows a higher epoch of this very node: the process must stop.
    #[must_use]
    pub fn superseded(&self) -> watch::Receiver<Option<Epoch>> {
        self.superseded.subscribe()
    }

    /// What is present, by a walk over everything.
    #[must_use]
    pub fn count(&self) -> PresenceCounts {
        let owners = self.owners.load();
        let mut counts = PresenceCounts::default();
        for (_, claims) in &self.claims.pin() {
            let before = counts.claims;
            for claim in claims.as_slice() {
                let Some(owner) = owners.get(usize::from(claim.owner)).filter(|owner| owner.validity.is_valid()) else {
                    continue;
                };
                counts.claims += 1;
                counts.home_claims += usize::from(claim.home);
                *counts.by_node.entry(owner.node).or_default() += 1;
            }
            counts.keys += usize::from(counts.claims > before);
        }
        counts
    }

    /// Calls `each` with every key and its claims, preferred first, in no particular order.
    pub fn for_each(&self, mut each: impl FnMut(PresenceKey, Vec<Candidate>)) {
        for (key, claims) in &self.claims.pin() {
            each(*key, self.candidates(&self.owners.load(), key, claims));
        }
    }

    /// What is known of each node, by node id.
    #[must_use]
    pub fn owners(&self) -> Vec<OwnerStatus> {
        let writer = self.writer.lock();
        let status = |owner: &Owner| OwnerStatus {
            node: owner.node,
            region: owner.region,
            epoch: owner.epoch,
            boot_id: owner.boot_id,
            seq: owner.seq(),
            validity: writer.validity(self.own, owner),
            fenced: owner.is_fenced(),
            claims: owner.claims,
            last_heard: owner.last_heard,
            hears: Arc::clone(&owner.hears),
        };
        writer.slots.values().map(|slot| status(&writer.owners[*slot])).collect()
    }

    /// Up to where the node's log is known.
    #[must_use]
    pub fn cursor(&self, node: NodeId) -> Cursor {
        let writer = self.writer.lock();
        let Some(owner) = writer.slots.get(&node).map(|slot| &writer.owners[*slot]) else { return Cursor::default() };
        let next_seq = if owner.incomplete || owner.epoch == Epoch(0) { 0 } else { owner.seq() + 1 };
        Cursor { epoch: owner.epoch, boot_id: owner.boot_id, next_seq }
    }

    fn candidate(&self, owners: &[OwnerEntry], key: &PresenceKey, claim: &Claim) -> Option<Candidate> {
        let owner = owners.get(usize::from(claim.owner))?;
        let rank = Rank { clock_us: claim.clock_us, node: owner.node };
        Some(Candidate {
            node: owner.node,
            rank,
            home: claim.home,
            kind: claim.kind,
            epoch: owner.epoch,
            validity: owner.validity,
            own_region: owner.region == Some(self.region),
            hidden: self.hidden.hides(key, rank, owner.seq.load(Ordering::Relaxed)),
        })
    }

    fn candidates(&self, owners: &[OwnerEntry], key: &PresenceKey, claims: &Claims) -> Vec<Candidate> {
        let mut candidates: Vec<_> = claims.as_slice().iter().filter_map(|claim| self.candidate(owners, key, claim)).collect();
        candidates.sort_unstable_by_key(|candidate| std::cmp::Reverse(candidate.preference()));
        candidates
    }

    // Writes: one at a time.

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
    pub(super) fn open_own(&self, identity: LogIdentity) {
        self.write(|writer, news| {
            let slot = writer.slot(identity.node)?;
            self.open_epoch(writer, news, slot, identity.epoch, identity.boot_id);
            self.publish(writer, news);
            Ok(())
        })
        .expect("the own node is the first owner");
    }

    /// Catches up with the own log. Several callers may do so at once: operations count by their sequence.
    pub(super) fn follow_own(&self, log: &OwnerLog) {
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

    fn write<T>(&self, write: impl FnOnce(&mut Writer, &mut News) -> Result<T, IngestError>) -> Result<T, IngestError> {
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
        let slot = writer.slot(hello.node)?;
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
            self.open_epoch(writer, news, slot, hello.epoch, hello.boot_id);
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
                    self.clear(writer, news, slot);
                    writer.owners[slot].incomplete = true;
                }
            }
            TableEvent::Evicted { .. } => {
                self.clear(writer, news, slot);
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
        slot: usize,
        (epoch, boot_id): (Epoch, BootId),
        seq: u64,
        ops: &[Op],
    ) {
        let owner = &writer.owners[slot];
        // Two processes with one epoch (a copied data directory): the one that speaks here is believed while it does.
        let other_process = epoch == owner.epoch && boot_id != owner.boot_id && !owner.live;
        if epoch > owner.epoch || other_process {
            self.open_epoch(writer, news, slot, epoch, boot_id);
            self.publish(writer, news);
        }
        let owner = &writer.owners[slot];
        if (epoch, boot_id) == (owner.epoch, owner.boot_id) && (owner.incomplete || seq > owner.seq()) {
            self.replace(writer, news, slot, seq, ops);
        }
    }

    /// Adopts a higher epoch: nothing of it is known yet.
    fn open_epoch(&self, writer: &mut Writer, news: &mut News, slot: usize, epoch: Epoch, boot_id: BootId) {
        self.clear(writer, news, slot);
        let owner = &mut writer.owners[slot];
        (owner.epoch, owner.boot_id, owner.incomplete) = (epoch, boot_id, false);
        (owner.live, owner.was_live, owner.hears) = (false, false, Arc::default());
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
        if super::exceeds_claims_max(owner.claims, new, held) {
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
        let stays = |key: &PresenceKey| ops.binary_search_by_key(&key, Op::key).is_ok();
        self.remove_where(writer, news, slot, |key| !stays(key));
        for op in ops {
            self.apply_op(writer, news, slot, op);
        }
        let owner = &mut writer.owners[slot];
        owner.incomplete = false;
        owner.seq.store(seq, Ordering::Relaxed);
    }

    fn clear(&self, writer: &mut Writer, news: &mut News, slot: usize) {
        self.remove_where(writer, news, slot, |_| true);
        writer.owners[slot].seq.store(0, Ordering::Relaxed);
    }

    fn remove_where(&self, writer: &mut Writer, news: &mut News, slot: usize, gone: impl Fn(&PresenceKey) -> bool) {
        if writer.owners[slot].claims == 0 {
            return;
        }
        let mut releases = Vec::new();
        for (key, claims) in &self.claims.pin() {
            let claim = claims.as_slice().iter().find(|claim| usize::from(claim.owner) == slot);
            if let Some(claim) = claim.filter(|_| gone(key)) {
                releases.push(Op::Release { key: *key, clock_us: claim.clock_us, clean: false });
            }
        }
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
                    news.lost.insert(key, clean);
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
    fn publish(&self, writer: &Writer, news: &mut News) {
        let entry = |owner: &Owner| OwnerEntry {
            node: owner.node,
            region: owner.region,
            epoch: owner.epoch,
            validity: writer.validity(self.own, owner),
            hears: Arc::clone(&owner.hears),
            seq: Arc::clone(&owner.seq),
        };
        let after: Arc<Vec<OwnerEntry>> = Arc::new(writer.owners.iter().map(entry).collect());
        let before = self.owners.swap(Arc::clone(&after));
        self.publish_live(&after);
        let mut changed = false;
        for (before, after) in before.iter().zip(after.iter()) {
            let node = after.node;
            match (before.validity.is_valid(), after.validity.is_valid()) {
                (true, false) => news.events.push(PresenceEvent::OwnerLost { node }),
                (false, true) => news.events.push(PresenceEvent::OwnerBack { node }),
                _ => continue,
            }
            changed = true;
        }
        if changed {
            self.tell_keys(&before, &after, news);
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

    /// Walks all keys after owners became valid or invalid: a key may have lost its last valid claim, or have one again.
    fn tell_keys(&self, before: &[OwnerEntry], after: &[OwnerEntry], news: &mut News) {
        let mut back = Vec::new();
        for (key, claims) in &self.claims.pin() {
            let claims = claims.as_slice();
            match (any_valid(before, claims), any_valid(after, claims)) {
                (true, false) => {
                    news.lost.insert(*key, false);
                }
                (false, true) => back.extend(claims.iter().filter(|claim| is_valid(after, claim)).map(|claim| (*key, *claim))),
                _ => {}
            }
        }
        back.sort_unstable_by_key(|(key, claim)| (*key, claim.owner));
        news.events.extend(back.into_iter().map(|(key, claim)| PresenceEvent::Claimed {
            key,
            rank: Rank { clock_us: claim.clock_us, node: after[usize::from(claim.owner)].node },
            home: claim.home,
            kind: claim.kind,
        }));
    }
}

fn is_valid(owners: &[OwnerEntry], claim: &Claim) -> bool {
    owners.get(usize::from(claim.owner)).is_some_and(|owner| owner.validity.is_valid())
}

fn any_valid(owners: &[OwnerEntry], claims: &[Claim]) -> bool {
    claims.iter().any(|claim| is_valid(owners, claim))
}

#[cfg(test)]
mod tests;
