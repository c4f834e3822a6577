#![allow(clippy::unwrap_used, reason = "tests")]

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::testing::with_cuts;

fn request(text: &str) -> Result<Option<RequestHead>, HeadError> {
    RequestHead::take(&mut BytesMut::from(text))
}

fn head(text: &str) -> RequestHead {
    request(text).unwrap().unwrap()
}

#[test]
fn a_stock_clients_request_upgrades_and_what_follows_stays() {
    let mut buf = BytesMut::from(
        "GET /derp HTTP/1.1\r\nHost: relay.test\r\nUser-Agent: Go-http-client/1.1\r\nConnection: Upgrade\r\n\
         Derp-Fast-Start: 1\r\nIdeal-Node: 900a\r\nUpgrade: DERP\r\n\r\n\x02\0\0",
    );
    let head = RequestHead::take(&mut buf).unwrap().unwrap();
    assert_eq!(buf, "\x02\0\0");
    assert_eq!((head.method.as_str(), head.path.as_str(), head.query.as_str()), ("GET", DERP_PATH, ""));
    assert_eq!((head.upgrade(), head.fast_start(), head.ideal_node()), (Some(Upgrade::Derp), true, Some("900a")));
    assert_eq!((head.header("host"), head.header("absent")), (Some("relay.test"), None));
}

#[test]
fn what_counts_as_an_upgrade() {
    let cases = [
        ("Upgrade: derp", Some(Upgrade::Derp)),
        ("upgrade:   dErP  ", Some(Upgrade::Derp)),
        ("Upgrade: websocket", Some(Upgrade::Derp)),
        ("Upgrade: websocket\r\nSec-WebSocket-Protocol: derpy", Some(Upgrade::WebSocket)),
        ("Upgrade: WebSocket\r\nSec-WebSocket-Protocol: chat", Some(Upgrade::Derp)),
        ("Upgrade: WebSocket\r\nSec-WebSocket-Protocol: derp", Some(Upgrade::WebSocket)),
        ("Upgrade: websocket\r\nSec-WebSocket-Protocol: chat\r\nSec-WebSocket-Protocol: x, DERP", Some(Upgrade::WebSocket)),
        ("Upgrade: derp/2", None),
        ("Upgrade: h2c", None),
        ("Connection: Upgrade", None),
    ];
    for (headers, want) in cases {
        for start in ["GET /derp HTTP/1.1", "POST /derp HTTP/1.1", "GET /derp HTTP/1.0"] {
            assert_eq!(head(&format!("{start}\r\n{headers}\r\n\r\n")).upgrade(), want, "{start} {headers}");
        }
    }
}

#[test]
fn only_the_value_1_is_fast_start_and_an_empty_ideal_node_is_none() {
    let with = |header: &str| head(&format!("GET /derp HTTP/1.1\r\n{header}\r\n\r\n"));
    for (value, want) in [("1", true), (" 1 ", true), ("01", false), ("true", false), ("", false)] {
        assert_eq!(with(&format!("Derp-Fast-Start: {value}")).fast_start(), want, "{value}");
    }
    assert_eq!(with("Ideal-Node: ").ideal_node(), None);
}

#[test]
fn targets_split_into_path_and_query() {
    let cases = [
        ("/generate_204?t=1", "/generate_204", "t=1"),
        ("/?a?b", "/", "a?b"),
        ("/", "/", ""),
        ("/a#b", "/a", ""),
        ("*", "*", ""),
        ("http://relay.test/derp?q", "/derp", "q"),
        ("http://relay.test", "/", ""),
        ("http://relay.test?q", "/", "q"),
        ("/x://y?z", "/x://y", "z"),
        ("relay.test:443", "relay.test:443", ""),
    ];
    for (target, path, query) in cases {
        let head = head(&format!("GET {target} HTTP/1.1\r\n\r\n"));
        assert_eq!((head.path.as_str(), head.query.as_str()), (path, query), "{target}");
    }
}

#[test]
fn the_client_behind_trusted_proxies_is_the_last_address_they_did_not_write_for_themselves() {
    let trusted = |address: IpAddr| address.to_string().starts_with("10.");
    for (headers, client) in [
        ("", None),
        ("X-Forwarded-For: 192.0.2.1", Some("192.0.2.1")),
        ("X-Forwarded-For: 203.0.113.9, 192.0.2.1, 10.0.0.1", Some("192.0.2.1")),
        ("X-Forwarded-For: 203.0.113.9\r\nx-forwarded-for: 2001:db8::1,10.0.0.2", Some("2001:db8::1")),
        ("X-Forwarded-For: 10.0.0.1, 10.0.0.2", Some("10.0.0.1")),
        ("X-Forwarded-For: 192.0.2.1:8080", Some("192.0.2.1")),
        ("X-Forwarded-For: [2001:db8::1]:8080", Some("2001:db8::1")),
        ("X-Forwarded-For: [2001:db8::1]", Some("2001:db8::1")),
        ("X-Forwarded-For: ::ffff:192.0.2.1", Some("192.0.2.1")),
        ("X-Forwarded-For: 192.0.2.1, unknown", None),
        ("X-Forwarded-For: unknown, 10.0.0.1", Some("10.0.0.1")),
        ("X-Forwarded-For:", None),
    ] {
        let head = head(&format!("GET / HTTP/1.1\r\n{headers}\r\n\r\n").replace("\r\n\r\n\r\n", "\r\n\r\n"));
        assert_eq!(head.forwarded_for(trusted).map(|address| address.to_string()).as_deref(), client, "{headers}");
    }
}

#[test]
fn fields_of_a_query_are_decoded() {
    for (query, value) in [
        ("q=derp.example.com", Some("derp.example.com")),
        ("a=1&q=x&q=y", Some("x")),
        ("%71=a%2Db+c%", Some("a-b c%")),
        ("q=%zz%4", Some("%zz%4")),
        ("q=%ff", Some("\u{fffd}")),
        ("q", Some("")),
        ("", None),
        ("qq=1", None),
    ] {
        let head = head(&format!("GET /?{query} HTTP/1.1\r\n\r\n"));
        assert_eq!(head.query_value("q").as_deref(), value, "{query}");
    }
}

#[test]
fn connections_live_on_as_the_version_says_unless_a_header_says_otherwise() {
    let cases = [
        ("1.1", "X: y", true),
        ("1.1", "Connection: close", false),
        ("1.1", "Connection: upgrade, Close", false),
        ("1.0", "X: y", false),
        ("1.0", "Connection: Keep-Alive", true),
    ];
    for (version, header, want) in cases {
        let head = head(&format!("GET / HTTP/{version}\r\n{header}\r\n\r\n"));
        assert_eq!(head.keep_alive(), want, "{version} {header}");
    }
}

#[test]
fn a_body_whose_length_is_ambiguous_is_refused() {
    let body = |headers: &str| request(&format!("POST / HTTP/1.1\r\n{headers}\r\n\r\n")).map(|head| head.unwrap().body);
    assert_eq!(body("X: y"), Ok(BodyLength::Bytes(0)));
    assert_eq!(body("Content-Length: 12"), Ok(BodyLength::Bytes(12)));
    assert_eq!(body("Content-Length: 12\r\ncontent-length: 12"), Ok(BodyLength::Bytes(12)));
    assert_eq!(body("Transfer-Encoding: chunked"), Ok(BodyLength::Encoded));
    for headers in [
        "Content-Length: 12\r\nContent-Length: 13",
        "Content-Length: +1",
        "Content-Length: ",
        "Content-Length: 1,1",
        "Content-Length: 18446744073709551616",
        "Content-Length: 1\r\nTransfer-Encoding: chunked",
    ] {
        assert_eq!(body(headers), Err(HeadError::AmbiguousLength), "{headers}");
    }
}

#[test]
fn a_head_is_bounded_in_bytes_and_headers() {
    let of_len = |len: usize| {
        let (start, end) = ("GET / HTTP/1.1\r\nX: ", "\r\n\r\n");
        format!("{start}{}{end}", "y".repeat(len - start.len() - end.len()))
    };
    assert!(request(&of_len(HTTP_HEAD_LEN_MAX)).is_ok());
    assert_eq!(request(&of_len(HTTP_HEAD_LEN_MAX + 1)), Err(HeadError::TooLong));
    assert_eq!(request(&of_len(HTTP_HEAD_LEN_MAX + 5)[..HTTP_HEAD_LEN_MAX - 1]), Ok(None));
    assert_eq!(request(&of_len(HTTP_HEAD_LEN_MAX + 5)[..HTTP_HEAD_LEN_MAX]), Err(HeadError::TooLong));
    let with_headers = |n: usize| format!("GET / HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(n));
    assert_eq!(head(&with_headers(HTTP_HEADERS_MAX)).headers.len(), HTTP_HEADERS_MAX);
    assert_eq!(request(&with_headers(HTTP_HEADERS_MAX + 1)), Err(HeadError::TooManyHeaders));
}

#[test]
fn what_is_no_http_1_is_malformed() {
    for text in ["\x16\x03\x01\x02\0\x01", "GET / HTTP/2.0\r\n\r\n", "GET /\r\n\r\n", "GET / HTTP/1.1\r\nno colon\r\n\r\n"] {
        let error = request(text).unwrap_err();
        assert_eq!((error, error.status()), (HeadError::Malformed, 400), "{text:?}");
    }
    assert_eq!(HeadError::TooLong.status(), 431);
}

#[test]
fn the_answer_has_five_lines_and_nothing_else() {
    let key = NodePublic::from_bytes([0xab; 32]);
    let want = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: DERP\r\nConnection: Upgrade\r\nDerp-Version: 2\r\n\
         Derp-Public-Key: {}\r\n\r\n",
        "ab".repeat(32)
    );
    let answer = switching_protocols(&key);
    assert_eq!(answer, want);
    let mut buf = BytesMut::from(&answer[..]);
    buf.extend_from_slice(b"\x01rest");
    let head = ResponseHead::take(&mut buf).unwrap().unwrap();
    assert!(head.switched());
    assert_eq!(head.header("derp-public-key"), Some("ab".repeat(32).as_str()));
    assert_eq!(buf, "\x01rest");
}

#[test]
fn a_client_takes_other_answers_as_answers() {
    let mut buf = BytesMut::from("HTTP/1.1 426 Upgrade Required\r\nContent-Length: 3\r\n\r\nabc");
    let head = ResponseHead::take(&mut buf).unwrap().unwrap();
    assert_eq!((head.status, head.switched(), head.header("Content-Length")), (426, false, Some("3")));
    assert_eq!(ResponseHead::take(&mut BytesMut::from("HTTP/1.1 101 Swi")), Ok(None));
    assert_eq!(ResponseHead::take(&mut BytesMut::from("SSH-2.0-x\r\n")), Err(HeadError::Malformed));
}

#[test]
fn our_request_is_one_that_our_server_takes() {
    let request = UpgradeRequest { host: "relay.test:8443", fast_start: true, ideal_node: Some("900b") };
    let bytes = request.to_bytes().unwrap();
    let head = head(std::str::from_utf8(&bytes).unwrap());
    assert_eq!((head.upgrade(), head.fast_start(), head.ideal_node()), (Some(Upgrade::Derp), true, Some("900b")));
    assert_eq!(head.header("Host"), Some("relay.test:8443"));
    let plain = UpgradeRequest { host: "h", fast_start: false, ideal_node: Some("") }.to_bytes().unwrap();
    assert_eq!(plain, "GET /derp HTTP/1.1\r\nHost: h\r\nUser-Agent: causeway\r\nConnection: Upgrade\r\nUpgrade: DERP\r\n\r\n");
}

#[test]
fn no_value_breaks_out_of_its_line() {
    for host in ["", "a b", "a\r\nX: y", "a\0"] {
        assert!(UpgradeRequest { host, fast_start: false, ideal_node: None }.to_bytes().is_err(), "{host:?}");
    }
    assert!(UpgradeRequest { host: "h", fast_start: false, ideal_node: Some("a\nb") }.to_bytes().is_err());
}

proptest! {
    #[test]
    fn any_split_of_any_bytes_gives_the_same_head((bytes, cuts) in with_cuts(head_like())) {
        let mut whole = BytesMut::from(&bytes[..]);
        let want = RequestHead::take(&mut whole);
        let (mut buf, mut start, mut got) = (BytesMut::new(), 0, Ok(None));
        for end in cuts.into_iter().chain([bytes.len()]) {
            buf.extend_from_slice(&bytes[start..end]);
            start = end;
            if got == Ok(None) {
                got = RequestHead::take(&mut buf);
            }
        }
        // Of two faults the first to arrive is told.
        prop_assert_eq!(got.is_err(), want.is_err());
        if want.is_ok() {
            prop_assert_eq!(got, want);
            prop_assert_eq!(buf, whole);
        }
    }
}

fn head_like() -> impl Strategy<Value = Vec<u8>> {
    let line = "(Upgrade|Connection|Content-Length|[a-z]{1,4})?:? ?(derp|websocket|[ -~]{0,6})\r?\n";
    let like = ("(GET|POST|[A-Z ]{0,3}) [ -~]{1,8} HTTP/1\\.[01]\r\n", vec(line, 0..5))
        .prop_map(|(start, lines)| format!("{start}{}\r\nrest", lines.concat()).into_bytes());
    prop_oneof![like, vec(any::<u8>(), 0..100)]
}
