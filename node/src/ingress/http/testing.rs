//! A site without a node.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use causeway_proto::derpmap::DerpMap;
use tokio::sync::watch;
use tokio::time::Instant;

use super::{BootstrapDns, DebugDesk, DerpMapDocument, Site};
use crate::config::Home;
use crate::ingress::debug::DebugPages;
use crate::ingress::metrics::{BootstrapDnsMetrics, IngressMetrics};
use crate::lifecycle::health::Health;
use crate::telemetry::exporter::{Exporter, registry};

/// On this site it is 1994; a DERP map that is sent is served.
pub(super) fn site(health: Health) -> (Site, watch::Sender<Option<Arc<DerpMap>>>) {
    let (maps, receiver) = watch::channel(Some(Arc::new(DerpMap::default())));
    let site = Site {
        node_name: "a-1".into(),
        host_name: "a-1.example".into(),
        https_port: 443,
        home: Home::Page,
        plain_serves_derp: false,
        trusted_proxies: vec!["10.0.0.0/8".parse().expect("a network")],
        debug: DebugDesk {
            networks: vec!["198.51.100.0/24".parse().expect("a network")],
            key: None,
            has_mesh_key: true,
            started: Instant::now(),
            pages: DebugPages::idle(Exporter::new(registry())),
        },
        bootstrap_dns: BootstrapDns::new(BootstrapDnsMetrics::default()),
        derp_map: DerpMapDocument::new(receiver),
        challenges: Arc::default(),
        health,
        exporter: Exporter::new(registry()),
        metrics: IngressMetrics::default(),
        clock: || UNIX_EPOCH + Duration::from_secs(784_111_777),
    };
    (site, maps)
}
