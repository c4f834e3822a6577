//! Key -> connections. Readers (the router) look up the active connection without a lock; writers take the lock of the key's shard.
//!
//! Registration is one guard value: dropping it unregisters, publishes the release and moves the gauges.
//! Lock order: shard, then the owner log or the watchers; neither calls back.

mod check;
mod shutdown;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, UNIX_EPOCH};

use arc_swap::ArcSwap;
use causeway_control::WallClock;
use causeway_control::presence::{OwnerLog, OwnerLogFull};
use causeway_proto::derp::frame::Frame;
use causeway_proto::key::NodePublic;
use causeway_proto::key_hash::KeyHash;
use causeway_proto::presence::{ClaimKind, Rank};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::behind_derpers::BehindDerpers;
use super::connection::{ClientConnection, ClientFacts};
use super::limits::ClientLimits;
use super::metrics::ClientMetrics;
use super::pace::{KeyBucket, Pace};
use super::peer_gone::PeerGoneIndex;
use super::proven::Proof;
use super::set::ClientSet;
use super::traffic::Traffic;
use super::watchers::{Elsewhere, TooManyWatchers, Watchers};
use crate::config::Announce;
use crate::forward::accounting::DeliveredTo;
use crate::pump::lanes::{Outbox, PumpShared};

/// Locks of the writers' side.
const SHARDS: usize = 64;

/// A change of home this soon after login is part of connecting, not a move (`derp.md` section 5.4).
const HOME_MOVE_AFTER: Duration = Duration::from_secs(5);

/// Why a client cannot be registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegisterError {
    /// The node claims as many keys as it may.
    #[error("this node claims as many keys as it may")]
    OwnerLogFull,
}

#[derive(Debug)]
struct KeyState {
    connections: ClientSet<Arc<ClientConnection>>,
    /// The key's claim; none for the key of a stock mesh peer, which is nobody's client.
    rank: Option<Rank>,
    home: bool,
    rate: KeyBucket,
}

/// What a registry needs of the node around it.
#[derive(Clone)]
pub struct RegistryParts {
    /// This node's owner log, on which every change is published.
    pub owner_log: OwnerLog,
    /// Wall time, for the ranks of claims.
    pub clock: WallClock,
    /// Books and memory of the pump.
    pub pump: PumpShared,
    /// What one client may use.
    pub limits: ClientLimits,
    /// Whose clients stock derpers are told of beside those connected here.
    pub announce: Announce,
}

impl std::fmt::Debug for RegistryParts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegistryParts").field("limits", &self.limits).finish_non_exhaustive()
    }
}

/// The clients connected to this node.
#[derive(Debug)]
pub struct Registry {
    parts: RegistryParts,
    limits: ArcSwap<ClientLimits>,
    active: papaya::HashMap<NodePublic, Arc<ClientConnection>, KeyHash>,
    hasher: KeyHash,
    shards: Vec<Mutex<HashMap<NodePublic, KeyState>>>,
    next_id: AtomicU64,
    watchers: Watchers,
    behind_derpers: BehindDerpers,
    peer_gone: Arc<PeerGoneIndex>,
    /// Registrations of clients and of mesh peers.
    clients: watch::Sender<usize>,
    mesh_peers: watch::Sender<usize>,
    metrics: ClientMetrics,
}

impl Registry {
    /// An empty registry.
    #[must_use]
    pub fn new(parts: RegistryParts) -> Arc<Self> {
        Arc::new(Self {
            limits: ArcSwap::from_pointee(parts.limits),
            parts,
            active: papaya::HashMap::with_hasher(KeyHash::new()),
            hasher: KeyHash::new(),
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            next_id: AtomicU64::new(0),
            watchers: Watchers::default(),
            behind_derpers: BehindDerpers::default(),
            peer_gone: Arc::default(),
            clients: watch::Sender::new(0),
            mesh_peers: watch::Sender::new(0),
            metrics: ClientMetrics::default(),
        })
    }

    /// Registers a logged-in connection, which becomes the active one of its key, and claims the key if it is the first.
    ///
    /// # Errors
    /// [`RegisterError`]; nothing is left behind.
    pub fn register(
        self: &Arc<Self>,
        facts: ClientFacts,
        cancel: CancellationToken,
        now: Instant,
    ) -> Result<Registration, RegisterError> {
        let connection = Arc::new(self.connection(facts, cancel, now));
        let mut shard = self.shard(&facts.key).lock();
        let state = match shard.entry(facts.key) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(self.first_state(&facts)?),
        };
        let evicted = state.connections.add(Arc::clone(&connection), self.limits.load().connections_per_key);
        self.activate(state);
        self.publish_home(facts.key, state);
        self.metrics.connected(&facts, state.connections.len() > 1);
        if let Some(evicted) = &evicted {
            self.metrics.disconnected(&evicted.facts, evicted.preferred.load(Ordering::Relaxed));
        }
        self.watchers.connected(&connection);
        let pace = Pace::new(Arc::clone(&state.rate));
        drop(shard);
        if let Some(evicted) = evicted {
            self.metrics.evicted.inc();
            evicted.cancel.cancel();
        }
        self.registrations(facts.is_mesh_peer).send_modify(|registrations| *registrations += 1);
        Ok(Registration { registry: Arc::clone(self), connection, pace, clean: false })
    }

    /// Goes on with other limits. Rates hold at once, the rest for connections to come.
    pub fn set_limits(&self, limits: ClientLimits) {
        self.limits.store(Arc::new(limits));
    }

    /// What one client may use.
    #[must_use]
    pub fn limits(&self) -> ClientLimits {
        **self.limits.load()
    }

    /// Calls `use_it` with the active connection of `key`, if the key is connected here. Takes no lock.
    pub fn with_active<R>(&self, key: &NodePublic, use_it: impl FnOnce(&Arc<ClientConnection>) -> R) -> Option<R> {
        self.look_up(key, |connection| connection.map(use_it))
    }

    /// Calls `use_it` with the active connection of `key`, or without one. Takes no lock.
    pub fn look_up<R>(&self, key: &NodePublic, use_it: impl FnOnce(Option<&Arc<ClientConnection>>) -> R) -> R {
        use_it(self.active.pin().get(key))
    }

    /// Notes that a frame came on this connection: it becomes the active one of its key.
    pub fn note_frame(&self, connection: &Arc<ClientConnection>) {
        if !connection.must_note_frames() {
            return;
        }
        let mut shard = self.shard(&connection.facts.key).lock();
        if let Some(state) = shard.get_mut(&connection.facts.key)
            && state.connections.heard(connection)
        {
            self.activate(state);
        }
    }

    /// Notes whether this connection is its client's home; the key's claim follows.
    pub fn note_preferred(&self, connection: &Arc<ClientConnection>, preferred: bool, now: Instant) {
        let mut shard = self.shard(&connection.facts.key).lock();
        let Some(state) = shard.get_mut(&connection.facts.key) else { return };
        // One that had to make room is no member any more.
        if !state.connections.iter().any(|member| member == connection)
            || connection.preferred.swap(preferred, Ordering::Relaxed) == preferred
        {
            return;
        }
        self.metrics.home_changed(preferred, now.saturating_duration_since(connection.connected_at) > HOME_MOVE_AFTER);
        self.publish_home(connection.facts.key, state);
    }

    /// Closes every connection of `key`; false if there is none.
    pub fn close_peer(&self, key: &NodePublic) -> bool {
        let shard = self.shard(key).lock();
        let Some(state) = shard.get(key) else { return false };
        state.connections.iter().for_each(|connection| connection.cancel.cancel());
        true
    }

    /// Another node claims `key`: every connection of it here must prove that it lives.
    pub fn challenge(&self, key: &NodePublic, now: Instant) {
        if self.active.pin().get(key).is_none() {
            return;
        }
        let shard = self.shard(key).lock();
        if let Some(state) = shard.get(key) {
            state.connections.iter().for_each(|connection| connection.challenge(now));
        }
    }

    /// The keys connected here.
    #[must_use]
    pub fn keys(&self) -> Vec<NodePublic> {
        self.active.pin().keys().copied().collect()
    }

    /// Streams to `watcher` who is connected here and at sibling nodes, from now on (`derp.md` section 5.7).
    ///
    /// # Errors
    /// [`TooManyWatchers`].
    pub fn watch(&self, watcher: &Arc<ClientConnection>) -> Result<(), TooManyWatchers> {
        let everybody_here = |tell: &mut dyn FnMut(&ClientConnection)| {
            for connection in self.active.pin().values() {
                tell(connection);
            }
        };
        self.watchers.watch(watcher, &self.elsewhere(), everybody_here, |key| self.is_here(key))
    }

    /// Claims of other nodes on `key` changed: stock derpers that watch are told what that means for them.
    pub fn changed_elsewhere(&self, key: &NodePublic) {
        if self.watchers.changed_elsewhere(*key, &self.elsewhere(), |key| self.is_here(key)) {
            self.metrics.not_announced.inc();
        }
    }

    /// As [`Self::changed_elsewhere`], for any number of keys: nodes came or went, or events were missed.
    pub fn all_changed_elsewhere(&self) {
        let not_announced = self.watchers.all_changed_elsewhere(&self.elsewhere(), |key| self.is_here(key));
        self.metrics.not_announced.inc_by(not_announced as u64);
    }

    /// Claims `key` because a stock derper that this node watches holds it; a client connected here goes first.
    ///
    /// # Errors
    /// [`RegisterError`]; nothing is left behind.
    pub fn derper_has(&self, key: NodePublic) -> Result<(), RegisterError> {
        let shard = self.shard(&key).lock();
        let claimed_here = shard.get(&key).is_some_and(|state| state.rank.is_some());
        let added = self.behind_derpers.add(key, claimed_here, || self.claim(key, ClaimKind::Derper));
        added.map_err(|_| RegisterError::OwnerLogFull)
    }

    /// No stock derper that this node watches holds `key` any more.
    pub fn derper_lost(&self, key: NodePublic) {
        let _shard = self.shard(&key).lock();
        if let Some(rank) = self.behind_derpers.remove(&key) {
            self.parts.owner_log.release(key.into(), rank, false);
        }
    }

    fn elsewhere(&self) -> Elsewhere<'_> {
        Elsewhere { view: self.parts.owner_log.view(), announce: self.parts.announce }
    }

    fn is_here(&self, key: &NodePublic) -> bool {
        self.active.pin().contains_key(key)
    }

    fn claim(&self, key: NodePublic, kind: ClaimKind) -> Result<Rank, OwnerLogFull> {
        self.parts.owner_log.claim(key.into(), kind, false, self.wall_us())
    }

    /// Whether a connection of `key` here is its client's home.
    #[must_use]
    pub fn is_home(&self, key: &NodePublic) -> bool {
        self.any_home(key, |_| true)
    }

    /// Asks the home connections of `key` for a sign of life; routing does not change.
    pub fn probe_home(&self, key: &NodePublic) {
        self.any_home(key, |connection| {
            connection.probe();
            false
        });
    }

    /// Whether a home connection of `key` sent anything at `at` or later.
    #[must_use]
    pub fn is_home_heard_since(&self, key: &NodePublic, at: Instant) -> bool {
        self.any_home(key, |connection| connection.proof.is_heard_since(at))
    }

    fn any_home(&self, key: &NodePublic, is_it: impl Fn(&ClientConnection) -> bool) -> bool {
        if !self.is_here(key) {
            return false;
        }
        let shard = self.shard(key).lock();
        let mut connections = shard.get(key).into_iter().flat_map(|state| state.connections.iter());
        connections.any(|connection| connection.preferred.load(Ordering::Relaxed) && is_it(connection))
    }

    /// Sends a frame to every connection of `key`.
    pub fn send_to_key(&self, key: &NodePublic, frame: &Frame) {
        let shard = self.shard(key).lock();
        let connections = shard.get(key).into_iter().flat_map(|state| state.connections.iter());
        for connection in connections {
            // A connection that cannot take it ends.
            let _refused = connection.send(frame.clone());
        }
    }

    /// Every connection of a client; those of stock mesh peers are none.
    #[must_use]
    pub fn connections(&self) -> Vec<Arc<ClientConnection>> {
        self.all(false)
    }

    fn all(&self, mesh_peers: bool) -> Vec<Arc<ClientConnection>> {
        let mut connections = Vec::new();
        for shard in &self.shards {
            let shard = shard.lock();
            let all = shard.values().flat_map(|state| state.connections.iter());
            connections.extend(all.filter(|connection| connection.facts.is_mesh_peer == mesh_peers).cloned());
        }
        connections
    }

    /// Who must hear of departures.
    #[must_use]
    pub const fn peer_gone(&self) -> &Arc<PeerGoneIndex> {
        &self.peer_gone
    }

    /// Keys connected here.
    #[must_use]
    pub fn len(&self) -> usize {
        self.active.len()
    }

    /// Whether nobody is connected.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Connections that are their client's home.
    #[must_use]
    pub fn home_connections(&self) -> u64 {
        u64::try_from(self.metrics.home_connections.get()).unwrap_or(0)
    }

    /// Stock mesh peers that watch.
    #[must_use]
    pub fn watchers(&self) -> usize {
        self.watchers.len()
    }

    /// This area's metrics.
    #[must_use]
    pub const fn metrics(&self) -> &ClientMetrics {
        &self.metrics
    }

    fn shard(&self, key: &NodePublic) -> &Mutex<HashMap<NodePublic, KeyState>> {
        &self.shards[self.hasher.hash_one(key) as usize % SHARDS]
    }

    fn connection(&self, facts: ClientFacts, cancel: CancellationToken, now: Instant) -> ClientConnection {
        let to = if facts.is_mesh_peer { DeliveredTo::StockMesh } else { DeliveredTo::Client };
        ClientConnection {
            id: self.next_id.fetch_add(1, Ordering::Relaxed),
            facts,
            connected_at: now,
            outbox: Outbox::new(self.limits.load().lanes, to, self.parts.pump.clone()),
            cancel,
            proof: Proof::new(now),
            shares_key: AtomicBool::new(false),
            is_active: AtomicBool::new(false),
            preferred: AtomicBool::new(false),
            closed_because: OnceLock::new(),
            traffic: Traffic::default(),
        }
    }

    fn first_state(&self, facts: &ClientFacts) -> Result<KeyState, RegisterError> {
        let rank = if facts.is_mesh_peer {
            None
        } else {
            let rank = self.claim(facts.key, ClaimKind::Derp).map_err(|_| RegisterError::OwnerLogFull)?;
            self.behind_derpers.connected(&facts.key);
            Some(rank)
        };
        Ok(KeyState { connections: ClientSet::default(), rank, home: false, rate: KeyBucket::default() })
    }

    /// Makes the set's choice visible to readers and to the connections themselves.
    fn activate(&self, state: &KeyState) {
        let shares_key = state.connections.len() > 1;
        let mut active = true;
        for connection in state.connections.iter() {
            connection.shares_key.store(shares_key, Ordering::Relaxed);
            connection.is_active.store(active, Ordering::Relaxed);
            if active {
                self.active.pin().insert(connection.facts.key, Arc::clone(connection));
            }
            active = false;
        }
    }

    fn publish_home(&self, key: NodePublic, state: &mut KeyState) {
        let home = state.connections.iter().any(|connection| connection.preferred.load(Ordering::Relaxed));
        if home == state.home || state.rank.is_none() {
            return;
        }
        state.home = home;
        state.rank = self.parts.owner_log.set_home(key.into(), home, self.wall_us());
    }

    fn registrations(&self, of_mesh_peers: bool) -> &watch::Sender<usize> {
        if of_mesh_peers { &self.mesh_peers } else { &self.clients }
    }

    fn unregister(&self, connection: &Arc<ClientConnection>, clean: bool) {
        self.leave(connection, clean);
        // After leaving, so that nobody finds it closed while another connection of its key could take over.
        connection.outbox.close();
        self.registrations(connection.facts.is_mesh_peer).send_modify(|registrations| *registrations -= 1);
    }

    fn leave(&self, connection: &Arc<ClientConnection>, clean: bool) {
        let key = connection.facts.key;
        if connection.facts.is_mesh_peer {
            self.watchers.forget(connection);
        }
        let mut shard = self.shard(&key).lock();
        let Some(state) = shard.get_mut(&key) else { return };
        if !state.connections.remove(connection) {
            return;
        }
        self.metrics.disconnected(&connection.facts, connection.preferred.load(Ordering::Relaxed));
        if state.connections.is_empty() {
            self.active.pin().remove(&key);
            if let Some(rank) = state.rank
                && !self.behind_derpers.left(&key, || self.claim(key, ClaimKind::Derper))
            {
                self.parts.owner_log.release(key.into(), rank, clean);
            }
            shard.remove(&key);
            self.watchers.gone(key);
        } else {
            self.activate(state);
            self.publish_home(key, state);
        }
    }

    fn wall_us(&self) -> u64 {
        let since_epoch = (self.parts.clock)().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since_epoch.as_micros()).unwrap_or(u64::MAX)
    }
}

/// A registered connection; dropping it ends the registration.
#[derive(Debug)]
pub struct Registration {
    registry: Arc<Registry>,
    connection: Arc<ClientConnection>,
    pace: Pace,
    clean: bool,
}

impl Registration {
    /// The connection.
    #[must_use]
    pub const fn connection(&self) -> &Arc<ClientConnection> {
        &self.connection
    }

    /// Notes bytes that the connection sent. Returns until when no more may be read from it, if it sends too fast.
    #[must_use]
    pub fn spend(&mut self, bytes: usize, now: Instant) -> Option<Instant> {
        if self.connection.facts.is_mesh_peer {
            return None;
        }
        let until = self.pace.spend(bytes as u64, self.registry.limits.load().rates, now);
        if until.is_some() {
            self.registry.metrics.rate_pauses.inc();
        }
        until
    }

    /// The client said goodbye: whoever talked to it may be told at once.
    pub const fn closed_cleanly(&mut self) {
        self.clean = true;
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.registry.unregister(&self.connection, self.clean);
    }
}

#[cfg(test)]
mod tests;
