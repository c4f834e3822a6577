//! Certificates from an ACME directory (RFC 8555): the account, one order, and what is kept on disk of both.
//!
//! ```text
//! CACHE_DIR/DIRECTORY/account.json      the account's key and address; mode 0600
//! CACHE_DIR/DIRECTORY/certificate.pem   key and chain in use; mode 0600
//! ```

mod error;
mod https;
mod nonce;

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use causeway_client::Trust;
use instant_acme::{
    Account, AccountBuilder, AuthorizationHandle, AuthorizationStatus, ChallengeType, ExternalAccountKey, Identifier, NewAccount,
    NewOrder, Order, OrderStatus, RetryPolicy,
};
use rustls::ClientConfig;
use serde::{Deserialize, Serialize};

use super::challenges::Challenges;
use super::files::{Files, parse_chain, write_private};
use super::{CertificateError, Pair, certified, certified_challenge, mint};
use crate::config::{Acme, AcmeChallenge};
use crate::lifecycle::tasks::Tasks;
pub(super) use error::AcmeError;
use https::Https;
use nonce::with_fresh_nonce;

/// The field that the files belong to.
const CACHE_FIELD: &str = "tls.acme.cache_dir";

/// How long the directory may take to check the challenges, and to issue the certificate: each, polled ever less often.
const POLLING: RetryPolicy =
    RetryPolicy::new().initial_delay(Duration::from_millis(250)).backoff(1.5).timeout(Duration::from_secs(90));

/// What is kept of the account.
#[derive(Serialize, Deserialize)]
struct KeptAccount {
    contact: String,
    external_account: String,
    /// As the library writes them; the account's private key is among them.
    credentials: serde_json::Value,
}

/// Gets certificates from one directory.
pub(super) struct AcmeClient {
    settings: Acme,
    tls: Arc<ClientConfig>,
    account_file: PathBuf,
    certificate: Files,
}

impl std::fmt::Debug for AcmeClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AcmeClient").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl AcmeClient {
    pub(super) fn new(settings: &Acme) -> Result<Self, CertificateError> {
        let trust = settings.ca_file.as_ref().map_or_else(Trust::system, Trust::ca_file)?;
        let place = settings.directory.trim_start_matches("https://");
        let place = place.replace(|c: char| !c.is_ascii_alphanumeric() && c != '.' && c != '-', "-");
        let dir = settings.cache_dir.join(place.trim_matches(['-', '.']));
        Ok(Self {
            settings: settings.clone(),
            tls: trust.client_config(),
            account_file: dir.join("account.json"),
            certificate: Files::of_ours(CACHE_FIELD, dir.join("certificate.pem")),
        })
    }

    pub(super) fn directory(&self) -> &str {
        &self.settings.directory
    }

    pub(super) fn domains(&self) -> &[String] {
        &self.settings.domains
    }

    /// The certificate of an earlier process, if there is one that can be read.
    pub(super) fn cached(&self) -> Option<Pair> {
        if !self.certificate.cert.exists() {
            return None;
        }
        let loaded = self.certificate.load().and_then(|pair| certified(&pair).map(|_| pair));
        loaded.inspect_err(|error| tracing::warn!(%error, "the kept certificate cannot be used; another one is asked for")).ok()
    }

    /// Gets a certificate and keeps it; `tasks` carry the connections. `challenges` is what the doors answer with meanwhile; the caller clears it.
    pub(super) async fn obtain(&self, tasks: &Tasks, challenges: &Challenges, now: SystemTime) -> Result<Pair, AcmeError> {
        let https = Https::new(Arc::clone(&self.tls), tasks);
        let identifiers: Vec<Identifier> = self.settings.domains.iter().map(|domain| identifier(domain)).collect();
        let mut order = self.order(&https, &identifiers).await?;
        self.prove(&mut order, challenges, now).await?;
        let (key, request) = mint::request(&self.settings.domains).map_err(CertificateError::from)?;
        with_fresh_nonce!(order.finalize_csr(&request)).map_err(|error| self.refused(error))?;
        let chain = with_fresh_nonce!(order.poll_certificate(&POLLING));
        let chain = chain.map_err(|error| self.refused(error))?;
        let pair = Pair {
            chain: parse_chain(chain.as_bytes()).map_err(|wanted| AcmeError::Chain { wanted })?,
            key: rustls_pki_types::PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        };
        // Checked before it replaces a good one on disk.
        certified(&pair)?;
        write_private(CACHE_FIELD, &self.certificate.cert, &(key.serialize_pem() + &chain))?;
        Ok(pair)
    }

    /// A new order, under a new account if the directory does not know the kept one any more.
    async fn order(&self, https: &Https, identifiers: &[Identifier]) -> Result<Order, AcmeError> {
        let mut wanted = NewOrder::new(identifiers);
        if let Some(profile) = &self.settings.profile {
            wanted = wanted.profile(profile);
        }
        let account = self.account(https).await?;
        match with_fresh_nonce!(account.new_order(&wanted)) {
            Err(error) if error::is_of_type(&error, "accountDoesNotExist") => {
                tracing::info!("the ACME directory does not know the kept account any more; a new one is made");
                let account = self.create_account(https).await?;
                with_fresh_nonce!(account.new_order(&wanted))
            }
            ordered => ordered,
        }
        .map_err(|error| self.refused(error))
    }

    async fn account(&self, https: &Https) -> Result<Account, AcmeError> {
        let Some(mut kept) = self.kept_account().filter(|kept| kept.external_account == self.external_account_id()) else {
            return self.create_account(https).await;
        };
        let Ok(credentials) = serde_json::from_value(kept.credentials.clone()) else {
            return self.create_account(https).await;
        };
        let account = builder(https).from_credentials(credentials).await.map_err(|error| self.refused(error))?;
        if kept.contact != self.settings.contact {
            let contacts = self.contacts();
            let contacts: Vec<&str> = contacts.iter().map(String::as_str).collect();
            let updated = with_fresh_nonce!(account.update_contacts(&contacts));
            updated.map_err(|error| self.refused(error))?;
            kept.contact.clone_from(&self.settings.contact);
            self.keep_account(&kept)?;
        }
        Ok(account)
    }

    async fn create_account(&self, https: &Https) -> Result<Account, AcmeError> {
        let contacts = self.contacts();
        let new = NewAccount {
            contact: &contacts.iter().map(String::as_str).collect::<Vec<_>>(),
            // Documented with the setting: whoever configures a directory agrees to its terms.
            terms_of_service_agreed: true,
            only_return_existing: false,
        };
        let external = self.settings.external_account.as_ref();
        let external = external.map(|account| ExternalAccountKey::new(account.key_id.clone(), &account.key));
        let created = with_fresh_nonce!(builder(https).create(&new, self.settings.directory.clone(), external.as_ref()));
        let (account, credentials) = created.map_err(|error| error::refused(&self.settings, &error, true))?;
        let credentials = serde_json::to_value(&credentials).map_err(|error| self.refused(error.into()))?;
        let (contact, external_account) = (self.settings.contact.clone(), self.external_account_id().to_owned());
        self.keep_account(&KeptAccount { contact, external_account, credentials })?;
        Ok(account)
    }

    fn contacts(&self) -> Vec<String> {
        let contact = &self.settings.contact;
        if contact.is_empty() { Vec::new() } else { vec![format!("mailto:{contact}")] }
    }

    fn external_account_id(&self) -> &str {
        self.settings.external_account.as_ref().map_or("", |account| &account.key_id)
    }

    fn kept_account(&self) -> Option<KeptAccount> {
        let text = match fs::read(&self.account_file) {
            Ok(text) => text,
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!(file = %self.account_file.display(), %error, "the kept ACME account cannot be read");
                }
                return None;
            }
        };
        serde_json::from_slice(&text).ok()
    }

    fn keep_account(&self, account: &KeptAccount) -> Result<(), AcmeError> {
        let text = serde_json::to_string(account).map_err(|error| self.refused(error.into()))?;
        Ok(write_private(CACHE_FIELD, &self.account_file, &text)?)
    }

    /// Answers the challenges of an order, and waits until the directory has checked them.
    async fn prove(&self, order: &mut Order, challenges: &Challenges, now: SystemTime) -> Result<(), AcmeError> {
        // All before one is answered: those that are here are not asked for again, so a repetition skips none.
        with_fresh_nonce!(fetch_authorizations(order)).map_err(|error| self.refused(error))?;
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let authorization = authorization.map_err(|error| self.refused(error))?;
            match authorization.status {
                AuthorizationStatus::Pending => self.answer(authorization, challenges, now).await?,
                // Proven for an earlier order.
                AuthorizationStatus::Valid => {}
                status => return Err(self.failed(authorization.identifier().to_string(), format!("it is {status:?}"))),
            }
        }
        match with_fresh_nonce!(order.poll_ready(&POLLING)) {
            Ok(OrderStatus::Ready) => Ok(()),
            Ok(_) | Err(instant_acme::Error::Api(_)) => Err(self.why_not_ready(order).await),
            Err(error) => Err(self.refused(error)),
        }
    }

    async fn answer(
        &self,
        mut authorization: AuthorizationHandle<'_>,
        challenges: &Challenges,
        now: SystemTime,
    ) -> Result<(), AcmeError> {
        let domain = authorization.identifier().to_string();
        let kind = match self.settings.challenge {
            AcmeChallenge::Http01 => ChallengeType::Http01,
            AcmeChallenge::TlsAlpn01 => ChallengeType::TlsAlpn01,
        };
        let Some(mut challenge) = authorization.challenge(kind) else {
            return Err(self.failed(domain, "the directory does not offer it".to_owned()));
        };
        let proof = challenge.key_authorization();
        match self.settings.challenge {
            AcmeChallenge::Http01 => challenges.expect_token(challenge.token.clone(), proof.as_str().to_owned()),
            AcmeChallenge::TlsAlpn01 => {
                let digest = proof.digest();
                let digest = digest.as_ref().try_into().map_err(|_| AcmeError::Chain { wanted: "a digest of 32 bytes" })?;
                let minted = mint::challenge(&domain, digest, now).map_err(CertificateError::from)?;
                challenges.expect_handshake(&domain, Arc::new(certified_challenge(&minted.into_pair())?));
            }
        }
        with_fresh_nonce!(challenge.set_ready()).map_err(|error| self.refused(error))
    }

    /// Which challenge failed, in the directory's words.
    async fn why_not_ready(&self, order: &mut Order) -> AcmeError {
        let told = order.state().error.as_ref().map(ToString::to_string);
        let mut authorizations = order.authorizations();
        while let Some(Ok(mut authorization)) = authorizations.next().await {
            let domain = authorization.identifier().to_string();
            if with_fresh_nonce!(authorization.refresh()).is_err() {
                continue;
            }
            if let Some(problem) = authorization.challenges.iter().find_map(|challenge| challenge.error.as_ref()) {
                return self.failed(domain, error::text_of(problem));
            }
        }
        self.failed(self.settings.domains.join(", "), told.unwrap_or_else(|| "the order is invalid".to_owned()))
    }

    fn failed(&self, domain: String, why: String) -> AcmeError {
        AcmeError::Challenge { domain, challenge: self.settings.challenge.label(), why }
    }

    fn refused(&self, error: instant_acme::Error) -> AcmeError {
        error::refused(&self.settings, &error, false)
    }
}

async fn fetch_authorizations(order: &mut Order) -> Result<(), instant_acme::Error> {
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        authorization?;
    }
    Ok(())
}

fn builder(https: &Https) -> AccountBuilder {
    Account::builder_with_http(Box::new(https.clone()))
}

fn identifier(domain: &str) -> Identifier {
    domain.parse().map_or_else(|_| Identifier::Dns(domain.to_owned()), Identifier::Ip)
}
