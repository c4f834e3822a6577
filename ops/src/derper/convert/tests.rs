#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::HashMap;
use std::fs;

use causeway_proto::key::NodePrivate;

use super::super::flags::{FLAGS, VARIABLES};
use super::*;

struct Machine {
    dir: tempfile::TempDir,
    variables: HashMap<String, String>,
}

impl Machine {
    /// A machine with what a derper has: a key, a certificate, a mesh key, a rate file.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        write("derper.key", &format!("{{\n\t\"PrivateKey\": \"{}\"\n}}", NodePrivate::generate().expose_text()));
        write("relay.test.crt", "certificate");
        write("relay.test.key", "key");
        write("mesh.key", &format!("  {}\n", "AB".repeat(32)));
        write("rate.json", r#"{"PerClientRateLimitBytesPerSec": 1000000, "PerClientRateBurstBytes": 7}"#);
        write("slow.json", r#"{"PerClientRateLimitBytesPerSec": 10}"#);
        write("debug.key", "a key of more than sixteen characters");
        let variables = HashMap::from([("HOME".to_owned(), dir.path().display().to_string())]);
        Self { dir, variables }
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    /// What a manual server on port 443 is given, and `more`, in which `@` or `@/` stands for the machine's directory.
    fn convert(&self, more: &[&str]) -> Result<Imported, String> {
        let usual = ["-hostname", "relay.test", "-certmode", "manual", "-certdir", "@", "-c", "@/derper.key"];
        self.convert_all(&[&usual[..], more].concat())
    }

    fn convert_all(&self, arguments: &[&str]) -> Result<Imported, String> {
        self.convert_into("/var/lib/causeway", arguments)
    }

    fn convert_into(&self, data_dir: &str, arguments: &[&str]) -> Result<Imported, String> {
        let root = self.dir.path().display().to_string();
        let arguments: Vec<String> = arguments.iter().map(|argument| place(argument, &root)).collect();
        let options = Options {
            name: None,
            region_id: 900,
            region_code: "derp".into(),
            data_dir: data_dir.into(),
            out: self.dir.path().join("out"),
        };
        convert(&Flags::parse(&arguments)?, &|name| self.variables.get(name).cloned(), &options)
    }
}

/// `@` for the machine's directory, but not that of a mail address.
fn place(argument: &str, root: &str) -> String {
    if argument == "@" { root.to_owned() } else { argument.replace("@/", &format!("{root}/")) }
}

/// The field of a configuration at a TOML path, as TOML; empty if it is not set.
fn field(imported: &Imported, path: &str) -> String {
    let table: Table = imported.config.parse().unwrap();
    let mut value = &Value::Table(table);
    for part in path.split('.') {
        let Some(next) = value.get(part) else { return String::new() };
        value = next;
    }
    value.to_string()
}

#[test]
fn the_state_lies_where_it_was_wanted_wherever_the_node_is_started() {
    let machine = Machine::new();
    let arguments = ["-hostname", "relay.test", "-certmode", "manual", "-certdir", "@", "-c", "@/derper.key"];
    let imported = machine.convert_into("state", &arguments).unwrap();
    let here = std::env::current_dir().unwrap().join("state");
    assert_eq!(field(&imported, "data_dir"), format!("{:?}", here.display().to_string()));
}

#[test]
fn a_plain_server_keeps_its_ports_certificate_and_key() {
    let machine = Machine::new();
    let imported = machine.convert(&[]).unwrap();
    let crt = machine.path("relay.test.crt");
    for (path, value) in [
        ("name", "\"relay.test\""),
        ("standalone", "true"),
        ("data_dir", "\"/var/lib/causeway\""),
        ("region.id", "900"),
        ("advertise.host_name", "\"relay.test\""),
        ("advertise.can_port80", "true"),
        ("derp.listen", "\"[::]:443\""),
        ("derp.plain_http_listen", "\"[::]:80\""),
        ("stun.listen", "\"[::]:3478\""),
        ("tls.cert_file", &format!("{crt:?}")),
        ("limits.key_rate_bits_per_second", "0"),
        ("derp_mesh.key_file", ""),
        ("admission.sources", ""),
    ] {
        assert_eq!(field(&imported, path), value, "{path}");
    }
    let [secret] = &imported.secrets[..] else { panic!("{:?}", imported.secrets) };
    let derper: serde_json::Value = serde_json::from_str(&fs::read_to_string(machine.path("derper.key")).unwrap()).unwrap();
    assert_eq!((secret.file_name, secret.text.trim()), ("derp-server.key", derper["PrivateKey"].as_str().unwrap()));
    assert_eq!(field(&imported, "derp.server_key_file"), format!("{:?}", machine.path("out/derp-server.key")));
    assert!(!imported.config.contains("privkey") && !format!("{imported:?}").contains("privkey"), "secrets stay in their files");
}

#[test]
fn every_flag_that_has_a_field_sets_it() {
    let machine = Machine::new();
    let cases: [(&[&str], &str, &str); 34] = [
        (&["-a", "192.0.2.1:8443"], "derp.listen", "\"192.0.2.1:8443\""),
        (&["-a", "192.0.2.1:8443"], "stun.listen", "\"192.0.2.1:3478\""),
        (&["-a", "[2001:db8::1]:https"], "derp.listen", "\"[2001:db8::1]:443\""),
        (&["-http-port", "-1"], "derp.plain_http_listen", ""),
        (&["-http-port=8080"], "derp.plain_http_listen", "\"[::]:8080\""),
        (&["-http-port=8080"], "advertise.can_port80", "false"),
        (&["-stun=false"], "stun.listen", "\"\""),
        (&["--stun-port", "3479"], "stun.listen", "\"[::]:3479\""),
        (&["-certmode", "letsencrypt"], "tls.acme.domains", "[\"relay.test\"]"),
        (&["-certmode", "letsencrypt"], "tls.acme.directory", "\"https://acme-v02.api.letsencrypt.org/directory\""),
        (&["-certmode", "letsencrypt", "-acme-email", "a@b.c"], "tls.acme.contact", "\"a@b.c\""),
        (&["-certmode", "letsencrypt"], "tls.acme.challenge", ""),
        (&["-certmode", "letsencrypt", "-hostname", "192.0.2.7", "-acme-ip-certs"], "tls.acme.challenge", "\"http-01\""),
        (&["-certmode", "letsencrypt", "-hostname", "192.0.2.7", "-acme-ip-certs"], "tls.acme.profile", "\"shortlived\""),
        (
            &["-certmode", "gcp", "-acme-email", "a@b.c", "-acme-eab-kid", "k", "-acme-eab-key", "s"],
            "tls.acme.directory",
            "\"https://dv.acme-v02.api.pki.goog/directory\"",
        ),
        (&["-certmode", "gcp", "-acme-email", "a@b.c", "-acme-eab-kid", "k", "-acme-eab-key", "s"], "tls.acme.eab_kid", "\"k\""),
        (&["-home", "blank"], "http.home", "\"blank\""),
        (&["-mesh-psk-file", "@/mesh.key"], "derp_mesh.allow", "[\"0.0.0.0/0\", \"::/0\"]"),
        (&["-mesh-psk-file", "@/mesh.key", "-mesh-with", "a,b/10.0.0.2"], "derp_mesh.with", "[\"a\", \"b/10.0.0.2\"]"),
        (&["-bootstrap-dns-names", "a.test, b.test"], "bootstrap_dns.names", "[\"a.test\", \"b.test\"]"),
        (&["-unpublished-bootstrap-dns-names", "a.test/t.test"], "bootstrap_dns.unpublished_names", "[\"a.test/t.test\"]"),
        (&["-verify-clients"], "admission.sources", "[\"tailscaled\"]"),
        (&["-verify-clients", "-socket", "/run/ts.sock"], "admission.tailscaled_socket", "\"/run/ts.sock\""),
        (&["-verify-client-url", "https://h.test/verify"], "admission.verify_url", "\"https://h.test/verify\""),
        (&["-verify-client-url", "https://h.test/verify"], "admission.fail_open", "true"),
        (&["-verify-client-url", "https://h.test/v", "-verify-client-url-fail-open=false"], "admission.fail_open", "false"),
        (&["-verify-client-url", "http://h.test/v"], "admission.verify_url_plain", "true"),
        (&["-verify-client-url", "http://127.0.0.1:8080/v"], "admission.verify_url_plain", ""),
        (&["-verify-clients", "-verify-client-url", "https://h.test/v"], "admission.sources", "[\"tailscaled\", \"verify_url\"]"),
        (&["-rate-config", "@/rate.json"], "limits.client_rate_bytes_per_second", "1000000"),
        (&["-rate-config", "@/rate.json"], "limits.client_burst_bytes", "65568"),
        (&["-rate-config", "@/slow.json"], "limits.client_rate_bytes_per_second", "8192"),
        (&["-accept-connection-limit", "0.5"], "limits.accepts_per_second_per_core", "1"),
        (&["-c", "@/none.key"], "derp.server_key_file", "!"),
    ];
    for (more, path, value) in cases {
        let imported = machine.convert(more).unwrap_or_else(|error| panic!("{more:?}: {error}"));
        let field = field(&imported, path);
        assert!(field == value || value == "!" && field.ends_with("derp-server.key\""), "{more:?}: {path} = {field}");
    }
}

#[test]
fn without_tls_and_by_address_the_doors_are_as_derpers() {
    let machine = Machine::new();
    let plain = machine.convert_all(&["-hostname", "relay.test", "-a", "10.0.0.1:8080", "-c", "@/derper.key"]).unwrap();
    assert_eq!(field(&plain, "derp.plain_http_listen"), "\"10.0.0.1:8080\"");
    assert_eq!(field(&plain, "derp.plain_http_serves_derp"), "true");
    assert!(plain.notes.iter().any(|note| note.fate == Fate::Differs && note.text.contains("advertise.derp_port")));
    let address = ["-hostname", "192.0.2.7", "-certmode", "manual", "-certdir", "@", "-c", "@/derper.key"];
    let pinned = machine.convert_all(&address).unwrap();
    assert_eq!((field(&pinned, "tls.self_signed"), field(&pinned, "advertise.ipv4")), ("true".into(), "\"192.0.2.7\"".into()));
}

#[test]
fn what_derper_or_a_node_refuses_is_refused_with_the_flag_and_what_to_do() {
    let machine = Machine::new();
    let gcp = ["-certmode", "gcp", "-acme-email", "a@b.c"];
    let cases: [(&[&str], &str); 18] = [
        (&["-mesh-with", "a"], "-mesh-psk-file"),
        (&["-mesh-psk-file", "@/mesh.key", "-mesh-with", "a/b/c"], "more than one slash"),
        (&["-mesh-psk-file", "@/none"], "@/none"),
        (&["-mesh-psk-file", "@/rate.json"], "64 hex digits"),
        (&["-secrets-url", "https://s.test"], "prod/derp/meshkey"),
        (&["-home", "welcome"], "-home"),
        (&["-certmode", "magic"], "-certmode"),
        (&["-acme-ip-certs"], "-acme-ip-certs"),
        (&["-certdir", "@/none"], "relay.test.crt"),
        (&["-certdir", ""], "-certdir"),
        (&gcp, "-acme-eab-kid"),
        (&["-certmode", "letsencrypt", "-hostname", "192.0.2.7"], "-certmode manual"),
        (&["-a", "relay.test:443"], "-a"),
        (&["-a", "443"], "-a"),
        (&["-http-port", "99999"], "-http-port"),
        (&["-c", "@/mesh.key"], "PrivateKey"),
        (&["-derp=false"], "-derp=false"),
        (&["-dev"], "causeway dev"),
    ];
    for (more, named) in cases {
        let named = named.replace('@', &machine.dir.path().display().to_string());
        let error = machine.convert(more).expect_err(&named);
        assert!(error.contains(&named), "{more:?}: {error}");
        assert!(!error.contains("ABAB"), "a key is never echoed: {error}");
    }
    assert!(machine.convert_all(&["-certmode", "manual"]).expect_err("no name").contains("-hostname"));
}

#[test]
fn every_flag_and_variable_given_is_accounted_for() {
    let mut machine = Machine::new();
    for (name, value) in [
        ("TS_ALLOW_DEBUG_IP", "192.0.2.9"),
        ("TS_DEBUG_TRUSTED_CIDRS", "198.51.100.0/24,203.0.113.0/24"),
        ("TS_DEBUG_KEY_PATH", &machine.path("debug.key")),
        ("TS_DEBUG_DERP_PER_CLIENT_SEND_QUEUE_DEPTH", "64"),
        ("TS_DERP_DISABLE_RTT_STATS", "1"),
        ("TS_DEBUG_VERBOSE_DROPS", "00"),
        ("DERP_DEBUG_LOGS", "1"),
        ("DERP_PROBER_DEBUG_LOGS", "1"),
        ("TAILSCALE_DERPER_MESH_KEY", "00"),
    ] {
        machine.variables.insert(name.to_owned(), value.to_owned());
    }
    // Each with a value that changes nothing of importance; what cannot be given beside the others stands in other tests.
    let given = [
        "-a=:443",
        "-accept-connection-burst=5",
        "-accept-connection-limit=10",
        "-ace=false",
        "-acme-eab-key=",
        "-acme-eab-kid=",
        "-acme-email=a@b.c",
        "-acme-ip-certs=false",
        "-bootstrap-dns-names=a.test",
        "-derp=true",
        "-dev=false",
        "-home=",
        "-http-port=80",
        "-mesh-psk-file=@/mesh.key",
        "-mesh-with=a",
        "-rate-config=@/rate.json",
        "-secrets-cache-dir=/x",
        "-secrets-path-prefix=x",
        "-secrets-url=",
        "-socket=/x",
        "-stun",
        "-stun-port=3478",
        "-tcp-keepalive-time=5m",
        "-tcp-user-timeout=15s",
        "-tcp-write-timeout=5s",
        "-unpublished-bootstrap-dns-names=b.test",
        "-verify-client-url=https://h.test/v",
        "-verify-client-url-fail-open",
        "-verify-clients",
        "-version=false",
    ];
    let imported = machine.convert(&given).unwrap();
    // Those that only mean something when they are set otherwise.
    let silent = ["ace", "acme-ip-certs", "derp", "dev", "secrets-url", "version"];
    let subjects: Vec<&str> = imported.notes.iter().map(|note| note.subject.as_str()).collect();
    for flag in FLAGS.iter().filter(|flag| !silent.contains(&flag.name)) {
        assert!(subjects.contains(&format!("-{}", flag.name).as_str()), "-{} is not accounted for: {subjects:?}", flag.name);
    }
    for variable in VARIABLES {
        assert!(subjects.contains(&variable), "{variable} is not accounted for");
    }
    assert_eq!(field(&imported, "http.debug_networks"), "[\"192.0.2.9\", \"198.51.100.0/24\", \"203.0.113.0/24\"]");
    assert!(field(&imported, "http.debug_key_file").ends_with("debug.key\"") && field(&imported, "log.filter").contains("trace"));
    let differs = |subject: &str| imported.notes.iter().any(|note| note.subject == subject && note.fate == Fate::Differs);
    assert!(differs("-tcp-write-timeout") && differs("-tcp-keepalive-time") && !differs("-tcp-user-timeout"));
}
