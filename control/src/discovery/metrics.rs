//! What discovery counts.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

/// Counters and gauges of discovery. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct DiscoveryMetrics {
    dns_lookups: Family<Outcome, Counter>,
    dns_addresses: Gauge,
}

impl DiscoveryMetrics {
    /// Registers everything below `causeway_discovery_`.
    pub(crate) fn register(&self, registry: &mut Registry) {
        let discovery = registry.sub_registry_with_prefix("causeway_discovery");
        discovery.register("dns_lookups", "Lookups of the names in discovery.dns", self.dns_lookups.clone());
        discovery.register("dns_addresses", "Addresses that the names in discovery.dns stand for", self.dns_addresses.clone());
    }

    /// Lookups so far that ended in `outcome`: `ok`, `empty` or `failed`.
    #[must_use]
    pub fn dns_lookups(&self, outcome: &'static str) -> u64 {
        self.dns_lookups.get_or_create(&Outcome { outcome }).get()
    }

    pub(super) fn dns_lookup(&self, outcome: &'static str) {
        self.dns_lookups.get_or_create(&Outcome { outcome }).inc();
    }

    pub(super) fn dns_addresses(&self, count: usize) {
        self.dns_addresses.set(i64::try_from(count).unwrap_or(i64::MAX));
    }
}
