//! The operator's doors of a real node: the socket, and mutual TLS with roles.

use std::sync::Arc;

use causeway_rpc::v1;
use causeway_rpc::v1::operator_client::OperatorClient;
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustix::process::Signal;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

use crate::harness::{Home, Node, get};

/// The name in every node certificate.
const NODE_NAME: &str = "node.causeway.internal";

async fn over_socket(node: &Node) -> OperatorClient<Channel> {
    let path = node.ready.operator_socket.clone();
    let connect = move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    };
    let channel = Endpoint::from_static("http://node").connect_with_connector(tower::service_fn(connect)).await;
    OperatorClient::new(channel.unwrap())
}

/// An operators' CA.
struct OperatorCa {
    issuer: Issuer<'static, KeyPair>,
    der: CertificateDer<'static>,
}

impl OperatorCa {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "operators");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let der = params.self_signed(&key).unwrap().into();
        Self { issuer: Issuer::new(params, key), der }
    }

    /// A client configuration for the holder of a certificate with this role.
    fn client(&self, role: &str, fleet_ca: &[u8]) -> ClientConfig {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "somebody");
        params.distinguished_name.push(DnType::OrganizationName, role);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from(fleet_ca.to_vec())).unwrap();
        let mut config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![certificate.into()], PrivatePkcs8KeyDer::from(key.serialize_der()).into())
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        config
    }
}

fn over_tls(node: &Node, config: ClientConfig) -> OperatorClient<Channel> {
    let (address, config) = (node.ready.operator.clone(), Arc::new(config));
    let connect = move |_| {
        let (address, connector) = (address.clone(), TlsConnector::from(Arc::clone(&config)));
        async move {
            let socket = TcpStream::connect(address).await?;
            connector.connect(ServerName::try_from(NODE_NAME).unwrap(), socket).await.map(TokioIo::new)
        }
    };
    OperatorClient::new(Endpoint::from_static("http://node").connect_with_connector_lazy(tower::service_fn(connect)))
}

#[tokio::test]
async fn roles_decide_on_the_tls_port_and_strangers_get_nothing() {
    let home = Home::new();
    let node = home.start(&["--set", "standalone=false", "--set", "operator.listen=127.0.0.1:0"]).await;
    let mut local = over_socket(&node).await;
    let status = local.get_node_status(v1::GetNodeStatusRequest {}).await.unwrap().into_inner();
    assert_eq!(status.node.unwrap().name, "a-1");
    assert!(!status.ready && !status.not_ready_because.is_empty(), "in no fleet yet");
    let map = get(&node.ready.plain_http, "/derpmap").await;
    assert!(map.starts_with("HTTP/1.1 503 ") && map.contains("\r\nRetry-After: 5\r\n"), "{map}");
    assert_eq!(local.get_derp_map(v1::GetDerpMapRequest {}).await.unwrap_err().code(), Code::Unavailable);
    let fleet_ca = status.fleet_ca_der;

    let ca = OperatorCa::new();
    let form = v1::InitClusterRequest { operator_ca_der: ca.der.to_vec().into(), ..v1::InitClusterRequest::default() };
    let formed = local.init_cluster(form.clone()).await.unwrap().into_inner();
    assert!(!formed.already && formed.voters.len() == 1);

    let mut viewer = over_tls(&node, ca.client("viewer", &fleet_ca));
    let cluster = viewer.get_cluster_status(v1::GetClusterStatusRequest {}).await.unwrap().into_inner();
    assert_eq!(cluster.fleet_id, formed.fleet_id);
    let refused = viewer.init_cluster(form.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");

    let mut operator = over_tls(&node, ca.client("operator", &fleet_ca));
    assert!(operator.init_cluster(form).await.unwrap().into_inner().already);
    let settings = v1::DerpMapSettings { grace_s: 60, ..v1::DerpMapSettings::default() };
    let change = v1::SetDerpMapSettingsRequest { settings: Some(settings.clone()), dry_run: false };
    assert_eq!(viewer.set_derp_map_settings(change.clone()).await.unwrap_err().code(), Code::PermissionDenied);
    operator.set_derp_map_settings(change).await.unwrap();
    assert_eq!(viewer.get_derp_map_settings(v1::GetDerpMapSettingsRequest {}).await.unwrap().into_inner(), settings);

    let reload = v1::ReloadConfigurationRequest::default();
    assert_eq!(viewer.reload_configuration(reload.clone()).await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(
        operator.reload_configuration(reload).await.unwrap().into_inner(),
        v1::ReloadOutcome { node_id: cluster.leader, ..v1::ReloadOutcome::default() }
    );

    let mut roleless = over_tls(&node, ca.client("visitor", &fleet_ca));
    assert!(roleless.list_nodes(v1::ListNodesRequest {}).await.is_err());
    let mut stranger = over_tls(&node, OperatorCa::new().client("operator", &fleet_ca));
    assert!(stranger.list_nodes(v1::ListNodesRequest {}).await.is_err());
    node.until_metric("causeway_ingress_refused_connections_total", |refused| refused >= 2.0).await;

    // What was changed, or tried, is in the audit log: by the socket, by a viewer who may not, by an operator.
    let log = node.log();
    let audit: Vec<&str> = log.lines().filter(|line| line.contains(" audit: ")).collect();
    let uid = format!("uid {}", rustix::process::getuid().as_raw());
    let wanted = [
        [uid.as_str(), "init_cluster", "done", "operator_ca=given"],
        ["certificate \"somebody\" from 127.0.0.1", "InitCluster", "denied", "audit"],
        ["certificate \"somebody\" from 127.0.0.1", "init_cluster", "done", "operator_ca=given"],
        ["certificate \"somebody\" from 127.0.0.1", "SetDerpMapSettings", "denied", "audit"],
        ["certificate \"somebody\" from 127.0.0.1", "set_derp_map_settings", "done", "grace_s: 60"],
        ["certificate \"somebody\" from 127.0.0.1", "ReloadConfiguration", "denied", "audit"],
        ["certificate \"somebody\" from 127.0.0.1", "reload_configuration", "done", "node="],
    ];
    assert_eq!(audit.len(), wanted.len(), "{audit:#?}");
    for (line, words) in audit.iter().zip(wanted) {
        let line = line.replace("\\\"", "\"");
        assert!(words.iter().all(|word| line.contains(word)), "{words:?}: {line}");
    }
    node.stop().await;
}

#[tokio::test]
async fn operators_reload_the_configuration_as_a_signal_does() {
    let home = Home::new();
    let mut node = home.start(&[]).await;
    let mut operator = over_socket(&node).await;
    let good = std::fs::read_to_string(&home.config).unwrap();
    let mut reload = async |text: &str, name: &str| {
        std::fs::write(&home.config, text).unwrap();
        operator.reload_configuration(v1::ReloadConfigurationRequest { node: name.to_owned() }).await
    };
    let took_up = reload(&format!("{good}[log]\nfilter = 'debug'\n"), "").await.unwrap().into_inner();
    assert_eq!((took_up.changed.as_slice(), took_up.problems.len()), (&["log.filter".to_owned()][..], 0));
    let again = reload(&format!("{good}[log]\nfilter = 'debug'\n"), "a-1").await.unwrap().into_inner();
    assert!(again.changed.is_empty() && again.problems.is_empty(), "{again:?}");
    assert!(node.log().contains("DEBUG"), "the filter holds");

    // Nothing of a file is taken up if a part of it cannot be.
    let other_region = good.replace("code = 'a'", "code = 'b'");
    let refused = reload(&format!("{other_region}[limits]\nconnections = 7\n"), "").await.unwrap().into_inner();
    let fields: Vec<&str> = refused.problems.iter().map(|problem| problem.field.as_str()).collect();
    assert_eq!((fields.as_slice(), refused.changed.len()), (&["region.code"][..], 0), "{refused:?}");
    assert!(refused.problems[0].message.contains("needs a restart") && refused.file.ends_with("node.toml"), "{refused:?}");
    let refused = reload("nonsense", "").await.unwrap().into_inner();
    assert!(refused.problems.len() == 1 && refused.problems[0].message.contains("TOML"), "{refused:?}");
    assert_eq!(reload(&good, "z-9").await.unwrap_err().code(), Code::NotFound);
    assert_eq!(node.metric("causeway_config_reloads_total").await, 4.0);
    let log = node.log();
    let audit: Vec<&str> = log.lines().filter(|line| line.contains(" audit: ")).collect();
    let wanted = ["done", "done", "failed: refused: region.code", "failed: refused", "failed: node `z-9`"];
    assert_eq!(audit.len(), wanted.len(), "{audit:#?}");
    for (line, result) in audit.iter().zip(wanted) {
        assert!(line.contains("reload_configuration") && line.contains(result), "{result}: {line}");
    }
    node.signal(Signal::TERM);
    assert_eq!(node.ended().await.code(), Some(0));
}

#[tokio::test]
async fn presence_is_listed_watched_and_counted_and_a_packet_traced() {
    let home = Home::new();
    let node = home.start(&[]).await;
    let mut operator = over_socket(&node).await;
    let mut watch = operator.watch_presence(v1::WatchPresenceRequest::default()).await.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().change, "synced");

    let (connection, key) = crate::relay::client(&node, false).await;
    let claimed = watch.message().await.unwrap().unwrap();
    assert_eq!((claimed.change.as_str(), &claimed.key[..]), ("claimed", &key.as_bytes()[..]));
    let request = v1::GetPresenceRequest { key: key.as_bytes().to_vec().into(), consistent: false };
    let entry = operator.get_presence(request).await.unwrap().into_inner();
    let [claim] = entry.claims.as_slice() else { panic!("{entry:?}") };
    assert!(claim.preferred && claim.valid && claim.node_name == "a-1" && claim.why.contains("own client"), "{claim:?}");
    let mut list = operator.list_presence(v1::ListPresenceRequest::default()).await.unwrap().into_inner();
    assert_eq!(list.message().await.unwrap().unwrap().key, entry.key);
    assert!(list.message().await.unwrap().is_none());
    let elsewhere = v1::ListPresenceRequest { region_id: 7, ..v1::ListPresenceRequest::default() };
    assert!(operator.list_presence(elsewhere).await.unwrap().into_inner().message().await.unwrap().is_none());
    assert_eq!(operator.count_presence(v1::CountPresenceRequest {}).await.unwrap().into_inner().keys, 1);

    let request = v1::TraceRequest { src: key.as_bytes().to_vec().into(), dst: key.as_bytes().to_vec().into() };
    let trace = operator.trace(request).await.unwrap().into_inner();
    assert!(trace.delivered && trace.hops.len() == 1 && trace.hops[0].action == "deliver", "{trace:?}");

    drop(connection);
    loop {
        let change = watch.message().await.unwrap().unwrap();
        if change.change == "released" {
            break;
        }
    }
    let gone = operator.get_presence(v1::GetPresenceRequest { key: key.as_bytes().to_vec().into(), consistent: false }).await;
    assert_eq!(gone.unwrap_err().code(), Code::NotFound);
    let malformed = operator.get_presence(v1::GetPresenceRequest { key: vec![1].into(), consistent: false }).await;
    assert!(malformed.unwrap_err().message().contains("32 bytes"));
    node.stop().await;
}
