//! What is asked of every request before it is routed, as stock servers ask it: one host, a target that is a clean path, a body that can
//! be told from the next request.

use causeway_proto::derp::upgrade::RequestHead;

use super::reply::redirect;
use super::response::Response;

/// The path to route by, its escapes decoded; otherwise the answer.
pub(super) fn path_of(head: &RequestHead) -> Result<String, Response> {
    if let Some(refusal) = refusal(head) {
        return Err(refusal);
    }
    if head.method == "CONNECT" {
        return Ok(head.path.clone());
    }
    if head.path == "*" {
        // It is about the server as a whole.
        return Err(if head.method == "OPTIONS" { Response::empty(200) } else { Response::empty(400).closing() });
    }
    let decoded = decoded(&head.path).filter(|path| path.starts_with('/'));
    let decoded = decoded.ok_or_else(|| Response::error(400, "the target is no path").closing())?;
    let clean = clean(&head.path);
    if clean == head.path {
        return Ok(decoded);
    }
    let query = if head.query.is_empty() { String::new() } else { format!("?{}", head.query) };
    // Browsers take a backslash for a slash: two of them at the start would lead to another host.
    Err(redirect(307, head, clean.replace('\\', "%5C") + &query))
}

fn refusal(head: &RequestHead) -> Option<Response> {
    let hosts = head.header_values("Host").count();
    let refused = |status, why| Some(Response::error(status, why).closing());
    match head.header("Transfer-Encoding") {
        _ if hosts > 1 => refused(400, "more than one Host header"),
        _ if hosts == 0 && head.minor_version > 0 => refused(400, "missing required Host header"),
        Some(encoding) if !encoding.eq_ignore_ascii_case("chunked") => refused(501, "unsupported transfer encoding"),
        _ if head.header("Expect").is_some_and(|expected| !expected.eq_ignore_ascii_case("100-continue")) => {
            Some(Response::empty(417).closing())
        }
        _ => None,
    }
}

/// Without empty, `.` and `..` segments; with the slash that the debug pages end in.
fn clean(path: &str) -> String {
    let mut segments = Vec::new();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => drop(segments.pop()),
            segment => segments.push(segment),
        }
    }
    let ends_in_slash = (path.ends_with('/') || segments == ["debug"]) && !segments.is_empty();
    format!("/{}{}", segments.join("/"), if ends_in_slash { "/" } else { "" })
}

/// A path with its `%XX` decoded, but for slashes, which would make other segments; `None` if one is cut short or no number.
fn decoded(path: &str) -> Option<String> {
    let (mut decoded, mut rest) = (Vec::with_capacity(path.len()), path.as_bytes());
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first != b'%' {
            decoded.push(*first);
            continue;
        }
        let (digits, tail) = tail.split_first_chunk::<2>()?;
        let [high, low] = digits.map(|digit| char::from(digit).to_digit(16));
        let byte = u8::try_from(high? * 16 + low?).ok()?;
        rest = tail;
        match byte {
            b'/' => decoded.extend_from_slice(b"%2F"),
            byte => decoded.push(byte),
        }
    }
    Some(String::from_utf8_lossy(&decoded).into_owned())
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use proptest::prelude::*;

    use super::*;

    fn head(request: &str) -> RequestHead {
        RequestHead::take(&mut BytesMut::from(format!("{request}\r\n\r\n").as_str())).expect("a head").expect("whole")
    }

    /// The path, or the status of the answer and where it leads.
    fn path(request: &str) -> Result<String, (u16, Option<String>)> {
        let location = |response: &Response| response.headers.iter().find(|(name, _)| *name == "Location").cloned();
        path_of(&head(request)).map_err(|response| (response.status, location(&response).map(|(_, value)| value.into_owned())))
    }

    #[test]
    fn paths_are_decoded_and_unclean_ones_redirected() {
        for (target, wanted) in [
            ("/derp", "/derp"),
            ("/", "/"),
            ("/a/", "/a/"),
            ("/%64erp?x=%", "/derp"),
            ("/%2e%2E/robots%2etxt", "/../robots.txt"),
            ("/derp%2Fprobe", "/derp%2Fprobe"),
            ("/debug/varz", "/debug/varz"),
            ("http://other.test/a", "/a"),
        ] {
            assert_eq!(path(&format!("GET {target} HTTP/1.1\r\nHost: h")).as_deref(), Ok(wanted), "{target}");
        }
        for (target, to) in [
            ("//derp", "/derp"),
            ("/a/../b?q=1&r", "/b?q=1&r"),
            ("/a/./b//", "/a/b/"),
            ("/../..", "/"),
            ("/debug", "/debug/"),
            ("//debug?x", "/debug/?x"),
            ("/%64/./e", "/%64/e"),
            ("/.//\\other.test", "/%5Cother.test"),
        ] {
            assert_eq!(path(&format!("POST {target} HTTP/1.1\r\nHost: h")), Err((307, Some(to.to_owned()))), "{target}");
        }
        assert_eq!(path("CONNECT a.example:443 HTTP/1.1\r\nHost: h").as_deref(), Ok("a.example:443"));
    }

    proptest! {
        #[test]
        fn a_redirect_is_the_only_one_and_leads_to_this_host(target in "[/.%a2\\\\?]{1,12}") {
            if let Err((307, Some(to))) = path(&format!("GET /{target} HTTP/1.0")) {
                let path_of_it = to.split('?').next().unwrap_or_default();
                prop_assert!(to.starts_with('/') && !to.starts_with("//") && !path_of_it.contains('\\'), "{to}");
                prop_assert!(!matches!(path(&format!("GET {to} HTTP/1.0")), Err((307, _))), "{to}");
            }
        }
    }

    #[test]
    fn what_cannot_be_answered_is_refused_by_its_status() {
        for (request, status) in [
            ("GET / HTTP/1.1", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nHost: a", 400),
            ("GET relative HTTP/1.0", 400),
            ("GET /%zz HTTP/1.0", 400),
            ("GET /% HTTP/1.0", 400),
            ("GET * HTTP/1.0", 400),
            ("OPTIONS * HTTP/1.0", 200),
            ("POST / HTTP/1.0\r\nTransfer-Encoding: gzip", 501),
            ("POST / HTTP/1.0\r\nExpect: 200-maybe", 417),
        ] {
            assert_eq!(path(request), Err((status, None)), "{request}");
        }
        assert_eq!(path("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue").as_deref(), Ok("/"));
    }
}
