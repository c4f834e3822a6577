//! Certificates that the node makes itself: the MetaCert, a self-signed one, and the answer to a TLS-ALPN-01 challenge.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use causeway_proto::derp::{PROTOCOL_VERSION, meta_cert};
use causeway_proto::key::NodePublic;
use rcgen::{
    CertificateParams, CustomExtension, DistinguishedName, DnType, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519, SanType,
    SerialNumber,
};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};

use super::Pair;

/// The MetaCert is valid this long before and after the start of the process; clients do not look.
const META_CERT_VALIDITY: Duration = Duration::from_secs(30 * 24 * 3600);

/// A self-signed certificate is pinned, and each new one means a new pin in every client's map: it lasts.
pub(super) const SELF_SIGNED_VALIDITY: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// The answer to a challenge is asked for at once.
const CHALLENGE_VALIDITY: Duration = Duration::from_secs(24 * 3600);

/// Certificates are valid from this long ago, for clocks that are behind.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(3600);

/// A certificate without issuer, and its key.
pub(super) struct Minted {
    pub(super) certificate: rcgen::Certificate,
    pub(super) key: KeyPair,
}

impl Minted {
    /// Key and certificate in one text.
    pub(super) fn to_pem(&self) -> String {
        self.key.serialize_pem() + &self.certificate.pem()
    }

    pub(super) fn into_pair(self) -> Pair {
        Pair { chain: vec![self.certificate.into()], key: PrivatePkcs8KeyDer::from(self.key.serialize_der()).into() }
    }
}

/// A certificate that tells the server's key: subject and issuer name it, the serial is the protocol version, BasicConstraints is
/// the only extension (`derp.md` section 4.3).
pub(super) fn meta_cert(server_key: &NodePublic, now: SystemTime) -> Result<CertificateDer<'static>, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = common_name(&meta_cert::common_name(server_key));
    params.serial_number = Some(SerialNumber::from(u64::from(PROTOCOL_VERSION)));
    params.not_before = (now - META_CERT_VALIDITY).into();
    params.not_after = (now + META_CERT_VALIDITY).into();
    // Not `IsCa::ExplicitNoCa`: that adds a subject key identifier, at which stock probers take it for a certificate to watch.
    let mut not_a_ca = CustomExtension::from_oid_content(&[2, 5, 29, 19], vec![0x30, 0x00]);
    not_a_ca.set_criticality(true);
    params.custom_extensions = vec![not_a_ca];
    Ok(params.self_signed(&KeyPair::generate_for(&PKCS_ED25519)?)?.into())
}

/// A certificate for `names`, addresses among them.
pub(super) fn self_signed(names: &[String], now: SystemTime) -> Result<Minted, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = common_name(names.first().map_or("causeway", String::as_str));
    params.subject_alt_names = subject_names(names)?;
    params.not_before = (now - CLOCK_TOLERANCE).into();
    params.not_after = (now + SELF_SIGNED_VALIDITY).into();
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    sign(params)
}

/// What a server shows to prove that it answers for `domain` (RFC 8737 section 3).
pub(super) fn challenge(domain: &str, digest: &[u8; 32], now: SystemTime) -> Result<Minted, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = common_name(domain);
    params.subject_alt_names = subject_names(&[domain.to_owned()])?;
    params.not_before = (now - CLOCK_TOLERANCE).into();
    params.not_after = (now + CHALLENGE_VALIDITY).into();
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
    sign(params)
}

/// A fresh key and the request for its certificate.
pub(super) fn request(names: &[String]) -> Result<(KeyPair, Vec<u8>), rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = subject_names(names)?;
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let request = params.serialize_request(&key)?.der().to_vec();
    Ok((key, request))
}

fn sign(params: CertificateParams) -> Result<Minted, rcgen::Error> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    Ok(Minted { certificate: params.self_signed(&key)?, key })
}

fn subject_names(names: &[String]) -> Result<Vec<SanType>, rcgen::Error> {
    let of = |name: &String| match name.parse::<IpAddr>() {
        Ok(address) => Ok(SanType::IpAddress(address)),
        Err(_) => Ok(SanType::DnsName(name.as_str().try_into()?)),
    };
    names.iter().map(of).collect()
}

fn common_name(text: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, text);
    name
}
