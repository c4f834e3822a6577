//! Whom a client believes.

use std::fmt::Write as _;

use causeway_client::{ClientBuilder, ConfigError, ConnectError, Endpoint, Trust};
use causeway_proto::key::NodePrivate;
use data_encoding::{BASE64, HEXLOWER};
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::server::{Ca, HOST_NAME, Options, Server};

async fn connect(endpoint: Endpoint, trust: Trust) -> Result<(), ConnectError> {
    let (tasks, cancel) = (TaskTracker::new(), CancellationToken::new());
    ClientBuilder::new(NodePrivate::generate()).endpoint(endpoint).trust(trust).connect(&tasks, &cancel).await.map(drop)
}

fn tls_error(result: Result<(), ConnectError>) -> String {
    match result {
        Err(ConnectError::Tls { server_name, source }) => {
            assert_eq!(server_name, HOST_NAME);
            source.to_string()
        }
        other => panic!("{other:?}"),
    }
}

pub(crate) fn pem(label: &str, der: &[u8]) -> String {
    let mut text = format!("-----BEGIN {label}-----\n");
    for line in BASE64.encode(der).as_bytes().chunks(64) {
        writeln!(text, "{}", std::str::from_utf8(line).unwrap()).unwrap();
    }
    writeln!(text, "-----END {label}-----").unwrap();
    text
}

#[tokio::test]
async fn another_ca_and_another_name_are_refused_and_named() {
    let ca = Ca::new();
    let server = Server::start(&ca, Options::default()).await;
    connect(server.endpoint(), ca.trust()).await.expect("right CA, right name");
    let why = tls_error(connect(server.endpoint(), Ca::new().trust()).await);
    assert!(why.contains("UnknownIssuer") || why.contains("BadSignature"), "{why}");

    let elsewhere = Server::start(&ca, Options { host_name: "other.test", ..Options::default() }).await;
    let why = tls_error(connect(elsewhere.endpoint(), ca.trust()).await);
    assert!(why.contains("not valid for name"), "{why}");
    connect(elsewhere.endpoint().cert_name("other.test"), ca.trust()).await.expect("expected under that name");
    tls_error(connect(elsewhere.endpoint().cert_name("third.test"), ca.trust()).await);
}

#[tokio::test]
async fn a_pinned_certificate_needs_no_ca_but_hash_name_and_being_alone() {
    let ca = Ca::new();
    let server = Server::start(&ca, Options::default()).await;
    let pin = |der: &[u8]| format!("sha256-raw:{}", HEXLOWER.encode(&Sha256::digest(der)));
    let nobody = || Ca::new().trust();
    connect(server.endpoint().cert_name(&pin(&server.leaf)), nobody()).await.expect("the pinned one, MetaCert or not");
    let why = tls_error(connect(server.endpoint().cert_name(&pin(b"another")), nobody()).await);
    assert!(why.contains("not the pinned one"), "{why}");
    // The pin holds even where anybody is trusted.
    tls_error(connect(server.endpoint().cert_name(&pin(b"another")), Trust::insecure_for_tests().unwrap()).await);

    let elsewhere = Server::start(&ca, Options { host_name: "other.test", ..Options::default() }).await;
    tls_error(connect(elsewhere.endpoint().cert_name(&pin(&elsewhere.leaf)), nobody()).await);

    for malformed in ["sha256-raw:", "sha256-raw:zz", &format!("sha256-raw:{}", "é".repeat(32))] {
        let error = connect(server.endpoint().cert_name(malformed), nobody()).await.expect_err("malformed");
        assert!(matches!(error, ConnectError::Config(ConfigError::Pin { .. })), "{error}");
    }
}

#[tokio::test]
async fn insecure_trusts_anybody() {
    let server = Server::start(&Ca::new(), Options::default()).await;
    connect(server.endpoint(), Trust::insecure_for_tests().unwrap()).await.expect("anybody");
    let mut endpoint = server.endpoint();
    endpoint.insecure_for_tests = true;
    connect(endpoint, Ca::new().trust()).await.expect("as the map says");
}

#[tokio::test]
async fn a_ca_file_is_read_and_what_is_wrong_with_it_is_named() {
    let ca = Ca::new();
    let server = Server::start(&ca, Options::default()).await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ca.pem");
    std::fs::write(&path, pem("CERTIFICATE", &ca.der())).unwrap();
    connect(server.endpoint(), Trust::ca_file(&path).unwrap()).await.expect("by the file");

    std::fs::write(&path, "not PEM").unwrap();
    let error = Trust::ca_file(&path).expect_err("no certificate");
    assert!(error.to_string().contains("ca.pem") && error.to_string().contains("no certificate"), "{error}");
    std::fs::write(&path, pem("CERTIFICATE", b"no certificate")).unwrap();
    let error = Trust::ca_file(&path).expect_err("no DER");
    assert!(matches!(error, ConfigError::CaFileContent { .. }), "{error}");
    let error = Trust::ca_file(dir.path().join("absent.pem")).expect_err("absent");
    assert!(error.to_string().contains("absent.pem"), "{error}");
}

#[test]
fn addresses_are_parsed_or_named() {
    for good in ["relay.example.com:443", "192.0.2.1:443", "[2001:db8::1]:443"] {
        Endpoint::new(good).expect(good);
    }
    for bad in ["relay.example.com", "relay.example.com:", ":443", "2001:db8::1:443", "a:70000", "[]:1", ""] {
        let error = Endpoint::new(bad).expect_err(bad);
        assert!(error.to_string().contains(bad) && error.to_string().contains("HOST:PORT"), "{error}");
    }
}
