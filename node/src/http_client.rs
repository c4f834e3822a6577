//! HTTP/1.1 to the services that a node asks: over TCP, over TLS, or over a Unix socket.

use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use http::{Request, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio::runtime::Handle;
use tokio_rustls::TlsConnector;
use tower::Service;

use crate::lifecycle::tasks::{Executor, Tasks};

/// Connections kept for the next question, and how long.
const IDLE_CONNECTIONS_MAX: usize = 8;
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// Time to connect, divided among the addresses of a name: one that is silent must leave time for the next.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);

/// Where a question goes.
#[derive(Clone)]
pub(crate) enum Transport {
    /// To the host of the URL.
    Tcp {
        /// For `https`.
        tls: Arc<ClientConfig>,
    },
    /// To a local daemon.
    Unix(PathBuf),
}

/// Asks one service; connections are kept and used again.
#[derive(Clone, Debug)]
pub(crate) struct HttpClient {
    client: Client<Connector, Full<Bytes>>,
}

impl HttpClient {
    pub(crate) fn new(transport: Transport, runtime: Handle, tasks: Tasks) -> Self {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
        let mut builder = Client::builder(Executor::new(runtime, tasks));
        builder.pool_timer(TokioTimer::new()).pool_idle_timeout(IDLE_TIMEOUT).pool_max_idle_per_host(IDLE_CONNECTIONS_MAX);
        Self { client: builder.build(Connector { transport, tcp }) }
    }

    /// Asks; follows no redirect. A connection that was kept may be closed by the other side just then, so it asks once more.
    pub(crate) async fn ask(&self, request: Request<Full<Bytes>>) -> Result<http::Response<Incoming>, AskError> {
        match self.client.request(request.clone()).await {
            Err(error) if !error.is_connect() => self.client.request(request).await.map_err(AskError::Request),
            answer => answer.map_err(AskError::Request),
        }
    }
}

/// A question got no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    /// No connection, or no answer on it.
    #[error("{}", chain(.0))]
    Request(hyper_util::client::legacy::Error),
    /// The answer broke off.
    #[error("the answer broke off: {}", chain(.0))]
    Body(hyper::Error),
}

/// An error with what caused it: the outermost alone says little.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

/// Reads a body until `enough` says so, it ends, or it is `len_max` long.
pub(crate) async fn read_body(mut body: Incoming, len_max: usize, enough: impl Fn(&[u8]) -> bool) -> Result<BytesMut, AskError> {
    let mut read = BytesMut::new();
    while read.len() < len_max && !enough(&read) {
        let Some(frame) = body.frame().await else { break };
        if let Some(data) = frame.map_err(AskError::Body)?.data_ref() {
            read.extend_from_slice(&data[..data.len().min(len_max - read.len())]);
        }
    }
    Ok(read)
}

/// Reads a short body to its end, so that its connection can be used again; a long one costs the connection.
pub(crate) async fn drain(body: Incoming) {
    const DRAINED_LEN_MAX: u64 = 64 * 1024;
    if body.size_hint().upper().is_some_and(|len| len <= DRAINED_LEN_MAX) {
        // What fails here harms only the next question, which makes a connection of its own.
        drop(body.collect().await);
    }
}

#[derive(Clone)]
struct Connector {
    transport: Transport,
    tcp: HttpConnector,
}

impl std::fmt::Debug for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connector").finish_non_exhaustive()
    }
}

impl Service<Uri> for Connector {
    type Response = Stream;
    type Error = Box<dyn std::error::Error + Send + Sync>;
    type Future = BoxFuture<'static, Result<Stream, Self::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.tcp.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        match self.transport.clone() {
            Transport::Unix(path) => Box::pin(async move { Ok(Stream::new(UnixStream::connect(path).await?)) }),
            Transport::Tcp { tls } => {
                let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
                let encrypted = uri.scheme_str() == Some("https");
                let connect = self.tcp.call(uri);
                Box::pin(async move {
                    let tcp = connect.await?.into_inner();
                    if !encrypted {
                        return Ok(Stream::new(tcp));
                    }
                    let name = ServerName::try_from(host)?;
                    Ok(Stream::new(TlsConnector::from(tls).connect(name, tcp).await?))
                })
            }
        }
    }
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A connection of any kind.
struct Stream(TokioIo<Box<dyn Io>>);

impl Stream {
    fn new(io: impl Io + 'static) -> Self {
        Self(TokioIo::new(Box::new(io)))
    }
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl hyper::rt::Read for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: hyper::rt::ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl hyper::rt::Write for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
