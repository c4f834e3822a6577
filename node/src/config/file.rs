//! The text of the configuration: its sections and fields as written, `--set` overrides, the effective file printed back.
//!
//! Nothing is required here: what is missing is found by [`super::validate`], which can say everything that is wrong at once.

use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::error::{ConfigError, Problem};

/// The file as written, with defaults filled in.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "each field is documented in config.example.toml")]
pub struct FileConfig {
    pub name: String,
    pub data_dir: String,
    pub mesh_key_file: String,
    pub mesh_key_next_file: String,
    pub standalone: bool,
    pub region: Region,
    pub advertise: Advertise,
    pub derp: Derp,
    pub admission: Admission,
    pub http: Http,
    pub proxy_protocol: ProxyProtocol,
    pub bootstrap_dns: BootstrapDns,
    pub tls: Tls,
    pub stun: Stun,
    pub mesh: Mesh,
    pub derp_mesh: DerpMesh,
    pub discovery: Discovery,
    pub raft: Raft,
    pub operator: Operator,
    pub metrics: Metrics,
    pub otlp: Otlp,
    pub limits: Limits,
    pub runtime: Runtime,
    pub log: Log,
}

/// Declares one section per struct: fields as in the file, unknown ones refused.
macro_rules! sections {
    ($($(#[$meta:meta])* $name:ident { $($field:ident: $type:ty),* $(,)? })*) => { $(
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        #[expect(missing_docs, reason = "each field is documented in config.example.toml")]
        pub struct $name { $(pub $field: $type),* }
    )* };
}

sections! {
    /// `[region]`
    #[derive(Default)]
    Region { id: u64, code: String, name: String, latitude: Option<f64>, longitude: Option<f64> }
    /// `[advertise]`
    #[derive(Default)]
    Advertise {
        host_name: String,
        ipv4: String,
        ipv6: String,
        derp_port: u16,
        stun_port: u16,
        can_port80: bool,
        stun_only: bool,
        cert_name: String,
        insecure_for_tests: bool,
        mesh: String,
    }
    /// `[derp]`
    Derp { listen: String, plain_http_listen: String, plain_http_serves_derp: bool, server_key_file: String }
    /// `[admission]`
    Admission {
        sources: Vec<AdmissionSource>,
        allow_file: String,
        deny_file: String,
        verify_url: String,
        verify_url_ca_file: String,
        verify_url_plain: bool,
        fail_open: bool,
        tailscaled_socket: String,
        allow_seconds: u64,
        deny_seconds: u64,
        stale_seconds: u64,
        recheck_seconds: u64,
    }
    /// `[http]`
    #[derive(Default)]
    Http { home: String, trusted_proxies: Vec<String>, debug_networks: Vec<String>, debug_key_file: String }
    /// `[proxy_protocol]`
    #[derive(Default)]
    ProxyProtocol { derp: Vec<String>, plain_http: Vec<String> }
    /// `[bootstrap_dns]`
    #[derive(Default)]
    BootstrapDns { names: Vec<String>, unpublished_names: Vec<String>, servers: Vec<String> }
    /// `[tls]`
    #[derive(Default)]
    Tls { cert_file: String, key_file: String, self_signed: bool, acme: Option<Acme> }
    /// `[tls.acme]`
    Acme {
        directory: String,
        contact: String,
        domains: Vec<String>,
        challenge: AcmeChallenge,
        profile: String,
        cache_dir: String,
        ca_file: String,
        eab_kid: String,
        eab_key_file: String,
    }
    /// `[stun]`
    Stun { listen: String, require_software: bool }
    /// `[mesh]`
    Mesh { listen: String, stripes: u8 }
    /// `[derp_mesh]`
    DerpMesh { key_file: String, allow: Vec<String>, with: Vec<String>, ca_file: String, announce: Announce, keys_max: u64 }
    /// `[discovery]`
    #[derive(Default)]
    Discovery { r#static: Vec<String>, file: String, dns: Vec<String>, dns_servers: Vec<String> }
    /// `[raft]`
    Raft { profile: RaftProfile, voter_eligible: bool }
    /// `[operator]`
    #[derive(Default)]
    Operator { socket: String, listen: String }
    /// `[metrics]`
    Metrics { listen: String }
    /// `[otlp]`
    #[derive(Default)]
    Otlp { endpoint: String, sample_ratio: f64 }
    /// `[limits]`: the numbers of the threat model
    Limits {
        connections: u64,
        unauthenticated: u64,
        unauthenticated_per_source: u64,
        accepts_per_second_per_source: u64,
        accept_burst_per_source: u64,
        accepts_per_second_per_core: u64,
        authenticated_per_ipv4: u64,
        authenticated_per_ipv6: u64,
        tls_handshakes_per_core: u64,
        queue_bytes_total: u64,
        client_queue_bytes: u64,
        connections_per_key: u64,
        key_rate_bits_per_second: u64,
        key_burst_bytes: u64,
        client_rate_bytes_per_second: u64,
        client_burst_bytes: u64,
        stun_answers_per_second: u64,
    }
    /// `[runtime]`
    #[derive(Default)]
    Runtime { packet_threads: u64, control_threads: u64 }
    /// `[log]`
    Log { filter: String, format: LogFormat }
}

/// How an ACME directory checks that this node answers for a domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum AcmeChallenge {
    /// On port 80, which must reach `derp.plain_http_listen`.
    #[serde(rename = "http-01")]
    Http01,
    /// On port 443, which must reach `derp.listen`.
    #[serde(rename = "tls-alpn-01")]
    TlsAlpn01,
}

impl AcmeChallenge {
    /// As in the configuration.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Http01 => "http-01",
            Self::TlsAlpn01 => "tls-alpn-01",
        }
    }
}

/// Raft timing: how far apart the voters are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RaftProfile {
    /// One machine or one site: a new leader within 3 s.
    Lan,
    /// Regions up to 200 ms apart.
    Wan,
}

/// Who decides on a login.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdmissionSource {
    /// A list of the keys that may log in.
    AllowFile,
    /// A list of keys that may not.
    DenyFile,
    /// A URL that is asked about each client.
    VerifyUrl,
    /// The Tailscale daemon of this machine.
    Tailscaled,
}

/// Whose clients stock derpers are told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Announce {
    /// All clients of this node's region.
    Region,
    /// All clients of the fleet.
    Fleet,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

impl FileConfig {
    /// Reads the file and applies the `--set` overrides in order.
    ///
    /// # Errors
    /// [`ConfigError`] naming the file and line, or the override.
    pub fn load(path: &Path, sets: &[String]) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            ConfigError::new(path, vec![Problem::new("", format!("cannot read the configuration file: {error}"))])
        })?;
        Self::parse(path, &text, sets)
    }

    /// As [`FileConfig::load`], with the text at hand; `path` is for messages.
    ///
    /// # Errors
    /// As [`FileConfig::load`].
    pub fn parse(path: &Path, text: &str, sets: &[String]) -> Result<Self, ConfigError> {
        // The text alone first: only then does the parser know lines.
        let refused =
            |error: toml::de::Error| ConfigError::new(path, vec![Problem::new("", error.to_string().trim_end().to_owned())]);
        let mut config: Self = toml::from_str(text).map_err(refused)?;
        let mut table: toml::Table = toml::from_str(text).map_err(refused)?;
        for set in sets {
            let refused = |why: String| ConfigError::new(path, vec![Problem::new(format!("--set {set}"), why)]);
            apply_set(&mut table, set).map_err(refused)?;
            config = table.clone().try_into().map_err(|error: toml::de::Error| refused(error.message().to_owned()))?;
        }
        Ok(config)
    }
}

/// Puts one `KEY=VALUE` into the table. A value that is no TOML value is taken as a string.
fn apply_set(table: &mut toml::Table, set: &str) -> Result<(), String> {
    let (key, value) = set.split_once('=').ok_or("wanted KEY=VALUE, such as region.id=901")?;
    let value = value.trim();
    let parsed = toml::from_str::<toml::Table>(&format!("v = {value}")).ok().and_then(|mut parsed| parsed.remove("v"));
    let value = parsed.unwrap_or_else(|| toml::Value::String(value.to_owned()));
    let mut parts: Vec<&str> = key.trim().split('.').collect();
    let last = parts.pop().filter(|last| !last.is_empty()).ok_or("the key is empty")?;
    let mut at = table;
    for part in parts {
        let section = at.entry(part).or_insert_with(|| toml::Value::Table(toml::Table::new()));
        at = section.as_table_mut().ok_or_else(|| format!("`{part}` is a field, not a section"))?;
    }
    at.insert(last.to_owned(), value);
    Ok(())
}

impl FileConfig {
    /// The effective configuration as one line of JSON, for the log; as safe to show as the TOML form.
    ///
    /// # Errors
    /// A value that JSON does not have, such as an infinite number.
    pub fn to_line(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string(&self.redacted())
    }

    /// Secrets stand in files of their own and never here; credentials in a URL are cut.
    fn redacted(&self) -> Self {
        let mut shown = self.clone();
        shown.otlp.endpoint = without_credentials(&shown.otlp.endpoint);
        shown.admission.verify_url = without_credentials(&shown.admission.verify_url);
        shown
    }
}

impl fmt::Display for FileConfig {
    /// The effective configuration as TOML, redacted.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&toml::to_string(&self.redacted()).map_err(|_| fmt::Error)?)
    }
}

fn without_credentials(url: &str) -> String {
    if let Some((before, _)) = url.split_once('?') {
        return format!("{}?redacted", without_credentials(before));
    }
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    match authority.rsplit_once('@') {
        Some((_, host)) => format!("{scheme}://redacted@{host}{path}"),
        None => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str, sets: &[&str]) -> Result<FileConfig, String> {
        let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
        FileConfig::parse(Path::new("node.toml"), text, &sets).map_err(|error| error.to_string())
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line() {
        let error = parse("name = 'a'\n[region]\nid = 1\ncolour = 'red'\n", &[]).expect_err("unknown key");
        assert!(error.contains("node.toml") && error.contains("colour") && error.contains("line 4"), "{error}");
        let error = parse("[regoin]\nid = 1\n", &[]).expect_err("unknown section");
        assert!(error.contains("regoin") && error.contains("line 1"), "{error}");
    }

    #[test]
    fn overrides_take_toml_values_and_bare_strings_in_order() {
        let sets = [
            "region.id=901",
            "region.code=a",
            "discovery.static=[\"h:1\"]",
            "region.id = 902",
            "log.format=json",
            "standalone=true",
        ];
        let config = parse("name = 'x'\n[region]\nid = 5\nname = 'kept'\n", &sets).expect("valid");
        assert_eq!((config.region.id, config.region.code.as_str(), config.region.name.as_str()), (902, "a", "kept"));
        assert_eq!(config.discovery.r#static, ["h:1"]);
        assert!(config.standalone && config.log.format == LogFormat::Json);
    }

    #[test]
    fn a_bad_override_names_itself() {
        for (set, wanted) in [
            ("region.idd=1", "idd"),
            ("nothing", "KEY=VALUE"),
            ("name.x=1", "`name` is a field"),
            ("region.id=abc", "invalid type"),
            ("=5", "empty"),
        ] {
            let error = parse("name = 'x'", &[set]).expect_err(set);
            assert!(error.contains(&format!("--set {set}")) && error.contains(wanted), "{error}");
        }
    }

    #[test]
    fn the_printed_configuration_parses_back_and_hides_credentials() {
        let text = "name = 'x'\n[otlp]\nendpoint = 'http://user:secret@host:4317/v1'\n\
                    [admission]\nverify_url = 'https://host/verify?token=secret'\n";
        let config = parse(text, &["region.id=7"]).expect("valid");
        let printed = config.to_string();
        assert!(!printed.contains("secret") && printed.contains("redacted@host:4317/v1"), "{printed}");
        assert!(printed.contains("https://host/verify?redacted"), "{printed}");
        let mut back = parse(&printed, &[]).expect("printed form is valid");
        back.otlp = config.otlp.clone();
        back.admission = config.admission.clone();
        assert_eq!(back, config);
    }
}
