//! Who must hear that a peer is gone: every connection that was written a packet of it (`derp.md` section 5.6).
//!
//! A connection's writer subscribes when it writes a packet of a new source, and forgets the source when it writes the PeerGone, so
//! that it subscribes again if the source returns.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use causeway_proto::derp::frame::{Frame, PeerGoneReason};
use causeway_proto::key::NodePublic;
use parking_lot::Mutex;

use super::connection::ClientConnection;

/// Peers tracked per connection; beyond it the ones least recently heard are forgotten.
pub const TRACKED_PEERS_MAX: usize = 4_096;

/// Locks of the index, so that writers of different connections rarely meet.
const SHARDS: usize = 64;

type Subscribers = HashMap<u64, Arc<ClientConnection>>;

/// Source -> connections that must hear when it is gone.
#[derive(Debug)]
pub struct PeerGoneIndex {
    hasher: RandomState,
    shards: Vec<Mutex<HashMap<NodePublic, Subscribers>>>,
}

impl Default for PeerGoneIndex {
    fn default() -> Self {
        Self { hasher: RandomState::new(), shards: (0..SHARDS).map(|_| Mutex::default()).collect() }
    }
}

impl PeerGoneIndex {
    fn shard(&self, source: &NodePublic) -> &Mutex<HashMap<NodePublic, Subscribers>> {
        &self.shards[self.hasher.hash_one(source) as usize % SHARDS]
    }

    fn subscribe(&self, source: NodePublic, connection: &Arc<ClientConnection>) {
        self.shard(&source).lock().entry(source).or_default().insert(connection.id, Arc::clone(connection));
    }

    fn unsubscribe(&self, source: &NodePublic, connection: u64) {
        let mut shard = self.shard(source).lock();
        if let Some(subscribers) = shard.get_mut(source) {
            subscribers.remove(&connection);
            if subscribers.is_empty() {
                shard.remove(source);
            }
        }
    }

    /// Tells every subscriber of `source` that it is gone, and forgets them.
    pub fn peer_gone(&self, source: NodePublic) {
        let subscribers = self.shard(&source).lock().remove(&source).unwrap_or_default();
        for connection in subscribers.values() {
            // A connection that cannot take it ends.
            let _refused = connection.send(Frame::PeerGone { peer: source, reason: PeerGoneReason::Disconnected });
        }
    }

    /// Every source somebody subscribed to.
    #[must_use]
    pub fn sources(&self) -> Vec<NodePublic> {
        self.shards.iter().flat_map(|shard| shard.lock().keys().copied().collect::<Vec<_>>()).collect()
    }
}

/// The sources one connection has subscribed to: owned by its writer. Two generations approximate "least recently heard".
#[derive(Debug)]
pub(crate) struct TrackedPeers {
    index: Arc<PeerGoneIndex>,
    connection: Arc<ClientConnection>,
    last: Option<NodePublic>,
    recent: HashSet<NodePublic>,
    older: HashSet<NodePublic>,
}

impl TrackedPeers {
    pub(crate) fn new(index: Arc<PeerGoneIndex>, connection: Arc<ClientConnection>) -> Self {
        Self { index, connection, last: None, recent: HashSet::new(), older: HashSet::new() }
    }

    /// A packet of `source` is being written.
    pub(crate) fn written(&mut self, source: NodePublic) {
        if self.last == Some(source) {
            return;
        }
        self.last = Some(source);
        if self.recent.contains(&source) {
            return;
        }
        if !self.older.remove(&source) {
            self.connection.traffic.note_sender(&source);
            self.index.subscribe(source, &self.connection);
        }
        self.recent.insert(source);
        if self.recent.len() >= TRACKED_PEERS_MAX / 2 {
            let forgotten = std::mem::replace(&mut self.older, std::mem::take(&mut self.recent));
            forgotten.iter().for_each(|source| self.index.unsubscribe(source, self.connection.id));
        }
    }

    /// A PeerGone of `source` is being written.
    pub(crate) fn gone(&mut self, source: &NodePublic) {
        self.last = None;
        self.recent.remove(source);
        self.older.remove(source);
    }
}

impl Drop for TrackedPeers {
    fn drop(&mut self) {
        for source in self.recent.iter().chain(&self.older) {
            self.index.unsubscribe(source, self.connection.id);
        }
    }
}
