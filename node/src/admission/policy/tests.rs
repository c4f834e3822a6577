#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use causeway_client::Trust;
use causeway_proto::key::NodePrivate;
use rustls_pki_types::PrivatePkcs8KeyDer;
use tokio_rustls::TlsAcceptor;

use super::super::cache::Lifetimes;
use super::super::testing::{Behaviour, Server};
use super::*;

/// Nothing is remembered, so that every decision asks.
const FORGETFUL: Lifetimes = Lifetimes { allow: Duration::ZERO, deny: Duration::ZERO, stale: Duration::ZERO };

fn policy(sources: Vec<AdmissionSource>, fail_open: bool, lifetimes: Lifetimes) -> Arc<Policy> {
    let config = config::Admission { sources, fail_open, lifetimes, recheck: Duration::from_secs(300) };
    Policy::new(&config, Handle::current(), Tasks::default())
}

fn url(address: impl std::fmt::Display) -> AdmissionSource {
    let tls = Trust::insecure_for_tests().unwrap().client_config();
    AdmissionSource::VerifyUrl { url: format!("http://{address}/verify?token=5").parse().unwrap(), tls }
}

fn list(path: &Path, keys: &[NodePublic]) -> Arc<KeyList> {
    let text: Vec<String> = keys.iter().map(NodePublic::to_text).collect();
    fs::write(path, text.join("\n")).unwrap();
    Arc::new(KeyList::load(path).unwrap())
}

fn applicant() -> Applicant {
    Applicant { key: NodePrivate::generate().public(), source: "203.0.113.7".parse::<IpAddr>().unwrap() }
}

/// `derp.md` section 10, row by row.
#[tokio::test]
async fn the_admission_url_is_asked_and_believed_as_by_stock_relays() {
    let answer = |status, body: &str| Behaviour::Answer(status, body.to_owned());
    let long = |text: &str| format!("{}{text}", " ".repeat(5_000));
    let redirect = b"HTTP/1.1 307 Elsewhere\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n".to_vec();
    let unending = b"HTTP/1.1 200 OK\r\n\r\n{\"Allow\":true}".to_vec();
    let broken = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"Allow\":".to_vec();
    use Decision::{Allow, Deny};
    // Behaviour, decision when it fails closed, decision when it fails open.
    let table = [
        (Behaviour::allow(true), Allow, Allow),
        (answer(200, r#"{"allow":true} and more"#), Allow, Allow),
        (Behaviour::Raw(unending), Allow, Allow),
        (answer(200, &format!("{}{}", r#"{"Allow":true}"#, long(""))), Allow, Allow),
        (Behaviour::allow(false), Deny(Denial::UrlDenied), Deny(Denial::UrlDenied)),
        (answer(200, "{}"), Deny(Denial::UrlDenied), Deny(Denial::UrlDenied)),
        (answer(200, "yes"), Deny(Denial::UrlAnswer), Deny(Denial::UrlAnswer)),
        (answer(200, ""), Deny(Denial::UrlAnswer), Deny(Denial::UrlAnswer)),
        (answer(200, &long(r#"{"Allow":true}"#)), Deny(Denial::UrlAnswer), Deny(Denial::UrlAnswer)),
        (answer(204, ""), Deny(Denial::UrlStatus), Deny(Denial::UrlStatus)),
        (answer(403, r#"{"Allow":true}"#), Deny(Denial::UrlStatus), Deny(Denial::UrlStatus)),
        (Behaviour::Raw(redirect), Deny(Denial::UrlStatus), Deny(Denial::UrlStatus)),
        (answer(500, r#"{"Allow":true}"#), Deny(Denial::UrlFailing), Deny(Denial::UrlFailing)),
        (answer(502, ""), Deny(Denial::UrlFailing), Deny(Denial::UrlFailing)),
        (Behaviour::Close, Deny(Denial::UrlUnreachable), Allow),
        (Behaviour::Raw(b"SSH-2.0-nonsense\r\n\r\n".to_vec()), Deny(Denial::UrlUnreachable), Allow),
        (Behaviour::Raw(broken), Deny(Denial::UrlUnreachable), Allow),
    ];
    let (server, address) = Server::tcp(Behaviour::Close).await;
    let closed = policy(vec![url(address)], false, FORGETFUL);
    let open = policy(vec![url(address)], true, FORGETFUL);
    for (behaviour, when_closed, when_open) in table {
        server.behave(behaviour.clone());
        assert_eq!(closed.decide(applicant()).await, when_closed, "{behaviour:?}");
        assert_eq!(open.decide(applicant()).await, when_open, "{behaviour:?}, fail open");
    }
    assert_eq!(closed.metrics().refused_for(Denial::UrlStatus), 3);

    let asked = applicant();
    server.behave(Behaviour::allow(true));
    closed.decide(asked).await;
    let request = server.requests().pop().unwrap();
    let (head, body) = request.split_once("\r\n\r\n").unwrap();
    let head = head.to_ascii_lowercase();
    assert!(head.starts_with("post /verify?token=5 http/1.1\r\n") && head.contains(&format!("host: {address}")), "{head}");
    assert!(!head.contains("content-type"), "stock relays send none: {head}");
    assert_eq!(body, format!(r#"{{"NodePublic":"{}","Source":"203.0.113.7"}}"#, asked.key.to_text()));
}

#[tokio::test]
async fn connections_to_the_admission_url_are_used_again_and_nobody_there_is_an_outage() {
    let (server, address) = Server::tcp(Behaviour::allow(true)).await;
    let admission = policy(vec![url(address)], false, FORGETFUL);
    for _ in 0..20 {
        assert_eq!(admission.decide(applicant()).await, Decision::Allow);
    }
    assert_eq!((server.requests().len(), server.connections()), (20, 1));
    // One that the other side closed meanwhile costs nobody a login.
    server.behave(Behaviour::Hangup);
    assert_eq!(admission.decide(applicant()).await, Decision::Allow);
    server.behave(Behaviour::allow(true));
    assert_eq!(admission.decide(applicant()).await, Decision::Allow);
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let admission = policy(vec![url(nobody)], false, FORGETFUL);
    assert_eq!(admission.decide(applicant()).await, Decision::Deny(Denial::UrlUnreachable));
}

#[tokio::test]
async fn a_silent_admission_url_is_given_five_seconds() {
    let (_server, address) = Server::tcp(Behaviour::Silence).await;
    let (closed, open) = (policy(vec![url(address)], false, FORGETFUL), policy(vec![url(address)], true, FORGETFUL));
    let started = Instant::now();
    let decisions = futures::join!(closed.decide(applicant()), open.decide(applicant()));
    assert_eq!(decisions, (Decision::Deny(Denial::UrlUnreachable), Decision::Allow));
    let waited = started.elapsed();
    assert!((Duration::from_millis(4_900)..Duration::from_secs(9)).contains(&waited), "{waited:?}");
}

#[tokio::test]
async fn https_is_verified_by_the_ca_file() {
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let ca_file = dir.path().join("ca.pem");
    fs::write(&ca_file, certificate.pem()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let key = PrivatePkcs8KeyDer::from(key.serialize_der());
    let config = config.with_no_client_auth().with_single_cert(vec![certificate.der().clone()], key.into()).unwrap();
    let (server, address) = Server::tls(Behaviour::allow(true), TlsAcceptor::from(Arc::new(config))).await;
    let ask = async |host: &str, trust: Trust| {
        let url = format!("https://{host}:{}/verify", address.port()).parse().unwrap();
        let source = AdmissionSource::VerifyUrl { url, tls: trust.client_config() };
        policy(vec![source], false, FORGETFUL).decide(applicant()).await
    };
    assert_eq!(ask("localhost", Trust::ca_file(&ca_file).unwrap()).await, Decision::Allow);
    let unreachable = Decision::Deny(Denial::UrlUnreachable);
    assert_eq!(ask("127.0.0.1", Trust::ca_file(&ca_file).unwrap()).await, unreachable, "another name");
    let other = rcgen::KeyPair::generate().unwrap();
    let other = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap().self_signed(&other).unwrap();
    fs::write(&ca_file, other.pem()).unwrap();
    assert_eq!(ask("localhost", Trust::ca_file(&ca_file).unwrap()).await, unreachable, "another CA");
    assert_eq!(server.requests().len(), 1);
}

#[tokio::test]
async fn the_tailscale_daemon_is_asked_over_its_socket() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("tailscaled.sock");
    let admission = policy(vec![AdmissionSource::Tailscaled(socket.clone())], true, FORGETFUL);
    assert_eq!(
        admission.decide(applicant()).await,
        Decision::Deny(Denial::DaemonUnreachable),
        "it fails closed, whatever else does"
    );
    let server = Server::unix(Behaviour::Answer(200, "{}".into()), &socket);
    let asked = applicant();
    assert_eq!(admission.decide(asked).await, Decision::Allow);
    let request = server.requests().pop().unwrap();
    let target = format!("GET /localapi/v0/whois?addr=nodekey%3A{} HTTP/1.1\r\n", asked.key.to_untyped_hex());
    assert!(
        request.starts_with(&target) && request.to_ascii_lowercase().contains("host: local-tailscaled.sock\r\n"),
        "{request}"
    );
    for (behaviour, denial) in [
        (Behaviour::Answer(404, "no match".into()), Denial::DaemonUnknown),
        (Behaviour::Answer(403, "denied".into()), Denial::DaemonStatus),
        (Behaviour::Answer(500, String::new()), Denial::DaemonStatus),
        (Behaviour::Close, Denial::DaemonUnreachable),
    ] {
        server.behave(behaviour);
        assert_eq!(admission.decide(applicant()).await, Decision::Deny(denial));
    }
}

#[tokio::test]
async fn sources_that_cannot_decide_are_named_and_nothing_is_remembered_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let (path, socket) = (dir.path().join("allow"), dir.path().join("tailscaled.sock"));
    let nobodys = applicant().key;
    let (server, address) = Server::tcp(Behaviour::allow(true)).await;
    let daemon = Server::unix(Behaviour::Answer(404, "no match".into()), &socket);
    let sources =
        vec![AdmissionSource::AllowFile(list(&path, &[nobodys])), url(address), AdmissionSource::Tailscaled(socket.clone())];
    let lifetimes =
        Lifetimes { allow: Duration::from_secs(300), deny: Duration::from_secs(300), stale: Duration::from_secs(300) };
    let admission = policy(sources, false, lifetimes);
    // Any clear answer is one, also a yes.
    assert_eq!(admission.faults(nobodys).await, [""; 0]);
    server.behave(Behaviour::allow(false));
    assert_eq!(admission.faults(nobodys).await, [""; 0]);
    assert_eq!((server.requests().len(), daemon.requests().len()), (2, 2), "asked each time");
    assert!(server.requests()[0].contains(&nobodys.to_text()));
    // The yes of before was about nobody, and lets nobody in.
    let applicant = Applicant { key: nobodys, source: IpAddr::V4(Ipv4Addr::LOCALHOST) };
    assert_eq!(admission.decide(applicant).await, Decision::Deny(Denial::UrlDenied));

    fs::write(&path, "nonsense").unwrap();
    daemon.behave(Behaviour::Answer(500, String::new()));
    for (behaviour, why) in [
        (Behaviour::Answer(404, String::new()), "admission by verify_url: an answer of another status than 200"),
        (Behaviour::Answer(200, "yes".into()), "admission by verify_url: an answer that says neither yes nor no"),
        (Behaviour::Answer(503, String::new()), "admission by verify_url: status 503"),
        (Behaviour::Close, "admission by verify_url: "),
    ] {
        server.behave(behaviour);
        let faults = admission.faults(nobodys).await;
        assert!(faults[0].contains("allow, line 1") && faults[1].starts_with(why), "{faults:?}");
        assert!(faults[2].starts_with("admission by tailscaled: status 500") && faults.len() == 3, "{faults:?}");
    }
    assert_eq!(policy(vec![], false, FORGETFUL).faults(nobodys).await, [""; 0]);
}

#[tokio::test]
async fn all_sources_must_admit_and_are_asked_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let [member, banned, stranger] = [(); 3].map(|()| applicant());
    let allow = AdmissionSource::AllowFile(list(&dir.path().join("allow"), &[member.key, banned.key]));
    let deny = AdmissionSource::DenyFile(list(&dir.path().join("deny"), &[banned.key]));
    let (server, address) = Server::tcp(Behaviour::allow(true)).await;
    let first = policy(vec![allow.clone(), deny.clone(), url(address)], false, FORGETFUL);
    assert_eq!(first.decide(stranger).await, Decision::Deny(Denial::NotListed));
    assert_eq!(first.decide(banned).await, Decision::Deny(Denial::Listed));
    assert_eq!(server.requests().len(), 0, "who is refused by a list is not asked about");
    assert_eq!(first.decide(member).await, Decision::Allow);
    assert_eq!(server.requests().len(), 1);
    let last = policy(vec![url(address), deny.clone(), allow], false, FORGETFUL);
    server.behave(Behaviour::allow(false));
    assert_eq!(last.decide(stranger).await, Decision::Deny(Denial::UrlDenied));
    // An outage hides no clear no of another source.
    server.behave(Behaviour::Close);
    assert_eq!(last.decide(banned).await, Decision::Deny(Denial::Listed));
    assert_eq!(last.decide(member).await, Decision::Deny(Denial::UrlUnreachable));
    assert!(policy(vec![], false, FORGETFUL).is_open() && !last.is_open());
    // Another configuration holds at once.
    let before = last.generation();
    let open = config::Admission { sources: vec![], fail_open: false, lifetimes: FORGETFUL, recheck: Duration::from_secs(1) };
    last.set(&open);
    assert_eq!(last.decide(stranger).await, Decision::Allow);
    assert_ne!(last.generation(), before);
}
