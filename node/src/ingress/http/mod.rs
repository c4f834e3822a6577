//! HTTP on our own ports: few endpoints, verbatim bytes, and the hand-over of a connection that becomes DERP.
//!
//! `request` checks what every request must be; [`routes`] maps it to a [`response::Response`] or to an upgrade; [`connection`] reads
//! heads and writes responses as HTTP/1.1, [`http2`] for clients that speak nothing else.

pub mod bootstrap_dns;
pub mod connection;
pub mod debug;
pub mod derp_map;
pub mod http2;
pub mod reply;
mod request;
pub mod response;
pub mod routes;
#[cfg(test)]
mod testing;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use causeway_proto::derp::upgrade::RequestHead;

use crate::config::{Cidr, Home};
use crate::ingress::metrics::IngressMetrics;
use crate::ingress::tls::challenges::Challenges;
use crate::lifecycle::health::Health;
use crate::telemetry::exporter::Exporter;

pub use bootstrap_dns::BootstrapDns;
pub use connection::{Ended, serve};
pub use debug::DebugDesk;
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

/// Who sends a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Visitor {
    /// The other end of the connection.
    pub connection: SocketAddr,
    /// The client: another one if a trusted proxy forwards its request. Its port is then 0.
    pub client: SocketAddr,
}

impl Visitor {
    /// Whether a trusted proxy forwards the request.
    #[must_use]
    pub fn is_forwarded(&self) -> bool {
        self.connection != self.client
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
    /// The root page.
    pub home: Home,
    /// Plain HTTP serves everything to everybody.
    pub plain_serves_derp: bool,
    /// Proxies whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<Cidr>,
    /// The debug pages.
    pub debug: DebugDesk,
    /// Addresses for clients without DNS.
    pub bootstrap_dns: Arc<BootstrapDns>,
    /// The DERP map.
    pub derp_map: DerpMapDocument,
    /// What an ACME directory will ask for.
    pub challenges: Arc<Challenges>,
    /// For `/readyz`.
    pub health: Health,
    /// For `/metrics`.
    pub exporter: Exporter,
    /// Counts requests.
    pub metrics: IngressMetrics,
    /// The wall clock, for the dates of answers.
    pub clock: fn() -> SystemTime,
}

impl Site {
    /// Whether the other end of a connection is a proxy that names the clients it forwards.
    #[must_use]
    pub fn trusts(&self, connection: &SocketAddr) -> bool {
        self.trusted_proxies.iter().any(|network| network.contains(connection.ip()))
    }

    /// Who sends a request over a connection from `connection`.
    #[must_use]
    pub fn visitor(&self, connection: SocketAddr, head: &RequestHead) -> Visitor {
        let is_trusted = |address| self.trusted_proxies.iter().any(|network| network.contains(address));
        let forwarded = if is_trusted(connection.ip()) { head.forwarded_for(is_trusted) } else { None };
        Visitor { connection, client: forwarded.map_or(connection, |address| SocketAddr::new(address, 0)) }
    }
}
