//! Keys that stock derpers hold: which of them this node claims because it watches the derper.
//!
//! A node has one claim per key. A client connected here takes it over, and gives it back when it leaves, each in one batch of the owner
//! log, so that nobody sees the key without a claim in between. Called under the lock of the key's shard.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use causeway_control::presence::OwnerLogFull;
use causeway_proto::key::NodePublic;
use causeway_proto::presence::Rank;
use parking_lot::Mutex;

/// Key -> rank of its claim; none while a client connected here has the claim.
#[derive(Debug, Default)]
pub(super) struct BehindDerpers(Mutex<HashMap<NodePublic, Option<Rank>>>);

impl BehindDerpers {
    /// A derper holds `key`; `claim` makes the claim, unless the key is `connected` here.
    pub(super) fn add(
        &self,
        key: NodePublic,
        connected: bool,
        claim: impl FnOnce() -> Result<Rank, OwnerLogFull>,
    ) -> Result<(), OwnerLogFull> {
        if let Entry::Vacant(entry) = self.0.lock().entry(key) {
            entry.insert(if connected { None } else { Some(claim()?) });
        }
        Ok(())
    }

    /// No derper holds `key` any more. Returns the claim to release, if there is one.
    pub(super) fn remove(&self, key: &NodePublic) -> Option<Rank> {
        self.0.lock().remove(key).flatten()
    }

    /// A client with `key` connected here, and claimed it.
    pub(super) fn connected(&self, key: &NodePublic) {
        if let Some(rank) = self.0.lock().get_mut(key) {
            *rank = None;
        }
    }

    /// The last client with `key` left: if a derper holds the key too, `claim` makes the claim anew. False if none does.
    pub(super) fn left(&self, key: &NodePublic, claim: impl FnOnce() -> Result<Rank, OwnerLogFull>) -> bool {
        let mut ranks = self.0.lock();
        let Some(rank) = ranks.get_mut(key) else { return false };
        // The key is claimed already, so there is room.
        *rank = claim().ok();
        rank.is_some()
    }
}
