//! One HTTP connection: reads heads, writes responses, and ends when it is upgraded, closed, or out of time.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use bytes::BytesMut;
use causeway_proto::derp::upgrade::{BodyLength, HeadError, RequestHead};
use causeway_proto::websocket::Handshake;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, timeout_at};

use super::debug;
use super::reply::Reply;
use super::response::{Response, TEXT, stream_head};
use super::routes::route;
use super::{Door, Site};
use crate::ingress::debug::traffic::{TRAFFIC_INTERVAL, TrafficPage};

/// A request's head must be complete this long after its first byte (of the first request: after the connection).
pub const HEAD_DEADLINE: Duration = Duration::from_secs(5);

/// Most bytes of a body that are read and thrown away; no endpoint takes one.
const BODY_LEN_MAX: u64 = 64 * 1024;

/// Bytes read at once.
const READ_LEN: usize = 2048;

/// How a connection ended.
#[derive(Debug)]
pub enum Ended<Io> {
    /// Nothing is left to do. The reason is a metric label; `None` if it ended as it should.
    Closed(Option<&'static str>),
    /// It becomes DERP. Nothing has been answered to this request yet.
    Derp {
        /// The stream.
        io: Io,
        /// Bytes read beyond the head.
        buffered: BytesMut,
        /// The request.
        head: RequestHead,
        /// Who sent it.
        client: SocketAddr,
        /// It asked for a WebSocket.
        websocket: Option<Handshake>,
    },
}

/// A request that ends HTTP on its connection.
struct Upgrading {
    head: RequestHead,
    client: SocketAddr,
    websocket: Option<Handshake>,
}

/// A round of an endless page must be taken within this time.
const ROUND_DEADLINE: Duration = Duration::from_secs(10);

/// Serves requests until `deadline` at the latest; an endless answer for as long as the client takes it.
pub async fn serve<Io>(io: Io, door: Door, site: &Site, remote: SocketAddr, deadline: Instant) -> Ended<Io>
where
    Io: AsyncRead + AsyncWrite + Unpin,
{
    let mut connection = Connection { io, buffered: BytesMut::new(), deadline, clock: site.clock };
    match connection.requests(door, site, remote).await {
        Ok(Some(Upgrading { head, client, websocket })) => {
            Ended::Derp { io: connection.io, buffered: connection.buffered, head, client, websocket }
        }
        Ok(None) => {
            connection.close().await;
            Ended::Closed(None)
        }
        Err(reason) => Ended::Closed(Some(reason)),
    }
}

struct Connection<Io> {
    io: Io,
    buffered: BytesMut,
    deadline: Instant,
    clock: fn() -> SystemTime,
}

impl<Io: AsyncRead + AsyncWrite + Unpin> Connection<Io> {
    /// Answers requests; returns one that upgrades, or nothing at an orderly end.
    async fn requests(&mut self, door: Door, site: &Site, remote: SocketAddr) -> Result<Option<Upgrading>, &'static str> {
        let mut first = true;
        loop {
            let Some(head) = self.head(first).await? else { return Ok(None) };
            first = false;
            let visitor = site.visitor(remote, &head);
            let (name, response) = match route(door, site, &head, &visitor) {
                Reply::UpgradeToDerp => return Ok(Some(Upgrading { head, client: visitor.client, websocket: None })),
                Reply::UpgradeToWebSocket(handshake) => {
                    return Ok(Some(Upgrading { head, client: visitor.client, websocket: Some(handshake) }));
                }
                Reply::Traffic(page) => {
                    site.metrics.request("debug", 200);
                    return self.stream(page, head.method == "HEAD").await.map(|()| None);
                }
                Reply::Check(pages) => ("debug", debug::check(&pages).await),
                Reply::Respond(name, response) => (name, response),
            };
            // Who waits for leave to send a body gets the answer instead.
            let sends_body = !head.lists("Expect", "100-continue");
            let keep_alive = sends_body && self.skip_body(head.body).await? && head.keep_alive() && !response.closes;
            site.metrics.request(name, response.status);
            let connection = match (keep_alive, head.minor_version) {
                (false, _) => Some("close"),
                // The older protocol's clients do not expect it.
                (true, 0) => Some("keep-alive"),
                (true, _) => None,
            };
            self.write(&response.encode(head.method == "HEAD", connection, (self.clock)())).await?;
            if !keep_alive {
                return Ok(None);
            }
        }
    }

    /// The next request's head; `None` if the client is done.
    async fn head(&mut self, first: bool) -> Result<Option<RequestHead>, &'static str> {
        if !first && self.buffered.is_empty() && !self.wait_for_more().await {
            return Ok(None);
        }
        let by = self.deadline.min(Instant::now() + HEAD_DEADLINE);
        loop {
            match RequestHead::take(&mut self.buffered) {
                Ok(Some(head)) => return Ok(Some(head)),
                Ok(None) => {}
                Err(error) => return Err(self.refuse(error).await),
            }
            match self.read(by).await {
                Ok(0) if self.buffered.is_empty() => return Ok(None),
                Ok(0) => return Err("http_cut_short"),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::TimedOut => return Err("http_head_timeout"),
                Err(_) => return Err("http_io"),
            }
        }
    }

    /// Waits for the first byte of another request; false if none will come.
    async fn wait_for_more(&mut self) -> bool {
        matches!(self.read(self.deadline).await, Ok(read) if read > 0)
    }

    async fn read(&mut self, by: Instant) -> io::Result<usize> {
        self.buffered.reserve(READ_LEN);
        // Never more than asked for: what follows the head belongs to whoever takes over, but memory is bounded either way.
        let mut room = (&mut self.io).take(READ_LEN as u64);
        timeout_at(by, room.read_buf(&mut self.buffered)).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }

    /// Throws a body away. False if the connection cannot be used for another request.
    async fn skip_body(&mut self, body: BodyLength) -> Result<bool, &'static str> {
        let BodyLength::Bytes(mut left @ 0..=BODY_LEN_MAX) = body else { return Ok(false) };
        loop {
            let here = self.buffered.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            drop(self.buffered.split_to(here));
            left -= here as u64;
            if left == 0 {
                return Ok(true);
            }
            if self.read(self.deadline).await.map_err(|_| "http_body_timeout")? == 0 {
                return Err("http_cut_short");
            }
        }
    }

    /// Writes round after round until the client is gone. The end of the connection is the page's end, so no length is told.
    async fn stream(&mut self, mut page: TrafficPage, head_only: bool) -> Result<(), &'static str> {
        self.write(&stream_head(TEXT, (self.clock)())).await?;
        if head_only {
            return Ok(());
        }
        loop {
            self.deadline = Instant::now() + ROUND_DEADLINE;
            self.write(page.round().as_bytes()).await?;
            self.buffered.clear();
            // Whatever a client sends now is no request; its end is the end.
            match self.read(Instant::now() + TRAFFIC_INTERVAL).await {
                Ok(0) => return Ok(()),
                Err(error) if error.kind() != io::ErrorKind::TimedOut => return Err("http_io"),
                Ok(_) | Err(_) => {}
            }
        }
    }

    /// Says what is wrong with a head and names the reason.
    async fn refuse(&mut self, error: HeadError) -> &'static str {
        let response = Response::error(error.status(), &error.to_string());
        if self.write(&response.encode(false, Some("close"), (self.clock)())).await.is_ok() {
            self.close().await;
        }
        error.reason()
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), &'static str> {
        let write = async {
            self.io.write_all(bytes).await?;
            self.io.flush().await
        };
        timeout_at(self.deadline, write).await.map_err(|_| "http_write_timeout")?.map_err(|_| "http_io")
    }

    /// Ends the stream in order. The client may be gone already.
    async fn close(&mut self) {
        drop(timeout_at(self.deadline, self.io.shutdown()).await);
    }
}

#[cfg(test)]
mod tests;
