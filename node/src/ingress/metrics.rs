//! Metrics of the front doors: `causeway_ingress_*` and `causeway_stun_*`.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::round_trips::RoundTripMetrics;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Door {
    door: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Refused {
    door: &'static str,
    reason: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Request {
    route: &'static str,
    status: u32,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct TlsVersion {
    version: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct AddressFamily {
    family: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Proxied {
    door: &'static str,
    by: &'static str,
}

/// All of them. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct IngressMetrics {
    proxied: Family<Proxied, Counter>,
    bootstrap_dns: BootstrapDnsMetrics,
    accepted: Family<Door, Counter>,
    accept_errors: Family<Door, Counter>,
    shed: Family<Door, Counter>,
    refused: Family<Refused, Counter>,
    tls_handshakes: Family<Outcome, Counter>,
    certificate_expiry: Gauge,
    certificate_reloads: Family<Outcome, Counter>,
    certificate_renewals: Family<Outcome, Counter>,
    requests: Family<Request, Counter>,
    tls_connections: Family<TlsVersion, Counter>,
    tls_active: Family<TlsVersion, Gauge>,
    stun: Family<Outcome, Counter>,
    stun_requests: Family<AddressFamily, Counter>,
    round_trips: RoundTripMetrics,
}

impl IngressMetrics {
    /// Adds them to the registry.
    pub fn register(&self, registry: &mut Registry) {
        let ingress = registry.sub_registry_with_prefix("causeway_ingress");
        ingress.register("accepted_connections", "Connections accepted", self.accepted.clone());
        ingress.register("accept_errors", "Failures to accept a connection", self.accept_errors.clone());
        ingress.register("shed_connections", "Connections closed for want of descriptors", self.shed.clone());
        ingress.register(
            "refused_connections",
            "Connections closed on arrival or before they were upgraded",
            self.refused.clone(),
        );
        ingress.register("tls_handshakes", "TLS handshakes with clients", self.tls_handshakes.clone());
        ingress.register(
            "certificate_expiry_timestamp_seconds",
            "When the DERP certificate expires",
            self.certificate_expiry.clone(),
        );
        ingress.register("certificate_reloads", "Attempts to load a changed DERP certificate", self.certificate_reloads.clone());
        ingress.register(
            "certificate_renewals",
            "Orders of a DERP certificate at the ACME directory",
            self.certificate_renewals.clone(),
        );
        ingress.register("http_requests", "HTTP requests answered", self.requests.clone());
        ingress.register("tls_connections", "TLS handshakes done, by version", self.tls_connections.clone());
        let help = "Connections of clients over TLS that have not logged in, by version";
        ingress.register("tls_active_connections", help, self.tls_active.clone());
        ingress.register("proxied_connections", "Connections whose client a trusted proxy named", self.proxied.clone());
        self.round_trips.register(ingress);
        registry.register("causeway_stun_requests", "Valid binding requests by address family", self.stun_requests.clone());
        self.bootstrap_dns.register(registry.sub_registry_with_prefix("causeway_bootstrap_dns"));
        registry.register("causeway_stun_datagrams", "Datagrams on the STUN port by what became of them", self.stun.clone());
    }

    /// The counters of one listener's accept loop.
    #[must_use]
    pub fn accept(&self, door: &'static str) -> AcceptMetrics {
        let of = |family: &Family<Door, Counter>| family.get_or_create(&Door { door }).clone();
        AcceptMetrics { accepted: of(&self.accepted), failed: of(&self.accept_errors), shed: of(&self.shed) }
    }

    /// Counts a connection that was closed on arrival or before it was upgraded.
    pub fn refused(&self, door: &'static str, reason: &'static str) {
        self.refused.get_or_create(&Refused { door, reason }).inc();
    }

    /// Counts a TLS handshake with a client.
    pub fn tls_handshake(&self, outcome: &'static str) {
        self.tls_handshakes.get_or_create(&Outcome { outcome }).inc();
    }

    /// Notes when the DERP certificate expires, in seconds since the Unix epoch.
    pub fn certificate_expires(&self, at: i64) {
        self.certificate_expiry.set(at);
    }

    /// Counts an attempt to load a changed certificate.
    pub fn certificate_reloaded(&self, outcome: &'static str) {
        self.certificate_reloads.get_or_create(&Outcome { outcome }).inc();
    }

    /// Attempts so far to load a changed certificate that ended in `outcome`.
    #[cfg(test)]
    pub(super) fn certificate_reloads(&self, outcome: &'static str) -> u64 {
        self.certificate_reloads.get_or_create(&Outcome { outcome }).get()
    }

    /// Counts an order at the ACME directory.
    pub fn certificate_renewed(&self, outcome: &'static str) {
        self.certificate_renewals.get_or_create(&Outcome { outcome }).inc();
    }

    /// Counts an answered HTTP request.
    pub fn request(&self, route: &'static str, status: u16) {
        self.requests.get_or_create(&Request { route, status: status.into() }).inc();
    }

    /// Counts a connection over TLS of this version, which is active until the guard is dropped.
    #[must_use]
    pub fn tls_connection(&self, version: &'static str) -> ActiveTls {
        self.tls_connections.get_or_create(&TlsVersion { version }).inc();
        let active = self.tls_active.get_or_create(&TlsVersion { version }).clone();
        active.inc();
        ActiveTls(active)
    }

    /// The counter of valid STUN requests of an address family.
    #[must_use]
    pub fn stun_family(&self, family: &'static str) -> Counter {
        self.stun_requests.get_or_create(&AddressFamily { family }).clone()
    }

    /// Counts a connection whose client a trusted proxy named, by PROXY protocol or in a header.
    pub fn proxied(&self, door: &'static str, by: &'static str) {
        self.proxied.get_or_create(&Proxied { door, by }).inc();
    }

    /// Those of clients' round trips.
    #[must_use]
    pub const fn round_trips(&self) -> &RoundTripMetrics {
        &self.round_trips
    }

    /// Those of bootstrap DNS.
    #[must_use]
    pub const fn bootstrap_dns(&self) -> &BootstrapDnsMetrics {
        &self.bootstrap_dns
    }

    /// The counter of a disposition of STUN datagrams.
    #[must_use]
    pub fn stun(&self, outcome: &'static str) -> Counter {
        self.stun.get_or_create(&Outcome { outcome }).clone()
    }
}

/// A connection over TLS while HTTP has it.
#[derive(Debug)]
pub struct ActiveTls(Gauge);

impl Drop for ActiveTls {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// `causeway_bootstrap_dns_*`, with the meanings of stock servers (`derp.md` section 11).
#[derive(Clone, Debug, Default)]
pub struct BootstrapDnsMetrics {
    /// Requests.
    pub requests: Counter,
    /// A published name was asked for and has addresses.
    pub published_hits: Counter,
    /// A published name was asked for and has none.
    pub published_misses: Counter,
    /// An unpublished name was asked for and has addresses.
    pub unpublished_hits: Counter,
    /// A name was asked for that is in neither list.
    pub unpublished_misses: Counter,
    /// An unpublished name was asked for by a client that it is not rolled out to.
    pub unpublished_percent_misses: Counter,
    /// Different names asked for, up to 500.
    pub queried_domains: Gauge,
    /// Names that could not be resolved, and rounds cut short.
    pub failures: Counter,
}

impl BootstrapDnsMetrics {
    fn register(&self, area: &mut Registry) {
        area.register("requests", "Requests for bootstrap DNS", self.requests.clone());
        area.register("published_hits", "Published names asked for", self.published_hits.clone());
        area.register("published_misses", "Published names without address asked for", self.published_misses.clone());
        area.register("unpublished_hits", "Unpublished names asked for", self.unpublished_hits.clone());
        area.register("unpublished_misses", "Names asked for that are in neither list", self.unpublished_misses.clone());
        area.register(
            "unpublished_percent_misses",
            "Unpublished names asked for by clients they are not rolled out to",
            self.unpublished_percent_misses.clone(),
        );
        area.register("queried_domains", "Different names asked for, up to 500", self.queried_domains.clone());
        area.register("failures", "Names that could not be resolved, and rounds cut short", self.failures.clone());
    }
}

/// Counters of one accept loop.
#[derive(Clone, Debug)]
pub struct AcceptMetrics {
    accepted: Counter,
    failed: Counter,
    shed: Counter,
}

impl AcceptMetrics {
    pub(super) fn accepted(&self) {
        self.accepted.inc();
    }

    pub(super) fn failed(&self) {
        self.failed.inc();
    }

    pub(super) fn shed(&self) {
        self.shed.inc();
    }
}
