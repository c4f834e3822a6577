#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests")]
//! The pump from end to end: reader, lanes and writer over real TLS sockets; stalls and deadlines over memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::{Buf, BufMut, Bytes};
use causeway_proto::key::NodePublic;
use causeway_proto::packet::Class;
use rustls_pki_types::{PrivatePkcs8KeyDer, ServerName};
use tokio::io::{AsyncReadExt, duplex};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;
use crate::forward::accounting::{AcceptedFrom, DeliveredTo};
use crate::forward::{PacketForwarder, Verdict};
use crate::pump::lanes::{LaneLimits, PumpShared};
use crate::pump::reader::{self, FrameHandler, ReaderEnd};

/// Frames of the test: u32 length, payload. Control frames are single bytes of length 1.
struct Plain;

impl Encode for Plain {
    type Control = u8;

    fn control(&mut self, frame: u8, out: &mut BytesMut) {
        out.put_u32(1);
        out.put_u8(frame);
    }

    fn pong(&mut self, data: [u8; 8], out: &mut BytesMut) {
        out.put_u32(8);
        out.put_slice(&data);
    }

    fn packet(&mut self, packet: &Packet, out: &mut BytesMut) {
        out.put_u32(u32::try_from(packet.payload.len()).unwrap());
        out.put_slice(&packet.payload);
    }

    fn tick(&mut self, out: &mut BytesMut) {
        out.put_u32(0);
    }
}

/// Forwards each frame into an outbox, as a router would.
struct Forward {
    outbox: Arc<Outbox<u8>>,
    shared: PumpShared,
    frames: Arc<AtomicUsize>,
}

impl FrameHandler for Forward {
    type Refusal = &'static str;

    fn received(&mut self, _: std::time::Instant) {}

    fn handle_frame(&mut self, buffer: &mut BytesMut, _: std::time::Instant) -> Result<bool, &'static str> {
        let Some(len) = buffer.first_chunk::<4>().map(|len| u32::from_be_bytes(*len) as usize) else { return Ok(false) };
        if len > 100_000 {
            return Err("too long");
        }
        if buffer.len() < 4 + len {
            return Ok(false);
        }
        buffer.advance(4);
        let payload = buffer.split_to(len).freeze();
        self.frames.fetch_add(1, Ordering::Relaxed);
        self.shared.accounting.accepted(AcceptedFrom::Client, &payload);
        let verdict = self.outbox.forward(data(payload));
        if verdict != Verdict::Queued { Err("not queued") } else { Ok(true) }
    }
}

fn data(payload: Bytes) -> Packet {
    Packet { src: NodePublic::default(), dst: NodePublic::default(), class: Class::Data, payload, route: None }
}

async fn tls_pair() -> (tokio_rustls::server::TlsStream<TcpStream>, tokio_rustls::client::TlsStream<TcpStream>) {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let minted = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    let key = PrivatePkcs8KeyDer::from(minted.signing_key.serialize_der());
    let server =
        rustls::ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions().unwrap();
    let server = server.with_no_client_auth().with_single_cert(vec![minted.cert.der().clone()], key.into()).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(minted.cert.der().clone()).unwrap();
    let client = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let client = client.with_root_certificates(roots).with_no_client_auth();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dialled = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (accepted, _) = listener.accept().await.unwrap();
    let (acceptor, connector) = (TlsAcceptor::from(Arc::new(server)), TlsConnector::from(Arc::new(client)));
    let name = ServerName::try_from("localhost").unwrap();
    let (server, client) = tokio::join!(acceptor.accept(accepted), connector.connect(name, dialled));
    (server.unwrap(), client.unwrap())
}

/// Everything sent comes back in order through reader, lanes and writer, and an idle pump holds no packet memory.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn packets_pass_the_pump_over_tls_in_order_and_the_books_balance() {
    let (server, client) = tls_pair().await;
    let shared = PumpShared::new();
    let limits = LaneLimits { data: 10_000, bytes: 64 << 20, ..LaneLimits::LINK };
    let outbox = Arc::new(Outbox::new(limits, DeliveredTo::Client, shared.clone()));
    let cancel = CancellationToken::new();
    let frames = Arc::new(AtomicUsize::new(0));
    let (read_half, write_half) = tokio::io::split(server);
    let writing = tokio::spawn({
        let (outbox, cancel) = (Arc::clone(&outbox), cancel.clone());
        async move { run(write_half, &outbox, Plain, WriterLimits::LINK, cancel).await }
    });
    let reading = tokio::spawn({
        let mut handler = Forward { outbox: Arc::clone(&outbox), shared: shared.clone(), frames: Arc::clone(&frames) };
        let cancel = cancel.clone();
        async move { reader::run(read_half, BytesMut::new(), &mut handler, &cancel).await }
    });

    let count = 3_000u32;
    let len_of = |n: u32| 8 + (n.wrapping_mul(7_919) % 3_000) as usize;
    let (mut client_read, mut client_write) = tokio::io::split(client);
    let sending = tokio::spawn(async move {
        for n in 0..count {
            let mut frame = BytesMut::new();
            frame.put_u32(u32::try_from(len_of(n)).unwrap());
            frame.put_u32(n);
            frame.resize(4 + len_of(n), n as u8);
            client_write.write_all(&frame).await.unwrap();
        }
        client_write.flush().await.unwrap();
        client_write
    });
    let mut expected = 0;
    while expected < count {
        let len = client_read.read_u32().await.unwrap() as usize;
        if len == 0 {
            continue;
        }
        let mut payload = vec![0; len];
        client_read.read_exact(&mut payload).await.unwrap();
        assert_eq!(u32::from_be_bytes(payload[..4].try_into().unwrap()), expected);
        assert_eq!(len, len_of(expected));
        assert!(payload[4..].iter().all(|byte| *byte == expected as u8));
        expected += 1;
    }
    let client_write = sending.await.unwrap();
    assert_eq!(frames.load(Ordering::Relaxed), count as usize);
    drop(client_read.unsplit(client_write));
    assert!(matches!(reading.await.unwrap(), ReaderEnd::Eof { .. } | ReaderEnd::Io(_)));
    cancel.cancel();
    writing.await.unwrap();
    let books = shared.accounting.books();
    assert_eq!((books.imbalance(), books.queued, books.delivered[DeliveredTo::Client as usize]), (0, 0, u64::from(count)));
    assert_eq!(shared.budget.used(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_write_without_progress_marks_a_stall_and_then_ends_with_counted_packets() {
    let shared = PumpShared::new();
    let outbox = Arc::new(Outbox::new(LaneLimits::LINK, DeliveredTo::Link, shared.clone()));
    let (ours, _never_read) = duplex(1_000);
    for _ in 0..100 {
        shared.accounting.accepted(AcceptedFrom::Client, &[0; 1_000]);
        assert_eq!(outbox.forward(data(Bytes::from(vec![0; 1_000]))), Verdict::Queued);
    }
    let started = Instant::now();
    let writing = tokio::spawn({
        let outbox = Arc::clone(&outbox);
        async move { run(ours, &outbox, Plain, WriterLimits::LINK, CancellationToken::new()).await }
    });
    tokio::time::sleep(Duration::from_millis(1_900)).await;
    assert!(!outbox.is_stalled());
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(outbox.is_stalled() && !outbox.is_closed());
    assert!(matches!(writing.await.unwrap(), WriterEnd::Stalled));
    assert_eq!(started.elapsed().as_secs(), 5);
    let books = shared.accounting.books();
    assert!(books.dropped_for(DropReason::WriteError) > 0 && books.dropped_for(DropReason::GoneDisconnected) > 0);
    assert_eq!((books.imbalance(), books.queued), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_stalled_reader_that_goes_on_is_not_cut() {
    let shared = PumpShared::new();
    let outbox = Arc::new(Outbox::new(LaneLimits::LINK, DeliveredTo::Link, shared.clone()));
    let (ours, mut theirs) = duplex(1_000);
    assert_eq!(outbox.forward(data(Bytes::from(vec![0; 3_000]))), Verdict::Queued);
    let cancel = CancellationToken::new();
    let writing = tokio::spawn({
        let (outbox, cancel) = (Arc::clone(&outbox), cancel.clone());
        async move { run(ours, &outbox, Plain, WriterLimits::LINK, cancel).await }
    });
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(outbox.is_stalled());
    let mut frame = vec![0; 3_004];
    theirs.read_exact(&mut frame).await.unwrap();
    tokio::time::sleep(Duration::from_millis(10)).await;
    assert!(!outbox.is_stalled());
    cancel.cancel();
    assert!(matches!(writing.await.unwrap(), WriterEnd::Cancelled));
}

#[tokio::test(start_paused = true)]
async fn ticks_come_at_their_period_whatever_else_is_written() {
    let outbox: Arc<Outbox<u8>> = Arc::new(Outbox::new(LaneLimits::CLIENT, DeliveredTo::Client, PumpShared::new()));
    let (ours, mut theirs) = duplex(1_000);
    let limits = WriterLimits::client(Duration::from_secs(62));
    tokio::spawn({
        let outbox = Arc::clone(&outbox);
        async move { run(ours, &outbox, Plain, limits, CancellationToken::new()).await }
    });
    let started = Instant::now();
    outbox.push_control(7).unwrap();
    assert_eq!((theirs.read_u32().await.unwrap(), theirs.read_u8().await.unwrap()), (1, 7));
    for tick in 1..=3u64 {
        assert_eq!(theirs.read_u32().await.unwrap(), 0);
        assert_eq!(started.elapsed().as_secs(), 62 * tick);
    }
}

#[tokio::test]
async fn a_refused_frame_ends_reading_and_a_cut_frame_is_no_clean_end() {
    let shared = PumpShared::new();
    let outbox = Arc::new(Outbox::new(LaneLimits::CLIENT, DeliveredTo::Client, shared.clone()));
    let read = |bytes: &'static [u8]| {
        let mut handler = Forward { outbox: Arc::clone(&outbox), shared: shared.clone(), frames: Arc::default() };
        async move { reader::run(bytes, BytesMut::new(), &mut handler, &CancellationToken::new()).await }
    };
    assert!(matches!(read(&[0xff; 10]).await, ReaderEnd::Refused("too long")));
    assert!(matches!(read(&[0, 0, 0, 2, 1]).await, ReaderEnd::Eof { clean: false }));
    assert!(matches!(read(&[0, 0, 0, 1, 1]).await, ReaderEnd::Eof { clean: true }));
}
