//! Who is trusted on a TLS connection, and what the server's certificates say about its DERP key (`derp.md` sections 4.3, 12.7, 15.1).

use std::fmt;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use causeway_proto::derp::meta_cert::{self, MetaCert};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme};
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::error::ConfigError;

/// What a `CertName` that pins a certificate starts with.
pub(crate) const PIN_PREFIX: &str = "sha256-raw:";

/// Whom to trust on TLS connections. Building one reads files; it is then shared by cloning, also between many clients.
#[derive(Clone)]
pub struct Trust {
    provider: Arc<CryptoProvider>,
    anchor: Anchor,
    /// For servers that neither pin nor rename their certificate: nearly all.
    config: Arc<ClientConfig>,
}

#[derive(Clone)]
enum Anchor {
    Roots(Arc<WebPkiServerVerifier>),
    Nobody,
}

impl Trust {
    /// Trusts the system's root certificates, which are read once per process.
    ///
    /// # Errors
    /// [`ConfigError::NoSystemRoots`] if there are none.
    pub fn system() -> Result<Self, ConfigError> {
        static SYSTEM: OnceLock<Trust> = OnceLock::new();
        if let Some(trust) = SYSTEM.get() {
            return Ok(trust.clone());
        }
        let trust = Self::read_system()?;
        Ok(SYSTEM.get_or_init(|| trust).clone())
    }

    fn read_system() -> Result<Self, ConfigError> {
        let found = rustls_native_certs::load_native_certs();
        let mut roots = RootCertStore::empty();
        let (added, _) = roots.add_parsable_certificates(found.certs);
        if added == 0 {
            let why: Vec<String> = found.errors.iter().map(ToString::to_string).collect();
            return Err(ConfigError::NoSystemRoots(why.join("; ")));
        }
        Self::roots(roots)
    }

    /// Trusts the certificates of a PEM file, and nothing else: not the system's roots.
    ///
    /// # Errors
    /// [`ConfigError::CaFileRead`], [`ConfigError::CaFileContent`].
    pub fn ca_file(path: impl AsRef<Path>) -> Result<Self, ConfigError> {
        let path = path.as_ref();
        let pem = std::fs::read(path).map_err(|source| ConfigError::CaFileRead { path: path.to_owned(), source })?;
        let content = |why: String| ConfigError::CaFileContent { path: path.to_owned(), why };
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            let certificate = certificate.map_err(|e| content(e.to_string()))?;
            roots.add(certificate).map_err(|e| content(e.to_string()))?;
        }
        if roots.is_empty() {
            return Err(content("it holds no certificate".to_owned()));
        }
        Self::roots(roots)
    }

    /// Trusts these roots, and nothing else.
    ///
    /// # Errors
    /// [`ConfigError::Tls`] if the library refuses them, e.g. because there are none.
    pub fn roots(roots: RootCertStore) -> Result<Self, ConfigError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()
            .map_err(|e| ConfigError::Tls(Error::General(e.to_string())))?;
        Self::new(provider, Anchor::Roots(verifier))
    }

    /// Trusts whoever answers: for tests and development on loopback only. A pinned certificate is still checked.
    ///
    /// # Errors
    /// [`ConfigError::Tls`] if the library refuses the settings.
    pub fn insecure_for_tests() -> Result<Self, ConfigError> {
        Self::new(Arc::new(rustls::crypto::ring::default_provider()), Anchor::Nobody)
    }

    fn new(provider: Arc<CryptoProvider>, anchor: Anchor) -> Result<Self, ConfigError> {
        let rule = match &anchor {
            Anchor::Roots(verifier) => Rule::Roots { verifier: Arc::clone(verifier), name: None },
            Anchor::Nobody => Rule::Anybody,
        };
        let config = client_config(&provider, rule)?;
        Ok(Self { provider, anchor, config })
    }

    /// The configuration for a server of any kind that is verified by the name it is dialled by.
    #[must_use]
    pub fn client_config(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.config)
    }

    /// The configuration for one server: `cert_name` is the map's `CertName` (empty: none), `node` names it in errors.
    pub(crate) fn config_for(&self, node: &str, cert_name: &str, insecure: bool) -> Result<Arc<ClientConfig>, ConfigError> {
        let rule = if let Some(hex) = cert_name.strip_prefix(PIN_PREFIX) {
            Rule::Pinned(parse_pin(hex).ok_or_else(|| ConfigError::Pin { node: node.to_owned() })?)
        } else if insecure {
            Rule::Anybody
        } else {
            match &self.anchor {
                Anchor::Roots(verifier) if !cert_name.is_empty() => {
                    Rule::Roots { verifier: Arc::clone(verifier), name: Some(server_name(cert_name)?) }
                }
                Anchor::Roots(_) | Anchor::Nobody => return Ok(Arc::clone(&self.config)),
            }
        };
        client_config(&self.provider, rule)
    }
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.anchor {
            Anchor::Roots(_) => "Trust(roots)",
            Anchor::Nobody => "Trust(anybody: insecure)",
        })
    }
}

fn client_config(provider: &Arc<CryptoProvider>, rule: Rule) -> Result<Arc<ClientConfig>, ConfigError> {
    let verifier = Verifier { rule, algorithms: provider.signature_verification_algorithms };
    let mut config = ClientConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    // A DERP connection lives long and its server sends no tickets: a session cache would only cost memory.
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// Parses a DNS name or an IP address, with or without brackets.
pub(crate) fn server_name(text: &str) -> Result<ServerName<'static>, ConfigError> {
    let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text);
    ServerName::try_from(bare.to_owned()).map_err(|_| ConfigError::ServerName(text.to_owned()))
}

fn parse_pin(hex: &str) -> Option<[u8; 32]> {
    let mut hash = [0; 32];
    if hex.len() != 64 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, digits) in hash.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(hash)
}

/// The server's key, if one of its certificates is a usable MetaCert. Its validity is never checked.
pub(crate) fn find_meta_cert(certificates: &[CertificateDer<'_>]) -> Option<MetaCert> {
    certificates.iter().find_map(|der| {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        MetaCert::parse(common_name(&certificate)?, certificate.raw_serial())
    })
}

fn common_name<'a>(certificate: &'a X509Certificate<'_>) -> Option<&'a str> {
    certificate.subject().iter_common_name().next()?.as_str().ok()
}

fn is_meta_cert(der: &CertificateDer<'_>) -> bool {
    X509Certificate::from_der(der).is_ok_and(|(_, c)| common_name(&c).is_some_and(meta_cert::is_meta_cert))
}

/// Decides whether to take a server's certificate. Whatever the rule, the server must hold the key of the certificate it shows.
#[derive(Debug)]
struct Verifier {
    rule: Rule,
    algorithms: WebPkiSupportedAlgorithms,
}

#[derive(Debug)]
enum Rule {
    /// Takes any.
    Anybody,
    /// Signed below a root, for `name` instead of the name dialled if there is one.
    Roots { verifier: Arc<WebPkiServerVerifier>, name: Option<ServerName<'static>> },
    /// Of this hash: MetaCert aside it must be the only one, be valid now, and carry the name dialled.
    Pinned([u8; 32]),
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match &self.rule {
            Rule::Anybody => Ok(ServerCertVerified::assertion()),
            Rule::Roots { verifier, name } => {
                let name = name.as_ref().unwrap_or(server_name);
                verifier.verify_server_cert(end_entity, intermediates, name, ocsp_response, now)
            }
            Rule::Pinned(hash) => verify_pinned(hash, end_entity, intermediates, server_name, now),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

fn verify_pinned(
    hash: &[u8; 32],
    end_entity: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    server_name: &ServerName<'_>,
    now: UnixTime,
) -> Result<ServerCertVerified, Error> {
    if !intermediates.iter().all(is_meta_cert) {
        return Err(refuse("the server shows several certificates where one is pinned"));
    }
    if <[u8; 32]>::from(Sha256::digest(end_entity)) != *hash {
        return Err(refuse("the server's certificate is not the pinned one"));
    }
    let (_, parsed) = X509Certificate::from_der(end_entity).map_err(|_| CertificateError::BadEncoding)?;
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    if now < parsed.validity().not_before.timestamp() {
        return Err(CertificateError::NotValidYet.into());
    }
    if now > parsed.validity().not_after.timestamp() {
        return Err(CertificateError::Expired.into());
    }
    verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
    Ok(ServerCertVerified::assertion())
}

fn refuse(why: &'static str) -> Error {
    CertificateError::Other(OtherError(Arc::new(std::io::Error::other(why)))).into()
}
