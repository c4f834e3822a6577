#![allow(clippy::unwrap_used, reason = "tests")]

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::testing::decode_pieces;

fn take(bytes: &[u8]) -> Result<Option<ProxyHeader>, ProxyError> {
    ProxyHeader::take(&mut BytesMut::from(bytes))
}

fn proxied(source: &str, destination: &str) -> Option<ProxyHeader> {
    Some(ProxyHeader::Proxied { source: source.parse().unwrap(), destination: destination.parse().unwrap() })
}

fn v2(command: u8, transport: u8, body: &[u8]) -> Vec<u8> {
    let len = u16::try_from(body.len()).unwrap().to_be_bytes();
    [&V2_SIGNATURE[..], &[command, transport], &len, body].concat()
}

/// A header as a load balancer writes it.
fn encode(version: u8, source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let family = if source.is_ipv4() { "TCP4" } else { "TCP6" };
    if version == 1 {
        let (from, to) = (source.ip(), destination.ip());
        return format!("PROXY {family} {from} {to} {} {}\r\n", source.port(), destination.port()).into_bytes();
    }
    let octets = |address: IpAddr| match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    let ports = [source.port().to_be_bytes(), destination.port().to_be_bytes()].concat();
    let body = [octets(source.ip()), octets(destination.ip()), ports].concat();
    v2(V2_PROXY, if source.is_ipv4() { V2_TCP_IPV4 } else { V2_TCP_IPV6 }, &body)
}

#[test]
fn version_1_names_both_ends() {
    assert_eq!(take(b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n"), Ok(proxied("192.0.2.1:56324", "198.51.100.2:443")));
    assert_eq!(take(b"PROXY TCP6 2001:db8::1 ::1 1 0\r\nrest"), Ok(proxied("[2001:db8::1]:1", "[::1]:0")));
    for line in ["PROXY UNKNOWN\r\n", "PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n"] {
        assert_eq!(take(line.as_bytes()), Ok(Some(ProxyHeader::Local)), "{line}");
    }
}

#[test]
fn version_1_is_exact() {
    for line in [
        "PROXY TCP4 192.0.2.1 198.51.100.2 56324\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.2 56324 443 \r\n",
        "PROXY TCP4  192.0.2.1 198.51.100.2 56324 443\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.2 65536 443\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.2 +1 443\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.2 01 443\r\n",
        "PROXY TCP4 192.0.2.01 198.51.100.2 1 443\r\n",
        "PROXY TCP4 ::1 ::1 1 443\r\n",
        "PROXY TCP6 192.0.2.1 192.0.2.2 1 443\r\n",
        "PROXY UDP4 192.0.2.1 192.0.2.2 1 443\r\n",
        "PROXY \r\n",
        "PROXY unknown\r\n",
        "PROXY TCP4 192.0.2.\u{661} 192.0.2.2 1 443\r\n",
    ] {
        assert_eq!(take(line.as_bytes()), Err(ProxyError::Malformed), "{line}");
    }
    let long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(PROXY_V1_LEN_MAX));
    assert_eq!(take(long.as_bytes()), Err(ProxyError::TooLong));
    let longest = format!("PROXY UNKNOWN {}\r\n", "x".repeat(PROXY_V1_LEN_MAX - 16));
    assert_eq!((longest.len(), take(longest.as_bytes())), (PROXY_V1_LEN_MAX, Ok(Some(ProxyHeader::Local))));
}

#[test]
fn version_2_names_both_ends_and_its_extensions_are_skipped() {
    let mut header = encode(2, "192.0.2.1:5".parse().unwrap(), "192.0.2.2:6".parse().unwrap());
    assert_eq!(take(&header), Ok(proxied("192.0.2.1:5", "192.0.2.2:6")));
    header[15] += 5;
    header.extend_from_slice(b"\x04\x00\x02xyrest");
    let mut buf = BytesMut::from(&header[..]);
    assert_eq!(ProxyHeader::take(&mut buf), Ok(proxied("192.0.2.1:5", "192.0.2.2:6")));
    assert_eq!(&buf[..], b"rest");
}

#[test]
fn a_health_check_and_unknown_ends_are_local() {
    for header in [v2(V2_LOCAL, 0, b""), v2(V2_LOCAL, V2_TCP_IPV4, &[1; 12]), v2(V2_PROXY, 0, b"anything")] {
        assert_eq!(take(&header), Ok(Some(ProxyHeader::Local)));
    }
}

#[test]
fn version_2_refuses_what_it_cannot_mean() {
    for (header, error) in [
        (v2(0x11, V2_TCP_IPV4, &[1; 12]), ProxyError::Malformed),
        (v2(0x22, V2_TCP_IPV4, &[1; 12]), ProxyError::Malformed),
        (v2(V2_PROXY, V2_TCP_IPV4, &[1; 11]), ProxyError::Malformed),
        (v2(V2_PROXY, V2_TCP_IPV6, &[1; 35]), ProxyError::Malformed),
        (v2(V2_PROXY, 0x12, &[1; 12]), ProxyError::NotTcp),
        (v2(V2_PROXY, 0x31, &[1; 216]), ProxyError::NotTcp),
        (v2(V2_PROXY, V2_TCP_IPV4, &[1; PROXY_V2_BODY_LEN_MAX + 1]), ProxyError::TooLong),
    ] {
        assert_eq!(take(&header), Err(error));
    }
    // Judged by the length alone, before anything that long has come.
    let long = v2(V2_PROXY, V2_TCP_IPV4, &[1; PROXY_V2_BODY_LEN_MAX + 1]);
    assert_eq!(take(&long[..V2_FIXED_LEN]), Err(ProxyError::TooLong));
    assert!(take(&v2(V2_PROXY, V2_TCP_IPV4, &[1; PROXY_V2_BODY_LEN_MAX])).unwrap().is_some());
}

#[test]
fn anything_else_is_told_at_its_first_byte() {
    for bytes in [&b"\x16\x03\x01"[..], b"GET / HTTP/1.1\r\n", b"PROXX", b"\r\n\r\n\0\r\nQUIT\r"] {
        assert_eq!(take(bytes), Err(ProxyError::Absent));
        assert!(!ProxyHeader::may_begin(bytes));
    }
    for bytes in [&b""[..], b"P", b"PROXY", b"\r\n\r"] {
        assert_eq!(take(bytes), Ok(None));
        assert!(ProxyHeader::may_begin(bytes));
    }
}

fn ends() -> impl Strategy<Value = (SocketAddr, SocketAddr)> {
    let v4 = || any::<(Ipv4Addr, u16)>().prop_map(SocketAddr::from);
    let v6 = || any::<(Ipv6Addr, u16)>().prop_map(SocketAddr::from);
    prop_oneof![(v4(), v4()), (v6(), v6())]
}

proptest! {
    #[test]
    fn what_is_written_reads_back_in_any_pieces(
        version in 1..=2u8,
        (source, destination) in ends(),
        rest in vec(any::<u8>(), 0..40),
        cuts in vec(0..150usize, 0..6),
    ) {
        let header = encode(version, source, destination);
        let bytes = [&header[..], &rest].concat();
        let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut % (bytes.len() + 1)).collect();
        cuts.sort_unstable();
        let mut taken = false;
        let (headers, left, error) = decode_pieces(&bytes, &cuts, |buf| {
            // A connection has one header; what follows is another protocol.
            if taken {
                return Ok(None);
            }
            let header = ProxyHeader::take(buf)?;
            taken = header.is_some();
            Ok::<_, ProxyError>(header)
        });
        prop_assert_eq!(headers, [ProxyHeader::Proxied { source, destination }]);
        prop_assert_eq!((&left[..], error), (&rest[..], None));
    }

    #[test]
    fn arbitrary_bytes_never_panic_and_are_left_alone_unless_taken(bytes in vec(any::<u8>(), 0..300), version in 0..3u8) {
        let prefix: &[u8] = [&b""[..], V1_PREFIX, &V2_SIGNATURE][usize::from(version)];
        let bytes = [prefix, &bytes].concat();
        let mut buf = BytesMut::from(&bytes[..]);
        match ProxyHeader::take(&mut buf) {
            Ok(Some(_)) => prop_assert!(buf.len() < bytes.len() && bytes.ends_with(&buf)),
            Ok(None) | Err(_) => prop_assert_eq!(&buf[..], &bytes[..]),
        }
    }
}
