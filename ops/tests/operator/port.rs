//! Over the operator port: certificates of both sides.

use std::sync::Arc;

use causeway_ops::ca::Authority;
use causeway_ops::cli::Role;
use causeway_rpc::v1::operator_server::OperatorServer;
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::TcpListenerStream;

use crate::node::Node;
use crate::program::{Served, causeway, stderr, stdout};

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
