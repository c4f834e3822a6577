//! Nginx and HAProxy in front of a node, with the very configurations of `docs/operations/behind-a-proxy.md`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use causeway_client::{ClientBuilder, Connection, Endpoint, Event};
use causeway_proto::key::{MeshKey, NodePrivate, NodePublic};
use causeway_tests_integration::cluster::{Cluster, wait_for};
use causeway_tests_integration::files::write_private;
use causeway_tests_integration::logs::Expected;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

const PAGE: &str = include_str!("../../../docs/operations/behind-a-proxy.md");

/// A proxy, a packet, a health check may take so long on a busy machine.
const DEADLINE: Duration = Duration::from_secs(20);

/// A free port may be taken before the proxy has it.
const START_ATTEMPTS: usize = 3;

/// The block of the page that begins with `# NAME`.
fn block(name: &str) -> anyhow::Result<String> {
    let (_, rest) = PAGE.split_once(&format!("\n# {name}\n")).with_context(|| format!("the page has no {name}"))?;
    Ok(rest.split_once("```").context("the block ends")?.0.to_owned())
}

/// The fields of a node's block, for `--set`: those that say whom to believe, with loopback in place of the page's proxy. Ports are the
/// harness's.
fn fields(name: &str) -> anyhow::Result<Vec<String>> {
    let text = block(name)?.replace("10.0.0.2/32", "127.0.0.1/32");
    let table: toml::Table = text.parse()?;
    let mut sets = Vec::new();
    for section in ["proxy_protocol", "http"] {
        let fields = table.get(section).and_then(|fields| fields.as_table());
        sets.extend(fields.into_iter().flatten().map(|(field, value)| format!("{section}.{field}={value}")));
    }
    ensure!(sets.len() == 1, "{name}: {sets:?}");
    // All of the block is a configuration that a node takes.
    causeway_node::config::FileConfig::parse(Path::new(name), &text, &[])?;
    Ok(sets)
}

/// What stands in front.
#[derive(Clone, Copy, PartialEq)]
enum Program {
    Nginx,
    Haproxy,
}

impl Program {
    fn name(self) -> &'static str {
        match self {
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
        }
    }

    /// Whether it is here, with what the configuration needs; prints what is missing.
    fn is_installed(self, mode: &str) -> bool {
        let needed = if self == Self::Nginx && mode == "tcp" { "/usr/lib/nginx/modules/ngx_stream_module.so" } else { "/" };
        let found = Command::new(self.name()).arg("-v").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
        if !found || !Path::new(needed).exists() {
            println!("skipped: {} is not installed (packages nginx, libnginx-mod-stream, haproxy)", self.name());
        }
        found && Path::new(needed).exists()
    }

    fn file(self, mode: &str) -> String {
        let kind = if self == Self::Nginx { "conf" } else { "cfg" };
        format!("{}-{mode}.{kind}", self.name())
    }

    fn command(self, dir: &Path, config: &Path) -> Command {
        let mut command = Command::new(self.name());
        match self {
            // In the foreground, one process.
            Self::Nginx => {
                let global = format!("daemon off; master_process off; pid {}/nginx.pid;", dir.display());
                command.args(["-e", "stderr", "-g", &global, "-c"]).arg(config)
            }
            Self::Haproxy => command.arg("-db").arg("-f").arg(config),
        };
        command
    }
}

/// A running proxy; ended on drop.
struct Proxy {
    process: Child,
    address: SocketAddr,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

/// Starts the program with the page's configuration in front of node `a-1`.
async fn start(program: Program, mode: &str, cluster: &Cluster) -> anyhow::Result<Proxy> {
    for attempt in 0..START_ATTEMPTS {
        // Neither program takes port 0.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let dir = cluster.dir().join(format!("{}-{mode}-{attempt}", program.name()));
        std::fs::create_dir(&dir)?;
        let config = dir.join("proxy.conf");
        std::fs::write(&config, adapted(program, mode, cluster, &dir, address)?)?;
        let log = std::fs::File::create(dir.join("log"))?;
        let mut command = program.command(&dir, &config);
        let process = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?;
        let mut proxy = Proxy { process, address };
        let serves = wait_for("the proxy to listen", DEADLINE, async || {
            if let Some(status) = proxy.process.try_wait()? {
                bail!("{} ended: {status}", program.name());
            }
            Ok(tokio::net::TcpStream::connect(address).await.ok().map(drop))
        });
        match serves.await {
            Ok(()) => return Ok(proxy),
            Err(error) => println!("{error:#}: {}", std::fs::read_to_string(dir.join("log"))?),
        }
    }
    bail!("{} does not start", program.name())
}

/// The page's configuration with the addresses and paths of this fleet, and nothing written outside `dir`.
fn adapted(program: Program, mode: &str, cluster: &Cluster, dir: &Path, address: SocketAddr) -> anyhow::Result<String> {
    let node = cluster.node("a-1");
    let pem = |name: &str| cluster.node_dir("a-1").join(name);
    let (certificate, key) = (pem("cert.pem"), pem("key.pem"));
    let both = dir.join("both.pem");
    write_private(&both, &[std::fs::read_to_string(&certificate)?, std::fs::read_to_string(&key)?].concat())?;
    let mut changed = block(&program.file(mode))?;
    for (of_the_page, here) in [
        ("10.0.0.11:8443", node.derp.clone()),
        ("10.0.0.11:8080", node.plain_http.clone()),
        ("listen 443", format!("listen {address}")),
        ("bind :443", format!("bind {address}")),
        ("/etc/ssl/relay.pem", certificate.display().to_string()),
        ("/etc/ssl/relay.key", key.display().to_string()),
        ("/etc/ssl/relay-with-key.pem", both.display().to_string()),
        ("http {", format!("http {{\n    access_log off;\n    client_body_temp_path {};", dir.display())),
        // Without the right to open that many files they refuse to start.
        ("maxconn 16384", "maxconn 64".to_owned()),
        ("worker_connections 16384", "worker_connections 64".to_owned()),
    ] {
        changed = changed.replace(of_the_page, &here);
    }
    ensure!(!changed.contains("10.0.0.") && changed.contains(&address.to_string()), "an address of the page is left:\n{changed}");
    Ok(changed)
}

async fn client(cluster: &Cluster, at: SocketAddr, mesh_key: Option<&MeshKey>) -> anyhow::Result<(Connection, NodePublic)> {
    let key = NodePrivate::generate();
    let endpoint = Endpoint::at(at, "a-1.causeway.test");
    let mut builder = ClientBuilder::new(key.clone()).endpoint(endpoint).ca_file(&cluster.ready().ca_file)?;
    if let Some(mesh_key) = mesh_key {
        builder = builder.mesh_key(mesh_key.clone()).watch_connections(true);
    }
    Ok((builder.connect(&TaskTracker::new(), &CancellationToken::new()).await?, key.public()))
}

async fn until<T>(connection: &mut Connection, what: &str, mut wanted: impl FnMut(Event) -> Option<T>) -> anyhow::Result<T> {
    let wait = async {
        loop {
            if let Some(found) = wanted(connection.recv().await?) {
                return anyhow::Ok(found);
            }
        }
    };
    timeout(DEADLINE, wait).await.with_context(|| format!("no {what}"))?
}

/// Both ways, small and large.
async fn exchange(a: &mut (Connection, NodePublic), b: &mut (Connection, NodePublic)) -> anyhow::Result<()> {
    for payload in [&b"hello"[..], &[7; 65_536]] {
        a.0.sender().send(&b.1, payload).await?;
        b.0.sender().send(&a.1, payload).await?;
        for (to, from) in [(&mut b.0, a.1), (&mut a.0, b.1)] {
            let packet = until(to, "packet", |event| match event {
                Event::Packet { src, payload } => Some((src, payload)),
                _ => None,
            });
            let (src, received) = packet.await?;
            ensure!(src == from && received == payload, "another packet of {} bytes", received.len());
        }
    }
    Ok(())
}

/// A proxy in front of a node: clients talk through it, and the node knows their addresses.
async fn stands_in_front(program: Program, mode: &str) -> anyhow::Result<()> {
    if !program.is_installed(mode) {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let (key_file, mesh_key) = (dir.path().join("derp-mesh.key"), MeshKey::generate());
    write_private(&key_file, &mesh_key.expose_hex())?;
    let mut arguments = ["--regions", "1", "--nodes-per-region", "1", "--derp-mesh-key-file"].map(str::to_owned).to_vec();
    arguments.push(key_file.display().to_string());
    for set in fields(&format!("node-{mode}.toml"))? {
        arguments.extend(["--set".to_owned(), set]);
    }
    let mut cluster = Cluster::start_with(&arguments).await?;
    cluster.guard_secret(&mesh_key.expose_hex());
    let proxy = start(program, mode, &cluster).await?;

    let mut watcher = client(&cluster, proxy.address, Some(&mesh_key)).await?.0;
    let (mut a, mut b) = (client(&cluster, proxy.address, None).await?, client(&cluster, proxy.address, None).await?);
    for (connection, key) in [&a, &b] {
        let present = until(&mut watcher, "announcement", |event| match event {
            Event::PeerPresent { peer, addr, .. } if peer == *key => Some(addr),
            _ => None,
        });
        // PROXY headers tell the port, HTTP headers do not; neither is the proxy's own connection.
        let port = if mode == "tcp" { connection.info().local_addr.port() } else { 0 };
        let wanted = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
        ensure!(present.await? == Some(wanted), "the node does not know the client's address {wanted}");
        // TLS that passes whole brings the server's key.
        ensure!(connection.info().fast_start == (mode == "tcp"));
    }
    exchange(&mut a, &mut b).await?;

    if program == Program::Haproxy {
        let probed = wait_for("a health check", DEADLINE, async || {
            let labels = [("route", "probe"), ("status", "200")];
            let checks = cluster.metrics("a-1").await?.sum("causeway_ingress_http_requests_total", &labels);
            Ok(checks.filter(|checks| *checks >= 1.0).map(drop))
        });
        probed.await?;
        // It still takes the node for healthy.
        let mut late = client(&cluster, proxy.address, None).await?;
        exchange(&mut a, &mut late).await?;
    }
    drop((a, b, watcher, proxy));
    cluster.finish(&["a-1"], &Expected::default().line("mesh")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn nginx_in_tcp_mode() -> anyhow::Result<()> {
    stands_in_front(Program::Nginx, "tcp").await
}

#[tokio::test(flavor = "multi_thread")]
async fn nginx_in_http_mode() -> anyhow::Result<()> {
    stands_in_front(Program::Nginx, "http").await
}

#[tokio::test(flavor = "multi_thread")]
async fn haproxy_in_tcp_mode() -> anyhow::Result<()> {
    stands_in_front(Program::Haproxy, "tcp").await
}

#[tokio::test(flavor = "multi_thread")]
async fn haproxy_in_http_mode() -> anyhow::Result<()> {
    stands_in_front(Program::Haproxy, "http").await
}
