//! Serves gRPC on accepted node-to-node connections, telling each request who the peer is.

use std::convert::Infallible;
use std::sync::Arc;

use futures::{Stream, StreamExt};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::Server;

use crate::identity::{EvictableStream, MeshStream, MeshTls, PeerIdentity};
use crate::peers::{CONNECTION_WINDOW, KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT, STREAM_WINDOW};

/// Concurrent streams, and so requests, per connection.
pub const STREAMS_MAX: u32 = 256;
/// Bytes of a request's header list.
pub const HEADER_LIST_MAX: u32 = 16 << 10;

/// Serves `routes` on every connection of `incoming`; each request carries its [`PeerIdentity`] in its extensions. A connection ends
/// when `tls` learns that its peer is evicted.
///
/// Returns when `incoming` ends or `cancel` fires, once the requests under way are done.
///
/// # Errors
/// The transport's, which do not happen with an infallible `incoming`.
pub async fn serve(
    incoming: impl Stream<Item = (MeshStream, PeerIdentity)> + Send,
    routes: Routes,
    tls: Arc<MeshTls>,
    cancel: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let connections =
        incoming.map(move |(stream, peer)| Ok::<_, Infallible>(EvictableStream::new(stream, peer, Arc::clone(&tls))));
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
