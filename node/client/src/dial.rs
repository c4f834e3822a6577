//! From a node's name to a byte stream: addresses, TCP over both families, TLS.

use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use std::{fmt, io};

use causeway_proto::derp::meta_cert::MetaCert;
use causeway_proto::derpmap::{DERP_PORT_DEFAULT, Node, NodeAddress};
use futures::future::Either;
use tokio::io::{AsyncRead, AsyncWrite, BufReader, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::either::Either as Stream;

use crate::error::{ConfigError, ConnectError};
use crate::proxy::Proxy;
use crate::tls::{self, Trust};

/// Time for the TCP connection to one node, DNS included; then the next node of the region gets its turn (`derp.md` section 15.1).
pub const NODE_DIAL_TIMEOUT: Duration = Duration::from_millis(1500);

/// How long IPv4 is held back while IPv6 is tried.
const IPV4_DELAY: Duration = Duration::from_millis(200);

/// Most addresses of one family that are tried one after the other.
const ADDRESSES_PER_FAMILY_MAX: usize = 4;

/// Bytes read from the socket at once. Below rustls, which by itself asks for 4 KiB at a time.
const SOCKET_READ_LEN: usize = 32 * 1024;

/// Where a DERP server is and what its certificate must say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The node's name in the map, or the address given: for errors and logs.
    pub name: String,
    /// TLS server name, and what DNS is asked for.
    pub host_name: String,
    /// How to find it over IPv4.
    pub ipv4: NodeAddress<std::net::Ipv4Addr>,
    /// How to find it over IPv6.
    pub ipv6: NodeAddress<std::net::Ipv6Addr>,
    /// TCP port.
    pub port: u16,
    /// Expected certificate name or `sha256-raw:` pin; empty: the host name.
    pub cert_name: String,
    /// Certificates are not verified.
    pub insecure_for_tests: bool,
    /// Without TLS; dialled on loopback only.
    pub plain: bool,
}

impl Endpoint {
    /// The server at `HOST:PORT`, over TLS with HOST as its name. HOST is a DNS name, an IPv4 address or an IPv6 address in brackets.
    ///
    /// # Errors
    /// [`ConfigError::Address`].
    pub fn new(address: &str) -> Result<Self, ConfigError> {
        let malformed = || ConfigError::Address(address.to_owned());
        let (host, port) = address.rsplit_once(':').ok_or_else(malformed)?;
        let port = port.parse().map_err(|_| malformed())?;
        let in_brackets = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let bare = in_brackets.unwrap_or(host);
        if bare.is_empty() || (in_brackets.is_none() && bare.contains(':')) {
            return Err(malformed());
        }
        let (mut ipv4, mut ipv6) = (NodeAddress::Dns, NodeAddress::Dns);
        if let Ok(ip) = IpAddr::from_str(bare) {
            (ipv4, ipv6) = fixed(ip);
        }
        Ok(Self {
            name: address.to_owned(),
            host_name: bare.to_owned(),
            ipv4,
            ipv6,
            port,
            cert_name: String::new(),
            insecure_for_tests: false,
            plain: false,
        })
    }

    /// The server at `addr`, whose certificate carries `host_name`.
    #[must_use]
    pub fn at(addr: SocketAddr, host_name: &str) -> Self {
        let (ipv4, ipv6) = fixed(addr.ip());
        Self {
            name: host_name.to_owned(),
            host_name: host_name.to_owned(),
            ipv4,
            ipv6,
            port: addr.port(),
            cert_name: String::new(),
            insecure_for_tests: false,
            plain: false,
        }
    }

    /// The node of a DERP map; `None` if its port is none or it does not relay.
    #[must_use]
    pub fn of_node(node: &Node) -> Option<Self> {
        if node.stun_only {
            return None;
        }
        Some(Self {
            name: node.name.clone(),
            host_name: node.host_name.clone(),
            ipv4: node.ipv4(),
            ipv6: node.ipv6(),
            port: node.derp_port()?,
            cert_name: node.cert_name.clone(),
            insecure_for_tests: node.insecure_for_tests,
            plain: false,
        })
    }

    /// Speaks plain HTTP; only loopback addresses are dialled then.
    #[must_use]
    pub const fn plain(mut self) -> Self {
        self.plain = true;
        self
    }

    /// Expects this certificate name, or `sha256-raw:` and the SHA-256 of the certificate, instead of the host name's.
    #[must_use]
    pub fn cert_name(mut self, cert_name: &str) -> Self {
        cert_name.clone_into(&mut self.cert_name);
        self
    }

    /// Value of the `Host` header: the port is left out if it is that of https.
    pub(crate) fn host_header(&self) -> String {
        if self.port == DERP_PORT_DEFAULT && !self.plain { self.host() } else { self.host_and_port() }
    }

    /// `HOST:PORT`.
    pub(crate) fn host_and_port(&self) -> String {
        format!("{}:{}", self.host(), self.port)
    }

    fn host(&self) -> String {
        let host = &self.host_name;
        if host.contains(':') { format!("[{host}]") } else { host.clone() }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

const fn fixed(ip: IpAddr) -> (NodeAddress<std::net::Ipv4Addr>, NodeAddress<std::net::Ipv6Addr>) {
    match ip {
        IpAddr::V4(ip) => (NodeAddress::Fixed(ip), NodeAddress::Disabled),
        IpAddr::V6(ip) => (NodeAddress::Disabled, NodeAddress::Fixed(ip)),
    }
}

/// How servers are reached, and whom to believe there.
#[derive(Clone, Debug, Default)]
pub(crate) struct Route {
    /// `None`: the system's roots.
    pub(crate) trust: Option<Trust>,
    pub(crate) proxy: Option<Arc<Proxy>>,
}

/// TCP to a server, or TLS to a proxy that passes on what is written.
pub(crate) type Socket = Stream<TcpStream, Box<TlsStream<TcpStream>>>;

/// A stream to a server's port.
pub(crate) struct Reached {
    pub(crate) socket: Socket,
    /// The server's address, or the proxy's.
    pub(crate) remote_addr: SocketAddr,
    pub(crate) local_addr: SocketAddr,
}

impl Route {
    /// Opens a stream to the endpoint's port: directly within [`NODE_DIAL_TIMEOUT`], or through the proxy, as long as that takes.
    pub(crate) async fn reach(&self, endpoint: &Endpoint) -> Result<Reached, ConnectError> {
        // Without TLS only loopback is dialled, which is behind no proxy.
        let proxy = self.proxy.as_deref().filter(|proxy| !endpoint.plain && proxy.is_for(&endpoint.host_name, endpoint.port));
        let (stream, remote_addr) = match proxy {
            Some(proxy) => race(proxy.endpoint()).await?,
            None => dial(endpoint).await?,
        };
        let local_addr = stream.local_addr().map_err(|source| ConnectError::Dial { addr: remote_addr, source })?;
        let socket = match proxy {
            Some(proxy) => proxy.connect(stream, endpoint, self.trust.as_ref()).await?,
            None => Stream::Left(stream),
        };
        Ok(Reached { socket, remote_addr, local_addr })
    }
}

/// A TCP connection within [`NODE_DIAL_TIMEOUT`]. Both families are tried at the same time, each with its own look-up; the first that
/// connects wins and the other is dropped.
async fn dial(endpoint: &Endpoint) -> Result<(TcpStream, SocketAddr), ConnectError> {
    timeout(NODE_DIAL_TIMEOUT, race(endpoint)).await.unwrap_or_else(|_| {
        let node = endpoint.name.clone();
        Err(ConnectError::DialTimeout { node, limit: NODE_DIAL_TIMEOUT })
    })
}

async fn race(endpoint: &Endpoint) -> Result<(TcpStream, SocketAddr), ConnectError> {
    let v4 = one_after_the_other(endpoint, endpoint.ipv4, SocketAddr::is_ipv4);
    let v6 = one_after_the_other(endpoint, endpoint.ipv6, SocketAddr::is_ipv6);
    // IPv6 has a head start where it is as likely to work; a fixed IPv4 address does not wait for DNS.
    let head_start = match (endpoint.ipv4, endpoint.ipv6) {
        (NodeAddress::Disabled, NodeAddress::Disabled) => return Err(ConnectError::NoFamily(endpoint.name.clone())),
        (_, NodeAddress::Disabled) => return v4.await,
        (NodeAddress::Disabled, _) => return v6.await,
        (NodeAddress::Fixed(_), NodeAddress::Dns) => Duration::ZERO,
        _ => IPV4_DELAY,
    };
    let (v4, mut v6) = (std::pin::pin!(v4), std::pin::pin!(v6));
    match timeout(head_start, v6.as_mut()).await {
        Ok(Ok(stream)) => return Ok(stream),
        Ok(Err(v6_error)) => return v4.await.map_err(|error| more_telling(error, v6_error)),
        Err(_) => {}
    }
    match futures::future::select(v6, v4).await {
        Either::Left((Ok(stream), _)) | Either::Right((Ok(stream), _)) => Ok(stream),
        Either::Left((Err(v6_error), v4)) => v4.await.map_err(|error| more_telling(error, v6_error)),
        Either::Right((Err(v4_error), v6)) => v6.await.map_err(|error| more_telling(v4_error, error)),
    }
}

/// Of the errors of both families: that a name has no address in one of them says little.
fn more_telling(v4: ConnectError, v6: ConnectError) -> ConnectError {
    if matches!(v4, ConnectError::Resolve { .. }) { v6 } else { v4 }
}

/// The addresses of one family; not empty.
async fn addresses<A>(
    endpoint: &Endpoint,
    address: NodeAddress<A>,
    of_family: fn(&SocketAddr) -> bool,
) -> Result<Vec<SocketAddr>, ConnectError>
where
    A: Into<IpAddr>,
{
    let host = endpoint.host_name.as_str();
    let none = || {
        let source = io::Error::new(io::ErrorKind::NotFound, "no address of the families that the node offers");
        ConnectError::Resolve { host: host.to_owned(), source }
    };
    match address {
        NodeAddress::Fixed(ip) => Ok(vec![SocketAddr::new(ip.into(), endpoint.port)]),
        NodeAddress::Disabled => Err(none()),
        NodeAddress::Dns => {
            let found = tokio::net::lookup_host((host, endpoint.port)).await;
            let found = found.map_err(|source| ConnectError::Resolve { host: host.to_owned(), source })?;
            let found: Vec<_> = found.filter(of_family).take(ADDRESSES_PER_FAMILY_MAX).collect();
            if found.is_empty() { Err(none()) } else { Ok(found) }
        }
    }
}

async fn one_after_the_other<A>(
    endpoint: &Endpoint,
    address: NodeAddress<A>,
    of_family: fn(&SocketAddr) -> bool,
) -> Result<(TcpStream, SocketAddr), ConnectError>
where
    A: Into<IpAddr>,
{
    let mut failed = None;
    for addr in addresses(endpoint, address, of_family).await? {
        if endpoint.plain && !addr.ip().is_loopback() {
            return Err(ConnectError::PlainNotLoopback(addr));
        }
        match TcpStream::connect(addr).await {
            Ok(stream) => {
                // Frames are batched here already; Nagle's algorithm would only hold them back.
                stream.set_nodelay(true).map_err(|source| ConnectError::Dial { addr, source })?;
                return Ok((stream, addr));
            }
            Err(source) => failed = Some(ConnectError::Dial { addr, source }),
        }
    }
    Err(failed.expect("at least one address was tried"))
}

/// What DERP is spoken over.
#[derive(Debug)]
pub(crate) enum Transport {
    Plain(Socket),
    Tls(Box<TlsStream<BufReader<Socket>>>),
}

impl Transport {
    /// Puts TLS on a stream unless the endpoint is plain; without `trust` by the system's roots. Also tells the server's key, if TLS 1.3
    /// was agreed on and a MetaCert shown.
    pub(crate) async fn new(
        socket: Socket,
        endpoint: &Endpoint,
        trust: Option<&Trust>,
    ) -> Result<(Self, Option<MetaCert>), ConnectError> {
        if endpoint.plain {
            return Ok((Self::Plain(socket), None));
        }
        let stream = BufReader::with_capacity(SOCKET_READ_LEN, socket);
        let tls = secure(stream, endpoint, trust).await?;
        let session = tls.get_ref().1;
        // Only TLS 1.3 hides the certificates from whoever is in between (`derp.md` section 4.3).
        let meta = match session.protocol_version() {
            Some(rustls::ProtocolVersion::TLSv1_3) => session.peer_certificates().and_then(tls::find_meta_cert),
            _ => None,
        };
        Ok((Self::Tls(Box::new(tls)), meta))
    }
}

/// Puts TLS on a stream to `endpoint`, whose certificate must be what the endpoint says.
pub(crate) async fn secure<S>(stream: S, endpoint: &Endpoint, trust: Option<&Trust>) -> Result<TlsStream<S>, ConnectError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let trust = match trust {
        Some(trust) => trust.clone(),
        None => Trust::system()?,
    };
    let config = trust.config_for(&endpoint.name, &endpoint.cert_name, endpoint.insecure_for_tests)?;
    let server_name = tls::server_name(&endpoint.host_name)?;
    let tls = TlsConnector::from(config).connect(server_name, stream).await;
    tls.map_err(|source| ConnectError::Tls { server_name: endpoint.host_name.clone(), source })
}

impl AsyncRead for Transport {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_shutdown(cx),
        }
    }
}
