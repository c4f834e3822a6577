#![allow(clippy::unwrap_used, reason = "tests")]

use std::net::SocketAddr;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::derp::encoder::{encode, encoded_len, forward_packet_header, recv_packet_header, send_packet_header, to_bytes};
use crate::testing::{decode_pieces, frame_to_client, frame_to_server, node_public, payload, with_cuts};

fn header(frame_type: u8, len: usize) -> [u8; 5] {
    let [a, b, c, d] = u32::try_from(len).unwrap().to_be_bytes();
    [frame_type, a, b, c, d]
}

fn frame_of(frame_type: u8, len: usize) -> BytesMut {
    let mut bytes = BytesMut::from(&header(frame_type, len)[..]);
    bytes.resize(5 + len, 7);
    bytes
}

/// What a decoder does with a frame of this type and length.
#[derive(Debug, PartialEq)]
enum Fate {
    Taken,
    SkippedUnknown,
    SkippedMalformed,
    Refused,
}

fn fate(mut decoder: Decoder, frame_type: u8, len: usize) -> Fate {
    let mut buf = frame_of(frame_type, len);
    match decoder.decode(&mut buf) {
        Ok(Some(frame)) => {
            assert_eq!(frame.frame_type() as u8, frame_type);
            assert!(buf.is_empty());
            Fate::Taken
        }
        Ok(None) => {
            assert!(decoder.at_boundary(&buf));
            let skipped = decoder.take_skipped();
            assert_eq!(skipped.unknown + skipped.malformed, 1);
            if skipped.unknown == 1 { Fate::SkippedUnknown } else { Fate::SkippedMalformed }
        }
        Err(_) => Fate::Refused,
    }
}

/// The size rules of `derp.md` section 3: shortest and longest that a server takes.
const SERVER_RULES: [(FrameType, usize, usize); 6] = [
    (FrameType::SendPacket, 32, 32 + 65_536),
    (FrameType::NotePreferred, 1, 1),
    (FrameType::ForwardPacket, 64, 64 + 65_536),
    (FrameType::WatchConns, 0, 0),
    (FrameType::ClosePeer, 32, 32),
    (FrameType::Ping, 8, 1000),
];

#[test]
fn a_server_takes_each_frame_within_its_size_rule_and_refuses_one_byte_beyond() {
    for (frame_type, min, max) in SERVER_RULES {
        let byte = frame_type as u8;
        assert_eq!(fate(Decoder::server(), byte, min), Fate::Taken, "{frame_type:?} of {min}");
        assert_eq!(fate(Decoder::server(), byte, max), Fate::Taken, "{frame_type:?} of {max}");
        assert_eq!(fate(Decoder::server(), byte, max + 1), Fate::Refused, "{frame_type:?} of {}", max + 1);
        if let Some(below) = min.checked_sub(1) {
            assert_eq!(fate(Decoder::server(), byte, below), Fate::Refused, "{frame_type:?} of {below}");
        }
    }
}

#[test]
fn a_server_skips_what_it_does_not_know_up_to_64_kib() {
    let ruled = SERVER_RULES.map(|(frame_type, ..)| frame_type as u8);
    for byte in (0..=u8::MAX).filter(|byte| !ruled.contains(byte) && *byte != FrameType::Pong as u8) {
        assert_eq!(fate(Decoder::server(), byte, 0), Fate::SkippedUnknown, "{byte:#x}");
        assert_eq!(fate(Decoder::server(), byte, 65_536), Fate::SkippedUnknown, "{byte:#x}");
        assert_eq!(fate(Decoder::server(), byte, 65_537), Fate::Refused, "{byte:#x}");
    }
}

#[test]
fn a_server_takes_a_pong_of_a_pings_size_and_skips_others_as_stock_servers_do() {
    let pong = FrameType::Pong as u8;
    for (len, want) in [(7, Fate::SkippedUnknown), (8, Fate::Taken), (1000, Fate::Taken), (1001, Fate::SkippedUnknown)] {
        assert_eq!(fate(Decoder::server(), pong, len), want, "{len}");
    }
    assert_eq!(fate(Decoder::server(), pong, 65_537), Fate::Refused);
}

#[test]
fn a_client_takes_long_frames_skips_short_ones_and_refuses_above_1_mib() {
    let shortest = [
        (FrameType::ServerInfo, 0),
        (FrameType::RecvPacket, 32),
        (FrameType::KeepAlive, 0),
        (FrameType::PeerGone, 32),
        (FrameType::PeerPresent, 32),
        (FrameType::Ping, 8),
        (FrameType::Pong, 8),
        (FrameType::Health, 0),
        (FrameType::Restarting, 8),
    ];
    for byte in 0..=u8::MAX {
        let rule = shortest.iter().find(|(frame_type, _)| *frame_type as u8 == byte);
        assert_eq!(fate(Decoder::client(), byte, (1 << 20) + 1), Fate::Refused, "{byte:#x}");
        let Some(&(frame_type, min)) = rule else {
            assert_eq!(fate(Decoder::client(), byte, 100), Fate::SkippedUnknown, "{byte:#x}");
            continue;
        };
        for len in [min, min + 1, 1 << 20] {
            assert_eq!(fate(Decoder::client(), byte, len), Fate::Taken, "{frame_type:?} of {len}");
        }
        if let Some(below) = min.checked_sub(1) {
            assert_eq!(fate(Decoder::client(), byte, below), Fate::SkippedMalformed, "{frame_type:?} of {below}");
        }
    }
}

#[test]
fn before_login_a_server_takes_client_info_alone_and_a_client_the_greeting_alone() {
    let client_info = FrameType::ClientInfo as u8;
    let login = || Decoder::login(16_384);
    for (len, want) in [(55, Fate::Refused), (56, Fate::Taken), (16_384, Fate::Taken), (16_385, Fate::Refused)] {
        assert_eq!(fate(login(), client_info, len), want, "{len}");
    }
    assert_eq!(fate(Decoder::login(usize::MAX), client_info, 262_144), Fate::Taken);
    assert_eq!(fate(Decoder::login(usize::MAX), client_info, 262_145), Fate::Refused);
    for byte in (0..=u8::MAX).filter(|byte| *byte != client_info) {
        assert_eq!(fate(login(), byte, 56), Fate::Refused, "{byte:#x}");
    }
    let mut greeting = to_bytes(&Frame::ServerKey { key: NodePublic::default() }).to_vec();
    assert_eq!(greeting.len(), 45);
    assert!(matches!(Decoder::greeting().decode(&mut greeting[..].into()), Ok(Some(Frame::ServerKey { .. }))));
    greeting[5] ^= 1;
    assert_eq!(Decoder::greeting().decode(&mut greeting[..].into()), Err(DecodeError::Magic));
    for (len, want) in [(39, true), (1025, true), (1024, false)] {
        let refused = matches!(Decoder::greeting().decode(&mut frame_of(1, len)), Err(DecodeError::Length { .. }));
        assert_eq!(refused, want, "{len}");
    }
}

#[test]
fn a_greeting_may_carry_more_than_the_key() {
    let key = NodePublic::from_bytes([9; 32]);
    let mut bytes = BytesMut::from(&header(1, 1024)[..]);
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(key.as_bytes());
    bytes.resize(5 + 1024, 0xee);
    assert_eq!(Decoder::greeting().decode(&mut bytes), Ok(Some(Frame::ServerKey { key })));
}

#[test]
fn a_length_is_judged_by_the_header_alone() {
    let mut buf = BytesMut::from(&header(FrameType::SendPacket as u8, 65_569)[..]);
    let length = DecodeError::Length { frame_type: FrameType::SendPacket, len: 65_569 };
    assert_eq!(Decoder::server().decode(&mut buf), Err(length));
    let mut buf = BytesMut::from(&header(0x77, u32::MAX as usize)[..]);
    assert_eq!(Decoder::client().decode(&mut buf), Err(DecodeError::TooLong { frame_type: 0x77, len: u32::MAX }));
}

#[test]
fn a_skipped_payload_leaves_the_buffer_as_it_arrives() {
    let mut decoder = Decoder::client();
    let mut buf = BytesMut::from(&header(0x77, 1 << 20)[..]);
    for _ in 0..1024 {
        assert_eq!(decoder.decode(&mut buf), Ok(None));
        assert!(buf.is_empty() && !decoder.at_boundary(&buf));
        buf.extend_from_slice(&[0; 1024]);
    }
    encode(&Frame::KeepAlive, &mut buf);
    assert_eq!(decoder.decode(&mut buf), Ok(Some(Frame::KeepAlive)));
    assert!(decoder.at_boundary(&buf));
    assert_eq!(decoder.take_skipped(), Skipped { unknown: 1, malformed: 0 });
    assert_eq!(decoder.take_skipped(), Skipped::default());
}

#[test]
fn a_payload_is_a_slice_of_the_callers_buffer() {
    let mut buf = BytesMut::with_capacity(4096);
    encode(&Frame::SendPacket { dst: NodePublic::default(), payload: Bytes::from(vec![3; 1000]) }, &mut buf);
    let range = buf.as_ptr_range();
    let Ok(Some(Frame::SendPacket { payload, .. })) = Decoder::server().decode(&mut buf) else {
        panic!("a whole frame is there");
    };
    assert!(range.contains(&payload.as_ptr()));
}

#[test]
fn parts_of_peer_frames_that_are_missing_were_not_told() {
    let peer = NodePublic::from_bytes([5; 32]);
    let addr: SocketAddr = "203.0.113.7:41641".parse().unwrap();
    let full = to_bytes(&Frame::PeerPresent { peer, addr: Some(addr), flags: PresentFlags(0x0c) });
    assert_eq!(full.len(), 5 + 51);
    let cases =
        [(32, None, 0), (41, None, 0), (49, None, 0), (50, Some(addr), 0), (51, Some(addr), 0x0c), (60, Some(addr), 0x0c)];
    for (len, addr, flags) in cases {
        let mut buf = BytesMut::from(&header(0x09, len)[..]);
        buf.extend_from_slice(&full[5..full.len().min(5 + len)]);
        buf.resize(5 + len, 0xee);
        let want = Frame::PeerPresent { peer, addr, flags: PresentFlags(flags) };
        assert_eq!(Decoder::client().decode(&mut buf), Ok(Some(want)), "{len}");
    }
    let mut gone = BytesMut::from(&header(0x08, 32)[..]);
    gone.extend_from_slice(peer.as_bytes());
    let want = Frame::PeerGone { peer, reason: PeerGoneReason::Disconnected };
    assert_eq!(Decoder::client().decode(&mut gone), Ok(Some(want)));
}

#[test]
fn every_byte_but_zero_prefers_and_extra_ping_bytes_are_ignored() {
    for (byte, preferred) in [(0, false), (1, true), (0xff, true)] {
        let mut buf = BytesMut::from(&[0x07, 0, 0, 0, 1, byte][..]);
        assert_eq!(Decoder::server().decode(&mut buf), Ok(Some(Frame::NotePreferred { preferred })));
    }
    let mut buf = frame_of(0x12, 20);
    assert_eq!(Decoder::server().decode(&mut buf), Ok(Some(Frame::Ping { data: [7; 8] })));
}

/// Frames one after the other, as bytes.
fn encoded(frames: &[Frame]) -> Vec<u8> {
    let mut out = BytesMut::new();
    for frame in frames {
        let before = out.len();
        encode(frame, &mut out);
        assert_eq!(out.len() - before, encoded_len(frame), "{frame:?}");
    }
    out.to_vec()
}

/// Headers that look real in front of bytes that do not.
fn hostile_bytes() -> impl Strategy<Value = Vec<u8>> {
    let frame = (0_u8..0x18, 0_u32..1200, vec(any::<u8>(), 0..200)).prop_map(|(frame_type, len, body)| {
        let mut bytes = header(frame_type, len as usize).to_vec();
        bytes.extend_from_slice(&body);
        bytes
    });
    prop_oneof![vec(any::<u8>(), 0..600), vec(frame, 0..8).prop_map(|frames| frames.concat())]
}

proptest! {
    #[test]
    fn frames_to_a_server_round_trip_at_any_split(frames in vec(frame_to_server(), 0..12), cuts in vec(any::<prop::sample::Index>(), 0..12)) {
        check_round_trip(&frames, &cuts, Decoder::server())?;
    }

    #[test]
    fn frames_to_a_client_round_trip_at_any_split(frames in vec(frame_to_client(), 0..12), cuts in vec(any::<prop::sample::Index>(), 0..12)) {
        check_round_trip(&frames, &cuts, Decoder::client())?;
    }

    #[test]
    fn any_split_of_any_bytes_decodes_the_same((bytes, cuts) in with_cuts(hostile_bytes())) {
        for new in [Decoder::server, Decoder::client, Decoder::greeting, || Decoder::login(16_384)] {
            let (mut whole, mut split) = (new(), new());
            let at_once = decode_pieces(&bytes, &[], |buf| whole.decode(buf));
            let in_pieces = decode_pieces(&bytes, &cuts, |buf| split.decode(buf));
            prop_assert_eq!((&at_once.0, &at_once.2), (&in_pieces.0, &in_pieces.2));
            prop_assert_eq!(whole.take_skipped(), split.take_skipped());
        }
    }

    #[test]
    fn packet_headers_equal_the_start_of_whole_frames(src in node_public(), dst in node_public(), payload in payload()) {
        let len = payload.len();
        let recv = to_bytes(&Frame::RecvPacket { src, payload: payload.clone() });
        prop_assert_eq!(&recv[..recv.len() - len], &recv_packet_header(&src, len)[..]);
        let send = to_bytes(&Frame::SendPacket { dst, payload: payload.clone() });
        prop_assert_eq!(&send[..send.len() - len], &send_packet_header(&dst, len)[..]);
        let forward = to_bytes(&Frame::ForwardPacket { src, dst, payload });
        prop_assert_eq!(&forward[..forward.len() - len], &forward_packet_header(&src, &dst, len)[..]);
    }
}

fn check_round_trip(frames: &[Frame], cuts: &[prop::sample::Index], mut decoder: Decoder) -> Result<(), TestCaseError> {
    let bytes = encoded(frames);
    let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
    cuts.sort_unstable();
    let (decoded, rest, error) = decode_pieces(&bytes, &cuts, |buf| decoder.decode(buf));
    prop_assert_eq!(decoded, frames);
    prop_assert_eq!(error, None);
    prop_assert!(decoder.at_boundary(&rest));
    Ok(())
}
