//! The one answer to "who holds K?" at this node: per key, the claims of all owners' longest known prefixes.
//!
//! Fed by watch, by Raft and by the own log; an operation counts only if its sequence is beyond what is known of its owner, so it
//! does not matter by which way it came first. Reads take no lock; writers take turns.

mod change;
mod claims;
mod entry;
mod event;
mod from_table;
mod from_watch;
mod hidden;
mod input;
mod owner;
mod tell;
mod write;
mod writer;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use arc_swap::ArcSwap;
use causeway_proto::id::{BootId, Epoch, NodeId, RegionId};
use causeway_proto::key_hash::KeyHash;
use causeway_proto::presence::{PresenceKey, Rank};
use parking_lot::Mutex;
use tokio::sync::{Notify, broadcast, watch};

use super::clock::HybridClock;
use super::prefer::{Candidate, Validity};

use claims::{Claim, Claims};
use entry::{OwnerEntry, any_valid};
pub use event::{EventBatch, PresenceEvent};
pub use hidden::HIDDEN_MAX;
use hidden::Hidden;
pub use input::{IngestError, WatchInput};
use owner::Owner;
use writer::Writer;

/// Event batches a subscriber may fall behind; then it must look afresh at the keys it cares for.
pub const EVENT_BATCHES_MAX: usize = 1024;

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

/// Presence as this node knows it.
#[derive(Debug)]
pub struct PresenceView {
    own: NodeId,
    region: RegionId,
    claims: papaya::HashMap<PresenceKey, Claims, KeyHash>,
    owners: ArcSwap<Vec<OwnerEntry>>,
    hidden: Hidden,
    writer: Mutex<Writer>,
    /// Held by the one that tells what changed owners mean for their keys.
    telling: Mutex<()>,
    untold: Notify,
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
            claims: papaya::HashMap::with_hasher(KeyHash::new()),
            owners: ArcSwap::default(),
            hidden: Hidden::default(),
            writer: Mutex::default(),
            telling: Mutex::default(),
            untold: Notify::new(),
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
        let Some(slot) = owners.iter().position(|owner| owner.node == rank.node && !owner.retired) else { return };
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

    /// Distinct keys that some node of `region` validly claims, by a walk over everything.
    #[must_use]
    pub fn count_in_region(&self, region: RegionId) -> usize {
        let owners = self.owners.load();
        let inside: Vec<bool> = owners.iter().map(|owner| owner.region == Some(region) && owner.validity.is_valid()).collect();
        let claimed = |claim: &Claim| inside.get(usize::from(claim.owner)).copied().unwrap_or(false);
        self.claims.pin().values().filter(|claims| claims.as_slice().iter().any(claimed)).count()
    }

    /// Calls `each` with every key and its claims, preferred first, in no particular order.
    pub fn for_each(&self, mut each: impl FnMut(PresenceKey, Vec<Candidate>)) {
        for (key, claims) in &self.claims.pin() {
            let candidates = self.candidates(&self.owners.load(), key, claims);
            if !candidates.is_empty() {
                each(*key, candidates);
            }
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
        let owner = owners.get(usize::from(claim.owner)).filter(|owner| !owner.retired)?;
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
}

#[cfg(test)]
mod tests;
