//! What becomes of a request, and the answers that several pages have in common.

use causeway_proto::derp::upgrade::RequestHead;
use causeway_proto::websocket::Handshake;

use super::response::{HTML, Response, reason_phrase};
use crate::ingress::debug::DebugPages;
use crate::ingress::debug::traffic::TrafficPage;

/// What becomes of a request.
#[derive(Debug)]
pub enum Reply {
    /// Answer, and perhaps another request. The name is the metric label.
    Respond(&'static str, Response),
    /// Answer with what the consistency check finds, which may take seconds.
    Check(DebugPages),
    /// Answer with what the clients move until this one has enough.
    Traffic(TrafficPage),
    /// The connection becomes DERP.
    UpgradeToDerp,
    /// It becomes DERP inside a WebSocket.
    UpgradeToWebSocket(Handshake),
}

pub(super) fn page(text: Result<String, std::fmt::Error>, content_type: &'static str) -> Response {
    match text {
        Ok(text) => Response::new(200, content_type, text),
        Err(_) => Response::error(500, "a metric cannot be written"),
    }
}

/// Headers of everything that a person may open in a browser.
pub(super) fn guarded(response: Response) -> Response {
    response
        .with("Strict-Transport-Security", "max-age=63072000; includeSubDomains")
        .with(
            "Content-Security-Policy",
            "default-src 'self'; frame-ancestors 'none'; form-action 'self'; base-uri 'self'; block-all-mixed-content; \
             object-src 'none'",
        )
        .with("X-Frame-Options", "DENY")
        .with("X-Content-Type-Options", "nosniff")
}

/// Text for HTML.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&#34;").replace('\'', "&#39;")
}

/// A redirect with the page that stock servers send to those who do not follow.
pub(super) fn redirect(status: u16, head: &RequestHead, url: String) -> Response {
    let response = match head.method.as_str() {
        "GET" => Response::new(status, HTML, format!("<a href=\"{}\">{}</a>.\n\n", escape(&url), reason_phrase(status))),
        "HEAD" => Response::new(status, HTML, ""),
        _ => Response::empty(status),
    };
    response.with("Location", url)
}
