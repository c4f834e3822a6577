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

use super::expiry::Validity;
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
        // Neither can the client's side of rustls read a challenge; that its key signs is for the directory to check.
        let (_, parsed) = parse_x509_certificate(cert).unwrap();
        if parsed.extensions().iter().any(|extension| extension.oid.to_id_string() == "1.3.6.1.5.5.7.1.31") {
            return Ok(HandshakeSignatureValid::assertion());
        }
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

type ClientStream = tokio_rustls::client::TlsStream<tokio::io::DuplexStream>;
type ServerStream = tokio_rustls::server::TlsStream<tokio::io::DuplexStream>;

/// Shakes hands over an in-memory stream, both sides real; both stay open.
async fn connect(
    config: &Arc<ServerConfig>,
    alpn: &[&[u8]],
    tls12_only: bool,
) -> Result<(Seen, ClientStream, ServerStream), io::Error> {
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
    let accepted = accepted.await.unwrap()?;
    let (_, connection) = stream.get_ref();
    let chain = verifier.0.lock().unwrap().clone();
    let seen = Seen {
        chain,
        alpn: connection.alpn_protocol().map(<[u8]>::to_vec),
        tls13: connection.protocol_version() == Some(rustls::ProtocolVersion::TLSv1_3),
    };
    Ok((seen, stream, accepted))
}

async fn handshake(config: &Arc<ServerConfig>, alpn: &[&[u8]], tls12_only: bool) -> Result<Seen, io::Error> {
    Ok(connect(config, alpn, tls12_only).await?.0)
}

fn write_pair(dir: &Path, name: &str) {
    let minted = mint::self_signed(&[name.to_owned()], wall_clock()).unwrap();
    fs::write(dir.join("key.pem"), minted.key.serialize_pem()).unwrap();
    fs::write(dir.join("cert.pem"), minted.certificate.pem()).unwrap();
}

fn self_signed(dir: &Path) -> Tls {
    Tls::SelfSigned { file: dir.join("tls/node.example.pem") }
}

fn load(tls: &Tls, names: &[&str]) -> Result<Arc<ServerCertificate>, CertificateError> {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    ServerCertificate::load(tls, &names, &NodePrivate::generate().public(), wall_clock())
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
    let dir = tempfile::tempdir().unwrap();
    let key = NodePrivate::generate().public();
    let certificate = ServerCertificate::load(&self_signed(dir.path()), &["node.example".into()], &key, wall_clock()).unwrap();
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
async fn http_1_1_is_chosen_when_offered_and_http_2_when_nothing_else_is() {
    let dir = tempfile::tempdir().unwrap();
    let certificate = load(&self_signed(dir.path()), &["n"]).unwrap();
    let config = certificate.server_config().unwrap();
    assert_eq!(handshake(&config, &[b"h2", b"http/1.1"], false).await.unwrap().alpn.as_deref(), Some(&b"http/1.1"[..]));
    assert_eq!(handshake(&config, &[b"h2"], false).await.unwrap().alpn.as_deref(), Some(HTTP2));
    assert!(handshake(&config, &[b"spdy/3"], false).await.is_err());
}

/// A certificate that is kept up to date on paused time.
struct Kept {
    config: Arc<ServerConfig>,
    metrics: IngressMetrics,
    tasks: Tasks,
}

impl Kept {
    fn new(tls: &Tls) -> Self {
        let certificate = load(tls, &["node.example"]).unwrap();
        let config = certificate.server_config().unwrap();
        let (metrics, tasks) = (IngressMetrics::default(), Tasks::default());
        tasks.tracker.spawn(certificate.keep(tasks.clone(), metrics.clone(), wall_clock));
        Self { config, metrics, tasks }
    }

    /// Paused time runs by itself while everybody waits.
    async fn next_look(&self) {
        tokio::time::sleep(2 * LOOK_PERIOD).await;
    }

    async fn served(&self) -> String {
        let seen = handshake(&self.config, &[], false).await.unwrap();
        assert!(subject(&seen.chain[seen.chain.len() - 1]).starts_with("derpkey"), "the MetaCert is last");
        subject(&seen.chain[0])
    }

    async fn end(self) {
        self.tasks.end(LOOK_PERIOD).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn changed_files_are_taken_up_and_bad_ones_leave_the_old_pair_in_use() {
    let dir = tempfile::tempdir().unwrap();
    write_pair(dir.path(), "first.example");
    let kept = Kept::new(&files(dir.path()));
    kept.next_look().await;

    write_pair(dir.path(), "second.example.longer");
    kept.next_look().await;
    assert_eq!(kept.served().await, "second.example.longer");

    fs::write(dir.path().join("cert.pem"), "not a certificate").unwrap();
    kept.next_look().await;
    assert_eq!(kept.served().await, "second.example.longer");
    assert_eq!(kept.metrics.certificate_reloads("refused"), 1, "looked at once, not every second");

    fs::remove_file(dir.path().join("cert.pem")).unwrap();
    kept.next_look().await;
    assert_eq!(kept.served().await, "second.example.longer");
    write_pair(dir.path(), "third.example");
    kept.next_look().await;
    assert_eq!(kept.served().await, "third.example");
    kept.end().await;
}

#[tokio::test(start_paused = true)]
async fn two_files_that_change_at_different_moments_are_taken_up_together() {
    let (dir, next) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write_pair(dir.path(), "first.example");
    write_pair(next.path(), "second.example");
    let kept = Kept::new(&files(dir.path()));
    for (first, second) in [("cert.pem", "key.pem"), ("key.pem", "cert.pem")] {
        let before = kept.served().await;
        fs::copy(next.path().join(first), dir.path().join(first)).unwrap();
        kept.next_look().await;
        assert_eq!(kept.served().await, before, "a certificate is never served with another one's key");
        fs::copy(next.path().join(second), dir.path().join(second)).unwrap();
        kept.next_look().await;
        assert_eq!(kept.served().await, "second.example");
        write_pair(dir.path(), "first.example");
        kept.next_look().await;
    }
    kept.end().await;
}

#[tokio::test(start_paused = true)]
async fn links_that_are_turned_to_a_new_pair_are_followed_and_connections_stay() {
    use std::os::unix::fs::symlink;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    // As certbot does: live/cert.pem -> ../archive/N/cert.pem. The old pair stays where it was.
    let dir = tempfile::tempdir().unwrap();
    let live = dir.path().join("live");
    fs::create_dir(&live).unwrap();
    let turn_to = |version: &str| {
        for name in ["cert.pem", "key.pem"] {
            let aside = live.join("aside");
            symlink(dir.path().join(version).join(name), &aside).unwrap();
            fs::rename(aside, live.join(name)).unwrap();
        }
    };
    for (version, name) in [("1", "first.example"), ("2", "second.example")] {
        fs::create_dir(dir.path().join(version)).unwrap();
        write_pair(&dir.path().join(version), name);
    }
    turn_to("1");
    let kept = Kept::new(&files(&live));
    let (seen, mut client, mut server) = connect(&kept.config, &[], false).await.unwrap();
    assert_eq!(subject(&seen.chain[0]), "first.example");
    turn_to("2");
    kept.next_look().await;
    assert_eq!(kept.served().await, "second.example");

    let mut received = [0; 5];
    client.write_all(b"still").await.unwrap();
    client.flush().await.unwrap();
    server.read_exact(&mut received).await.unwrap();
    assert_eq!(&received, b"still", "a connection under the old certificate goes on");

    // As an orchestrator does: the directory itself is a link.
    let whole = dir.path().join("whole");
    symlink(dir.path().join("1"), &whole).unwrap();
    let through = Kept::new(&files(&whole));
    assert_eq!(through.served().await, "first.example");
    symlink(dir.path().join("2"), dir.path().join("aside")).unwrap();
    fs::rename(dir.path().join("aside"), &whole).unwrap();
    through.next_look().await;
    assert_eq!(through.served().await, "second.example");
    through.end().await;
    kept.end().await;
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let error = || load(&files(dir.path()), &[]).unwrap_err().to_string();
    assert!(error().contains("tls.cert_file: ") && error().contains("cert.pem"), "{}", error());
    write_pair(dir.path(), "one.example");
    fs::write(dir.path().join("key.pem"), "").unwrap();
    assert!(error().contains("tls.key_file: ") && error().contains("private key as PEM"), "{}", error());
    let own = fs::read(dir.path().join("cert.pem")).unwrap();
    write_pair(dir.path(), "other.example");
    fs::write(dir.path().join("cert.pem"), own).unwrap();
    assert!(error().contains("its own private key"), "{}", error());
}

#[tokio::test]
async fn a_self_signed_certificate_is_kept_and_pinned_as_clients_count_it() {
    let dir = tempfile::tempdir().unwrap();
    let tls = self_signed(dir.path());
    let names = ["node.example", "192.0.2.1", "2001:DB8::0:1"];
    let first = load(&tls, &names).unwrap();
    let pin = first.pin().unwrap();

    // What a client sees: one certificate beside the MetaCert, with this hash, for every name that may be dialled, valid now.
    let seen = handshake(&first.server_config().unwrap(), &[], false).await.unwrap();
    let shown: Vec<_> = seen.chain.iter().filter(|cert| !subject(cert).starts_with("derpkey")).collect();
    let [leaf] = shown[..] else { panic!("{} certificates", shown.len()) };
    assert_eq!(pin, format!("sha256-raw:{}", data_encoding::HEXLOWER.encode(&Sha256::digest(leaf))));
    let wanted: BTreeSet<String> = ["node.example", "192.0.2.1", "2001:db8::1"].map(str::to_owned).into();
    assert_eq!(expiry::names(leaf), wanted);
    let Validity { not_before, not_after } = validity(leaf).unwrap();
    assert!(not_before < wall_clock() && not_after > wall_clock() + Duration::from_secs(9 * 365 * 24 * 3600));
    assert!(first.not_ready_because(wall_clock()).is_empty());
    assert!(first.not_ready_because(not_after)[0].contains("has expired"));

    // The next process has the same one.
    assert_eq!(load(&tls, &names).unwrap().pin().unwrap(), pin);
    let Tls::SelfSigned { file } = &tls else { unreachable!() };
    let mode = |path: &Path| std::os::unix::fs::PermissionsExt::mode(&fs::metadata(path).unwrap().permissions()) & 0o777;
    assert_eq!((mode(file), mode(file.parent().unwrap())), (0o600, 0o700));

    // Other names, or little time left: a new one. A file that holds something else is not overwritten.
    let renamed = load(&tls, &["node.example"]).unwrap().pin().unwrap();
    assert_ne!(renamed, pin);
    let late = not_after - SELF_SIGNED_LEFT_MIN + Duration::from_secs(60);
    let key = NodePrivate::generate().public();
    let later = ServerCertificate::load(&tls, &["node.example".to_owned()], &key, late).unwrap().pin().unwrap();
    assert_ne!(later, renamed);
    fs::write(file, "something else").unwrap();
    let error = load(&tls, &["node.example"]).unwrap_err().to_string();
    assert!(error.contains("tls.self_signed: ") && error.contains("node.example.pem"), "{error}");
    assert_eq!(fs::read_to_string(file).unwrap(), "something else");
}

#[test]
fn files_of_the_operator_have_no_pin() {
    let dir = tempfile::tempdir().unwrap();
    write_pair(dir.path(), "one.example");
    assert_eq!(load(&files(dir.path()), &[]).unwrap().pin(), None);
}

fn acme(dir: &Path) -> Tls {
    let ca = mint::self_signed(&["directory.example".to_owned()], wall_clock()).unwrap();
    fs::write(dir.join("ca.pem"), ca.certificate.pem()).unwrap();
    Tls::Acme(crate::config::Acme {
        directory: "https://directory.example/dir".to_owned(),
        contact: String::new(),
        domains: vec!["node.example".to_owned()],
        challenge: crate::config::AcmeChallenge::TlsAlpn01,
        profile: None,
        cache_dir: dir.join("acme"),
        ca_file: Some(dir.join("ca.pem")),
        external_account: None,
    })
}

#[tokio::test]
async fn an_acme_handshake_gets_through_only_while_its_challenge_is_under_way() {
    let dir = tempfile::tempdir().unwrap();
    let certificate = load(&acme(dir.path()), &["node.example"]).unwrap();
    let config = certificate.server_config().unwrap();
    assert!(certificate.not_ready_because(wall_clock())[0].contains("no certificate from the ACME directory yet"));
    assert!(handshake(&config, &[ACME_TLS], false).await.is_err());

    let minted = mint::challenge("node.example", &[7; 32], wall_clock()).unwrap().into_pair();
    certificate.challenges.expect_handshake("Node.example", Arc::new(certified_challenge(&minted).unwrap()));
    let seen = handshake(&config, &[ACME_TLS], false).await.unwrap();
    assert_eq!(seen.alpn.as_deref(), Some(ACME_TLS));
    assert_eq!(seen.chain, minted.chain, "and nothing else: no MetaCert");
    // Clients notice nothing of it.
    let seen = handshake(&config, &[b"http/1.1"], false).await.unwrap();
    assert!(subject(&seen.chain[1]).starts_with("derpkey"));

    certificate.challenges.clear();
    assert!(handshake(&config, &[ACME_TLS], false).await.is_err());
}

#[test]
fn certificates_are_renewed_with_a_third_of_their_life_left_and_failures_wait_ever_longer() {
    let dir = tempfile::tempdir().unwrap();
    let tls = acme(dir.path());
    let certificate = load(&tls, &["node.example"]).unwrap();
    let Source::Acme(client) = &certificate.source else { unreachable!() };
    assert_eq!(certificate.renewal_due(client), SystemTime::UNIX_EPOCH, "there is none yet: at once");

    certificate.placeholder.store(false, Ordering::Release);
    let Validity { not_before, not_after } = certificate.validity().unwrap();
    let lifetime = not_after.duration_since(not_before).unwrap();
    for _ in 0..100 {
        let due = certificate.renewal_due(client).duration_since(not_before).unwrap();
        assert!(due <= lifetime * 2 / 3 + Duration::from_secs(1) && due > lifetime.mul_f64(0.63), "{due:?}");
    }
    let other = load(&tls, &["other.example"]).unwrap();
    other.placeholder.store(false, Ordering::Release);
    assert_eq!(other.renewal_due(client), SystemTime::UNIX_EPOCH, "one for other domains: at once");

    let (mut renewal, mut now) = (Renewal::default(), SystemTime::UNIX_EPOCH);
    assert!(renewal.is_due(now, || now));
    for minutes in [1, 2, 4, 8, 16, 32, 60, 60] {
        let wait = renewal.failed(now);
        let middle = Duration::from_secs(60 * minutes);
        assert!(wait >= middle.mul_f64(0.75) && wait <= middle.mul_f64(1.25), "{wait:?} for {middle:?}");
        assert!(!renewal.is_due(now + wait - Duration::from_secs(1), || now));
        now += wait;
        assert!(renewal.is_due(now, || SystemTime::UNIX_EPOCH));
    }
}
