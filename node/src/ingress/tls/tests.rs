#![allow(clippy::unwrap_used, clippy::unwrap_in_result, reason = "tests")]

use std::fs;
use std::sync::Mutex;

use causeway_proto::key::NodePrivate;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{ServerName, UnixTime};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_util::task::TaskTracker;
use x509_parser::prelude::*;

use super::*;
use crate::lifecycle::clock::wall_clock;

/// Takes any chain and remembers it.
#[derive(Debug, Default)]
struct Remember(Mutex<Vec<CertificateDer<'static>>>);

impl ServerCertVerifier for Remember {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let chain = std::iter::once(end_entity).chain(intermediates).map(|cert| cert.clone().into_owned()).collect();
        *self.0.lock().unwrap() = chain;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &provider().signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

/// What a client saw in one handshake.
struct Seen {
    chain: Vec<CertificateDer<'static>>,
    alpn: Option<Vec<u8>>,
    tls13: bool,
}

/// One handshake over an in-memory stream, both sides real.
async fn handshake(config: &Arc<ServerConfig>, alpn: &[&[u8]], tls12_only: bool) -> Result<Seen, io::Error> {
    let verifier = Arc::new(Remember::default());
    let versions: &[&rustls::SupportedProtocolVersion] = if tls12_only { &[&version::TLS12] } else { rustls::ALL_VERSIONS };
    let mut client = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(versions)
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(&verifier) as Arc<dyn ServerCertVerifier>)
        .with_no_client_auth();
    client.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    let (near, far) = tokio::io::duplex(64 * 1024);
    let acceptor = TlsAcceptor::from(Arc::clone(config));
    let accepted = TaskTracker::new().spawn(acceptor.accept(far));
    let stream = TlsConnector::from(Arc::new(client)).connect(ServerName::try_from("node.example").unwrap(), near).await?;
    accepted.await.unwrap()?;
    let (_, connection) = stream.get_ref();
    let chain = verifier.0.lock().unwrap().clone();
    Ok(Seen {
        chain,
        alpn: connection.alpn_protocol().map(<[u8]>::to_vec),
        tls13: connection.protocol_version() == Some(rustls::ProtocolVersion::TLSv1_3),
    })
}

fn write_pair(dir: &Path, name: &str) {
    let pair = make_self_signed(&[name.to_owned()], wall_clock()).unwrap();
    let pem = |label: &str, der: &[u8]| {
        let body = data_encoding::BASE64.encode(der);
        let lines: Vec<&str> = body.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
        format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
    };
    fs::write(dir.join("key.pem"), pem("PRIVATE KEY", pair.key.secret_der())).unwrap();
    fs::write(dir.join("cert.pem"), pem("CERTIFICATE", &pair.chain[0])).unwrap();
}

fn files(dir: &Path) -> Tls {
    Tls::Files { cert: dir.join("cert.pem"), key: dir.join("key.pem") }
}

fn subject(cert: &CertificateDer<'_>) -> String {
    let (_, cert) = parse_x509_certificate(cert).unwrap();
    cert.subject().iter_common_name().next().unwrap().as_str().unwrap().to_owned()
}

#[tokio::test]
async fn every_chain_ends_with_a_meta_cert_of_exactly_the_stock_shape() {
    let key = NodePrivate::generate().public();
    let certificate =
        ServerCertificate::load(&Tls::SelfSigned, &["node.example".into(), "127.0.0.1".into()], &key, wall_clock()).unwrap();
    let config = certificate.server_config().unwrap();
    for tls12_only in [false, true] {
        let seen = handshake(&config, &[], tls12_only).await.unwrap();
        assert_eq!((seen.chain.len(), seen.tls13, seen.alpn), (2, !tls12_only, None));
        let der = seen.chain.last().unwrap();
        let (rest, meta) = parse_x509_certificate(der).unwrap();
        assert!(rest.is_empty());
        assert_eq!(subject(der), format!("derpkey{}", key.to_untyped_hex()));
        assert_eq!(meta.issuer(), meta.subject());
        assert_eq!(meta.raw_serial(), [2]);
        assert_eq!(meta.version(), X509Version::V3);
        assert_eq!(meta.public_key().algorithm.algorithm.to_id_string(), "1.3.101.112", "Ed25519");
        let [extension] = meta.extensions() else { panic!("extensions: {:?}", meta.extensions()) };
        assert!(extension.critical && extension.value == [0x30, 0x00], "BasicConstraints, not a CA: {extension:?}");
        assert_eq!(extension.oid.to_id_string(), "2.5.29.19");
        let days = (meta.validity().not_after.timestamp() - meta.validity().not_before.timestamp()) / (24 * 3600);
        assert_eq!(days, 60);
    }
}

#[tokio::test]
async fn http_1_1_is_chosen_when_offered_and_nothing_else_is() {
    let key = NodePrivate::generate().public();
    let certificate = ServerCertificate::load(&Tls::SelfSigned, &["n".into()], &key, wall_clock()).unwrap();
    let config = certificate.server_config().unwrap();
    assert_eq!(handshake(&config, &[b"h2", b"http/1.1"], false).await.unwrap().alpn.as_deref(), Some(&b"http/1.1"[..]));
    assert!(handshake(&config, &[b"h2"], false).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn changed_files_are_taken_up_and_bad_ones_leave_the_old_pair_in_use() {
    let dir = tempfile::tempdir().unwrap();
    write_pair(dir.path(), "first.example");
    let key = NodePrivate::generate().public();
    let certificate = ServerCertificate::load(&files(dir.path()), &[], &key, wall_clock()).unwrap();
    let config = certificate.server_config().unwrap();
    let (tracker, cancel) = (TaskTracker::new(), CancellationToken::new());
    tracker.spawn(Arc::clone(&certificate).reload(cancel.clone(), IngressMetrics::default(), wall_clock));
    // Paused time runs by itself while everybody waits.
    let next_look = || tokio::time::sleep(2 * RELOAD_PERIOD);
    next_look().await;

    write_pair(dir.path(), "second.example.longer");
    next_look().await;
    let seen = handshake(&config, &[], false).await.unwrap();
    assert_eq!(subject(&seen.chain[0]), "second.example.longer");
    assert!(subject(&seen.chain[1]).starts_with("derpkey"));

    fs::write(dir.path().join("cert.pem"), "not a certificate").unwrap();
    next_look().await;
    let seen = handshake(&config, &[], false).await.unwrap();
    assert_eq!(subject(&seen.chain[0]), "second.example.longer");
    cancel.cancel();
    tracker.close();
    tracker.wait().await;
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let key = NodePrivate::generate().public();
    let error = || ServerCertificate::load(&files(dir.path()), &[], &key, wall_clock()).unwrap_err().to_string();
    assert!(error().contains("tls.cert_file: ") && error().contains("cert.pem"), "{}", error());
    write_pair(dir.path(), "one.example");
    fs::write(dir.path().join("key.pem"), "").unwrap();
    assert!(error().contains("tls.key_file: ") && error().contains("private key as PEM"), "{}", error());
    let own = fs::read(dir.path().join("cert.pem")).unwrap();
    write_pair(dir.path(), "other.example");
    fs::write(dir.path().join("cert.pem"), own).unwrap();
    assert!(error().contains("its own private key"), "{}", error());
}
