//! Certificates from a real ACME directory: got, kept, renewed, and what is said when there is none.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use causeway_client::Trust;

use crate::harness::{Home, Node, write_secret};
use crate::pebble::{BLOCKED_DOMAIN, BRIEF_LIFETIME_S, BRIEF_PROFILE, DOMAIN, KEY, KEY_ID, Pebble, chain};

const RENEWALS: &str = "causeway_ingress_certificate_renewals_total";

/// A node whose certificate comes from `pebble`, which finds it on the ports that it asks on.
fn home(pebble: &Pebble, settings: &str) -> Home {
    let home = Home::new();
    let text = fs::read_to_string(&home.config).unwrap();
    let section = format!(
        "[tls.acme]\ndirectory = '{}'\nca_file = '{}'\ncontact = 'ops@example.org'\n{settings}\n",
        pebble.directory(),
        pebble.ca_file().display()
    );
    let text = text
        .replace("host_name = 'localhost'", &format!("host_name = '{DOMAIN}'"))
        .replace("[tls]\nself_signed = true\n", &section)
        .replace("[derp]\nlisten = '127.0.0.1:0'", &format!("[derp]\nlisten = '{}'", pebble.tls.addr()))
        .replace("plain_http_listen = '127.0.0.1:0'", &format!("plain_http_listen = '{}'", pebble.http.addr()));
    fs::write(&home.config, text).unwrap();
    home
}

/// Waits until the node has got so many certificates; the chain that it serves now, which clients can verify.
async fn served(node: &Node, trust: &Trust, orders: u32) -> Vec<Vec<u8>> {
    if orders > 0 {
        node.until_sample(&renewals("ok", orders)).await;
    }
    let chain = chain(&node.ready.derp, trust).await.unwrap_or_else(|error| panic!("{error}:\n{}", node.log()));
    chain.into_iter().map(|certificate| certificate.to_vec()).collect()
}

fn renewals(outcome: &str, count: u32) -> String {
    format!("{RENEWALS}{{outcome=\"{outcome}\"}} {count}")
}

fn common_name(der: &[u8]) -> String {
    let (_, certificate) = x509_parser::parse_x509_certificate(der).unwrap();
    certificate.subject().iter_common_name().next().map(|name| name.as_str().unwrap().to_owned()).unwrap_or_default()
}

/// Waits until the node says that it is not ready because of `all` of this.
async fn until_not_ready(node: &Node, all: &[&str]) {
    let said = |answer: &str| answer.starts_with("HTTP/1.1 503 ") && all.iter().all(|wanted| answer.contains(wanted));
    node.until_answer("/readyz", said).await;
}

#[tokio::test]
async fn a_certificate_proven_by_tls_alpn_is_served_with_the_meta_cert_and_kept_over_restarts() {
    let Some(mut pebble) = Pebble::start(true).await else { return };
    let key = "eab_key_file = 'KEY'";
    let home = home(&pebble, &format!("challenge = 'tls-alpn-01'\neab_kid = '{KEY_ID}'\n{key}"));
    write_secret(&home.path("eab.key"), KEY);
    let text = fs::read_to_string(&home.config).unwrap().replace("'KEY'", &format!("'{}'", home.path("eab.key").display()));
    fs::write(&home.config, text).unwrap();

    let node = home.start(&[]).await;
    let issued = pebble.issued().await;
    let first = served(&node, &issued, 1).await;
    assert_eq!(first.len(), 3, "leaf, intermediate, MetaCert");
    assert_eq!(common_name(&first[2]), format!("derpkey{}", node.ready.derp_public_key));
    assert!(!node.metrics().await.contains("acme_challenge"), "nothing was asked by HTTP");
    let log = node.log();
    node.stop().await;

    let mut kept = Vec::new();
    for entry in fs::read_dir(home.path("data/acme")).unwrap().flat_map(|dir| fs::read_dir(dir.unwrap().path()).unwrap()) {
        let path = entry.unwrap().path();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600, "{}", path.display());
        // The secrets that are kept are told to nobody.
        let secret = fs::read_to_string(&path).unwrap();
        let secret = secret.lines().find(|line| line.len() > 60).unwrap();
        assert!(!log.contains(&secret[..60]), "{secret}");
        kept.push(path.file_name().unwrap().to_str().unwrap().to_owned());
    }
    kept.sort();
    assert_eq!(kept, ["account.json", "certificate.pem"]);
    assert!(!log.contains(KEY));

    // The directory is not needed for what is there.
    pebble.kill();
    let node = home.start(&[]).await;
    let again = served(&node, &issued, 0).await;
    assert_eq!(again[..2], first[..2], "the same certificate");
    assert_ne!(again[2], first[2], "and a MetaCert for the new process's key");
    node.until_ready().await;
    assert_eq!(node.metric(RENEWALS).await, 0.0);
    node.stop().await;
}

#[tokio::test]
async fn a_certificate_proven_by_http_is_renewed_in_time_and_a_failed_renewal_keeps_it() {
    let Some(mut pebble) = Pebble::start(false).await else { return };
    let home = home(&pebble, &format!("challenge = 'http-01'\nprofile = '{BRIEF_PROFILE}'"));
    let node = home.start(&[]).await;
    let issued = pebble.issued().await;
    let first = served(&node, &issued, 1).await;
    let second = served(&node, &issued, 2).await;
    let end = |der: &[u8]| x509_parser::parse_x509_certificate(der).unwrap().1.validity().not_after.timestamp();
    let apart = end(&second[0]) - end(&first[0]);
    assert!(
        apart >= i64::try_from(BRIEF_LIFETIME_S / 2).unwrap(),
        "renewed after two thirds of its life, not at once: {apart} s"
    );
    node.until_metric("causeway_ingress_certificate_expiry_timestamp_seconds", |at| at as i64 == end(&second[0])).await;
    let asked = node.metrics().await;
    assert!(asked.contains("causeway_ingress_http_requests_total{route=\"acme_challenge\",status=\"200\"}"), "{asked}");

    // The directory goes away: what is there is served until its end, and the reason is told then.
    pebble.kill();
    node.until_sample(&renewals("failed", 1)).await;
    assert_eq!(chain(&node.ready.derp, &issued).await.unwrap()[0].as_ref(), second[0]);
    node.until_ready().await;
    assert!(node.log().contains("there is no new certificate; the one in use stays"), "{}", node.log());
    until_not_ready(&node, &["the DERP certificate has expired", "tls.acme.directory", "cannot reach"]).await;
}

#[tokio::test]
async fn a_lost_account_is_replaced_and_a_contact_is_changed() {
    let Some(pebble) = Pebble::start(false).await else { return };
    let home = home(&pebble, "challenge = 'http-01'");
    let node = home.start(&[]).await;
    let issued = pebble.issued().await;
    let first = served(&node, &issued, 1).await;
    node.stop().await;

    // Other domains: another certificate, under the same account, whose contact is told to the directory.
    pebble.dns.set_addresses("other.test.", 0, &[std::net::Ipv4Addr::LOCALHOST.into()]).await;
    let both = format!("tls.acme.domains=['{DOMAIN}', 'other.test']");
    let changed = ["--set", &both, "--set", "tls.acme.contact=new@example.org"];
    let node = home.start(&changed).await;
    let second = served(&node, &issued, 1).await;
    assert_ne!(second[0], first[0]);
    node.stop().await;
    let account_file = home.path("data/acme");
    let account_file = fs::read_dir(account_file).unwrap().next().unwrap().unwrap().path().join("account.json");
    let kept: serde_json::Value = serde_json::from_slice(&fs::read(&account_file).unwrap()).unwrap();
    assert_eq!(kept["contact"], "new@example.org");

    // The directory has forgotten the account, as Pebble does when it is started again.
    let mut forgotten = kept.clone();
    forgotten["credentials"]["id"] = format!("{}0", kept["credentials"]["id"].as_str().unwrap()).into();
    fs::write(&account_file, forgotten.to_string()).unwrap();
    fs::remove_file(account_file.with_file_name("certificate.pem")).unwrap();
    let node = home.start(&changed).await;
    assert_ne!(served(&node, &issued, 1).await[0], second[0]);
    node.stop().await;
    let made: serde_json::Value = serde_json::from_slice(&fs::read(&account_file).unwrap()).unwrap();
    assert_ne!(made["credentials"]["id"], forgotten["credentials"]["id"]);
}

#[tokio::test]
async fn what_keeps_a_certificate_away_is_told_by_the_field() {
    let Some(pebble) = Pebble::start(false).await else { return };
    let none = "no certificate from the ACME directory yet";
    let home_of = |settings: &str| home(&pebble, &format!("challenge = 'http-01'\n{settings}"));

    let unhappy = async |settings: &str, sets: &[&str], said: &[&str]| {
        let home = home_of(settings);
        let node = home.start(sets).await;
        until_not_ready(&node, &[&[none], said].concat()).await;
        // The doors are open all the same: clients that do not check certificates are served.
        let anybody = Trust::insecure_for_tests().unwrap();
        assert_eq!(chain(&node.ready.derp, &anybody).await.unwrap().len(), 2, "self-signed, MetaCert");
        // The next one listens on the same ports.
        node.kill().await;
    };
    unhappy("", &["--set", "tls.acme.contact=ops@@example.org"], &["tls.acme.contact", "ops@@example.org"]).await;
    unhappy(&format!("domains = ['{BLOCKED_DOMAIN}']"), &[], &["tls.acme.domains", BLOCKED_DOMAIN]).await;
    unhappy("profile = 'none'", &[], &["tls.acme.", "profile"]).await;
    // Nobody answers at the address of the domain.
    pebble.dns.set_addresses("elsewhere.test.", 0, &["127.0.0.9".parse().unwrap()]).await;
    let failed = "tls.acme.domains: elsewhere.test: the http-01 challenge failed";
    unhappy("domains = ['elsewhere.test']", &[], &[failed, "127.0.0.9"]).await;

    let home = home_of("");
    fs::copy(home.path("mesh.key"), home.path("ca.pem")).unwrap();
    let (code, _, error) = home.run(&["--set", &format!("tls.acme.ca_file={}", home.path("ca.pem").display())]).await;
    assert!(code == Some(1) && error.contains("tls.acme.ca_file: ") && error.contains("ca.pem"), "{error}");
}

#[tokio::test]
async fn an_external_account_that_is_missing_or_wrong_is_told_by_the_field() {
    let Some(pebble) = Pebble::start(true).await else { return };
    let home = home(&pebble, "challenge = 'http-01'");
    let node = home.start(&[]).await;
    until_not_ready(&node, &["tls.acme.eab_kid", "set eab_kid and eab_key_file"]).await;
    node.kill().await;
    write_secret(&home.path("eab.key"), &KEY.replace('z', "y"));
    let key_file = format!("tls.acme.eab_key_file={}", home.path("eab.key").display());
    for id in [KEY_ID, "kid-unknown"] {
        let node = home.start(&["--set", &format!("tls.acme.eab_kid={id}"), "--set", &key_file]).await;
        until_not_ready(&node, &["tls.acme.eab_kid and eab_key_file: "]).await;
        node.kill().await;
    }
}
