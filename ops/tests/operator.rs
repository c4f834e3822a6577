//! The `causeway` program against a real gRPC server of the operator API: what it prints, and how it exits.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Output, Stdio};
use std::sync::Arc;

use bytes::Bytes;
use causeway_ops::ca::Authority;
use causeway_ops::cli::Role;
use causeway_proto::key::{NodePrivate, NodePublic};
use causeway_rpc::v1;
use causeway_rpc::v1::operator_server::{Operator, OperatorServer};
use futures::Stream;
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status};

const KEY: [u8; 32] = [0xab; 32];
const A_1: u64 = 0x0a01;
const B_1: u64 = 0x0b01;
/// The way of packets to it is known only in part.
const UNANSWERED: [u8; 32] = [7; 32];

/// A node of a fleet of two, with one client at `b-1`.
struct Node;

fn record(node_id: u64, name: &str, region: u64, code: &str) -> v1::NodeRecord {
    v1::NodeRecord {
        node_id,
        name: name.to_owned(),
        region: Some(v1::Region {
            id: region,
            code: code.to_owned(),
            name: format!("Region {code}"),
            latitude: Some(50.5),
            longitude: None,
        }),
        mesh_addr: "127.0.0.1:7001".to_owned(),
        relay: Some(v1::RelayEndpoint {
            host_name: format!("{name}.test"),
            ipv4: "127.0.0.1".to_owned(),
            derp_port: 443,
            ..Default::default()
        }),
        voter_eligible: true,
        version: "0.1.0".to_owned(),
        ..Default::default()
    }
}

fn summaries() -> Vec<v1::NodeSummary> {
    let summary = |record, raft_role: &str, claims| v1::NodeSummary {
        node: Some(record),
        raft_role: raft_role.to_owned(),
        epoch: 3,
        heard: true,
        fenced: false,
        claims,
    };
    vec![summary(record(A_1, "a-1", 901, "a"), "leader", 0), summary(record(B_1, "b-1", 902, "b"), "learner", 1234)]
}

fn entry() -> v1::PresenceEntry {
    let claim = v1::PresenceClaim {
        rank: Some(v1::Rank { clock_us: 1_700_000_000_123_456, node_id: B_1 }),
        home: true,
        kind: v1::ClaimKind::Derp.into(),
        epoch: 3,
        valid: true,
        preferred: true,
        why: "the only claim".to_owned(),
        node_name: "b-1".to_owned(),
        region_code: "b".to_owned(),
    };
    v1::PresenceEntry { key: Bytes::copy_from_slice(&KEY), claims: vec![claim] }
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Operator for Node {
    async fn get_node_status(&self, _: Request<v1::GetNodeStatusRequest>) -> Result<Response<v1::NodeStatus>, Status> {
        Ok(Response::new(v1::NodeStatus {
            node: Some(record(A_1, "a-1", 901, "a")),
            ready: true,
            uptime_ms: 245_000,
            pid: 42,
            peers: vec![v1::PeerStatus {
                node_id: B_1,
                name: "b-1".to_owned(),
                watch_live: true,
                link_up: true,
                ..Default::default()
            }],
            fleet_ca_der: Bytes::from_static(b"certificate"),
            ..Default::default()
        }))
    }

    async fn init_cluster(&self, request: Request<v1::InitClusterRequest>) -> Result<Response<v1::InitClusterResponse>, Status> {
        match request.into_inner().voters.as_slice() {
            [voter] if voter == "a-1" => {
                Ok(Response::new(v1::InitClusterResponse { fleet_id: "f1".to_owned(), already: true, voters: vec![A_1] }))
            }
            other => Err(Status::invalid_argument(format!("voters: {} is an even number", other.len()))),
        }
    }

    async fn evict_node(&self, request: Request<v1::EvictNodeRequest>) -> Result<Response<v1::EvictNodeResponse>, Status> {
        match request.into_inner().node.as_str() {
            "0000000000000b01" => Ok(Response::new(v1::EvictNodeResponse { node_id: B_1 })),
            _ => Err(Status::unavailable("only the leader evicts: ask node `b-1`")),
        }
    }

    async fn get_cluster_status(&self, _: Request<v1::GetClusterStatusRequest>) -> Result<Response<v1::ClusterStatus>, Status> {
        Ok(Response::new(v1::ClusterStatus {
            fleet_id: "f1".to_owned(),
            leader: A_1,
            term: 2,
            voters: vec![A_1],
            quorum: true,
            healthy: false,
            problems: vec!["b-1 is not heard: its clients are unreachable".to_owned()],
            nodes: summaries(),
            clients: 1234,
            join_policy: "open".to_owned(),
            ..Default::default()
        }))
    }

    async fn list_nodes(&self, _: Request<v1::ListNodesRequest>) -> Result<Response<v1::ListNodesResponse>, Status> {
        Ok(Response::new(v1::ListNodesResponse { nodes: summaries() }))
    }

    async fn list_regions(&self, _: Request<v1::ListRegionsRequest>) -> Result<Response<v1::ListRegionsResponse>, Status> {
        let regions = summaries().into_iter().map(|summary| v1::RegionSummary {
            region: summary.node.and_then(|node| node.region),
            nodes: 1,
            nodes_heard: 1,
            claims: summary.claims,
        });
        Ok(Response::new(v1::ListRegionsResponse { regions: regions.collect() }))
    }

    async fn get_presence(&self, request: Request<v1::GetPresenceRequest>) -> Result<Response<v1::PresenceEntry>, Status> {
        let key = request.into_inner().key;
        if key[..] == KEY { Ok(Response::new(entry())) } else { Err(Status::not_found("nobody claims this key")) }
    }

    type ListPresenceStream = Answers<v1::PresenceEntry>;
    async fn list_presence(
        &self,
        request: Request<v1::ListPresenceRequest>,
    ) -> Result<Response<Self::ListPresenceStream>, Status> {
        let here = matches!(request.into_inner().region_id, 0 | 902);
        Ok(Response::new(Box::pin(tokio_stream::iter(here.then(|| Ok(entry()))))))
    }

    type WatchPresenceStream = Answers<v1::PresenceChange>;
    async fn watch_presence(&self, _: Request<v1::WatchPresenceRequest>) -> Result<Response<Self::WatchPresenceStream>, Status> {
        let change = v1::PresenceChange {
            key: Bytes::copy_from_slice(&KEY),
            change: "claimed".to_owned(),
            rank: Some(v1::Rank { clock_us: 1_700_000_000_123_456, node_id: B_1 }),
            at_us: 1_700_000_000_200_000,
            ..Default::default()
        };
        Ok(Response::new(Box::pin(tokio_stream::once(Ok(change)))))
    }

    async fn count_presence(&self, _: Request<v1::CountPresenceRequest>) -> Result<Response<v1::PresenceCount>, Status> {
        let by_node = vec![v1::NodeClaims { node_id: B_1, name: "b-1".to_owned(), claims: 1234 }];
        Ok(Response::new(v1::PresenceCount { keys: 1234, claims: 1234, home_claims: 1000, by_node }))
    }

    async fn get_derp_map(&self, _: Request<v1::GetDerpMapRequest>) -> Result<Response<v1::DerpMapDocument>, Status> {
        let json = r#"{"Regions":{"901":{"RegionID":901,"RegionCode":"a","RegionName":"A","Nodes":[{"Name":"901a","RegionID":901,"HostName":"a-1.test","IPv4":"127.0.0.1","DERPPort":4443}]}}}"#;
        Ok(Response::new(v1::DerpMapDocument { json: json.to_owned() }))
    }

    async fn get_derp_map_settings(
        &self,
        _: Request<v1::GetDerpMapSettingsRequest>,
    ) -> Result<Response<v1::DerpMapSettings>, Status> {
        let region = v1::DerpRegionSettings { id: 901, score: Some(0.5), ..Default::default() };
        let mode = v1::DerpMapMode::CrossListed.into();
        Ok(Response::new(v1::DerpMapSettings { mode, grace_s: 60, regions: vec![region], ..Default::default() }))
    }

    async fn set_derp_map_settings(
        &self,
        request: Request<v1::SetDerpMapSettingsRequest>,
    ) -> Result<Response<v1::SetDerpMapSettingsResponse>, Status> {
        let request = request.into_inner();
        let settings = request.settings.expect("set");
        match settings.mode() {
            v1::DerpMapMode::CrossListed => {}
            v1::DerpMapMode::Balanced => return Err(Status::invalid_argument("regions.901.balancer: is missing")),
            _ => return Err(Status::unavailable("only the leader changes the DERP map: ask node `b-1`")),
        }
        assert!(request.dry_run);
        let json = r#"{"Regions":{"901":{"RegionID":901,"RegionCode":"a","RegionName":"A","Nodes":[{"Name":"a","RegionID":901,"HostName":""}]}}}"#;
        Ok(Response::new(v1::SetDerpMapSettingsResponse {
            json: json.to_owned(),
            edited_regions: vec![901, 902],
            retired_regions: vec![903],
            ..Default::default()
        }))
    }

    async fn get_raft_status(&self, _: Request<v1::GetRaftStatusRequest>) -> Result<Response<v1::RaftStatus>, Status> {
        let member = |node_id, name: &str, voter| v1::RaftMember {
            node_id,
            name: name.to_owned(),
            addr: "h:1".to_owned(),
            voter,
            matched_index: 7,
            heartbeat_ms: 12,
        };
        Ok(Response::new(v1::RaftStatus {
            node_id: A_1,
            state: "leader".to_owned(),
            term: 2,
            leader: A_1,
            last_log_index: 7,
            committed_index: 7,
            applied_index: 7,
            quorum_ack_ms: 5,
            members: vec![member(A_1, "a-1", true), member(B_1, "b-1", false)],
            ..Default::default()
        }))
    }

    async fn trace(&self, request: Request<v1::TraceRequest>) -> Result<Response<v1::TraceResponse>, Status> {
        let hop = |node_id, role: &str, action: &str, next_hop, why: &str| v1::ExplainResponse {
            node_id,
            role: role.to_owned(),
            action: action.to_owned(),
            next_hop,
            target: B_1,
            why: why.to_owned(),
            ..Default::default()
        };
        let mut hops =
            vec![hop(A_1, "origin", "forward", B_1, "the only claim"), hop(B_1, "target", "deliver", 0, "own connection")];
        if request.get_ref().dst == UNANSWERED.as_slice() {
            hops.truncate(1);
            let unanswered = Some(v1::Unanswered { node_id: B_1, why: "no answer in time".to_owned() });
            return Ok(Response::new(v1::TraceResponse { hops, delivered: false, unanswered }));
        }
        Ok(Response::new(v1::TraceResponse { hops, delivered: true, unanswered: None }))
    }

    async fn ping(&self, request: Request<v1::PingRequest>) -> Result<Response<v1::PingResponse>, Status> {
        match request.into_inner().node.as_str() {
            "b-1" => Ok(Response::new(v1::PingResponse { node_id: B_1, rtt_us: 1250 })),
            "cut" => Err(Status::unavailable("no connection to cut")),
            other => Err(Status::not_found(format!("there is no node {other:?}"))),
        }
    }
}

/// The server, until dropped.
struct Served {
    dir: tempfile::TempDir,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Served {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("dir"), stop: CancellationToken::new(), tasks: TaskTracker::new() }
    }

    fn on_socket() -> (Self, PathBuf) {
        let served = Self::new();
        let path = served.dir.path().join("operator.sock");
        let incoming = UnixListenerStream::new(tokio::net::UnixListener::bind(&path).expect("bound"));
        let stop = served.stop.clone();
        served.tasks.spawn(async move {
            let server = tonic::transport::Server::builder().add_service(OperatorServer::new(Node));
            server.serve_with_incoming_shutdown(incoming, stop.cancelled()).await.expect("served");
        });
        (served, path)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn causeway(arguments: &[&str]) -> Output {
    tokio::process::Command::new(env!("CARGO_BIN_EXE_causeway"))
        .args(arguments)
        .env_remove("CAUSEWAY_SOCKET")
        .env_remove("CAUSEWAY_ENDPOINT")
        .env("HOME", "/nonexistent")
        .env_remove("XDG_CONFIG_HOME")
        .stdin(Stdio::null())
        .output()
        .await
        .expect("the program runs")
}

async fn at(socket: &Path, arguments: &[&str]) -> Output {
    let mut all = vec!["--socket", socket.to_str().expect("text")];
    all.extend(arguments);
    causeway(&all).await
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).expect("text")
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).expect("text")
}

#[tokio::test]
async fn tables_are_aligned_and_complete() {
    let (_served, socket) = Served::on_socket();
    let [key, unanswered] = [KEY, UNANSWERED].map(|key| NodePublic::from_bytes(key).to_text());
    let cases: &[(&[&str], &str)] = &[
        (
            &["node", "ls"],
            "NODE  ID                REGION   RAFT     HEARD  FENCED  EPOCH  CLAIMS  MESH            VERSION\n\
             a-1   0000000000000a01  a (901)  leader   yes    no      3      0       127.0.0.1:7001  0.1.0\n\
             b-1   0000000000000b01  b (902)  learner  yes    no      3      1,234   127.0.0.1:7001  0.1.0\n",
        ),
        (&["node", "evict", "b-1"], "b-1 (0000000000000b01) is evicted\n"),
        (
            &["region", "ls"],
            "REGION  ID   NAME      NODES  HEARD  CLAIMS\n\
             a       901  Region a  1      1      0\n\
             b       902  Region b  1      1      1,234\n",
        ),
        (
            &["presence", "get", &key],
            &format!(
                "{key}\nNODE  REGION  PREFERRED  VALID  HOME  KIND  CLAIMED (UTC)            WHY\n\
                 b-1   b       yes        yes    yes   derp  2023-11-14 22:13:20.123  the only claim\n"
            ),
        ),
        (&["presence", "count"], "1,234 keys, 1,234 claims, 1,000 of them home\n\nNODE  CLAIMS\nb-1   1,234\n"),
        (
            &["derpmap"],
            "REGION  CODE  NODE  HOST      IPV4       IPV6  DERP  STUN\n901     a     901a  a-1.test  127.0.0.1  -     4443  3478\n",
        ),
        (
            &["trace", &key, &key],
            "NODE  ROLE    ACTION          WHY\n\
             a-1   origin  forward to b-1  the only claim\n\
             b-1   target  deliver         own connection\n\
             delivered: a-1 -> b-1\n",
        ),
        (
            &["trace", &key, &unanswered],
            "NODE  ROLE    ACTION          WHY\n\
             a-1   origin  forward to b-1  the only claim\n\
             not known further: a-1 -> b-1 cannot be asked: no answer in time\n",
        ),
        (&["ping", "b-1"], "b-1 (0000000000000b01) answered in 1.25 ms\n"),
        (&["cluster", "init", "--voters", "a-1"], "fleet f1 existed already, voters a-1\n"),
    ];
    for (arguments, expected) in cases {
        let output = at(&socket, arguments).await;
        assert_eq!(stdout(&output), *expected, "{arguments:?}: {}", stderr(&output));
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
    }
    let raft = at(&socket, &["raft", "status"]).await;
    assert!(stdout(&raft).contains("a-1     voter    h:1      7        12 ms"), "{}", stdout(&raft));
    let own = at(&socket, &["node", "get"]).await;
    assert!(stdout(&own).contains("42, up 4 min 5 s") && stdout(&own).contains("b-1   live   up"), "{}", stdout(&own));
    let cluster = at(&socket, &["cluster", "status"]).await;
    assert!(stdout(&cluster).contains("problem  b-1 is not heard: its clients are unreachable"), "{}", stdout(&cluster));
    let ca = at(&socket, &["cluster", "ca"]).await;
    assert_eq!(stdout(&ca), "-----BEGIN CERTIFICATE-----\nY2VydGlmaWNhdGU=\n-----END CERTIFICATE-----\n");
}

#[tokio::test]
async fn json_is_stable() {
    let (_served, socket) = Served::on_socket();
    let key = NodePublic::from_bytes(KEY).to_text();
    let output = at(&socket, &["-o", "jsonl", "presence", "ls", "--region", "b"]).await;
    assert_eq!(
        stdout(&output),
        format!(
            "{{\"key\":\"{key}\",\"claims\":[{{\"node\":\"b-1\",\"node_id\":\"0000000000000b01\",\"region\":\"b\",\"home\":true,\
             \"kind\":\"derp\",\"clock_us\":1700000000123456,\"epoch\":3,\"valid\":true,\"preferred\":true,\"why\":\"the only claim\"}}]}}\n"
        )
    );
    assert_eq!(stdout(&at(&socket, &["-o", "jsonl", "presence", "ls", "--region", "901"]).await), "");
    let nodes = at(&socket, &["node", "ls", "-o", "json"]).await;
    let nodes: serde_json::Value = serde_json::from_str(stdout(&nodes)).expect("json");
    let fields: Vec<&str> = nodes[1].as_object().expect("object").keys().map(String::as_str).collect();
    assert_eq!(
        fields,
        [
            "claims",
            "derp_port",
            "derp_public_key",
            "epoch",
            "fenced",
            "heard",
            "host_name",
            "ipv4",
            "ipv6",
            "mesh_addr",
            "name",
            "node_id",
            "raft_role",
            "region",
            "region_id",
            "stun_port",
            "version",
            "voter_eligible"
        ]
    );
    let map = at(&socket, &["derpmap", "-o", "json"]).await;
    let map: serde_json::Value = serde_json::from_str(stdout(&map)).expect("json");
    assert_eq!(map["Regions"]["901"]["Nodes"][0]["DERPPort"], 4443);
    // The server ends this stream; a real one never does.
    let watch = at(&socket, &["-o", "json", "presence", "watch"]).await;
    assert_eq!(watch.status.code(), Some(4));
    let change: serde_json::Value = serde_json::from_str(stdout(&watch)).expect("one line");
    assert_eq!((change["change"].as_str(), change["node"].as_str()), (Some("claimed"), Some("b-1")));
}

#[tokio::test]
async fn every_failure_has_its_exit_code_and_says_why() {
    let (served, socket) = Served::on_socket();
    let other = NodePrivate::generate().public().to_untyped_hex();
    let absent = served.dir.path().join("absent.sock");
    let file = served.dir.path().join("exists");
    std::fs::write(&file, "x").expect("written");
    let file = file.to_str().expect("text");
    let cases: &[(&[&str], i32, &str)] = &[
        (&["presence", "get", &other], 3, "nobody claims this key"),
        (&["node", "get", "c-1"], 3, "there are a-1, b-1"),
        (&["node", "evict", "c-1"], 3, "there are a-1, b-1"),
        (&["node", "evict", "a-1"], 4, "ask node `b-1`"),
        (&["presence", "ls", "--region", "z"], 3, "there are a, b"),
        (&["ping", "nowhere"], 3, "nowhere"),
        (&["ping", "cut"], 4, "no connection to cut"),
        (&["cluster", "init", "--voters", "a-1,b-1"], 2, "even number"),
        (&["cluster", "status", "--wait", "healthy=1ms"], 1, "b-1 is not heard"),
        (&["mesh-key", "new", file], 1, "exists already"),
        (&["presence", "get", "12"], 2, "64 hex digits"),
        (&["operator-ca", "issue", "alice", "--role", "viewer", "--dir", "/nonexistent"], 3, "operator-ca new"),
    ];
    for (arguments, code, why) in cases {
        let output = at(&socket, arguments).await;
        assert_eq!(output.status.code(), Some(*code), "{arguments:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(why), "{arguments:?}: {}", stderr(&output));
    }
    let unreachable = at(&absent, &["node", "ls"]).await;
    assert_eq!(unreachable.status.code(), Some(4));
    assert!(stderr(&unreachable).contains("absent.sock"), "{}", stderr(&unreachable));
    let half = causeway(&["--endpoint", "127.0.0.1:1", "node", "ls"]).await;
    assert_eq!(half.status.code(), Some(2));
    assert!(stderr(&half).contains("--cert"), "{}", stderr(&half));
}

#[tokio::test]
async fn environment_and_configuration_file_name_the_node_and_flags_win() {
    let (served, socket) = Served::on_socket();
    let config = served.dir.path().join("config.toml");
    std::fs::write(&config, format!("socket = {socket:?}\noutput = \"jsonl\"\n")).expect("written");
    let run = |variables: Vec<(&'static str, PathBuf)>, arguments: &'static [&'static str]| async move {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_causeway"));
        command.env_remove("CAUSEWAY_ENDPOINT").env_remove("CAUSEWAY_SOCKET").env("HOME", "/nonexistent");
        command.args(arguments).envs(variables).stdin(Stdio::null()).output().await.expect("the program runs")
    };
    let by_file = run(vec![("CAUSEWAY_CONFIG", config.clone())], &["node", "ls"]).await;
    assert_eq!(stdout(&by_file).lines().filter(|line| line.starts_with('{')).count(), 2, "{}", stderr(&by_file));
    let by_environment = run(vec![("CAUSEWAY_SOCKET", socket.clone())], &["node", "ls"]).await;
    assert!(stdout(&by_environment).starts_with("NODE"), "{}", stderr(&by_environment));
    let environment_wins =
        run(vec![("CAUSEWAY_CONFIG", config.clone()), ("CAUSEWAY_SOCKET", "/none".into())], &["node", "ls"]).await;
    assert_eq!(environment_wins.status.code(), Some(4));
    let flag_wins = run(vec![("CAUSEWAY_CONFIG", config.clone())], &["--socket", "/none", "node", "ls"]).await;
    assert_eq!(flag_wins.status.code(), Some(4));
    std::fs::write(&config, "sokcet = '/x'\n").expect("written");
    let misspelt = run(vec![("CAUSEWAY_CONFIG", config)], &["node", "ls"]).await;
    assert_eq!(misspelt.status.code(), Some(2));
    assert!(stderr(&misspelt).contains("sokcet") && stderr(&misspelt).contains("config.toml"), "{}", stderr(&misspelt));
}

/// A CA and a node's certificate as the mesh has them: Ed25519, a URI as the only name.
fn mesh_identity() -> (String, CertificateDer<'static>, PrivateKeyDer<'static>) {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("key");
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca = params.self_signed(&key).expect("ca");
    let issuer = rcgen::Issuer::new(params, key);
    let node_key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("key");
    let mut params = rcgen::CertificateParams::default();
    let uri = "causeway://node/0000000000000a01".try_into().expect("ia5");
    params.subject_alt_names = vec![rcgen::SanType::URI(uri)];
    let node = params.signed_by(&node_key, &issuer).expect("certificate");
    let pem = causeway_ops::ca::certificate_pem(ca.der());
    (pem, node.der().clone(), PrivateKeyDer::Pkcs8(node_key.serialize_der().into()))
}

/// The operator API over mutual TLS, as the operator port has it; returns HOST:PORT.
async fn on_port(
    served: &Served,
    operators: &CertificateDer<'static>,
    identity: (CertificateDer<'static>, PrivateKeyDer<'static>),
) -> String {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(operators.clone()).expect("root");
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build().expect("verifier");
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("versions")
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![identity.0], identity.1)
        .expect("identity");
    config.alpn_protocols = vec![b"h2".to_vec()];
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = listener.local_addr().expect("address").to_string();
    let tasks = served.tasks.clone();
    // A handshake that fails ends that connection only. The server knows plain streams: the TLS end is piped into one.
    let incoming = TcpListenerStream::new(listener)
        .then(move |stream| {
            let (acceptor, tasks) = (acceptor.clone(), tasks.clone());
            async move {
                let mut tls = acceptor.accept(stream?).await?;
                let (plain, mut piped) = tokio::io::duplex(64 * 1024);
                tasks.spawn(async move { tokio::io::copy_bidirectional(&mut tls, &mut piped).await });
                std::io::Result::Ok(plain)
            }
        })
        .filter(Result::is_ok);
    let stop = served.stop.clone();
    served.tasks.spawn(async move {
        let server = tonic::transport::Server::builder().add_service(OperatorServer::new(Node));
        server.serve_with_incoming_shutdown(incoming, stop.cancelled()).await.expect("served");
    });
    address
}

#[tokio::test]
async fn operators_reach_a_port_with_certificates_of_both_sides_only() {
    let served = Served::new();
    let write = |name: &str, text: &str| {
        let path = served.dir.path().join(name);
        std::fs::write(&path, text).expect("written");
        path.to_str().expect("text").to_owned()
    };
    let dir = served.dir.path().to_str().expect("text").to_owned();
    assert_eq!(causeway(&["operator-ca", "new", "--dir", &dir]).await.status.code(), Some(0));
    let issued = causeway(&["operator-ca", "issue", "alice", "--role", "viewer", "--dir", &dir]).await;
    assert_eq!(issued.status.code(), Some(0), "{}", stderr(&issued));
    let operators = CertificateDer::from_pem_file(format!("{dir}/operator-ca.pem")).expect("pem");
    let (ca_pem, certificate, key) = mesh_identity();
    let address = on_port(&served, &operators, (certificate, key)).await;
    let ca = write("fleet-ca.pem", &ca_pem);
    let (cert, key) = (format!("{dir}/alice.pem"), format!("{dir}/alice-key.pem"));
    let ask = async |ca: &str, cert: &str, key: &str| {
        causeway(&["--endpoint", &address, "--cert", cert, "--key", key, "--ca", ca, "--timeout", "5s", "node", "ls"]).await
    };

    let good = ask(&ca, &cert, &key).await;
    assert!(stdout(&good).contains("a-1"), "{}", stderr(&good));

    let (strange_ca, ..) = mesh_identity();
    let other_fleet = ask(&write("other-ca.pem", &strange_ca), &cert, &key).await;
    assert_eq!(other_fleet.status.code(), Some(4), "a node of another fleet is not believed");
    assert!(stderr(&other_fleet).contains("certificate"), "{}", stderr(&other_fleet));

    let stranger = Authority::new("others", 1).expect("ca").0.issue_operator("mallory", Role::Operator, 1).expect("certificate");
    let (strange_cert, strange_key) = (write("m.pem", &stranger.certificate_pem), write("m-key.pem", &stranger.key_pem));
    let refused = ask(&ca, &strange_cert, &strange_key).await;
    assert_eq!(refused.status.code(), Some(4), "operators of another CA are refused");
    assert!(stderr(&refused).contains("refuses the certificate"), "{}", stderr(&refused));
    let mixed = ask(&ca, &cert, &strange_key).await;
    assert_eq!(mixed.status.code(), Some(2));
    assert!(stderr(&mixed).contains("do not belong together"), "{}", stderr(&mixed));
}

#[tokio::test]
async fn completion_and_version_need_no_node() {
    for shell in ["bash", "zsh", "fish"] {
        let output = causeway(&["completion", shell]).await;
        assert!(output.status.success() && stdout(&output).contains("presence"), "{shell}");
    }
    assert_eq!(
        stdout(&causeway(&["-o", "jsonl", "version"]).await),
        format!("{{\"version\":\"{}\"}}\n", env!("CARGO_PKG_VERSION"))
    );
}

#[tokio::test]
async fn derp_map_settings_are_printed_as_they_are_applied() {
    let (served, socket) = Served::on_socket();
    let printed = at(&socket, &["derpmap", "settings"]).await;
    let expected = "mode = \"cross-listed\"\ngrace_seconds = 60\nmerge_default_regions = false\n\n\
                    [regions.901]\nscore = 0.5\navoid = false\nno_measure_no_home = false\n";
    assert_eq!(stdout(&printed), expected, "{}", stderr(&printed));
    let file = served.dir.path().join("map.toml");
    let apply = async |text: &str| {
        std::fs::write(&file, text).expect("written");
        at(&socket, &["derpmap", "apply", file.to_str().expect("text"), "--dry-run"]).await
    };
    let applied = apply(expected).await;
    assert_eq!(
        stdout(&applied),
        "settings         not changed (dry run)\nregions edited   901, 902\nregions added    -\nregions retired  903\n\
         error: Regions[901].Nodes[0].HostName: is missing; the DNS name of the node, which its certificate has too\n",
        "{}",
        stderr(&applied)
    );
    assert_eq!(applied.status.code(), Some(0));
    for (text, code, why) in [
        ("mode = 'balanced'", 2, "map.toml: regions.901.balancer: is missing"),
        ("mode = 'plain'", 4, "ask node `b-1`"),
        ("mode = 'other'", 2, "map.toml: TOML parse error at line 1"),
    ] {
        let refused = apply(text).await;
        assert_eq!(refused.status.code(), Some(code), "{text}: {}", stderr(&refused));
        assert!(stderr(&refused).contains(why), "{text}: {}", stderr(&refused));
    }
    let absent = at(&socket, &["derpmap", "apply", "/nonexistent/map.toml"]).await;
    assert_eq!(absent.status.code(), Some(3), "{}", stderr(&absent));
}

#[tokio::test]
async fn maps_are_checked_from_files_and_standard_input_without_any_node() {
    let dir = tempfile::tempdir().expect("dir");
    let file = dir.path().join("map.json");
    let good = r#"{"omitDefaultRegions":true,"Regions":{"901":{"RegionID":901,"RegionCode":"a","RegionName":"A","Nodes":[{"Name":"a","RegionID":901,"HostName":"a.example"}]}}}"#;
    let path = file.to_str().expect("text");
    std::fs::write(&file, good).expect("written");
    let checked = causeway(&["derpmap", "check", path]).await;
    assert_eq!(stdout(&checked), format!("{path}: 0 errors, 0 warnings, 0 notes\n"));
    assert_eq!(checked.status.code(), Some(0));
    std::fs::write(&file, good.replace("a.example", "")).expect("written");
    let checked = causeway(&["-o", "json", "derpmap", "check", path]).await;
    assert_eq!(checked.status.code(), Some(1));
    let found: serde_json::Value = serde_json::from_str(stdout(&checked)).expect("JSON");
    assert_eq!((&found["errors"], &found["warnings"]), (&1.into(), &0.into()));
    assert_eq!(found["findings"][0]["level"], "error");
    assert_eq!(found["findings"][0]["path"], "Regions[901].Nodes[0].HostName");
    assert!(stderr(&checked).contains("has errors"), "{}", stderr(&checked));
    for (source, code, why) in [
        ("/nonexistent/map.json", 3, "/nonexistent/map.json"),
        ("ftp://relay.example/derpmap", 2, "https://"),
        ("https://127.0.0.1:1/derpmap", 4, "127.0.0.1:1"),
        // Nothing is on standard input here.
        ("-", 1, "- has errors"),
    ] {
        let refused = causeway(&["derpmap", "check", source]).await;
        assert_eq!(refused.status.code(), Some(code), "{source}: {}", stderr(&refused));
        assert!(stderr(&refused).contains(why), "{source}: {}", stderr(&refused));
    }
}
