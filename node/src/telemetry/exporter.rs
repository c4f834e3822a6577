//! The metrics registry and its Prometheus text.

use std::sync::Arc;

use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;

use super::process::ProcessMetrics;

/// `Content-Type` of [`Exporter::text`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A registry that holds the process's own metrics; each area adds its own, in `app.rs`.
#[must_use]
pub fn registry() -> Registry {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(ProcessMetrics));
    registry
}

/// A complete registry. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Exporter {
    registry: Arc<Registry>,
}

impl Exporter {
    /// Exports everything registered so far.
    #[must_use]
    pub fn new(registry: Registry) -> Self {
        Self { registry: Arc::new(registry) }
    }

    /// All metrics as text.
    ///
    /// # Errors
    /// A collector failed to write its metric.
    pub fn text(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::with_capacity(16 * 1024);
        text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}
