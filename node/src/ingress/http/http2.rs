//! HTTP/2, for clients that offer nothing else (`derp.md` section 4.2). The answers are those of HTTP/1; DERP is not to be had here,
//! because an HTTP/2 stream is no connection that could be taken over.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use causeway_proto::derp::upgrade::{BodyLength, RequestHead};
use causeway_proto::limits::HTTP_HEAD_LEN_MAX;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONTENT_LENGTH, HeaderName, HeaderValue};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::connection::HEAD_DEADLINE;
use super::reply::Reply;
use super::response::Response;
use super::routes::route;
use super::{Door, Site, debug};
use crate::lifecycle::tasks::Executor;

/// Requests at the same time.
const STREAMS_MAX: u32 = 16;

/// Body bytes that a client may send before it is told to stop; no endpoint takes one.
const WINDOW_LEN: u32 = 64 * 1024;

/// Bytes of answers that wait for a slow client.
const SEND_BUFFER_LEN: usize = 64 * 1024;

/// Serves requests until `deadline` at the latest. The error is a metric label.
pub async fn serve<Io>(
    io: Io,
    door: Door,
    site: &Arc<Site>,
    remote: SocketAddr,
    deadline: Instant,
    executor: Executor,
) -> Result<(), &'static str>
where
    Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (asked, mut is_asked) = watch::channel(false);
    let answering = Arc::clone(site);
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        asked.send_replace(true);
        let (site, head) = (Arc::clone(&answering), head_of(&request));
        async move { Ok::<_, Infallible>(answer(door, &site, remote, &head).await) }
    });
    let mut server = http2::Builder::new(executor);
    server.timer(TokioTimer::new()).max_concurrent_streams(STREAMS_MAX).max_header_list_size(HTTP_HEAD_LEN_MAX as u32);
    server.initial_stream_window_size(WINDOW_LEN).initial_connection_window_size(WINDOW_LEN).max_send_buf_size(SEND_BUFFER_LEN);
    let serving = pin!(server.serve_connection(TokioIo::new(io), service));
    let time = async {
        let head_by = deadline.min(Instant::now() + HEAD_DEADLINE);
        if timeout_at(head_by, is_asked.changed()).await.is_err() {
            return Err("http_head_timeout");
        }
        sleep_until(deadline).await;
        Ok(())
    };
    tokio::select! {
        served = serving => served.map_err(|_| "http2"),
        ended = time => ended,
    }
}

async fn answer(door: Door, site: &Site, remote: SocketAddr, head: &RequestHead) -> hyper::Response<Full<Bytes>> {
    let visitor = site.visitor(remote, head);
    let (name, response) = match route(door, site, head, &visitor) {
        Reply::Respond(name, response) => (name, response),
        Reply::Check(pages) => ("debug", debug::check(&pages).await),
        Reply::UpgradeToDerp | Reply::UpgradeToWebSocket(_) => {
            ("derp", Response::error(500, "HTTP/2 does not support taking over the connection"))
        }
        Reply::Traffic(_) => ("debug", Response::error(501, "an endless page: ask for it by HTTP/1.1")),
    };
    site.metrics.request(name, response.status);
    written(response, head.method == "HEAD")
}

/// The request as HTTP/1 would have it.
fn head_of(request: &hyper::Request<Incoming>) -> RequestHead {
    let (uri, text) = (request.uri(), |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned());
    let authority = uri.authority().map(|authority| authority.as_str().to_owned());
    let mut headers: Vec<(String, String)> =
        request.headers().iter().map(|(name, value)| (name.as_str().to_owned(), text(value))).collect();
    // Where both are there, they say the same, and the authority counts.
    if let Some(authority) = &authority {
        headers.retain(|(name, _)| name != "host");
        headers.push(("host".to_owned(), authority.clone()));
    }
    let is_connect = request.method() == hyper::Method::CONNECT;
    RequestHead {
        method: request.method().as_str().to_owned(),
        path: if is_connect { authority.unwrap_or_default() } else { uri.path().to_owned() },
        query: uri.query().unwrap_or_default().to_owned(),
        minor_version: 1,
        headers,
        body: BodyLength::Bytes(0),
    }
}

/// Writes a response for HTTP/2; the date is hyper's.
fn written(response: Response, head_only: bool) -> hyper::Response<Full<Bytes>> {
    let length = response.content_length(head_only);
    let body = if head_only { Bytes::new() } else { response.body };
    let mut answer = hyper::Response::new(Full::new(body));
    *answer.status_mut() = hyper::StatusCode::from_u16(response.status).unwrap_or(hyper::StatusCode::INTERNAL_SERVER_ERROR);
    let headers = answer.headers_mut();
    for (name, value) in &response.headers {
        // Names are ours; a value that echoes bytes HTTP/2 cannot carry is left out.
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_bytes(value.as_bytes())) {
            headers.append(name, value);
        }
    }
    if let Some(length) = length {
        headers.insert(CONTENT_LENGTH, length.into());
    }
    answer
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::time::Duration;

    use http_body_util::{BodyExt, Empty};
    use hyper::client::conn::http2::SendRequest;
    use tokio::runtime::Handle;
    use tokio::task::JoinHandle;

    use super::super::testing::site;
    use super::*;
    use crate::lifecycle::health::Health;
    use crate::lifecycle::tasks::Tasks;

    /// A connection that may last a minute: its client, and how it ended.
    async fn connection(tasks: &Tasks) -> (SendRequest<Empty<Bytes>>, JoinHandle<Result<(), &'static str>>) {
        let (client, server) = tokio::io::duplex(64 * 1024);
        let executor = Executor::new(Handle::current(), tasks.clone());
        let (site, _maps) = site(Health::default());
        let (serving, by) = (executor.clone(), Instant::now() + Duration::from_secs(60));
        let served = tasks.spawn_on(&Handle::current(), async move {
            serve(server, Door::Derp, &Arc::new(site), "192.0.2.9:1".parse().unwrap(), by, serving).await
        });
        let (sender, driver) = hyper::client::conn::http2::handshake(executor, TokioIo::new(client)).await.unwrap();
        tasks.spawn_on(&Handle::current(), async move { drop(driver.await) });
        (sender, served)
    }

    fn request(method: &str, path: &str) -> http::request::Builder {
        hyper::Request::builder().method(method).uri(format!("https://relay.test{path}"))
    }

    #[tokio::test]
    async fn the_answers_are_those_of_http_1() {
        let tasks = Tasks::default();
        let (mut client, served) = connection(&tasks).await;
        for (method, path, status, header, body) in [
            ("GET", "/derp/probe", 200, ("access-control-allow-origin", "*"), ""),
            ("POST", "/derp/probe", 405, ("content-length", "19"), "bogus probe method\n"),
            ("GET", "/derp", 426, ("x-content-type-options", "nosniff"), "DERP requires connection upgrade\n"),
            ("GET", "/generate_204", 204, ("x-tailscale-response", "response ts_1"), ""),
            ("HEAD", "/healthz", 200, ("content-length", "3"), ""),
            ("GET", "/robots.txt", 200, ("x-frame-options", "DENY"), "User-agent: *\nDisallow: /\n"),
            ("GET", "/debug/", 403, ("content-length", "20"), "debug access denied\n"),
            ("POST", "//a?b", 307, ("location", "/a?b"), ""),
        ] {
            let asked = request(method, path).header("X-Tailscale-Challenge", "ts_1").body(Empty::new()).unwrap();
            let answer = client.send_request(asked).await.unwrap();
            assert_eq!(answer.status(), status, "{method} {path}");
            assert_eq!(answer.headers()[header.0], header.1, "{method} {path}");
            assert!(answer.headers().contains_key("date"), "{method} {path}");
            assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), body, "{method} {path}");
        }
        drop(client);
        assert_eq!(served.await.unwrap(), Ok(()), "the client is done");
    }

    #[tokio::test]
    async fn a_head_that_is_too_long_is_refused() {
        let tasks = Tasks::default();
        let (mut client, _served) = connection(&tasks).await;
        let long = request("GET", "/").header("x", "x".repeat(HTTP_HEAD_LEN_MAX)).body(Empty::new()).unwrap();
        let answer = client.send_request(long).await.map(|answer| answer.status().as_u16());
        assert!(!matches!(answer, Ok(200)), "{answer:?}");
        let short = request("GET", "/healthz").body(Empty::new()).unwrap();
        assert!(client.send_request(short).await.is_ok_and(|answer| answer.status() == 200), "others are answered");
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_ends_in_time_whether_something_is_asked_or_not() {
        let tasks = Tasks::default();
        let started = Instant::now();
        let (_silent, served) = connection(&tasks).await;
        assert_eq!(served.await.unwrap(), Err("http_head_timeout"));
        assert_eq!(started.elapsed(), HEAD_DEADLINE);
        let started = Instant::now();
        let (mut client, served) = connection(&tasks).await;
        client.send_request(request("GET", "/healthz").body(Empty::new()).unwrap()).await.unwrap();
        assert_eq!(served.await.unwrap(), Ok(()));
        assert_eq!(started.elapsed(), Duration::from_secs(60));
    }
}
