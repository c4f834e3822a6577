//! Takes an upgraded HTTP connection, drives the login, registers the client and hands it to the packet pump.

use std::net::SocketAddr;

use bytes::BytesMut;

use crate::limits::connections::Permit;

/// A connection whose HTTP request asked for DERP. Nothing has been answered yet: the 101 response (unless `fast_start`) is
/// written here, in one flush with the first frame.
///
/// The socket below `io` must have been registered with the packet runtime's reactor (`TcpStream::from_std` inside
/// `Handle::enter`), because the connection lives there after login.
#[derive(Debug)]
pub struct UpgradedStream<Io> {
    /// TLS or plain stream, TCP_NODELAY set.
    pub io: Io,
    /// Bytes read beyond the blank line that ends the request's head.
    pub buffered: BytesMut,
    /// The client's address.
    pub remote: SocketAddr,
    /// `Derp-Fast-Start: 1`: no HTTP response is written.
    pub fast_start: bool,
    /// Value of a non-empty `Ideal-Node` header.
    pub ideal_node: Option<String>,
    /// The connection's place inside the limits.
    pub permit: Permit,
}
