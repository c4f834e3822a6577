//! Where a node answers otherwise than a stock derper on purpose. Nothing else may differ.

use super::{Answer, CLOSE, Door, FIRST_MESSAGE_LEN};

/// One difference.
pub(super) struct Difference {
    /// Why it is there.
    pub(super) reason: &'static str,
    /// Makes the two answers alike where they differ for this reason.
    pub(super) level: fn(Door, &str, &mut Answer, &mut Answer),
}

pub(super) const DIFFERENCES: [Difference; 10] = [
    Difference { reason: "pages for people are about the node", level: pages },
    Difference {
        reason: "a server answers older clients in its own version of HTTP (RFC 9110 section 6.2) and says that it closes",
        level: older,
    },
    Difference { reason: "what is wrong with a request is told in words of the node's own", level: words },
    Difference { reason: "versions of HTTP that nobody speaks are malformed", level: versions },
    Difference { reason: "a head has at most 8 KiB and 64 headers: many of them wait at the same time", level: long_heads },
    Difference { reason: "no endpoint takes a body, so none is decoded: a chunked one ends its connection", level: chunked },
    Difference { reason: "a refused WebSocket is told all that would be right", level: refused_websocket },
    Difference { reason: "a WebSocket is closed by a code, without words", level: closed_websocket },
    Difference {
        reason: "whoever names no host, or names it in the target, is redirected to a URL that exists",
        level: redirect,
    },
    Difference { reason: "debug pages open to this machine on the metrics listener alone", level: debug },
];

fn has(request: &str, text: &str) -> bool {
    request.split("\r\n").any(|line| line.starts_with(text))
}

fn version(request: &str) -> &str {
    request.split("\r\n").next().and_then(|line| line.rsplit_once("HTTP/")).map_or("", |(_, version)| version)
}

fn strip(answer: &mut Answer, headers: &[&str]) {
    headers.iter().for_each(|name| drop(answer.headers.remove(*name)));
    answer.body.clear();
}

fn each(stock: &mut Answer, ours: &mut Answer, level: impl Fn(&mut Answer)) {
    level(stock);
    level(ours);
}

fn pages(_: Door, _: &str, stock: &mut Answer, ours: &mut Answer) {
    let is_page = |answer: &Answer| {
        answer.status == 200 && answer.headers.get("content-type").is_some_and(|kind| kind.contains("text/html"))
    };
    if is_page(stock) && is_page(ours) && stock.body.is_empty() == ours.body.is_empty() {
        each(stock, ours, |answer| strip(answer, &["content-length"]));
    }
}

fn older(_: Door, request: &str, stock: &mut Answer, ours: &mut Answer) {
    if version(request) == "1.0" && stock.version == "HTTP/1.0" && ours.version == "HTTP/1.1" {
        stock.version.clone_from(&ours.version);
        stock.headers.entry("connection".to_owned()).or_insert_with(|| "close".to_owned());
    }
}

fn words(_: Door, request: &str, stock: &mut Answer, ours: &mut Answer) {
    // Go's own answers to what is no request tell no length.
    let by_go = stock.status >= 400 && !stock.headers.contains_key("content-length") && !request.starts_with("HEAD");
    if by_go && ours.status == stock.status && !ours.kept {
        stock.reason.clone_from(&ours.reason);
        each(stock, ours, |answer| strip(answer, &["content-length", "x-content-type-options", "date", "content-type"]));
    }
}

fn versions(_: Door, request: &str, stock: &mut Answer, ours: &mut Answer) {
    if ["2.0", "1.2"].contains(&version(request)) && ours.status == 400 {
        stock.clone_from(ours);
    }
}

fn long_heads(_: Door, request: &str, stock: &mut Answer, ours: &mut Answer) {
    if (request.len() > 8192 || request.lines().count() > 64) && ours.status == 431 {
        stock.clone_from(ours);
    }
}

fn chunked(_: Door, request: &str, stock: &mut Answer, ours: &mut Answer) {
    if has(request, "Transfer-Encoding: chunked") && stock.kept && !ours.kept {
        stock.kept = false;
        stock.headers.insert("connection".to_owned(), "close".to_owned());
    }
}

fn refused_websocket(_: Door, request: &str, stock: &mut Answer, ours: &mut Answer) {
    if has(request, "Sec-WebSocket-Protocol") && ours.status == stock.status && ours.status >= 400 {
        each(stock, ours, |answer| strip(answer, &["content-length", "upgrade", "connection", "sec-websocket-version"]));
    }
}

fn closed_websocket(_: Door, request: &str, stock: &mut Answer, ours: &mut Answer) {
    if !has(request, "Sec-WebSocket-Protocol") || stock.status != 101 {
        return;
    }
    each(stock, ours, |answer| {
        let is_closed = answer.body.first() == Some(&CLOSE);
        answer.body.truncate(if is_closed { 4 } else { FIRST_MESSAGE_LEN });
        if is_closed {
            // The length of the words.
            answer.body.remove(1);
        }
    });
}

fn redirect(door: Door, request: &str, stock: &mut Answer, ours: &mut Answer) {
    let named_in_target = request.starts_with("GET http://");
    if door == Door::Redirect && stock.status == 302 && ours.status == 302 && (named_in_target || !has(request, "Host: ")) {
        let is_url = |answer: &Answer| answer.headers["location"].starts_with("https://relay.test/");
        if is_url(ours) || ours.headers["location"].starts_with("https://derper.causeway.test/") {
            stock.clone_from(ours);
        }
    }
}

fn debug(_: Door, request: &str, stock: &mut Answer, ours: &mut Answer) {
    if request.starts_with("GET /debug/ ") && !has(request, "X-Forwarded-For") && stock.status == 200 && ours.status == 403 {
        stock.clone_from(ours);
    }
}
