//! Certificate authorities this program makes: the operators' CA, and the TLS CA of a fleet on one machine.
//!
//! Not the fleet CA: that one is derived from the mesh key, inside the nodes.

use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, bail};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use time::{Duration, OffsetDateTime};

use crate::cli::Role;

/// How far back certificates are valid, for machines whose clock is behind.
const BACKDATED: Duration = Duration::hours(48);

/// A certificate and its private key, as PEM.
pub struct Issued {
    /// The certificate.
    pub certificate_pem: String,
    /// Its private key, PKCS#8. Secret.
    pub key_pem: String,
}

impl std::fmt::Debug for Issued {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Issued").field("certificate_pem", &self.certificate_pem).finish_non_exhaustive()
    }
}

/// A CA that can issue.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Authority(redacted)")
    }
}

impl Authority {
    /// Makes a CA with a fresh ECDSA P-256 key.
    ///
    /// # Errors
    /// If the certificate cannot be made.
    pub fn new(common_name: &str, days: u32) -> anyhow::Result<(Self, Issued)> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = valid_for(CertificateParams::default(), days);
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key)?;
        let issued = issued(&certificate, &key);
        Ok((Self { issuer: Issuer::new(params, key) }, issued))
    }

    /// Reads a CA back from its two files.
    ///
    /// # Errors
    /// Naming the file that is missing or no PEM of the right kind.
    pub fn load(certificate: &Path, key: &Path) -> anyhow::Result<Self> {
        let der = read_certificate(certificate)?;
        let key_der = PrivateKeyDer::from_pem_file(key)
            .map_err(|error| anyhow::anyhow!("{}: no PEM private key: {error}", key.display()))?;
        let key_pair = KeyPair::try_from(&key_der).with_context(|| format!("{}: unusable private key", key.display()))?;
        let issuer =
            Issuer::from_ca_cert_der(&der, key_pair).with_context(|| format!("{}: no CA certificate", certificate.display()))?;
        Ok(Self { issuer })
    }

    /// Issues a certificate for an operator: common name `name`, Organization the role, for TLS clients only.
    ///
    /// # Errors
    /// If the certificate cannot be made.
    pub fn issue_operator(&self, name: &str, role: Role, days: u32) -> anyhow::Result<Issued> {
        let mut params = valid_for(CertificateParams::default(), days);
        params.distinguished_name.push(DnType::CommonName, name);
        params.distinguished_name.push(DnType::OrganizationName, role.organization());
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(params)
    }

    /// Issues a certificate for a TLS server with these DNS names and addresses.
    ///
    /// # Errors
    /// If a name is no DNS name or the certificate cannot be made.
    pub fn issue_server(&self, names: &[&str], addresses: &[IpAddr], days: u32) -> anyhow::Result<Issued> {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let common_name = names.first().cloned().unwrap_or_default();
        let mut params = valid_for(CertificateParams::new(names)?, days);
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.subject_alt_names.extend(addresses.iter().map(|&address| SanType::IpAddress(address)));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.issue(params)
    }

    fn issue(&self, mut params: CertificateParams) -> anyhow::Result<Issued> {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(issued(&certificate, &key))
    }
}

fn valid_for(mut params: CertificateParams, days: u32) -> CertificateParams {
    let now = OffsetDateTime::now_utc();
    params.not_before = now - BACKDATED;
    params.not_after = now + Duration::days(i64::from(days));
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
}

fn issued(certificate: &rcgen::Certificate, key: &KeyPair) -> Issued {
    Issued { certificate_pem: certificate.pem(), key_pem: key.serialize_pem() }
}

/// PEM text of a DER certificate.
#[must_use]
pub fn certificate_pem(der: &[u8]) -> String {
    let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    pem::encode_config(&pem::Pem::new("CERTIFICATE", der), config)
}

/// Reads the first certificate of a PEM file.
///
/// # Errors
/// Naming the file.
pub fn read_certificate(file: &Path) -> anyhow::Result<CertificateDer<'static>> {
    CertificateDer::from_pem_file(file).map_err(|error| anyhow::anyhow!("{}: no PEM certificate: {error}", file.display()))
}

/// Writes a new file that only its owner may read.
///
/// # Errors
/// Naming the file; also if it exists, since overwriting a key loses it.
pub fn write_secret(file: &Path, text: &str) -> anyhow::Result<()> {
    write_new(file, text, 0o600)
}

/// Writes a new file that everybody may read.
///
/// # Errors
/// Naming the file; also if it exists.
pub fn write_public(file: &Path, text: &str) -> anyhow::Result<()> {
    write_new(file, text, 0o644)
}

fn write_new(file: &Path, text: &str, mode: u32) -> anyhow::Result<()> {
    let opened = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(file);
    let mut opened = match opened {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            bail!("{}: exists already and is not overwritten; remove it first if it is not needed", file.display())
        }
        other => other.with_context(|| format!("{}: cannot be created", file.display()))?,
    };
    opened
        .write_all(text.as_bytes())
        .and_then(|()| opened.sync_all())
        .with_context(|| format!("{}: cannot be written", file.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::sync::Arc;

    use rustls::client::danger::ServerCertVerifier;
    use rustls::{RootCertStore, client::WebPkiServerVerifier, server::WebPkiClientVerifier};
    use rustls_pki_types::{ServerName, UnixTime};

    use super::*;

    fn roots(issued: &Issued) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(issued.certificate_pem.as_bytes()).expect("pem")).expect("a root");
        Arc::new(roots)
    }

    fn der(issued: &Issued) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(issued.certificate_pem.as_bytes()).expect("pem")
    }

    #[test]
    fn operator_certificates_pass_a_client_verifier_and_no_server_verifier() {
        let (authority, ca) = Authority::new("test operators", 10).expect("ca");
        let operator = authority.issue_operator("alice", Role::Viewer, 5).expect("certificate");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let clients = WebPkiClientVerifier::builder_with_provider(roots(&ca), Arc::clone(&provider)).build().expect("verifier");
        clients.verify_client_cert(&der(&operator), &[], UnixTime::now()).expect("accepted");
        let (_, other) = Authority::new("test operators", 10).expect("ca");
        let strangers =
            WebPkiClientVerifier::builder_with_provider(roots(&other), Arc::clone(&provider)).build().expect("verifier");
        strangers.verify_client_cert(&der(&operator), &[], UnixTime::now()).expect_err("another CA");
        let servers = WebPkiServerVerifier::builder_with_provider(roots(&ca), provider).build().expect("verifier");
        let name = ServerName::try_from("alice").expect("name");
        servers.verify_server_cert(&der(&operator), &[], &name, &[], UnixTime::now()).expect_err("no server certificate");

        let (_, parsed) = x509_parser::parse_x509_certificate(&der(&operator))
            .map(|(rest, cert)| (rest.len(), cert.subject().to_string()))
            .expect("x509");
        assert_eq!(parsed, "CN=alice, O=viewer");
    }

    #[test]
    fn server_certificates_hold_for_their_names_and_addresses_only() {
        let (authority, ca) = Authority::new("test", 10).expect("ca");
        let server =
            authority.issue_server(&["a-1.causeway.test", "localhost"], &[[127, 0, 0, 1].into()], 5).expect("certificate");
        let verifier =
            WebPkiServerVerifier::builder_with_provider(roots(&ca), Arc::new(rustls::crypto::ring::default_provider()))
                .build()
                .expect("verifier");
        for (name, good) in
            [("a-1.causeway.test", true), ("localhost", true), ("127.0.0.1", true), ("b.test", false), ("127.0.0.2", false)]
        {
            let name = ServerName::try_from(name).expect("name");
            assert_eq!(verifier.verify_server_cert(&der(&server), &[], &name, &[], UnixTime::now()).is_ok(), good, "{name:?}");
        }
    }

    #[test]
    fn an_authority_read_back_issues_under_the_same_root() {
        let dir = tempfile::tempdir().expect("dir");
        let (cert, key) = (dir.path().join("ca.pem"), dir.path().join("ca-key.pem"));
        let (_, ca) = Authority::new("test", 10).expect("ca");
        write_public(&cert, &ca.certificate_pem).expect("written");
        write_secret(&key, &ca.key_pem).expect("written");
        assert_eq!(fs::metadata(&key).expect("key").permissions().mode() & 0o777, 0o600);
        let again = Authority::load(&cert, &key).expect("loaded").issue_operator("bob", Role::Operator, 5).expect("certificate");
        WebPkiClientVerifier::builder_with_provider(roots(&ca), Arc::new(rustls::crypto::ring::default_provider()))
            .build()
            .expect("verifier")
            .verify_client_cert(&der(&again), &[], UnixTime::now())
            .expect("accepted");
        let refused = write_secret(&key, "other").expect_err("not overwritten").to_string();
        assert!(refused.contains("ca-key.pem") && refused.contains("exists"), "{refused}");
        let refused = Authority::load(&dir.path().join("none.pem"), &key).expect_err("missing").to_string();
        assert!(refused.contains("none.pem"), "{refused}");
    }
}
