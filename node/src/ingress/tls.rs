//! TLS of the DERP door: a certificate from files, reloaded when they change, or self-signed; the MetaCert last in every chain.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use causeway_proto::derp::{PROTOCOL_VERSION, meta_cert};
use causeway_proto::key::NodePublic;
use rcgen::{
    CertificateParams, CustomExtension, DistinguishedName, DnType, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519, SanType,
    SerialNumber,
};
use rustls::crypto::{CryptoProvider, ring};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ServerConfig, version};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_util::sync::CancellationToken;

use super::metrics::IngressMetrics;
use crate::config::Tls;

/// How often the files are looked at.
const RELOAD_PERIOD: Duration = Duration::from_secs(1);

/// The MetaCert is valid this long before and after the start of the process; clients do not look.
const META_CERT_VALIDITY: Duration = Duration::from_secs(30 * 24 * 3600);

/// A certificate for development is valid this long.
const SELF_SIGNED_VALIDITY: Duration = Duration::from_secs(365 * 24 * 3600);

/// Most certificates in a chain, and largest file worth reading.
const CHAIN_LEN_MAX: usize = 16;
const FILE_LEN_MAX: u64 = 1024 * 1024;

/// The last days in which expiry is an alarm.
const EXPIRY_ALARM_DAYS: [i64; 3] = [21, 7, 2];

/// The certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file cannot be read.
    #[error("{field}: {}: {source}", path.display())]
    Read {
        /// `tls.cert_file` or `tls.key_file`.
        field: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file holds something else.
    #[error("{field}: {}: wanted {wanted}", path.display())]
    Content {
        /// `tls.cert_file` or `tls.key_file`.
        field: &'static str,
        /// The file.
        path: PathBuf,
        /// What would be right.
        wanted: &'static str,
    },
    /// Certificate and key do not belong together, or are of a kind that is not supported.
    #[error("tls.cert_file and tls.key_file: {0}: wanted a certificate and its own private key (PKCS#8, SEC1 or PKCS#1)")]
    Pair(#[from] rustls::Error),
    /// A certificate could not be made.
    #[error("cannot make a certificate: {0}")]
    Make(#[from] rcgen::Error),
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// The DERP door's certificate. The chain in use is replaced as a whole.
#[derive(Debug)]
pub struct ServerCertificate {
    current: ArcSwap<CertifiedKey>,
    meta: CertificateDer<'static>,
    files: Option<Files>,
}

impl ServerCertificate {
    /// Loads or makes the certificate; `names` are those of a self-signed one.
    ///
    /// # Errors
    /// [`CertificateError`].
    pub fn load(tls: &Tls, names: &[String], server_key: &NodePublic, now: SystemTime) -> Result<Arc<Self>, CertificateError> {
        let meta = make_meta_cert(server_key, now)?;
        let (pair, files) = match tls {
            Tls::Files { cert, key } => {
                let files = Files { cert: cert.clone(), key: key.clone() };
                (files.load()?, Some(files))
            }
            Tls::SelfSigned => (make_self_signed(names, now)?, None),
        };
        let current = ArcSwap::from(with_meta_cert(pair, &meta)?);
        Ok(Arc::new(Self { current, meta, files }))
    }

    /// The TLS configuration of the DERP door.
    ///
    /// # Errors
    /// The provider lacks a protocol version, which it does not.
    pub fn server_config(self: &Arc<Self>) -> Result<Arc<ServerConfig>, rustls::Error> {
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&version::TLS13, &version::TLS12])?
            .with_no_client_auth()
            .with_cert_resolver(Arc::<Self>::clone(self));
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        // Stock clients keep no sessions: tickets would only cost memory and time.
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.max_early_data_size = 0;
        Ok(Arc::new(config))
    }

    /// Watches the files until cancelled. A changed pair that cannot be used is reported, and the one in use stays.
    pub async fn reload(self: Arc<Self>, cancel: CancellationToken, metrics: IngressMetrics, clock: fn() -> SystemTime) {
        let mut expiry = ExpiryAlarm::default();
        expiry.look(&self.current.load(), clock(), &metrics);
        let mut seen = self.files.as_ref().map(Files::stamp);
        let mut ticks = tokio::time::interval(RELOAD_PERIOD);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = cancel.cancelled() => return,
                _ = ticks.tick() => {}
            }
            if let Some(files) = &self.files {
                let stamp = Some(files.stamp());
                if stamp != seen {
                    seen = stamp;
                    self.take_up(files, &metrics);
                }
            }
            expiry.look(&self.current.load(), clock(), &metrics);
        }
    }

    fn take_up(&self, files: &Files, metrics: &IngressMetrics) {
        match files.load().and_then(|pair| with_meta_cert(pair, &self.meta)) {
            Ok(pair) => {
                self.current.store(pair);
                metrics.certificate_reloaded("ok");
                tracing::info!(file = %files.cert.display(), "took up the changed certificate");
            }
            Err(error) => {
                // One of the two may not have been written yet; the next change is looked at again.
                metrics.certificate_reloaded("refused");
                tracing::warn!(%error, "the changed certificate cannot be used; the one in use stays");
            }
        }
    }
}

impl ResolvesServerCert for ServerCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }
}

/// Says once per threshold that the certificate expires.
#[derive(Debug, Default)]
struct ExpiryAlarm {
    said_days: Option<i64>,
    not_after: i64,
}

impl ExpiryAlarm {
    fn look(&mut self, pair: &CertifiedKey, now: SystemTime, metrics: &IngressMetrics) {
        let Some(not_after) = pair.cert.first().and_then(|leaf| not_after(leaf)) else { return };
        metrics.certificate_expires(not_after);
        if self.not_after != not_after {
            *self = Self { said_days: None, not_after };
        }
        let now =
            now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX));
        let left_days = (not_after - now).div_euclid(24 * 3600);
        let threshold = EXPIRY_ALARM_DAYS.into_iter().filter(|days| left_days < *days).min();
        if threshold.is_some() && threshold != self.said_days {
            self.said_days = threshold;
            tracing::warn!(left_days, "the DERP certificate expires soon: put a new one into tls.cert_file and tls.key_file");
        }
    }
}

/// Seconds since the Unix epoch.
fn not_after(leaf: &CertificateDer<'_>) -> Option<i64> {
    let (_, leaf) = x509_parser::parse_x509_certificate(leaf).ok()?;
    Some(leaf.validity().not_after.timestamp())
}

/// Chain and key of one certificate, without the MetaCert.
struct Pair {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

fn with_meta_cert(pair: Pair, meta: &CertificateDer<'static>) -> Result<Arc<CertifiedKey>, CertificateError> {
    // The check of the key against the leaf must see a chain as clients do, so the MetaCert goes in before it.
    let mut chain = pair.chain;
    chain.push(meta.clone());
    Ok(Arc::new(CertifiedKey::from_der(chain, pair.key, &provider())?))
}

#[derive(Debug, Clone)]
struct Files {
    cert: PathBuf,
    key: PathBuf,
}

/// What tells one version of the files from another.
type Stamp = [Option<(SystemTime, u64, u64)>; 2];

impl Files {
    fn stamp(&self) -> Stamp {
        use std::os::unix::fs::MetadataExt;
        [&self.cert, &self.key].map(|path| {
            let metadata = std::fs::metadata(path).ok()?;
            Some((metadata.modified().ok()?, metadata.len(), metadata.ino()))
        })
    }

    fn load(&self) -> Result<Pair, CertificateError> {
        let (field, path) = ("tls.cert_file", &self.cert);
        let content = |wanted| CertificateError::Content { field, path: path.clone(), wanted };
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(field, path)?).take(CHAIN_LEN_MAX + 1).collect();
        let chain = chain.map_err(|_| content("certificates as PEM"))?;
        if chain.is_empty() {
            return Err(content("at least one certificate as PEM, the leaf first"));
        }
        if chain.len() > CHAIN_LEN_MAX {
            return Err(content("at most 16 certificates"));
        }
        let (field, path) = ("tls.key_file", &self.key);
        let key = PrivateKeyDer::from_pem_slice(&read(field, path)?).map_err(|_| CertificateError::Content {
            field,
            path: path.clone(),
            wanted: "a private key as PEM, not encrypted",
        })?;
        Ok(Pair { chain, key })
    }
}

fn read(field: &'static str, path: &Path) -> Result<Vec<u8>, CertificateError> {
    let failed = |source| CertificateError::Read { field, path: path.to_owned(), source };
    if std::fs::metadata(path).map_err(failed)?.len() > FILE_LEN_MAX {
        return Err(CertificateError::Content { field, path: path.to_owned(), wanted: "at most 1 MiB of PEM" });
    }
    std::fs::read(path).map_err(failed)
}

/// A certificate that tells the server's key: subject and issuer name it, the serial is the protocol version, BasicConstraints is
/// the only extension (`derp.md` section 4.3).
fn make_meta_cert(server_key: &NodePublic, now: SystemTime) -> Result<CertificateDer<'static>, rcgen::Error> {
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

fn make_self_signed(names: &[String], now: SystemTime) -> Result<Pair, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = common_name(names.first().map_or("causeway", String::as_str));
    for name in names {
        params.subject_alt_names.push(match name.parse::<IpAddr>() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => SanType::DnsName(name.as_str().try_into()?),
        });
    }
    params.not_before = (now - Duration::from_secs(3600)).into();
    params.not_after = (now + SELF_SIGNED_VALIDITY).into();
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let certificate = params.self_signed(&key)?;
    Ok(Pair { chain: vec![certificate.into()], key: PrivatePkcs8KeyDer::from(key.serialize_der()).into() })
}

fn common_name(text: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, text);
    name
}

#[cfg(test)]
mod tests;
