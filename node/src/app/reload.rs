//! Takes up a changed configuration while the node runs.

use std::sync::Arc;

use super::limits::{client_limits, connection_limits, handshakes};
use crate::admission::Policy;
use crate::clients::Registry;
use crate::config::metrics::ConfigMetrics;
use crate::config::{Config, Reloaded, Source};
use crate::ingress::door::Doors;
use crate::telemetry::logs::LogFilter;

/// Everything that can change without a restart.
pub(super) struct Reloader {
    pub(super) source: Source,
    pub(super) doors: Arc<Doors>,
    pub(super) clients: Arc<Registry>,
    pub(super) admission: Arc<Policy>,
    pub(super) log_filter: LogFilter,
    pub(super) metrics: ConfigMetrics,
}

impl Reloader {
    /// Reads the configuration again; tells the fields that were taken up. A bad one, or one that needs a restart, changes nothing.
    pub(super) fn reload(&mut self) -> Reloaded {
        let reloaded = self.source.reload();
        self.metrics.reloaded(reloaded.is_ok());
        match reloaded {
            Ok((_, changed)) if changed.is_empty() => {
                tracing::info!("the configuration has not changed");
                Ok(changed)
            }
            Ok((config, changed)) => {
                self.take_up(&config, &changed);
                tracing::info!(?changed, "took up the changed configuration");
                Ok(changed)
            }
            Err(error) => {
                tracing::warn!(%error, "the changed configuration is not taken up; the one in force stays");
                Err(error)
            }
        }
    }

    fn take_up(&self, config: &Config, changed: &[String]) {
        self.doors.set_limits(connection_limits(&config.limits), handshakes(&config.limits));
        self.clients.set_limits(client_limits(&config.limits));
        // Otherwise what was decided so far stays remembered.
        if changed.iter().any(|field| field.starts_with("admission.")) {
            self.admission.set(&config.admission);
            warn_if_open(&self.admission);
        }
        if let Err(error) = self.log_filter.set(&config.log_filter) {
            tracing::warn!(%error, "the changed log filter cannot be used; the one in force stays");
        }
    }
}

/// Open admission is a choice that an operator should see.
pub(super) fn warn_if_open(admission: &Policy) {
    if admission.is_open() {
        tracing::warn!("admission is open: whoever connects may relay; limits.key_rate_bits_per_second bounds each key");
    }
}
