//! What a node on this machine is told, as `causeway local start --config` takes it, and the configuration made of it.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use super::layout::{FleetDir, NodeDir, check_node_name};

/// A region as a node's configuration names it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegionSpec {
    /// Number in the DERP map.
    pub id: u64,
    /// Short name, such as `fra`.
    pub code: String,
    /// Name for people; the code if left out.
    #[serde(default)]
    pub name: String,
    /// Degrees north.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latitude: Option<f64>,
    /// Degrees east.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub longitude: Option<f64>,
}

/// Ports of a node; 0 lets the kernel choose once, and later starts keep the choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ports {
    /// DERP over TLS.
    #[serde(alias = "https")]
    pub derp: u16,
    /// Plain HTTP.
    #[serde(alias = "http")]
    pub plain_http: u16,
    /// STUN.
    pub stun: u16,
    /// Node to node.
    #[serde(alias = "internal")]
    pub mesh: u16,
    /// Prometheus.
    pub metrics: u16,
    /// Operator port over mutual TLS; left out: only the local socket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operator: Option<u16>,
}

/// Everything that makes a node of a fleet on this machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeSpec {
    /// Unique in the fleet; a DNS label.
    pub name: String,
    /// Where it belongs.
    pub region: RegionSpec,
    /// The address it binds and is reached at.
    pub bind: IpAddr,
    /// Its DNS name in the DERP map and in its certificate; `NAME.causeway.test` if left out.
    #[serde(default)]
    pub host_name: String,
    /// Its ports.
    #[serde(default)]
    pub ports: Ports,
    /// `lan` or `wan`.
    #[serde(default = "default_profile")]
    pub raft_profile: String,
    /// Whether it may vote.
    #[serde(default = "default_true")]
    pub voter_eligible: bool,
    /// Mesh key of stock derpers that may mesh on the DERP port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub derp_mesh_key_file: Option<PathBuf>,
    /// `KEY=VALUE` each: further configuration fields as TOML paths; they win over all above.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub set: Vec<String>,
}

fn default_profile() -> String {
    "lan".to_owned()
}

const fn default_true() -> bool {
    true
}

/// DNS suffix of nodes on this machine: a name that never exists outside tests (RFC 6761).
pub const TEST_DOMAIN: &str = "causeway.test";

#[derive(Serialize)]
struct Config<'a> {
    name: &'a str,
    data_dir: PathBuf,
    mesh_key_file: PathBuf,
    region: &'a RegionSpec,
    advertise: Advertise<'a>,
    derp: Derp,
    tls: Tls,
    stun: Listen,
    mesh: Listen,
    #[serde(skip_serializing_if = "Option::is_none")]
    derp_mesh: Option<DerpMesh<'a>>,
    discovery: Discovery,
    raft: Raft<'a>,
    operator: OperatorApi,
    metrics: Listen,
}

#[derive(Serialize)]
struct Advertise<'a> {
    host_name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    ipv4: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ipv6: Option<IpAddr>,
}

#[derive(Serialize)]
struct Derp {
    listen: SocketAddr,
    plain_http_listen: SocketAddr,
}

#[derive(Serialize)]
struct Tls {
    cert_file: PathBuf,
    key_file: PathBuf,
}

#[derive(Serialize)]
struct Listen {
    listen: SocketAddr,
}

#[derive(Serialize)]
struct DerpMesh<'a> {
    key_file: &'a PathBuf,
    allow: Vec<String>,
}

#[derive(Serialize)]
struct Discovery {
    file: PathBuf,
}

#[derive(Serialize)]
struct Raft<'a> {
    profile: &'a str,
    voter_eligible: bool,
}

#[derive(Serialize)]
struct OperatorApi {
    socket: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    listen: Option<SocketAddr>,
}

impl NodeSpec {
    /// Parses and checks what `--config` holds.
    ///
    /// # Errors
    /// Naming the field and what would be right.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let mut spec: Self = serde_json::from_str(text).context("--config: no valid node")?;
        spec.complete()?;
        Ok(spec)
    }

    /// Fills what was left out and checks the rest.
    ///
    /// # Errors
    /// Naming the field and what would be right.
    pub fn complete(&mut self) -> anyhow::Result<()> {
        check_node_name(&self.name).context("name")?;
        if self.region.code.is_empty() {
            bail!("region.code: is empty; give a short name such as fra");
        }
        if self.region.id == 0 {
            bail!("region.id: is 0; give the region's number in the DERP map, such as 901");
        }
        if self.bind.is_unspecified() {
            bail!("bind: {} is no address others can reach; give the node's own", self.bind);
        }
        if !matches!(self.raft_profile.as_str(), "lan" | "wan") {
            bail!("raft_profile: {:?} is not known; use lan or wan", self.raft_profile);
        }
        if self.region.name.is_empty() {
            self.region.name.clone_from(&self.region.code);
        }
        if self.host_name.is_empty() {
            self.host_name = format!("{}.{TEST_DOMAIN}", self.name);
        }
        Ok(())
    }

    /// The node's configuration, TOML.
    ///
    /// # Errors
    /// If it cannot be rendered.
    pub fn to_config(&self, fleet: &FleetDir, node: &NodeDir) -> anyhow::Result<String> {
        let at = |port| SocketAddr::new(self.bind, port);
        let config = Config {
            name: &self.name,
            data_dir: node.data(),
            mesh_key_file: fleet.mesh_key(),
            region: &self.region,
            advertise: Advertise {
                host_name: &self.host_name,
                ipv4: Some(self.bind).filter(IpAddr::is_ipv4),
                ipv6: Some(self.bind).filter(IpAddr::is_ipv6),
            },
            derp: Derp { listen: at(self.ports.derp), plain_http_listen: at(self.ports.plain_http) },
            tls: Tls { cert_file: node.cert(), key_file: node.key() },
            stun: Listen { listen: at(self.ports.stun) },
            mesh: Listen { listen: at(self.ports.mesh) },
            derp_mesh: self.derp_mesh_key_file.as_ref().map(|key_file| DerpMesh { key_file, allow: self.stock_peers() }),
            discovery: Discovery { file: fleet.seeds() },
            raft: Raft { profile: &self.raft_profile, voter_eligible: self.voter_eligible },
            operator: OperatorApi { socket: node.socket(), listen: self.ports.operator.map(at) },
            metrics: Listen { listen: at(self.ports.metrics) },
        };
        toml::to_string(&config).context("the configuration cannot be rendered")
    }

    /// Overrides of the configuration for the ports that are known, those that the kernel chose at an earlier start among them.
    #[must_use]
    pub fn listeners(&self) -> Vec<String> {
        let ports = [
            ("derp.listen", self.ports.derp),
            ("derp.plain_http_listen", self.ports.plain_http),
            ("stun.listen", self.ports.stun),
            ("mesh.listen", self.ports.mesh),
            ("metrics.listen", self.ports.metrics),
            ("operator.listen", self.ports.operator.unwrap_or_default()),
        ];
        let known = ports.into_iter().filter(|(_, port)| *port != 0);
        known.map(|(field, port)| format!("{field}=\"{}\"", SocketAddr::new(self.bind, port))).collect()
    }

    /// Sources from which stock derpers may mesh: this machine.
    fn stock_peers(&self) -> Vec<String> {
        let own = if self.bind.is_ipv4() { format!("{}/32", self.bind) } else { format!("{}/128", self.bind) };
        let mut allow = vec!["127.0.0.0/8".to_owned(), "::1/128".to_owned()];
        if !self.bind.is_loopback() {
            allow.push(own);
        }
        allow
    }

    /// Keeps the ports a running node was given, so that its next start has the same.
    ///
    /// # Errors
    /// If the node names an address without a port.
    pub fn pin_ports(&mut self, ready: &super::ready::NodeReady) -> anyhow::Result<()> {
        let pin = |port: &mut u16, address: &str| -> anyhow::Result<()> {
            if !address.is_empty() {
                let (_, text) = address.rsplit_once(':').with_context(|| format!("ready file: {address:?} is not HOST:PORT"))?;
                *port = text.parse().with_context(|| format!("ready file: {address:?} is not HOST:PORT"))?;
            }
            Ok(())
        };
        pin(&mut self.ports.derp, &ready.derp)?;
        pin(&mut self.ports.plain_http, &ready.plain_http)?;
        pin(&mut self.ports.stun, &ready.stun)?;
        pin(&mut self.ports.mesh, &ready.mesh)?;
        let metrics = ready.metrics.trim_start_matches("http://");
        pin(&mut self.ports.metrics, metrics.split('/').next().unwrap_or_default())?;
        if let Some(port) = &mut self.ports.operator {
            pin(port, &ready.operator)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const MINIMAL: &str = r#"{"name":"fra-1","region":{"id":901,"code":"fra"},"bind":"127.90.1.11"}"#;

    #[test]
    fn a_minimal_node_is_completed_and_becomes_this_configuration() {
        let spec = NodeSpec::parse(MINIMAL).expect("valid");
        let fleet = FleetDir::new(Path::new("/f")).expect("fleet");
        let config = spec.to_config(&fleet, &fleet.node("fra-1").expect("name")).expect("rendered");
        assert_eq!(
            config,
            r#"name = "fra-1"
data_dir = "/f/fra-1/data"
mesh_key_file = "/f/mesh.key"

[region]
id = 901
code = "fra"
name = "fra"

[advertise]
host_name = "fra-1.causeway.test"
ipv4 = "127.90.1.11"

[derp]
listen = "127.90.1.11:0"
plain_http_listen = "127.90.1.11:0"

[tls]
cert_file = "/f/fra-1/cert.pem"
key_file = "/f/fra-1/key.pem"

[stun]
listen = "127.90.1.11:0"

[mesh]
listen = "127.90.1.11:0"

[discovery]
file = "/f/seeds.json"

[raft]
profile = "lan"
voter_eligible = true

[operator]
socket = "/f/fra-1/operator.sock"

[metrics]
listen = "127.90.1.11:0"
"#
        );
    }

    #[test]
    fn the_names_of_the_fleet_contract_are_taken_for_ports() {
        let spec = NodeSpec::parse(
            r#"{"name":"fra-1","region":{"id":901,"code":"fra"},"bind":"::1",
                "ports":{"https":10443,"http":10080,"stun":13478,"internal":17443,"metrics":19090,"operator":17444}}"#,
        )
        .expect("valid");
        assert_eq!(
            spec.ports,
            Ports { derp: 10443, plain_http: 10080, stun: 13478, mesh: 17443, metrics: 19090, operator: Some(17444) }
        );
        let again: NodeSpec = serde_json::from_str(&serde_json::to_string(&spec).expect("json")).expect("valid");
        assert_eq!(again, spec);
    }

    #[test]
    fn wrong_fields_are_named() {
        for (change, to, named) in [
            ("\"fra-1\"", "\"FRA\"", "such as a-1"),
            ("901", "0", "region.id"),
            ("\"code\":\"fra\"", "\"code\":\"\"", "region.code"),
            ("127.90.1.11", "0.0.0.0", "bind"),
            ("\"bind\"", "\"raft_profile\":\"moon\",\"bind\"", "raft_profile"),
            ("\"bind\"", "\"colour\":1,\"bind\"", "colour"),
        ] {
            let refused = format!("{:#}", NodeSpec::parse(&MINIMAL.replace(change, to)).expect_err(named));
            assert!(refused.contains(named), "{refused}");
        }
    }

    #[test]
    fn bound_ports_are_kept() {
        let mut spec = NodeSpec::parse(MINIMAL).expect("valid");
        let ready = super::super::ready::NodeReady {
            version: 1,
            name: "fra-1".to_owned(),
            node_id: String::new(),
            pid: 1,
            epoch: 1,
            derp: "127.90.1.11:1001".to_owned(),
            plain_http: String::new(),
            stun: "127.90.1.11:1003".to_owned(),
            mesh: "[::1]:1004".to_owned(),
            operator: String::new(),
            operator_socket: PathBuf::new(),
            metrics: "http://127.90.1.11:1005/metrics".to_owned(),
            derp_public_key: String::new(),
        };
        spec.pin_ports(&ready).expect("pinned");
        assert_eq!(spec.ports, Ports { derp: 1001, plain_http: 0, stun: 1003, mesh: 1004, metrics: 1005, operator: None });
        let listeners =
            ["derp.listen=\"127.90.1.11:1001\"", "stun.listen=\"127.90.1.11:1003\"", "mesh.listen=\"127.90.1.11:1004\""];
        assert_eq!(spec.listeners()[..3], listeners);
        assert_eq!(spec.listeners().len(), 4);
    }
}
