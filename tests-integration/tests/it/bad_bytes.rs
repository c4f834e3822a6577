//! Whatever arrives at any port closes that connection only: counted, and everybody else is served on.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use causeway_proto::key::NodePrivate;
use causeway_proto::stun::message::binding_request;
use causeway_tests_integration::client::{TestClient, exchange_all};
use causeway_tests_integration::cluster::{Cluster, wait_for};
use causeway_tests_integration::files::write_private;
use causeway_tests_integration::logs::Expected;
use causeway_tests_integration::metrics::{Scrape, http_status};
use rand::rngs::StdRng;
use rand::{Rng as _, RngCore as _, SeedableRng as _};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket, UnixStream};

/// Names another run of the same kind.
const SEED_VARIABLE: &str = "SEED";
/// Connections per door.
const ROUNDS: usize = 24;
/// Bytes of one connection at most.
const LEN_MAX: usize = 20_000;
/// By then a node has closed a connection that says nothing it can use: its handshakes have deadlines of 10 s.
const CLOSED: Duration = Duration::from_secs(20);

/// What a well-meaning peer would begin with, for cuts and changed bytes.
fn beginnings() -> Vec<Vec<u8>> {
    let upgrade = b"GET /derp HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: DERP\r\nDerp-Fast-Start: 1\r\n\r\n";
    // A frame of type 2 (client info) that claims 4 GiB, one that is too short to hold a key.
    let huge = [&upgrade[..], &[2, 0xff, 0xff, 0xff, 0xff, 1, 2, 3]].concat();
    let short = [&upgrade[..], &[2, 0, 0, 0, 1, 0]].concat();
    // The record header and first bytes of a TLS 1.3 ClientHello.
    let hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec();
    let http2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\x04\0\0\0\0\0".to_vec();
    let endless = [&b"GET / HTTP/1.1\r\nX: "[..], &[b'a'; 16_000]].concat();
    vec![Vec::new(), upgrade.to_vec(), huge, short, hello, http2, endless, b"GET /metrics".to_vec()]
}

fn nonsense(random: &mut StdRng, beginnings: &[Vec<u8>]) -> Bytes {
    let mut bytes = beginnings[random.random_range(0..beginnings.len())].clone();
    if random.random_bool(0.3) && !bytes.is_empty() {
        let at = random.random_range(0..bytes.len());
        bytes[at] ^= random.random_range(1..=255_u8);
    }
    if random.random_bool(0.3) {
        bytes.truncate(random.random_range(0..=bytes.len()));
    } else {
        let mut tail = vec![0; random.random_range(0..LEN_MAX)];
        random.fill_bytes(&mut tail);
        bytes.extend(tail);
    }
    bytes.into()
}

/// Says `bytes` and no more, and waits until the other end closes.
async fn say(mut stream: impl AsyncRead + AsyncWrite + Unpin, bytes: Bytes) -> anyhow::Result<()> {
    // A node that has heard enough resets the connection while we still talk: that is an end as well.
    if stream.write_all(&bytes).await.is_ok() {
        stream.shutdown().await.ok();
    }
    let mut answer = vec![0; 4096];
    let ended = async { while stream.read(&mut answer).await.is_ok_and(|len| len > 0) {} };
    let (len, head) = (bytes.len(), bytes.slice(..bytes.len().min(40)));
    tokio::time::timeout(CLOSED, ended).await.with_context(|| format!("{len} bytes keep a connection open: {head:?}"))
}

fn refusals(scrape: &Scrape, door: &str) -> f64 {
    scrape.sum("causeway_ingress_refused_connections_total", &[("door", door)]).unwrap_or(0.0)
}

#[tokio::test(flavor = "multi_thread")]
async fn nonsense_on_every_port_harms_nobody_and_is_counted() -> anyhow::Result<()> {
    let seed = std::env::var(SEED_VARIABLE).ok().map_or(Ok(20_261_121), |seed| seed.parse()).context("SEED is a number")?;
    println!("SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let keys = tempfile::tempdir()?;
    let server_key = NodePrivate::generate();
    let server_key_file = keys.path().join("derp.key");
    write_private(&server_key_file, &server_key.expose_text())?;
    let server_key_set = format!("derp.server_key_file=\"{}\"", server_key_file.display());
    let mut cluster = Cluster::start(1, 1, &[&server_key_set]).await?;
    cluster.guard_secret(server_key.expose_text().rsplit(':').next().context("digits")?);
    let node = cluster.node("a-1").clone();
    let metrics = node.metrics.trim_start_matches("http://").trim_end_matches("/metrics").to_owned();
    let (_, mesh) = cluster.node_process("a-1")?;
    let mut clients = vec![TestClient::connect(&cluster, "a-1").await?, TestClient::connect(&cluster, "a-1").await?];
    let before = cluster.metrics("a-1").await?;

    let beginnings = beginnings();
    let tcp_doors = [node.derp.clone(), node.plain_http.clone(), mesh.to_string(), metrics];
    for round in 0..ROUNDS {
        let said: Vec<Bytes> = (0..5).map(|_| nonsense(&mut random, &beginnings)).collect();
        let tcp = tcp_doors.iter().zip(&said).map(async |(door, bytes)| {
            say(TcpStream::connect(door).await?, bytes.clone()).await.with_context(|| format!("round {round} at {door}"))
        });
        let unix =
            async { say(UnixStream::connect(&node.operator_socket).await?, said[4].clone()).await.context("operator socket") };
        let (tcp, unix) = tokio::join!(futures::future::try_join_all(tcp), unix);
        tcp?;
        unix?;
    }
    let stun = UdpSocket::bind("127.0.0.1:0").await?;
    stun.connect(&node.stun).await?;
    for _ in 0..ROUNDS {
        let mut datagram = binding_request(&random.random()).to_vec();
        let at = random.random_range(0..datagram.len());
        datagram[at] ^= random.random_range(1..=255_u8);
        stun.send(&datagram).await?;
        stun.send(&datagram[..random.random_range(0..datagram.len())]).await?;
    }

    // Everybody who was there is served on, and so is who comes now.
    clients.push(TestClient::connect(&cluster, "a-1").await?);
    exchange_all(&mut clients, "after nonsense").await?;
    ensure!(http_status(&format!("http://{}/generate_204", node.plain_http)).await?.0 == 204);
    ensure!(cluster.causeway_json("a-1", &["cluster", "status"]).await?["healthy"] == true);
    wait_for("a STUN answer", Duration::from_secs(10), async || {
        stun.send(&binding_request(&[7; 12])).await?;
        let mut answer = [0; 1500];
        let len = tokio::time::timeout(Duration::from_millis(200), stun.recv(&mut answer)).await;
        Ok(len.is_ok_and(|len| len.is_ok()).then_some(()))
    })
    .await?;
    let after = cluster.metrics("a-1").await?;
    for door in ["derp", "plain_http", "mesh", "metrics"] {
        ensure!(refusals(&after, door) > refusals(&before, door), "nothing was refused at the door `{door}`");
    }
    let not_stun = after.sum("causeway_stun_datagrams_total", &[("outcome", "not_stun")]).unwrap_or(0.0);
    ensure!(not_stun > 0.0, "datagrams that are not STUN are counted");
    ensure!(after.sum("causeway_process_panics_total", &[]).unwrap_or(0.0) == 0.0, "a task panicked");
    drop(clients);
    cluster.finish(&["a-1"], &Expected::default()).await
}
