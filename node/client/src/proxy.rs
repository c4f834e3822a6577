//! HTTP proxies: which servers are behind one, and CONNECT (`derp.md` section 15.1).

use std::fmt;
use std::net::IpAddr;

use bytes::BytesMut;
use causeway_proto::derp::upgrade::ResponseHead;
use data_encoding::BASE64;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::either::Either as Stream;

use crate::endpoint::Endpoint;
use crate::error::{ConfigError, ConnectError};
use crate::tls::Trust;
use crate::transport::{Socket, secure};

/// Room made for one read of the proxy's answer.
const ANSWER_READ_LEN: usize = 1024;

/// Variables that name the proxy for `https` servers; the first that is set and not empty counts.
const PROXY_VARIABLES: [&str; 2] = ["HTTPS_PROXY", "https_proxy"];

/// Variables that name servers which are not behind it.
const BYPASS_VARIABLES: [&str; 2] = ["NO_PROXY", "no_proxy"];

/// An HTTP proxy that passes connections on (`CONNECT`), spoken to with or without TLS.
///
/// It is asked to connect to the server's host name, which it looks up itself; addresses that a DERP map fixes do not count there.
#[derive(Clone)]
pub struct Proxy {
    endpoint: Endpoint,
    over_tls: bool,
    /// `Proxy-Authorization`: a secret.
    authorization: Option<String>,
    bypass: Vec<Bypass>,
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.over_tls { "https" } else { "http" };
        write!(f, "Proxy({scheme}://{})", self.endpoint)
    }
}

impl Proxy {
    /// The proxy at `http://[USER:PASSWORD@]HOST[:PORT]` or `https://…`, for all servers. Without a scheme `http` is meant.
    ///
    /// # Errors
    /// [`ConfigError::Proxy`].
    pub fn new(url: &str) -> Result<Self, ConfigError> {
        Self::parse(url).ok_or(ConfigError::Proxy { origin: "proxy" })
    }

    /// The proxy in `HTTPS_PROXY`, for all servers but those on loopback and those named in `NO_PROXY`. Names in lower case are read
    /// as well.
    ///
    /// # Errors
    /// [`ConfigError::Proxy`], naming the variable.
    pub fn from_environment() -> Result<Option<Self>, ConfigError> {
        Self::from_variables(|name| std::env::var(name).ok())
    }

    fn from_variables(read: impl Fn(&str) -> Option<String>) -> Result<Option<Self>, ConfigError> {
        let first = |names: [&'static str; 2]| {
            names.into_iter().find_map(|name| Some((name, read(name).filter(|value| !value.is_empty())?)))
        };
        let Some((origin, url)) = first(PROXY_VARIABLES) else {
            return Ok(None);
        };
        let mut proxy = Self::parse(&url).ok_or(ConfigError::Proxy { origin })?;
        proxy.bypass.push(Bypass::Loopback);
        Ok(Some(match first(BYPASS_VARIABLES) {
            Some((_, list)) => proxy.bypassed_for(&list),
            None => proxy,
        }))
    }

    /// Not for these servers, a list as in `NO_PROXY`: `*`, addresses, networks (`10.0.0.0/8`), names (`example.com`, with all below),
    /// names below one (`.example.com`), each with `:PORT` or without.
    #[must_use]
    pub fn bypassed_for(mut self, list: &str) -> Self {
        self.bypass.extend(list.split(',').filter_map(|entry| Bypass::parse(&entry.trim().to_ascii_lowercase())));
        self
    }

    fn parse(url: &str) -> Option<Self> {
        let (scheme, rest) = url.split_once("://").unwrap_or(("http", url));
        let (over_tls, default_port) = match scheme.to_ascii_lowercase().as_str() {
            "http" => (false, 80),
            "https" => (true, 443),
            _ => return None,
        };
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        let (user_info, address) = match authority.rsplit_once('@') {
            Some((user_info, address)) => (Some(user_info), address),
            None => (None, authority),
        };
        if address.contains(['/', '?', '#']) {
            return None;
        }
        let has_port = address.rsplit_once(':').is_some_and(|(_, port)| !port.contains(']'));
        let address = if has_port { address.to_owned() } else { format!("{address}:{default_port}") };
        let endpoint = Endpoint::new(&address).ok()?;
        let authorization = match user_info {
            Some(user_info) => Some(basic(user_info)?),
            None => None,
        };
        Some(Self { endpoint, over_tls, authorization, bypass: Vec::new() })
    }

    pub(crate) const fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Whether a server is behind the proxy.
    pub(crate) fn is_for(&self, host: &str, port: u16) -> bool {
        let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        !self.bypass.iter().any(|bypass| bypass.holds(&host, port))
    }

    /// Has the proxy at the other end of `stream` connect to `target`.
    pub(crate) async fn connect(
        &self,
        stream: TcpStream,
        target: &Endpoint,
        trust: Option<&Trust>,
    ) -> Result<Socket, ConnectError> {
        let mut socket = if self.over_tls {
            Stream::Right(Box::new(secure(stream, &self.endpoint, trust).await?))
        } else {
            Stream::Left(stream)
        };
        let target_addr = target.host_and_port();
        if !target_addr.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(ConfigError::ServerName(target.host_name.clone()).into());
        }
        self.ask(&mut socket, &target_addr).await.map_err(|why| ConnectError::Proxy {
            proxy: self.endpoint.name.clone(),
            target: target_addr,
            why,
        })?;
        Ok(socket)
    }

    async fn ask(&self, socket: &mut Socket, target: &str) -> Result<(), String> {
        let mut request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n");
        if let Some(authorization) = &self.authorization {
            request.push_str("Proxy-Authorization: ");
            request.push_str(authorization);
            request.push_str("\r\n");
        }
        request.push_str("\r\n");
        let asked = async {
            socket.write_all(request.as_bytes()).await?;
            socket.flush().await
        };
        asked.await.map_err(|e| e.to_string())?;
        let mut buffer = BytesMut::new();
        let head = loop {
            match ResponseHead::take(&mut buffer).map_err(|e| e.to_string())? {
                Some(head) => break head,
                None => buffer.reserve(ANSWER_READ_LEN),
            }
            match socket.read_buf(&mut buffer).await {
                Ok(0) => return Err("it closed the connection".to_owned()),
                Ok(_) => {}
                Err(e) => return Err(e.to_string()),
            }
        };
        match (head.status, buffer.is_empty()) {
            (200, true) => Ok(()),
            // The server speaks only when spoken to.
            (200, false) => Err("it sent more than its answer".to_owned()),
            (status, _) => Err(format!("HTTP status {status}")),
        }
    }
}

/// `Basic` authorization of `USER[:PASSWORD]`, whose `%XX` are decoded.
fn basic(user_info: &str) -> Option<String> {
    let (user, password) = user_info.split_once(':').unwrap_or((user_info, ""));
    let mut plain = percent_decode(user)?;
    plain.push(b':');
    plain.extend(percent_decode(password)?);
    Some(format!("Basic {}", BASE64.encode(&plain)))
}

fn percent_decode(text: &str) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let digits = [bytes.next()?, bytes.next()?];
            if !digits.iter().all(u8::is_ascii_hexdigit) {
                return None;
            }
            decoded.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
        } else {
            decoded.push(byte);
        }
    }
    Some(decoded)
}

/// Servers that are not behind the proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Bypass {
    All,
    Loopback,
    Network {
        ip: IpAddr,
        bits: u32,
        port: Option<u16>,
    },
    /// Hosts below this domain (`.example.com`), and the domain itself unless only those below are meant.
    Domain {
        suffix: String,
        only_below: bool,
        port: Option<u16>,
    },
}

impl Bypass {
    /// An entry in lower case; `None` for one that means nothing, as in other programs that read the list.
    fn parse(entry: &str) -> Option<Self> {
        if entry == "*" {
            return Some(Self::All);
        }
        if let Some((ip, bits)) = entry.split_once('/') {
            let (ip, bits) = (ip.parse::<IpAddr>().ok()?, bits.parse().ok()?);
            return (bits <= width(ip)).then_some(Self::Network { ip, bits, port: None });
        }
        if let Ok(ip) = entry.parse::<IpAddr>() {
            return Some(Self::Network { ip, bits: width(ip), port: None });
        }
        let (host, port) = match entry.rsplit_once(':') {
            Some((host, port)) => (host, Some(port.parse().ok()?)),
            None => (entry, None),
        };
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        if let Ok(ip) = bare.parse::<IpAddr>() {
            return Some(Self::Network { ip, bits: width(ip), port });
        }
        let name = bare.strip_prefix('*').unwrap_or(bare);
        let (only_below, suffix) = if name.starts_with('.') { (true, name.to_owned()) } else { (false, format!(".{name}")) };
        (suffix.len() > 1).then_some(Self::Domain { suffix, only_below, port })
    }

    fn holds(&self, host: &str, server_port: u16) -> bool {
        let ip = host.parse::<IpAddr>().ok();
        match self {
            Self::All => true,
            Self::Loopback => host == "localhost" || ip.is_some_and(|ip| ip.is_loopback()),
            Self::Network { ip: network, bits, port } => {
                port.is_none_or(|port| port == server_port) && ip.is_some_and(|ip| same_network(*network, ip, *bits))
            }
            Self::Domain { suffix, only_below, port } => {
                port.is_none_or(|port| port == server_port)
                    && (host.ends_with(suffix.as_str()) || (!only_below && host == &suffix[1..]))
            }
        }
    }
}

const fn width(ip: IpAddr) -> u32 {
    if ip.is_ipv4() { 32 } else { 128 }
}

fn same_network(a: IpAddr, b: IpAddr, bits: u32) -> bool {
    let differ = match (a, b) {
        (IpAddr::V4(a), IpAddr::V4(b)) => u128::from(a.to_bits() ^ b.to_bits()) << 96,
        (IpAddr::V6(a), IpAddr::V6(b)) => a.to_bits() ^ b.to_bits(),
        _ => return false,
    };
    differ.leading_zeros() >= bits
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(variables: &[(&str, &str)]) -> Result<Option<Proxy>, ConfigError> {
        Proxy::from_variables(|name| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn addresses_are_parsed_and_secrets_neither_shown_nor_repeated() {
        let cases = [
            ("http://proxy.test", Some(("proxy.test", 80, false, None))),
            ("proxy.test:3128", Some(("proxy.test", 3128, false, None))),
            ("https://proxy.test/", Some(("proxy.test", 443, true, None))),
            ("https://[2001:db8::1]:8443", Some(("2001:db8::1", 8443, true, None))),
            (
                "http://Aladdin:open%20sesame@proxy.test:1",
                Some(("proxy.test", 1, false, Some("Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="))),
            ),
            ("http://user@proxy.test", Some(("proxy.test", 80, false, Some("Basic dXNlcjo=")))),
            ("socks5://proxy.test", None),
            ("http://proxy.test/path", None),
            ("http://a%zz:b@proxy.test", None),
            ("http://proxy.test:x", None),
            ("http://", None),
        ];
        for (url, expected) in cases {
            let proxy = Proxy::new(url);
            let parts = proxy
                .as_ref()
                .ok()
                .map(|p| (p.endpoint.host_name.as_str(), p.endpoint.port, p.over_tls, p.authorization.as_deref()));
            assert_eq!(parts, expected, "{url}");
        }
        let shown = format!("{:?}", Proxy::new("http://user:secret@proxy.test").expect("good"));
        assert_eq!(shown, "Proxy(http://proxy.test:80)");
        let error = Proxy::new("http://user:secret@proxy.test/x").expect_err("a path").to_string();
        assert!(!error.contains("secret") && error.contains("HOST"), "{error}");
    }

    #[test]
    fn the_environment_names_the_proxy_and_what_is_not_behind_it() {
        assert!(from(&[("HTTP_PROXY", "http://a.test"), ("HTTPS_PROXY", "")]).expect("good").is_none());
        let proxy = from(&[("https_proxy", "b.test"), ("HTTPS_PROXY", "a.test")]).expect("good").expect("one");
        assert_eq!(proxy.endpoint.host_name, "a.test");
        assert!(proxy.is_for("relay.test", 443) && !proxy.is_for("localhost", 443) && !proxy.is_for("127.0.0.9", 1));
        let error = from(&[("https_proxy", "ftp://user:secret@a.test")]).expect_err("no proxy").to_string();
        assert!(error.contains("https_proxy") && !error.contains("secret"), "{error}");
    }

    #[test]
    fn a_list_of_exceptions_is_read_as_other_programs_do() {
        let cases: [(&str, &[&str], &[&str]); 9] = [
            ("*", &["a.test"], &[]),
            ("example.com", &["example.com", "a.example.com", "EXAMPLE.com."], &["notexample.com", "com"]),
            (".example.com", &["a.example.com"], &["example.com"]),
            ("*.example.com", &["a.example.com"], &["example.com"]),
            ("10.0.0.0/8", &["10.1.2.3"], &["11.0.0.1", "10.test", "::a00:1"]),
            ("2001:db8::/32, 192.0.2.1", &["2001:db8::7", "192.0.2.1"], &["2001:db9::1", "192.0.2.2"]),
            ("example.com:443", &["a.example.com"], &[]),
            ("example.com:444", &[], &["a.example.com"]),
            (" ,0.0.0.0/33,:443,a:b:c,", &[], &["a.test", "1.2.3.4"]),
        ];
        for (list, bypassed, behind) in cases {
            let proxy = from(&[("HTTPS_PROXY", "p.test"), ("no_proxy", list)]).expect("good").expect("one");
            for host in bypassed {
                assert!(!proxy.is_for(host, 443), "{host} with {list}");
            }
            for host in behind {
                assert!(proxy.is_for(host, 443), "{host} with {list}");
            }
        }
    }
}
