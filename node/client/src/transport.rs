//! The byte stream below DERP: TCP or a proxy's tunnel, with TLS on it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use causeway_proto::derp::meta_cert::MetaCert;
use tokio::io::{AsyncRead, AsyncWrite, BufReader, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::either::Either as Stream;

use crate::endpoint::Endpoint;
use crate::error::ConnectError;
use crate::tls::{self, Trust};

/// Bytes read from the socket at once. Below rustls, which by itself asks for 4 KiB at a time.
const SOCKET_READ_LEN: usize = 32 * 1024;

/// TCP to a server, or TLS to a proxy that passes on what is written.
pub(crate) type Socket = Stream<TcpStream, Box<TlsStream<TcpStream>>>;

/// What DERP is spoken over.
#[derive(Debug)]
pub(crate) enum Transport {
    Plain(Socket),
    Tls(Box<TlsStream<BufReader<Socket>>>),
}

impl Transport {
    /// Puts TLS on a stream unless the endpoint is plain; without `trust` by the system's roots. Also tells the server's key, if TLS 1.3
    /// was agreed on and a MetaCert shown.
    pub(crate) async fn new(
        socket: Socket,
        endpoint: &Endpoint,
        trust: Option<&Trust>,
    ) -> Result<(Self, Option<MetaCert>), ConnectError> {
        if endpoint.plain {
            return Ok((Self::Plain(socket), None));
        }
        let stream = BufReader::with_capacity(SOCKET_READ_LEN, socket);
        let tls = secure(stream, endpoint, trust).await?;
        let session = tls.get_ref().1;
        // Only TLS 1.3 hides the certificates from whoever is in between (`derp.md` section 4.3).
        let meta = match session.protocol_version() {
            Some(rustls::ProtocolVersion::TLSv1_3) => session.peer_certificates().and_then(tls::find_meta_cert),
            _ => None,
        };
        Ok((Self::Tls(Box::new(tls)), meta))
    }
}

/// Puts TLS on a stream to `endpoint`, whose certificate must be what the endpoint says.
pub(crate) async fn secure<S>(stream: S, endpoint: &Endpoint, trust: Option<&Trust>) -> Result<TlsStream<S>, ConnectError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let trust = match trust {
        Some(trust) => trust.clone(),
        None => Trust::system()?,
    };
    let config = trust.config_for(&endpoint.name, &endpoint.cert_name, endpoint.insecure_for_tests)?;
    let server_name = tls::server_name(&endpoint.host_name)?;
    let tls = TlsConnector::from(config).connect(server_name, stream).await;
    tls.map_err(|source| ConnectError::Tls { server_name: endpoint.host_name.clone(), source })
}

impl AsyncRead for Transport {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_shutdown(cx),
        }
    }
}
