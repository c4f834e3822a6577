//! An HTTP server that answers as a test says, over TCP, TLS or a Unix socket, and keeps what it was asked.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::future::ready;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use futures::FutureExt;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::{Notify, watch};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::TaskTracker;

/// What the server does with a request.
#[derive(Clone, Debug)]
pub(crate) enum Behaviour {
    /// Answers with this status and body.
    Answer(u16, String),
    /// Answers with these bytes and closes.
    Raw(Vec<u8>),
    /// Never answers.
    Silence,
    /// Lets in, once it is told to.
    AllowWhen(Arc<Notify>),
    /// Closes the connection.
    Close,
    /// Closes a connection that was used before; lets in on a new one.
    Hangup,
}

impl Behaviour {
    pub(crate) fn allow(allow: bool) -> Self {
        Self::Answer(200, format!(r#"{{"Allow":{allow}}}"#))
    }
}

const ALLOWED: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\n{\"Allow\":true}";

/// A running server. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Server {
    behaviour: Arc<Mutex<Behaviour>>,
    requests: watch::Sender<Vec<String>>,
    connections: watch::Sender<usize>,
    tracker: TaskTracker,
}

impl Server {
    fn new(behaviour: Behaviour) -> Self {
        let (requests, connections) = (watch::Sender::new(Vec::new()), watch::Sender::new(0));
        Self { behaviour: Arc::new(Mutex::new(behaviour)), requests, connections, tracker: TaskTracker::new() }
    }

    pub(crate) async fn tcp(behaviour: Behaviour) -> (Self, SocketAddr) {
        Self::listening(behaviour, |io| ready(Some(io))).await
    }

    pub(crate) async fn tls(behaviour: Behaviour, acceptor: TlsAcceptor) -> (Self, SocketAddr) {
        // A client that does not trust the certificate ends here.
        Self::listening(behaviour, move |io| acceptor.accept(io).map(Result::ok)).await
    }

    /// Serves what `open` makes of each connection.
    async fn listening<Io, Opened>(
        behaviour: Behaviour,
        open: impl Fn(TcpStream) -> Opened + Send + 'static,
    ) -> (Self, SocketAddr)
    where
        Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        Opened: Future<Output = Option<Io>> + Send + 'static,
    {
        let server = Self::new(behaviour);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let accepting = server.clone();
        server.tracker.spawn(async move {
            loop {
                let (io, _) = listener.accept().await.unwrap();
                if let Some(io) = open(io).await {
                    accepting.serve(io);
                }
            }
        });
        (server, address)
    }

    pub(crate) fn unix(behaviour: Behaviour, path: &Path) -> Self {
        let server = Self::new(behaviour);
        let listener = UnixListener::bind(path).unwrap();
        let accepting = server.clone();
        server.tracker.spawn(async move {
            loop {
                let (io, _) = listener.accept().await.unwrap();
                accepting.serve(io);
            }
        });
        server
    }

    pub(crate) fn behave(&self, behaviour: Behaviour) {
        *self.behaviour.lock() = behaviour;
    }

    /// What it was asked so far: heads and bodies.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.requests.borrow().clone()
    }

    /// Connections it accepted so far.
    pub(crate) fn connections(&self) -> usize {
        *self.connections.borrow()
    }

    /// Waits until it was asked so often.
    pub(crate) async fn asked(&self, count: usize) {
        self.requests.subscribe().wait_for(|requests| requests.len() >= count).await.unwrap();
    }

    fn serve(&self, mut io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let server = self.clone();
        self.connections.send_modify(|count| *count += 1);
        self.tracker.spawn(async move {
            let mut is_used = false;
            while let Some(request) = read_request(&mut io).await {
                let behaviour = server.behaviour.lock().clone();
                server.requests.send_modify(|requests| requests.push(request));
                let written = match behaviour {
                    Behaviour::Answer(status, body) => {
                        let len = body.len();
                        let answer = format!("HTTP/1.1 {status} Whatever\r\nContent-Length: {len}\r\n\r\n{body}");
                        io.write_all(answer.as_bytes()).await
                    }
                    Behaviour::Raw(bytes) => {
                        drop(io.write_all(&bytes).await);
                        return;
                    }
                    Behaviour::AllowWhen(told) => {
                        told.notified().await;
                        io.write_all(ALLOWED).await
                    }
                    Behaviour::Silence => std::future::pending().await,
                    Behaviour::Hangup if !is_used => io.write_all(ALLOWED).await,
                    Behaviour::Close | Behaviour::Hangup => return,
                };
                is_used = true;
                if written.and(io.flush().await).is_err() {
                    return;
                }
            }
        });
    }
}

async fn read_request(io: &mut (impl AsyncRead + Unpin)) -> Option<String> {
    let mut request = Vec::new();
    loop {
        if let Some(head) = request.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            let text = String::from_utf8_lossy(&request[..head]).to_ascii_lowercase();
            let length =
                text.lines().find_map(|line| line.strip_prefix("content-length: ")).map_or(0, |len| len.parse().unwrap());
            if request.len() >= head + 4 + length {
                return Some(String::from_utf8(request).unwrap());
            }
        }
        if io.read_buf(&mut request).await.ok()? == 0 {
            return None;
        }
    }
}
