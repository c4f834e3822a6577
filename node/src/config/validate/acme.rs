//! `[tls.acme]`.

use std::net::IpAddr;
use std::path::Path;

use data_encoding::{BASE64, BASE64_NOPAD, BASE64URL, BASE64URL_NOPAD};

use super::{Check, FileConfig, file, optional_path};
use crate::config::{Acme, AcmeChallenge, ExternalAccount};

/// Most names of one certificate.
const DOMAINS_MAX: usize = 32;

/// Longest DNS name.
const DOMAIN_LEN_MAX: usize = 253;

impl Check {
    pub(super) fn acme(&mut self, acme: &file::Acme, file: &FileConfig, data_dir: &Path) -> Acme {
        if !acme.directory.starts_with("https://") || acme.directory.len() == "https://".len() {
            self.wrong("tls.acme.directory", format!("`{}` is not the https URL of an ACME directory", acme.directory));
        }
        if acme.challenge == AcmeChallenge::Http01 && file.derp.plain_http_listen.is_empty() {
            self.wrong("tls.acme.challenge", "`http-01` needs derp.plain_http_listen: the directory asks on port 80");
        }
        Acme {
            directory: acme.directory.clone(),
            contact: self.contact(&acme.contact),
            domains: self.domains(acme, &file.advertise.host_name),
            challenge: acme.challenge,
            profile: Some(acme.profile.clone()).filter(|profile| !profile.is_empty()),
            cache_dir: optional_path(&acme.cache_dir).unwrap_or_else(|| data_dir.join("acme")),
            ca_file: optional_path(&acme.ca_file),
            external_account: self.external_account(acme),
        }
    }

    fn contact(&mut self, contact: &str) -> String {
        let address = contact.strip_prefix("mailto:").unwrap_or(contact);
        let good = address.split_once('@').is_some_and(|(user, host)| !user.is_empty() && !host.is_empty());
        if !address.is_empty() && (!good || address.contains(char::is_whitespace)) {
            self.wrong("tls.acme.contact", format!("`{contact}` is not an e-mail address"));
        }
        address.to_owned()
    }

    fn domains(&mut self, acme: &file::Acme, host_name: &str) -> Vec<String> {
        const FIELD: &str = "tls.acme.domains";
        let host_name = [host_name.to_owned()];
        let domains = if acme.domains.is_empty() { &host_name[..] } else { &acme.domains };
        if domains.len() > DOMAINS_MAX {
            self.wrong(FIELD, format!("has {} entries, at most {DOMAINS_MAX} are taken", domains.len()));
        }
        let mut canonical = Vec::new();
        for domain in domains {
            if let Ok(address) = domain.parse::<IpAddr>() {
                if acme.challenge != AcmeChallenge::Http01 {
                    self.wrong(FIELD, format!("{address}: addresses are proven with `challenge = \"http-01\"` only"));
                }
                canonical.push(address.to_string());
            } else {
                if !is_domain(domain) {
                    self.wrong(FIELD, format!("`{domain}` is neither a DNS name (without wildcard and port) nor an address"));
                }
                canonical.push(domain.to_ascii_lowercase());
            }
        }
        canonical
    }

    fn external_account(&mut self, acme: &file::Acme) -> Option<ExternalAccount> {
        const FIELD: &str = "tls.acme.eab_key_file";
        let path = match (acme.eab_kid.as_str(), optional_path(&acme.eab_key_file)) {
            ("", None) => return None,
            ("", Some(_)) => {
                self.wrong("tls.acme.eab_kid", "is missing beside eab_key_file");
                return None;
            }
            (_, None) => {
                self.wrong(FIELD, "is missing beside eab_kid");
                return None;
            }
            (_, Some(path)) => path,
        };
        let key = self.files.secret(&path).and_then(|text| {
            let text = text.trim().as_bytes();
            let decoded = [BASE64URL_NOPAD, BASE64URL, BASE64, BASE64_NOPAD].iter().find_map(|base| base.decode(text).ok());
            decoded.filter(|key| !key.is_empty()).ok_or_else(|| "wanted the key as base64".to_owned())
        });
        match key {
            Ok(key) => Some(ExternalAccount { key_id: acme.eab_kid.clone(), key: key.into() }),
            Err(why) => {
                self.wrong(FIELD, format!("{}: {why}", path.display()));
                None
            }
        }
    }
}

fn is_domain(text: &str) -> bool {
    let good = |label: &str| (1..=63).contains(&label.len()) && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    text.len() <= DOMAIN_LEN_MAX && text.split('.').all(good)
}
