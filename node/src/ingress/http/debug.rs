//! The debug pages (`derp.md` section 12.3): who may open them, which there are. What they show is [`DebugPages`]'.

use std::net::IpAddr;
use std::time::Duration;

use causeway_proto::derp::upgrade::RequestHead;
use tokio::time::Instant;

use super::reply::{Reply, escape, guarded, page};
use super::response::{HTML, Response, TEXT};
use super::{Door, Visitor};
use crate::config::{Cidr, DebugKey};
use crate::ingress::debug::{DebugPages, VARS_CONTENT_TYPE, VARZ_CONTENT_TYPE};

/// Addresses of Tailscale nodes, without the part that ChromeOS uses for its own.
const TAILSCALE: [Cidr; 2] = [
    Cidr { address: IpAddr::V4(std::net::Ipv4Addr::new(100, 64, 0, 0)), prefix_len: 10 },
    Cidr { address: IpAddr::V6(std::net::Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, 0)), prefix_len: 48 },
];
const NOT_TAILSCALE: Cidr = Cidr { address: IpAddr::V4(std::net::Ipv4Addr::new(100, 115, 92, 0)), prefix_len: 23 };

/// What the debug pages are made of.
#[derive(Debug)]
pub struct DebugDesk {
    /// Networks that may open them on any listener.
    pub networks: Vec<Cidr>,
    /// Opens them from anywhere.
    pub key: Option<DebugKey>,
    /// Whether stock derpers may mesh with this node.
    pub has_mesh_key: bool,
    /// When the process started.
    pub started: Instant,
    /// Their content.
    pub pages: DebugPages,
}

impl DebugDesk {
    /// Whether this request may open the pages.
    ///
    /// Stock servers open them to loopback and Tailscale addresses on every listener. Here only the metrics listener does: behind a proxy
    /// on the same machine every client would have a loopback address.
    #[must_use]
    pub fn allows(&self, door: Door, head: &RequestHead, visitor: &Visitor) -> bool {
        let key = head.query_value("debugkey").filter(|_| head.method == "GET");
        if self.key.as_ref().is_some_and(|ours| key.is_some_and(|key| ours.is(&key))) {
            return true;
        }
        // Who forwards a request is not who sent it.
        if head.header("X-Forwarded-For").is_some() && !visitor.is_forwarded() {
            return false;
        }
        let address = visitor.client.ip();
        let named = self.networks.iter().any(|network| network.contains(address));
        named || (door == Door::Metrics && !visitor.is_forwarded() && (is_loopback(address) || is_tailscale(address)))
    }

    /// Answers a request whose path begins with `/debug/`.
    #[must_use]
    pub fn page(&self, door: Door, head: &RequestHead, path: &str, visitor: &Visitor, host_name: &str) -> Reply {
        const NAME: &str = "debug";
        let respond = |response| Reply::Respond(NAME, response);
        // Metrics stand open wherever ours do.
        let is_open = door == Door::Metrics && matches!(path, "/debug/varz" | "/debug/vars");
        if !is_open && !self.allows(door, head, visitor) {
            return respond(Response::error(403, "debug access denied"));
        }
        match path {
            "/debug/" => respond(guarded(Response::new(200, HTML, self.index(host_name)))),
            "/debug/varz" => respond(page(self.pages.varz(), VARZ_CONTENT_TYPE)),
            "/debug/vars" => respond(page(self.pages.vars(), VARS_CONTENT_TYPE)),
            "/debug/check" => Reply::Check(self.pages.clone()),
            "/debug/traffic" => Reply::Traffic(self.pages.traffic()),
            _ => respond(Response::error(404, "404 page not found")),
        }
    }

    fn index(&self, host_name: &str) -> String {
        let uptime = Duration::from_secs(self.started.elapsed().as_secs());
        let machine = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let facts: String = [
            ("Uptime", format!("{uptime:?}")),
            ("Version", env!("CARGO_PKG_VERSION").to_owned()),
            ("Machine", machine.trim().to_owned()),
            ("TLS hostname", host_name.to_owned()),
            ("Mesh key", self.has_mesh_key.to_string()),
        ]
        .iter()
        .map(|(name, value)| format!("<li><b>{name}:</b> {}</li>", escape(value)))
        .collect();
        let links: String = [
            ("/debug/vars", "Metrics (Go)"),
            ("/debug/varz", "Metrics (Prometheus)"),
            ("/debug/check", "Consistency check"),
            ("/debug/traffic", "Traffic check"),
        ]
        .iter()
        .map(|(path, what)| format!("<li><a href=\"{path}\">{path}</a> ({what})</li>"))
        .collect();
        format!("<html><body><h1>causewayd debug</h1><ul>{facts}{links}</ul></body></html>\n")
    }
}

/// What the consistency check found.
pub(super) async fn check(pages: &DebugPages) -> Response {
    match pages.check().await {
        Ok(okay) => guarded(Response::new(200, TEXT, okay)),
        Err(wrong) => Response::error(500, &wrong),
    }
}

/// 0.0.0.0/8 and :: reach this machine too.
pub(super) fn is_loopback(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.is_loopback() || v4.octets()[0] == 0,
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unspecified(),
    }
}

fn is_tailscale(address: IpAddr) -> bool {
    TAILSCALE.iter().any(|network| network.contains(address)) && !NOT_TAILSCALE.contains(address)
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::*;
    use crate::telemetry::exporter::{Exporter, registry};

    fn desk() -> DebugDesk {
        let networks = vec!["203.0.113.0/24".parse().expect("a network")];
        let key = Some("0123456789abcdef".parse().expect("a key"));
        DebugDesk {
            networks,
            key,
            has_mesh_key: false,
            started: Instant::now(),
            pages: DebugPages::idle(Exporter::new(registry())),
        }
    }

    fn allowed(door: Door, client: &str, request: &str, forwarded: bool) -> bool {
        let head = RequestHead::take(&mut BytesMut::from(request)).expect("a head").expect("whole");
        let client = std::net::SocketAddr::new(client.parse().expect("an address"), 1);
        let connection = if forwarded { std::net::SocketAddr::from(([10, 0, 0, 1], 2)) } else { client };
        desk().allows(door, &head, &Visitor { connection, client })
    }

    #[tokio::test]
    async fn the_pages_open_as_the_listener_the_address_and_the_key_allow() {
        let plain = "GET /debug/ HTTP/1.1\r\n\r\n";
        let forwarded = "GET /debug/ HTTP/1.1\r\nX-Forwarded-For: 203.0.113.1\r\n\r\n";
        let with_key = "GET /debug/?debugkey=0123456789abcdef HTTP/1.1\r\nX-Forwarded-For: 1.1.1.1\r\n\r\n";
        let wrong_key = "GET /debug/?debugkey=0123456789abcdeF HTTP/1.1\r\n\r\n";
        let posted_key = "POST /debug/?debugkey=0123456789abcdef HTTP/1.1\r\n\r\n";
        for (door, client, request, by_proxy, wanted) in [
            (Door::Metrics, "127.0.0.1", plain, false, true),
            (Door::Metrics, "::1", plain, false, true),
            (Door::Metrics, "100.100.1.1", plain, false, true),
            (Door::Metrics, "fd7a:115c:a1e0::5", plain, false, true),
            (Door::Metrics, "100.115.92.7", plain, false, false),
            (Door::Metrics, "100.128.0.1", plain, false, false),
            (Door::Metrics, "192.0.2.1", plain, false, false),
            (Door::Metrics, "203.0.113.1", plain, false, true),
            (Door::Metrics, "127.0.0.1", forwarded, false, false),
            (Door::Metrics, "127.0.0.1", forwarded, true, false),
            (Door::Metrics, "203.0.113.1", forwarded, true, true),
            (Door::Derp, "127.0.0.1", plain, false, false),
            (Door::Derp, "100.100.1.1", plain, false, false),
            (Door::Derp, "203.0.113.1", plain, false, true),
            (Door::Derp, "203.0.113.1", forwarded, false, false),
            (Door::Derp, "192.0.2.1", with_key, false, true),
            (Door::Plain, "192.0.2.1", with_key, false, true),
            (Door::Derp, "192.0.2.1", wrong_key, false, false),
            (Door::Derp, "192.0.2.1", posted_key, false, false),
        ] {
            assert_eq!(allowed(door, client, request, by_proxy), wanted, "{door:?} {client} {request}");
        }
    }

    #[tokio::test]
    async fn the_index_escapes_what_it_shows() {
        let page = desk().index("<b>&\"'");
        assert!(page.contains("<b>TLS hostname:</b> &lt;b&gt;&amp;&#34;&#39;</li>"), "{page}");
        assert!(page.contains("<a href=\"/debug/traffic\">"), "{page}");
    }
}
