//! Which request gets which answer (`derp.md` section 12.2). Pure: a request and the site in, a value out.

use causeway_proto::derp::upgrade::{DERP_PATH, RequestHead, Upgrade};
use causeway_proto::websocket::Handshake;

use super::debug::is_loopback;
use super::reply::{Reply, guarded, page, redirect};
use super::request::path_of;
use super::response::{HTML, Response, TEXT};
use super::{Door, Site, Visitor};
use crate::config::Home;
use crate::ingress::tls::challenges::CHALLENGE_PATH;
use crate::telemetry::exporter;

/// Longest captive-portal challenge that is echoed.
const CHALLENGE_LEN_MAX: usize = 64;

/// Answers of `/generate_204` must not be cached anywhere.
const NEVER_CACHE: &str = "no-cache, no-store, must-revalidate, no-transform, max-age=0";

/// Decides on one request.
#[must_use]
pub fn route(door: Door, site: &Site, head: &RequestHead, visitor: &Visitor) -> Reply {
    let path = match path_of(head) {
        Ok(path) => path,
        Err(response) => return Reply::Respond("unfit", response),
    };
    if path.starts_with("/debug/") {
        return site.debug.page(door, head, &path, visitor, &site.host_name);
    }
    let (name, response) = match door {
        Door::Metrics => metrics_door(site, &path),
        Door::Plain if path.starts_with(CHALLENGE_PATH) => ("acme_challenge", acme_challenge(site, &path)),
        Door::Plain if !serves_all(site, visitor) => plain_door(site, head, &path, visitor),
        Door::Plain | Door::Derp if path == DERP_PATH => match derp(head) {
            Ok(upgrade) => return upgrade,
            Err(response) => ("derp", response),
        },
        Door::Plain | Door::Derp => derp_door(door, site, head, &path, visitor),
    };
    Reply::Respond(name, response)
}

/// Whether plain HTTP answers everything to the other end: nobody can listen in on the loopback interface; between a proxy that ends TLS
/// and this node the operator says so.
fn serves_all(site: &Site, visitor: &Visitor) -> bool {
    site.plain_serves_derp || is_loopback(visitor.connection.ip()) || site.trusts(&visitor.connection)
}

fn derp_door(door: Door, site: &Site, head: &RequestHead, path: &str, visitor: &Visitor) -> (&'static str, Response) {
    match path {
        "/derp/probe" | "/derp/latency-check" => ("probe", probe(head)),
        "/generate_204" => ("generate_204", generate_204(head)),
        "/bootstrap-dns" => ("bootstrap_dns", bootstrap_dns(site, head, visitor)),
        "/derpmap" => ("derpmap", derp_map(site, head)),
        "/healthz" => ("healthz", Response::new(200, TEXT, "ok\n")),
        "/readyz" => ("readyz", ready(site, false)),
        "/robots.txt" => ("robots", guarded(Response::new(200, TEXT, "User-agent: *\nDisallow: /\n"))),
        _ if head.method == "CONNECT" => ("connect", connect(door)),
        _ => ("root", guarded(home(door, site, head, visitor))),
    }
}

/// Stock servers have it over TLS, for their operator's own use.
fn connect(door: Door) -> Response {
    match door {
        Door::Derp => Response::error(403, "CONNECT not enabled"),
        Door::Plain | Door::Metrics => Response::error(404, "404 page not found"),
    }
}

fn derp(head: &RequestHead) -> Result<Reply, Response> {
    match head.upgrade() {
        Some(Upgrade::Derp) => Ok(Reply::UpgradeToDerp),
        Some(Upgrade::WebSocket) => Handshake::of(head).map(Reply::UpgradeToWebSocket).map_err(|error| {
            Response::error(error.status(), &error.to_string()).with("Upgrade", "websocket").with("Sec-WebSocket-Version", "13")
        }),
        None => Err(Response::error(426, "DERP requires connection upgrade")),
    }
}

fn plain_door(site: &Site, head: &RequestHead, path: &str, visitor: &Visitor) -> (&'static str, Response) {
    match (path, head.method.as_str()) {
        ("/generate_204", _) => ("generate_204", generate_204(head)),
        ("/", "GET" | "HEAD") if site.debug.allows(Door::Plain, head, visitor) => ("redirect", to_https(site, head, "/debug/")),
        (_, "GET" | "HEAD") => ("redirect", to_https(site, head, &head.path)),
        (_, "CONNECT") => ("connect", connect(Door::Plain)),
        _ => ("redirect", Response::error(400, "Use HTTPS")),
    }
}

fn metrics_door(site: &Site, path: &str) -> (&'static str, Response) {
    match path {
        "/metrics" => ("metrics", page(site.exporter.text(), exporter::CONTENT_TYPE)),
        "/healthz" => ("healthz", Response::new(200, TEXT, "ok\n")),
        "/readyz" => ("readyz", ready(site, true)),
        _ => ("unknown", Response::error(404, "not found: there are /metrics, /healthz, /readyz and /debug/")),
    }
}

/// Browsers measure latency across origins here, so these answers alone carry CORS.
fn probe(head: &RequestHead) -> Response {
    match head.method.as_str() {
        "GET" | "HEAD" => Response::empty(200).with("Access-Control-Allow-Origin", "*"),
        _ => Response::error(405, "bogus probe method"),
    }
}

/// The challenge proves that no captive portal answered.
fn generate_204(head: &RequestHead) -> Response {
    let response = Response::empty(204).with("Cache-Control", NEVER_CACHE);
    let good = |c: char| c.is_ascii_alphanumeric() || "._:-".contains(c);
    match head.header("X-Tailscale-Challenge") {
        Some(challenge) if (1..=CHALLENGE_LEN_MAX).contains(&challenge.len()) && challenge.chars().all(good) => {
            response.with("X-Tailscale-Response", format!("response {challenge}"))
        }
        _ => response,
    }
}

/// What an ACME directory asks for on port 80.
fn acme_challenge(site: &Site, path: &str) -> Response {
    let token = path.strip_prefix(CHALLENGE_PATH).unwrap_or_default();
    match site.challenges.answer(token) {
        Some(answer) => Response::new(200, "application/octet-stream", answer),
        None => Response::error(404, "no such challenge is under way"),
    }
}

fn derp_map(site: &Site, head: &RequestHead) -> Response {
    if !matches!(head.method.as_str(), "GET" | "HEAD") {
        return Response::error(405, "wanted GET or HEAD").with("Allow", "GET, HEAD");
    }
    let document = match site.derp_map.current() {
        Ok(Some(document)) => document,
        // An empty map would take every relay from who believes it.
        Ok(None) => return Response::error(503, "no DERP map yet: ask again, or another node").with("Retry-After", "5"),
        Err(_) => return Response::error(500, "the DERP map cannot be written"),
    };
    let known = head.header_values("If-None-Match").flat_map(|value| value.split(','));
    let unchanged = known.map(|tag| tag.trim().trim_start_matches("W/")).any(|tag| tag == "*" || tag == document.etag);
    let response = if unchanged { Response::empty(304) } else { Response::new(200, "application/json", document.body) };
    response.with("ETag", document.etag).with("Cache-Control", "no-cache")
}

/// The public answer does not say why.
fn ready(site: &Site, with_reasons: bool) -> Response {
    let reasons = site.health.not_ready_because();
    match (reasons.is_empty(), with_reasons) {
        (true, _) => Response::new(200, TEXT, "ready\n"),
        (false, true) => Response::new(503, TEXT, format!("not ready:\n{}\n", reasons.join("\n"))),
        (false, false) => Response::new(503, TEXT, "not ready\n"),
    }
}

/// Clients whose DNS does not work ask any relay for the addresses of a few names; they come once.
fn bootstrap_dns(site: &Site, head: &RequestHead, visitor: &Visitor) -> Response {
    let query = head.query_value("q").filter(|name| !name.is_empty());
    let answer = site.bootstrap_dns.answer(query.as_deref(), visitor.client.ip());
    guarded(Response::new(200, "application/json", answer)).closing()
}

fn home(door: Door, site: &Site, head: &RequestHead, visitor: &Visitor) -> Response {
    match &site.home {
        Home::Page => Response::new(200, HTML, root_page(&site.node_name, site.debug.allows(door, head, visitor))),
        Home::Blank => Response::new(200, HTML, ""),
        Home::Redirect(url) => redirect(302, head, url.clone()),
    }
}

fn root_page(node_name: &str, may_debug: bool) -> String {
    let debug = if may_debug { "<p><a href=\"/debug/\">Debug pages</a></p>\n" } else { "" };
    format!(
        "<!DOCTYPE html>\n<html><head><title>Causeway</title></head><body><h1>Causeway</h1>\n\
         <p>This is {node_name}, a relay of a Causeway fleet. It speaks DERP to clients whose packets cannot go direct; what it \
         relays is encrypted end to end.</p>\n<p><a href=\"/derpmap\">DERP map</a></p>\n{debug}</body></html>\n"
    )
}

/// The same path over HTTPS.
fn to_https(site: &Site, head: &RequestHead, path: &str) -> Response {
    let host = head.header("Host").map(without_port).filter(|host| is_host(host)).unwrap_or(&site.host_name);
    let port = if site.https_port == 443 { String::new() } else { format!(":{}", site.https_port) };
    let query = if head.query.is_empty() { String::new() } else { format!("?{}", head.query) };
    // The parser lets no control character into a request target.
    redirect(302, head, format!("https://{host}{port}{path}{query}"))
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    }
}

fn is_host(host: &str) -> bool {
    !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || ".-:[]".contains(c))
}
