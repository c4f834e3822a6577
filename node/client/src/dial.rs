//! From a server's endpoint to a stream: addresses, TCP over both families, the proxy in between.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use causeway_proto::derpmap::NodeAddress;
use futures::future::Either;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::either::Either as Stream;

use crate::endpoint::Endpoint;
use crate::error::ConnectError;
use crate::proxy::Proxy;
use crate::tls::Trust;
use crate::transport::Socket;

/// Time for the TCP connection to one node, DNS included; then the next node of the region gets its turn (`derp.md` section 15.1).
pub const NODE_DIAL_TIMEOUT: Duration = Duration::from_millis(1500);

/// How long IPv4 is held back while IPv6 is tried.
const IPV4_DELAY: Duration = Duration::from_millis(200);

/// Most addresses of one family that are tried one after the other.
const ADDRESSES_PER_FAMILY_MAX: usize = 4;

/// How servers are reached, and whom to believe there.
#[derive(Clone, Debug, Default)]
pub(crate) struct Route {
    /// `None`: the system's roots.
    pub(crate) trust: Option<Trust>,
    pub(crate) proxy: Option<Arc<Proxy>>,
}

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
