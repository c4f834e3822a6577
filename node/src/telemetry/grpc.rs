//! A span for each traced gRPC request, in the trace of its caller.

use std::pin::Pin;
use std::task::{Context, Poll};

use http::Request;
use opentelemetry::trace::TraceContextExt;
use tonic::service::Routes;
use tower::{Layer, Service};
use tracing::Instrument;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::traces::{TARGET, extract, sample};

/// Opens the spans.
#[derive(Clone, Copy, Debug)]
pub struct TraceLayer {
    starts: bool,
}

impl TraceLayer {
    /// A request that is in no trace may start one: for what operators ask.
    pub const STARTS: Self = Self { starts: true };
    /// Only requests that are in a sampled trace have spans: nodes talk all the time.
    pub const CONTINUES: Self = Self { starts: false };

    /// All services of `routes`, with spans.
    #[must_use]
    pub fn on(self, routes: Routes) -> Routes {
        Routes::from(routes.into_axum_router().layer(self))
    }
}

impl<S> Layer<S> for TraceLayer {
    type Service = Trace<S>;

    fn layer(&self, inner: S) -> Trace<S> {
        Trace { inner, starts: self.starts }
    }
}

/// A service whose traced requests have a span.
#[derive(Clone, Debug)]
pub struct Trace<S> {
    inner: S,
    starts: bool,
}

/// The span of a request: in its caller's trace if that is sampled, in a new one if it may start one and the sampler says so.
fn span_of<B>(request: &Request<B>, starts: bool) -> Option<tracing::Span> {
    let parent = extract(request.headers());
    let is_traced = parent.span().span_context().is_sampled();
    let begins = !is_traced && starts && sample();
    if !is_traced && !begins {
        return None;
    }
    let span = tracing::info_span!(target: TARGET, "rpc", otel.name = request.uri().path(), otel.kind = "server");
    if is_traced {
        // An error means that nothing exports here.
        let _not_exported = span.set_parent(parent);
    }
    Some(span)
}

impl<S, B> Service<Request<B>> for Trace<S>
where
    S: Service<Request<B>, Future: Send + 'static>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        match span_of(&request, self.starts) {
            Some(span) => Box::pin(span.in_scope(|| self.inner.call(request)).instrument(span.clone())),
            None => Box::pin(self.inner.call(request)),
        }
    }
}
