//! What both servers are asked.

/// `Sec-WebSocket-Key` and version of a good handshake.
const WEBSOCKET: &str = "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

/// Methods and paths asked over HTTP/2.
pub(super) const HTTP2: [(&str, &str); 10] = [
    ("GET", "/derp/probe"),
    ("HEAD", "/derp/latency-check"),
    ("POST", "/derp/probe"),
    ("GET", "/derp"),
    ("GET", "/generate_204?t=1"),
    ("GET", "/bootstrap-dns"),
    ("HEAD", "/robots.txt"),
    ("GET", "/robots.txt"),
    ("GET", "/no/such/page"),
    ("POST", "//a/../b?c"),
];

/// A request; `headers` end in line breaks.
fn request(line: &str, version: &str, headers: &str) -> String {
    // Stock servers open their debug pages to this machine, unless it forwards for somebody.
    format!("{line} HTTP/{version}\r\nX-Forwarded-For: 192.0.2.9\r\n{headers}\r\n")
}

fn hosted(line: &str, headers: &str) -> String {
    request(line, "1.1", &format!("Host: relay.test\r\n{headers}"))
}

fn closing(line: &str, headers: &str) -> String {
    hosted(line, &format!("Connection: close\r\n{headers}"))
}

/// Every endpoint and what is about it, one request each.
pub(super) fn all() -> Vec<String> {
    let mut all = endpoints();
    all.extend(upgrades());
    all.extend(challenges());
    all.extend(connections());
    all.extend(paths());
    all.extend(oddities());
    all.push("GET /debug/ HTTP/1.1\r\nHost: relay.test\r\n\r\n".to_owned());
    all
}

fn endpoints() -> Vec<String> {
    let paths = [
        "/derp",
        "/derp/probe",
        "/derp/latency-check",
        "/generate_204",
        "/bootstrap-dns",
        "/bootstrap-dns?q=a.example",
        "/robots.txt",
        "/",
        "/no/such/page",
        "/derp/",
        "/debug",
        "/debug/",
        "/debug/varz",
    ];
    let methods = ["GET", "HEAD", "POST", "OPTIONS", "PUT", "BREW"];
    let mut all: Vec<String> =
        methods.iter().flat_map(|method| paths.map(|path| closing(&format!("{method} {path}"), ""))).collect();
    // Browsers ask before they measure across origins.
    for path in ["/derp/probe", "/derp/latency-check", "/derp", "/generate_204"] {
        all.push(hosted(&format!("GET {path}"), "Origin: https://login.example\r\n"));
        let preflight =
            "Origin: https://login.example\r\nAccess-Control-Request-Method: GET\r\nAccess-Control-Request-Headers: x\r\n";
        all.push(hosted(&format!("OPTIONS {path}"), preflight));
    }
    all.push(closing("CONNECT a.example:443", ""));
    all
}

fn upgrades() -> Vec<String> {
    let mut all: Vec<String> = ["DERP", "derp", "DeRp", "websocket", "WebSocket", "h2c", "", "derp, websocket", " derp "]
        .map(|value| hosted("GET /derp", &format!("Upgrade: {value}\r\n")))
        .into();
    for (line, headers) in [
        ("GET /derp", "Upgrade: derp\r\nUpgrade: h2c\r\n"),
        ("GET /derp", "Upgrade: h2c\r\nUpgrade: derp\r\n"),
        ("POST /derp", "Upgrade: DERP\r\n"),
        ("HEAD /derp", "Upgrade: DERP\r\n"),
        ("GET /derp", "Upgrade: DERP\r\nConnection: close\r\n"),
        ("GET /derp?x=y", "Upgrade: DERP\r\nConnection: Upgrade\r\n"),
        ("GET /derp", "Upgrade: DERP\r\nDerp-Fast-Start: true\r\n"),
        ("GET /derp/", "Upgrade: DERP\r\n"),
        ("GET //derp", "Upgrade: DERP\r\n"),
        ("GET /%64erp", "Upgrade: DERP\r\n"),
    ] {
        all.push(hosted(line, headers));
    }
    all.push(request("GET /derp", "1.0", "Upgrade: DERP\r\n"));
    let socket = "Connection: Upgrade\r\nUpgrade: websocket\r\n";
    for (method, headers) in [
        ("GET", format!("{socket}Sec-WebSocket-Protocol: derp\r\n{WEBSOCKET}")),
        ("GET", format!("{socket}Sec-WebSocket-Protocol: chat, derp\r\nOrigin: https://other.example\r\n{WEBSOCKET}")),
        ("GET", format!("{socket}Sec-WebSocket-Protocol: xderp\r\n{WEBSOCKET}")),
        ("GET", format!("{socket}Sec-WebSocket-Protocol: derp\r\n")),
        ("GET", format!("{socket}Sec-WebSocket-Protocol: derp\r\n{}", WEBSOCKET.replace("13", "7"))),
        ("GET", format!("Upgrade: websocket\r\nSec-WebSocket-Protocol: derp\r\n{WEBSOCKET}")),
        ("POST", format!("{socket}Sec-WebSocket-Protocol: derp\r\n{WEBSOCKET}")),
    ] {
        all.push(hosted(&format!("{method} /derp"), &headers));
    }
    all
}

fn challenges() -> Vec<String> {
    let long = ["x".repeat(64), "x".repeat(65)];
    let texts = ["ts_192.0.2.1", "a.b_c:d-e", "two words", "a/b", "", "\u{e9}", &long[0], &long[1]];
    let mut all: Vec<String> =
        texts.iter().map(|text| hosted("GET /generate_204?t=1", &format!("X-Tailscale-Challenge: {text}\r\n"))).collect();
    all.push(hosted("GET /generate_204", "X-Tailscale-Challenge: a\r\nX-Tailscale-Challenge: b\r\n"));
    all
}

/// Connections that are kept or not, and bodies before the next request.
fn connections() -> Vec<String> {
    let mut all = Vec::new();
    for path in ["/", "/robots.txt", "/derp/probe", "/generate_204", "/bootstrap-dns", "/derp"] {
        let get = format!("GET {path}");
        all.push(hosted(&get, ""));
        all.push(request(&get, "1.0", ""));
        all.push(request(&get, "1.0", "Connection: keep-alive\r\n"));
        all.push(request(&format!("HEAD {path}"), "1.0", ""));
    }
    for (headers, body) in [
        ("Content-Length: 5\r\n", "hello"),
        ("Transfer-Encoding: chunked\r\n", "5\r\nhello\r\n0\r\n\r\n"),
        ("Transfer-Encoding: gzip\r\n", ""),
        ("Content-Length: x\r\n", ""),
        ("Content-Length: 1\r\nContent-Length: 2\r\n", ""),
        ("Expect: 100-continue\r\nContent-Length: 5\r\n", "hello"),
        ("Expect: 200-maybe\r\n", ""),
    ] {
        all.push(hosted("POST /", headers) + body);
    }
    all
}

fn paths() -> Vec<String> {
    let targets = [
        "http://other.test/derp/probe",
        "http://other.test/",
        "*",
        "relative",
        "/a//b",
        "/a/../b?c",
        "/a/./b/",
        "//robots.txt",
        "/%2e%2e/robots.txt",
        "/robots%2etxt",
        "/derp%2fprobe",
        "/%zz",
    ];
    let gets = targets.iter().map(|target| closing(&format!("GET {target}"), ""));
    gets.chain([closing("OPTIONS *", ""), closing("POST //robots.txt", "")]).collect()
}

fn oddities() -> Vec<String> {
    let mut all = vec![
        request("GET /robots.txt", "1.1", ""),
        request("GET /robots.txt", "1.0", ""),
        hosted("GET /robots.txt", "Host: other.test\r\n"),
        hosted("GET / x", ""),
        hosted("G@T /", ""),
        hosted("get /robots.txt", ""),
        request("GET /robots.txt", "2.0", "Host: relay.test\r\n"),
        request("GET /robots.txt", "1.2", "Host: relay.test\r\n"),
    ];
    let headers = [
        "Bad Header: x\r\n".to_owned(),
        "X: a\u{1}b\r\n".to_owned(),
        format!("X: {}\r\n", "x".repeat(9000)),
        "X: y\r\n".repeat(65),
    ];
    all.extend(headers.iter().map(|headers| closing("GET /robots.txt", headers)));
    all
}
