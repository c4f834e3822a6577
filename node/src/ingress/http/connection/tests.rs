#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;

use causeway_proto::derpmap::DerpMap;
use tokio::net::{TcpListener, TcpStream};

use super::super::testing::site;
use super::*;
use crate::config::Home;
use crate::lifecycle::health::Health;

/// Sends `request` over a real socket, ends the sending side, and returns all bytes of the answer and how serving ended.
async fn exchange_as(door: Door, site: &Site, remote: &str, request: &[u8]) -> (String, Ended<TcpStream>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (server, _) = listener.accept().await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    let talk = async {
        client.write_all(request).await.unwrap();
        client.shutdown().await.unwrap();
        let mut answer = Vec::new();
        // A server that closes with bytes unread may reset.
        drop(client.read_to_end(&mut answer).await);
        String::from_utf8(answer).unwrap()
    };
    let serving = async {
        match serve(server, door, site, SocketAddr::new(remote.parse().unwrap(), 9), deadline).await {
            // The stream is dropped here, so that the client sees its end.
            Ended::Closed(reason) => Ended::Closed(reason),
            Ended::Derp { mut io, buffered, head, client, websocket } => {
                io.shutdown().await.unwrap();
                Ended::Derp { io, buffered, head, client, websocket }
            }
        }
    };
    tokio::join!(talk, serving)
}

async fn exchange(request: &str) -> String {
    let (site, _maps) = site(Health::default());
    exchange_as(Door::Derp, &site, "192.0.2.9", request.as_bytes()).await.0
}

#[tokio::test]
async fn endpoints_answer_byte_for_byte() {
    const CLOSE: &str = "Date: Sun, 06 Nov 1994 08:49:37 GMT\r\nConnection: close\r\n\r\n";
    let cases = [
        ("GET /derp/probe", format!("HTTP/1.1 200 OK\r\nAccess-Control-Allow-Origin: *\r\nContent-Length: 0\r\n{CLOSE}")),
        ("HEAD /derp/latency-check", format!("HTTP/1.1 200 OK\r\nAccess-Control-Allow-Origin: *\r\n{CLOSE}")),
        (
            "POST /derp/probe",
            format!(
                "HTTP/1.1 405 Method Not Allowed\r\nContent-Type: text/plain; charset=utf-8\r\nX-Content-Type-Options: nosniff\r\n\
                 Content-Length: 19\r\n{CLOSE}bogus probe method\n"
            ),
        ),
        (
            "GET /derp",
            format!(
                "HTTP/1.1 426 Upgrade Required\r\nContent-Type: text/plain; charset=utf-8\r\nX-Content-Type-Options: nosniff\r\n\
                 Content-Length: 33\r\n{CLOSE}DERP requires connection upgrade\n"
            ),
        ),
        (
            "PUT /generate_204?t=1",
            format!(
                "HTTP/1.1 204 No Content\r\nCache-Control: no-cache, no-store, must-revalidate, no-transform, max-age=0\r\n{CLOSE}"
            ),
        ),
        (
            "GET /healthz",
            format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 3\r\n{CLOSE}ok\n"),
        ),
        ("HEAD /healthz", format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 3\r\n{CLOSE}")),
    ];
    for (request, expected) in cases {
        assert_eq!(exchange(&format!("{request} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")).await, expected, "{request}");
    }
}

#[tokio::test]
async fn a_challenge_is_echoed_only_if_it_is_well_formed() {
    let long = "x".repeat(65);
    for (challenge, echoed) in
        [("ts_192.0.2.1", true), ("a:B-9._", true), ("", false), ("two words", false), (long.as_str(), false), ("<b>", false)]
    {
        let answer = exchange(&format!("GET /generate_204 HTTP/1.0\r\nX-Tailscale-Challenge: {challenge}\r\n\r\n")).await;
        let line = format!("\r\nX-Tailscale-Response: response {challenge}\r\n");
        assert_eq!(answer.contains(&line), echoed, "{challenge}: {answer}");
        assert_eq!(answer.contains("X-Tailscale-Response"), echoed, "{challenge}: {answer}");
    }
}

#[tokio::test]
async fn only_probes_are_readable_across_origins_and_pages_are_guarded() {
    for path in ["/", "/anything", "/robots.txt", "/bootstrap-dns", "/derpmap", "/generate_204", "/healthz"] {
        let answer = exchange(&format!("GET {path} HTTP/1.0\r\n\r\n")).await;
        assert!(!answer.contains("Access-Control"), "{path}: {answer}");
        assert!(answer.starts_with("HTTP/1.1 20"), "{path}: {answer}");
        let page = matches!(path, "/" | "/anything" | "/robots.txt" | "/bootstrap-dns");
        assert_eq!(answer.contains("X-Frame-Options: DENY"), page, "{path}: {answer}");
    }
}

#[tokio::test]
async fn a_node_without_a_derp_map_says_so_and_when_to_ask_again() {
    let (site, maps) = site(Health::default());
    maps.send(None).unwrap();
    let request = b"GET /derpmap HTTP/1.1\r\nHost: h\r\nIf-None-Match: *\r\nConnection: close\r\n\r\n";
    let answer = exchange_as(Door::Derp, &site, "192.0.2.9", request).await.0;
    assert!(answer.starts_with("HTTP/1.1 503 Service Unavailable\r\n") && answer.contains("\r\nRetry-After: 5\r\n"), "{answer}");
    assert!(!answer.contains("ETag") && !answer.contains("Regions"), "{answer}");
}

#[tokio::test]
async fn the_derp_map_has_a_tag_that_follows_its_content() {
    let (site, maps) = site(Health::default());
    let request = async |tag: &str| {
        let request = format!("GET /derpmap HTTP/1.1\r\nHost: h\r\nIf-None-Match: {tag}\r\nConnection: close\r\n\r\n");
        exchange_as(Door::Derp, &site, "192.0.2.9", request.as_bytes()).await.0
    };
    let first = request("\"other\"").await;
    assert!(first.starts_with("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"), "{first}");
    let tag = first.lines().find_map(|line| line.strip_prefix("ETag: ")).unwrap().to_owned();
    assert!(request(&tag).await.starts_with("HTTP/1.1 304 Not Modified\r\n"));
    assert!(request(&format!("\"x\", W/{tag}")).await.starts_with("HTTP/1.1 304"));
    maps.send(Some(Arc::new(DerpMap { omit_default_regions: true, ..DerpMap::default() }))).unwrap();
    assert!(request(&tag).await.starts_with("HTTP/1.1 200 OK\r\n"), "another map");
    // Equal maps have equal tags, whenever and wherever they were made.
    maps.send(Some(Arc::new(DerpMap::default()))).unwrap();
    assert!(request(&tag).await.starts_with("HTTP/1.1 304 Not Modified\r\n"));
}

#[tokio::test]
async fn a_connection_serves_several_requests_and_skips_bodies() {
    let requests = "GET /healthz HTTP/1.1\r\nHost: h\r\n\r\nPOST /healthz HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nGET /\
                    GET /derp/probe HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\nGET /healthz HTTP/1.1\r\nHost: h\r\n\r\n";
    let answer = exchange(requests).await;
    assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), 3, "the one after close is not answered: {answer}");
    let encoded =
        exchange("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n")
            .await;
    assert_eq!(encoded.matches("HTTP/1.1 ").count(), 1, "an encoded body ends the connection: {encoded}");
}

#[tokio::test]
async fn an_older_client_keeps_its_connection_if_it_asks_and_a_body_that_waits_is_not_awaited() {
    let older =
        "GET /healthz HTTP/1.0\r\nConnection: keep-alive\r\n\r\nGET /healthz HTTP/1.0\r\n\r\nGET /healthz HTTP/1.0\r\n\r\n";
    let answer = exchange(older).await;
    assert_eq!(answer.matches("HTTP/1.1 200 OK\r\n").count(), 2, "{answer}");
    assert_eq!(answer.matches("\r\nConnection: keep-alive\r\n").count(), 1, "{answer}");
    let waits = "POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n";
    let answer = exchange(waits).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains("\r\nConnection: close\r\n"), "{answer}");
}

#[tokio::test]
async fn every_main_endpoint_is_not_moved_by_method_or_unknown_path() {
    let (site, _maps) = site(Health::default());
    for (request, status, body) in [
        ("CONNECT controlplane.example:443", "403 Forbidden", "CONNECT not enabled\n"),
        ("POST /robots.txt", "200 OK", "User-agent: *\nDisallow: /\n"),
        ("DELETE /bootstrap-dns?q=a.test", "200 OK", ""),
        ("OPTIONS /derp", "426 Upgrade Required", "DERP requires connection upgrade\n"),
        ("GET /debug/", "403 Forbidden", "debug access denied\n"),
        ("GET //robots.txt", "307 Temporary Redirect", "<a href=\"/robots.txt\">Temporary Redirect</a>.\n\n"),
        ("GET /%64erp", "426 Upgrade Required", "DERP requires connection upgrade\n"),
        ("OPTIONS *", "200 OK", ""),
        ("PUT /derp/latency-check", "405 Method Not Allowed", "bogus probe method\n"),
    ] {
        let request = format!("{request} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
        let (answer, _) = exchange_as(Door::Derp, &site, "192.0.2.9", request.as_bytes()).await;
        let (head, text) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with(&format!("HTTP/1.1 {status}\r\n")) && text == body, "{request}: {answer}");
    }
}

#[tokio::test]
async fn bootstrap_dns_ends_its_connection_and_is_guarded() {
    let answer = exchange("GET /bootstrap-dns HTTP/1.1\r\nHost: h\r\n\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n").await;
    assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
    for header in ["Content-Type: application/json\r\n", "Connection: close\r\n", "X-Frame-Options: DENY\r\n"] {
        assert!(answer.contains(header), "{header}: {answer}");
    }
}

#[tokio::test]
async fn the_root_page_is_what_the_operator_wants() {
    let (mut site, _maps) = site(Health::default());
    let request = b"GET /any HTTP/1.0\r\n\r\n";
    let (page, _) = exchange_as(Door::Derp, &site, "192.0.2.9", request).await;
    assert!(page.contains("<h1>Causeway</h1>") && !page.contains("/debug/"), "{page}");
    let (page, _) = exchange_as(Door::Derp, &site, "198.51.100.1", request).await;
    assert!(page.contains("<a href=\"/debug/\">"), "those who may open it are told: {page}");
    site.home = Home::Blank;
    let (blank, _) = exchange_as(Door::Derp, &site, "192.0.2.9", request).await;
    assert!(blank.starts_with("HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n"), "{blank}");
    assert!(blank.ends_with("\r\n\r\n") && blank.contains("X-Frame-Options"), "{blank}");
    site.home = Home::Redirect("https://example.com/?a&b".into());
    let (redirect, _) = exchange_as(Door::Derp, &site, "192.0.2.9", request).await;
    assert!(redirect.starts_with("HTTP/1.1 302 Found\r\n") && redirect.contains("\r\nLocation: https://example.com/?a&b\r\n"));
    assert!(redirect.ends_with("<a href=\"https://example.com/?a&amp;b\">Found</a>.\n\n"), "{redirect}");
}

#[tokio::test]
async fn debug_pages_are_served_where_they_may_be_opened() {
    let (site, _maps) = site(Health::default());
    for (door, from, path, status, body) in [
        (Door::Metrics, "127.0.0.1", "/debug/", "200", "<a href=\"/debug/traffic\">"),
        (Door::Metrics, "192.0.2.9", "/debug/", "403", "debug access denied\n"),
        (Door::Metrics, "192.0.2.9", "/debug/varz", "200", "\nderp_accepts 0\n"),
        (Door::Metrics, "192.0.2.9", "/debug/vars", "200", "\"derp\":"),
        (Door::Metrics, "127.0.0.1", "/debug/check", "200", "\r\n\r\nderp.Server ConsistencyCheck okay"),
        (Door::Metrics, "127.0.0.1", "/debug/none", "404", "404 page not found\n"),
        (Door::Derp, "198.51.100.1", "/debug/varz", "200", "\nderp_accepts 0\n"),
        (Door::Derp, "192.0.2.9", "/debug/varz", "403", "debug access denied\n"),
        (Door::Derp, "192.0.2.9", "/debugger", "200", "<h1>Causeway</h1>"),
        (Door::Plain, "198.51.100.1", "/debug/varz", "200", "\nderp_accepts 0\n"),
    ] {
        let request = format!("GET {path} HTTP/1.0\r\n\r\n");
        let (answer, _) = exchange_as(door, &site, from, request.as_bytes()).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")) && answer.contains(body), "{door:?} {path}: {answer}");
    }
    let (answer, _) = exchange_as(Door::Plain, &site, "198.51.100.1", b"GET / HTTP/1.0\r\nHost: h\r\n\r\n").await;
    assert!(answer.contains("\r\nLocation: https://h/debug/\r\n"), "{answer}");
}

#[tokio::test(start_paused = true)]
async fn traffic_flows_until_the_client_has_enough() {
    let (site, _maps) = site(Health::default());
    let (mut client, server) = tokio::io::duplex(4096);
    let started = Instant::now();
    let serving = serve(server, Door::Metrics, &site, "127.0.0.1:1".parse().unwrap(), started + Duration::from_secs(60));
    let reading = async {
        client.write_all(b"GET /debug/traffic HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
        let mut text = String::new();
        // Nobody moves anything: rounds are empty lines.
        while !text.ends_with(&"\n".repeat(40)) {
            let mut piece = [0; 256];
            let len = client.read(&mut piece).await.unwrap();
            text.push_str(std::str::from_utf8(&piece[..len]).unwrap());
        }
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n") && text.contains("\r\nConnection: close\r\n"), "{text}");
        client.shutdown().await.unwrap();
    };
    let (ended, ()) = tokio::join!(serving, reading);
    assert!(matches!(ended, Ended::Closed(None)), "{ended:?}");
    assert!(started.elapsed() > Duration::from_secs(60), "no deadline ends it");
}

#[tokio::test]
async fn a_trusted_proxy_names_the_client_and_nobody_else_does() {
    let (site, _maps) = site(Health::default());
    let upgrade = b"GET /derp HTTP/1.1\r\nHost: h\r\nUpgrade: DERP\r\nX-Forwarded-For: 203.0.113.5, 192.0.2.77\r\n\r\n";
    for (door, from, wanted) in [
        (Door::Derp, "10.1.2.3", "192.0.2.77:0"),
        (Door::Plain, "10.1.2.3", "192.0.2.77:0"),
        (Door::Derp, "192.0.2.9", "192.0.2.9:9"),
        (Door::Plain, "127.0.0.1", "127.0.0.1:9"),
    ] {
        let Ended::Derp { client, .. } = exchange_as(door, &site, from, upgrade).await.1 else { panic!("not upgraded") };
        assert_eq!(client.to_string(), wanted, "{door:?} {from}");
    }
}

#[tokio::test]
async fn plain_http_serves_derp_to_everybody_if_the_operator_says_so() {
    let (mut site, _maps) = site(Health::default());
    site.plain_serves_derp = true;
    let upgrade = b"POST /derp HTTP/1.0\r\nUpgrade: DERP\r\n\r\n";
    assert!(matches!(exchange_as(Door::Plain, &site, "192.0.2.9", upgrade).await.1, Ended::Derp { .. }));
    let (answer, _) = exchange_as(Door::Plain, &site, "192.0.2.9", b"GET /derp/probe HTTP/1.0\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\nAccess-Control-Allow-Origin: *\r\n"), "{answer}");
}

#[tokio::test]
async fn a_websocket_is_told_from_raw_derp_and_from_nonsense() {
    let (site, _maps) = site(Health::default());
    let request = "GET /derp HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: derp\r\n\r\nrest";
    let ended = async |request: String| exchange_as(Door::Derp, &site, "192.0.2.9", request.as_bytes()).await;
    let Ended::Derp { websocket: Some(handshake), buffered, .. } = ended(request.into()).await.1 else { panic!("no WebSocket") };
    assert!(handshake.speaks_derp && buffered == "rest");
    let raw = request.replace("Sec-WebSocket-Protocol: derp\r\n", "");
    assert!(matches!(ended(raw).await.1, Ended::Derp { websocket: None, .. }), "a very old client");
    for (part, instead, status) in [
        ("GET", "POST", 405),
        ("HTTP/1.1", "HTTP/1.0", 426),
        ("Connection: Upgrade", "Connection: close", 426),
        ("Version: 13", "Version: 7", 400),
        ("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", "", 400),
    ] {
        let (answer, _) = ended(request.replace(part, instead)).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{instead}: {answer}");
        assert!(answer.contains("\r\nSec-WebSocket-Version: 13\r\n"), "{answer}");
    }
}

#[tokio::test]
async fn an_upgrade_hands_over_every_byte_after_the_head() {
    let (site, _maps) = site(Health::default());
    let request =
        b"GET /derp HTTP/1.1\r\nHost: h\r\nUpgrade: DERP\r\nDerp-Fast-Start: 1\r\nIdeal-Node: b-2\r\n\r\n\x02\x00\x00\x00\x01x";
    let (answer, ended) = exchange_as(Door::Derp, &site, "192.0.2.9", request).await;
    let Ended::Derp { buffered, head, .. } = ended else { panic!("not upgraded: {ended:?}") };
    assert_eq!((answer.as_str(), &buffered[..]), ("", &b"\x02\x00\x00\x00\x01x"[..]));
    assert!(head.fast_start() && head.ideal_node() == Some("b-2"));
}

#[tokio::test]
async fn plain_http_redirects_strangers_and_serves_loopback() {
    let (site, _maps) = site(Health::default());
    let upgrade = b"GET /derp HTTP/1.1\r\nHost: relay.example:80\r\nUpgrade: DERP\r\nConnection: close\r\n\r\n";
    let (answer, ended) = exchange_as(Door::Plain, &site, "192.0.2.9", upgrade).await;
    assert!(matches!(ended, Ended::Closed(None)));
    assert!(
        answer.starts_with(
            "HTTP/1.1 302 Found\r\nContent-Type: text/html; charset=utf-8\r\nLocation: https://relay.example/derp\r\n"
        ),
        "{answer}"
    );
    for loopback in ["127.0.0.1", "::1", "::ffff:127.0.0.2"] {
        assert!(matches!(exchange_as(Door::Plain, &site, loopback, upgrade).await.1, Ended::Derp { .. }), "{loopback}");
    }
    let (answer, _) = exchange_as(Door::Plain, &site, "192.0.2.9", b"GET /a?b=c HTTP/1.0\r\nHost: <script>\r\n\r\n").await;
    assert!(answer.contains("Location: https://a-1.example/a?b=c\r\n"), "{answer}");
    let (answer, _) = exchange_as(Door::Plain, &site, "192.0.2.9", b"POST /a HTTP/1.0\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 400 Bad Request\r\n") && answer.ends_with("Use HTTPS\n"), "{answer}");
    let (answer, _) = exchange_as(Door::Plain, &site, "192.0.2.9", b"GET /generate_204 HTTP/1.0\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 204"), "{answer}");
}

#[tokio::test]
async fn only_the_metrics_door_says_why_a_node_is_not_ready() {
    let health = Health::default();
    health.add(|| vec!["the Raft quorum is lost".into()]);
    let (site, _maps) = site(health);
    let request = b"GET /readyz HTTP/1.0\r\n\r\n";
    let (public, _) = exchange_as(Door::Derp, &site, "192.0.2.9", request).await;
    assert!(public.starts_with("HTTP/1.1 503 ") && !public.contains("quorum"), "{public}");
    let (private, _) = exchange_as(Door::Metrics, &site, "192.0.2.9", request).await;
    assert!(private.starts_with("HTTP/1.1 503 ") && private.contains("the Raft quorum is lost"), "{private}");
    let (metrics, _) = exchange_as(Door::Metrics, &site, "192.0.2.9", b"GET /metrics HTTP/1.0\r\n\r\n").await;
    assert!(metrics.contains("causeway_process_open_fds") && metrics.ends_with("# EOF\n"), "{metrics}");
    let (hidden, _) = exchange_as(Door::Derp, &site, "192.0.2.9", b"GET /metrics HTTP/1.0\r\n\r\n").await;
    assert!(!hidden.contains("causeway_process"), "no metrics on a public listener: {hidden}");
}

#[tokio::test]
async fn bad_heads_are_refused_with_a_counted_reason() {
    let (site, _maps) = site(Health::default());
    let long = format!("GET / HTTP/1.1\r\nHost: h\r\nX: {}\r\n\r\n", "x".repeat(9000));
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(65));
    for (request, status, reason) in [
        (long.as_str(), "431", "http_head_too_long"),
        (many.as_str(), "431", "http_headers_too_many"),
        ("\x16\x03\x01 nonsense\r\n\r\n", "400", "http_malformed"),
        ("GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", "400", "http_length_ambiguous"),
        ("GET / HT", "", "http_cut_short"),
    ] {
        let (answer, ended) = exchange_as(Door::Derp, &site, "192.0.2.9", request.as_bytes()).await;
        assert!(matches!(ended, Ended::Closed(Some(why)) if why == reason), "{reason}: {ended:?}");
        assert!(
            answer.is_empty() && status.is_empty() || answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{reason}: {answer}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_head_that_does_not_come_ends_after_its_deadline() {
    let (site, _maps) = site(Health::default());
    let (mut client, server) = tokio::io::duplex(1024);
    client.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n").await.unwrap();
    let started = Instant::now();
    let ended = serve(server, Door::Derp, &site, "192.0.2.9:1".parse().unwrap(), started + Duration::from_secs(60)).await;
    assert!(matches!(ended, Ended::Closed(Some("http_head_timeout"))), "{ended:?}");
    assert_eq!(started.elapsed(), HEAD_DEADLINE);
}
