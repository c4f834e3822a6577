#![allow(clippy::unwrap_used, reason = "tests")]

use bytes::BytesMut;
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// A client's frame: first byte as given, masked, length in its shortest form.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match payload.len() {
        len @ 0..126 => frame.push(MASKED | len as u8),
        len @ 126..=0xFFFF => {
            frame.push(MASKED | 126);
            frame.extend_from_slice(&(len as u16).to_be_bytes());
        }
        len => {
            frame.push(MASKED | 127);
            frame.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
    frame.extend_from_slice(&MASK);
    frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

fn binary(payload: &[u8]) -> Vec<u8> {
    frame(FIN | BINARY, payload)
}

/// Decodes `bytes` in pieces of `len`.
fn decode(decoder: &mut Decoder, bytes: &[u8], len: usize) -> Result<Vec<u8>, FrameError> {
    let mut stream = Vec::new();
    for piece in bytes.chunks(len) {
        let mut piece = piece.to_vec();
        let payload = decoder.decode(&mut piece)?;
        stream.extend_from_slice(&piece[..payload]);
    }
    Ok(stream)
}

fn one(bytes: &[u8]) -> Result<Vec<u8>, FrameError> {
    decode(&mut Decoder::default(), bytes, usize::MAX)
}

#[test]
fn the_example_of_the_rfc_unmasks() {
    let hello = [0x82, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
    assert_eq!(one(&hello), Ok(b"Hello".to_vec()));
}

#[test]
fn large_messages_and_fragments_are_one_stream() {
    let large: Vec<u8> = (0..70_000u32).map(|n| n as u8).collect();
    let bytes = [
        binary(&large),
        frame(BINARY, b"ab"),
        frame(FIN | PING, b"between fragments"),
        frame(CONTINUATION, b""),
        frame(FIN | CONTINUATION, b"c"),
        binary(b""),
        binary(b"d"),
    ]
    .concat();
    for len in [1, 7, 4096, usize::MAX] {
        let mut decoder = Decoder::default();
        let stream = decode(&mut decoder, &bytes, len).unwrap();
        assert_eq!((&stream[..70_000], &stream[70_000..]), (&large[..], &b"abcd"[..]));
        assert_eq!(decoder.take_pong().as_deref(), Some(&b"between fragments"[..]));
        assert!(decoder.take_pong().is_none() && decoder.is_at_border() && decoder.closed().is_none());
    }
}

#[test]
fn a_close_ends_the_stream_with_its_code() {
    for (payload, code, orderly) in [
        (&b"\x03\xe8bye"[..], CloseCode::NORMAL, true),
        (b"\x03\xe9", CloseCode::GOING_AWAY, true),
        (b"", CloseCode::NONE, true),
        (b"\x03\xf3", CloseCode(1011), false),
        (b"\x0f\xa0", CloseCode(4000), false),
    ] {
        let mut decoder = Decoder::default();
        let bytes = [binary(b"x"), frame(FIN | CLOSE, payload), binary(b"y")].concat();
        assert_eq!(decode(&mut decoder, &bytes, 5), Ok(b"x".to_vec()), "what follows is nothing");
        assert_eq!((decoder.closed(), code.is_orderly()), (Some(code), orderly));
    }
}

#[test]
fn what_the_protocol_forbids_is_refused() {
    let long = [&[FIN | BINARY, MASKED | 127, 0x80][..], &[0; 11]].concat();
    for (what, bytes, error) in [
        ("text", frame(FIN | TEXT, b"x"), FrameError::Text),
        ("unmasked", vec![FIN | BINARY, 1, b'x'], FrameError::Protocol),
        ("compressed", frame(FIN | 0x40 | BINARY, b"x"), FrameError::Protocol),
        ("unknown kind", frame(FIN | 0x3, b"x"), FrameError::Protocol),
        ("unknown control", frame(FIN | 0xB, b""), FrameError::Protocol),
        ("continuation of nothing", frame(FIN | CONTINUATION, b"x"), FrameError::Protocol),
        ("message in a message", [frame(BINARY, b"x"), binary(b"y")].concat(), FrameError::Protocol),
        ("fragmented control", frame(PING, b"x"), FrameError::Protocol),
        ("long control", frame(FIN | PING, &[0; 126]), FrameError::Protocol),
        ("length of 2^63", long, FrameError::Protocol),
        ("close of one byte", frame(FIN | CLOSE, b"\x03"), FrameError::Protocol),
        ("close with a code that is never sent", frame(FIN | CLOSE, b"\x03\xed"), FrameError::Protocol),
        ("close with a reason that is no text", frame(FIN | CLOSE, b"\x03\xe8\xff"), FrameError::Protocol),
    ] {
        assert_eq!(one(&bytes), Err(error), "{what}");
    }
    assert_eq!((FrameError::Text.close_code().0, FrameError::Protocol.close_code().0), (1003, 1002));
}

#[test]
fn our_own_frames_have_the_shortest_header_and_no_mask() {
    for (len, header) in [
        (0, &b"\x82\x00"[..]),
        (125, b"\x82\x7d"),
        (126, b"\x82\x7e\x00\x7e"),
        (65_535, b"\x82\x7e\xff\xff"),
        (65_536, b"\x82\x7f\0\0\0\0\0\x01\0\0"),
    ] {
        assert_eq!(MessageHeader::new(len).as_bytes(), header, "{len}");
    }
    assert_eq!(pong(b"ab"), b"\x8a\x02ab");
    assert_eq!((close(CloseCode::POLICY), close(CloseCode::NONE)), (b"\x88\x02\x03\xf0".to_vec(), b"\x88\x00".to_vec()));
}

#[test]
fn a_handshake_is_checked_part_by_part() {
    let good = "GET /derp HTTP/1.1\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: chat, derp\r\n\r\n";
    let check = |text: &str| Handshake::of(&RequestHead::take(&mut BytesMut::from(text)).unwrap().unwrap());
    assert_eq!(check(good), Ok(Handshake { key: "dGhlIHNhbXBsZSBub25jZQ==".into(), speaks_derp: true }));
    assert!(!check(&good.replace("chat, derp", "derpy")).unwrap().speaks_derp);
    for (part, instead, error) in [
        ("HTTP/1.1", "HTTP/1.0", HandshakeError::Version),
        ("keep-alive, Upgrade", "keep-alive", HandshakeError::Connection),
        ("GET", "POST", HandshakeError::Method),
        ("Version: 13", "Version: 8", HandshakeError::ProtocolVersion),
        ("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", "", HandshakeError::Key),
        ("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZQ==", HandshakeError::Key),
        ("dGhlIHNhbXBsZSBub25jZQ==", "not base64", HandshakeError::Key),
        ("Upgrade: websocket\r\n", "Upgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", HandshakeError::Key),
    ] {
        assert_eq!(check(&good.replace(part, instead)), Err(error), "{instead}");
    }
}

proptest! {
    #[test]
    fn a_stream_is_the_same_whatever_its_messages_and_pieces(
        messages in vec(vec(any::<u8>(), 0..300), 0..6),
        piece in 1..200usize,
    ) {
        let bytes: Vec<u8> = messages.iter().flat_map(|message| binary(message)).collect();
        prop_assert_eq!(decode(&mut Decoder::default(), &bytes, piece), Ok(messages.concat()));
    }

    #[test]
    fn arbitrary_bytes_decode_alike_in_any_pieces_and_never_panic(bytes in vec(any::<u8>(), 0..300), piece in 1..40usize) {
        let (mut whole, mut split) = (Decoder::default(), Decoder::default());
        let (a, b) = (decode(&mut whole, &bytes, usize::MAX), decode(&mut split, &bytes, piece));
        prop_assert_eq!(&a, &b);
        if a.is_ok() {
            prop_assert_eq!(whole.take_pong(), split.take_pong());
            prop_assert_eq!(whole.closed(), split.closed());
        }
    }
}
