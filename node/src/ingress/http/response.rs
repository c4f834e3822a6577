//! A response as a value, and how HTTP/1 writes it.

use std::borrow::Cow;
use std::time::SystemTime;

use bytes::{BufMut, Bytes, BytesMut};

/// `Content-Type` of plain text.
pub const TEXT: &str = "text/plain; charset=utf-8";

/// `Content-Type` of a page.
pub const HTML: &str = "text/html; charset=utf-8";

/// A complete response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// Status code.
    pub status: u16,
    /// In the order written. No value holds a line break.
    pub headers: Vec<(&'static str, Cow<'static, str>)>,
    /// Its length is written as `Content-Length`.
    pub body: Bytes,
    /// The connection ends behind it.
    pub closes: bool,
}

impl Response {
    /// A response without body.
    #[must_use]
    pub const fn empty(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Bytes::new(), closes: false }
    }

    /// A response with a body of this type.
    #[must_use]
    pub fn new(status: u16, content_type: impl Into<Cow<'static, str>>, body: impl Into<Bytes>) -> Self {
        Self { status, headers: vec![("Content-Type", content_type.into())], body: body.into(), closes: false }
    }

    /// A refusal in plain text, in the form stock servers use.
    #[must_use]
    pub fn error(status: u16, message: &str) -> Self {
        Self::new(status, TEXT, format!("{message}\n")).with("X-Content-Type-Options", "nosniff")
    }

    /// Adds a header.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<Cow<'static, str>>) -> Self {
        let value = value.into();
        debug_assert!(!value.contains(['\r', '\n']), "a header value is one line");
        self.headers.push((name, value));
        self
    }

    /// Ends the connection behind it.
    #[must_use]
    pub const fn closing(mut self) -> Self {
        self.closes = true;
        self
    }

    /// Length of the body as it is told: 204 and 304 have none by definition; of an empty one the answer to HEAD says nothing, as stock
    /// servers.
    #[must_use]
    pub fn content_length(&self, head_only: bool) -> Option<usize> {
        let untold = matches!(self.status, 204 | 304) || head_only && self.body.is_empty();
        (!untold).then_some(self.body.len())
    }

    /// The bytes on the wire; of an answer to HEAD only the head. `connection` is said of the connection.
    #[must_use]
    pub fn encode(&self, head_only: bool, connection: Option<&str>, now: SystemTime) -> Bytes {
        let mut out = BytesMut::with_capacity(256 + self.body.len());
        out.put_slice(format!("HTTP/1.1 {} {}\r\n", self.status, reason_phrase(self.status)).as_bytes());
        for (name, value) in &self.headers {
            for part in [name, ": ", value, "\r\n"] {
                out.put_slice(part.as_bytes());
            }
        }
        if let Some(len) = self.content_length(head_only) {
            out.put_slice(format!("Content-Length: {len}\r\n").as_bytes());
        }
        out.put_slice(format!("Date: {}\r\n", httpdate::fmt_http_date(now)).as_bytes());
        if let Some(connection) = connection {
            out.put_slice(format!("Connection: {connection}\r\n").as_bytes());
        }
        out.put_slice(b"\r\n");
        if !head_only {
            out.put_slice(&self.body);
        }
        out.freeze()
    }
}

/// The head of an answer that ends with its connection.
#[must_use]
pub fn stream_head(content_type: &str, now: SystemTime) -> Bytes {
    Bytes::from(format!(
        "HTTP/1.1 200 {}\r\nContent-Type: {content_type}\r\nX-Content-Type-Options: nosniff\r\nDate: {}\r\nConnection: close\r\n\r\n",
        reason_phrase(200),
        httpdate::fmt_http_date(now)
    ))
}

pub(super) const fn reason_phrase(status: u16) -> &'static str {
    match status {
        200 => "OK",
        204 => "No Content",
        302 => "Found",
        304 => "Not Modified",
        307 => "Temporary Redirect",
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        417 => "Expectation Failed",
        426 => "Upgrade Required",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        _ => "Unknown",
    }
}
