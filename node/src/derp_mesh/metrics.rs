//! What is counted about links to stock derpers.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// One label from a closed list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

/// Gauges and counters of the links that this node dials. Packets are in the node's books, as accepted from and delivered to
/// `stock_mesh`.
#[derive(Debug, Default)]
pub struct DerpMeshMetrics {
    pub(super) up: Gauge,
    pub(super) dials_failed: Counter,
    ended: Family<Reason, Counter>,
    pub(super) keys: Gauge,
    pub(super) shared_keys: Gauge,
    pub(super) keys_refused: Counter,
    pub(super) multi_forwarders_created: Counter,
    pub(super) multi_forwarders_deleted: Counter,
    pub(super) strange_departures: Counter,
}

impl DerpMeshMetrics {
    /// Declares everything under `causeway_derp_mesh_`.
    pub fn register(&self, registry: &mut Registry) {
        let mut gauge = |name: &str, help: &str, gauge: &Gauge| registry.register(name, help, gauge.clone());
        gauge("causeway_derp_mesh_links_up", "Stock derpers that this node is linked to", &self.up);
        gauge("causeway_derp_mesh_keys", "Keys that linked stock derpers hold", &self.keys);
        gauge("causeway_derp_mesh_shared_keys", "Keys that several linked stock derpers hold", &self.shared_keys);
        let mut counter = |name: &str, help: &str, counter: &Counter| registry.register(name, help, counter.clone());
        counter("causeway_derp_mesh_dial_failures", "Stock derpers that could not be linked to", &self.dials_failed);
        counter("causeway_derp_mesh_keys_refused", "Keys that were too many to make reachable", &self.keys_refused);
        counter(
            "causeway_derp_mesh_multi_forwarders_created",
            "Keys that a second stock derper announced",
            &self.multi_forwarders_created,
        );
        counter(
            "causeway_derp_mesh_multi_forwarders_deleted",
            "Keys that all stock derpers but one lost",
            &self.multi_forwarders_deleted,
        );
        counter(
            "causeway_derp_mesh_strange_departures",
            "Departures told by a stock derper that had not announced the key",
            &self.strange_departures,
        );
        registry.register("causeway_derp_mesh_links_ended", "Links to stock derpers that ended", self.ended.clone());
    }

    /// `reason` is one of the fixed labels of [`super::connection::LinkEnd`].
    pub(super) fn ended(&self, reason: &'static str) {
        self.ended.get_or_create(&Reason { reason }).inc();
    }

    /// How many links ended for `reason`.
    #[must_use]
    pub fn ended_for(&self, reason: &'static str) -> u64 {
        self.ended.get_or_create(&Reason { reason }).get()
    }
}
