//! Which stock derpers hold which keys, and which of them gets a key's packets.
//!
//! Of several derpers that hold a key the first that said so gets all its packets; when it loses the key, the one after it does
//! (`derp.md` section 8). Readers take no lock.

use std::sync::Arc;

use causeway_proto::key::NodePublic;
use causeway_proto::key_hash::KeyHash;
use causeway_proto::packet::Packet;
use parking_lot::Mutex;

use super::link::DerperLink;
use super::metrics::DerpMeshMetrics;
use crate::clients::Registry;
use crate::forward::{PacketForwarder, Verdict};

/// The links on which a key was announced, the first one first. Never empty in the table.
type Links = Vec<Arc<DerperLink>>;

/// This node claims as many keys of stock derpers' clients as it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this node claims as many keys of stock derpers' clients as it may")]
pub struct KeysFull;

/// The clients of all stock derpers that this node has a link to.
#[derive(Debug)]
pub struct Derpers {
    registry: Arc<Registry>,
    keys_max: usize,
    by_key: papaya::HashMap<NodePublic, Links, KeyHash>,
    /// One change at a time: how many keys there are.
    keys: Mutex<usize>,
    metrics: DerpMeshMetrics,
}

impl Derpers {
    /// None yet. At most `keys_max` keys are claimed through `registry`.
    #[must_use]
    pub fn new(registry: Arc<Registry>, keys_max: usize) -> Arc<Self> {
        let by_key = papaya::HashMap::with_hasher(KeyHash::new());
        Arc::new(Self { registry, keys_max, by_key, keys: Mutex::default(), metrics: DerpMeshMetrics::default() })
    }

    /// This area's metrics.
    #[must_use]
    pub const fn metrics(&self) -> &DerpMeshMetrics {
        &self.metrics
    }

    /// Whether a derper that holds `key` can be sent packets now.
    #[must_use]
    pub fn can_reach(&self, key: &NodePublic) -> bool {
        self.link_to(key).is_some()
    }

    fn link_to(&self, key: &NodePublic) -> Option<Arc<DerperLink>> {
        self.by_key.pin().get(key)?.iter().find(|link| link.is_up()).cloned()
    }

    /// The derper of `link` holds `key`; nothing new if that is known.
    ///
    /// # Errors
    /// [`KeysFull`]; nothing is left behind.
    pub fn present(&self, key: NodePublic, link: &Arc<DerperLink>) -> Result<(), KeysFull> {
        let mut keys = self.keys.lock();
        let by_key = self.by_key.pin();
        let mut links = by_key.get(&key).cloned().unwrap_or_default();
        if links.iter().any(|known| Arc::ptr_eq(known, link)) {
            return Ok(());
        }
        if links.is_empty() {
            if *keys >= self.keys_max {
                return Err(KeysFull);
            }
            // Claimed last, so that whoever reads the claim finds the link.
            by_key.insert(key, vec![Arc::clone(link)]);
            if self.registry.derper_has(key).is_err() {
                by_key.remove(&key);
                return Err(KeysFull);
            }
            *keys += 1;
            self.metrics.keys.inc();
            return Ok(());
        }
        if links.len() == 1 {
            self.metrics.shared_keys.inc();
            self.metrics.multi_forwarders_created.inc();
        }
        links.push(Arc::clone(link));
        by_key.insert(key, links);
        Ok(())
    }

    /// The derper of `link` does not hold `key` any more.
    pub fn gone(&self, key: &NodePublic, link: &Arc<DerperLink>) {
        let mut keys = self.keys.lock();
        let by_key = self.by_key.pin();
        let Some(known) = by_key.get(key) else { return };
        let left: Links = known.iter().filter(|other| !Arc::ptr_eq(other, link)).cloned().collect();
        if left.len() == known.len() {
            self.metrics.strange_departures.inc();
            return;
        }
        match left.len() {
            0 => {
                self.registry.derper_lost(*key);
                by_key.remove(key);
                *keys -= 1;
                self.metrics.keys.dec();
                return;
            }
            1 => {
                self.metrics.shared_keys.dec();
                self.metrics.multi_forwarders_deleted.inc();
            }
            _ => {}
        }
        by_key.insert(*key, left);
    }
}

impl PacketForwarder for Derpers {
    /// Queues the packet for the derper that holds its destination.
    fn forward(&self, packet: Packet) -> Verdict {
        match self.link_to(&packet.dst) {
            Some(link) => link.forward(packet),
            None => Verdict::LinkDown(packet),
        }
    }
}
