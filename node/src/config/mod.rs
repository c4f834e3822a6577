//! The node's configuration: one TOML file, overridden by `--set`, valid as a whole before any port is bound.
//!
//! [`cli`] reads the command line, [`mod@file`] the text, [`defaults`] holds what unset fields mean, [`validate`] turns it all into
//! a [`Config`] with secrets loaded, or into a list of problems that name file, field and what would be right.

pub mod cli;
pub mod defaults;
mod error;
pub mod file;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
pub mod metrics;
#[cfg(test)]
mod mutation_tests;
mod reload;
pub mod validate;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use causeway_client::{Endpoint, Trust};
use causeway_control::Seeds;
use causeway_proto::derpmap::DERP_PORT_DEFAULT;
use causeway_proto::id::RegionId;
use causeway_proto::key::{MeshKey, NodePrivate};
use sha2::{Digest, Sha256};

use crate::admission::cache::Lifetimes;
use crate::admission::list::KeyList;

pub use error::{ConfigError, Problem};
pub use file::{AcmeChallenge, Announce, FileConfig, Limits, LogFormat, RaftProfile};
pub use reload::{Reloaded, Source};

/// A valid configuration. Secrets are loaded and redacted in `Debug`.
#[derive(Debug, Clone)]
pub struct Config {
    /// Unique in the fleet.
    pub name: String,
    /// Where the node keeps its identity, epoch and Raft log.
    pub data_dir: PathBuf,
    /// A fleet of one that forms itself.
    pub standalone: bool,
    /// The fleet's secret. Only a standalone node may lack one in its file: it then gets a random one nobody can know.
    pub mesh_key: MeshKey,
    /// The key that is being rotated in.
    pub mesh_key_next: Option<MeshKey>,
    /// The region this node stands in.
    pub region: Region,
    /// What the DERP map and peers are told.
    pub advertise: Advertise,
    /// The DERP door.
    pub derp: Derp,
    /// Who may log in there.
    pub admission: Admission,
    /// What its HTTP endpoints answer, and whom they believe.
    pub http: Http,
    /// Whose PROXY headers are believed.
    pub proxy_protocol: ProxyProtocol,
    /// Names that are resolved for clients without DNS: `None` is off.
    pub bootstrap_dns: Option<BootstrapDns>,
    /// Where its certificate comes from.
    pub tls: Tls,
    /// STUN: `None` is off.
    pub stun: Option<Stun>,
    /// The mesh port.
    pub mesh: Mesh,
    /// Meshing with stock derpers: `None` is off.
    pub derp_mesh: Option<DerpMesh>,
    /// How to find the others.
    pub seeds: Seeds,
    /// Raft timing.
    pub raft_profile: RaftProfile,
    /// Whether this node may become a voter.
    pub voter_eligible: bool,
    /// The operator door.
    pub operator: Operator,
    /// The metrics listener: `None` is off.
    pub metrics_listen: Option<SocketAddr>,
    /// Trace export: `None` is off.
    pub otlp: Option<Otlp>,
    /// Ceilings (`[limits]`), each checked against its range.
    pub limits: Limits,
    /// Threads of the packet runtime.
    pub packet_threads: usize,
    /// Threads of the control runtime.
    pub control_threads: usize,
    /// Directives of the log filter.
    pub log_filter: String,
    /// How log lines look.
    pub log_format: LogFormat,
}

/// A region as the DERP map names it.
#[derive(Debug, Clone, PartialEq)]
pub struct Region {
    /// Positive, at most 2^53 - 1.
    pub id: RegionId,
    /// Short code.
    pub code: String,
    /// Long name.
    pub name: String,
    /// Degrees north.
    pub latitude: Option<f64>,
    /// Degrees east.
    pub longitude: Option<f64>,
}

/// What others are told about how to reach this node. Unset ports mean the bound ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advertise {
    /// DNS name or address that clients dial and verify.
    pub host_name: String,
    /// Fixed IPv4 address, `none`, or empty for DNS.
    pub ipv4: String,
    /// Fixed IPv6 address, `none`, or empty for DNS.
    pub ipv6: String,
    /// DERP port.
    pub derp_port: Option<u16>,
    /// STUN port.
    pub stun_port: Option<u16>,
    /// Port 80 is reachable.
    pub can_port80: bool,
    /// Listed for STUN alone, not as a relay.
    pub stun_only: bool,
    /// Expected certificate name, or `sha256-raw:` and the certificate's digest.
    pub cert_name: String,
    /// Tells clients to skip certificate checks.
    pub insecure_for_tests: bool,
    /// `HOST:PORT` peers dial; `None` means the host name (or IPv4) with the bound port.
    pub mesh: Option<String>,
}

/// The DERP door.
#[derive(Debug, Clone)]
pub struct Derp {
    /// TLS listener.
    pub listen: SocketAddr,
    /// Plain HTTP listener: `None` is off.
    pub plain_http_listen: Option<SocketAddr>,
    /// That listener serves everything to everybody, DERP included.
    pub plain_http_serves_derp: bool,
    /// File that keeps the server key over restarts.
    pub server_key_file: Option<PathBuf>,
    /// The key in that file, if it exists already.
    pub server_key: Option<NodePrivate>,
}

/// Who may log in.
#[derive(Debug, Clone)]
pub struct Admission {
    /// Asked in this order; all must admit. None: everybody may.
    pub sources: Vec<AdmissionSource>,
    /// An admission URL that does not answer lets in.
    pub fail_open: bool,
    /// How long decisions of sources that are asked over a connection are remembered.
    pub lifetimes: Lifetimes,
    /// How often connected clients are decided on again.
    pub recheck: Duration,
}

/// One who decides on logins.
#[derive(Debug, Clone)]
pub enum AdmissionSource {
    /// Only these keys.
    AllowFile(Arc<KeyList>),
    /// Not these keys.
    DenyFile(Arc<KeyList>),
    /// Whom a URL admits.
    VerifyUrl {
        /// `https`, or `http` where that is allowed.
        url: http::Uri,
        /// Whom to trust for `https`.
        tls: Arc<rustls::ClientConfig>,
    },
    /// Whom the Tailscale daemon behind this socket knows.
    Tailscaled(PathBuf),
}

/// The HTTP endpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Http {
    /// The root page.
    pub home: Home,
    /// Proxies whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<Cidr>,
    /// Networks that may open the debug pages, on every listener.
    pub debug_networks: Vec<Cidr>,
    /// Opens the debug pages from anywhere.
    pub debug_key: Option<DebugKey>,
}

/// What `/` answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Home {
    /// A page that names the service.
    Page,
    /// Nothing.
    Blank,
    /// Somewhere else: an http or https URL.
    Redirect(String),
}

/// A secret that stands in a URL.
#[derive(Clone, PartialEq, Eq)]
pub struct DebugKey(String);

impl DebugKey {
    /// Whether `text` is the key; takes as long whatever of it is right.
    #[must_use]
    pub fn is(&self, text: &str) -> bool {
        Sha256::digest(text.as_bytes()) == Sha256::digest(self.0.as_bytes())
    }
}

impl std::fmt::Debug for DebugKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DebugKey(..)")
    }
}

impl std::str::FromStr for DebugKey {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let good = text.len() >= DEBUG_KEY_LEN_MIN && text.bytes().all(|byte| byte.is_ascii_graphic());
        if good { Ok(Self(text.to_owned())) } else { Err("wanted at least 16 printable characters without spaces") }
    }
}

/// A shorter key could be guessed.
const DEBUG_KEY_LEN_MIN: usize = 16;

/// From whom PROXY headers are believed, which they then must send; per listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyProtocol {
    /// On `derp.listen`.
    pub derp: Vec<Cidr>,
    /// On `derp.plain_http_listen`.
    pub plain_http: Vec<Cidr>,
}

/// Names that are resolved for clients whose DNS does not work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootstrapDns {
    /// Told to everybody.
    pub names: Vec<String>,
    /// Told to those who ask for one by name.
    pub unpublished: Vec<UnpublishedName>,
    /// DNS servers to ask; empty: the system's.
    pub servers: Vec<SocketAddr>,
}

/// A name that is rolled out to a share of the clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnpublishedName {
    /// The name.
    pub name: String,
    /// Where a TXT record says to how many percent; `None`: to all.
    pub percent_name: Option<String>,
}

/// Where the DERP certificate comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tls {
    /// PEM files, reloaded when they change.
    Files {
        /// Certificate chain, leaf first.
        cert: PathBuf,
        /// Private key.
        key: PathBuf,
    },
    /// Made at the first start and kept; clients are told its pin.
    SelfSigned {
        /// Where it is kept, with its key.
        file: PathBuf,
    },
    /// From an ACME directory.
    Acme(Acme),
}

/// Certificates from an ACME directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acme {
    /// URL of the directory.
    pub directory: String,
    /// E-mail address that the directory may write to; empty: none.
    pub contact: String,
    /// Names and addresses of the certificate, in canonical form.
    pub domains: Vec<String>,
    /// How they are proven.
    pub challenge: AcmeChallenge,
    /// The profile to ask for; `None` leaves it to the directory.
    pub profile: Option<String>,
    /// Where account and certificate are kept.
    pub cache_dir: PathBuf,
    /// Whom to trust to be the directory; `None` means the system's roots.
    pub ca_file: Option<PathBuf>,
    /// An account at the directory's operator that ours is bound to.
    pub external_account: Option<ExternalAccount>,
}

/// An external account (RFC 8555 section 7.3.4).
#[derive(Clone, PartialEq, Eq)]
pub struct ExternalAccount {
    /// Names the account.
    pub key_id: String,
    /// The secret that goes with it.
    pub key: zeroize::Zeroizing<Vec<u8>>,
}

impl std::fmt::Debug for ExternalAccount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ExternalAccount").field("key_id", &self.key_id).finish_non_exhaustive()
    }
}

/// The STUN door.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stun {
    /// UDP address.
    pub listen: SocketAddr,
    /// Answer only requests that carry Tailscale's SOFTWARE attribute.
    pub require_software: bool,
}

/// The mesh port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mesh {
    /// TCP address: `None` only in a standalone node.
    pub listen: Option<SocketAddr>,
    /// Connections of a packet link.
    pub stripes: u8,
}

/// Meshing with stock derpers on the DERP port, in both directions.
#[derive(Debug, Clone)]
pub struct DerpMesh {
    /// The DERP mesh key; never the fleet's mesh key.
    pub key: MeshKey,
    /// Source networks it is accepted from.
    pub allow: Vec<Cidr>,
    /// Stock derpers that this node dials and watches.
    pub with: Vec<Derper>,
    /// Whom it believes there; `None`: the system's roots.
    pub trust: Option<Trust>,
    /// Whose clients those that watch this node are told of, beside its own.
    pub announce: Announce,
    /// Keys of stock derpers' clients that this node claims.
    pub keys_max: usize,
}

/// A stock derper to mesh with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Derper {
    /// Name in its certificate, and port.
    pub endpoint: Endpoint,
    /// Host that TCP goes to instead of the name's own.
    pub dial_host: Option<String>,
}

impl std::str::FromStr for Derper {
    type Err = &'static str;

    /// Parses `HOST[:PORT][/DIAL_HOST]`, as stock derpers do (`derp.md` section 12.1).
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WANTED: &str = "wanted HOST, HOST:PORT or HOST/DIAL_HOST, such as derp1.example.com or derp1.example.com/10.0.0.1";
        let (host, dial_host) = text.split_once('/').map_or((text, None), |(host, dial)| (host, Some(dial)));
        if dial_host.is_some_and(|dial| dial.is_empty() || dial.contains(['/', ' '])) || host.contains(' ') {
            return Err(WANTED);
        }
        let has_port = host.rsplit_once(':').is_some_and(|(_, port)| !port.contains(']'));
        let address = if has_port { host.to_owned() } else { format!("{host}:{DERP_PORT_DEFAULT}") };
        let endpoint = Endpoint::new(&address).map_err(|_| WANTED)?;
        Ok(Self { endpoint, dial_host: dial_host.map(str::to_owned) })
    }
}

/// A network in CIDR notation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cidr {
    /// First address.
    pub address: std::net::IpAddr,
    /// Length of the prefix in bits.
    pub prefix_len: u8,
}

impl Cidr {
    /// Whether `address` is inside; an IPv4-mapped address counts as IPv4.
    #[must_use]
    pub fn contains(&self, address: std::net::IpAddr) -> bool {
        use std::net::IpAddr::{V4, V6};
        let host_bits = |width: u32| width - u32::from(self.prefix_len);
        match (self.address, address.to_canonical()) {
            (V4(net), V4(ip)) => {
                let mask = u32::MAX.checked_shl(host_bits(32)).unwrap_or(0);
                (u32::from(net) ^ u32::from(ip)) & mask == 0
            }
            (V6(net), V6(ip)) => {
                let mask = u128::MAX.checked_shl(host_bits(128)).unwrap_or(0);
                (u128::from(net) ^ u128::from(ip)) & mask == 0
            }
            (V4(_), V6(_)) | (V6(_), V4(_)) => false,
        }
    }
}

impl std::str::FromStr for Cidr {
    type Err = &'static str;

    /// Parses `ADDRESS/BITS`; an address alone is a network of one.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WANTED: &str = "a network is ADDRESS/BITS, such as 10.0.0.0/8 or fd00::/8";
        let (address, bits) = text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
        let address: std::net::IpAddr = address.parse().map_err(|_| WANTED)?;
        let width = if address.is_ipv4() { 32 } else { 128 };
        let prefix_len = bits.map_or(Ok(width), str::parse).map_err(|_| WANTED)?;
        if prefix_len > width { Err(WANTED) } else { Ok(Self { address, prefix_len }) }
    }
}

/// The operator door.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operator {
    /// Path of the Unix socket.
    pub socket: PathBuf,
    /// mTLS listener: `None` is off.
    pub listen: Option<SocketAddr>,
}

/// Trace export.
#[derive(Debug, Clone, PartialEq)]
pub struct Otlp {
    /// URL of a gRPC receiver.
    pub endpoint: String,
    /// Share of traces that are sampled, 0 to 1.
    pub sample_ratio: f64,
}

/// How long shutdown may take before what is left is cut, after clients and mesh peers had up to 2 s to go: 8 s in all.
pub const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(6);
