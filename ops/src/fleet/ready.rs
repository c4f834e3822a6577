//! What running processes tell others in files: a node's ready file (written by `causewayd`) and the fleet's (written here).

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Version of both formats.
pub const VERSION: u32 = 1;

/// Where one node listens, as `causewayd --ready-file` writes it. HOST:PORT each; empty: off.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeReady {
    /// [`VERSION`].
    pub version: u32,
    /// The node's name.
    pub name: String,
    /// 16 hex digits.
    pub node_id: String,
    /// Its process.
    pub pid: u32,
    /// How often it has started on its data directory.
    pub epoch: u64,
    /// DERP over TLS.
    pub derp: String,
    /// DERP and probes without TLS.
    #[serde(default)]
    pub plain_http: String,
    /// STUN.
    #[serde(default)]
    pub stun: String,
    /// Where peers connect.
    #[serde(default)]
    pub mesh: String,
    /// Operator port.
    #[serde(default)]
    pub operator: String,
    /// Operator socket, a path.
    #[serde(default)]
    pub operator_socket: PathBuf,
    /// URL of the metrics.
    #[serde(default)]
    pub metrics: String,
    /// 64 hex digits.
    pub derp_public_key: String,
}

impl NodeReady {
    /// Reads a node's ready file; `None` while there is none.
    ///
    /// # Errors
    /// If the file is there and of another format.
    pub fn read(path: &Path) -> anyhow::Result<Option<Self>> {
        let text = match std::fs::read_to_string(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(|error| anyhow::anyhow!("{}: {error}", path.display()))?,
        };
        let ready: Self = serde_json::from_str(&text)
            .map_err(|error| anyhow::anyhow!("{}: not a ready file of causewayd: {error}", path.display()))?;
        if ready.version != VERSION {
            anyhow::bail!(
                "{}: format {} is not known, only {VERSION}: causeway and causewayd are of different releases",
                path.display(),
                ready.version
            );
        }
        Ok(Some(ready))
    }
}

/// The whole fleet, once it is healthy: the ready file of `causeway dev`, documented in `docs/operations/dev.md`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FleetReady {
    /// [`VERSION`].
    pub version: u32,
    /// URL of the DERP map; its certificate is signed by `ca_file`.
    pub derpmap_url: String,
    /// CA of the nodes' TLS certificates.
    pub ca_file: PathBuf,
    /// Whether clients must skip certificate checks; never, here.
    pub insecure: bool,
    /// The secret the nodes share.
    pub mesh_key_file: PathBuf,
    /// The key of stock derpers that may mesh; empty unless asked for.
    pub derp_mesh_key_file: PathBuf,
    /// Operator socket of the first node.
    pub operator_socket: PathBuf,
    /// All nodes, by region and ordinal.
    pub nodes: Vec<FleetNode>,
}

/// One node of [`FleetReady`]. HOST:PORT each; empty: off.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FleetNode {
    /// Its name, such as `a-1`.
    pub name: String,
    /// Code of its region, such as `a`.
    pub region: String,
    /// Number of its region in the DERP map.
    pub region_id: u64,
    /// Its process.
    pub pid: u32,
    /// DERP over TLS.
    pub derp: String,
    /// DERP and probes without TLS.
    pub plain_http: String,
    /// STUN.
    pub stun: String,
    /// URL of its metrics.
    pub metrics: String,
    /// Its operator socket, a path.
    pub operator_socket: PathBuf,
    /// 64 hex digits; fresh at each start.
    pub derp_public_key: String,
    /// 16 hex digits.
    pub node_id: String,
    /// Its data directory.
    pub data_dir: PathBuf,
    /// Its standard output and error.
    pub log: PathBuf,
}

impl FleetNode {
    /// Joins what a node says with where its files are.
    #[must_use]
    pub fn new(ready: NodeReady, dir: &super::layout::NodeDir, region: &str, region_id: u64) -> Self {
        Self {
            name: ready.name,
            region: region.to_owned(),
            region_id,
            pid: ready.pid,
            derp: ready.derp,
            plain_http: ready.plain_http,
            stun: ready.stun,
            metrics: ready.metrics,
            operator_socket: ready.operator_socket,
            derp_public_key: ready.derp_public_key,
            node_id: ready.node_id,
            data_dir: dir.data(),
            log: dir.log(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: &str = r#"{"version":1,"name":"a-1","node_id":"0123456789abcdef","pid":7,"epoch":1,"derp":"127.0.0.1:1","plain_http":"",
        "stun":"127.0.0.1:2","mesh":"127.0.0.1:3","operator":"","operator_socket":"/f/a-1/operator.sock",
        "metrics":"http://127.0.0.1:4/metrics","derp_public_key":"ab","later":"ignored"}"#;

    #[test]
    fn the_fleets_ready_file_has_exactly_the_documented_fields() {
        let fleet = super::super::layout::FleetDir::new(Path::new("/f")).expect("fleet");
        let node = FleetNode::new(serde_json::from_str(NODE).expect("node"), &fleet.node("a-1").expect("name"), "a", 901);
        let ready = FleetReady {
            version: VERSION,
            derpmap_url: "https://127.0.0.1:1/derpmap".to_owned(),
            ca_file: fleet.ca(),
            insecure: false,
            mesh_key_file: fleet.mesh_key(),
            derp_mesh_key_file: PathBuf::new(),
            operator_socket: "/f/a-1/operator.sock".into(),
            nodes: vec![node],
        };
        assert_eq!(
            serde_json::to_string(&ready).expect("json"),
            concat!(
                r#"{"version":1,"derpmap_url":"https://127.0.0.1:1/derpmap","ca_file":"/f/ca.pem","insecure":false,"#,
                r#""mesh_key_file":"/f/mesh.key","derp_mesh_key_file":"","operator_socket":"/f/a-1/operator.sock","nodes":["#,
                r#"{"name":"a-1","region":"a","region_id":901,"pid":7,"derp":"127.0.0.1:1","plain_http":"","stun":"127.0.0.1:2","#,
                r#""metrics":"http://127.0.0.1:4/metrics","operator_socket":"/f/a-1/operator.sock","derp_public_key":"ab","#,
                r#""node_id":"0123456789abcdef","data_dir":"/f/a-1/data","log":"/f/a-1/log"}]}"#
            )
        );
    }

    #[test]
    fn a_nodes_ready_file_of_another_release_is_named() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("ready.json");
        assert_eq!(NodeReady::read(&path).expect("absent"), None);
        std::fs::write(&path, NODE).expect("written");
        assert_eq!(NodeReady::read(&path).expect("read").expect("there").mesh, "127.0.0.1:3");
        std::fs::write(&path, NODE.replace("\"version\":1", "\"version\":2")).expect("written");
        let refused = NodeReady::read(&path).expect_err("another version").to_string();
        assert!(refused.contains("ready.json") && refused.contains("different releases"), "{refused}");
    }
}
