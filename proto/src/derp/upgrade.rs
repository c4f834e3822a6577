//! HTTP around DERP (`derp.md` section 4.2): heads of requests and of the 101 answer. Pure bytes; used for every HTTP endpoint of a node.

use std::net::{IpAddr, SocketAddr};

use bytes::{Buf, Bytes, BytesMut};

use crate::derp::PROTOCOL_VERSION;
use crate::key::NodePublic;
use crate::limits::{HTTP_HEAD_LEN_MAX, HTTP_HEADERS_MAX};

/// Path of the DERP endpoint.
pub const DERP_PATH: &str = "/derp";

/// A head is not one that is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HeadError {
    /// Longer than [`HTTP_HEAD_LEN_MAX`].
    #[error("HTTP head longer than {HTTP_HEAD_LEN_MAX} bytes")]
    TooLong,
    /// More header lines than [`HTTP_HEADERS_MAX`].
    #[error("more than {HTTP_HEADERS_MAX} HTTP headers")]
    TooManyHeaders,
    /// Not HTTP.
    #[error("not an HTTP/1 head")]
    Malformed,
    /// Two `Content-Length` that differ, one that is no number, or one beside `Transfer-Encoding`.
    #[error("the length of the HTTP body is ambiguous")]
    AmbiguousLength,
}

impl HeadError {
    /// Fixed label for counting.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::TooLong => "http_head_too_long",
            Self::TooManyHeaders => "http_headers_too_many",
            Self::Malformed => "http_malformed",
            Self::AmbiguousLength => "http_length_ambiguous",
        }
    }

    /// Status to answer with before closing.
    #[must_use]
    pub const fn status(&self) -> u16 {
        match self {
            Self::TooLong | Self::TooManyHeaders => 431,
            Self::Malformed | Self::AmbiguousLength => 400,
        }
    }
}

/// What a request asks to upgrade to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upgrade {
    /// `Upgrade: derp`, or `websocket` without the `derp` subprotocol (very old clients): raw frames follow.
    Derp,
    /// `Upgrade: websocket` with a subprotocol in whose name is `derp`.
    WebSocket,
}

/// How a request's body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyLength {
    /// So many bytes follow; 0 if there is none.
    Bytes(u64),
    /// Chunked or otherwise encoded: the connection cannot be used further without decoding it.
    Encoded,
}

/// Head of an HTTP/1.0 or 1.1 request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestHead {
    /// As sent, e.g. `GET`.
    pub method: String,
    /// Target up to the first `?`; of an absolute target only what follows the authority.
    pub path: String,
    /// What follows that `?`; empty if nothing does.
    pub query: String,
    /// 0 or 1.
    pub minor_version: u8,
    /// Names as sent, values without surrounding white space; bytes that are not UTF-8 are replaced.
    pub headers: Vec<(String, String)>,
    /// How the body ends.
    pub body: BodyLength,
}

impl RequestHead {
    /// Takes a request's head off the front of `buf`; `None` if more bytes are needed. What follows the blank line stays.
    ///
    /// # Errors
    /// [`HeadError`].
    pub fn take(buf: &mut BytesMut) -> Result<Option<Self>, HeadError> {
        let mut headers = [httparse::EMPTY_HEADER; HTTP_HEADERS_MAX];
        let mut request = httparse::Request::new(&mut headers);
        let window = &buf[..buf.len().min(HTTP_HEAD_LEN_MAX)];
        let len = match request.parse(window).map_err(head_error)? {
            httparse::Status::Complete(len) => len,
            httparse::Status::Partial => return more_or_too_long(window.len()),
        };
        let (path, query) = split_target(request.path.unwrap_or_default());
        let headers = own_headers(request.headers);
        let head = Self {
            method: request.method.unwrap_or_default().to_owned(),
            path: path.to_owned(),
            query: query.to_owned(),
            minor_version: request.version.unwrap_or_default(),
            body: body_length(&headers)?,
            headers,
        };
        buf.advance(len);
        Ok(Some(head))
    }

    /// The first header of this name, without regard to case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.header_values(name).next()
    }

    /// All headers of this name, without regard to case.
    pub fn header_values(&self, name: &str) -> impl Iterator<Item = &str> {
        self.headers.iter().filter(move |(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// What the request wants to become. No `Connection` header is needed, any method will do.
    #[must_use]
    pub fn upgrade(&self) -> Option<Upgrade> {
        let value = self.header("Upgrade")?;
        if value.eq_ignore_ascii_case("derp") {
            return Some(Upgrade::Derp);
        }
        if !value.eq_ignore_ascii_case("websocket") {
            return None;
        }
        // As stock servers look for it: a subprotocol whose name only holds the word is refused later, as a WebSocket.
        let names_derp = self.header_values("Sec-WebSocket-Protocol").any(|value| value.to_ascii_lowercase().contains("derp"));
        Some(if names_derp { Upgrade::WebSocket } else { Upgrade::Derp })
    }

    /// Whether the client knows the server's key already and sends its login without waiting: no HTTP answer then.
    #[must_use]
    pub fn fast_start(&self) -> bool {
        self.header("Derp-Fast-Start") == Some("1")
    }

    /// Node the client would rather be on; `None` if the header is absent or empty.
    #[must_use]
    pub fn ideal_node(&self) -> Option<&str> {
        self.header("Ideal-Node").filter(|name| !name.is_empty())
    }

    /// The client behind proxies that are trusted: the last address of `X-Forwarded-For` that is not a trusted proxy's own. `None` if
    /// there is no such header, or if its end is no address.
    #[must_use]
    pub fn forwarded_for(&self, is_trusted: impl Fn(IpAddr) -> bool) -> Option<IpAddr> {
        let mut client = None;
        let hops: Vec<&str> = self.header_values("X-Forwarded-For").flat_map(|value| value.split(',')).collect();
        for hop in hops.into_iter().rev() {
            let Some(address) = address_of(hop.trim()) else { break };
            client = Some(address);
            if !is_trusted(address) {
                break;
            }
        }
        client
    }

    /// The first value of a field of the query, `%XX` and `+` decoded; bytes that are not UTF-8 are replaced.
    #[must_use]
    pub fn query_value(&self, name: &str) -> Option<String> {
        let fields = self.query.split('&').map(|field| field.split_once('=').unwrap_or((field, "")));
        fields.into_iter().find(|(key, _)| form_decoded(key) == name).map(|(_, value)| form_decoded(value))
    }

    /// Whether the comma-separated values of a header hold `word`, without regard to case.
    #[must_use]
    pub fn lists(&self, header: &str, word: &str) -> bool {
        self.header_values(header).any(|value| list_contains(value, word))
    }

    /// Whether the connection may serve another request.
    #[must_use]
    pub fn keep_alive(&self) -> bool {
        let says = |word| self.lists("Connection", word);
        if self.minor_version == 0 { says("keep-alive") && !says("close") } else { !says("close") }
    }
}

/// Whether a comma-separated header value holds `word`, without regard to case.
fn list_contains(value: &str, word: &str) -> bool {
    value.split(',').any(|item| item.trim().eq_ignore_ascii_case(word))
}

fn form_decoded(text: &str) -> String {
    let (mut decoded, mut rest) = (Vec::with_capacity(text.len()), text.as_bytes());
    while let [byte, tail @ ..] = rest {
        let hex = tail.first_chunk().filter(|_| *byte == b'%').and_then(|digits| from_hex(*digits));
        decoded.push(match (byte, hex) {
            (_, Some(byte)) => byte,
            (b'+', _) => b' ',
            (byte, None) => *byte,
        });
        rest = &tail[if hex.is_some() { 2 } else { 0 }..];
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

fn from_hex(digits: [u8; 2]) -> Option<u8> {
    let [high, low] = digits.map(|digit| char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok()));
    Some(high? << 4 | low?)
}

/// An address, which may stand in brackets or with a port.
fn address_of(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let address = bare.parse().ok().or_else(|| text.parse().ok().map(|end: SocketAddr| end.ip()))?;
    Some(address.to_canonical())
}

fn split_target(target: &str) -> (&str, &str) {
    let target = match target.split_once("://") {
        Some((scheme, rest)) if !scheme.contains(['/', '?']) => rest.find(['/', '?']).map_or("/", |at| &rest[at..]),
        _ => target,
    };
    let target = target.split_once('#').map_or(target, |(before, _)| before);
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    (if path.is_empty() { "/" } else { path }, query)
}

fn own_headers(headers: &[httparse::Header<'_>]) -> Vec<(String, String)> {
    headers.iter().map(|h| (h.name.to_owned(), String::from_utf8_lossy(h.value).trim().to_owned())).collect()
}

fn body_length(headers: &[(String, String)]) -> Result<BodyLength, HeadError> {
    let values = |name: &'static str| headers.iter().filter(move |(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str());
    let mut length = None;
    for value in values("Content-Length") {
        let digits_only = !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit());
        let bytes = value.parse::<u64>().ok().filter(|_| digits_only).ok_or(HeadError::AmbiguousLength)?;
        if length.is_some_and(|earlier| earlier != bytes) {
            return Err(HeadError::AmbiguousLength);
        }
        length = Some(bytes);
    }
    match (values("Transfer-Encoding").next(), length) {
        (Some(_), Some(_)) => Err(HeadError::AmbiguousLength),
        (Some(_), None) => Ok(BodyLength::Encoded),
        (None, length) => Ok(BodyLength::Bytes(length.unwrap_or(0))),
    }
}

const fn more_or_too_long<T>(seen: usize) -> Result<Option<T>, HeadError> {
    if seen >= HTTP_HEAD_LEN_MAX { Err(HeadError::TooLong) } else { Ok(None) }
}

const fn head_error(error: httparse::Error) -> HeadError {
    match error {
        httparse::Error::TooManyHeaders => HeadError::TooManyHeaders,
        _ => HeadError::Malformed,
    }
}

/// The answer to an upgrade without fast start. To be sent together with the greeting.
#[must_use]
pub fn switching_protocols(server_key: &NodePublic) -> Bytes {
    let answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: DERP\r\nConnection: Upgrade\r\nDerp-Version: {PROTOCOL_VERSION}\r\n\
         Derp-Public-Key: {}\r\n\r\n",
        server_key.to_untyped_hex()
    );
    Bytes::from(answer)
}

/// A client's upgrade request.
#[derive(Clone, Copy, Debug)]
pub struct UpgradeRequest<'a> {
    /// `Host` header: name, and port unless it is the scheme's own.
    pub host: &'a str,
    /// The server's key is known: it shall not answer.
    pub fast_start: bool,
    /// First node of the region, if another one is dialled.
    pub ideal_node: Option<&'a str>,
}

/// A value cannot stand in an HTTP header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} holds characters that cannot stand in an HTTP header")]
pub struct HeaderValueError(&'static str);

impl UpgradeRequest<'_> {
    /// The request's bytes, headers in the order of stock clients.
    ///
    /// # Errors
    /// [`HeaderValueError`] if a value would break out of its header line.
    pub fn to_bytes(&self) -> Result<Bytes, HeaderValueError> {
        let printable = |text: &str| text.bytes().all(|b| (0x20..0x7f).contains(&b));
        if self.host.is_empty() || self.host.contains(' ') || !printable(self.host) {
            return Err(HeaderValueError("the host name"));
        }
        let mut request =
            format!("GET {DERP_PATH} HTTP/1.1\r\nHost: {}\r\nUser-Agent: causeway\r\nConnection: Upgrade\r\n", self.host);
        if self.fast_start {
            request.push_str("Derp-Fast-Start: 1\r\n");
        }
        if let Some(name) = self.ideal_node.filter(|name| !name.is_empty()) {
            if !printable(name) {
                return Err(HeaderValueError("the ideal node's name"));
            }
            request.push_str("Ideal-Node: ");
            request.push_str(name);
            request.push_str("\r\n");
        }
        request.push_str("Upgrade: DERP\r\n\r\n");
        Ok(Bytes::from(request))
    }
}

/// Head of an HTTP answer, as a client reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResponseHead {
    /// Status code.
    pub status: u16,
    /// Names as sent, values without surrounding white space.
    pub headers: Vec<(String, String)>,
}

impl ResponseHead {
    /// Takes an answer's head off the front of `buf`; `None` if more bytes are needed. What follows the blank line stays.
    ///
    /// # Errors
    /// [`HeadError`].
    pub fn take(buf: &mut BytesMut) -> Result<Option<Self>, HeadError> {
        let mut headers = [httparse::EMPTY_HEADER; HTTP_HEADERS_MAX];
        let mut response = httparse::Response::new(&mut headers);
        let window = &buf[..buf.len().min(HTTP_HEAD_LEN_MAX)];
        let len = match response.parse(window).map_err(head_error)? {
            httparse::Status::Complete(len) => len,
            httparse::Status::Partial => return more_or_too_long(window.len()),
        };
        let head = Self { status: response.code.unwrap_or_default(), headers: own_headers(response.headers) };
        buf.advance(len);
        Ok(Some(head))
    }

    /// Whether the server switched to DERP; clients check nothing else.
    #[must_use]
    pub const fn switched(&self) -> bool {
        self.status == 101
    }

    /// The first header of this name, without regard to case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

#[cfg(test)]
mod tests;
