//! From the file to a valid [`Config`]: every field checked, secrets loaded, nothing bound or created yet.

mod acme;
mod admission;
mod files;
mod front;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use causeway_client::Trust;
use causeway_control::Seeds;
use causeway_control::discovery::DNS_NAMES_MAX;
use causeway_control::presence::CLAIMS_PER_OWNER_MAX;
use causeway_proto::id::RegionId;
use causeway_proto::key::{MeshKey, NodePrivate};

use super::{
    Advertise, Cidr, Config, ConfigError, Derp, DerpMesh, Derper, FileConfig, Mesh, Operator, Otlp, Problem, ProxyProtocol,
    Region, Stun, Tls, file,
};
use files::Files;

/// Largest region id: numbers in the DERP map must survive JSON.
const REGION_ID_MAX: u64 = (1 << 53) - 1;

/// Longest node name and region code.
const NAME_LEN_MAX: usize = 63;

/// Most stock derpers that are dialled.
const DERPERS_MAX: usize = 64;

/// Most keys of their clients: half of what a node may claim, so that clients of its own always find room.
const DERPER_KEYS_MAX: u64 = (CLAIMS_PER_OWNER_MAX / 2) as u64;

/// Most entries of a list: seeds, networks, names.
const LIST_LEN_MAX: usize = 256;

/// Slowest rate of a client, in bytes per second.
const RATE_MIN: u64 = 8 * 1024;

impl Config {
    /// Checks everything and loads the secrets. Reads files, creates and binds nothing.
    ///
    /// # Errors
    /// [`ConfigError`] with all problems found.
    pub fn validate(path: &Path, file: &FileConfig) -> Result<Self, ConfigError> {
        Self::validate_with(Files::Here, path, file)
    }

    /// Checks everything as if no file were there, and looks at none.
    ///
    /// # Errors
    /// [`ConfigError`] with all problems found.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn validate_without_files(path: &Path, file: &FileConfig) -> Result<Self, ConfigError> {
        Self::validate_with(Files::Nowhere, path, file)
    }

    fn validate_with(files: Files, path: &Path, file: &FileConfig) -> Result<Self, ConfigError> {
        let mut check = Check { files, problems: Vec::new() };
        let config = check.config(file);
        if check.problems.is_empty() { Ok(config) } else { Err(ConfigError::new(path, check.problems)) }
    }
}

/// Collects problems; a field that has one gets a harmless value so that the others are still looked at.
struct Check {
    files: Files,
    problems: Vec<Problem>,
}

impl Check {
    fn wrong(&mut self, field: &str, message: impl Into<String>) {
        self.problems.push(Problem::new(field, message));
    }

    fn config(&mut self, file: &FileConfig) -> Config {
        let data_dir = self.data_dir(&file.data_dir);
        let (packet_threads, control_threads) = self.threads(&file.runtime);
        Config {
            name: self.name("name", &file.name),
            standalone: file.standalone,
            mesh_key: self.mesh_key(file),
            mesh_key_next: self.secret("mesh_key_next_file", &file.mesh_key_next_file),
            region: self.region(&file.region),
            advertise: self.advertise(&file.advertise),
            derp: self.derp(&file.derp),
            admission: self.admission(&file.admission),
            http: self.http(&file.http),
            proxy_protocol: ProxyProtocol {
                derp: self.networks("proxy_protocol.derp", &file.proxy_protocol.derp),
                plain_http: self.networks("proxy_protocol.plain_http", &file.proxy_protocol.plain_http),
            },
            bootstrap_dns: self.bootstrap_dns(&file.bootstrap_dns),
            tls: self.tls(file, &data_dir),
            stun: self
                .optional_address("stun.listen", &file.stun.listen)
                .map(|listen| Stun { listen, require_software: file.stun.require_software }),
            mesh: self.mesh(file),
            derp_mesh: self.derp_mesh(&file.derp_mesh),
            seeds: self.seeds(&file.discovery),
            raft_profile: file.raft.profile,
            voter_eligible: file.raft.voter_eligible,
            operator: Operator {
                socket: optional_path(&file.operator.socket).unwrap_or_else(|| data_dir.join("operator.sock")),
                listen: self.optional_address("operator.listen", &file.operator.listen),
            },
            metrics_listen: self.optional_address("metrics.listen", &file.metrics.listen),
            otlp: self.otlp(&file.otlp),
            limits: self.limits(&file.limits),
            packet_threads,
            control_threads,
            log_filter: self.log_filter(&file.log.filter),
            log_format: file.log.format,
            data_dir,
        }
    }

    fn name(&mut self, field: &str, text: &str) -> String {
        let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
        if text.is_empty() {
            self.wrong(field, "is missing: give the node a name that is unique in the fleet, such as fra-1");
        } else if text.len() > NAME_LEN_MAX || !text.chars().all(good) {
            self.wrong(field, format!("`{text}` is not 1 to {NAME_LEN_MAX} characters of a-z, 0-9, `-` and `.`"));
        }
        text.to_owned()
    }

    fn data_dir(&mut self, text: &str) -> PathBuf {
        let path = PathBuf::from(text);
        if text.is_empty() {
            self.wrong("data_dir", "is missing: name the directory where the node keeps its identity and its Raft log");
        } else if self.files.exists(&path) && !self.files.is_dir(&path) {
            self.wrong("data_dir", format!("{text} is not a directory"));
        }
        path
    }

    fn mesh_key(&mut self, file: &FileConfig) -> MeshKey {
        if file.mesh_key_file.is_empty() && !file.standalone {
            let message = "is missing: name the file that holds the fleet's mesh key (64 hex digits), or set `standalone = true`";
            self.wrong("mesh_key_file", message);
        }
        self.secret("mesh_key_file", &file.mesh_key_file).unwrap_or_else(MeshKey::generate)
    }

    /// Loads a secret from the file that `field` names; `None` if it names none or there was a problem.
    fn secret<T: FromStr<Err: fmt::Display>>(&mut self, field: &str, path: &str) -> Option<T> {
        let path = optional_path(path)?;
        match self.files.secret(&path) {
            // The text of a secret never goes into a message.
            Ok(text) => match text.trim().parse() {
                Ok(secret) => return Some(secret),
                Err(error) => self.wrong(field, format!("{}: {error}", path.display())),
            },
            Err(why) => self.wrong(field, format!("{}: {why}", path.display())),
        }
        None
    }

    fn region(&mut self, region: &file::Region) -> Region {
        if *region == file::Region::default() {
            self.wrong("region", "is missing: add a [region] section with id, code and name");
        } else {
            if region.id == 0 || region.id > REGION_ID_MAX {
                self.wrong(
                    "region.id",
                    format!("wanted a number from 1 to {REGION_ID_MAX} (900 to 999 are for self-hosted regions)"),
                );
            }
            self.name("region.code", &region.code);
        }
        for (field, degrees, most) in [("region.latitude", region.latitude, 90.0), ("region.longitude", region.longitude, 180.0)]
        {
            if degrees.is_some_and(|degrees| !(-most..=most).contains(&degrees)) {
                self.wrong(field, format!("wanted degrees from -{most} to {most}"));
            }
        }
        Region {
            id: RegionId(region.id),
            code: region.code.clone(),
            name: if region.name.is_empty() { region.code.clone() } else { region.name.clone() },
            latitude: region.latitude,
            longitude: region.longitude,
        }
    }

    fn advertise(&mut self, advertise: &file::Advertise) -> Advertise {
        if advertise.host_name.is_empty() {
            self.wrong("advertise.host_name", "is missing: the DNS name (or address) by which clients reach this node");
        } else if advertise.host_name.contains([':', '/', ' ']) && advertise.host_name.parse::<IpAddr>().is_err() {
            self.wrong("advertise.host_name", format!("`{}` is not a host name without port", advertise.host_name));
        }
        self.family("advertise.ipv4", &advertise.ipv4, IpAddr::is_ipv4);
        self.family("advertise.ipv6", &advertise.ipv6, IpAddr::is_ipv6);
        if !advertise.mesh.is_empty() {
            self.host_port("advertise.mesh", &advertise.mesh);
        }
        Advertise {
            host_name: advertise.host_name.clone(),
            ipv4: advertise.ipv4.clone(),
            ipv6: advertise.ipv6.clone(),
            derp_port: Some(advertise.derp_port).filter(|port| *port != 0),
            stun_port: Some(advertise.stun_port).filter(|port| *port != 0),
            can_port80: advertise.can_port80,
            stun_only: advertise.stun_only,
            cert_name: advertise.cert_name.clone(),
            insecure_for_tests: advertise.insecure_for_tests,
            mesh: Some(advertise.mesh.clone()).filter(|mesh| !mesh.is_empty()),
        }
    }

    fn family(&mut self, field: &str, text: &str, right: fn(&IpAddr) -> bool) {
        if !matches!(text, "" | "none") && !text.parse().is_ok_and(|address| right(&address)) {
            self.wrong(field, format!("`{text}` is neither such an address, nor `none`, nor empty"));
        }
    }

    fn derp(&mut self, derp: &file::Derp) -> Derp {
        let server_key_file = optional_path(&derp.server_key_file);
        // A missing file is made at start.
        let exists = server_key_file.as_ref().is_some_and(|path| self.files.exists(path));
        Derp {
            listen: self.address("derp.listen", &derp.listen),
            plain_http_listen: self.optional_address("derp.plain_http_listen", &derp.plain_http_listen),
            plain_http_serves_derp: derp.plain_http_serves_derp,
            server_key: if exists { self.secret::<NodePrivate>("derp.server_key_file", &derp.server_key_file) } else { None },
            server_key_file,
        }
    }

    fn tls(&mut self, file: &FileConfig, data_dir: &Path) -> Tls {
        let tls = &file.tls;
        let files = Tls::Files { cert: PathBuf::from(&tls.cert_file), key: PathBuf::from(&tls.key_file) };
        match (&tls.acme, tls.self_signed, tls.cert_file.as_str(), tls.key_file.as_str()) {
            (Some(acme), false, "", "") => return Tls::Acme(self.acme(acme, file, data_dir)),
            (None, true, "", "") => {
                let name = &file.advertise.host_name;
                return Tls::SelfSigned { file: data_dir.join("tls").join(format!("{name}.pem")) };
            }
            (Some(_), ..) => self.wrong("tls", "[tls.acme] excludes self_signed, cert_file and key_file"),
            (None, true, ..) => self.wrong("tls", "`self_signed = true` excludes cert_file and key_file"),
            (None, false, "", "") => {
                self.wrong("tls", "is missing: set cert_file and key_file, or add [tls.acme], or set `self_signed = true`")
            }
            (None, false, "", _) => self.wrong("tls.cert_file", "is missing beside key_file"),
            (None, false, _, "") => self.wrong("tls.key_file", "is missing beside cert_file"),
            (None, false, ..) => {}
        }
        files
    }

    fn mesh(&mut self, file: &FileConfig) -> Mesh {
        // Without a mesh key nobody can come in: a standalone node needs no port for it.
        let alone = file.standalone && file.mesh_key_file.is_empty();
        let listen = self.optional_address("mesh.listen", &file.mesh.listen).filter(|_| !alone);
        if file.mesh.listen.is_empty() && !file.standalone {
            self.wrong("mesh.listen", "may only be empty in a standalone node: wanted ADDRESS:PORT");
        }
        self.range("mesh.stripes", u64::from(file.mesh.stripes), 1, 16);
        Mesh { listen, stripes: file.mesh.stripes }
    }

    fn derp_mesh(&mut self, derp_mesh: &file::DerpMesh) -> Option<DerpMesh> {
        let allow = self.networks("derp_mesh.allow", &derp_mesh.allow);
        let with = self.derpers(&derp_mesh.with);
        let trust = self.derper_trust(&derp_mesh.ca_file);
        self.range("derp_mesh.keys_max", derp_mesh.keys_max, 1, DERPER_KEYS_MAX);
        if derp_mesh.key_file.is_empty() {
            if !(derp_mesh.allow.is_empty() && derp_mesh.with.is_empty()) {
                self.wrong("derp_mesh.key_file", "is missing beside derp_mesh.allow or derp_mesh.with");
            }
            return None;
        }
        if derp_mesh.allow.is_empty() && derp_mesh.with.is_empty() {
            let message = "is missing: list the networks stock derpers mesh from, such as [\"192.0.2.0/24\"], or derpers to \
                           dial in derp_mesh.with";
            self.wrong("derp_mesh.allow", message);
        }
        let keys_max = usize::try_from(derp_mesh.keys_max).unwrap_or(usize::MAX);
        let announce = derp_mesh.announce;
        self.secret("derp_mesh.key_file", &derp_mesh.key_file).map(|key| DerpMesh { key, allow, with, trust, announce, keys_max })
    }

    fn derpers(&mut self, texts: &[String]) -> Vec<Derper> {
        if texts.len() > DERPERS_MAX {
            self.wrong("derp_mesh.with", format!("has {} entries, at most {DERPERS_MAX} are taken", texts.len()));
        }
        let mut derpers: Vec<Derper> = Vec::new();
        for text in texts {
            match text.parse() {
                Ok(derper) if derpers.contains(&derper) => self.wrong("derp_mesh.with", format!("`{text}` is named twice")),
                Ok(derper) => derpers.push(derper),
                Err(why) => self.wrong("derp_mesh.with", format!("`{text}`: {why}")),
            }
        }
        derpers
    }

    fn derper_trust(&mut self, ca_file: &str) -> Option<Trust> {
        let trust = self.files.trust(Some(&optional_path(ca_file)?));
        trust.map_err(|why| self.wrong("derp_mesh.ca_file", why)).ok()
    }

    fn networks(&mut self, field: &str, networks: &[String]) -> Vec<Cidr> {
        self.list_len(field, networks.len());
        self.parsed(field, networks)
    }

    fn seeds(&mut self, discovery: &file::Discovery) -> Seeds {
        self.list_len("discovery.static", discovery.r#static.len());
        for seed in &discovery.r#static {
            self.host_port("discovery.static", seed);
        }
        if discovery.dns.len() > DNS_NAMES_MAX {
            self.wrong("discovery.dns", format!("has {} names, at most {DNS_NAMES_MAX} are taken", discovery.dns.len()));
        }
        self.list_len("discovery.dns_servers", discovery.dns_servers.len());
        if discovery.dns.is_empty() && !discovery.dns_servers.is_empty() {
            self.wrong("discovery.dns", "is missing beside discovery.dns_servers");
        }
        Seeds {
            static_list: discovery.r#static.clone(),
            file: optional_path(&discovery.file),
            dns: self.parsed("discovery.dns", &discovery.dns),
            dns_servers: discovery.dns_servers.iter().map(|server| self.address("discovery.dns_servers", server)).collect(),
        }
    }

    /// Those of a list that can be parsed; each other one is a problem.
    fn parsed<T: FromStr<Err: fmt::Display>>(&mut self, field: &str, texts: &[String]) -> Vec<T> {
        let mut parsed = Vec::new();
        for text in texts {
            match text.parse() {
                Ok(value) => parsed.push(value),
                Err(why) => self.wrong(field, format!("`{text}`: {why}")),
            }
        }
        parsed
    }

    fn list_len(&mut self, field: &str, len: usize) {
        if len > LIST_LEN_MAX {
            self.wrong(field, format!("has {len} entries, at most {LIST_LEN_MAX} are taken"));
        }
    }

    fn otlp(&mut self, otlp: &file::Otlp) -> Option<Otlp> {
        if !(0.0..=1.0).contains(&otlp.sample_ratio) {
            self.wrong("otlp.sample_ratio", "wanted a share from 0.0 to 1.0");
        }
        if otlp.endpoint.is_empty() {
            return None;
        }
        if !otlp.endpoint.starts_with("http://") {
            self.wrong("otlp.endpoint", "wanted the URL of a gRPC receiver, such as http://127.0.0.1:4317");
        }
        Some(Otlp { endpoint: otlp.endpoint.clone(), sample_ratio: otlp.sample_ratio })
    }

    fn limits(&mut self, limits: &file::Limits) -> file::Limits {
        const GIB: u64 = 1 << 30;
        for (field, value, least, most) in [
            ("limits.connections", limits.connections, 1, 1_000_000),
            ("limits.unauthenticated", limits.unauthenticated, 1, 1_000_000),
            ("limits.unauthenticated_per_source", limits.unauthenticated_per_source, 1, 1_000_000),
            ("limits.accepts_per_second_per_source", limits.accepts_per_second_per_source, 1, 1_000_000),
            ("limits.accept_burst_per_source", limits.accept_burst_per_source, 1, 1_000_000),
            ("limits.accepts_per_second_per_core", limits.accepts_per_second_per_core, 1, 1_000_000),
            ("limits.authenticated_per_ipv4", limits.authenticated_per_ipv4, 1, 1_000_000),
            ("limits.authenticated_per_ipv6", limits.authenticated_per_ipv6, 1, 1_000_000),
            ("limits.tls_handshakes_per_core", limits.tls_handshakes_per_core, 1, 10_000),
            ("limits.queue_bytes_total", limits.queue_bytes_total, 1 << 20, 1024 * GIB),
            // The largest packet must fit.
            ("limits.client_queue_bytes", limits.client_queue_bytes, 128 * 1024, GIB),
            ("limits.connections_per_key", limits.connections_per_key, 1, 1_024),
            ("limits.key_rate_bits_per_second", limits.key_rate_bits_per_second, 0, 1_000_000_000_000),
            // The largest packet must fit.
            ("limits.key_burst_bytes", limits.key_burst_bytes, 128 * 1024, GIB),
            ("limits.client_rate_bytes_per_second", limits.client_rate_bytes_per_second, 0, 125_000_000_000),
            ("limits.client_burst_bytes", limits.client_burst_bytes, 0, GIB),
            ("limits.stun_answers_per_second", limits.stun_answers_per_second, 1, 100_000_000),
        ] {
            self.range(field, value, least, most);
        }
        // Slower ones would keep a connection unread for many seconds after a single packet.
        for (field, rate, least) in [
            ("limits.key_rate_bits_per_second", limits.key_rate_bits_per_second, 8 * RATE_MIN),
            ("limits.client_rate_bytes_per_second", limits.client_rate_bytes_per_second, RATE_MIN),
        ] {
            if rate > 0 && rate < least {
                self.wrong(field, format!("{rate} is too slow: wanted 0 (no limit) or at least {least}"));
            }
        }
        limits.clone()
    }

    fn threads(&mut self, runtime: &file::Runtime) -> (usize, usize) {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let mut threads = |field, value: u64, default: usize| {
            self.range(field, value, 0, 1024);
            if value == 0 { default } else { usize::try_from(value).unwrap_or(default) }
        };
        (
            threads("runtime.packet_threads", runtime.packet_threads, cores),
            threads("runtime.control_threads", runtime.control_threads, 2.min(cores)),
        )
    }

    fn log_filter(&mut self, filter: &str) -> String {
        if let Err(error) = tracing_subscriber::EnvFilter::builder().parse(filter) {
            self.wrong("log.filter", format!("`{filter}`: {error}; wanted directives such as info,causeway_node=debug"));
        }
        filter.to_owned()
    }

    fn range(&mut self, field: &str, value: u64, least: u64, most: u64) {
        if !(least..=most).contains(&value) {
            self.wrong(field, format!("{value} is out of range: wanted {least} to {most}"));
        }
    }

    fn address(&mut self, field: &str, text: &str) -> SocketAddr {
        text.parse().unwrap_or_else(|_| {
            self.wrong(field, format!("`{text}` is not ADDRESS:PORT, such as 0.0.0.0:443 or [::]:443"));
            SocketAddr::from(([0, 0, 0, 0], 0))
        })
    }

    fn optional_address(&mut self, field: &str, text: &str) -> Option<SocketAddr> {
        if text.is_empty() { None } else { Some(self.address(field, text)) }
    }

    fn host_port(&mut self, field: &str, text: &str) {
        let good =
            text.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port != 0));
        if !good {
            self.wrong(field, format!("`{text}` is not HOST:PORT"));
        }
    }
}

fn optional_path(text: &str) -> Option<PathBuf> {
    if text.is_empty() { None } else { Some(PathBuf::from(text)) }
}

#[cfg(test)]
mod tests;
