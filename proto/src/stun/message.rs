//! Binding requests and their answers, from and to bytes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::fingerprint::fingerprint;
use crate::codec::{Reader, UnexpectedEnd};
use crate::limits::STUN_RESPONSE_LEN_MAX;

const BINDING_REQUEST: u16 = 0x0001;
const BINDING_SUCCESS: u16 = 0x0101;
const MAGIC_COOKIE: u32 = 0x2112_a442;
const HEADER_LEN: usize = 20;

const ATTRIBUTE_MAPPED_ADDRESS: u16 = 0x0001;
const ATTRIBUTE_XOR_MAPPED_ADDRESS: u16 = 0x0020;
/// Same content, used by very old servers.
const ATTRIBUTE_XOR_MAPPED_ADDRESS_ALT: u16 = 0x8020;
const ATTRIBUTE_SOFTWARE: u16 = 0x8022;
const ATTRIBUTE_FINGERPRINT: u16 = 0x8028;

const FAMILY_IPV4: u8 = 1;
const FAMILY_IPV6: u8 = 2;

/// What Tailscale's clients call themselves.
const SOFTWARE: &[u8; 8] = b"tailnode";

/// Length of [`binding_request`].
pub const REQUEST_LEN: usize = 40;

/// Chosen by the client, returned by the server.
pub type TransactionId = [u8; 12];

/// A datagram is not a message that is taken; it gets no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StunError {
    /// No STUN header, or no magic cookie.
    #[error("not a STUN message")]
    NotStun,
    /// STUN of another type.
    #[error("STUN message of type {0:#06x}")]
    Type(u16),
    /// The attributes do not fit into the datagram.
    #[error("malformed STUN attributes")]
    Attributes,
    /// SOFTWARE is missing or another one.
    #[error("SOFTWARE is not that of a Tailscale client")]
    Software,
    /// FINGERPRINT is missing, not last, or wrong.
    #[error("FINGERPRINT is missing, not last, or wrong")]
    Fingerprint,
    /// An answer without a usable address.
    #[error("no mapped address in the answer")]
    NoAddress,
}

impl From<UnexpectedEnd> for StunError {
    fn from(UnexpectedEnd: UnexpectedEnd) -> Self {
        Self::Attributes
    }
}

impl StunError {
    /// Fixed label for counting.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::NotStun => "not_stun",
            Self::Type(_) => "type",
            Self::Attributes => "attributes",
            Self::Software => "software",
            Self::Fingerprint => "fingerprint",
            Self::NoAddress => "no_address",
        }
    }
}

/// The request that every Tailscale client sends.
#[must_use]
pub fn binding_request(transaction: &TransactionId) -> [u8; REQUEST_LEN] {
    let mut request = [0; REQUEST_LEN];
    request[..2].copy_from_slice(&BINDING_REQUEST.to_be_bytes());
    request[3] = 20;
    request[4..8].copy_from_slice(&MAGIC_COOKIE.to_be_bytes());
    request[8..20].copy_from_slice(transaction);
    request[20..22].copy_from_slice(&ATTRIBUTE_SOFTWARE.to_be_bytes());
    request[23] = 8;
    request[24..32].copy_from_slice(SOFTWARE);
    request[32..34].copy_from_slice(&ATTRIBUTE_FINGERPRINT.to_be_bytes());
    request[35] = 4;
    let value = fingerprint(&request[..32]);
    request[36..40].copy_from_slice(&value.to_be_bytes());
    request
}

/// Takes a binding request. With `require_software` off, one of any SOFTWARE or none is taken; FINGERPRINT is always checked.
///
/// # Errors
/// [`StunError`]: no answer.
pub fn parse_binding_request(datagram: &[u8], require_software: bool) -> Result<TransactionId, StunError> {
    let (message_type, transaction, mut attributes) = parse_header(datagram)?;
    if message_type != BINDING_REQUEST {
        return Err(StunError::Type(message_type));
    }
    let mut software = !require_software;
    let mut fingerprint_ok = false;
    while !attributes.is_empty() {
        let covered = &datagram[..datagram.len() - attributes.rest().len()];
        let (kind, value) = take_attribute(&mut attributes)?;
        software |= kind == ATTRIBUTE_SOFTWARE && value == SOFTWARE;
        // Overwritten by each attribute, so that only the last one counts.
        fingerprint_ok = kind == ATTRIBUTE_FINGERPRINT && value == fingerprint(covered).to_be_bytes();
    }
    if !fingerprint_ok {
        return Err(StunError::Fingerprint);
    }
    if software { Ok(transaction) } else { Err(StunError::Software) }
}

/// An encoded answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Response {
    bytes: [u8; STUN_RESPONSE_LEN_MAX],
    len: usize,
}

impl AsRef<[u8]> for Response {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// Answers a binding request that came from `from`: 32 bytes for IPv4, 44 for IPv6. An IPv4-mapped address is answered as IPv4.
#[must_use]
pub fn binding_response(transaction: &TransactionId, from: SocketAddr) -> Response {
    let mut bytes = [0; STUN_RESPONSE_LEN_MAX];
    bytes[..2].copy_from_slice(&BINDING_SUCCESS.to_be_bytes());
    bytes[4..8].copy_from_slice(&MAGIC_COOKIE.to_be_bytes());
    bytes[8..20].copy_from_slice(transaction);
    bytes[20..22].copy_from_slice(&ATTRIBUTE_XOR_MAPPED_ADDRESS.to_be_bytes());
    let port = from.port() ^ cookie_port();
    bytes[26..28].copy_from_slice(&port.to_be_bytes());
    let address_len = match from.ip().to_canonical() {
        IpAddr::V4(ip) => {
            bytes[25] = FAMILY_IPV4;
            bytes[28..32].copy_from_slice(&(ip.to_bits() ^ MAGIC_COOKIE).to_be_bytes());
            4
        }
        IpAddr::V6(ip) => {
            bytes[25] = FAMILY_IPV6;
            bytes[28..44].copy_from_slice(&(ip.to_bits() ^ ipv6_mask(transaction)).to_be_bytes());
            16
        }
    };
    bytes[3] = 4 + 4 + address_len;
    bytes[23] = 4 + address_len;
    Response { bytes, len: HEADER_LEN + 8 + usize::from(address_len) }
}

/// Takes an answer to a binding request: its transaction and our address as the server saw it, IPv4-mapped ones as IPv4.
///
/// # Errors
/// [`StunError`].
pub fn parse_binding_response(datagram: &[u8]) -> Result<(TransactionId, SocketAddr), StunError> {
    let (message_type, transaction, mut attributes) = parse_header(datagram)?;
    if message_type != BINDING_SUCCESS {
        return Err(StunError::Type(message_type));
    }
    let (mut xored, mut plain) = (None, None);
    while !attributes.is_empty() {
        let (kind, value) = take_attribute(&mut attributes)?;
        match kind {
            ATTRIBUTE_XOR_MAPPED_ADDRESS | ATTRIBUTE_XOR_MAPPED_ADDRESS_ALT => {
                xored = xored.or_else(|| read_address(value, cookie_port(), MAGIC_COOKIE, ipv6_mask(&transaction)));
            }
            ATTRIBUTE_MAPPED_ADDRESS => plain = plain.or_else(|| read_address(value, 0, 0, 0)),
            _ => {}
        }
    }
    xored.or(plain).map(|addr| (transaction, addr)).ok_or(StunError::NoAddress)
}

fn parse_header(datagram: &[u8]) -> Result<(u16, TransactionId, Reader<'_>), StunError> {
    let mut reader = Reader::new(datagram);
    let mut header = || Ok::<_, UnexpectedEnd>((reader.u16()?, reader.u16()?, reader.u32()?, reader.array()?));
    // The length is not checked against the datagram's, as upstream does not.
    let Ok((message_type, _length, cookie, transaction)) = header() else {
        return Err(StunError::NotStun);
    };
    if message_type & 0xc000 != 0 || cookie != MAGIC_COOKIE {
        return Err(StunError::NotStun);
    }
    Ok((message_type, transaction, reader))
}

/// Takes one attribute and its padding to 4 bytes.
fn take_attribute<'a>(reader: &mut Reader<'a>) -> Result<(u16, &'a [u8]), UnexpectedEnd> {
    let kind = reader.u16()?;
    let len = usize::from(reader.u16()?);
    let value = reader.bytes(len)?;
    reader.bytes(len.next_multiple_of(4) - len)?;
    Ok((kind, value))
}

fn read_address(value: &[u8], port_mask: u16, ipv4_mask: u32, ipv6_mask: u128) -> Option<SocketAddr> {
    let mut reader = Reader::new(value);
    reader.u8().ok()?;
    let family = reader.u8().ok()?;
    let port = reader.u16().ok()? ^ port_mask;
    let ip = match family {
        FAMILY_IPV4 => IpAddr::V4(Ipv4Addr::from_bits(reader.u32().ok()? ^ ipv4_mask)),
        FAMILY_IPV6 => IpAddr::V6(Ipv6Addr::from_bits(u128::from_be_bytes(reader.array().ok()?) ^ ipv6_mask)),
        _ => return None,
    };
    Some(SocketAddr::new(ip.to_canonical(), port))
}

const fn cookie_port() -> u16 {
    (MAGIC_COOKIE >> 16) as u16
}

fn ipv6_mask(transaction: &TransactionId) -> u128 {
    let mut mask = [0; 16];
    mask[..4].copy_from_slice(&MAGIC_COOKIE.to_be_bytes());
    mask[4..].copy_from_slice(transaction);
    u128::from_be_bytes(mask)
}

#[cfg(test)]
mod tests;
