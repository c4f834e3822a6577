//! `[admission]`: sources in order, each with what it needs; list files are read here, so that a bad one is told before the start.

use std::sync::Arc;
use std::time::Duration;

use causeway_client::Trust;
use http::Uri;
use rustls::ClientConfig;

use super::{Check, optional_path};
use crate::admission::cache::Lifetimes;
use crate::admission::list::KeyList;
use crate::config::file::{self, AdmissionSource as Named};
use crate::config::{Admission, AdmissionSource};

/// Longest time that a decision is remembered or that passes until the next one, in seconds.
const SECONDS_MAX: u64 = 30 * 24 * 3600;

impl Check {
    pub(super) fn admission(&mut self, file: &file::Admission) -> Admission {
        self.admission_fields(file);
        let mut sources = Vec::new();
        for (index, named) in file.sources.iter().enumerate() {
            if file.sources[..index].contains(named) {
                self.wrong("admission.sources", "names a source twice");
            }
            sources.extend(self.admission_source(*named, file));
        }
        let mut seconds = |field, value, least| {
            self.range(field, value, least, SECONDS_MAX);
            Duration::from_secs(value)
        };
        Admission {
            sources,
            fail_open: file.fail_open,
            lifetimes: Lifetimes {
                allow: seconds("admission.allow_seconds", file.allow_seconds, 0),
                deny: seconds("admission.deny_seconds", file.deny_seconds, 0),
                stale: seconds("admission.stale_seconds", file.stale_seconds, 0),
            },
            recheck: seconds("admission.recheck_seconds", file.recheck_seconds, 1),
        }
    }

    /// What is set must be in use: a forgotten name in the list would let everybody in.
    fn admission_fields(&mut self, file: &file::Admission) {
        for (field, value, named, name) in [
            ("admission.allow_file", &file.allow_file, Named::AllowFile, "allow_file"),
            ("admission.deny_file", &file.deny_file, Named::DenyFile, "deny_file"),
            ("admission.verify_url", &file.verify_url, Named::VerifyUrl, "verify_url"),
        ] {
            match (value.is_empty(), file.sources.contains(&named)) {
                (true, true) => self.wrong(field, format!("is missing: admission.sources names \"{name}\"")),
                (false, false) => self.wrong(field, format!("is not used: add \"{name}\" to admission.sources")),
                (true, false) | (false, true) => {}
            }
        }
        if file.tailscaled_socket.is_empty() && file.sources.contains(&Named::Tailscaled) {
            self.wrong("admission.tailscaled_socket", "is missing: admission.sources names \"tailscaled\"");
        }
    }

    fn admission_source(&mut self, named: Named, file: &file::Admission) -> Option<AdmissionSource> {
        match named {
            Named::AllowFile => self.key_list("admission.allow_file", &file.allow_file).map(AdmissionSource::AllowFile),
            Named::DenyFile => self.key_list("admission.deny_file", &file.deny_file).map(AdmissionSource::DenyFile),
            Named::VerifyUrl => {
                let url = self.verify_url(&file.verify_url, file.verify_url_plain)?;
                let tls = self.verify_url_tls(&url, &file.verify_url_ca_file)?;
                Some(AdmissionSource::VerifyUrl { url, tls })
            }
            Named::Tailscaled => optional_path(&file.tailscaled_socket).map(AdmissionSource::Tailscaled),
        }
    }

    fn key_list(&mut self, field: &str, path: &str) -> Option<Arc<KeyList>> {
        let path = optional_path(path)?;
        let list = self.files.keys(&path);
        list.map(Arc::new).map_err(|why| self.wrong(field, why)).ok()
    }

    fn verify_url(&mut self, text: &str, plain: bool) -> Option<Uri> {
        if text.is_empty() {
            return None;
        }
        let url: Option<Uri> = text.parse().ok().filter(|url: &Uri| url.host().is_some_and(|host| !host.is_empty()));
        // The text may hold a credential, so it never goes into a message.
        let problem = match &url {
            None => "is not a URL such as https://headscale.example.com/verify",
            Some(url) if url.authority().is_some_and(|authority| authority.as_str().contains('@')) => {
                "holds a user name or password, which are not sent: put a token into the URL's query if the server takes one there"
            }
            Some(url) => match url.scheme_str() {
                Some("https") => return Some(url.clone()),
                Some("http") if plain || url.host().is_some_and(is_loopback) => return Some(url.clone()),
                Some("http") => {
                    "is plain http to another machine, so that whoever is on the way can let anybody in: wanted https, or verify_url_plain = true"
                }
                _ => "wanted https://",
            },
        };
        self.wrong("admission.verify_url", problem);
        None
    }

    fn verify_url_tls(&mut self, url: &Uri, ca_file: &str) -> Option<Arc<ClientConfig>> {
        let ca_file = optional_path(ca_file);
        let trust = if ca_file.is_some() || url.scheme_str() == Some("https") {
            self.files.trust(ca_file.as_deref())
        } else {
            // Never used.
            Trust::insecure_for_tests().map_err(|error| error.to_string())
        };
        trust.map(|trust| trust.client_config()).map_err(|why| self.wrong("admission.verify_url_ca_file", why)).ok()
    }
}

fn is_loopback(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}
