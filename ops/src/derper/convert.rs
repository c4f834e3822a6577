//! From a derper's command line, files and variables to a node's configuration.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use causeway_proto::key::{MeshKey, NodePrivate};
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use super::flags::{FLAGS, Flags, VARIABLES, parse_duration, parse_float};

/// What a derper does not say of itself.
#[derive(Debug, Clone)]
pub struct Options {
    /// The node's name; `None`: the host name.
    pub name: Option<String>,
    /// The region as the DERP map has it.
    pub region_id: u64,
    /// Its short code.
    pub region_code: String,
    /// Where the node keeps its state.
    pub data_dir: PathBuf,
    /// Where the secrets will lie.
    pub out: PathBuf,
}

/// What a derper's way of running becomes.
#[derive(Debug)]
pub struct Imported {
    /// The configuration.
    pub config: String,
    /// Files for the node's owner only.
    pub secrets: Vec<Secret>,
    /// What became of each flag and variable.
    pub notes: Vec<Note>,
}

/// A secret in a file of its own.
pub struct Secret {
    /// Its name inside [`Options::out`].
    pub file_name: &'static str,
    /// What it holds.
    pub text: String,
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Secret").field("file_name", &self.file_name).finish_non_exhaustive()
    }
}

/// What became of a flag or variable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Fate {
    /// A field of the configuration says the same.
    Kept,
    /// The node does something else; the text says what, and what to do.
    Differs,
}

/// One line of the report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Note {
    /// A flag with its dash, or a variable.
    pub subject: String,
    /// What became of it.
    pub fate: Fate,
    /// The field, or the reason and what to do.
    pub text: String,
}

/// The environment, as far as it is asked for.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Largest file worth reading.
const FILE_LEN_MAX: u64 = 64 * 1024;

/// A node reads fewer bytes per second from nobody, and takes no smaller burst (`derp.md` section 9).
const CLIENT_RATE_MIN: u64 = 8_192;
const CLIENT_BURST_MIN: u64 = 65_568;

/// Directory of certificates, where the flag is not given, below the home directory.
const CERT_DIR: &str = ".cache/tailscale/derper-certs";

/// Converts. Reads the files that the flags name.
///
/// # Errors
/// What derper itself would refuse, what contradicts itself, and what no node does; each names the flag and what to do.
pub fn convert(flags: &Flags, environment: Environment<'_>, options: &Options) -> Result<Imported, String> {
    let mut work = Work { flags, environment, options, config: Table::new(), secrets: Vec::new(), notes: Vec::new() };
    work.refuse()?;
    work.identity()?;
    work.listeners()?;
    work.server_key()?;
    work.mesh()?;
    work.admission();
    work.limits()?;
    work.pages()?;
    work.timeouts();
    work.variables();
    work.finish()
}

struct Work<'a> {
    flags: &'a Flags,
    environment: Environment<'a>,
    options: &'a Options,
    config: Table,
    secrets: Vec<Secret>,
    notes: Vec<Note>,
}

impl Work<'_> {
    /// What cannot be done at all.
    fn refuse(&self) -> Result<(), String> {
        for (name, why) in [
            ("version", "prints a version and runs nothing: leave it out"),
            ("dev", "is derper's development mode: `causeway dev` runs a whole fleet on this machine"),
            ("ace", "a node is no CONNECT proxy: leave it out, or keep a derper with -derp=false for it"),
        ] {
            if self.flags.is_on(name) {
                return Err(format!("-{name}: {why}"));
            }
        }
        if !self.flags.is_on("derp") {
            return Err(
                "-derp=false: a node always relays: keep the derper until its bootstrap DNS is not needed any more".into()
            );
        }
        Ok(())
    }

    fn identity(&mut self) -> Result<(), String> {
        let Some(host) = self.flags.given("hostname").filter(|host| !host.is_empty()) else {
            return Err(
                "-hostname: is missing: derper would call itself derp.tailscale.com; give the name that clients dial".into()
            );
        };
        let name = self.options.name.clone().unwrap_or_else(|| host.to_lowercase().replace(':', "-"));
        self.set("name", name);
        self.set("standalone", true);
        self.set("data_dir", text_of(&self.options.data_dir));
        self.set("region.id", i64::try_from(self.options.region_id).unwrap_or(i64::MAX));
        self.set("region.code", self.options.region_code.clone());
        self.set("advertise.host_name", host);
        match host.parse() {
            Ok(IpAddr::V4(address)) => self.set("advertise.ipv4", address.to_string()),
            Ok(IpAddr::V6(address)) => self.set("advertise.ipv6", address.to_string()),
            Err(_) => {}
        }
        self.kept("hostname", "name, advertise.host_name");
        Ok(())
    }

    fn listeners(&mut self) -> Result<(), String> {
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

    fn server_key(&mut self) -> Result<(), String> {
        #[derive(Deserialize)]
        struct KeyFile {
            #[serde(rename = "PrivateKey")]
            private_key: String,
        }
        let path = match self.flags.given("c").filter(|path| !path.is_empty()) {
            Some(path) => PathBuf::from(path),
            None => PathBuf::from("/var/lib/derper/derper.key"),
        };
        if !path.exists() {
            let kept = text_of(&absolute(&self.options.out.join(SERVER_KEY)));
            self.set("derp.server_key_file", kept);
            self.differs("-c", &format!("{} is not there: the node makes a key of its own at its first start", path.display()));
            return Ok(());
        }
        // The file's text never goes into a message.
        let file: KeyFile = serde_json::from_str(&read(&path, "-c")?)
            .map_err(|_| format!("-c: {}: wanted {{\"PrivateKey\":\"privkey:…\"}}", path.display()))?;
        let key: NodePrivate = file.private_key.parse().map_err(|error| format!("-c: {}: {error}", path.display()))?;
        let kept = self.secret(SERVER_KEY, format!("{}\n", key.expose_text()));
        self.set("derp.server_key_file", kept);
        self.kept("c", "derp.server_key_file: the server keeps its key");
        Ok(())
    }

    fn mesh(&mut self) -> Result<(), String> {
        let with: Vec<String> =
            self.flags.text("mesh-with").split(',').filter(|host| !host.is_empty()).map(str::to_owned).collect();
        if let Some(host) = with.iter().find(|host| host.matches('/').count() > 1) {
            return Err(format!("-mesh-with: {host:?} has more than one slash: wanted HOST or HOST/DIALHOST"));
        }
        let Some(key) = self.mesh_key()? else {
            if !with.is_empty() {
                return Err("-mesh-with: needs -mesh-psk-file, as with derper".into());
            }
            return Ok(());
        };
        let path = self.secret("derp-mesh.key", format!("{}\n", key.expose_hex()));
        self.set("derp_mesh.key_file", path);
        self.set("derp_mesh.allow", vec!["0.0.0.0/0".to_owned(), "::/0".to_owned()]);
        self.kept("mesh-psk-file", "derp_mesh.key_file");
        self.differs(
            "-mesh-psk-file",
            "derp_mesh.allow takes the key from every network, as derper does: list those of your derpers",
        );
        if !with.is_empty() {
            self.set("derp_mesh.with", with);
        }
        self.kept("mesh-with", "derp_mesh.with");
        Ok(())
    }

    fn mesh_key(&mut self) -> Result<Option<MeshKey>, String> {
        if let Some(url) = self.flags.given("secrets-url").filter(|url| !url.is_empty()) {
            let secret = format!("{}/meshkey", self.flags.text("secrets-path-prefix").trim_end_matches('/'));
            return Err(format!(
                "-secrets-url: a node asks no setec server: save the secret {secret:?} of {url} in a file, and give that as -mesh-psk-file \
                 instead of the -secrets flags"
            ));
        }
        for name in ["secrets-path-prefix", "secrets-cache-dir"] {
            self.unused(name, "not used without -secrets-url, by derper neither");
        }
        let home = (self.environment)("HOME").unwrap_or_default();
        let usual = ["/home/derp/keys/derp-mesh.key".to_owned(), format!("{home}/keys/derp-mesh.key")];
        let path = match self.flags.given("mesh-psk-file") {
            Some("") => None,
            Some(path) => Some(path.to_owned()),
            None => usual.into_iter().find(|path| Path::new(path).is_file()),
        };
        let Some(path) = path.map(PathBuf::from) else { return Ok(None) };
        let text = read(&path, "-mesh-psk-file")?;
        text.trim().parse().map(Some).map_err(|error| format!("-mesh-psk-file: {}: {error}", path.display()))
    }

    fn admission(&mut self) {
        let mut sources = Vec::new();
        if self.flags.is_on("verify-clients") {
            sources.push("tailscaled".to_owned());
            if let Some(socket) = self.flags.given("socket").filter(|socket| !socket.is_empty()) {
                self.set("admission.tailscaled_socket", socket);
            }
        }
        self.kept("verify-clients", "admission.sources");
        self.kept("socket", "admission.tailscaled_socket");
        if let Some(url) = self.flags.given("verify-client-url").filter(|url| !url.is_empty()) {
            sources.push("verify_url".to_owned());
            let open = self.flags.is_on("verify-client-url-fail-open");
            self.set("admission.verify_url", url);
            self.set("admission.fail_open", open);
            if url.starts_with("http://") && !is_this_machine(url) {
                self.set("admission.verify_url_plain", true);
                self.differs("-verify-client-url", "is asked without TLS (admission.verify_url_plain): use https if you can");
            }
            if open && self.flags.given("verify-client-url-fail-open").is_none() {
                self.differs(
                    "-verify-client-url-fail-open",
                    "is derper's default: whoever comes while the URL is unreachable may relay; admission.fail_open = false is safer",
                );
            }
        }
        self.kept("verify-client-url", "admission.verify_url");
        self.kept("verify-client-url-fail-open", "admission.fail_open");
        if !sources.is_empty() {
            self.set("admission.sources", sources);
        }
    }

    fn limits(&mut self) -> Result<(), String> {
        // Like a derper, which knows no limit per key.
        self.set("limits.key_rate_bits_per_second", 0);
        self.accept_limit();
        let Some(path) = self.flags.given("rate-config").filter(|path| !path.is_empty()).map(PathBuf::from) else {
            return Ok(());
        };
        #[derive(Deserialize, Default)]
        #[serde(default)]
        struct RateConfig {
            #[serde(rename = "PerClientRateLimitBytesPerSec")]
            rate: u64,
            #[serde(rename = "PerClientRateBurstBytes")]
            burst: u64,
        }
        let config: RateConfig = serde_json::from_str(&read(&path, "-rate-config")?)
            .map_err(|error| format!("-rate-config: {}: {error}", path.display()))?;
        if config.rate > 0 {
            self.set("limits.client_rate_bytes_per_second", toml_int(config.rate.max(CLIENT_RATE_MIN)));
            self.set("limits.client_burst_bytes", toml_int(config.burst.max(CLIENT_BURST_MIN)));
            if config.rate < CLIENT_RATE_MIN {
                self.differs("-rate-config", "the rate is raised to 8192 bytes per second, the least a node takes");
            }
        }
        self.kept("rate-config", "limits.client_rate_bytes_per_second, limits.client_burst_bytes");
        Ok(())
    }

    fn accept_limit(&mut self) {
        let limit = parse_float(self.flags.text("accept-connection-limit")).filter(|limit| limit.is_finite());
        let Some(limit) = limit else {
            self.unused("accept-connection-limit", "no limit: the node's own defaults hold ([limits])");
            self.unused("accept-connection-burst", "nothing without -accept-connection-limit, in derper neither");
            return;
        };
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        #[expect(clippy::cast_possible_truncation, reason = "clamped to the range of the field")]
        let per_core = (limit / cores as f64).ceil().clamp(1.0, 1e6) as i64;
        self.set("limits.accepts_per_second_per_core", per_core);
        self.kept("accept-connection-limit", &format!("limits.accepts_per_second_per_core, on this machine's {cores} cores"));
        if self.flags.given("accept-connection-burst").is_some() {
            self.differs("-accept-connection-burst", "a burst is twice the rate; a source has limits.accept_burst_per_source");
        }
    }

    fn pages(&mut self) -> Result<(), String> {
        let home = self.flags.text("home").to_owned();
        if !(home.is_empty() || home == "blank" || home.starts_with("http://") || home.starts_with("https://")) {
            return Err(format!("-home: {home:?} is neither empty, nor \"blank\", nor an http:// or https:// URL"));
        }
        if !home.is_empty() {
            self.set("http.home", home);
        }
        self.kept("home", "http.home");
        for (name, field) in [
            ("bootstrap-dns-names", "bootstrap_dns.names"),
            ("unpublished-bootstrap-dns-names", "bootstrap_dns.unpublished_names"),
        ] {
            let names = list(self.flags.text(name));
            if !names.is_empty() {
                self.set(field, names);
            }
            self.kept(name, field);
        }
        Ok(())
    }

    /// What a node does not let one choose.
    fn timeouts(&mut self) {
        for (name, ours) in [
            (
                "tcp-keepalive-time",
                "kernel keep-alives are not set: every client gets a DERP keep-alive within 65 s, which finds dead ones",
            ),
            ("tcp-user-timeout", "fixed at 15 s"),
            ("tcp-write-timeout", "fixed at 2 s for clients"),
        ] {
            let default = FLAGS.iter().find(|flag| flag.name == name).map_or("", |flag| flag.default);
            if parse_duration(self.flags.text(name)) == parse_duration(default) {
                self.unused(name, "derper's default, which a node has too");
            } else {
                self.differs(&format!("-{name}"), ours);
            }
        }
    }

    fn variables(&mut self) {
        for name in VARIABLES {
            let Some(value) = (self.environment)(name).filter(|value| !value.is_empty()) else { continue };
            match name {
                "TS_ALLOW_DEBUG_IP" | "TS_DEBUG_TRUSTED_CIDRS" => {
                    self.append("http.debug_networks", list(&value));
                    self.note(name.to_owned(), Fate::Kept, "http.debug_networks");
                }
                "TS_DEBUG_KEY_PATH" => match read(Path::new(&value), name) {
                    Ok(text) => {
                        let path = self.secret("debug.key", text);
                        self.set("http.debug_key_file", path);
                        self.note(name.to_owned(), Fate::Kept, "http.debug_key_file");
                    }
                    Err(why) => self.differs(name, &format!("{why}: no debug key is set")),
                },
                "DERP_DEBUG_LOGS" => {
                    self.set("log.filter", "info,causeway_node::ingress::derp=trace");
                    self.note(name.to_owned(), Fate::Kept, "log.filter");
                }
                "TS_DEBUG_DERP_PER_CLIENT_SEND_QUEUE_DEPTH" => {
                    self.differs(
                        name,
                        "a client's queue holds 32 packets of each kind; limits.client_queue_bytes bounds their memory",
                    );
                }
                "TS_DERP_DISABLE_RTT_STATS" => self.differs(name, "not needed: round trip times of sockets are not read"),
                "TS_DEBUG_VERBOSE_DROPS" => {
                    self.differs(
                        name,
                        "no log of single drops: /debug/varz counts them by reason, `causeway trace` shows a route",
                    );
                }
                "DERP_PROBER_DEBUG_LOGS" => self.differs(name, "no log of probers alone: use log.filter"),
                _ => self.differs(name, "derper reads it with -dev only: use -mesh-psk-file"),
            }
        }
    }

    fn finish(mut self) -> Result<Imported, String> {
        let head = "# Made by `causeway import derper`. Every field: node/config.example.toml.\n\n";
        let body = toml::to_string(&self.config).map_err(|error| format!("the configuration cannot be written: {error}"))?;
        self.notes.sort_by(|a, b| a.subject.cmp(&b.subject));
        Ok(Imported { config: format!("{head}{body}"), secrets: self.secrets, notes: self.notes })
    }
}

/// Name of the file that keeps the server key.
const SERVER_KEY: &str = "derp-server.key";

impl Work<'_> {
    /// Sets a field by its TOML path.
    fn set(&mut self, path: &str, value: impl Into<Value>) {
        let mut at = &mut self.config;
        let (sections, field) = path.rsplit_once('.').map_or((None, path), |(sections, field)| (Some(sections), field));
        for section in sections.into_iter().flat_map(|sections| sections.split('.')) {
            let entry = at.entry(section).or_insert_with(|| Value::Table(Table::new()));
            let Value::Table(table) = entry else { return };
            at = table;
        }
        at.insert(field.to_owned(), value.into());
    }

    /// Adds to a list of `section.field`.
    fn append(&mut self, path: &str, more: Vec<String>) {
        let (section, field) = path.split_once('.').unwrap_or(("", path));
        let present = self.config.get(section).and_then(|section| section.get(field)).and_then(Value::as_array);
        let mut all = present.cloned().unwrap_or_default();
        all.extend(more.into_iter().map(Value::String));
        self.set(path, all);
    }

    /// Keeps a secret in a file of its own; returns its path.
    fn secret(&mut self, file_name: &'static str, text: String) -> String {
        self.secrets.push(Secret { file_name, text });
        text_of(&absolute(&self.options.out.join(file_name)))
    }

    /// A flag that a field stands for now; said only of those given.
    fn kept(&mut self, flag: &str, text: &str) {
        self.unused(flag, text);
    }

    /// A flag that needs nothing; said only of those given.
    fn unused(&mut self, flag: &str, text: &str) {
        if self.flags.given(flag).is_some() {
            self.note(format!("-{flag}"), Fate::Kept, text);
        }
    }

    fn differs(&mut self, subject: &str, text: &str) {
        self.note(subject.to_owned(), Fate::Differs, text);
    }

    fn note(&mut self, subject: String, fate: Fate, text: &str) {
        self.notes.push(Note { subject, fate, text: text.to_owned() });
    }

    fn port(&self, flag: &str) -> Result<u16, String> {
        let text = self.flags.text(flag);
        text.parse().map_err(|_| format!("-{flag}: {text} is no port"))
    }
}

fn toml_int(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn list(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned).collect()
}

fn text_of(path: &Path) -> String {
    path.display().to_string()
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
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

fn is_this_machine(url: &str) -> bool {
    let authority = url.split_once("://").map_or(url, |(_, rest)| rest).split(['/', '?']).next().unwrap_or_default();
    let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host).trim_matches(['[', ']']);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Reads a small file; `subject` is who names it.
fn read(path: &Path, subject: &str) -> Result<String, String> {
    let failed = |error: std::io::Error| format!("{subject}: {}: {error}", path.display());
    if std::fs::metadata(path).map_err(failed)?.len() > FILE_LEN_MAX {
        return Err(format!("{subject}: {}: is longer than {FILE_LEN_MAX} bytes", path.display()));
    }
    std::fs::read_to_string(path).map_err(failed)
}

#[cfg(test)]
mod tests;
