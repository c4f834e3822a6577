//! Which request gets which answer (`derp.md` section 12.2). Pure: a request and the site in, a value out.

use std::net::IpAddr;

use causeway_proto::derp::upgrade::{DERP_PATH, RequestHead, Upgrade};

use super::response::{Response, TEXT};
use super::{Door, Site};
use crate::ingress::debug;
use crate::ingress::tls::challenges::CHALLENGE_PATH;
use crate::telemetry::exporter;

/// What becomes of a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Reply {
    /// Answer, and perhaps another request. The name is the metric label.
    Respond(&'static str, Response),
    /// The connection becomes DERP.
    UpgradeToDerp,
}

/// Longest captive-portal challenge that is echoed.
const CHALLENGE_LEN_MAX: usize = 64;

/// Answers of `/generate_204` must not be cached anywhere.
const NEVER_CACHE: &str = "no-cache, no-store, must-revalidate, no-transform, max-age=0";

/// Decides on one request from `remote`.
#[must_use]
pub fn route(door: Door, site: &Site, head: &RequestHead, remote: IpAddr) -> Reply {
    match door {
        Door::Plain if head.path.starts_with(CHALLENGE_PATH) => Reply::Respond("acme_challenge", acme_challenge(site, head)),
        Door::Metrics => metrics_door(site, head),
        Door::Derp => derp_door(site, head),
        // Nobody can listen on the loopback interface: there, plain HTTP serves everything.
        Door::Plain if is_loopback(remote) => derp_door(site, head),
        Door::Plain => plain_door(site, head),
    }
}

/// 0.0.0.0/8 and :: reach this machine too.
fn is_loopback(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.is_loopback() || v4.octets()[0] == 0,
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unspecified(),
    }
}

fn derp_door(site: &Site, head: &RequestHead) -> Reply {
    let (name, response) = match head.path.as_str() {
        DERP_PATH => match head.upgrade() {
            Some(Upgrade::Derp) => return Reply::UpgradeToDerp,
            Some(Upgrade::WebSocket) => ("derp", Response::error(501, "DERP over WebSocket is not offered here")),
            None => ("derp", Response::error(426, "DERP requires connection upgrade")),
        },
        "/derp/probe" | "/derp/latency-check" => ("probe", probe(head)),
        "/generate_204" => ("generate_204", generate_204(head)),
        "/derpmap" => ("derpmap", derp_map(site, head)),
        "/healthz" => ("healthz", Response::new(200, TEXT, "ok\n")),
        "/readyz" => ("readyz", ready(site, false)),
        "/robots.txt" => ("robots", guarded(Response::new(200, TEXT, "User-agent: *\nDisallow: /\n"))),
        _ => ("root", guarded(Response::new(200, "text/html; charset=utf-8", root_page(&site.node_name)))),
    };
    Reply::Respond(name, response)
}

fn plain_door(site: &Site, head: &RequestHead) -> Reply {
    let (name, response) = match (head.path.as_str(), head.method.as_str()) {
        ("/generate_204", _) => ("generate_204", generate_204(head)),
        (_, "GET" | "HEAD") => ("redirect", redirect(site, head)),
        _ => ("redirect", Response::error(400, "Use HTTPS")),
    };
    Reply::Respond(name, response)
}

fn metrics_door(site: &Site, head: &RequestHead) -> Reply {
    let (name, response) = match head.path.as_str() {
        "/metrics" => ("metrics", page(site.exporter.text(), exporter::CONTENT_TYPE)),
        "/debug/varz" => ("debug", page(site.debug.varz(), debug::VARZ_CONTENT_TYPE)),
        "/debug/vars" => ("debug", page(site.debug.vars(), debug::VARS_CONTENT_TYPE)),
        "/debug/check" => match site.debug.check() {
            Ok(okay) => ("debug", Response::new(200, TEXT, okay)),
            Err(why) => ("debug", Response::error(500, &why)),
        },
        "/healthz" => ("healthz", Response::new(200, TEXT, "ok\n")),
        "/readyz" => ("readyz", ready(site, true)),
        _ => ("unknown", Response::error(404, "not found: there are /metrics, /debug/varz, /healthz and /readyz")),
    };
    Reply::Respond(name, response)
}

fn page(text: Result<String, std::fmt::Error>, content_type: &'static str) -> Response {
    match text {
        Ok(text) => Response::new(200, content_type, text),
        Err(_) => Response::error(500, "a metric cannot be written"),
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
fn acme_challenge(site: &Site, head: &RequestHead) -> Response {
    let token = head.path.strip_prefix(CHALLENGE_PATH).unwrap_or_default();
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

/// Headers of everything that a person may open in a browser.
fn guarded(response: Response) -> Response {
    response
        .with("Strict-Transport-Security", "max-age=63072000; includeSubDomains")
        .with("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'; form-action 'none'; base-uri 'self'")
        .with("X-Frame-Options", "DENY")
        .with("X-Content-Type-Options", "nosniff")
}

fn root_page(node_name: &str) -> String {
    format!(
        "<!DOCTYPE html>\n<html><head><title>Causeway</title></head><body><h1>Causeway</h1>\n\
         <p>This is {node_name}, a relay of a Causeway fleet. It speaks DERP to clients whose packets cannot go direct; what it \
         relays is encrypted end to end.</p>\n<p><a href=\"/derpmap\">DERP map</a></p>\n</body></html>\n"
    )
}

fn redirect(site: &Site, head: &RequestHead) -> Response {
    let host = head.header("Host").map(without_port).filter(|host| is_host(host)).unwrap_or(&site.host_name);
    let port = if site.https_port == 443 { String::new() } else { format!(":{}", site.https_port) };
    let query = if head.query.is_empty() { String::new() } else { format!("?{}", head.query) };
    // The parser lets no control character into a request target.
    let path = if head.path.starts_with('/') { head.path.as_str() } else { "/" };
    Response::empty(302).with("Location", format!("https://{host}{port}{path}{query}"))
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
