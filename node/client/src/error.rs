//! Errors, split by what the caller does next: mend the configuration, try again, or connect anew.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use causeway_proto::derp::decoder::DecodeError;
use causeway_proto::derp::handshake::client::HandshakeError;
use causeway_proto::derpmap::DerpMapError;
use causeway_proto::id::RegionId;

/// The client is set up wrongly: trying again does not help.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// No server was named.
    #[error("no server is set: give an address, or a DERP map with or without a region")]
    NoServer,
    /// The operating system offers no root certificates.
    #[error("the system offers no root certificates ({0}): install them, or give a CA file")]
    NoSystemRoots(String),
    /// The CA file cannot be read.
    #[error("CA file {path}: {source}")]
    CaFileRead {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The CA file is no PEM, or holds no certificate that can be a root.
    #[error("CA file {path}: {why}; it must hold PEM certificates (`-----BEGIN CERTIFICATE-----`)")]
    CaFileContent {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// The TLS library refuses the settings.
    #[error("TLS settings: {0}")]
    Tls(#[from] rustls::Error),
    /// A TLS name is neither a DNS name nor an address.
    #[error("`{0}` is neither a DNS name nor an IP address")]
    ServerName(String),
    /// A pinned certificate hash is malformed.
    #[error("the pinned certificate hash of node `{node}` must be `sha256-raw:` and 64 hex digits")]
    Pin {
        /// The node.
        node: String,
    },
    /// An address in text form is malformed.
    #[error("`{0}` is no address: it must be HOST:PORT, for example derp.example.com:443 or [2001:db8::1]:443")]
    Address(String),
    /// The DERP map does not have the region.
    #[error("the DERP map has no region {0}")]
    NoRegion(RegionId),
    /// No node of the region relays.
    #[error("region {0} has no relay node: all its nodes are STUN only")]
    NoRelayNode(RegionId),
    /// The DERP map has no region that can be a home.
    #[error("the DERP map has no region with a relay node")]
    NoRegions,
    /// A proxy's address is malformed. It is not repeated here: it may hold a password.
    #[error("{origin}: a proxy must be http://[USER:PASSWORD@]HOST[:PORT] or https://[USER:PASSWORD@]HOST[:PORT]")]
    Proxy {
        /// Where it came from: an environment variable, or the caller.
        origin: &'static str,
    },
    /// Watching needs the mesh key.
    #[error("watching a node's clients needs its mesh key")]
    WatchNeedsMeshKey,
    /// Several nodes could be meant by what only one can do.
    #[error("a single connection needs an address or a region; only a reconnecting client chooses the nearest region")]
    NearestNeedsClient,
}

/// A connection could not be made: another try, or another node, may work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The settings do not allow it: trying again does not help.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// DNS knows no address.
    #[error("{host} has no address: {source}")]
    Resolve {
        /// The name.
        host: String,
        /// Why.
        source: io::Error,
    },
    /// The node names no address of a family that may be used.
    #[error("node `{0}` forbids both IPv4 and IPv6")]
    NoFamily(String),
    /// TCP failed.
    #[error("cannot connect to {addr}: {source}")]
    Dial {
        /// The address tried last.
        addr: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// No TCP connection within the time for one node.
    #[error("no connection to node `{node}` within {limit:?}")]
    DialTimeout {
        /// The node.
        node: String,
        /// The limit.
        limit: Duration,
    },
    /// Without TLS only a loopback address is dialled.
    #[error("{0} is not a loopback address: DERP without TLS is for loopback only")]
    PlainNotLoopback(SocketAddr),
    /// The TLS handshake failed.
    #[error("TLS with {server_name}: {source}")]
    Tls {
        /// The name the certificate has to carry.
        server_name: String,
        /// Why.
        source: io::Error,
    },
    /// The connection broke before the login was answered.
    #[error("connection to {addr} broke during {phase}: {source}")]
    Io {
        /// The server.
        addr: SocketAddr,
        /// What was going on.
        phase: Phase,
        /// Why.
        source: io::Error,
    },
    /// The server closed the connection before the login was answered.
    #[error("{addr} closed the connection during {phase}{}", .phase.hint_on_close())]
    Closed {
        /// The server.
        addr: SocketAddr,
        /// What was going on.
        phase: Phase,
    },
    /// The proxy does not pass the connection on.
    #[error("proxy {proxy} does not connect to {target}: {why}")]
    Proxy {
        /// `HOST:PORT` of the proxy.
        proxy: String,
        /// `HOST:PORT` of the server.
        target: String,
        /// Its status, or how the connection to it ended.
        why: String,
    },
    /// The server does not switch to DERP.
    #[error("{addr} answers the upgrade to DERP with {why}")]
    Upgrade {
        /// The server.
        addr: SocketAddr,
        /// Status line or what is wrong with the answer.
        why: String,
    },
    /// The login failed on the DERP level.
    #[error("login at {addr}: {source}")]
    Handshake {
        /// The server.
        addr: SocketAddr,
        /// Why.
        source: HandshakeError,
    },
    /// The whole of it took too long.
    #[error("no answer to the login within {limit:?}, stopped during {phase}")]
    Timeout {
        /// The limit.
        limit: Duration,
        /// What was going on.
        phase: Phase,
    },
}

impl ConnectError {
    /// Whether another try cannot help, because the settings are at fault.
    #[must_use]
    pub const fn is_permanent(&self) -> bool {
        matches!(self, Self::Config(_))
    }
}

/// What a connection was doing on its way to a login.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Phase {
    /// DNS and TCP, and the proxy if there is one.
    Dial,
    /// TLS handshake.
    Tls,
    /// HTTP request.
    Upgrade,
    /// DERP login.
    Login,
}

impl Phase {
    const fn hint_on_close(self) -> &'static str {
        match self {
            // A server that does not admit a client says nothing (`derp.md` section 4.1).
            Self::Login => ": a server that refuses a client says no more",
            Self::Dial | Self::Tls | Self::Upgrade => "",
        }
    }
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Dial => "the TCP connection",
            Self::Tls => "the TLS handshake",
            Self::Upgrade => "the HTTP upgrade",
            Self::Login => "the DERP login",
        })
    }
}

/// An established connection is over: connect anew.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectionError {
    /// We closed it, or its receiver was dropped.
    #[error("the connection was closed by this client")]
    ClosedByUs,
    /// The server closed it between two frames.
    #[error("the server closed the connection")]
    ClosedByServer,
    /// It ended in the middle of a frame.
    #[error("the connection ended in the middle of a frame")]
    Truncated,
    /// Not a byte came for so long; servers send a keep-alive at least every 65 s.
    #[error("nothing came from the server for {0:?}")]
    Silent(Duration),
    /// The socket took no byte for so long.
    #[error("the server took nothing for {0:?}")]
    WriteStalled(Duration),
    /// Reading failed.
    #[error("read: {0}")]
    Read(io::Error),
    /// Writing failed.
    #[error("write: {0}")]
    Write(io::Error),
    /// The server broke the protocol.
    #[error("the server broke the protocol: {0}")]
    Protocol(#[from] DecodeError),
    /// A later ServerInfo cannot be read.
    #[error("server info: {0}")]
    ServerInfo(#[from] HandshakeError),
}

/// A packet or request was not queued.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// Larger than any server takes. Nothing was sent; the connection goes on.
    #[error("a packet of {len} bytes is larger than the {max} that servers take")]
    TooLong {
        /// The packet's length in bytes.
        len: usize,
        /// The limit in bytes.
        max: usize,
    },
    /// The queue is full: drop it, or wait with `send`.
    #[error("the send queue is full")]
    Full,
    /// Dropped, because the server announced a rate and the packet is above it (`derp.md` section 4.6).
    #[error("the packet is above the rate that the server announced")]
    RateLimited,
    /// This connection did not log in with a mesh key; the server would close it.
    #[error("only a connection with a mesh key may do this")]
    NotMeshPeer,
    /// Too many pings wait for their answer.
    #[error("{0} pings wait for their answer already")]
    TooManyPings(usize),
    /// The client is not connected at the moment.
    #[error("not connected")]
    NotConnected,
    /// The connection is over.
    #[error("not sent: {0}")]
    Closed(Arc<ConnectionError>),
}

/// A ping got no answer.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PingError {
    /// It was not sent.
    #[error(transparent)]
    Send(#[from] SendError),
    /// No pong in time. Nothing is received unless somebody polls the receiver.
    #[error("no pong within {0:?}")]
    Timeout(Duration),
}

/// A DERP map could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MapError {
    /// The file cannot be read.
    #[error("DERP map {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The text is no URL of a map.
    #[error("DERP map URL `{0}`: it must be http://HOST[:PORT]/PATH or https://HOST[:PORT]/PATH")]
    Url(String),
    /// The server of the map cannot be reached.
    #[error("DERP map {url}: {source}")]
    Connect {
        /// The URL.
        url: String,
        /// Why.
        source: Box<ConnectError>,
    },
    /// The server's answer is no map.
    #[error("DERP map {url}: {why}")]
    Answer {
        /// The URL.
        url: String,
        /// Why.
        why: String,
    },
    /// The JSON is no valid map.
    #[error("DERP map {origin}: {source}")]
    Content {
        /// File or URL.
        origin: String,
        /// Why.
        source: DerpMapError,
    },
}
