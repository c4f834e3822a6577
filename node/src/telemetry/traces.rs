//! Traces over OTLP: which spans are exported, who decides on sampling, and how context crosses gRPC.
//!
//! Only spans of target [`TARGET`] are exported. Whoever starts a trace asks [`sample`] first, so an unsampled packet costs one
//! comparison; whoever continues one takes the decision of its parent.

use std::sync::OnceLock;
use std::time::Duration;

use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator};
use opentelemetry::trace::TracerProvider;
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
use tracing::Subscriber;
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::registry::LookupSpan;

use crate::config::Otlp;

/// Target of spans that are exported: `info_span!(target: TARGET, ..)`.
pub const TARGET: &str = "causeway_trace";

/// How long one export may take.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);

/// Sampling threshold on a 32-bit random number; unset: nothing is traced.
static THRESHOLD: OnceLock<u64> = OnceLock::new();

/// Whether a trace shall start here.
#[must_use]
pub fn sample() -> bool {
    THRESHOLD.get().is_some_and(|threshold| *threshold > 0 && u64::from(rand::random::<u32>()) < *threshold)
}

/// The exporter cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("otlp.endpoint: {0}")]
pub struct TracesError(#[from] opentelemetry_otlp::ExporterBuildError);

/// The trace exporter. Spans are sent in batches in the background.
#[derive(Debug)]
pub struct Traces {
    provider: SdkTracerProvider,
}

impl Traces {
    /// Starts exporting for this process. Needs a runtime; does not wait for the receiver.
    ///
    /// # Errors
    /// [`TracesError`] if the endpoint is no usable URL.
    pub fn start(otlp: &Otlp, node: &str, region: &str) -> Result<Self, TracesError> {
        let exporter = SpanExporter::builder().with_tonic().with_endpoint(&otlp.endpoint).with_timeout(EXPORT_TIMEOUT).build()?;
        let resource = Resource::builder()
            .with_service_name("causewayd")
            .with_attributes([
                KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
                KeyValue::new("service.instance.id", node.to_owned()),
                KeyValue::new("causeway.node", node.to_owned()),
                KeyValue::new("causeway.region", region.to_owned()),
            ])
            .build();
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_resource(resource)
            // Roots are sampled by `sample`, before their span exists.
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::AlwaysOn)))
            .build();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the ratio is 0 to 1")]
        let threshold = (otlp.sample_ratio * (f64::from(u32::MAX) + 1.0)) as u64;
        THRESHOLD.get_or_init(|| threshold);
        Ok(Self { provider })
    }

    /// The layer that feeds the exporter.
    pub fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: Subscriber + for<'span> LookupSpan<'span>,
    {
        tracing_opentelemetry::layer()
            .with_tracer(self.provider.tracer("causewayd"))
            .with_filter(filter_fn(|metadata| metadata.target() == TARGET))
    }

    /// Sends what is still waiting. Blocks for at most a few seconds.
    ///
    /// # Errors
    /// What the exporter says.
    pub fn flush(&self) -> Result<(), opentelemetry_sdk::error::OTelSdkError> {
        self.provider.shutdown()
    }
}

/// The span of a proposal to Raft, if the sampler lets a trace start with it; else a disabled one.
#[must_use]
pub fn proposal() -> tracing::Span {
    if sample() { tracing::info_span!(target: TARGET, "propose") } else { tracing::Span::none() }
}

/// Writes the context of the current span into the headers of a gRPC request (W3C `traceparent`); nothing if it is not exported.
pub fn inject(headers: &mut http::HeaderMap) {
    TraceContextPropagator::new().inject_context(&tracing::Span::current().context(), &mut HeaderInjector(headers));
}

/// Reads the context of a gRPC or HTTP request; an empty one if there is none.
#[must_use]
pub fn extract(headers: &http::HeaderMap) -> Context {
    TraceContextPropagator::new().extract_with_context(&Context::new(), &HeaderExtractor(headers))
}

struct HeaderInjector<'a>(&'a mut http::HeaderMap);

impl Injector for HeaderInjector<'_> {
    fn set(&mut self, key: &str, value: String) {
        // An empty trace state says nothing.
        if value.is_empty() {
            return;
        }
        if let (Ok(key), Ok(value)) = (http::HeaderName::from_bytes(key.as_bytes()), value.parse()) {
            self.0.insert(key, value);
        }
    }
}

struct HeaderExtractor<'a>(&'a http::HeaderMap);

impl Extractor for HeaderExtractor<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}
