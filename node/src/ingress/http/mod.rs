//! HTTP/1.1 on our own ports: few endpoints, verbatim bytes, and the hand-over of a connection that becomes DERP.
//!
//! [`routes`] maps a request to a [`response::Response`] or to an upgrade; [`connection`] reads heads and writes responses.

pub mod connection;
pub mod derp_map;
pub mod response;
pub mod routes;

use std::sync::Arc;

use crate::ingress::debug::DebugPages;
use crate::ingress::metrics::IngressMetrics;
use crate::ingress::tls::challenges::Challenges;
use crate::lifecycle::health::Health;
use crate::telemetry::exporter::Exporter;

pub use connection::{Ended, serve};
pub use derp_map::DerpMapDocument;

/// Which listener a request came in by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// DERP over TLS.
    Derp,
    /// Plain HTTP.
    Plain,
    /// Metrics and health.
    Metrics,
}

impl Door {
    /// The metric label.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Derp => "derp",
            Self::Plain => "plain_http",
            Self::Metrics => "metrics",
        }
    }
}

/// What the endpoints answer from.
#[derive(Debug)]
pub struct Site {
    /// The node's name, for people.
    pub node_name: String,
    /// Where plain HTTP requests are sent on to if they name no usable host.
    pub host_name: String,
    /// Port of HTTPS as clients see it.
    pub https_port: u16,
    /// The DERP map.
    pub derp_map: DerpMapDocument,
    /// What an ACME directory will ask for.
    pub challenges: Arc<Challenges>,
    /// For `/readyz`.
    pub health: Health,
    /// For `/metrics`.
    pub exporter: Exporter,
    /// For `/debug/…`.
    pub debug: DebugPages,
    /// Counts requests.
    pub metrics: IngressMetrics,
}
