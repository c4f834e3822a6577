#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::super::{AcmeChallenge, AdmissionSource, Cidr, Config, Derper, FileConfig, Tls};

/// A directory with a good key file beside the configuration; the text it starts from.
fn good(dir: &Path) -> String {
    write_secret(&dir.join("mesh.key"), &"5a".repeat(32), 0o600);
    format!(
        "name = 'a-1'\ndata_dir = '{0}/data'\nmesh_key_file = '{0}/mesh.key'\n[region]\nid = 901\ncode = 'a'\nname = 'Alpha'\n\
         [advertise]\nhost_name = 'a-1.example'\n[tls]\nself_signed = true\n",
        dir.display()
    )
}

fn write_secret(path: &Path, text: &str, mode: u32) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn validate(text: &str, sets: &[&str]) -> Result<Config, String> {
    let path = Path::new("node.toml");
    let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
    let file = FileConfig::parse(path, text, &sets).map_err(|error| error.to_string())?;
    Config::validate(path, &file).map_err(|error| error.to_string())
}

#[test]
fn the_example_documents_every_field_with_its_default() {
    let text = include_str!("../../../config.example.toml");
    let example = FileConfig::parse(Path::new("config.example.toml"), text, &[]).unwrap();
    // Every field of the printed default must be mentioned in the example, if only as a comment.
    let full = FileConfig {
        region: super::file::Region { latitude: Some(0.0), longitude: Some(0.0), ..Default::default() },
        tls: super::file::Tls { acme: Some(super::file::Acme::default()), ..Default::default() },
        ..FileConfig::default()
    };
    let mut section = String::new();
    for line in full.to_string().lines() {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']').to_owned();
            let documented = text.lines().any(|line| line.trim_start_matches("# ") == format!("[{section}]"));
            assert!(documented, "[{section}] is not in the example");
        } else if let Some((field, _)) = line.split_once(" = ") {
            let documented = text.lines().any(|line| line.trim_start_matches("# ").starts_with(&format!("{field} = ")));
            assert!(documented, "{section}.{field} is not in the example");
        }
    }
    // The example sets what has no default and keeps every default it shows.
    assert_eq!(example.limits, FileConfig::default().limits);
    assert_eq!(example.derp, FileConfig::default().derp);
    assert_eq!(example.mesh, FileConfig::default().mesh);
    assert_eq!(example.admission, FileConfig::default().admission);
    assert_eq!(example.http, FileConfig::default().http);
}

#[test]
fn a_minimal_configuration_is_valid_and_its_defaults_hold() {
    let dir = tempfile::tempdir().unwrap();
    let config = validate(&good(dir.path()), &[]).unwrap();
    assert_eq!(config.derp.listen.port(), 443);
    assert_eq!(config.tls, Tls::SelfSigned { file: config.data_dir.join("tls/a-1.example.pem") });
    assert_eq!(config.operator.socket, dir.path().join("data/operator.sock"));
    assert!(config.derp_mesh.is_none() && config.otlp.is_none() && config.advertise.derp_port.is_none());
    assert!(!format!("{config:?}").contains(&"5a".repeat(8)));
}

#[test]
fn each_mistake_names_file_field_and_what_would_be_right() {
    let dir = tempfile::tempdir().unwrap();
    let text = good(dir.path());
    let at = |name: &str| dir.path().join(name).display().to_string();
    write_secret(&dir.path().join("open.key"), &"5a".repeat(32), 0o640);
    write_secret(&dir.path().join("short.key"), "5a5a", 0o600);
    write_secret(&dir.path().join("zero.key"), &"00".repeat(32), 0o600);
    write_secret(&dir.path().join("long.key"), &"5a".repeat(4096), 0o600);
    fs::write(dir.path().join("bad.keys"), format!("# team\nprivkey:{}\n", "5a".repeat(32))).unwrap();
    let url = |url: &str| vec!["admission.sources=['verify_url']".to_owned(), format!("admission.verify_url={url}")];
    let cases: Vec<(Vec<String>, &str, &str)> = vec![
        (vec!["name=".into()], "name", "unique"),
        (vec!["name=A b".into()], "name", "a-z"),
        (vec!["data_dir=".into()], "data_dir", "missing"),
        (vec![format!("data_dir={}", at("mesh.key"))], "data_dir", "not a directory"),
        (vec!["mesh_key_file=".into()], "mesh_key_file", "64 hex digits"),
        (vec![format!("mesh_key_file={}", at("none.key"))], "mesh_key_file", "cannot read"),
        (vec![format!("mesh_key_file={}", at("open.key"))], "mesh_key_file", "mode 600"),
        (vec![format!("mesh_key_file={}", at("short.key"))], "mesh_key_file", "64 hex digits"),
        (vec![format!("mesh_key_file={}", at("zero.key"))], "mesh_key_file", "all zero"),
        (vec![format!("mesh_key_file={}", at("long.key"))], "mesh_key_file", "longer than"),
        (vec![format!("mesh_key_next_file={}", at("none.key"))], "mesh_key_next_file", "cannot read"),
        (vec!["region.id=0".into()], "region.id", "from 1"),
        (vec!["region.id=9007199254740992".into()], "region.id", "from 1"),
        (vec!["region.latitude=91".into()], "region.latitude", "degrees"),
        (vec!["advertise.host_name=".into()], "advertise.host_name", "DNS name"),
        (vec!["advertise.host_name=h:443".into()], "advertise.host_name", "without port"),
        (vec!["advertise.ipv4=::1".into()], "advertise.ipv4", "none"),
        (vec!["advertise.mesh=host".into()], "advertise.mesh", "HOST:PORT"),
        (vec!["derp.listen=:443".into()], "derp.listen", "ADDRESS:PORT"),
        (vec!["http.home=example.com".into()], "http.home", "https://"),
        (vec!["http.home=https://example.com/ö".into()], "http.home", "ASCII"),
        (vec!["http.trusted_proxies=['proxy.example']".into()], "http.trusted_proxies", "ADDRESS/BITS"),
        (vec!["http.debug_networks=['10.0.0.0/33']".into()], "http.debug_networks", "ADDRESS/BITS"),
        (vec![format!("http.debug_key_file={}", at("short.key"))], "http.debug_key_file", "16 printable"),
        (vec!["proxy_protocol.derp=['balancer']".into()], "proxy_protocol.derp", "ADDRESS/BITS"),
        (vec!["proxy_protocol.plain_http=['balancer']".into()], "proxy_protocol.plain_http", "ADDRESS/BITS"),
        (vec!["bootstrap_dns.names=['a..b']".into()], "bootstrap_dns.names", "DNS name"),
        (vec!["bootstrap_dns.unpublished_names=['a.b/']".into()], "bootstrap_dns.unpublished_names", "DNS name"),
        (vec!["bootstrap_dns.servers=['9.9.9.9']".into()], "bootstrap_dns.servers", "ADDRESS:PORT"),
        (vec!["tls.cert_file=c".into(), "tls.self_signed=false".into()], "tls.key_file", "cert_file"),
        (vec!["tls.cert_file=c".into()], "tls", "excludes"),
        (vec!["tls.self_signed=false".into()], "tls", "self_signed = true"),
        (vec!["mesh.listen=".into()], "mesh.listen", "standalone"),
        (vec!["mesh.stripes=0".into()], "mesh.stripes", "1 to 16"),
        (vec!["derp_mesh.allow=['10.0.0.0/33']".into()], "derp_mesh.allow", "ADDRESS/BITS"),
        (vec!["derp_mesh.allow=['10.0.0.0/8']".into()], "derp_mesh.key_file", "missing"),
        (vec![format!("derp_mesh.key_file={}", at("mesh.key"))], "derp_mesh.allow", "networks"),
        (vec!["derp_mesh.with=['derp1']".into()], "derp_mesh.key_file", "missing"),
        (vec!["derp_mesh.with=['https://derp1/derp']".into()], "derp_mesh.with", "HOST/DIAL_HOST"),
        (vec!["derp_mesh.with=['a/b/c']".into()], "derp_mesh.with", "HOST/DIAL_HOST"),
        (vec!["derp_mesh.with=['a:x']".into()], "derp_mesh.with", "HOST:PORT"),
        (vec!["derp_mesh.with=['a','a:443']".into()], "derp_mesh.with", "named twice"),
        (vec!["derp_mesh.announce=world".into()], "--set derp_mesh.announce=world", "region"),
        (vec!["derp_mesh.keys_max=0".into()], "derp_mesh.keys_max", "1 to 30000"),
        (vec![format!("derp_mesh.ca_file={}", at("none.pem"))], "derp_mesh.ca_file", "none.pem"),
        (vec![format!("derp_mesh.ca_file={}", at("mesh.key"))], "derp_mesh.ca_file", "PEM"),
        (vec!["discovery.static=['host']".into()], "discovery.static", "HOST:PORT"),
        (vec!["discovery.dns=['mesh.example', '192.0.2.1']".into()], "discovery.dns", "discovery.static"),
        (vec!["discovery.dns=['_mesh._tcp.example:1']".into()], "discovery.dns", "leave it out"),
        (vec!["discovery.dns=['h']".into(), "discovery.dns_servers=['h']".into()], "discovery.dns_servers", "ADDRESS:PORT"),
        (vec!["discovery.dns_servers=['127.0.0.1:53']".into()], "discovery.dns", "missing"),
        (vec!["otlp.endpoint=host:4317".into()], "otlp.endpoint", "http://"),
        (vec!["otlp.sample_ratio=1.5".into()], "otlp.sample_ratio", "0.0 to 1.0"),
        (vec!["limits.connections=0".into()], "limits.connections", "1 to 1000000"),
        (vec!["limits.client_queue_bytes=65536".into()], "limits.client_queue_bytes", "131072 to"),
        (vec!["limits.connections_per_key=0".into()], "limits.connections_per_key", "1 to 1024"),
        (vec!["limits.client_rate_bytes_per_second=100".into()], "limits.client_rate_bytes_per_second", "at least 8192"),
        (vec!["limits.key_rate_bits_per_second=65535".into()], "limits.key_rate_bits_per_second", "at least 65536"),
        (vec!["admission.sources=['allow_file']".into()], "admission.allow_file", "missing"),
        (vec!["admission.deny_file=x".into()], "admission.deny_file", "add \"deny_file\" to admission.sources"),
        (
            vec!["admission.sources=['allow_file']".into(), format!("admission.allow_file={}", at("none.keys"))],
            "admission.allow_file",
            "none.keys: No such file",
        ),
        (
            vec!["admission.sources=['deny_file']".into(), format!("admission.deny_file={}", at("bad.keys"))],
            "admission.deny_file",
            "bad.keys, line 2: wanted",
        ),
        (vec!["admission.sources=['tailscaled','tailscaled']".into()], "admission.sources", "twice"),
        (
            vec!["admission.sources=['tailscaled']".into(), "admission.tailscaled_socket=".into()],
            "admission.tailscaled_socket",
            "missing",
        ),
        (vec!["admission.recheck_seconds=0".into()], "admission.recheck_seconds", "1 to"),
        (url("verify"), "admission.verify_url", "https://"),
        (url("https://"), "admission.verify_url", "not a URL"),
        (url("ftp://host/verify"), "admission.verify_url", "https"),
        (url("https://user:secret@host/verify"), "admission.verify_url", "user name"),
        (url("http://192.0.2.1/verify"), "admission.verify_url", "verify_url_plain"),
        (
            [url("https://host/"), vec!["admission.verify_url_ca_file=/none.pem".into()]].concat(),
            "admission.verify_url_ca_file",
            "/none.pem",
        ),
        (vec!["log.filter=a=b=c".into()], "log.filter", "directives"),
    ];
    for (sets, field, wanted) in cases {
        let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
        let error = validate(&text, &sets).expect_err(sets[0]);
        assert!(error.contains(&format!("node.toml: {field}: ")) && error.contains(wanted), "{sets:?}: {error}");
    }
}

#[test]
fn admission_takes_its_sources_in_the_order_given() {
    let dir = tempfile::tempdir().unwrap();
    let text = good(dir.path());
    fs::write(dir.path().join("keys"), format!("nodekey:{}", "5a".repeat(32))).unwrap();
    let file = format!("admission.deny_file={}", dir.path().join("keys").display());
    for url in ["http://127.0.0.1:8080/verify", "http://localhost/verify", "http://[::1]/verify", "http://192.0.2.1/verify"] {
        let url = format!("admission.verify_url={url}");
        let sets = ["admission.sources=['verify_url','tailscaled','deny_file']", &url, &file, "admission.verify_url_plain=true"];
        let config = validate(&text, if url.contains("192") { &sets } else { &sets[..3] }).unwrap();
        assert!(matches!(
            &config.admission.sources[..],
            [AdmissionSource::VerifyUrl { .. }, AdmissionSource::Tailscaled(_), AdmissionSource::DenyFile(_)]
        ));
    }
    assert!(validate(&text, &[]).unwrap().admission.sources.is_empty());
    let error = validate(&text, &["admission.sources=['verify']"]).unwrap_err();
    assert!(error.contains("verify") && error.contains("allow_file"), "{error}");
}

#[test]
fn certificates_by_acme_need_little_and_say_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let text = good(dir.path()).replace("self_signed = true", "[tls.acme]");
    let acme = |sets: &[&str]| match validate(&text, sets).unwrap().tls {
        Tls::Acme(acme) => acme,
        other => panic!("{other:?}"),
    };
    let least = acme(&[]);
    assert_eq!((least.domains, least.challenge), (vec!["a-1.example".to_owned()], AcmeChallenge::TlsAlpn01));
    assert!(least.directory.contains("letsencrypt") && least.cache_dir == dir.path().join("data/acme"));

    let key = dir.path().join("eab.key");
    write_secret(&key, "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W\n", 0o600);
    let key = format!("tls.acme.eab_key_file={}", key.display());
    let all = [
        "derp.plain_http_listen=127.0.0.1:0",
        "tls.acme.challenge=http-01",
        "tls.acme.domains=['A-1.example', '2001:DB8::0:1']",
        "tls.acme.contact=mailto:ops@example.org",
        "tls.acme.eab_kid=kid-1",
        &key,
    ];
    let acme = acme(&all);
    assert_eq!((acme.domains.join(" "), acme.contact.as_str()), ("a-1.example 2001:db8::1".to_owned(), "ops@example.org"));
    let account = acme.external_account.unwrap();
    assert!(account.key_id == "kid-1" && account.key.len() == 48 && !format!("{account:?}").contains("205"), "{account:?}");

    write_secret(&dir.path().join("bad.key"), "not base64!", 0o600);
    let bad_key = format!("tls.acme.eab_key_file={}", dir.path().join("bad.key").display());
    let cases: [(&[&str], &str, &str); 11] = [
        (&["tls.acme.directory=http://h/dir"], "tls.acme.directory", "https URL"),
        (&["tls.acme.contact=ops"], "tls.acme.contact", "e-mail"),
        (&["tls.acme.challenge=http-01"], "tls.acme.challenge", "derp.plain_http_listen"),
        (&["tls.acme.domains=['*.example']"], "tls.acme.domains", "without wildcard"),
        (&["tls.acme.domains=['a.example:443']"], "tls.acme.domains", "port"),
        (&["tls.acme.domains=['192.0.2.1']"], "tls.acme.domains", "http-01"),
        (&["tls.acme.eab_kid=kid-1"], "tls.acme.eab_key_file", "missing"),
        (&["tls.acme.eab_key_file=/none"], "tls.acme.eab_kid", "missing"),
        (&["tls.acme.eab_kid=kid-1", &bad_key], "tls.acme.eab_key_file", "base64"),
        (&["tls.self_signed=true"], "tls", "excludes"),
        (&["tls.cert_file=c"], "tls", "excludes"),
    ];
    for (sets, field, wanted) in cases {
        let error = validate(&text, sets).expect_err(sets[0]);
        assert!(error.contains(&format!("node.toml: {field}: ")) && error.contains(wanted), "{sets:?}: {error}");
    }
    let error = validate(&text, &["tls.acme.challenge=dns-01"]).unwrap_err();
    assert!(error.contains("dns-01") && error.contains("tls-alpn-01"), "{error}");
}

#[test]
fn stock_derpers_are_named_as_their_own_flag_names_them() {
    let derper = |text: &str| {
        let Derper { endpoint, dial_host } = text.parse().unwrap();
        (endpoint.host_name, endpoint.port, dial_host)
    };
    let host = |name: &str, port, dial: Option<&str>| (name.to_owned(), port, dial.map(str::to_owned));
    assert_eq!(derper("derp1.example"), host("derp1.example", 443, None));
    assert_eq!(derper("derp1.example:8443"), host("derp1.example", 8443, None));
    assert_eq!(derper("derp1.example/10.0.0.1"), host("derp1.example", 443, Some("10.0.0.1")));
    assert_eq!(derper("derp1.example:8443/fd00::1"), host("derp1.example", 8443, Some("fd00::1")));
    assert_eq!(derper("[2001:db8::1]"), host("2001:db8::1", 443, None));
    assert_eq!(derper("192.0.2.1:444"), host("192.0.2.1", 444, None));
    for bad in ["", "/", "a/", "/a", "a b", "a/b c", "2001:db8::1"] {
        assert!(bad.parse::<Derper>().is_err(), "{bad}");
    }
}

#[test]
fn all_problems_are_told_at_once() {
    let error = validate("standalone = true", &[]).expect_err("nearly empty");
    for field in ["name", "data_dir", "region", "advertise.host_name", "tls"] {
        assert!(error.contains(&format!("node.toml: {field}: ")), "{field}: {error}");
    }
    assert!(!error.contains("mesh_key_file"), "a standalone node needs none: {error}");
}

#[test]
fn networks_hold_what_is_inside_and_treat_mapped_addresses_as_ipv4() {
    let contains = |network: &str, address: &str| network.parse::<Cidr>().unwrap().contains(address.parse::<IpAddr>().unwrap());
    assert!(contains("10.0.0.0/8", "10.255.0.1") && contains("10.0.0.0/8", "::ffff:10.1.1.1"));
    assert!(!contains("10.0.0.0/8", "11.0.0.1") && !contains("10.0.0.0/8", "fd00::1"));
    assert!(contains("0.0.0.0/0", "192.0.2.1") && contains("::/0", "2001:db8::1") && !contains("::/0", "192.0.2.1"));
    assert!(contains("fd00::/8", "fdff::1") && contains("192.0.2.7", "192.0.2.7") && !contains("192.0.2.7", "192.0.2.8"));
}
