//! What stands before DERP: HTTP endpoints, whom they believe, and bootstrap DNS.

use super::super::{BootstrapDns, Home, Http, UnpublishedName, file};
use super::Check;

impl Check {
    pub(super) fn http(&mut self, http: &file::Http) -> Http {
        let home = match http.home.as_str() {
            "" => Home::Page,
            "blank" => Home::Blank,
            url if url.starts_with("https://") || url.starts_with("http://") => {
                if !url.bytes().all(|byte| byte.is_ascii_graphic()) {
                    self.wrong("http.home", "a URL holds no spaces, control characters or letters beyond ASCII");
                }
                Home::Redirect(url.to_owned())
            }
            other => {
                self.wrong("http.home", format!("`{other}` is neither empty, nor `blank`, nor an http:// or https:// URL"));
                Home::Page
            }
        };
        Http {
            home,
            trusted_proxies: self.networks("http.trusted_proxies", &http.trusted_proxies),
            debug_networks: self.networks("http.debug_networks", &http.debug_networks),
            debug_key: self.secret("http.debug_key_file", &http.debug_key_file),
        }
    }

    pub(super) fn bootstrap_dns(&mut self, dns: &file::BootstrapDns) -> Option<BootstrapDns> {
        self.list_len("bootstrap_dns.names", dns.names.len());
        self.list_len("bootstrap_dns.unpublished_names", dns.unpublished_names.len());
        self.list_len("bootstrap_dns.servers", dns.servers.len());
        dns.names.iter().for_each(|name| self.dns_name("bootstrap_dns.names", name));
        let mut unpublished = Vec::new();
        for entry in &dns.unpublished_names {
            let (name, percent_name) = entry.split_once('/').map_or((entry.as_str(), None), |(name, txt)| (name, Some(txt)));
            for name in [Some(name), percent_name].into_iter().flatten() {
                self.dns_name("bootstrap_dns.unpublished_names", name);
            }
            unpublished.push(UnpublishedName { name: name.to_owned(), percent_name: percent_name.map(str::to_owned) });
        }
        let servers = dns.servers.iter().map(|server| self.address("bootstrap_dns.servers", server)).collect();
        let wanted = !dns.names.is_empty() || !unpublished.is_empty();
        wanted.then(|| BootstrapDns { names: dns.names.clone(), unpublished, servers })
    }

    fn dns_name(&mut self, field: &str, name: &str) {
        let good = |label: &str| {
            !label.is_empty() && label.len() <= 63 && label.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
        };
        let name = name.strip_suffix('.').unwrap_or(name);
        if name.len() > 253 || !name.split('.').all(good) {
            self.wrong(field, format!("`{name}` is not a DNS name, such as derp.example.com"));
        }
    }
}
