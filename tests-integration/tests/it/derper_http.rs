//! The HTTP of a stock derper and of a node with its settings, answer for answer. Needs Go, to build derper.

mod differences;
mod requests;

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use causeway_client::Trust;
use causeway_tests_integration::cluster::{Turn, wait_for};
use causeway_tests_integration::derper::{DERPER_NAME, Derper};
use causeway_tests_integration::go::tailscale_program;
use causeway_tests_integration::lone::LoneNode;
use futures::{StreamExt as _, TryStreamExt as _};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_util::task::TaskTracker;

use differences::DIFFERENCES;

/// Longer than a server waits for whatever a request leaves open.
const DEADLINE: Duration = Duration::from_secs(30);

/// The first message of DERP in a WebSocket: its header, and the ServerKey frame; first byte of a close.
const FIRST_MESSAGE_LEN: usize = 2 + 45;
const CLOSE: u8 = 0x88;

/// Requests asked at the same time.
const AT_ONCE: usize = 8;

/// Sent behind each request that asks for no WebSocket, at once: it is answered if the connection is kept.
const FOLLOW_UP: &str = "GET /generate_204 HTTP/1.1\r\nHost: relay\r\nConnection: close\r\n\r\n";

/// A listener of a derper, and of the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Door {
    Tls,
    /// Beside it, on port 80 as a rule.
    Redirect,
    /// What a derper without a certificate serves.
    Plain,
}

/// An answer; names of headers in lower case.
#[derive(Clone, PartialEq)]
struct Answer {
    version: String,
    status: u16,
    reason: String,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
    /// The connection served another request.
    kept: bool,
}

/// Two servers with the same settings.
struct Pair {
    stock: [SocketAddr; 3],
    ours: [SocketAddr; 3],
    trust: Trust,
    /// What a balancer says on the node's plain listener, where a client of this machine would be let in to everything.
    balancer: &'static str,
}

impl Pair {
    async fn ask(&self, door: Door, request: &str) -> anyhow::Result<[Answer; 2]> {
        let stock = self.talk(door, self.stock[door as usize], "", request);
        let before = if door == Door::Redirect { self.balancer } else { "" };
        let ours = self.talk(door, self.ours[door as usize], before, request);
        let (stock, ours) = tokio::try_join!(stock, ours)?;
        Ok([stock, ours])
    }

    async fn talk(&self, door: Door, address: SocketAddr, before: &str, request: &str) -> anyhow::Result<Answer> {
        let io = TcpStream::connect(address).await?;
        let (follow_up, first) = if request.contains("Sec-WebSocket") { ("", FIRST_MESSAGE_LEN) } else { (FOLLOW_UP, 0) };
        let text = [before, request, follow_up].concat();
        let bytes = match door {
            Door::Tls => say(self.tls(io, &[]).await?, &text, first).await,
            Door::Redirect | Door::Plain => say(io, &text, first).await,
        };
        let bytes = bytes.with_context(|| format!("{address}: {request}"))?;
        Answer::parse(&bytes, request.starts_with("HEAD")).with_context(|| format!("{address}: {request}"))
    }

    async fn tls(&self, io: TcpStream, alpn: &[&[u8]]) -> anyhow::Result<tokio_rustls::client::TlsStream<TcpStream>> {
        let mut config = Arc::unwrap_or_clone(self.trust.client_config());
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        Ok(TlsConnector::from(Arc::new(config)).connect(ServerName::try_from(DERPER_NAME)?, io).await?)
    }

    /// Asks over HTTP/2, offering nothing else.
    async fn ask_http2(&self, method: &str, path: &str) -> anyhow::Result<[Answer; 2]> {
        let ask = async |address: SocketAddr| {
            let io = self.tls(TcpStream::connect(address).await?, &[b"h2"]).await?;
            let (mut client, driver) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(io)).await?;
            TaskTracker::new().spawn(driver);
            let uri = format!("https://{DERPER_NAME}{path}");
            let request = http::Request::builder().method(method).uri(uri).header("X-Tailscale-Challenge", "ts_192.0.2.1");
            let (head, body) = client.send_request(request.body(Empty::<Bytes>::new())?).await?.into_parts();
            let header = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
                Ok((name.to_string(), value.to_str().context("text")?.to_owned()))
            };
            anyhow::Ok(Answer {
                version: "HTTP/2".to_owned(),
                status: head.status.as_u16(),
                reason: String::new(),
                headers: head.headers.iter().map(header).collect::<anyhow::Result<_>>()?,
                body: body.collect().await?.to_bytes().to_vec(),
                kept: true,
            })
        };
        let (stock, ours) = tokio::try_join!(ask(self.stock[0]), ask(self.ours[0]))?;
        Ok([stock, ours])
    }
}

/// Sends everything and reads to the end; of a WebSocket so many bytes, or what closes it.
async fn say(mut io: impl AsyncRead + AsyncWrite + Unpin, text: &str, first: usize) -> anyhow::Result<Vec<u8>> {
    io.write_all(text.as_bytes()).await?;
    let mut bytes = Vec::new();
    let talk = async {
        while first > 0 && !is_enough(&bytes, first) && io.read_buf(&mut bytes).await? > 0 {}
        io.shutdown().await?;
        io.read_to_end(&mut bytes).await
    };
    // A server that ends without reading the follow-up may reset; what it said before counts.
    drop(timeout(DEADLINE, talk).await.context("the connection is not closed")?);
    Ok(bytes)
}

/// Whether the handshake is refused, or the WebSocket has said so much, or closes.
fn is_enough(bytes: &[u8], first: usize) -> bool {
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { return false };
    let body = &bytes[end + 4..];
    !bytes.starts_with(b"HTTP/1.1 101 ") || body.len() >= first || body.starts_with(&[CLOSE]) && body.len() >= 4
}

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (status, body) = ((&self.version, self.status, &self.reason), String::from_utf8_lossy(&self.body));
        f.debug_struct("Answer")
            .field("status", &status)
            .field("headers", &self.headers)
            .field("body", &body)
            .field("kept", &self.kept)
            .finish()
    }
}

impl Answer {
    /// The first answer, and whether there is a second.
    fn parse(bytes: &[u8], to_head: bool) -> anyhow::Result<Self> {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").context("no HTTP")?;
        let head = std::str::from_utf8(&bytes[..end])?;
        let mut lines = head.split("\r\n");
        let mut status = lines.next().unwrap_or_default().splitn(3, ' ').map(str::to_owned);
        let (version, code) = (status.next().unwrap_or_default(), status.next().context("a status")?.parse()?);
        let mut headers = BTreeMap::new();
        for line in lines {
            let (name, value) = line.split_once(": ").context("a header")?;
            headers.entry(name.to_ascii_lowercase()).or_insert_with(Vec::new).push(value);
        }
        let headers: BTreeMap<_, _> = headers.into_iter().map(|(name, values)| (name, values.join(", "))).collect();
        let rest = &bytes[end + 4..];
        let told = headers.get("content-length").map(|length| length.parse::<usize>()).transpose()?;
        let length = match code {
            _ if to_head => 0,
            204 | 304 => 0,
            _ => told.unwrap_or(rest.len()),
        };
        ensure!(length <= rest.len(), "the body is cut short");
        let (body, after) = rest.split_at(length);
        let reason = status.next().unwrap_or_default();
        Ok(Self { version, status: code, reason, headers, body: body.to_vec(), kept: after.starts_with(b"HTTP/1.") })
    }

    /// The date is another in every answer; that there is one is compared.
    fn without_date(mut self) -> anyhow::Result<Self> {
        if let Some(date) = self.headers.get_mut("date") {
            ensure!(date.ends_with(" GMT") && date.len() == "Sun, 06 Nov 1994 08:49:37 GMT".len(), "{date}");
            "now".clone_into(date);
        }
        Ok(self)
    }
}

/// Compares two answers but for what differs on purpose; the differences that there were.
fn compare(door: Door, request: &str, [stock, ours]: [Answer; 2]) -> anyhow::Result<Vec<usize>> {
    let (mut stock, mut ours) = (stock.without_date()?, ours.without_date()?);
    let mut seen = Vec::new();
    for (index, difference) in DIFFERENCES.iter().enumerate() {
        let before = (stock.clone(), ours.clone());
        (difference.level)(door, request, &mut stock, &mut ours);
        if before != (stock.clone(), ours.clone()) {
            seen.push(index);
        }
    }
    ensure!(stock == ours, "{door:?}: {request}\nstock: {stock:#?}\nours: {ours:#?}");
    Ok(seen)
}

fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// A node with a derper's flags, on ports of its own.
async fn start_node(flags: &[String], more: &[&str], dir: &Path) -> anyhow::Result<LoneNode> {
    std::fs::create_dir(dir)?;
    let mut sets = vec!["metrics.listen=127.0.0.1:0".to_owned(), "derp.listen=127.0.0.1:0".to_owned()];
    sets.push("derp.plain_http_listen=127.0.0.1:0".to_owned());
    // As if everything ran on the ports that it stands on as a rule, and for nobody too fast.
    sets.push("advertise.derp_port=443".to_owned());
    sets.extend(["limits.accepts_per_second_per_source=100000", "limits.accept_burst_per_source=100000"].map(str::to_owned));
    sets.extend(more.iter().map(|set| (*set).to_owned()));
    LoneNode::imported(flags, &sets, dir).await
}

#[tokio::test(flavor = "multi_thread")]
async fn interop_every_endpoint_answers_as_a_stock_derper_does() -> anyhow::Result<()> {
    let Some(program) = tailscale_program("derper", Path::new(env!("CARGO_TARGET_TMPDIR")))? else { return Ok(()) };
    let _turn = Turn::take().await?;
    let dir = tempfile::tempdir()?;
    let (mut tls, mut plain) = (Derper::new(program.clone())?, Derper::new(program)?);
    let redirect_port = free_port()?;
    let mut tls_flags = tls.flags();
    tls_flags.extend(["-stun=false".to_owned(), format!("-http-port={redirect_port}")]);
    tls.start_with(&tls_flags).await?;
    let mut plain_flags = plain.plain_flags();
    plain_flags.push("-stun=false".to_owned());
    plain.start_with(&plain_flags).await?;
    let redirect = SocketAddr::from(([127, 0, 0, 1], redirect_port));
    wait_for("derper's plain listener", DEADLINE, async || Ok(TcpStream::connect(redirect).await.ok())).await?;

    let node = start_node(&tls_flags, &["proxy_protocol.plain_http=[\"127.0.0.0/8\"]"], &dir.path().join("tls")).await?;
    let plain_node = start_node(&plain_flags, &[], &dir.path().join("plain")).await?;
    let pair = Pair {
        stock: [tls.addr(), redirect, plain.addr()],
        ours: [node.ready.derp.parse()?, node.ready.plain_http.parse()?, plain_node.ready.plain_http.parse()?],
        trust: tls.trust()?,
        balancer: "PROXY TCP4 192.0.2.9 127.0.0.1 9 80\r\n",
    };

    let mut seen = Vec::new();
    for door in [Door::Tls, Door::Redirect, Door::Plain] {
        let pair = &pair;
        let asked =
            futures::stream::iter(requests::all()).map(async |request| compare(door, &request, pair.ask(door, &request).await?));
        seen.extend(asked.buffered(AT_ONCE).try_collect::<Vec<_>>().await?.concat());
    }
    for (method, path) in requests::HTTP2 {
        seen.extend(compare(Door::Tls, &format!("{method} {path} HTTP/2"), pair.ask_http2(method, path).await?)?);
    }
    for (index, difference) in DIFFERENCES.iter().enumerate() {
        ensure!(seen.contains(&index), "this difference is none any more: {}", difference.reason);
    }
    node.stop().await?;
    plain_node.stop().await
}
