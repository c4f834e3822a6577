//! A stock derper replaced by a node: in place under connected clients, and by what its operator knows it by: flags and metrics.
//! Needs Go, to build derper.

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use causeway_client::{Client, ClientBuilder, ClientEvent, ConnectionInfo, Event};
use causeway_ops::derper::flags::{FLAGS, Kind};
use causeway_proto::key::{MeshKey, NodePrivate, NodePublic};
use causeway_proto::stun::message::{binding_request, parse_binding_response};
use causeway_tests_integration::cluster::{Turn, wait_for};
use causeway_tests_integration::derper::{DERPER_NAME, Derper};
use causeway_tests_integration::files::write_private;
use causeway_tests_integration::go::tailscale_program;
use causeway_tests_integration::lone::LoneNode;
use causeway_tests_integration::metrics::{Scrape, http_status};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::{TcpStream, UdpSocket};
use tokio::process::{Child, ChildStdout};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::interop::derp_go;

const PAGE: &str = include_str!("../../../docs/operations/metrics.md");

const DEADLINE: Duration = Duration::from_secs(30);

/// A client that stays connected by itself.
struct Stayer {
    key: NodePublic,
    client: Client,
}

impl Stayer {
    fn start(derper: &Derper) -> anyhow::Result<Self> {
        let key = NodePrivate::generate();
        let builder = ClientBuilder::new(key.clone()).trust(derper.trust()?).endpoint(derper.endpoint());
        Ok(Self { key: key.public(), client: builder.start(&TaskTracker::new(), &CancellationToken::new())? })
    }

    /// Waits until something happens that `wanted` makes something of.
    async fn until<T>(&mut self, what: &str, wanted: impl Fn(ClientEvent) -> Option<T>) -> anyhow::Result<T> {
        let happened = async {
            loop {
                let event = self.client.recv().await.context("the client is closed")?;
                if let Some(found) = wanted(event) {
                    return anyhow::Ok(found);
                }
            }
        };
        timeout(DEADLINE, happened).await.with_context(|| format!("waited for {what}"))?
    }

    async fn connected(&mut self) -> anyhow::Result<ConnectionInfo> {
        self.until("a connection", |event| match event {
            ClientEvent::Connected { info, .. } => Some(*info),
            _ => None,
        })
        .await
    }

    async fn packet(&mut self) -> anyhow::Result<(NodePublic, Vec<u8>)> {
        self.until("a packet", |event| match event {
            ClientEvent::Received { event: Event::Packet { src, payload }, .. } => Some((src, payload.to_vec())),
            _ => None,
        })
        .await
    }
}

/// A stock client that stays connected as Tailscale's daemon does.
struct StockStayer {
    lines: Lines<BufReader<ChildStdout>>,
    _process: Child,
}

impl StockStayer {
    fn start(program: &Path, derper: &Derper, dir: &Path) -> anyhow::Result<Self> {
        let node = serde_json::json!({
            "Name": "900a", "RegionID": 900, "HostName": DERPER_NAME, "IPv4": "127.0.0.1", "IPv6": "none",
            "DERPPort": derper.addr().port(), "STUNPort": -1,
        });
        let region = serde_json::json!({ "RegionID": 900, "RegionCode": "derp", "RegionName": "derp", "Nodes": [node] });
        let map = dir.join("map.json");
        std::fs::write(&map, serde_json::json!({ "Regions": { "900": region } }).to_string())?;
        let mut command = tokio::process::Command::new(program);
        command.arg("-map").arg(map).arg("-ca").arg(derper.ca_file()).args(["-home", "900", "-peer-home", "900"]);
        let mut process =
            command.args(["-timeout", "5m", "stay"]).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
        let lines = BufReader::new(process.stdout.take().context("piped")?).lines();
        Ok(Self { lines, _process: process })
    }

    /// Waits for its next login; the server's key.
    async fn login(&mut self) -> anyhow::Result<String> {
        let told = async {
            loop {
                let line = self.lines.next_line().await?.context("the stock client has ended")?;
                if let Some((_time, server)) = line.strip_prefix("login ").and_then(|told| told.split_once(' ')) {
                    return anyhow::Ok(server.to_owned());
                }
            }
        };
        timeout(DEADLINE, told).await.context("the stock client does not log in")?
    }
}

async fn exchange(from: &Stayer, to: &mut Stayer, text: &[u8]) -> anyhow::Result<()> {
    from.client.handle().send(&to.key, text).await?;
    ensure!(to.packet().await? == (from.key, text.to_vec()), "another packet came");
    Ok(())
}

/// What a client's netcheck and captive-portal check ask.
async fn checks(stun: SocketAddr, plain: SocketAddr) -> anyhow::Result<()> {
    let socket = UdpSocket::bind("127.0.0.1:0").await?;
    socket.connect(stun).await?;
    socket.send(&binding_request(&[7; 12])).await?;
    let mut answer = [0; 1500];
    let len = timeout(DEADLINE, socket.recv(&mut answer)).await.context("no STUN answer")??;
    ensure!(parse_binding_response(&answer[..len])?.1 == socket.local_addr()?);
    ensure!(http_status(&format!("http://{plain}/generate_204")).await?.0 == 204);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn interop_a_derper_is_replaced_in_place_and_its_clients_stay() -> anyhow::Result<()> {
    let Some(program) = tailscale_program("derper", Path::new(env!("CARGO_TARGET_TMPDIR")))? else { return Ok(()) };
    let _turn = Turn::take().await?;
    let dir = tempfile::tempdir()?;
    let Some(go_client) = derp_go(dir.path())? else { return Ok(()) };
    let mut derper = Derper::new(program)?;
    // As a unit file has them; the key file is derper's own, made at its first start.
    let plain = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let stun = std::net::UdpSocket::bind("127.0.0.1:0")?.local_addr()?;
    let at = |name: &str| dir.path().join(name);
    write_private(&at("mesh.psk"), &MeshKey::generate().expose_hex())?;
    std::fs::write(at("rate.json"), "{\"PerClientRateLimitBytesPerSec\": 50000000, \"PerClientRateBurstBytes\": 1000000}")?;
    let mut flags = derper.flags();
    flags.extend([format!("-http-port={}", plain.port()), format!("-stun-port={}", stun.port()), "-home=blank".to_owned()]);
    flags.extend([format!("-mesh-psk-file={}", at("mesh.psk").display()), format!("-rate-config={}", at("rate.json").display())]);
    flags.extend(["-accept-connection-limit=500", "-accept-connection-burst=1000", "-tcp-user-timeout=15s"].map(str::to_owned));
    derper.start_with(&flags).await?;
    let (mut alice, mut bob) = (Stayer::start(&derper)?, Stayer::start(&derper)?);
    let mut stock = StockStayer::start(&go_client, &derper, dir.path())?;
    let (before, _) = (alice.connected().await?, bob.connected().await?);
    let server_key = before.server_key.to_untyped_hex();
    ensure!(stock.login().await? == server_key);
    exchange(&alice, &mut bob, b"through a derper").await?;
    wait_for("derper's plain listener", DEADLINE, async || Ok(checks(stun, plain).await.ok())).await?;

    derper.kill();
    let node = LoneNode::imported(&flags, &["metrics.listen=127.0.0.1:0".to_owned()], &at(".")).await?;
    ensure!(node.ready.derp == derper.addr().to_string() && node.ready.plain_http == plain.to_string(), "{:?}", node.ready);
    ensure!(node.ready.derp_public_key == server_key, "the server's key stays");
    ensure!(stock.login().await? == server_key, "the stock client is back");
    for client in [&mut alice, &mut bob] {
        let after = client.connected().await?;
        ensure!(after.server_key == before.server_key && after.fast_start, "{after:?}");
    }
    exchange(&bob, &mut alice, b"through a node").await?;
    exchange(&alice, &mut bob, b"and back").await?;
    checks(stun, plain).await?;
    drop((alice, bob, stock));
    node.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn interop_every_flag_of_a_stock_derper_is_known_with_its_default() -> anyhow::Result<()> {
    let Some(program) = tailscale_program("derper", Path::new(env!("CARGO_TARGET_TMPDIR")))? else { return Ok(()) };
    let output = Command::new(program).arg("-help").output()?;
    let help = String::from_utf8(output.stderr)?;
    let mut told = Vec::new();
    for entry in help.split("\n  -").skip(1) {
        let (head, text) = entry.split_once('\n').context("a flag and its text")?;
        let (name, kind) = head.split_once(' ').unwrap_or((head, "bool"));
        let default =
            text.trim_end().strip_suffix(')').and_then(|text| text.rsplit_once("(default ")).map(|(_, default)| default);
        told.push((name.to_owned(), kind.to_owned(), default.unwrap_or_default().trim_matches('"').to_owned()));
    }
    let names: Vec<&str> = told.iter().map(|(name, ..)| name.as_str()).collect();
    ensure!(names == FLAGS.map(|flag| flag.name), "derper has {names:?}");
    for ((name, kind, default), ours) in told.iter().zip(&FLAGS) {
        let word = match ours.kind {
            Kind::Bool => "bool",
            Kind::Text => "string",
            Kind::Int => "int",
            Kind::Float => "float",
            Kind::Duration => "duration",
        };
        // A word in backquotes in the flag's description stands for the kind.
        ensure!(kind == word || ours.kind == Kind::Text && kind == "0", "-{name} is {kind}, not {word}");
        let of_machine = ours.default.is_empty() && default.starts_with('/');
        let unsaid = default.is_empty() && ours.default == "false";
        ensure!(*default == ours.default || of_machine || unsaid, "-{name} defaults to {default:?}, not {:?}", ours.default);
    }
    Ok(())
}

/// Names that the page says are not served, with the reason; one that ends in `_` is of a family.
fn not_applicable() -> Vec<&'static str> {
    let table = PAGE.split("## Stock names").nth(1).and_then(|rest| rest.split("\n## ").next()).expect("the table");
    let rows = table.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
    rows.filter(|(_, said)| said.starts_with("not applicable: ")).map(|(name, _)| name).collect()
}

/// The Prometheus names of a JSON page.
fn names_of(vars: &Value) -> BTreeSet<String> {
    let bare = |key: &str| key.trim_start_matches("gauge_").trim_start_matches("counter_").to_owned();
    let mut names = BTreeSet::new();
    for (key, value) in vars.as_object().into_iter().flatten() {
        match value.as_object() {
            Some(group) if ["derp", "stun", "tls_listener", "memstats"].contains(&key.as_str()) => {
                names.extend(group.keys().map(|inner| format!("{key}_{}", bare(inner))));
            }
            _ => drop(names.insert(bare(key))),
        }
    }
    names
}

/// Asked by HTTP/1.0, so that it comes in one piece.
async fn debug_page(of: SocketAddr, name: &str) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(of).await?;
    stream.write_all(format!("GET /debug/{name} HTTP/1.0\r\n\r\n").as_bytes()).await?;
    let mut answer = String::new();
    timeout(DEADLINE, stream.read_to_string(&mut answer)).await.context("no debug page")??;
    let (head, page) = answer.split_once("\r\n\r\n").context("no HTTP")?;
    ensure!(head.contains(" 200 OK"), "{head}");
    Ok(page.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn interop_every_metric_of_a_stock_derper_is_served_or_refused_with_a_reason() -> anyhow::Result<()> {
    let Some(program) = tailscale_program("derper", Path::new(env!("CARGO_TARGET_TMPDIR")))? else { return Ok(()) };
    let _turn = Turn::take().await?;
    let dir = tempfile::tempdir()?;
    let mut derper = Derper::new(program)?;
    let rate = dir.path().join("rate.json");
    std::fs::write(&rate, "{\"PerClientRateLimitBytesPerSec\": 50000000, \"PerClientRateBurstBytes\": 1000000}")?;
    let mut flags = derper.plain_flags();
    flags.extend(["-stun=false".to_owned(), format!("-rate-config={}", rate.display())]);
    derper.start_with(&flags).await?;
    let sets = ["metrics.listen=127.0.0.1:0", "derp.plain_http_listen=127.0.0.1:0"].map(str::to_owned);
    let node = LoneNode::imported(&flags, &sets, dir.path()).await?;

    let ours = node.ready.metrics.trim_start_matches("http://").trim_end_matches("/metrics").parse()?;
    let (unserved, mut missing) = (not_applicable(), BTreeSet::new());
    let mut compare = |stock: BTreeSet<String>, ours: BTreeSet<String>| {
        let known = |name: &String| {
            ours.contains(name) || unserved.iter().any(|row| row == name || row.ends_with('_') && name.starts_with(row))
        };
        missing.extend(stock.iter().filter(|name| !known(name)).cloned());
        stock.len()
    };
    let varz = async |of: SocketAddr| {
        let scrape = Scrape::parse(&debug_page(of, "varz").await?)?;
        let parts = ["_bucket", "_sum", "_count"];
        let family = |name: &str| parts.iter().find_map(|part| name.strip_suffix(part)).unwrap_or(name).to_owned();
        anyhow::Ok(scrape.names().map(family).collect())
    };
    let vars = async |of: SocketAddr| anyhow::Ok(names_of(&serde_json::from_str(&debug_page(of, "vars").await?)?));
    ensure!(compare(varz(derper.addr()).await?, varz(ours).await?) > 60);
    ensure!(compare(vars(derper.addr()).await?, vars(ours).await?) > 60);
    if !missing.is_empty() {
        bail!("neither served nor in the table of docs/operations/metrics.md with a reason: {missing:?}");
    }
    node.stop().await
}
