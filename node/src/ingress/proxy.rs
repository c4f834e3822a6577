//! Reads the PROXY header before a connection of a load balancer, and refuses one from anybody else.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::BytesMut;
use causeway_proto::proxy_protocol::{ProxyError, ProxyHeader};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// A load balancer sends the header before anything else, at once.
const HEADER_DEADLINE: Duration = Duration::from_secs(5);

/// Bytes looked at in one go: more than most headers have.
const LOOK_LEN: usize = 256;

/// The shortest beginning that nothing but a PROXY header has.
const TELLING_LEN: usize = 6;

/// A connection of a load balancer cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProxiedError {
    #[error(transparent)]
    Header(#[from] ProxyError),
    #[error("no PROXY header came in time")]
    Timeout,
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl ProxiedError {
    pub(super) const fn reason(&self) -> &'static str {
        match self {
            Self::Header(error) => error.reason(),
            Self::Timeout => "proxy_header_timeout",
            Self::Io(_) => "proxy_header_io",
        }
    }
}

/// Takes the header off `socket` and says whose connection it is; `None`: the load balancer's own.
pub(super) async fn client_of(socket: &mut TcpStream) -> Result<Option<SocketAddr>, ProxiedError> {
    let header = timeout(HEADER_DEADLINE, read_header(socket)).await.map_err(|_| ProxiedError::Timeout)??;
    Ok(match header {
        ProxyHeader::Proxied { source, .. } => Some(SocketAddr::new(source.ip().to_canonical(), source.port())),
        ProxyHeader::Local => None,
    })
}

/// Only looks at what came until it is known to be part of the header: what follows belongs to TLS or HTTP.
async fn read_header(socket: &mut TcpStream) -> Result<ProxyHeader, ProxiedError> {
    let mut header = BytesMut::new();
    let mut look = [0; LOOK_LEN];
    loop {
        let seen = socket.peek(&mut look).await?;
        if seen == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        header.extend_from_slice(&look[..seen]);
        let taken = ProxyHeader::take(&mut header)?;
        let foreign = if taken.is_some() { header.len() } else { 0 };
        socket.read_exact(&mut look[..seen - foreign]).await?;
        if let Some(taken) = taken {
            return Ok(taken);
        }
    }
}

/// Whether the client begins with a PROXY header, without taking it. An error shows again when the socket is read.
pub(super) async fn sends_header(socket: &TcpStream) -> bool {
    let mut look = [0; TELLING_LEN];
    matches!(socket.peek(&mut look).await, Ok(TELLING_LEN) if ProxyHeader::may_begin(&look))
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let dialled = TcpStream::connect(listener.local_addr().expect("bound")).await.expect("connected");
        dialled.set_nodelay(true).expect("option");
        (dialled, listener.accept().await.expect("accepted").0)
    }

    #[tokio::test]
    async fn the_header_is_taken_in_pieces_and_nothing_behind_it() {
        let long =
            [b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x03\xe8\xc0\x00\x02\x07\x0a\x00\x00\x01\x12\x34\x01\xbb".as_slice(), &[4; 988]]
                .concat();
        for header in [b"PROXY TCP4 192.0.2.7 10.0.0.1 4660 443\r\n".as_slice(), &long] {
            for piece in [1, 7, header.len()] {
                let (mut dialled, mut accepted) = pair().await;
                let send = async {
                    for piece in header.chunks(piece) {
                        dialled.write_all(piece).await.expect("sent");
                    }
                    dialled.write_all(b"\x16rest").await.expect("sent");
                };
                let ((), client) = tokio::join!(send, client_of(&mut accepted));
                assert_eq!(client.expect("a header"), Some("192.0.2.7:4660".parse().expect("an address")));
                let mut rest = [0; 5];
                accepted.read_exact(&mut rest).await.expect("what follows");
                assert_eq!(&rest, b"\x16rest");
            }
        }
    }

    #[tokio::test]
    async fn what_is_no_header_is_told_by_name() {
        for (bytes, reason) in [
            (&b"\x16\x03\x01"[..], "proxy_header_absent"),
            (b"PROXY TCP4 nonsense\r\n", "proxy_header_malformed"),
            (b"PROXY TCP4 192.0.2", "proxy_header_io"),
        ] {
            let (mut dialled, mut accepted) = pair().await;
            dialled.write_all(bytes).await.expect("sent");
            dialled.shutdown().await.expect("ended");
            assert_eq!(client_of(&mut accepted).await.expect_err("refused").reason(), reason);
        }
    }

    #[tokio::test]
    async fn a_health_check_is_the_load_balancers_own() {
        let (mut dialled, mut accepted) = pair().await;
        dialled.write_all(b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0").await.expect("sent");
        assert_eq!(client_of(&mut accepted).await.expect("a header"), None);
    }

    #[tokio::test]
    async fn a_header_from_strangers_is_seen_and_left() {
        for (bytes, seen) in
            [(&b"PROXY TCP4 1"[..], true), (b"\r\n\r\n\0\r\n", true), (b"POST /derp", false), (b"\x16\x03", false)]
        {
            let (mut dialled, mut accepted) = pair().await;
            dialled.write_all(bytes).await.expect("sent");
            dialled.shutdown().await.expect("ended");
            accepted.readable().await.expect("readable");
            assert_eq!(sends_header(&accepted).await, seen);
            let mut all = Vec::new();
            accepted.read_to_end(&mut all).await.expect("all of it");
            assert_eq!(all, bytes);
        }
    }
}
