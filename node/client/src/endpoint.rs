//! Where a server is, as a map or an address says it.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use causeway_proto::derpmap::{DERP_PORT_DEFAULT, Node, NodeAddress};

use crate::error::ConfigError;

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
