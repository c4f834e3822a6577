//! What is counted about the configuration.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

/// Counters of the configuration. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct ConfigMetrics {
    reloads: Family<Outcome, Counter>,
}

impl ConfigMetrics {
    /// Declares everything under `causeway_config_`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("causeway_config_reloads", "Times the configuration was to be read again", self.reloads.clone());
    }

    pub(crate) fn reloaded(&self, good: bool) {
        self.reloads.get_or_create(&Outcome { outcome: if good { "ok" } else { "refused" } }).inc();
    }
}
