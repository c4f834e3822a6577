//! HTTPS to an ACME directory: one request per connection, each bounded in time and size.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::header::{HOST, HeaderValue};
use hyper::{Request, Response, Uri};
use hyper_util::rt::TokioIo;
use instant_acme::{BodyWrapper, BytesResponse, HttpClient};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// From the lookup of the directory's name to the last byte of its answer.
const REQUEST_DEADLINE: Duration = Duration::from_secs(30);

/// Longest answer: a chain of certificates is a few KiB.
const BODY_LEN_MAX: usize = 256 * 1024;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The client.
pub(super) struct Https {
    tls: TlsConnector,
}

impl Https {
    /// Trusts whom `config` trusts.
    pub(super) fn new(config: Arc<ClientConfig>) -> Self {
        Self { tls: TlsConnector::from(config) }
    }
}

impl HttpClient for Https {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, instant_acme::Error>> + Send>> {
        let tls = self.tls.clone();
        Box::pin(async move {
            let host = request.uri().host().unwrap_or_default().to_owned();
            let answered = timeout(REQUEST_DEADLINE, exchange(tls, request)).await;
            let answered = answered.unwrap_or_else(|_| Err(format!("no answer within {REQUEST_DEADLINE:?}").into()));
            answered
                .map(BytesResponse::from)
                .map_err(|why| instant_acme::Error::Other(format!("cannot reach {host}: {why}").into()))
        })
    }
}

async fn exchange(tls: TlsConnector, mut request: Request<BodyWrapper<Bytes>>) -> Result<Response<Full<Bytes>>, BoxError> {
    let uri = std::mem::take(request.uri_mut());
    let authority = uri.authority().filter(|_| uri.scheme_str() == Some("https")).ok_or("not an https URL")?;
    request.headers_mut().insert(HOST, HeaderValue::from_str(authority.as_str())?);
    *request.uri_mut() = uri.path_and_query().map_or_else(Uri::default, |path| path.clone().into());

    let bare = authority.host().trim_start_matches('[').trim_end_matches(']');
    let tcp = TcpStream::connect((bare, authority.port_u16().unwrap_or(443))).await?;
    let stream = tls.connect(ServerName::try_from(bare.to_owned())?, tcp).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let answer = async {
        let (head, body) = sender.send_request(request).await?.into_parts();
        let body = Limited::new(body, BODY_LEN_MAX).collect().await?.to_bytes();
        Ok::<_, BoxError>(Response::from_parts(head, Full::new(body)))
    };
    let (mut connection, mut answer) = (pin!(connection), pin!(answer));
    tokio::select! {
        answered = &mut answer => answered,
        // The server closes after its answer, which may not have been taken up yet.
        ended = &mut connection => match ended {
            Ok(()) => answer.await,
            Err(error) => Err(error.into()),
        },
    }
}
