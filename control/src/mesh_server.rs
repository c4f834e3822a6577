//! Serves gRPC on accepted node-to-node connections, telling each request who the peer is.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures::{Stream, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::Connected;

use crate::identity::{MeshStream, PeerIdentity};
use crate::peers::{CONNECTION_WINDOW, KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT, STREAM_WINDOW};

/// Concurrent streams, and so requests, per connection.
pub const STREAMS_MAX: u32 = 256;
/// Bytes of a request's header list.
pub const HEADER_LIST_MAX: u32 = 16 << 10;

/// Serves `routes` on every connection of `incoming`; each request carries its [`PeerIdentity`] in its extensions.
///
/// Returns when `incoming` ends or `cancel` fires, once the requests under way are done.
///
/// # Errors
/// The transport's, which do not happen with an infallible `incoming`.
pub async fn serve(
    incoming: impl Stream<Item = (MeshStream, PeerIdentity)> + Send,
    routes: Routes,
    cancel: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let connections = incoming.map(|(stream, peer)| Ok::<_, Infallible>(IdentifiedStream { stream, peer }));
    Server::builder()
        .max_concurrent_streams(STREAMS_MAX)
        .concurrency_limit_per_connection(STREAMS_MAX as usize)
        .load_shed(true)
        .http2_max_header_list_size(HEADER_LIST_MAX)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .add_routes(routes)
        .serve_with_incoming_shutdown(connections, cancel.cancelled_owned())
        .await
}

/// A connection that knows its peer.
struct IdentifiedStream {
    stream: MeshStream,
    peer: PeerIdentity,
}

impl Connected for IdentifiedStream {
    type ConnectInfo = PeerIdentity;

    fn connect_info(&self) -> PeerIdentity {
        self.peer
    }
}

impl AsyncRead for IdentifiedStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for IdentifiedStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
