#![allow(clippy::unwrap_used, reason = "tests")]

use tokio::io::{AsyncReadExt, DuplexStream, duplex};

use super::*;

const MASK: [u8; 4] = [9, 8, 7, 6];

/// A client's frame with a payload of at most 65535 bytes.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    if payload.len() < 126 {
        frame.push(0x80 | payload.len() as u8);
    } else {
        frame.push(0xFE);
        frame.extend_from_slice(&(payload.len() as u16).to_be_bytes());
    }
    frame.extend_from_slice(&MASK);
    frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

fn pair(room: usize) -> (DuplexStream, WebSocketStream<DuplexStream>) {
    let (client, server) = duplex(room);
    (client, WebSocketStream::new(server, BytesMut::new()).unwrap())
}

async fn read_exactly(client: &mut DuplexStream, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    client.read_exact(&mut bytes).await.unwrap();
    bytes
}

#[test]
fn the_answer_holds_the_digest_of_the_rfcs_example() {
    let answer = |speaks_derp| {
        switching_protocols(&Handshake { key: "dGhlIHNhbXBsZSBub25jZQ==".into(), speaks_derp }, std::time::UNIX_EPOCH)
    };
    assert_eq!(
        answer(true),
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Protocol: derp\r\n\
         Date: Thu, 01 Jan 1970 00:00:00 GMT\r\n\r\n"
    );
    assert!(!answer(false).contains("Sec-WebSocket-Protocol"));
}

#[tokio::test]
async fn payload_is_one_stream_in_and_one_message_a_write_out() {
    let (mut client, server) = duplex(1 << 20);
    let mut stream = WebSocketStream::new(server, BytesMut::from(&frame(0x82, b"early ")[..])).unwrap();
    let bytes = [frame(0x02, b"in "), frame(0x80, b"two frames "), frame(0x8A, b"pong"), frame(0x82, &[7; 40_000])].concat();
    client.write_all(&bytes).await.unwrap();
    let mut payload = vec![0; 6 + 14 + 40_000];
    stream.read_exact(&mut payload).await.unwrap();
    assert_eq!((&payload[..20], &payload[20..]), (&b"early in two frames "[..], &[7; 40_000][..]));

    stream.write_all(b"answer").await.unwrap();
    stream.write_all(&[5; 66_000]).await.unwrap();
    stream.flush().await.unwrap();
    assert_eq!(read_exactly(&mut client, 8).await, b"\x82\x06answer");
    // Stock clients take no longer messages than these.
    for (header, len) in [(&b"\x82\x7e\x80\x00"[..], 32_768), (b"\x82\x7e\x80\x00", 32_768), (b"\x82\x7e\x01\xd0", 464)] {
        assert_eq!(read_exactly(&mut client, 4).await, header);
        assert_eq!(read_exactly(&mut client, len).await, vec![5; len]);
    }
}

#[tokio::test]
async fn a_message_survives_a_transport_that_takes_little_at_a_time() {
    let (mut client, stream) = pair(3);
    let (_reading, mut writing) = tokio::io::split(stream);
    let write = async {
        writing.write_all(&[1; 300]).await.unwrap();
        writing.write_all(b"x").await.unwrap();
        writing.flush().await.unwrap();
    };
    let (bytes, ()) = tokio::join!(read_exactly(&mut client, 4 + 300 + 3), write);
    assert_eq!((&bytes[..4], &bytes[304..]), (&b"\x82\x7e\x01\x2c"[..], &b"\x82\x01x"[..]));
}

#[tokio::test]
async fn a_ping_is_answered_at_once_and_never_inside_a_message() {
    let (mut client, stream) = pair(64);
    let (mut reading, mut writing) = tokio::io::split(stream);
    client.write_all(&[frame(0x89, b"idle"), frame(0x82, b"a")].concat()).await.unwrap();
    assert_eq!(reading.read_u8().await.unwrap(), b'a');
    assert_eq!(read_exactly(&mut client, 6).await, b"\x8a\x04idle");

    // Nobody reads, so the message stays unfinished while the next ping is read.
    let write = async {
        writing.write_all(&[1; 100]).await.unwrap();
        writing.write_all(b"next").await.unwrap();
    };
    let talk = async {
        client.write_all(&[frame(0x89, b"busy"), frame(0x82, b"b")].concat()).await.unwrap();
        assert_eq!(reading.read_u8().await.unwrap(), b'b');
        read_exactly(&mut client, 2 + 100 + 6 + 6).await
    };
    let ((), bytes) = tokio::join!(write, talk);
    assert_eq!((&bytes[..2], &bytes[102..]), (&b"\x82\x64"[..], &b"\x8a\x04busy\x82\x04next"[..]));
}

#[tokio::test]
async fn a_close_is_echoed_and_is_the_end() {
    for (payload, orderly) in [(&b"\x03\xe8"[..], true), (b"\x03\xe9", true), (b"", true), (b"\x03\xf3", false)] {
        let (mut client, mut stream) = pair(64);
        client.write_all(&[frame(0x82, b"x"), frame(0x88, payload)].concat()).await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), b'x');
        let mut rest = Vec::new();
        assert_eq!(stream.read_to_end(&mut rest).await.is_ok(), orderly, "{payload:?}");
        assert_eq!(read_exactly(&mut client, 2 + payload.len()).await, [&[0x88, payload.len() as u8], payload].concat());
        stream.shutdown().await.unwrap();
        client.read_to_end(&mut rest).await.unwrap();
        assert!(rest.is_empty(), "one close is enough");
    }
}

#[tokio::test]
async fn text_and_nonsense_are_answered_with_their_code() {
    for (bytes, code) in [(frame(0x81, b"text"), b"\x88\x02\x03\xeb"), (vec![0x82, 1, b'x'], b"\x88\x02\x03\xea")] {
        let (mut client, mut stream) = pair(64);
        client.write_all(&bytes).await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(read_exactly(&mut client, 4).await, code);
    }
}

#[tokio::test]
async fn an_end_inside_a_message_is_an_error_and_ours_says_normal() {
    let (mut client, mut stream) = pair(64);
    client.write_all(&frame(0x02, b"x")).await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(stream.read_u8().await.unwrap(), b'x');
    assert_eq!(stream.read_u8().await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    stream.shutdown().await.unwrap();
    let mut bytes = Vec::new();
    client.read_to_end(&mut bytes).await.unwrap();
    assert_eq!(bytes, b"\x88\x02\x03\xe8");
}

#[tokio::test]
async fn a_client_without_the_subprotocol_is_told_so() {
    let (mut client, mut server) = duplex(64);
    refuse(&mut server).await.unwrap();
    assert_eq!(read_exactly(&mut client, 4).await, b"\x88\x02\x03\xf0");
}
