//! The admission URL: a POST per client, as stock relays send it (`derp.md` section 10).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use causeway_proto::derp::admit::{ADMIT_ANSWER_LEN_MAX, AdmitAnswer, admit_request, read_admit_answer};
use futures::future::BoxFuture;
use http::{Method, Request, StatusCode, Uri};
use http_body_util::Full;
use rustls::ClientConfig;
use tokio::runtime::Handle;

use super::cache::{Failure, Source};
use super::{Applicant, Decision, Denial};
use crate::http_client::{AskError, HttpClient, Transport, drain, read_body};
use crate::lifecycle::tasks::Tasks;

/// A question and its answer, connecting included.
pub const VERIFY_URL_DEADLINE: Duration = Duration::from_secs(5);

/// Asks a URL.
#[derive(Debug)]
pub struct VerifyUrl {
    url: Uri,
    fail_open: bool,
    client: HttpClient,
}

impl VerifyUrl {
    /// `tls` is for `https`; with `fail_open`, no answer counts as a yes.
    #[must_use]
    pub fn new(url: Uri, fail_open: bool, tls: Arc<ClientConfig>, runtime: Handle, tasks: Tasks) -> Self {
        Self { url, fail_open, client: HttpClient::new(Transport::Tcp { tls }, runtime, tasks) }
    }

    async fn post(&self, applicant: Applicant) -> Result<Result<Decision, Failure>, AskError> {
        let mut request = Request::new(Full::new(Bytes::from(admit_request(&applicant.key, applicant.source))));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.url.clone();
        let response = self.client.ask(request).await?;
        let status = response.status();
        if status != StatusCode::OK {
            drain(response.into_body()).await;
            if status.is_server_error() {
                // Never a yes, but whoever was let in lately need not suffer.
                return Ok(Err(Failure { otherwise: Decision::Deny(Denial::UrlFailing), why: format!("status {status}") }));
            }
            return Ok(Ok(Decision::Deny(Denial::UrlStatus)));
        }
        let enough = |read: &[u8]| read_admit_answer(read) != AdmitAnswer::Incomplete;
        let body = read_body(response.into_body(), ADMIT_ANSWER_LEN_MAX, enough).await?;
        Ok(Ok(match read_admit_answer(&body) {
            AdmitAnswer::Allow => Decision::Allow,
            AdmitAnswer::Deny => Decision::Deny(Denial::UrlDenied),
            AdmitAnswer::Incomplete | AdmitAnswer::Malformed => Decision::Deny(Denial::UrlAnswer),
        }))
    }
}

impl Source for VerifyUrl {
    fn ask(&self, applicant: Applicant) -> BoxFuture<'_, Result<Decision, Failure>> {
        Box::pin(async move {
            let failed = |error: AskError| Err(Failure { otherwise: self.unreachable(), why: error.to_string() });
            self.post(applicant).await.unwrap_or_else(failed)
        })
    }

    fn deadline(&self) -> Duration {
        VERIFY_URL_DEADLINE
    }

    fn unreachable(&self) -> Decision {
        if self.fail_open { Decision::Allow } else { Decision::Deny(Denial::UrlUnreachable) }
    }

    fn label(&self) -> &'static str {
        "verify_url"
    }
}
