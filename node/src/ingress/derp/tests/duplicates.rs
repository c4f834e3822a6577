//! Several connections of one key on one node (`derp.md` section 7, `stock-clients.md` section 2), and what stock servers get wrong.

use super::*;
use crate::clients::CONNECTIONS_PER_KEY;

/// What a stock client's connections to one node may see beside packets.
fn is_keep_alive(frame: &Frame) -> bool {
    matches!(frame, Frame::KeepAlive)
}

impl TestNode {
    async fn connect(&self, key: &NodePrivate, ideal_node: Option<&str>, home: bool) -> Client {
        let io = self.dial_in_memory(ideal_node);
        let info = ClientInfo { can_ack_pings: true, ..ClientInfo::current() };
        let mut client = self.login_over(Box::new(io), key.clone(), info).await.expect("logged in");
        client.send(&Frame::NotePreferred { preferred: home }).await;
        client.settle_among_keep_alives().await;
        client
    }

    fn registered(&self, key: &NodePublic) -> usize {
        self.server.parts.registry.connections().iter().filter(|connection| connection.facts().key == *key).count()
    }
}

impl Client {
    async fn settle_among_keep_alives(&mut self) {
        self.send(&Frame::Ping { data: *b"settling" }).await;
        while self.next_but_keep_alive().await != Some(Frame::Pong { data: *b"settling" }) {}
    }

    async fn next_but_keep_alive(&mut self) -> Option<Frame> {
        loop {
            match self.next().await {
                Some(frame) if is_keep_alive(&frame) => {}
                other => return other,
            }
        }
    }
}

/// A stock client keeps up to one connection per home region of its peers, and with a cross-listed map several of them end on one
/// node; it writes on them in turn.
#[tokio::test(start_paused = true)]
async fn home_side_and_substitute_connections_of_a_stock_client_live_side_by_side() {
    let node = TestNode::start().await;
    let mut peer = node.connect(&NodePrivate::generate(), None, true).await;
    let key = NodePrivate::generate();
    let mut connections = vec![node.connect(&key, None, true).await, node.connect(&key, None, false).await];
    for region in 0..CONNECTIONS_PER_KEY - 2 {
        connections.push(node.connect(&key, Some(&format!("r{region}-1")), false).await);
    }
    let started = tokio::time::Instant::now();
    for round in 0..3_000u32 {
        let writer = round as usize * 7 % CONNECTIONS_PER_KEY;
        let payload = Bytes::copy_from_slice(&round.to_be_bytes());
        connections[writer].send_packet(peer.key, payload.clone()).await;
        let heard = Frame::RecvPacket { src: key.public(), payload: payload.clone() };
        assert_eq!(peer.next_but_keep_alive().await, Some(heard), "and no PeerGone ever");
        // The answer comes on the connection that wrote last, and nothing else does: no Health, no Ping, no end.
        peer.send_packet(key.public(), payload.clone()).await;
        let answer = Frame::RecvPacket { src: peer.key, payload };
        assert_eq!(connections[writer].next_but_keep_alive().await, Some(answer));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(started.elapsed() >= Duration::from_secs(300));
    for connection in &mut connections {
        connection.send(&Frame::Ping { data: [2; 8] }).await;
        assert_eq!(connection.next_but_keep_alive().await, Some(Frame::Pong { data: [2; 8] }));
    }
    assert_eq!(node.registered(&key.public()), CONNECTIONS_PER_KEY);
    let registry = &node.server.parts.registry;
    assert_eq!((registry.home_connections(), registry.metrics().clone_alarms_raised()), (2, 0));
    assert_eq!(node.server.metrics.ended_for("closed"), 0);
}

/// QUIRK of `derp.md` section 7: the old connection of a client whose machine went away without a word stays open for a while.
#[tokio::test(start_paused = true)]
async fn a_half_open_connection_costs_its_client_nothing() {
    let node = TestNode::start().await;
    let mut peer = node.connect(&NodePrivate::generate(), None, true).await;
    let mut watcher = node.mesh_peer_in_memory().await;
    let key = NodePrivate::generate();
    let mut old = node.connect(&key, None, true).await;
    old.send_packet(peer.key, &b"before"[..]).await;
    assert_eq!(peer.next_but_keep_alive().await, received(&old, b"before"));
    // Nothing is ever written to it or read from it again.
    let silent = old;
    let mut new = node.connect(&key, None, true).await;
    for minute in 0..10u8 {
        peer.send_packet(key.public(), vec![minute]).await;
        let packet = Frame::RecvPacket { src: peer.key, payload: vec![minute].into() };
        assert_eq!(new.next_but_keep_alive().await, Some(packet), "packets take the connection that lives");
        tokio::time::sleep(Duration::from_secs(60)).await;
    }
    drop(silent);
    node.until("the old one is gone", |node| node.registered(&key.public()) == 1).await;
    peer.send_packet(key.public(), &b"after"[..]).await;
    assert_eq!(new.next_but_keep_alive().await, received(&peer, b"after"));
    drop(new);
    let gone = Some(Frame::PeerGone { peer: key.public(), reason: PeerGoneReason::Disconnected });
    assert_eq!(peer.next_but_keep_alive().await, gone, "once, and only now");
    assert_eq!(present_and_gone(&mut watcher, key.public()).await, (2, 1));
}

#[tokio::test(start_paused = true)]
async fn a_flapping_connection_harms_neither_its_key_nor_its_peers() {
    let node = TestNode::start().await;
    let mut peer = node.connect(&NodePrivate::generate(), None, true).await;
    let mut watcher = node.mesh_peer_in_memory().await;
    let key = NodePrivate::generate();
    let mut stable = node.connect(&key, None, true).await;
    for round in 0..200u32 {
        let payload = Bytes::copy_from_slice(&round.to_be_bytes());
        let mut flapping = node.connect(&key, None, false).await;
        flapping.send_packet(peer.key, payload.clone()).await;
        let heard = Frame::RecvPacket { src: key.public(), payload: payload.clone() };
        assert_eq!(peer.next_but_keep_alive().await, Some(heard), "no PeerGone while one connection is left");
        drop(flapping);
        node.until("it is gone", |node| node.registered(&key.public()) == 1).await;
        peer.send_packet(key.public(), payload.clone()).await;
        let answer = Frame::RecvPacket { src: peer.key, payload };
        assert_eq!(stable.next_but_keep_alive().await, Some(answer), "the one that stays is restored");
    }
    assert_eq!(node.server.parts.registry.home_connections(), 2);
    drop(stable);
    let gone = Some(Frame::PeerGone { peer: key.public(), reason: PeerGoneReason::Disconnected });
    assert_eq!(peer.next_but_keep_alive().await, gone);
    assert_eq!(present_and_gone(&mut watcher, key.public()).await, (201, 1));
    // Alone: it comes and goes a hundred times, and nothing is left of it.
    for _ in 0..100 {
        let mut flapping = node.connect(&key, None, true).await;
        flapping.send_packet(peer.key, &b"x"[..]).await;
        assert_eq!(peer.next_but_keep_alive().await, received(&flapping, b"x"));
        drop(flapping);
        assert_eq!(peer.next_but_keep_alive().await, gone, "each departure is told: QUIRK of section 5.6");
    }
    assert_eq!(node.registered(&key.public()), 0);
    let books = node.books_at_rest().await;
    assert_eq!(books.accepted[0], books.delivered[0], "nothing was lost");
}

impl TestNode {
    async fn mesh_peer_in_memory(&self) -> Client {
        let info = ClientInfo { mesh_key: Some(self.mesh_key.clone()), ..ClientInfo::current() };
        let io = self.dial_in_memory(None);
        let mut peer = self.login_over(Box::new(io), NodePrivate::generate(), info).await.expect("logged in");
        peer.send(&Frame::WatchConns).await;
        peer
    }
}

/// Counts what a watcher was told of `key`, up to its departure.
async fn present_and_gone(watcher: &mut Client, key: NodePublic) -> (usize, usize) {
    let mut present = 0;
    loop {
        match watcher.next_but_keep_alive().await.expect("the watcher is connected") {
            Frame::PeerPresent { peer, .. } if peer == key => present += 1,
            Frame::PeerGone { peer, .. } if peer == key => return (present, 1),
            Frame::PeerPresent { .. } | Frame::PeerGone { .. } => {}
            other => panic!("{other:?}"),
        }
    }
}

/// QUIRK of `derp.md` section 3.1: stock servers write such a packet without a source, which no client can read.
#[tokio::test]
async fn a_forwarded_packet_without_a_source_is_dropped_and_counted() {
    let node = TestNode::start().await;
    let (mut client, mut mesh) = (node.client().await, node.mesh_peer().await);
    let far = NodePrivate::generate().public();
    for (src, payload) in [(NodePublic::from_bytes([0; 32]), &b"from nobody"[..]), (far, b"from afar")] {
        mesh.send(&Frame::ForwardPacket { src, dst: client.key, payload: payload.into() }).await;
    }
    assert_eq!(client.next().await, Some(Frame::RecvPacket { src: far, payload: b"from afar"[..].into() }));
    assert_eq!(node.books_at_rest().await.dropped_for(DropReason::BadHeader), 1);
}

/// QUIRK of `derp.md` section 5.1: stock servers skip an unknown frame however long it says it is.
#[tokio::test]
async fn unknown_frames_are_skipped_up_to_a_bound() {
    let node = TestNode::start().await;
    let mut client = node.client().await;
    client.io.write_all(&[0x77, 0, 1, 0, 0]).await.unwrap();
    client.io.write_all(&[0; 65_536]).await.unwrap();
    client.settle().await;
    assert_eq!(node.server.metrics.unknown_frames.get(), 1);
    client.io.write_all(&[0x77, 0, 1, 0, 1]).await.unwrap();
    assert_eq!(client.next().await, None);
    node.until("counted", |node| node.server.metrics.ended_for("frame_too_long") == 1).await;
}

/// QUIRK of `derp.md` section 5.6: stock servers tell only the first departure.
#[tokio::test]
async fn each_departure_of_a_peer_is_told_also_after_a_second_visit() {
    let node = TestNode::start().await;
    let mut stays = node.client().await;
    let visitor = NodePrivate::generate();
    for _ in 0..3 {
        let mut visit = node.login(visitor.clone(), ClientInfo::current()).await;
        visit.send_packet(stays.key, &b"hello"[..]).await;
        assert_eq!(stays.next().await, received(&visit, b"hello"));
        drop(visit);
        let gone = Frame::PeerGone { peer: visitor.public(), reason: PeerGoneReason::Disconnected };
        assert_eq!(stays.next().await, Some(gone));
    }
}
