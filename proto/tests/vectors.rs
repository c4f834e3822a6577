//! Bytes of stock software, and bytes written by hand from the specification: see `vectors/README.md`.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use causeway_proto::derp::decoder::Decoder;
use causeway_proto::derp::encoder::to_bytes;
use causeway_proto::derp::frame::{Frame, PeerGoneReason, PresentFlags};
use causeway_proto::derp::handshake::Step;
use causeway_proto::derp::handshake::client::ClientHandshake;
use causeway_proto::derp::handshake::server::{MeshKeys, PendingLogin, ServerHandshake, ServerIdentity};
use causeway_proto::derp::info::{ClientInfo, ServerInfo};
use causeway_proto::derp::seal::{BoxKey, nonce_of};
use causeway_proto::derpmap::DerpMap;
use causeway_proto::id::RegionId;
use causeway_proto::key::{MeshKey, NodePrivate, NodePublic};
use causeway_proto::stun::message;
use data_encoding::HEXLOWER;

const MESH_KEY: &str = "6d6573686d6573686d6573686d6573686d6573686d6573686d6573686d657368";
/// What the recorded server was told of everybody's address.
const REMOTE: &str = "203.0.113.7:41641";

struct Vectors(BTreeMap<&'static str, Vec<u8>>);

impl Vectors {
    fn stock() -> Self {
        Self::parse(include_str!("vectors/stock-1.102.5.txt"))
    }

    fn spec() -> Self {
        Self::parse(include_str!("vectors/spec.txt"))
    }

    fn parse(text: &'static str) -> Self {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        Self(
            lines
                .map(|line| {
                    let (name, hex) = line.split_once(' ').unwrap();
                    (name, HEXLOWER.decode(hex.replace(' ', "").as_bytes()).unwrap())
                })
                .collect(),
        )
    }

    fn bytes(&self, name: &str) -> &[u8] {
        &self.0[name]
    }

    fn buf(&self, name: &str) -> BytesMut {
        BytesMut::from(self.bytes(name))
    }

    fn private(&self, name: &str) -> NodePrivate {
        NodePrivate::from_bytes(self.bytes(&format!("{name}.private")).try_into().unwrap())
    }

    fn public(&self, name: &str) -> NodePublic {
        self.private(name).public()
    }

    /// What the recorded client `name` logged in with.
    fn login(&self, name: &str) -> (PendingLogin, BytesMut) {
        let keys = MeshKeys { current: Some(MESH_KEY.parse().unwrap()), previous: None };
        let server = ServerHandshake::new(Arc::new(ServerIdentity::new(self.private("server"), keys)));
        let mut sent = self.buf(&format!("{name}.sent"));
        match server.read_login(&mut sent).unwrap() {
            Step::Done(pending) => (pending, sent),
            Step::More(_) => panic!("the recording starts with a whole login"),
        }
    }
}

fn key(fill: u8) -> NodePublic {
    NodePublic::from_bytes([fill; 32])
}

fn disco() -> Bytes {
    let mut payload = b"TS\xf0\x9f\x92\xac".to_vec();
    payload.resize(62, 0);
    payload.into()
}

fn decode_all(mut decoder: Decoder, mut buf: BytesMut) -> Vec<Frame> {
    let frames = std::iter::from_fn(|| decoder.decode(&mut buf).unwrap()).collect();
    assert!(decoder.at_boundary(&buf));
    frames
}

fn encode_all(frames: &[Frame]) -> Vec<u8> {
    frames.iter().flat_map(to_bytes).collect()
}

#[test]
fn stock_logins_open_and_ours_are_the_same_but_for_the_nonce() {
    let stock = Vectors::stock();
    let mesh_key: MeshKey = MESH_KEY.parse().unwrap();
    let alice = ClientInfo { can_ack_pings: true, app_name: "vectors".into(), ..ClientInfo::current() };
    let peer = ClientInfo { mesh_key: Some(mesh_key), is_prober: true, ..ClientInfo::current() };
    for (name, info, is_mesh_peer) in [("alice", alice, false), ("peer", peer, true)] {
        let (pending, rest) = stock.login(name);
        let login = pending.login();
        assert_eq!((login.key, &login.info, login.is_mesh_peer), (stock.public(name), &info, is_mesh_peer));
        let sent = stock.bytes(&format!("{name}.sent"));
        let frame = &sent[..sent.len() - rest.len()];
        let nonce = nonce_of(&frame[5 + 32..]).unwrap();
        let sealed = BoxKey::new(&stock.private(name), &stock.public("server")).seal_with_nonce(&info.to_json(), &nonce);
        assert_eq!(to_bytes(&Frame::ClientInfo { key: stock.public(name), sealed }), frame);
    }
}

#[test]
fn a_stock_server_is_understood_from_greeting_to_server_info() {
    let stock = Vectors::stock();
    let mut received = stock.buf("alice.received");
    let greeting = to_bytes(&Frame::ServerKey { key: stock.public("server") });
    assert_eq!(received[..greeting.len()], greeting);
    let client = ClientHandshake::new(stock.private("alice"), ClientInfo::current());
    let Step::Done((_, client)) = client.read_greeting(&mut received).unwrap() else { panic!("the greeting is there") };
    let Step::Done((info, session)) = client.read_server_info(&mut received).unwrap() else { panic!("ServerInfo is there") };
    assert_eq!((info, session.server_key), (ServerInfo::current(), stock.public("server")));
}

#[test]
fn frames_of_stock_clients_are_read_and_written_alike() {
    let stock = Vectors::stock();
    let (alice, peer) = (stock.public("alice"), stock.public("peer"));
    let from_alice = [
        Frame::NotePreferred { preferred: true },
        Frame::Ping { data: [1, 2, 3, 4, 5, 6, 7, 8] },
        Frame::SendPacket { dst: alice, payload: Bytes::new() },
        Frame::SendPacket { dst: peer, payload: Bytes::from_static(b"hello") },
        Frame::SendPacket { dst: key(0x55), payload: disco() },
        Frame::Pong { data: [8, 7, 6, 5, 4, 3, 2, 1] },
    ];
    let from_peer = [
        Frame::WatchConns,
        Frame::ForwardPacket { src: key(0x44), dst: alice, payload: Bytes::from_static(b"forwarded") },
        Frame::ClosePeer { peer: alice },
    ];
    for (name, frames) in [("alice", &from_alice[..]), ("peer", &from_peer[..])] {
        let (_, rest) = stock.login(name);
        assert_eq!(encode_all(frames), rest);
        assert_eq!(decode_all(Decoder::server(), rest), frames);
    }
}

#[test]
fn frames_of_a_stock_server_are_read_and_written_alike() {
    let stock = Vectors::stock();
    let (alice, peer) = (stock.public("alice"), stock.public("peer"));
    let present = |peer, flags| Frame::PeerPresent { peer, addr: Some(REMOTE.parse().unwrap()), flags };
    let to_alice = [
        Frame::Pong { data: [1, 2, 3, 4, 5, 6, 7, 8] },
        Frame::RecvPacket { src: alice, payload: Bytes::new() },
        Frame::RecvPacket { src: key(0x44), payload: Bytes::from_static(b"forwarded") },
        Frame::PeerGone { peer: key(0x55), reason: PeerGoneReason::NotHere },
    ];
    let to_peer = [
        present(peer, PresentFlags::of_client(true, true, false)),
        present(alice, PresentFlags::REGULAR),
        Frame::RecvPacket { src: alice, payload: Bytes::from_static(b"hello") },
        // Once as a watcher, once because alice had sent it a packet.
        Frame::PeerGone { peer: alice, reason: PeerGoneReason::Disconnected },
        Frame::PeerGone { peer: alice, reason: PeerGoneReason::Disconnected },
    ];
    for (name, want) in [("alice", &to_alice[..]), ("peer", &to_peer[..])] {
        let bytes = stock.buf(&format!("{name}.received"));
        // The greeting, which is skipped as unknown, and ServerInfo.
        let before = 45 + 58;
        let frames = decode_all(Decoder::client(), bytes.clone());
        assert!(matches!(frames[0], Frame::ServerInfo { .. }));
        assert_eq!(frames[1..], *want);
        assert_eq!(encode_all(want), bytes[before..]);
    }
}

#[test]
fn frames_written_by_hand_are_read_as_the_specification_says() {
    let spec = Vectors::spec();
    let at_client = |name: &str| decode_all(Decoder::client(), spec.buf(name)).remove(0);
    let present = |addr| Frame::PeerPresent { peer: key(0x44), addr, flags: PresentFlags(0) };
    let gone = |reason| Frame::PeerGone { peer: key(0x44), reason };
    let data = [1, 2, 3, 4, 5, 6, 7, 8];
    let exact = [
        ("health", Frame::Health { problem: "over".into() }),
        ("health.over", Frame::Health { problem: String::new() }),
        ("restarting", Frame::Restarting { reconnect_in_ms: 1000, try_for_ms: 5000 }),
        ("ping.to.client", Frame::Ping { data }),
        ("peergone.broke", gone(PeerGoneReason::MeshConnectionBroke)),
        ("keepalive", Frame::KeepAlive),
    ];
    for (name, want) in exact {
        assert_eq!(to_bytes(&want), spec.bytes(name), "{name}");
        assert_eq!(at_client(name), want, "{name}");
    }
    assert_eq!(at_client("ping.extra"), Frame::Ping { data });
    assert_eq!(at_client("peergone.no.reason"), gone(PeerGoneReason::Disconnected));
    assert_eq!(at_client("peerpresent.key"), present(None));
    assert_eq!(at_client("peerpresent.addr"), present(Some("[2001:db8::1]:80".parse().unwrap())));
    for (name, want) in [
        ("watchconns", Frame::WatchConns),
        ("closepeer", Frame::ClosePeer { peer: key(0x44) }),
        ("notpreferred", Frame::NotePreferred { preferred: false }),
    ] {
        assert_eq!(to_bytes(&want), spec.bytes(name), "{name}");
        assert_eq!(decode_all(Decoder::server(), spec.buf(name)), [want], "{name}");
    }
}

#[test]
fn stun_of_stock_software_is_read_and_written_alike() {
    let stock = Vectors::stock();
    let transaction = *b"transaction!";
    assert_eq!(message::binding_request(&transaction), stock.bytes("stun.request"));
    assert_eq!(message::parse_binding_request(stock.bytes("stun.request"), true), Ok(transaction));
    for (name, addr) in [("v4", "192.0.2.1:32853"), ("v6", "[2001:db8::1]:32853")] {
        let addr = addr.parse().unwrap();
        let bytes = stock.bytes(&format!("stun.response.{name}"));
        assert_eq!(message::binding_response(&transaction, addr).as_ref(), bytes);
        assert_eq!(message::parse_binding_response(bytes), Ok((transaction, addr)));
    }
    // As upstream answers IPv4 clients on a dual-stack socket: read, never written.
    let mapped = message::parse_binding_response(stock.bytes("stun.response.mapped"));
    assert_eq!(mapped, Ok((transaction, "192.0.2.1:32853".parse().unwrap())));
}

#[test]
fn derp_maps_of_stock_software_are_read_and_written_alike() {
    let stock = Vectors::stock();
    for name in ["derpmap.small", "derpmap.full"] {
        let json = stock.bytes(name);
        let map = DerpMap::from_json(json).unwrap();
        assert_eq!(map.validate(), Ok(()), "{name}");
        assert_eq!(String::from_utf8(map.to_json()), String::from_utf8(json.to_vec()), "{name}");
    }
    let full = DerpMap::from_json(stock.bytes("derpmap.full")).unwrap();
    assert_eq!(full.regions[&RegionId(901)].nodes[0].stun_port(), None);
}

#[test]
fn a_key_has_the_three_texts_of_stock_software() {
    let stock = Vectors::stock();
    let key = stock.public("server");
    let ours = format!("{} {} {key}", key.to_text(), key.to_untyped_hex());
    assert_eq!(ours.as_bytes(), stock.bytes("key.text"));
}
