//! What an ACME directory will ask for while it checks that this node answers for a domain.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::RwLock;
use rustls::sign::CertifiedKey;

/// The protocol of a TLS-ALPN-01 challenge (RFC 8737).
pub const ACME_TLS: &[u8] = b"acme-tls/1";

/// Where the answers to HTTP-01 challenges stand (RFC 8555 section 8.3).
pub const CHALLENGE_PATH: &str = "/.well-known/acme-challenge/";

/// The challenges of the order under way: at most one per domain.
#[derive(Debug, Default)]
pub struct Challenges {
    /// HTTP-01: token to key authorization.
    tokens: RwLock<BTreeMap<String, String>>,
    /// TLS-ALPN-01: domain to certificate.
    certificates: RwLock<BTreeMap<String, Arc<CertifiedKey>>>,
}

impl Challenges {
    /// The answer to an HTTP-01 challenge.
    #[must_use]
    pub fn answer(&self, token: &str) -> Option<String> {
        self.tokens.read().get(token).cloned()
    }

    /// The answer to a TLS-ALPN-01 challenge; `server_name` as rustls gives it, in lower case.
    pub(super) fn certificate(&self, server_name: &str) -> Option<Arc<CertifiedKey>> {
        self.certificates.read().get(server_name).cloned()
    }

    pub(super) fn expect_token(&self, token: String, answer: String) {
        self.tokens.write().insert(token, answer);
    }

    pub(super) fn expect_handshake(&self, domain: &str, certificate: Arc<CertifiedKey>) {
        self.certificates.write().insert(domain.to_ascii_lowercase(), certificate);
    }

    /// The order has ended, one way or the other.
    pub(super) fn clear(&self) {
        self.tokens.write().clear();
        self.certificates.write().clear();
    }
}
