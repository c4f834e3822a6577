//! HTTPS to an ACME directory: each request bounded in time, each answer in size.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Request, Response};
use instant_acme::{BodyWrapper, BytesResponse};
use rustls::ClientConfig;
use tokio::runtime::Handle;
use tokio::time::timeout;

use crate::http_client::{HttpClient, Transport};
use crate::lifecycle::tasks::Tasks;

/// From the lookup of the directory's name to the last byte of its answer.
const REQUEST_DEADLINE: Duration = Duration::from_secs(30);

/// Longest answer: a chain of certificates is a few KiB.
const BODY_LEN_MAX: usize = 256 * 1024;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The client.
#[derive(Clone)]
pub(super) struct Https(HttpClient);

impl Https {
    /// Trusts whom `config` trusts; its connections are tasks on the runtime of the caller.
    pub(super) fn new(config: Arc<ClientConfig>, tasks: &Tasks) -> Self {
        Self(HttpClient::new(Transport::Tcp { tls: config }, Handle::current(), tasks.clone()))
    }

    async fn exchange(self, request: Request<BodyWrapper<Bytes>>) -> Result<Response<Full<Bytes>>, BoxError> {
        if request.uri().scheme_str() != Some("https") {
            return Err("not an https URL".into());
        }
        let (head, body) = request.into_parts();
        let request = Request::from_parts(head, Full::new(body.collect().await?.to_bytes()));
        let (head, body) = self.0.ask(request).await?.into_parts();
        let body = Limited::new(body, BODY_LEN_MAX).collect().await?.to_bytes();
        Ok(Response::from_parts(head, Full::new(body)))
    }
}

impl instant_acme::HttpClient for Https {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, instant_acme::Error>> + Send>> {
        let client = self.clone();
        Box::pin(async move {
            let host = request.uri().host().unwrap_or_default().to_owned();
            let answered = timeout(REQUEST_DEADLINE, client.exchange(request)).await;
            let answered = answered.unwrap_or_else(|_| Err(format!("no answer within {REQUEST_DEADLINE:?}").into()));
            answered
                .map(BytesResponse::from)
                .map_err(|why| instant_acme::Error::Other(format!("cannot reach {host}: {why}").into()))
        })
    }
}
