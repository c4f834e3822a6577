//! This node's mesh certificate: minted in memory from the fleet's authority, for the node's own key.

use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, SanType};
use rustls_pki_types::CertificateDer;

use super::{FleetCa, NodeKey};

/// Validity before the time of minting: a peer's clock may be behind.
const BACKDATED: Duration = Duration::from_secs(48 * 3600);
/// Validity after the time of minting.
const VALID_FOR: Duration = Duration::from_secs(7 * 24 * 3600);
/// A certificate older than this is minted anew at the next connection.
const RENEW_AFTER: Duration = Duration::from_secs(24 * 3600);
/// The one name in TLS between nodes: who the peer is follows from its key, so the name carries nothing.
pub(super) const MESH_SERVER_NAME: &str = "node.causeway.internal";

/// A minted certificate and when.
#[derive(Debug, Clone)]
pub(super) struct MintedCertificate {
    pub(super) der: CertificateDer<'static>,
    minted_at: SystemTime,
}

impl MintedCertificate {
    /// Mints the certificate of `key`, valid from 48 h before `now` to 7 d after.
    pub(super) fn mint(ca: &FleetCa, key: &NodeKey, now: SystemTime) -> Self {
        let mut params = CertificateParams::default();
        let mut name = DistinguishedName::new();
        name.push(DnType::CommonName, format!("causeway node {}", key.node_id()));
        params.distinguished_name = name;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let uri = format!("causeway://node/{}", key.node_id());
        params.subject_alt_names = vec![
            SanType::DnsName(MESH_SERVER_NAME.try_into().expect("the constant is ASCII")),
            SanType::URI(uri.as_str().try_into().expect("hex digits are ASCII")),
        ];
        params.not_before = (now - BACKDATED).into();
        params.not_after = (now + VALID_FOR).into();
        let certificate = params.signed_by(key.key_pair(), ca.issuer()).expect("the fixed parameters are valid");
        Self { der: certificate.der().clone(), minted_at: now }
    }

    /// Whether it is time for a new one; also if the clock went back before the minting.
    pub(super) fn is_stale(&self, now: SystemTime) -> bool {
        now.duration_since(self.minted_at).map_or(true, |age| age > RENEW_AFTER)
    }
}
