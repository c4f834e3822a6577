//! PROXY protocol, versions 1 and 2: the header by which a load balancer in front says whose connection it passes on. Pure bytes;
//! the reader decides from whom it believes one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use bytes::{Buf, BytesMut};

use crate::limits::{PROXY_V1_LEN_MAX, PROXY_V2_BODY_LEN_MAX};

/// What every version 2 header begins with (PROXY protocol section 2.2).
const V2_SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";

/// What every version 1 header begins with.
const V1_PREFIX: &[u8] = b"PROXY ";

/// Signature, version and command, family and transport, length.
const V2_FIXED_LEN: usize = 16;

const V2_LOCAL: u8 = 0x20;
const V2_PROXY: u8 = 0x21;
const V2_UNSPECIFIED: u8 = 0x00;
const V2_TCP_IPV4: u8 = 0x11;
const V2_TCP_IPV6: u8 = 0x21;
const V2_IPV4_LEN: usize = 12;
const V2_IPV6_LEN: usize = 36;

/// Whose connection it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyHeader {
    /// A client's.
    Proxied {
        /// The client.
        source: SocketAddr,
        /// The address it connected to.
        destination: SocketAddr,
    },
    /// The load balancer's own (a health check), or one whose ends it cannot tell: the connection's own address holds.
    Local,
}

/// Bytes are no PROXY header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProxyError {
    /// They begin otherwise.
    #[error("no PROXY header")]
    Absent,
    /// Longer than [`PROXY_V1_LEN_MAX`], or with more than [`PROXY_V2_BODY_LEN_MAX`] behind the fixed part.
    #[error("PROXY header too long")]
    TooLong,
    /// A line or field that the protocol does not have.
    #[error("malformed PROXY header")]
    Malformed,
    /// Another transport than TCP over IP.
    #[error("PROXY header of another transport than TCP")]
    NotTcp,
}

impl ProxyError {
    /// Fixed label for counting.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Absent => "proxy_header_absent",
            Self::TooLong => "proxy_header_too_long",
            Self::Malformed => "proxy_header_malformed",
            Self::NotTcp => "proxy_header_not_tcp",
        }
    }
}

impl ProxyHeader {
    /// Takes a header off the front of `buf`; `None` if more bytes are needed. What follows it stays.
    ///
    /// # Errors
    /// [`ProxyError`]; the connection cannot be used.
    pub fn take(buf: &mut BytesMut) -> Result<Option<Self>, ProxyError> {
        let Some((header, len)) = Self::parse(buf)? else { return Ok(None) };
        buf.advance(len);
        Ok(Some(header))
    }

    fn parse(bytes: &[u8]) -> Result<Option<(Self, usize)>, ProxyError> {
        if begins_alike(bytes, &V2_SIGNATURE) {
            parse_v2(bytes)
        } else if begins_alike(bytes, V1_PREFIX) {
            parse_v1(bytes)
        } else {
            Err(ProxyError::Absent)
        }
    }

    /// Whether bytes begin as a header of either version does, as far as they go.
    #[must_use]
    pub fn may_begin(bytes: &[u8]) -> bool {
        begins_alike(bytes, &V2_SIGNATURE) || begins_alike(bytes, V1_PREFIX)
    }
}

fn begins_alike(bytes: &[u8], prefix: &[u8]) -> bool {
    let len = bytes.len().min(prefix.len());
    bytes[..len] == prefix[..len]
}

fn parse_v1(bytes: &[u8]) -> Result<Option<(ProxyHeader, usize)>, ProxyError> {
    let window = &bytes[..bytes.len().min(PROXY_V1_LEN_MAX)];
    let Some(end) = window.windows(2).position(|pair| pair == b"\r\n") else {
        return if window.len() < PROXY_V1_LEN_MAX { Ok(None) } else { Err(ProxyError::TooLong) };
    };
    let line = window.get(V1_PREFIX.len()..end).ok_or(ProxyError::Malformed)?;
    let line = std::str::from_utf8(line).map_err(|_| ProxyError::Malformed)?;
    Ok(Some((parse_line(line).ok_or(ProxyError::Malformed)?, end + 2)))
}

/// What follows `PROXY `: fields are parted by exactly one space.
fn parse_line(line: &str) -> Option<ProxyHeader> {
    let (family, rest) = line.split_once(' ').unwrap_or((line, ""));
    if family == "UNKNOWN" {
        // The rest of the line says nothing that may be used.
        return Some(ProxyHeader::Local);
    }
    let fields: Vec<&str> = rest.split(' ').collect();
    let [source, destination, source_port, destination_port] = fields[..] else { return None };
    let address = |text: &str| -> Option<IpAddr> {
        match family {
            "TCP4" => text.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
            "TCP6" => text.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
            _ => None,
        }
    };
    let source = SocketAddr::new(address(source)?, parse_port(source_port)?);
    let destination = SocketAddr::new(address(destination)?, parse_port(destination_port)?);
    Some(ProxyHeader::Proxied { source, destination })
}

fn parse_port(text: &str) -> Option<u16> {
    let plain = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    text.parse().ok().filter(|_| plain)
}

fn parse_v2(bytes: &[u8]) -> Result<Option<(ProxyHeader, usize)>, ProxyError> {
    let Some((fixed, rest)) = bytes.split_first_chunk::<V2_FIXED_LEN>() else { return Ok(None) };
    let (command, transport) = (fixed[12], fixed[13]);
    let body_len = usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    if body_len > PROXY_V2_BODY_LEN_MAX {
        return Err(ProxyError::TooLong);
    }
    if !matches!(command, V2_LOCAL | V2_PROXY) {
        return Err(ProxyError::Malformed);
    }
    let Some(body) = rest.get(..body_len) else { return Ok(None) };
    // Behind the addresses stand extensions (TLV); none says whose connection it is.
    let header = match (command, transport) {
        (V2_LOCAL, _) | (V2_PROXY, V2_UNSPECIFIED) => ProxyHeader::Local,
        (_, V2_TCP_IPV4) => ipv4_ends(body.first_chunk().ok_or(ProxyError::Malformed)?),
        (_, V2_TCP_IPV6) => ipv6_ends(body.first_chunk().ok_or(ProxyError::Malformed)?),
        _ => return Err(ProxyError::NotTcp),
    };
    Ok(Some((header, V2_FIXED_LEN + body_len)))
}

fn ipv4_ends(body: &[u8; V2_IPV4_LEN]) -> ProxyHeader {
    let [a, b, c, d, e, f, g, h, ports @ ..] = *body;
    ends(Ipv4Addr::new(a, b, c, d).into(), Ipv4Addr::new(e, f, g, h).into(), ports)
}

fn ipv6_ends(body: &[u8; V2_IPV6_LEN]) -> ProxyHeader {
    let (mut source, mut destination, mut ports) = ([0; 16], [0; 16], [0; 4]);
    source.copy_from_slice(&body[..16]);
    destination.copy_from_slice(&body[16..32]);
    ports.copy_from_slice(&body[32..]);
    ends(Ipv6Addr::from(source).into(), Ipv6Addr::from(destination).into(), ports)
}

fn ends(source: IpAddr, destination: IpAddr, [a, b, c, d]: [u8; 4]) -> ProxyHeader {
    let (source_port, destination_port) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
    ProxyHeader::Proxied {
        source: SocketAddr::new(source, source_port),
        destination: SocketAddr::new(destination, destination_port),
    }
}

#[cfg(test)]
mod tests;
