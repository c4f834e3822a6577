//! What the debug pages say: the node's numbers under the names of a stock derper, the traffic of each client, and whether the node's
//! own records agree. Who may ask, and where, is `http`'s.

mod render;
mod samples;
pub mod stock;
pub mod traffic;

use std::sync::Arc;
use std::time::SystemTime;

use causeway_control::presence::PresenceView;
use causeway_proto::id::RegionId;
use causeway_proto::key::NodePublic;

use crate::admission::Admission;
use crate::clients::Registry;
use crate::telemetry::exporter::Exporter;
use samples::Samples;
use traffic::TrafficPage;

/// `Content-Type` of [`DebugPages::varz`].
pub const VARZ_CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// `Content-Type` of [`DebugPages::vars`].
pub const VARS_CONTENT_TYPE: &str = "application/json; charset=utf-8";

/// What [`DebugPages::check`] says if all is well; monitoring of stock derpers looks for it (`derp.md` section 11).
pub const CHECK_OKAY: &str = "derp.Server ConsistencyCheck okay";

/// What the pages are made from.
#[derive(Clone)]
pub struct DebugParts {
    /// Every counter of the node.
    pub exporter: Exporter,
    /// Clients here.
    pub registry: Arc<Registry>,
    /// Clients elsewhere.
    pub view: Arc<PresenceView>,
    /// Who may log in.
    pub admission: Arc<dyn Admission>,
    /// This node's own key towards clients: nobody else has its private half.
    pub server_key: NodePublic,
    /// This node's region.
    pub region: RegionId,
    /// When the process started.
    pub started: SystemTime,
    /// Wall time.
    pub clock: fn() -> SystemTime,
}

impl std::fmt::Debug for DebugParts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DebugParts").field("region", &self.region).field("started", &self.started).finish_non_exhaustive()
    }
}

/// The debug pages of a node. Cheap to clone.
#[derive(Debug, Clone)]
pub struct DebugPages {
    parts: Arc<DebugParts>,
}

impl DebugPages {
    /// Pages about these parts.
    #[must_use]
    pub fn new(parts: DebugParts) -> Self {
        Self { parts: Arc::new(parts) }
    }

    /// `/debug/varz`: the stock metrics as Prometheus text 0.0.4.
    ///
    /// # Errors
    /// A counter cannot be written.
    pub fn varz(&self) -> Result<String, std::fmt::Error> {
        Ok(render::varz(&stock::collect(&self.parts, &self.samples()?)))
    }

    /// `/debug/vars`: the stock metrics as JSON, named and nested as by Go's expvar package.
    ///
    /// # Errors
    /// A counter cannot be written.
    pub fn vars(&self) -> Result<String, std::fmt::Error> {
        Ok(render::vars(&stock::collect(&self.parts, &self.samples()?)))
    }

    /// `/debug/check`: [`CHECK_OKAY`].
    ///
    /// # Errors
    /// What contradicts what, and who cannot say who may log in, separated by commas.
    pub async fn check(&self) -> Result<&'static str, String> {
        let mut found = self.parts.registry.contradictions();
        found.extend(self.parts.admission.faults(self.parts.server_key).await);
        if found.is_empty() { Ok(CHECK_OKAY) } else { Err(found.join(", ")) }
    }

    /// `/debug/traffic`: see [`TrafficPage`].
    #[must_use]
    pub fn traffic(&self) -> TrafficPage {
        TrafficPage::new(Arc::clone(&self.parts.registry))
    }

    fn samples(&self) -> Result<Samples, std::fmt::Error> {
        Ok(Samples::parse(&self.parts.exporter.text()?))
    }
}

#[cfg(test)]
impl DebugPages {
    /// Pages about a node with nobody on it.
    pub(crate) fn idle(exporter: Exporter) -> Self {
        use causeway_control::presence::OwnerLog;
        use causeway_proto::id::{BootId, Epoch, NodeId};

        use crate::clients::{ClientLimits, RegistryParts};
        use crate::config::Announce;
        use crate::pump::lanes::PumpShared;

        let (own, region) = (NodeId(1), RegionId(1));
        let view = Arc::new(PresenceView::new(own, region));
        let owner_log = OwnerLog::new(own, Epoch(1), BootId([1; 16]), Arc::clone(&view));
        let (clock, pump) = (Arc::new(SystemTime::now), PumpShared::new());
        let registry =
            Registry::new(RegistryParts { owner_log, clock, pump, limits: ClientLimits::default(), announce: Announce::Region });
        let started = SystemTime::now();
        let (admission, server_key) = (Arc::new(crate::admission::Open), NodePublic::from_bytes([1; 32]));
        Self::new(DebugParts { exporter, registry, view, admission, server_key, region, started, clock: SystemTime::now })
    }
}
