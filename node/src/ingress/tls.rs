//! TLS of the DERP door: a certificate from files, reloaded when they change, from an ACME directory, or self-signed and pinned; the
//! MetaCert last in every chain.
//!
//! `files` reads and writes PEM, `mint` makes what the node signs itself, `acme` asks a directory, `challenges` is what
//! the doors answer that directory with, `expiry` watches the dates.

mod acme;
pub mod challenges;
mod expiry;
mod files;
mod mint;

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use causeway_proto::key::NodePublic;
use parking_lot::Mutex;
use rand::Rng;
use rustls::crypto::{CryptoProvider, ring};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ServerConfig, version};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest, Sha256};

use super::metrics::IngressMetrics;
use crate::config::Tls;
use crate::lifecycle::file_stamp::FileStamp;
use crate::lifecycle::tasks::Tasks;
use acme::{AcmeClient, AcmeError};
use challenges::{ACME_TLS, Challenges};
use expiry::{ExpiryAlarm, Validity, validity};
use files::Files;

/// ALPN name of HTTP/2.
pub const HTTP2: &[u8] = b"h2";

/// How often files and dates are looked at.
const LOOK_PERIOD: Duration = Duration::from_secs(1);

/// A self-signed certificate that is left less than this at start is made anew.
const SELF_SIGNED_LEFT_MIN: Duration = Duration::from_secs(90 * 24 * 3600);

/// An order may take so long.
const ORDER_DEADLINE: Duration = Duration::from_secs(240);

/// After a failed order the next one waits: a minute first, doubled up to an hour, because directories count failures.
const RETRY_FIRST: Duration = Duration::from_secs(60);
const RETRY_MAX: Duration = Duration::from_secs(3600);

/// The certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file cannot be read.
    #[error("{field}: {}: {source}", path.display())]
    Read {
        /// The field that names it.
        field: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file cannot be written.
    #[error("{field}: {}: cannot write: {source}", path.display())]
    Write {
        /// The field that names it or its directory.
        field: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file holds something else.
    #[error("{field}: {}: wanted {wanted}", path.display())]
    Content {
        /// The field that names it.
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
    /// Nobody is trusted to be the ACME directory.
    #[error("tls.acme.ca_file: {0}")]
    Trust(#[from] causeway_client::ConfigError),
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// Chain and key of one certificate, without the MetaCert.
#[derive(Debug)]
struct Pair {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

/// Checks that the key is the leaf's.
fn certified(pair: &Pair) -> Result<CertifiedKey, CertificateError> {
    Ok(CertifiedKey::from_der(pair.chain.clone(), pair.key.clone_key(), &provider())?)
}

/// As [`certified`], of a challenge, which no client shall take: its critical extension is none that rustls knows, so it cannot check it.
fn certified_challenge(pair: &Pair) -> Result<CertifiedKey, CertificateError> {
    Ok(CertifiedKey::new(pair.chain.clone(), provider().key_provider.load_private_key(pair.key.clone_key())?))
}

/// Where the certificate comes from.
#[derive(Debug)]
enum Source {
    Files(Files),
    SelfSigned,
    Acme(Box<AcmeClient>),
}

/// The DERP door's certificate. The chain in use is replaced as a whole.
#[derive(Debug)]
pub struct ServerCertificate {
    current: ArcSwap<CertifiedKey>,
    meta: CertificateDer<'static>,
    source: Source,
    challenges: Arc<Challenges>,
    /// The certificate in use only fills the place of one that an ACME directory has not issued yet.
    placeholder: AtomicBool,
    /// Why the last order failed.
    problem: Mutex<Option<String>>,
}

impl ServerCertificate {
    /// Loads or makes the certificate; `names` are those of a self-signed one.
    ///
    /// # Errors
    /// [`CertificateError`].
    pub fn load(tls: &Tls, names: &[String], server_key: &NodePublic, now: SystemTime) -> Result<Arc<Self>, CertificateError> {
        let meta = mint::meta_cert(server_key, now)?;
        let mut placeholder = false;
        let (pair, source) = match tls {
            Tls::Files { cert, key } => {
                let files = Files::of_operator(cert, key);
                (files.load()?, Source::Files(files))
            }
            Tls::SelfSigned { file } => (kept_self_signed(file, names, now)?, Source::SelfSigned),
            Tls::Acme(settings) => {
                let client = Box::new(AcmeClient::new(settings)?);
                let cached = client.cached();
                placeholder = cached.is_none();
                (cached.map_or_else(|| mint::self_signed(names, now).map(mint::Minted::into_pair), Ok)?, Source::Acme(client))
            }
        };
        Ok(Arc::new(Self {
            current: ArcSwap::from(with_meta_cert(pair, &meta)?),
            meta,
            source,
            challenges: Arc::default(),
            placeholder: AtomicBool::new(placeholder),
            problem: Mutex::new(None),
        }))
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
        // In our order: only clients that take nothing else get HTTP/2, over which there is no DERP.
        config.alpn_protocols = vec![b"http/1.1".to_vec(), HTTP2.to_vec()];
        if matches!(self.source, Source::Acme(_)) {
            // Nobody gets through a handshake with it but for a challenge that is under way: there is no certificate otherwise.
            config.alpn_protocols.push(ACME_TLS.to_vec());
        }
        // Stock clients keep no sessions: tickets would only cost memory and time.
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.max_early_data_size = 0;
        Ok(Arc::new(config))
    }

    /// What the doors answer an ACME directory with.
    #[must_use]
    pub fn challenges(&self) -> Arc<Challenges> {
        Arc::clone(&self.challenges)
    }

    /// The DERP map's `CertName` for a self-signed certificate: clients then take this one and no other (`derp.md` section 12.7).
    #[must_use]
    pub fn pin(&self) -> Option<String> {
        let current = self.current.load();
        let leaf = current.cert.first().filter(|_| matches!(self.source, Source::SelfSigned))?;
        Some(format!("sha256-raw:{}", data_encoding::HEXLOWER.encode(&Sha256::digest(leaf))))
    }

    /// Why clients cannot verify this node now; empty if they can.
    #[must_use]
    pub fn not_ready_because(&self, now: SystemTime) -> Vec<String> {
        let why = self.problem.lock().as_ref().map(|problem| format!(": {problem}")).unwrap_or_default();
        if self.placeholder.load(Ordering::Acquire) {
            return vec![format!("there is no certificate from the ACME directory yet{why}")];
        }
        match self.validity() {
            Some(validity) if now >= validity.not_after => vec![format!("the DERP certificate has expired{why}")],
            Some(_) | None => Vec::new(),
        }
    }

    fn validity(&self) -> Option<Validity> {
        validity(self.current.load().cert.first()?)
    }

    /// Keeps the certificate up to date until `tasks` are cancelled. A new one that cannot be used is reported, and the one in use stays.
    pub async fn keep(self: Arc<Self>, tasks: Tasks, metrics: IngressMetrics, clock: fn() -> SystemTime) {
        let work = async {
            let mut expiry = ExpiryAlarm::default();
            let mut renewal = Renewal::default();
            let mut seen = self.stamp();
            let mut ticks = tokio::time::interval(LOOK_PERIOD);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                if let Some(validity) = self.validity() {
                    expiry.look(&validity, clock(), &metrics);
                }
                match &self.source {
                    Source::Files(files) => {
                        let stamp = files.stamp();
                        if seen.replace(stamp) != Some(stamp) {
                            self.take_up(files, &metrics);
                        }
                    }
                    Source::Acme(client) => self.renew(client, &tasks, &mut renewal, &metrics, clock).await,
                    Source::SelfSigned => {}
                }
            }
        };
        tasks.cancel.run_until_cancelled(work).await;
    }

    fn stamp(&self) -> Option<[FileStamp; 2]> {
        match &self.source {
            Source::Files(files) => Some(files.stamp()),
            Source::SelfSigned | Source::Acme(_) => None,
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

    /// Asks the directory for another certificate if it is time.
    async fn renew(
        &self,
        client: &AcmeClient,
        tasks: &Tasks,
        renewal: &mut Renewal,
        metrics: &IngressMetrics,
        clock: fn() -> SystemTime,
    ) {
        if !renewal.is_due(clock(), || self.renewal_due(client)) {
            return;
        }
        let obtained = tokio::time::timeout(ORDER_DEADLINE, client.obtain(tasks, &self.challenges, clock())).await;
        self.challenges.clear();
        let obtained = obtained.unwrap_or(Err(AcmeError::Timeout(ORDER_DEADLINE)));
        match obtained.and_then(|pair| Ok(with_meta_cert(pair, &self.meta)?)) {
            Ok(pair) => {
                self.current.store(pair);
                self.placeholder.store(false, Ordering::Release);
                *self.problem.lock() = None;
                *renewal = Renewal::default();
                metrics.certificate_renewed("ok");
                tracing::info!(directory = client.directory(), domains = ?client.domains(), "took up a new certificate");
            }
            Err(error) => {
                let wait = renewal.failed(clock());
                *self.problem.lock() = Some(error.to_string());
                metrics.certificate_renewed("failed");
                tracing::warn!(%error, retry_s = wait.as_secs(), "there is no new certificate; the one in use stays");
            }
        }
    }

    /// When the next certificate is asked for: with a third of the lifetime left, or a little earlier, so that nodes of one age do
    /// not ask together. At once if there is none, or one for other domains.
    fn renewal_due(&self, client: &AcmeClient) -> SystemTime {
        let current = self.current.load();
        let names: BTreeSet<&str> = client.domains().iter().map(String::as_str).collect();
        let covered = current.cert.first().is_some_and(|leaf| expiry::names(leaf).iter().map(String::as_str).eq(names));
        match self.validity() {
            Some(Validity { not_before, not_after }) if covered && !self.placeholder.load(Ordering::Acquire) => {
                let lifetime = not_after.duration_since(not_before).unwrap_or_default();
                not_after - lifetime / 3 - lifetime.mul_f64(rand::rng().random_range(0.0..0.03))
            }
            Some(_) | None => SystemTime::UNIX_EPOCH,
        }
    }
}

impl ResolvesServerCert for ServerCertificate {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        if hello.alpn().is_some_and(|mut offered| offered.any(|protocol| protocol == ACME_TLS)) {
            return self.challenges.certificate(&hello.server_name()?.to_ascii_lowercase());
        }
        Some(self.current.load_full())
    }
}

/// When the next order is due.
#[derive(Debug, Default)]
struct Renewal {
    due: Option<SystemTime>,
    failures: u32,
}

impl Renewal {
    fn is_due(&mut self, now: SystemTime, planned: impl FnOnce() -> SystemTime) -> bool {
        now >= *self.due.get_or_insert_with(planned)
    }

    /// Plans the next attempt and tells how far away it is.
    fn failed(&mut self, now: SystemTime) -> Duration {
        let wait = RETRY_FIRST.saturating_mul(1u32.checked_shl(self.failures).unwrap_or(u32::MAX)).min(RETRY_MAX);
        let wait = wait.mul_f64(rand::rng().random_range(0.75..1.25));
        self.failures = self.failures.saturating_add(1);
        self.due = Some(now + wait);
        wait
    }
}

fn with_meta_cert(mut pair: Pair, meta: &CertificateDer<'static>) -> Result<Arc<CertifiedKey>, CertificateError> {
    // The check of the key against the leaf must see a chain as clients do, so the MetaCert goes in before it.
    pair.chain.push(meta.clone());
    Ok(Arc::new(certified(&pair)?))
}

/// The self-signed certificate in `file`, made if there is none for these names that lasts.
fn kept_self_signed(file: &Path, names: &[String], now: SystemTime) -> Result<Pair, CertificateError> {
    const FIELD: &str = "tls.self_signed";
    let files = Files::of_ours(FIELD, file.to_owned());
    if file.exists() {
        let pair = files.load()?;
        let canonical = |name: &String| name.parse::<IpAddr>().map_or_else(|_| name.clone(), |address| address.to_string());
        let wanted: BTreeSet<String> = names.iter().map(canonical).collect();
        let kept = pair.chain.first().map(|leaf| (expiry::names(leaf), validity(leaf)));
        match kept {
            Some((names, Some(validity))) if names == wanted && validity.not_after > now + SELF_SIGNED_LEFT_MIN => {
                return Ok(pair);
            }
            Some(_) | None => {
                tracing::warn!(file = %file.display(), "the self-signed certificate is replaced, and so is its pin")
            }
        }
    }
    let minted = mint::self_signed(names, now)?;
    files::write_private(FIELD, file, &minted.to_pem())?;
    Ok(minted.into_pair())
}

#[cfg(test)]
mod tests;
