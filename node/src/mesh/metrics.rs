//! What is counted about links.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use super::connection::LinkEnd;

/// One label from a closed list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

/// Counters of the packet links.
#[derive(Debug)]
pub struct MeshMetrics {
    up: Gauge,
    dial_failures: Counter,
    refused: Family<Reason, Counter>,
    ended: Family<Reason, Counter>,
    stale_received: Counter,
    round_trip: Histogram,
}

impl Default for MeshMetrics {
    fn default() -> Self {
        Self {
            up: Gauge::default(),
            dial_failures: Counter::default(),
            refused: Family::default(),
            ended: Family::default(),
            stale_received: Counter::default(),
            // 0.1 ms to 3.3 s.
            round_trip: Histogram::new(exponential_buckets(0.0001, 2.0, 16)),
        }
    }
}

impl MeshMetrics {
    /// Declares everything under `causeway_mesh_`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "causeway_mesh_connections_up",
            "Connections of links that this node dialled and that are up",
            self.up.clone(),
        );
        registry.register("causeway_mesh_dial_failures", "Links that could not be connected", self.dial_failures.clone());
        registry.register("causeway_mesh_links_refused", "Incoming links refused", self.refused.clone());
        registry.register("causeway_mesh_links_ended", "Links that ended", self.ended.clone());
        registry.register(
            "causeway_mesh_stale_notices_received",
            "Stale claims this node was told of",
            self.stale_received.clone(),
        );
        let help = "Round trips of pings on links";
        registry.register_with_unit("causeway_mesh_round_trip", help, Unit::Seconds, self.round_trip.clone());
    }

    pub(super) fn up(&self) {
        self.up.inc();
    }

    pub(super) fn down(&self) {
        self.up.dec();
    }

    pub(super) fn dial_failed(&self) {
        self.dial_failures.inc();
    }

    pub(super) fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&Reason { reason }).inc();
    }

    pub(super) fn ended(&self, end: &LinkEnd) {
        self.ended.get_or_create(&Reason { reason: end.reason() }).inc();
    }

    pub(super) fn stale_received(&self) {
        self.stale_received.inc();
    }

    pub(super) fn round_trip(&self, time: Duration) {
        self.round_trip.observe(time.as_secs_f64());
    }

    /// How many links ended for `reason`.
    #[must_use]
    pub fn ended_for(&self, reason: &'static str) -> u64 {
        self.ended.get_or_create(&Reason { reason }).get()
    }
}
