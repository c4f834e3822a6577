//! Where clients come in: listeners, plain HTTP, the certificate.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use super::{Work, absolute, text_of};

/// Directory of certificates, where the flag is not given, below the home directory.
const CERT_DIR: &str = ".cache/tailscale/derper-certs";

impl Work<'_> {
    pub(super) fn listeners(&mut self) -> Result<(), String> {
        let (host, port) = split_listen(self.flags.text("a"))?;
        let at = |port: u16| join(&host, port);
        if port == 443 || self.flags.text("certmode") == "manual" {
            self.set("derp.listen", at(port));
            self.kept("a", "derp.listen");
            self.plain_http(&at)?;
            self.certificate()?;
        } else {
            // Something in front ends TLS: the TLS door is there, but nobody comes by it.
            self.set("derp.listen", "127.0.0.1:0");
            self.set("derp.plain_http_listen", at(port));
            self.set("derp.plain_http_serves_derp", true);
            self.set("tls.self_signed", true);
            self.set("advertise.derp_port", 443);
            self.kept("a", "derp.plain_http_listen, derp.plain_http_serves_derp: without TLS, as derper on this port");
            self.differs(
                "-a",
                "advertise.derp_port = 443 assumes that TLS ends in front of this node on port 443: set the real port",
            );
            for name in ["http-port", "certmode", "certdir", "acme-email", "acme-eab-kid", "acme-eab-key"] {
                self.unused(name, "not used without TLS, by derper neither");
            }
        }
        let stun_port = self.port("stun-port")?;
        if self.flags.is_on("stun") {
            self.set("stun.listen", at(stun_port));
        } else {
            self.set("stun.listen", "");
        }
        self.kept("stun", "stun.listen");
        self.kept("stun-port", "stun.listen");
        Ok(())
    }

    fn plain_http(&mut self, at: &dyn Fn(u16) -> String) -> Result<(), String> {
        if self.flags.text("http-port") == "-1" {
            self.kept("http-port", "derp.plain_http_listen stays empty");
            return Ok(());
        }
        let port = self.port("http-port")?;
        self.set("derp.plain_http_listen", at(port));
        self.set("advertise.can_port80", port == 80);
        self.kept("http-port", "derp.plain_http_listen, advertise.can_port80");
        Ok(())
    }

    fn certificate(&mut self) -> Result<(), String> {
        let (mode, host) = (self.flags.text("certmode").to_owned(), self.flags.text("hostname").to_owned());
        let is_address = host.parse::<IpAddr>().is_ok();
        let ip_certs = self.flags.is_on("acme-ip-certs");
        let dir = self.cert_dir()?;
        match mode.as_str() {
            _ if ip_certs && mode != "letsencrypt" => Err("-acme-ip-certs: needs -certmode letsencrypt".into()),
            "manual" => {
                for name in ["acme-email", "acme-eab-kid", "acme-eab-key"] {
                    self.unused(name, "not used with -certmode manual, by derper neither");
                }
                self.manual_certificate(&dir, &host, is_address)
            }
            "gcp" if is_address => Err("-certmode gcp: -hostname must be a DNS name".into()),
            "letsencrypt" if is_address && !ip_certs => {
                Err("-certmode letsencrypt: -hostname is an address, which needs -certmode manual or -acme-ip-certs".into())
            }
            "letsencrypt" | "gcp" => self.acme(&mode, &host, ip_certs),
            other => Err(format!("-certmode: {other:?} is none of letsencrypt, gcp, manual")),
        }
    }

    fn cert_dir(&self) -> Result<PathBuf, String> {
        match self.flags.given("certdir") {
            Some("") => Err("-certdir: is empty".into()),
            Some(dir) => Ok(PathBuf::from(dir)),
            None => Ok(PathBuf::from((self.environment)("HOME").unwrap_or_default()).join(CERT_DIR)),
        }
    }

    fn manual_certificate(&mut self, dir: &Path, host: &str, is_address: bool) -> Result<(), String> {
        let base: String = host.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-')).collect();
        let (cert, key) = (dir.join(format!("{base}.crt")), dir.join(format!("{base}.key")));
        match (cert.is_file() && key.is_file(), is_address) {
            (true, _) => {
                self.set("tls.cert_file", text_of(&absolute(&cert)));
                self.set("tls.key_file", text_of(&absolute(&key)));
                self.kept("certmode", "tls.cert_file, tls.key_file");
                self.kept("certdir", "tls.cert_file, tls.key_file");
            }
            (false, true) => {
                self.set("tls.self_signed", true);
                self.kept("certmode", "tls.self_signed: a certificate of its own for the address, as derper makes one");
                self.unused("certdir", "holds no certificate for this address; the node keeps its own in data_dir");
            }
            (false, false) => {
                return Err(format!("-certdir: {} and {} must both be there", cert.display(), key.display()));
            }
        }
        Ok(())
    }

    fn acme(&mut self, mode: &str, host: &str, ip_certs: bool) -> Result<(), String> {
        let value = |name| self.flags.given(name).filter(|value| !value.is_empty());
        let (kid, key, email) = (value("acme-eab-kid"), value("acme-eab-key"), value("acme-email"));
        if mode == "gcp" && (kid.is_none() || key.is_none() || email.is_none()) {
            return Err("-certmode gcp: needs -acme-email, -acme-eab-kid and -acme-eab-key".into());
        }
        let (kid, key, email) = (kid.map(str::to_owned), key.map(str::to_owned), email.map(str::to_owned));
        let directory = match mode {
            "gcp" => "https://dv.acme-v02.api.pki.goog/directory",
            _ => "https://acme-v02.api.letsencrypt.org/directory",
        };
        self.set("tls.acme.directory", directory);
        self.set("tls.acme.domains", vec![host.to_owned()]);
        if let Some(email) = email {
            self.set("tls.acme.contact", email);
        }
        if let (Some(kid), Some(key)) = (kid, key) {
            self.set("tls.acme.eab_kid", kid);
            let path = self.secret("acme-eab.key", format!("{key}\n"));
            self.set("tls.acme.eab_key_file", path);
        }
        self.kept("certmode", "tls.acme");
        for name in ["acme-email", "acme-eab-kid", "acme-eab-key"] {
            self.kept(name, "tls.acme");
        }
        self.unused("certdir", "another cache format: the node asks for a certificate of its own at its first start");
        let is_address = host.parse::<IpAddr>().is_ok();
        if ip_certs && is_address {
            self.set("tls.acme.profile", "shortlived");
            self.kept("acme-ip-certs", "tls.acme.domains, tls.acme.profile");
        } else if ip_certs {
            self.differs(
                "-acme-ip-certs",
                "only a certificate for -hostname is asked for: add the addresses to tls.acme.domains",
            );
        }
        // TLS-ALPN-01 comes by port 443, and is not for addresses.
        let (_, port) = split_listen(self.flags.text("a"))?;
        if is_address || port != 443 {
            self.set("tls.acme.challenge", "http-01");
            if self.flags.text("http-port") != "80" {
                self.differs("-certmode", "tls.acme.challenge is http-01: port 80 must reach derp.plain_http_listen");
            }
        }
        Ok(())
    }
}

/// `:443`, `IP:443`, `[IP6]:443`; also with the names Go takes for these ports.
fn split_listen(text: &str) -> Result<(String, u16), String> {
    let wrong = || format!("-a: {text:?} is not :PORT, IP:PORT or [IP6]:PORT");
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let port = match port {
        "https" => 443,
        "http" => 80,
        port => port.parse().map_err(|_| wrong())?,
    };
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    if !host.is_empty() && host.parse::<IpAddr>().is_err() {
        return Err(format!("-a: {host:?} is no address: give the address to listen on, or none for all"));
    }
    Ok((host.to_owned(), port))
}

/// Without an address, all of both families, as Go listens.
fn join(host: &str, port: u16) -> String {
    match host.parse() {
        Ok(IpAddr::V4(address)) => format!("{address}:{port}"),
        Ok(IpAddr::V6(address)) => format!("[{address}]:{port}"),
        Err(_) => format!("[::]:{port}"),
    }
}
