#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;

use super::Step;
use super::client::{AwaitServerInfo, ClientHandshake, ClientSession, HandshakeError};
use super::server::{LoginError, MeshKeys, PendingLogin, ServerHandshake, ServerIdentity};
use crate::derp::decoder::DecodeError;
use crate::derp::encoder::to_bytes;
use crate::derp::frame::{Frame, FrameType};
use crate::derp::info::{ClientInfo, InfoError, ServerInfo};
use crate::derp::seal::{BoxKey, OpenError};
use crate::key::{MeshKey, NodePrivate, NodePublic};

fn server_with(mesh_keys: MeshKeys) -> (ServerHandshake, NodePublic) {
    let identity = Arc::new(ServerIdentity::new(NodePrivate::generate(), mesh_keys));
    let public = identity.public();
    (ServerHandshake::new(identity), public)
}

fn server() -> (ServerHandshake, NodePublic) {
    server_with(MeshKeys::default())
}

fn done<Again: std::fmt::Debug, Done>(step: Step<Again, Done>) -> Done {
    match step {
        Step::Done(done) => done,
        Step::More(again) => panic!("all bytes are there: {again:?}"),
    }
}

fn login(server: ServerHandshake, bytes: &[u8]) -> Result<PendingLogin, LoginError> {
    server.read_login(&mut BytesMut::from(bytes)).map(done)
}

fn read_server_info(client: AwaitServerInfo, bytes: &[u8]) -> Result<(ServerInfo, ClientSession), HandshakeError> {
    client.read_server_info(&mut BytesMut::from(bytes)).map(done)
}

/// A ClientInfo frame of this key around this JSON.
fn client_info(private: &NodePrivate, server: &NodePublic, json: &[u8]) -> Bytes {
    to_bytes(&Frame::ClientInfo { key: private.public(), sealed: BoxKey::new(private, server).seal(json) })
}

#[test]
fn a_login_after_the_greeting_reaches_both_sessions() {
    let (server, server_key) = server();
    let private = NodePrivate::generate();
    let client = ClientHandshake::new(private.clone(), ClientInfo { can_ack_pings: true, ..ClientInfo::current() });
    let mut to_client = BytesMut::from(&server.greeting()[..]);
    let (bytes, client) = done(client.read_greeting(&mut to_client).unwrap());
    // What the client sends right behind its login stays for the session.
    let mut to_server = BytesMut::from(&bytes[..]);
    to_server.extend_from_slice(&to_bytes(&Frame::NotePreferred { preferred: true }));
    let pending = done(server.read_login(&mut to_server).unwrap());
    assert_eq!((pending.login().key, pending.login().info.can_ack_pings), (private.public(), true));
    assert_eq!(pending.login().nonce, bytes[5 + 32..5 + 32 + 24]);
    let (answer, mut session) = pending.accept(&ServerInfo::current());
    // 53 bytes, as observed of stock servers.
    assert_eq!(answer.len(), 5 + 53);
    assert_eq!(session.decoder.decode(&mut to_server), Ok(Some(Frame::NotePreferred { preferred: true })));
    to_client.extend_from_slice(&answer);
    to_client.extend_from_slice(&to_bytes(&Frame::KeepAlive));
    let (info, mut client) = done(client.read_server_info(&mut to_client).unwrap());
    assert_eq!((info, client.server_key), (ServerInfo::current(), server_key));
    assert_eq!(client.decoder.decode(&mut to_client), Ok(Some(Frame::KeepAlive)));
    let later = ServerInfo { token_bucket_bytes_per_second: 7, ..ServerInfo::current() };
    let later_frame = session.server_info(&later);
    assert_eq!(client.open_server_info(&later_frame[5..]), Ok(later));
}

#[test]
fn with_fast_start_the_late_greeting_must_name_the_key_that_is_known() {
    let (server, server_key) = server();
    let client = ClientHandshake::new(NodePrivate::generate(), ClientInfo::current());
    let (bytes, client) = client.fast_start(server_key).unwrap();
    let mut to_client = server.greeting().to_vec();
    let (answer, _) = login(server, &bytes).unwrap().accept(&ServerInfo::current());
    to_client.extend_from_slice(&answer);
    let (info, _) = read_server_info(client, &to_client).unwrap();
    assert_eq!(info, ServerInfo::current());

    let (other, shown) = self::server();
    let client = ClientHandshake::new(NodePrivate::generate(), ClientInfo::current());
    let (_, client) = client.fast_start(server_key).unwrap();
    let error = read_server_info(client, &other.greeting()).unwrap_err();
    assert_eq!(error, HandshakeError::OtherServerKey { expected: server_key, shown });
}

#[test]
fn keys_that_prove_nothing_are_refused() {
    let point = |bytes: [u8; 32]| NodePublic::from_bytes(bytes);
    let mut one = [0; 32];
    one[0] = 1;
    let mut order_8 = [0; 32];
    data_encoding::HEXLOWER
        .decode_mut(b"e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800", &mut order_8)
        .unwrap();
    let mut minus_one = [0xff; 32];
    (minus_one[0], minus_one[31]) = (0xec, 0x7f);
    let weak = NodePrivate::from_bytes([1; 32]);
    for (key, want) in [
        (NodePublic::default(), LoginError::ZeroKey),
        (point(one), LoginError::LowOrderKey),
        (point(order_8), LoginError::LowOrderKey),
        (point(minus_one), LoginError::LowOrderKey),
    ] {
        let (server, _) = server();
        // The shared secret with such a key is the same for all, so anybody can seal in its name.
        let sealed = BoxKey::new(&weak, &key).seal(b"{}");
        let refused = login(server, &to_bytes(&Frame::ClientInfo { key, sealed })).unwrap_err();
        assert_eq!((refused, refused.reason()), (want, want.reason()));
    }
    let client = ClientHandshake::new(NodePrivate::generate(), ClientInfo::current());
    assert_eq!(client.fast_start(point(one)).unwrap_err(), HandshakeError::LowOrderKey);
}

#[test]
fn a_login_cannot_be_replayed_under_a_second_name_of_its_key() {
    let (server, key) = server();
    let (bytes, _) = ClientHandshake::new(NodePrivate::generate(), ClientInfo::current()).fast_start(key).unwrap();
    let mut replay = bytes.to_vec();
    // X25519 ignores this bit, so the box would open.
    replay[5 + 31] |= 0x80;
    assert_eq!(login(server, &replay).unwrap_err(), LoginError::NonCanonicalKey);
}

#[test]
fn a_box_sealed_by_another_key_or_for_another_server_does_not_open() {
    let (one, key) = server();
    let (two, other_key) = server();
    let (private, stranger) = (NodePrivate::generate(), NodePrivate::generate());
    assert_eq!(login(one, &client_info(&private, &other_key, b"{}")).unwrap_err(), LoginError::Box(OpenError));
    let forged = Frame::ClientInfo { key: private.public(), sealed: BoxKey::new(&stranger, &other_key).seal(b"{}") };
    assert_eq!(login(two, &to_bytes(&forged)).unwrap_err(), LoginError::Box(OpenError));
    let (three, _) = server();
    let short = Frame::ClientInfo { key, sealed: Bytes::from(vec![0; 24]) };
    assert_eq!(login(three, &to_bytes(&short)).unwrap_err(), LoginError::Box(OpenError));
}

#[test]
fn every_refusal_has_its_reason() {
    let cases: [(&[u8], &str); 3] =
        [(b"[]", "login_json"), (b"{\"meshKey\":\"\"}", "login_json"), (&[b'['; 17], "login_json_depth")];
    for (json, reason) in cases {
        let (server, key) = server();
        let refused = login(server, &client_info(&NodePrivate::generate(), &key, json)).unwrap_err();
        assert!(matches!(refused, LoginError::Info(InfoError::Json { .. } | InfoError::Depth)));
        assert_eq!(refused.reason(), reason);
    }
    let (server, _) = server();
    let refused = login(server, &to_bytes(&Frame::KeepAlive)).unwrap_err();
    let want = DecodeError::Unexpected { frame_type: 6, expected: FrameType::ClientInfo };
    assert_eq!((refused, refused.reason()), (LoginError::Frame(want), "frame_unexpected"));
}

#[test]
fn the_login_frame_is_bounded_by_16_kib_or_what_the_server_sets() {
    let private = NodePrivate::generate();
    let frame_of = |server_key: &NodePublic, len: usize| {
        let json = format!(r#"{{"x":"{}"}}"#, "y".repeat(len - 32 - 40 - 8));
        client_info(&private, server_key, json.as_bytes())
    };
    for (len, taken) in [(16_384, true), (16_385, false)] {
        let (server, key) = server();
        assert_eq!(login(server, &frame_of(&key, len)).is_ok(), taken, "{len}");
    }
    let identity = Arc::new(ServerIdentity::new(NodePrivate::generate(), MeshKeys::default()).with_login_len_max(100));
    for (len, taken) in [(100, true), (101, false)] {
        let key = identity.public();
        assert_eq!(login(ServerHandshake::new(identity.clone()), &frame_of(&key, len)).is_ok(), taken, "{len}");
    }
}

#[test]
fn the_current_and_the_previous_mesh_key_make_a_mesh_peer_and_others_a_plain_client() {
    let (current, previous, other) = (MeshKey::generate(), MeshKey::generate(), MeshKey::generate());
    let keys = MeshKeys { current: Some(current.clone()), previous: Some(previous.clone()) };
    let offers = [(Some(current), true), (Some(previous), true), (Some(other), false), (None, false)];
    for (offered, is_mesh_peer) in offers {
        let (server, key) = server_with(keys.clone());
        let info = ClientInfo { mesh_key: offered, ..ClientInfo::current() };
        let (bytes, _) = ClientHandshake::new(NodePrivate::generate(), info).fast_start(key).unwrap();
        assert_eq!(login(server, &bytes).unwrap().login().is_mesh_peer, is_mesh_peer);
    }
    assert!(!MeshKeys::default().matches(&MeshKey::generate()));
}

#[test]
fn a_server_that_is_not_derp_is_refused() {
    let client = || ClientHandshake::new(NodePrivate::generate(), ClientInfo::current());
    let greeting = |frame: &Frame| client().read_greeting(&mut BytesMut::from(&to_bytes(frame)[..])).unwrap_err();
    let want = DecodeError::Unexpected { frame_type: 6, expected: FrameType::ServerKey };
    assert_eq!(greeting(&Frame::KeepAlive), HandshakeError::Frame(want));
    assert_eq!(greeting(&Frame::ServerKey { key: NodePublic::default() }), HandshakeError::LowOrderKey);
    let (_, server_key) = server();
    let fast = || client().fast_start(server_key).unwrap().1;
    let want = DecodeError::Unexpected { frame_type: 6, expected: FrameType::ServerInfo };
    assert_eq!(read_server_info(fast(), &to_bytes(&Frame::KeepAlive)).unwrap_err(), HandshakeError::Frame(want));
    let garbage = Frame::ServerInfo { sealed: Bytes::from(vec![1; 53]) };
    assert_eq!(read_server_info(fast(), &to_bytes(&garbage)).unwrap_err(), HandshakeError::Box(OpenError));
}

#[test]
fn debug_output_of_every_phase_hides_secrets() {
    let (private, mesh_key) = (NodePrivate::generate(), MeshKey::generate());
    let keys = MeshKeys { current: Some(mesh_key.clone()), previous: None };
    let (server, key) = server_with(keys);
    let info = ClientInfo { mesh_key: Some(mesh_key.clone()), ..ClientInfo::current() };
    let client = ClientHandshake::new(private.clone(), info);
    let mut shown = format!("{server:?} {client:?}");
    let (bytes, client) = client.fast_start(key).unwrap();
    let pending = login(server, &bytes).unwrap();
    shown += &format!("{client:?} {pending:?}");
    let (_, session) = pending.accept(&ServerInfo::current());
    shown += &format!("{session:?}");
    assert!(!shown.contains(&mesh_key.expose_hex()) && !shown.contains(&private.expose_text()[8..]));
    assert!(shown.matches("redacted").count() >= 5);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn a_login_is_the_same_at_any_split(cut in any::<prop::sample::Index>()) {
        let (server, key) = server();
        let (bytes, _) = ClientHandshake::new(NodePrivate::generate(), ClientInfo::current()).fast_start(key).unwrap();
        let cut = cut.index(bytes.len());
        let mut buf = BytesMut::from(&bytes[..cut]);
        let Step::More(server) = server.read_login(&mut buf).unwrap() else { panic!("the login is cut off") };
        buf.extend_from_slice(&bytes[cut..]);
        prop_assert_eq!(done(server.read_login(&mut buf).unwrap()).login().info.version, 2);
    }

    #[test]
    fn a_changed_login_is_refused_or_still_waits(at in any::<prop::sample::Index>(), bit in 0_u8..8) {
        let (server, key) = server();
        let (bytes, _) = ClientHandshake::new(NodePrivate::generate(), ClientInfo::current()).fast_start(key).unwrap();
        let mut bytes = BytesMut::from(&bytes[..]);
        let at = at.index(bytes.len());
        bytes[at] ^= 1_u8 << bit;
        prop_assert!(!matches!(server.read_login(&mut bytes), Ok(Step::Done(_))));
    }
}
