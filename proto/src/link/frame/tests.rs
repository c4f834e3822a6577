#![allow(clippy::unwrap_used, reason = "tests")]

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::testing::{decode_pieces, link_frame, packet, with_cuts};

fn to_bytes(frame: &LinkFrame) -> BytesMut {
    let mut out = BytesMut::new();
    encode(frame, &mut out).unwrap();
    out
}

fn decode_one(bytes: &[u8]) -> Result<Option<LinkFrame>, LinkError> {
    LinkDecoder::new().decode(&mut BytesMut::from(bytes))
}

fn sample() -> Packet {
    let mut path = Path::default();
    path.push(NodeId(1)).unwrap();
    path.push(NodeId(2)).unwrap();
    Packet {
        src: NodePublic::from_bytes([1; 32]),
        dst: NodePublic::from_bytes([2; 32]),
        class: Class::Data,
        payload: Bytes::from_static(b"payload"),
        route: Some(Route {
            origin: NodeId(1),
            target: NodeId(3),
            rank_used: Rank { clock_us: 4, node: NodeId(3) },
            redirects: 0,
            path,
            from_derper: false,
            trace: None,
        }),
    }
}

/// Offsets into an encoded packet frame.
const CLASS_AT: usize = LINK_HEADER_LEN + 64;
const FLAGS_AT: usize = CLASS_AT + 1;
const REDIRECTS_AT: usize = CLASS_AT + 2;
const PATH_LEN_AT: usize = CLASS_AT + 3;
const PATH_AT: usize = LINK_HEADER_LEN + LINK_PACKET_FIXED_LEN;

#[test]
fn each_bad_field_of_a_packet_is_refused_by_name() {
    let good = to_bytes(&LinkFrame::Packet(sample()));
    let with = |changes: &[(usize, u8)]| {
        let mut bytes = good.clone();
        for (at, value) in changes {
            bytes[*at] = *value;
        }
        decode_one(&bytes)
    };
    let zero_source: Vec<_> = (LINK_HEADER_LEN..LINK_HEADER_LEN + 32).map(|at| (at, 0)).collect();
    let length = |len| LinkError::Length { frame_type: LinkFrameType::Packet, len };
    let cases = [
        (with(&zero_source), LinkError::ZeroSource),
        (with(&[(CLASS_AT, 2)]), LinkError::Class(2)),
        (with(&[(FLAGS_AT, 4)]), LinkError::Flags(4)),
        (with(&[(REDIRECTS_AT, 3)]), LinkError::Redirects(3)),
        (with(&[(PATH_LEN_AT, 0)]), LinkError::PathLength(0)),
        (with(&[(PATH_LEN_AT, 6)]), LinkError::PathLength(6)),
        (with(&[(PATH_AT + 15, 1)]), LinkError::PathLoop),
        // 7 bytes of payload are no third node and no trace context.
        (with(&[(PATH_LEN_AT, 3)]), length(123)),
        (with(&[(FLAGS_AT, FLAG_TRACE)]), length(123)),
        (with(&[(0, 1)]), LinkError::TooLong((1 << 24) + 123)),
    ];
    for (got, want) in cases {
        assert_eq!(got, Err(want), "{}", want.reason());
    }
}

#[test]
fn a_trace_context_needs_a_trace_id() {
    let mut packet = sample();
    packet.route.as_mut().unwrap().trace = Some(TraceContext { trace_id: [0; 16], span_id: [1; 8] });
    assert_eq!(decode_one(&to_bytes(&LinkFrame::Packet(packet))), Err(LinkError::ZeroTrace));
}

#[test]
fn lengths_are_judged_one_byte_around_each_limit() {
    let fixed = [
        (LinkFrameType::Hello, HELLO_LEN),
        (LinkFrameType::Stale, STALE_LEN),
        (LinkFrameType::Ping, PING_LEN),
        (LinkFrameType::Pong, PING_LEN),
        (LinkFrameType::KeepAlive, 0),
    ];
    let header = |frame_type: LinkFrameType, len: usize| {
        let mut out = BytesMut::new();
        put_header(frame_type, len, &mut out);
        LinkDecoder::new().decode(&mut out)
    };
    for (frame_type, len) in fixed {
        for wrong in [len.wrapping_sub(1), len + 1].into_iter().filter(|n| *n < usize::MAX) {
            let want = LinkError::Length { frame_type, len: u32::try_from(wrong).unwrap() };
            assert_eq!(header(frame_type, wrong), Err(want));
        }
    }
    assert_eq!(header(LinkFrameType::Packet, LINK_BODY_LEN_MAX), Ok(None));
    assert!(matches!(header(LinkFrameType::Packet, LINK_BODY_LEN_MAX + 1), Err(LinkError::TooLong(_))));
    assert!(matches!(header(LinkFrameType::Packet, LINK_PACKET_FIXED_LEN - 1), Err(LinkError::Length { .. })));
}

#[test]
fn the_largest_packet_passes_and_one_byte_more_does_not() {
    let mut packet = sample();
    packet.payload = Bytes::from(vec![0; PACKET_LEN_MAX]);
    let frame = LinkFrame::Packet(packet.clone());
    assert_eq!(decode_one(&to_bytes(&frame)), Ok(Some(frame)));
    packet.payload = Bytes::from(vec![0; PACKET_LEN_MAX + 1]);
    let over = decode_one(&to_bytes(&LinkFrame::Packet(packet)));
    assert_eq!(over, Err(LinkError::PayloadTooLong(PACKET_LEN_MAX + 1)));
}

#[test]
fn hello_of_another_version_or_an_impossible_stripe_is_refused() {
    let mut hello = Hello::new(NodeId(1), Epoch(1), 1, 2);
    hello.version = 2;
    assert_eq!(decode_one(&to_bytes(&LinkFrame::Hello(hello))), Err(LinkError::Version(2)));
    for (stripe, stripes) in [(2, 2), (0, 0)] {
        let hello = Hello::new(NodeId(1), Epoch(1), stripe, stripes);
        assert_eq!(decode_one(&to_bytes(&LinkFrame::Hello(hello))), Err(LinkError::Stripe { stripe, stripes }));
    }
}

#[test]
fn a_packet_without_a_route_does_not_travel() {
    let mut out = BytesMut::new();
    assert_eq!(encode(&LinkFrame::Packet(Packet { route: None, ..sample() }), &mut out), Err(MissingRoute));
    assert!(out.is_empty());
}

#[test]
fn unknown_frames_are_skipped_without_being_kept() {
    let mut decoder = LinkDecoder::new();
    let mut buf = BytesMut::from(&[0, 0, 0x10, 0, 99][..]);
    for _ in 0..4 {
        assert_eq!(decoder.decode(&mut buf), Ok(None));
        assert!(buf.is_empty() && !decoder.at_boundary(&buf));
        buf.extend_from_slice(&[0; 1024]);
    }
    encode(&LinkFrame::KeepAlive, &mut buf).unwrap();
    assert_eq!(decoder.decode(&mut buf), Ok(Some(LinkFrame::KeepAlive)));
    assert_eq!((decoder.take_skipped(), decoder.take_skipped()), (1, 0));
}

proptest! {
    #[test]
    fn frames_round_trip_at_any_split(frames in vec(link_frame(), 0..8), cuts in vec(any::<prop::sample::Index>(), 0..12)) {
        let mut bytes = BytesMut::new();
        for frame in &frames {
            encode(frame, &mut bytes).unwrap();
        }
        let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        cuts.sort_unstable();
        let mut decoder = LinkDecoder::new();
        let (decoded, rest, error) = decode_pieces(&bytes, &cuts, |buf| decoder.decode(buf));
        prop_assert_eq!((decoded, error), (frames, None));
        prop_assert!(decoder.at_boundary(&rest));
    }

    #[test]
    fn a_packets_header_has_the_length_it_says(packet in packet()) {
        let route = packet.route.unwrap();
        let mut header = BytesMut::new();
        encode_packet_header(&packet, &route, &mut header);
        prop_assert_eq!(header.len(), packet_header_len(&route));
        let whole = to_bytes(&LinkFrame::Packet(packet.clone()));
        prop_assert_eq!(&whole[..header.len()], &header[..]);
        prop_assert_eq!(&whole[header.len()..], &packet.payload[..]);
    }

    #[test]
    fn any_split_of_any_bytes_decodes_the_same((bytes, cuts) in with_cuts(hostile_bytes())) {
        let (mut whole, mut split) = (LinkDecoder::new(), LinkDecoder::new());
        let at_once = decode_pieces(&bytes, &[], |buf| whole.decode(buf));
        let in_pieces = decode_pieces(&bytes, &cuts, |buf| split.decode(buf));
        prop_assert_eq!((&at_once.0, &at_once.2), (&in_pieces.0, &in_pieces.2));
    }
}

/// Arbitrary bytes, and good frames of which one byte is changed.
fn hostile_bytes() -> impl Strategy<Value = Vec<u8>> {
    let changed = (vec(link_frame(), 1..4), any::<prop::sample::Index>(), any::<u8>()).prop_map(|(frames, at, value)| {
        let mut bytes: Vec<u8> = frames.iter().flat_map(to_bytes).collect();
        let at = at.index(bytes.len());
        bytes[at] = value;
        bytes
    });
    prop_oneof![vec(any::<u8>(), 0..400), changed]
}
