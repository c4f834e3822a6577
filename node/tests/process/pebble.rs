//! Pebble, the ACME directory that Let's Encrypt makes for tests, where Go is installed to build it.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, OnceLock};

use causeway_client::Trust;
use causeway_control::testing::DnsServer;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::{CertificateDer, ServerName};
use socket2::{Domain, Socket, Type};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;

use crate::harness::DEADLINE;

const PEBBLE: &str = "github.com/letsencrypt/pebble/v2/cmd/pebble@v2.10.1";

/// The domain that resolves to this machine.
pub(crate) const DOMAIN: &str = "relay.test";
/// Directory refuses this one.
pub(crate) const BLOCKED_DOMAIN: &str = "blocked.test";
/// Its certificates live so many seconds.
pub(crate) const BRIEF_PROFILE: &str = "brief";
pub(crate) const BRIEF_LIFETIME_S: u64 = 15;
pub(crate) const KEY_ID: &str = "kid-1";
pub(crate) const KEY: &str = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W";

/// A port that others cannot be given while this lives, though a listener that reuses addresses can take it.
pub(crate) struct Port {
    addr: SocketAddr,
    _held: Socket,
}

impl Port {
    pub(crate) fn reserve() -> Self {
        let held = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        held.set_reuse_address(true).unwrap();
        held.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
        Self { addr: held.local_addr().unwrap().as_socket().unwrap(), _held: held }
    }

    pub(crate) const fn addr(&self) -> SocketAddr {
        self.addr
    }
}

/// Builds the program, once per target directory; `None`, with a message, where that is not possible.
fn program() -> Option<PathBuf> {
    static BUILT: OnceLock<Option<PathBuf>> = OnceLock::new();
    BUILT.get_or_init(build).clone()
}

fn build() -> Option<PathBuf> {
    if Command::new("go").arg("version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err() {
        eprintln!("skipped: Go is not installed, so there is no ACME directory to test against");
        return None;
    }
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("pebble");
    let program = dir.join("pebble");
    if !program.exists() {
        let built = Command::new("go").args(["install", PEBBLE]).env("GOBIN", &dir).output().expect("go runs");
        if !built.status.success() {
            eprintln!("skipped: {PEBBLE} does not build here: {}", String::from_utf8_lossy(&built.stderr));
            return None;
        }
    }
    Some(program)
}

/// A running directory, and the ports that it asks a node on. It is ended on drop.
pub(crate) struct Pebble {
    process: Child,
    dir: TempDir,
    directory: Port,
    management: Port,
    pub(crate) http: Port,
    pub(crate) tls: Port,
    pub(crate) dns: DnsServer,
}

impl Pebble {
    /// `None`, with a message, where the program cannot be had.
    pub(crate) async fn start(external_account_required: bool) -> Option<Self> {
        let program = program()?;
        let dns = DnsServer::start((Ipv4Addr::LOCALHOST, 0).into()).await.unwrap();
        dns.set_addresses(&format!("{DOMAIN}."), 0, &[Ipv4Addr::LOCALHOST.into()]).await;
        let [directory, management, http, tls] = std::array::from_fn(|_| Port::reserve());
        let dir = tempfile::tempdir().unwrap();
        write_certificate(dir.path());
        let at = |name: &str| dir.path().join(name).display().to_string();
        let config = serde_json::json!({ "pebble": {
            "listenAddress": directory.addr().to_string(),
            "managementListenAddress": management.addr().to_string(),
            "certificate": at("cert.pem"),
            "privateKey": at("key.pem"),
            "httpPort": http.addr().port(),
            "tlsPort": tls.addr().port(),
            "externalAccountBindingRequired": external_account_required,
            "externalAccountMACKeys": if external_account_required { serde_json::json!({ KEY_ID: KEY }) } else { serde_json::json!({}) },
            "domainBlocklist": [BLOCKED_DOMAIN],
            "retryAfter": { "authz": 1, "order": 1 },
            "keyAlgorithm": "ecdsa",
            "profiles": {
                "default": { "description": "for months", "validityPeriod": 90 * 24 * 3600 },
                BRIEF_PROFILE: { "description": "for a test", "validityPeriod": BRIEF_LIFETIME_S },
            },
        } });
        fs::write(dir.path().join("pebble.json"), config.to_string()).unwrap();
        let log = fs::File::create(dir.path().join("log")).unwrap();
        let process = Command::new(program)
            .args(["-config", &at("pebble.json"), "-dnsserver", &dns.addr().to_string()])
            // Challenges are looked at at once, one good nonce in five is refused, and proven domains must be proven again.
            .envs([("PEBBLE_VA_NOSLEEP", "1"), ("PEBBLE_WFE_NONCEREJECT", "20"), ("PEBBLE_AUTHZREUSE", "0")])
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut pebble = Self { process, dir, directory, management, http, tls, dns };
        pebble.until_serving().await;
        Some(pebble)
    }

    async fn until_serving(&mut self) {
        let serving = async {
            for addr in [self.directory.addr(), self.management.addr()] {
                while TcpStream::connect(addr).await.is_err() {
                    assert!(self.process.try_wait().unwrap().is_none(), "{}", self.log());
                    sleep(std::time::Duration::from_millis(10)).await;
                }
            }
        };
        timeout(DEADLINE, serving).await.expect("Pebble serves");
    }

    pub(crate) fn directory(&self) -> String {
        format!("https://{}/dir", self.directory.addr())
    }

    /// Whom to trust to be the directory.
    pub(crate) fn ca_file(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap()
    }

    /// Ends the directory; the rest stays.
    pub(crate) fn kill(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }

    /// Trusts the certificates that this directory issues, and nothing else.
    pub(crate) async fn issued(&self) -> Trust {
        let trust = Trust::ca_file(self.ca_file()).unwrap();
        let tcp = TcpStream::connect(self.management.addr()).await.unwrap();
        let name = ServerName::from(std::net::IpAddr::from(Ipv4Addr::LOCALHOST));
        let mut stream = TlsConnector::from(trust.client_config()).connect(name, tcp).await.unwrap();
        stream.write_all(b"GET /roots/0 HTTP/1.0\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        timeout(DEADLINE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
        let root = self.dir.path().join("root.pem");
        fs::write(&root, answer.split_once("\r\n\r\n").unwrap().1).unwrap();
        Trust::ca_file(root).unwrap()
    }
}

impl Drop for Pebble {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The directory's own certificate, and the CA that a node must be told of.
fn write_certificate(dir: &Path) {
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap().signed_by(&key, &ca).unwrap();
    for (name, text) in [("ca.pem", ca.pem()), ("cert.pem", leaf.pem()), ("key.pem", key.serialize_pem())] {
        fs::write(dir.join(name), text).unwrap();
    }
}

/// The chain that a server shows, if `trust` takes it for [`DOMAIN`].
pub(crate) async fn chain(addr: &str, trust: &Trust) -> std::io::Result<Vec<CertificateDer<'static>>> {
    let tcp = TcpStream::connect(addr).await?;
    let connector = TlsConnector::from(Arc::clone(&trust.client_config()));
    let stream = connector.connect(ServerName::try_from(DOMAIN).unwrap(), tcp).await?;
    Ok(stream.get_ref().1.peer_certificates().unwrap().to_vec())
}
