//! The Tailscale daemon of this machine: whoever it knows may log in (`derp.md` section 10).

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use causeway_proto::key::NodePublic;
use futures::future::BoxFuture;
use http::{Request, StatusCode, Uri};
use http_body_util::Full;
use tokio::runtime::Handle;

use super::cache::{Failure, Source};
use super::{Applicant, Decision, Denial};
use crate::http_client::{AskError, HttpClient, Transport, drain};
use crate::lifecycle::tasks::Tasks;

/// A question to a process of this machine.
pub const TAILSCALED_DEADLINE: Duration = Duration::from_secs(2);

/// Asks the daemon behind a Unix socket.
#[derive(Debug)]
pub struct Tailscaled {
    client: HttpClient,
}

impl Tailscaled {
    /// `socket` is the daemon's.
    #[must_use]
    pub fn new(socket: PathBuf, runtime: Handle, tasks: Tasks) -> Self {
        Self { client: HttpClient::new(Transport::Unix(socket), runtime, tasks) }
    }

    /// The daemon is asked about keys alone, so one answer holds wherever a client comes from.
    pub(super) const fn about_key(applicant: Applicant) -> Applicant {
        Applicant { source: IpAddr::V4(Ipv4Addr::UNSPECIFIED), ..applicant }
    }

    async fn who_is(&self, key: &NodePublic) -> Result<Result<Decision, Failure>, AskError> {
        let mut request = Request::new(Full::new(Bytes::new()));
        *request.uri_mut() = who_is(key);
        let response = self.client.ask(request).await?;
        let status = response.status();
        drain(response.into_body()).await;
        Ok(match status {
            StatusCode::OK => Ok(Decision::Allow),
            StatusCode::NOT_FOUND => Ok(Decision::Deny(Denial::DaemonUnknown)),
            _ => Err(Failure { otherwise: Decision::Deny(Denial::DaemonStatus), why: format!("status {status}") }),
        })
    }
}

fn who_is(key: &NodePublic) -> Uri {
    let uri = format!("http://local-tailscaled.sock/localapi/v0/whois?addr=nodekey%3A{}", key.to_untyped_hex());
    Uri::try_from(uri).unwrap_or_default()
}

impl Source for Tailscaled {
    fn ask(&self, applicant: Applicant) -> BoxFuture<'_, Result<Decision, Failure>> {
        Box::pin(async move {
            let failed = |error: AskError| Err(Failure { otherwise: self.unreachable(), why: error.to_string() });
            self.who_is(&applicant.key).await.unwrap_or_else(failed)
        })
    }

    fn deadline(&self) -> Duration {
        TAILSCALED_DEADLINE
    }

    fn unreachable(&self) -> Decision {
        Decision::Deny(Denial::DaemonUnreachable)
    }

    fn label(&self) -> &'static str {
        "tailscaled"
    }
}
