//! Clients that send faster than they may (`derp.md` sections 4.6 and 9).

use causeway_proto::limits::PACKET_LEN_MAX;

use super::*;
use crate::clients::Rates;
use crate::clients::pace::CLIENT_BURST_MIN;
use crate::limits::bucket::Rate;

/// One packet of the greatest size per second.
const ONE_PER_SECOND: Rate = Rate { per_second: CLIENT_BURST_MIN, burst: CLIENT_BURST_MIN };

async fn node(rates: Rates) -> TestNode {
    TestNode::start_as(Arc::new(Open), ClientLimits { rates, ..ClientLimits::default() }).await
}

impl TestNode {
    async fn client_in_memory(&self) -> Client {
        let io = self.dial_in_memory(None);
        self.login_over(Box::new(io), NodePrivate::generate(), ClientInfo::current()).await.expect("logged in")
    }
}

/// Sends `count` packets of the greatest size while `to` reads them; how long that takes.
async fn send_all(from: &mut Client, to: &mut Client, count: u8) -> Duration {
    let started = tokio::time::Instant::now();
    let (dst, src) = (to.key, from.key);
    let send = async {
        for n in 0..count {
            from.send_packet(dst, vec![n; PACKET_LEN_MAX]).await;
        }
    };
    let receive = async {
        for n in 0..count {
            let payload = Bytes::from(vec![n; PACKET_LEN_MAX]);
            assert_eq!(to.next().await, Some(Frame::RecvPacket { src, payload }), "in order, none lost");
        }
    };
    futures::join!(send, receive);
    started.elapsed()
}

#[tokio::test(start_paused = true)]
async fn a_client_is_told_its_rate_and_one_that_sends_faster_waits_and_loses_nothing() {
    let node = node(Rates { client: Some(ONE_PER_SECOND), key: None }).await;
    let (mut from, mut to) = (node.client_in_memory().await, node.client_in_memory().await);
    assert_eq!(from.info.token_bucket_bytes_per_second, 65_568);
    assert_eq!(from.info.token_bucket_bytes_burst, 65_573, "what a client takes off for the greatest packet");
    let took = send_all(&mut from, &mut to, 10).await;
    assert!((Duration::from_secs(8)..Duration::from_secs(9)).contains(&took), "a burst, then one per second: {took:?}");
    let books = node.books_at_rest().await;
    assert_eq!((books.accepted[0], books.delivered[0]), (10, 10));
    assert!(node.server.parts.registry.metrics().rate_pauses() >= 8);

    // Another client is not held up, and other limits hold without a restart.
    let mut other = node.client_in_memory().await;
    assert!(send_all(&mut other, &mut to, 1).await < Duration::from_millis(100));
    node.server.parts.registry.set_limits(ClientLimits::default());
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(send_all(&mut from, &mut to, 10).await < Duration::from_millis(100));
}

#[tokio::test(start_paused = true)]
async fn frames_of_every_type_cost_their_payload() {
    let node = node(Rates { client: Some(ONE_PER_SECOND), key: None }).await;
    let mut client = node.client_in_memory().await;
    let started = tokio::time::Instant::now();
    // Unknown frames: a burst, two seconds' worth, and then a ping that must wait for them.
    let mut frames = BytesMut::new();
    for _ in 0..3 {
        frames.extend_from_slice(&[0x77, 0, 1, 0, 0]);
        frames.extend_from_slice(&[0; 65_536]);
    }
    encoder::encode(&Frame::Ping { data: [1; 8] }, &mut frames);
    let (mut reading, mut writing) = tokio::io::split(client.io);
    let mut pong = [0; 13];
    let (written, read) = futures::join!(writing.write_all(&frames), reading.read_exact(&mut pong));
    written.and(read).unwrap();
    assert_eq!(pong[0], 0x13);
    let took = started.elapsed();
    assert!((Duration::from_millis(1_900)..Duration::from_millis(2_200)).contains(&took), "{took:?}");
    assert_eq!(node.server.metrics.unknown_frames.get(), 3);
    client.buffer.clear();
}

#[tokio::test(start_paused = true)]
async fn a_mesh_peer_is_told_nothing_and_exempt() {
    let node = node(Rates { client: Some(ONE_PER_SECOND), key: Some(ONE_PER_SECOND) }).await;
    let mut to = node.client_in_memory().await;
    let info = ClientInfo { mesh_key: Some(node.mesh_key.clone()), ..ClientInfo::current() };
    let io = node.dial_in_memory(None);
    let mut mesh = node.login_over(Box::new(io), NodePrivate::generate(), info).await.unwrap();
    assert_eq!(mesh.info, ServerInfo::current());
    assert!(send_all(&mut mesh, &mut to, 10).await < Duration::from_millis(100));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_waits_is_still_closed_when_it_must_end() {
    let slow = Rate { per_second: 8 * 1024, burst: 0 };
    let node = node(Rates { client: Some(slow), key: None }).await;
    let (mut from, to) = (node.client_in_memory().await, node.client_in_memory().await);
    for _ in 0..2 {
        from.send_packet(to.key, vec![1; 60_000]).await;
    }
    node.until("it waits", |node| node.server.parts.registry.metrics().rate_pauses() > 0).await;
    assert!(node.server.parts.registry.close_peer(&from.key));
    let closed = tokio::time::Instant::now();
    assert_eq!(from.next().await, None);
    assert!(closed.elapsed() < Duration::from_millis(100));
}
