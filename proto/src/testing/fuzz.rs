//! What the fuzz targets run: each takes arbitrary bytes and fails by a panic, if a decoder panics or breaks a promise.
//!
//! The tests below run the same functions over the committed corpora and over random bytes.

use std::fmt::Debug;
use std::sync::{Arc, LazyLock};

use bytes::BytesMut;

use super::decode_pieces;
use crate::derp::admit::{AdmitAnswer, read_admit_answer};
use crate::derp::decoder::Decoder;
use crate::derp::encoder;
use crate::derp::frame::Frame;
use crate::derp::handshake::Step;
use crate::derp::handshake::server::{MeshKeys, ServerHandshake, ServerIdentity};
use crate::derp::info::{ClientInfo, ServerInfo};
use crate::derp::seal::BoxKey;
use crate::derp::upgrade::{RequestHead, ResponseHead};
use crate::derpmap::DerpMap;
use crate::derpmap::lint::{Level, lint, lint_yaml};
use crate::key::{NodePrivate, NodePublic};
use crate::limits::{HTTP_HEAD_LEN_MAX, HTTP_HEADERS_MAX, PROXY_V1_LEN_MAX, PROXY_V2_BODY_LEN_MAX};
use crate::link::frame::{LinkDecoder, LinkFrame, encode as encode_link};
use crate::presence::{pack_ops, unpack_ops};
use crate::proxy_protocol::ProxyHeader;
use crate::stun::message;
use crate::websocket::{self, Handshake};

/// A fuzz target's body.
pub type Target = fn(&[u8]);

/// All targets by name: `proto/fuzz/fuzz_targets/NAME.rs`, corpus in `proto/fuzz/corpus/NAME`.
pub const TARGETS: [(&str, Target); 12] = [
    ("derp_server_frames", derp_server_frames),
    ("derp_client_frames", derp_client_frames),
    ("login", login),
    ("http_head", http_head),
    ("proxy_header", proxy_header),
    ("websocket", websocket),
    ("admit_answer", admit_answer),
    ("stun", stun),
    ("link_frames", link_frames),
    ("derp_map", derp_map),
    ("derp_map_yaml", derp_map_yaml),
    ("presence_ops", presence_ops),
];

/// The first byte says where the rest is cut; so a fuzzer finds splits that matter.
fn cuts(data: &[u8]) -> (&[u8], Vec<usize>) {
    let Some((step, rest)) = data.split_first() else {
        return (data, Vec::new());
    };
    (rest, (1..rest.len()).step_by(usize::from(*step).max(1)).collect())
}

/// Frames to a server after login: any split decodes the same, and what was decoded is written and read alike.
pub fn derp_server_frames(data: &[u8]) {
    derp_frames(data, Decoder::server);
}

/// Frames to a client: as [`derp_server_frames`].
pub fn derp_client_frames(data: &[u8]) {
    derp_frames(data, Decoder::client);
}

fn derp_frames(data: &[u8], new: fn() -> Decoder) {
    let (bytes, cuts) = cuts(data);
    let (mut whole, mut split) = (new(), new());
    let (frames, _, error) = decode_pieces(bytes, &[], |buf| whole.decode(buf));
    let in_pieces = decode_pieces(bytes, &cuts, |buf| split.decode(buf));
    assert_eq!((&in_pieces.0, &in_pieces.2), (&frames, &error), "a split changes what is decoded");
    let mut again = BytesMut::new();
    for frame in &frames {
        let before = again.len();
        encoder::encode(frame, &mut again);
        assert_eq!(again.len() - before, encoder::encoded_len(frame), "{frame:?}");
    }
    let mut decoder = new();
    assert_reads_back(&frames, &again, |buf| decoder.decode(buf));
}

/// Frames of a link: as [`derp_server_frames`].
pub fn link_frames(data: &[u8]) {
    let (bytes, cuts) = cuts(data);
    let (mut whole, mut split) = (LinkDecoder::new(), LinkDecoder::new());
    let (frames, _, error) = decode_pieces(bytes, &[], |buf| whole.decode(buf));
    let in_pieces = decode_pieces(bytes, &cuts, |buf| split.decode(buf));
    assert_eq!((&in_pieces.0, &in_pieces.2), (&frames, &error), "a split changes what is decoded");
    let mut again = BytesMut::new();
    for frame in &frames {
        encode_link(frame, &mut again).expect("a decoded packet has a route");
        if let LinkFrame::Packet(packet) = frame {
            let path = packet.route.as_ref().map(|route| route.path);
            assert!(path.is_some_and(|path| !path.as_slice().is_empty()), "a packet on a link has visited a node");
        }
    }
    let mut decoder = LinkDecoder::new();
    assert_reads_back(&frames, &again, |buf| decoder.decode(buf));
}

fn assert_reads_back<F: PartialEq + Debug, E: PartialEq + Debug>(
    frames: &[F],
    bytes: &[u8],
    decode: impl FnMut(&mut BytesMut) -> Result<Option<F>, E>,
) {
    let (read, rest, error) = decode_pieces(bytes, &[], decode);
    assert_eq!((&read[..], rest.len(), error), (frames, 0, None), "a written frame does not read back");
}

/// One server and one client for all inputs; making keys is slow.
static LOGIN: LazyLock<(Arc<ServerIdentity>, NodePublic, BoxKey)> = LazyLock::new(|| {
    let client = NodePrivate::from_bytes([0x22; 32]);
    let identity = Arc::new(ServerIdentity::new(NodePrivate::from_bytes([0x11; 32]), MeshKeys::default()));
    let box_key = BoxKey::new(&client, &identity.public());
    (identity, client.public(), box_key)
});

/// A login: the bytes as they are, and as the JSON inside a box that opens.
pub fn login(data: &[u8]) {
    let (identity, key, box_key) = &*LOGIN;
    let read = |bytes: &[u8]| ServerHandshake::new(identity.clone()).read_login(&mut BytesMut::from(bytes));
    if let Ok(Step::Done(pending)) = read(data) {
        assert!(!pending.login().key.is_low_order(), "a key that proves nothing logged in");
    }
    let sealed = box_key.seal_with_nonce(data, &[0; 24]);
    let logged_in = match read(&encoder::to_bytes(&Frame::ClientInfo { key: *key, sealed })) {
        Ok(Step::Done(pending)) => Some(pending.login().info.clone()),
        Ok(Step::More(_)) => panic!("the whole frame is there"),
        Err(_) => None,
    };
    if let Some(info) = &logged_in {
        assert_eq!(ClientInfo::from_json(&info.to_json()).as_ref(), Ok(info));
    }
    if let Ok(info) = ServerInfo::from_json(data) {
        assert_eq!(ServerInfo::from_json(&info.to_json()), Ok(info));
    }
}

/// Heads of HTTP requests and answers: bounded, and what follows is left alone.
pub fn http_head(data: &[u8]) {
    let mut buf = BytesMut::from(data);
    if let Ok(Some(head)) = RequestHead::take(&mut buf) {
        let len = data.len() - buf.len();
        assert!(len <= HTTP_HEAD_LEN_MAX && head.headers.len() <= HTTP_HEADERS_MAX && data.ends_with(&buf));
        assert!(head.upgrade().is_none() || head.header("upgrade").is_some());
        let _ = (head.fast_start(), head.ideal_node(), head.keep_alive());
        drop((head.query_value("q"), Handshake::of(&head)));
        if let Some(client) = head.forwarded_for(|address| address.is_loopback()) {
            assert!(head.header("x-forwarded-for").is_some() && client == client.to_canonical());
        }
        let mut exact = BytesMut::from(&data[..len]);
        assert_eq!(RequestHead::take(&mut exact), Ok(Some(head)), "bytes behind a head change it");
    }
    let mut buf = BytesMut::from(data);
    if let Ok(Some(head)) = ResponseHead::take(&mut buf) {
        assert!(data.len() - buf.len() <= HTTP_HEAD_LEN_MAX && head.headers.len() <= HTTP_HEADERS_MAX);
    }
}

/// A PROXY header and what follows it: any split decodes the same, and what is not taken is left alone.
pub fn proxy_header(data: &[u8]) {
    let (bytes, cuts) = cuts(data);
    let mut whole = BytesMut::from(bytes);
    let at_once = ProxyHeader::take(&mut whole);
    if matches!(at_once, Ok(Some(_))) {
        let len = bytes.len() - whole.len();
        assert!((1..=PROXY_V2_BODY_LEN_MAX + PROXY_V1_LEN_MAX).contains(&len) && bytes.ends_with(&whole));
    } else {
        assert_eq!(whole, bytes);
    }
    let mut pieces = BytesMut::new();
    let mut start = 0;
    for end in cuts.into_iter().chain([bytes.len()]) {
        pieces.extend_from_slice(&bytes[start..end]);
        start = end;
        match ProxyHeader::take(&mut pieces) {
            Ok(None) => {}
            decided => return assert_eq!(decided, at_once, "a split changes what is decoded"),
        }
    }
    assert_eq!(at_once, Ok(None));
}

/// Frames of a WebSocket client: any split strips to the same stream.
pub fn websocket(data: &[u8]) {
    let (bytes, cuts) = cuts(data);
    let strip = |cuts: &[usize]| {
        let (mut decoder, mut stream, mut start) = (websocket::Decoder::default(), Vec::new(), 0);
        for end in cuts.iter().copied().chain([bytes.len()]) {
            let mut piece = bytes[start..end].to_vec();
            start = end;
            match decoder.decode(&mut piece) {
                Ok(len) => stream.extend_from_slice(&piece[..len]),
                Err(error) => return Err(error),
            }
        }
        assert!(stream.len() <= bytes.len());
        Ok((stream, decoder.take_pong(), decoder.closed(), decoder.is_at_border()))
    };
    assert_eq!(strip(&cuts), strip(&[]), "a split changes the stream");
}

/// The answer of an admission URL as it arrives: who is not let in by a part of it is not let in by the whole. The first byte says how long
/// the part is.
pub fn admit_answer(data: &[u8]) {
    let Some((len, answer)) = data.split_first() else {
        return;
    };
    let (part, whole) = (read_admit_answer(&answer[..answer.len().min(usize::from(*len))]), read_admit_answer(answer));
    let is_decided = part != AdmitAnswer::Incomplete;
    assert!(!is_decided || part == AdmitAnswer::Allow || whole != AdmitAnswer::Allow, "{part:?} became {whole:?}");
}

/// STUN requests and answers: what is taken is answered, and answers read back.
pub fn stun(data: &[u8]) {
    let strict = message::parse_binding_request(data, true);
    let lax = message::parse_binding_request(data, false);
    assert!(strict.is_err() || strict == lax, "requiring SOFTWARE takes more than not requiring it");
    if let Ok(transaction) = lax {
        let from = "192.0.2.1:1".parse().expect("an address");
        let response = message::binding_response(&transaction, from);
        assert!(response.as_ref().len() <= data.len().max(44), "an answer may not amplify");
        assert_eq!(message::parse_binding_response(response.as_ref()), Ok((transaction, from)));
    }
    if let Ok((transaction, addr)) = message::parse_binding_response(data) {
        let again = message::binding_response(&transaction, addr);
        assert_eq!(message::parse_binding_response(again.as_ref()), Ok((transaction, addr)));
    }
}

/// A DERP map: what is read is written and read alike, and the linter misses nothing that validation refuses.
pub fn derp_map(data: &[u8]) {
    let faulty = lint(data).iter().any(|finding| finding.level != Level::Note);
    if let Ok(map) = DerpMap::from_json(data) {
        let valid = map.validate();
        assert!(faulty || valid.is_ok(), "the linter must find what validation does");
        let again = DerpMap::from_json(&map.to_json()).expect("what we write is JSON");
        assert_eq!(again.validate(), valid);
        assert_eq!(again.to_json(), map.to_json());
    }
}

/// A DERP map in YAML, as Headscale reads files: judged, whatever it is.
pub fn derp_map_yaml(data: &[u8]) {
    drop(lint_yaml(data));
}

/// Packed operations: what is unpacked packs to the same bytes.
pub fn presence_ops(data: &[u8]) {
    if let Ok(ops) = unpack_ops(data) {
        assert_eq!(pack_ops(&ops), data);
    }
}

#[cfg(test)]
mod tests;
