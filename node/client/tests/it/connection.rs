//! One connection: login, frames, limits, and every way it ends.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use causeway_client::{
    CONNECT_TIMEOUT, ClientBuilder, ConnectError, Connection, ConnectionError, Endpoint, Event, Phase, PingError, READ_TIMEOUT,
    SendError, WRITE_STALL_MAX,
};
use causeway_proto::derp::decoder::DecodeError;
use causeway_proto::derp::encoder::to_bytes;
use causeway_proto::derp::frame::{Frame, PeerGoneReason, PresentFlags};
use causeway_proto::derp::info::ServerInfo;
use causeway_proto::key::{MeshKey, NodePrivate, NodePublic};
use causeway_proto::limits::PACKET_LEN_MAX;

use crate::server::{Fixture, Options, answer_once, silent_listener};

fn some_key() -> NodePublic {
    NodePrivate::generate().public()
}

#[tokio::test]
async fn fast_start_sends_the_login_with_the_request_and_knows_the_key_from_the_meta_cert() {
    let mut f = Fixture::new(Options::default()).await;
    let (connection, session) = f.plain_pair().await;
    assert!(connection.info().fast_start && session.head.fast_start() && session.pipelined);
    assert_eq!(connection.info().server_key, f.server.key);
    assert_eq!(connection.info().remote_addr, f.server.addr);
    assert_eq!(session.head.header("Host"), Some(format!("relay.test:{}", f.server.addr.port()).as_str()));
    assert_eq!(session.head.ideal_node(), None);
}

#[tokio::test]
async fn without_meta_cert_or_tls_13_the_login_waits_for_the_greeting() {
    let cases = [
        Options { meta_cert: false, ..Options::default() },
        Options { versions: vec![&rustls::version::TLS12], ..Options::default() },
        Options { tls: false, ..Options::default() },
    ];
    for options in cases {
        let mut f = Fixture::new(options).await;
        let (connection, session) = f.plain_pair().await;
        assert!(!connection.info().fast_start && !session.head.fast_start() && !session.pipelined);
        assert_eq!(connection.info().server_key, f.server.key);
    }
}

#[tokio::test]
async fn the_login_says_what_the_builder_was_told_and_the_home_is_noted_first() {
    let mesh_key = MeshKey::generate();
    let mut f = Fixture::new(Options { mesh_key: Some(mesh_key.clone()), ..Options::default() }).await;
    let key = NodePrivate::generate();
    let builder = ClientBuilder::new(key.clone()).trust(f.ca.trust()).endpoint(f.server.endpoint());
    let builder = builder.mesh_key(mesh_key).app_name("tests").prober(true).can_ack_pings(false).watch_connections(true);
    let (_connection, mut session) = f.connect(&builder).await;
    assert_eq!(session.login.key, key.public());
    assert!(session.login.is_mesh_peer && session.login.info.is_prober && !session.login.info.can_ack_pings);
    assert_eq!((session.login.info.app_name.as_str(), session.login.info.version), ("tests", 2));
    assert_eq!(session.next().await, Some(Frame::NotePreferred { preferred: true }));
    assert_eq!(session.next().await, Some(Frame::WatchConns));
}

#[tokio::test]
async fn packets_of_every_size_pass_both_ways_in_order() {
    let mut f = Fixture::new(Options::default()).await;
    let (mut connection, mut session) = f.plain_pair().await;
    let (dst, src) = (some_key(), some_key());
    for len in [0, 1, 1400, PACKET_LEN_MAX, 0, 16_384] {
        let payload = Bytes::from(vec![len as u8; len]);
        connection.sender().send(&dst, &payload).await.expect("queued");
        assert_eq!(session.next().await, Some(Frame::SendPacket { dst, payload: payload.clone() }));
        session.send(Frame::RecvPacket { src, payload: payload.clone() }).await;
        assert_eq!(connection.recv().await.expect("packet"), Event::Packet { src, payload });
    }
}

#[tokio::test]
async fn a_packet_that_no_server_takes_is_refused_and_the_connection_goes_on() {
    let mut f = Fixture::new(Options::default()).await;
    let (connection, mut session) = f.plain_pair().await;
    let dst = some_key();
    let error = connection.sender().send(&dst, &vec![0; PACKET_LEN_MAX + 1]).await.expect_err("too long");
    assert!(matches!(error, SendError::TooLong { len: 65_537, max: 65_536 }), "{error}");
    connection.sender().try_send(&dst, b"next").expect("queued");
    assert_eq!(session.next().await, Some(Frame::SendPacket { dst, payload: Bytes::from_static(b"next") }));
}

#[tokio::test]
async fn thousands_of_packets_arrive_in_order_and_a_slow_server_holds_the_sender_back() {
    let mut f = Fixture::new(Options::default()).await;
    let (connection, mut session) = f.plain_pair().await;
    let (sender, _receiver) = connection.split();
    let dst = some_key();
    let sending = f.tasks.spawn(async move {
        for n in 0..5000_u32 {
            let mut payload = vec![0; 1400];
            payload[..4].copy_from_slice(&n.to_be_bytes());
            sender.send(&dst, &payload).await.expect("queued");
        }
    });
    for n in 0..5000_u32 {
        let Some(Frame::SendPacket { payload, .. }) = session.next().await else { panic!("packet {n}") };
        assert_eq!(payload[..4], n.to_be_bytes());
    }
    sending.await.expect("all sent");
}

#[tokio::test]
async fn pings_are_answered_on_both_sides() {
    let mut f = Fixture::new(Options::default()).await;
    let (mut connection, mut session) = f.plain_pair().await;
    session.send(Frame::Ping { data: *b"12345678" }).await;
    assert_eq!(connection.recv().await.expect("ping"), Event::Ping { data: *b"12345678" });
    assert_eq!(session.next().await, Some(Frame::Pong { data: *b"12345678" }));

    let (sender, mut receiver) = connection.split();
    let pong = async {
        let Some(Frame::Ping { data }) = session.next().await else { panic!("no ping") };
        // One that nobody waits for is surfaced, ours is not.
        session.send(Frame::Pong { data: *b"nobody's" }).await;
        session.send(Frame::Pong { data }).await;
        session.send(Frame::KeepAlive).await;
    };
    let recv = async {
        assert_eq!(receiver.recv().await.expect("pong"), Event::Pong { data: *b"nobody's" });
        assert_eq!(receiver.recv().await.expect("keep-alive"), Event::KeepAlive);
    };
    let (rtt, (), ()) = tokio::join!(sender.ping(), pong, recv);
    assert!(rtt.expect("answered") < Duration::from_secs(5));
}

#[tokio::test]
async fn waiting_pings_are_bounded_and_end_with_the_connection() {
    let mut f = Fixture::new(Options::default()).await;
    let (connection, mut session) = f.plain_pair().await;
    let sender = connection.sender().clone();
    let waiting: Vec<_> = (0..16)
        .map(|_| {
            f.tasks.spawn({
                let sender = sender.clone();
                async move { sender.ping().await }
            })
        })
        .collect();
    for _ in 0..16 {
        assert!(matches!(session.next().await, Some(Frame::Ping { .. })));
    }
    let error = sender.ping().await.expect_err("the seventeenth");
    assert!(matches!(error, PingError::Send(SendError::TooManyPings(16))), "{error}");
    drop(connection);
    for ping in waiting {
        let error = ping.await.expect("no panic").expect_err("no pong any more");
        assert!(matches!(error, PingError::Send(SendError::Closed(_))), "{error}");
    }
}

#[tokio::test]
async fn every_event_is_surfaced_and_odd_frames_are_skipped() {
    let mut f = Fixture::new(Options::default()).await;
    let (mut connection, session) = f.plain_pair().await;
    let peer = some_key();
    let addr = "192.0.2.7:41641".parse().expect("address");
    session.send_raw(&[0x77, 0, 0, 0, 3, 1, 2, 3]).await;
    session.send_raw(&[0x12, 0, 0, 0, 1, 9]).await;
    session.send_raw(&[&[0x08, 0, 0, 0, 32], &peer.as_bytes()[..]].concat()).await;
    session.send(Frame::PeerGone { peer, reason: PeerGoneReason::NotHere }).await;
    session.send(Frame::PeerPresent { peer, addr: Some(addr), flags: PresentFlags::PROBER }).await;
    session.send(Frame::Health { problem: "two clients share a key".into() }).await;
    session.send(Frame::Restarting { reconnect_in_ms: 20, try_for_ms: 3000 }).await;
    session.send(Frame::KeepAlive).await;
    let expected = [
        Event::PeerGone { peer, reason: PeerGoneReason::Disconnected },
        Event::PeerGone { peer, reason: PeerGoneReason::NotHere },
        Event::PeerPresent { peer, addr: Some(addr), flags: PresentFlags::PROBER },
        Event::Health { problem: "two clients share a key".into() },
        Event::Restarting { reconnect_in: Duration::from_millis(20), try_for: Duration::from_secs(3) },
        Event::KeepAlive,
    ];
    for event in expected {
        assert_eq!(connection.recv().await.expect("event"), event);
    }
}

#[tokio::test]
async fn the_announced_rate_is_obeyed_and_can_change() {
    let slow = |bytes| ServerInfo { token_bucket_bytes_per_second: 1, token_bucket_bytes_burst: bytes, ..ServerInfo::current() };
    // One packet costs 5 + 32 + its length.
    let mut f = Fixture::new(Options { info: slow(2 * 137), ..Options::default() }).await;
    let (mut connection, mut session) = f.plain_pair().await;
    let dst = some_key();
    let payload = [1; 100];
    assert_eq!(connection.info().server_info.token_bucket_bytes_burst, 274);
    connection.sender().send(&dst, &payload).await.expect("first");
    connection.sender().send(&dst, &payload).await.expect("second");
    assert!(matches!(connection.sender().send(&dst, &payload).await, Err(SendError::RateLimited)));
    assert!(matches!(connection.sender().try_send(&dst, &payload), Err(SendError::RateLimited)));
    assert_eq!(connection.sender().rate_limited(), 2);
    session.send_info(&ServerInfo::current()).await;
    assert_eq!(connection.recv().await.expect("info"), Event::ServerInfo(ServerInfo::current()));
    connection.sender().send(&dst, b"free").await.expect("no limit any more");
    for expected in [&payload[..], &payload, b"free"] {
        assert_eq!(session.next().await, Some(Frame::SendPacket { dst, payload: Bytes::copy_from_slice(expected) }));
    }
}

#[tokio::test]
async fn mesh_frames_need_the_mesh_key() {
    let mesh_key = MeshKey::generate();
    let mut f = Fixture::new(Options { mesh_key: Some(mesh_key.clone()), ..Options::default() }).await;
    let (ordinary, _session) = f.plain_pair().await;
    let (src, dst) = (some_key(), some_key());
    assert!(matches!(ordinary.sender().watch_connections(), Err(SendError::NotMeshPeer)));
    assert!(matches!(ordinary.sender().close_peer(&dst), Err(SendError::NotMeshPeer)));
    assert!(matches!(ordinary.sender().forward_packet(&src, &dst, b"x").await, Err(SendError::NotMeshPeer)));

    let builder = f.builder().mesh_key(mesh_key);
    let (mesh, mut session) = f.connect(&builder).await;
    mesh.sender().watch_connections().expect("queued");
    mesh.sender().forward_packet(&src, &dst, b"x").await.expect("queued");
    mesh.sender().close_peer(&dst).expect("queued");
    mesh.sender().note_preferred(true).expect("queued");
    assert_eq!(session.next().await, Some(Frame::WatchConns));
    assert_eq!(session.next().await, Some(Frame::ForwardPacket { src, dst, payload: Bytes::from_static(b"x") }));
    assert_eq!(session.next().await, Some(Frame::ClosePeer { peer: dst }));
    assert_eq!(session.next().await, Some(Frame::NotePreferred { preferred: true }));
}

#[tokio::test]
async fn a_dropped_recv_loses_nothing() {
    let mut f = Fixture::new(Options::default()).await;
    let (mut connection, session) = f.plain_pair().await;
    let src = some_key();
    let frame = Frame::RecvPacket { src, payload: Bytes::from_static(b"in three pieces") };
    let bytes = to_bytes(&frame);
    for piece in [&bytes[..3], &bytes[3..40]] {
        session.send_raw(piece).await;
        // Polled, so that it takes the piece if that is there already, then dropped.
        assert!(tokio::time::timeout(Duration::from_millis(5), connection.recv()).await.is_err());
    }
    session.send_raw(&bytes[40..]).await;
    let payload = Bytes::from_static(b"in three pieces");
    assert_eq!(connection.recv().await.expect("whole"), Event::Packet { src, payload });
}

#[tokio::test]
async fn closing_lets_out_what_was_queued() {
    let mut f = Fixture::new(Options::default()).await;
    let (connection, mut session) = f.plain_pair().await;
    let dst = some_key();
    for n in 0..100_u8 {
        connection.sender().try_send(&dst, &[n]).expect("room");
    }
    connection.sender().close().await;
    for n in 0..100_u8 {
        assert_eq!(session.next().await, Some(Frame::SendPacket { dst, payload: Bytes::copy_from_slice(&[n]) }));
    }
    assert_eq!(session.next().await, None);
    assert!(matches!(connection.sender().try_send(&dst, b"late"), Err(SendError::Closed(_))));
}

#[tokio::test]
async fn dropping_the_receiver_or_cancelling_ends_the_connection_and_its_tasks() {
    for cancel in [false, true] {
        let mut f = Fixture::new(Options::default()).await;
        let (connection, mut session) = f.plain_pair().await;
        let (sender, mut receiver) = connection.split();
        if cancel {
            f.cancel.cancel();
            assert!(matches!(*receiver.recv().await.expect_err("cancelled"), ConnectionError::ClosedByUs));
        } else {
            drop(receiver);
        }
        assert_eq!(session.next().await, None);
        assert!(matches!(*sender.closed().await, ConnectionError::ClosedByUs));
        f.tasks.close();
        f.tasks.wait().await;
    }
}

/// How the connection ended, twice: the reason sticks.
async fn end_of(mut connection: Connection) -> Arc<ConnectionError> {
    let first = loop {
        if let Err(error) = connection.recv().await {
            break error;
        }
    };
    let again = connection.recv().await.expect_err("still over");
    assert_eq!(first.to_string(), again.to_string());
    let refused = connection.sender().try_send(&some_key(), b"").expect_err("over");
    assert!(refused.to_string().contains(&first.to_string()), "{refused}");
    first
}

#[tokio::test]
async fn the_server_may_close_between_frames_within_a_frame_or_break_the_protocol() {
    for tls in [true, false] {
        let mut f = Fixture::new(Options { tls, ..Options::default() }).await;
        let (connection, session) = f.plain_pair().await;
        session.close().await;
        assert!(matches!(*end_of(connection).await, ConnectionError::ClosedByServer));

        let (connection, session) = f.plain_pair().await;
        session.send_raw(&[0x05, 0, 0, 0, 40, 1, 2, 3]).await;
        session.close().await;
        assert!(matches!(*end_of(connection).await, ConnectionError::Truncated));

        let (connection, session) = f.plain_pair().await;
        session.send_raw(&[0x05, 0, 0x10, 0, 1]).await;
        let end = end_of(connection).await;
        assert!(matches!(*end, ConnectionError::Protocol(DecodeError::TooLong { len: 0x10_0001, .. })), "{end}");

        let (connection, session) = f.plain_pair().await;
        session.send(Frame::ServerInfo { sealed: Bytes::from_static(&[7; 60]) }).await;
        assert!(matches!(*end_of(connection).await, ConnectionError::ServerInfo(_)));
    }
}

#[tokio::test]
async fn a_server_that_vanishes_without_goodbye_ends_the_connection() {
    let mut f = Fixture::new(Options::default()).await;
    let (connection, _session) = f.plain_pair().await;
    drop(f.server);
    let end = end_of(connection).await;
    assert!(matches!(*end, ConnectionError::ClosedByServer), "{end}");
}

#[tokio::test]
async fn silence_ends_a_connection_after_two_minutes_and_any_byte_postpones_that() {
    let mut f = Fixture::new(Options { tls: false, ..Options::default() }).await;
    let (mut connection, session) = f.plain_pair().await;
    let start = tokio::time::Instant::now();
    // From here on the clock jumps whenever everybody waits.
    tokio::time::pause();
    tokio::time::advance(READ_TIMEOUT - Duration::from_secs(1)).await;
    session.send(Frame::KeepAlive).await;
    assert_eq!(connection.recv().await.expect("keep-alive"), Event::KeepAlive);
    let error = connection.recv().await.expect_err("silence");
    assert!(matches!(*error, ConnectionError::Silent(READ_TIMEOUT)), "{error}");
    assert!(start.elapsed() >= 2 * READ_TIMEOUT - Duration::from_secs(1), "{:?}", start.elapsed());
}

#[tokio::test]
async fn an_idle_client_stays_connected_for_as_long_as_keep_alives_come() {
    let mut f = Fixture::new(Options { tls: false, ..Options::default() }).await;
    let (mut connection, mut session) = f.plain_pair().await;
    tokio::time::pause();
    for _ in 0..10 {
        // As a stock server was seen to send them.
        tokio::time::advance(Duration::from_millis(62_550)).await;
        session.send(Frame::KeepAlive).await;
        assert_eq!(connection.recv().await.expect("keep-alive"), Event::KeepAlive);
    }
    connection.sender().send(&some_key(), b"after ten minutes").await.expect("connected");
    assert!(matches!(session.next().await, Some(Frame::SendPacket { .. })));
}

#[tokio::test]
async fn a_server_that_reads_nothing_ends_the_connection() {
    let mut f = Fixture::new(Options { tls: false, ..Options::default() }).await;
    let (connection, session) = f.plain_pair().await;
    session.stop_reading().await;
    let (sender, mut receiver) = connection.split();
    let dst = some_key();
    // Fill the socket's buffers and ours; the clock must not jump before that.
    let mut refused = 0;
    while refused < 50 {
        match sender.try_send(&dst, &vec![0; PACKET_LEN_MAX]) {
            Ok(()) => refused = 0,
            Err(SendError::Full) => refused += 1,
            Err(error) => panic!("{error}"),
        }
        tokio::task::yield_now().await;
    }
    tokio::time::pause();
    let error = receiver.recv().await.expect_err("stalled");
    assert!(matches!(*error, ConnectionError::WriteStalled(WRITE_STALL_MAX)), "{error}");
    let error = sender.send(&dst, b"").await.expect_err("over");
    assert!(matches!(error, SendError::Closed(_)), "{error}");
}

#[tokio::test]
async fn a_refused_login_an_answer_of_another_kind_and_garbage_are_told_apart() {
    let f = Fixture::new(Options::default()).await;
    f.server.refuse(true);
    let error = f.try_connect(&f.builder()).await.expect_err("refused");
    assert!(matches!(error, ConnectError::Closed { phase: Phase::Login, .. }), "{error}");

    let (addr, listener) = silent_listener().await;
    let answer = f.tasks.spawn(answer_once(listener, b"HTTP/1.1 426 Upgrade Required\r\nContent-Length: 0\r\n\r\n"));
    let plain = f.builder().endpoint(Endpoint::at(addr, "relay.test").plain());
    let error = f.try_connect(&plain).await.expect_err("no upgrade");
    assert!(matches!(&error, ConnectError::Upgrade { why, .. } if why == "HTTP status 426"), "{error}");
    answer.await.expect("answered");

    for garbage in [
        &b"SSH-2.0-OpenSSH_9.9\r\n"[..],
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n\x01\x00\x00\x00\x28forty bytes that do not start with magic",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n\x05\x00\x00\x00\x28",
    ] {
        let (addr, listener) = silent_listener().await;
        let answer = f.tasks.spawn(answer_once(listener, garbage));
        let plain = f.builder().endpoint(Endpoint::at(addr, "relay.test").plain());
        let error = f.try_connect(&plain).await.expect_err("garbage");
        assert!(matches!(error, ConnectError::Upgrade { .. } | ConnectError::Handshake { .. }), "{error}");
        answer.await.expect("answered");
    }
}

#[tokio::test]
async fn a_silent_server_is_given_up_after_ten_seconds() {
    let f = Fixture::new(Options::default()).await;
    for plain in [true, false] {
        let (addr, listener) = silent_listener().await;
        let endpoint = Endpoint::at(addr, "relay.test");
        let builder = f.builder().endpoint(if plain { endpoint.plain() } else { endpoint });
        let (tasks, cancel) = (f.tasks.clone(), f.cancel.clone());
        let start = tokio::time::Instant::now();
        let connecting = f.tasks.spawn(async move { builder.connect(&tasks, &cancel).await.map(drop) });
        let (_held, _) = listener.accept().await.expect("dialled");
        tokio::time::pause();
        let error = connecting.await.expect("no panic").expect_err("silence");
        let phase = if plain { Phase::Upgrade } else { Phase::Tls };
        assert!(matches!(error, ConnectError::Timeout { limit: CONNECT_TIMEOUT, phase: at } if at == phase), "{error}");
        assert!(start.elapsed() < CONNECT_TIMEOUT + Duration::from_secs(1));
        tokio::time::resume();
    }
}
