//! The fleet's certificate authority: derived from the mesh key, so that every node makes the same one and nothing but the
//! mesh key has to be handed out.

use causeway_proto::key::MeshKey;
use data_encoding::HEXLOWER;
use hkdf::Hkdf;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use sha2::{Digest, Sha256};

use super::pkcs8_of_seed;

/// Changing it makes every fleet a new one.
const HKDF_LABEL: &[u8] = b"causeway fleet certificate authority v1";
/// The common name of a fleet's CA is this and the fingerprint of its key.
const COMMON_NAME_PREFIX: &str = "causeway fleet ";

/// One mesh key's certificate authority.
#[derive(Debug)]
pub struct FleetCa {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    fingerprint: String,
}

impl FleetCa {
    /// Derives the authority of a mesh key; byte-identical on every node.
    ///
    /// # Panics
    /// Never: the derived key always is a valid Ed25519 seed and the parameters are fixed.
    #[must_use]
    pub fn derive(mesh_key: &MeshKey) -> Self {
        let mut seed = zeroize::Zeroizing::new([0; 32]);
        Hkdf::<Sha256>::new(None, mesh_key.expose_bytes())
            .expand(HKDF_LABEL, &mut *seed)
            .expect("32 bytes are within HKDF's limit");
        let pkcs8 = pkcs8_of_seed(&seed);
        let key = KeyPair::from_pkcs8_der_and_sign_algo(&PrivatePkcs8KeyDer::from(pkcs8.as_slice()), &rcgen::PKCS_ED25519)
            .expect("any 32 bytes are an Ed25519 seed");
        let digest = Sha256::digest(key.public_key_raw());
        let fingerprint = HEXLOWER.encode(&digest[..8]);
        let params = Self::params(&fingerprint, &digest);
        let certificate = params.self_signed(&key).expect("the fixed parameters are valid").der().clone();
        Self { issuer: Issuer::new(params, key), certificate, fingerprint }
    }

    fn params(fingerprint: &str, digest: &[u8]) -> CertificateParams {
        let mut params = CertificateParams::default();
        let mut name = DistinguishedName::new();
        name.push(DnType::CommonName, format!("{COMMON_NAME_PREFIX}{fingerprint}"));
        params.distinguished_name = name;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.key_identifier_method = KeyIdMethod::PreSpecified(digest[..20].to_vec());
        params.serial_number = Some(rcgen::SerialNumber::from_slice(&[1]));
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2120, 1, 1);
        params
    }

    /// First 8 bytes of SHA-256 of the authority's public key, in hex: names a mesh key without giving it away.
    #[must_use]
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// The authority's certificate.
    #[must_use]
    pub const fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    pub(super) const fn issuer(&self) -> &Issuer<'static, KeyPair> {
        &self.issuer
    }
}

/// The fingerprint in a fleet CA's common name; `None` if the name is no fleet CA's.
pub(super) fn fingerprint_of_common_name(name: &str) -> Option<&str> {
    let fingerprint = name.strip_prefix(COMMON_NAME_PREFIX)?;
    (fingerprint.len() == 16 && fingerprint.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(fingerprint)
}

/// The mesh keys in force: certificates are minted from `current`, and peers may have theirs from either.
#[derive(Debug)]
pub struct FleetTrust {
    /// Mints this node's certificate.
    pub current: FleetCa,
    /// Trusted as well, while the mesh key is being rotated.
    pub next: Option<FleetCa>,
}

impl FleetTrust {
    /// Derives the authorities of the mesh keys.
    #[must_use]
    pub fn new(current: &MeshKey, next: Option<&MeshKey>) -> Self {
        Self { current: FleetCa::derive(current), next: next.map(FleetCa::derive) }
    }

    /// Both authorities, the minting one first.
    pub fn authorities(&self) -> impl Iterator<Item = &FleetCa> {
        std::iter::once(&self.current).chain(&self.next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_node_derives_the_same_authority_and_another_key_another() {
        let key = MeshKey::generate();
        let (a, b, other) = (FleetCa::derive(&key), FleetCa::derive(&key), FleetCa::derive(&MeshKey::generate()));
        assert_eq!(a.certificate(), b.certificate());
        assert_ne!(a.fingerprint(), other.fingerprint());
        assert!(!a.certificate().windows(32).any(|window| window == key.expose_bytes()));
        let name = format!("{COMMON_NAME_PREFIX}{}", a.fingerprint());
        assert_eq!(fingerprint_of_common_name(&name), Some(a.fingerprint()));
        assert_eq!(fingerprint_of_common_name("causeway fleet \u{1b}[31m"), None);
    }

    #[test]
    fn the_derivation_never_changes() {
        let key: MeshKey = "01".repeat(32).parse().expect("64 hex digits");
        assert_eq!(FleetCa::derive(&key).fingerprint(), "dd5f7eda35074370");
    }
}
