//! Spans of sampled packets: one per node on the way, in one trace. An unsampled packet costs one look at its header.

use causeway_proto::packet::{Packet, TraceContext};
use opentelemetry::Context;
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::decide::{Action, Decision, Role};
use crate::telemetry::traces::TARGET;

/// Says whether a trace shall start with this packet.
pub type Sampler = fn() -> bool;

/// Opens this node's span for the packet if it is sampled. Returns it with the context that the header carries on.
pub(super) fn hop(sampler: Sampler, decision: &Decision, packet: &Packet) -> (Span, Option<TraceContext>) {
    let parent = packet.route.and_then(|route| route.trace);
    if parent.is_none() && !(decision.role == Role::Origin && sampler()) {
        return (Span::none(), None);
    }
    let span = open(decision, packet);
    if let Some(parent) = parent {
        // An error means that nothing exports here: then the parent's context just travels on.
        let _not_exported = span.set_parent(Context::new().with_remote_span_context(remote(parent)));
    }
    let context = span.context();
    let own = context.span().span_context().clone();
    (span, if own.is_valid() { Some(local(&own)) } else { parent })
}

fn open(decision: &Decision, packet: &Packet) -> Span {
    let (next_hop, target) = match decision.action {
        Action::Forward { next_hop, rank_used, .. } => (Some(next_hop), Some(rank_used.node)),
        Action::Deliver | Action::ToDerper | Action::Drop { .. } => (None, None),
    };
    let next_hop = next_hop.map(tracing::field::display);
    let target_node = target.map(tracing::field::display);
    let (src, dst, why) = (&packet.src, &packet.dst, decision.why);
    // Span names must be constants.
    match decision.role {
        Role::Origin => tracing::info_span!(target: TARGET, "origin", %src, %dst, why, next_hop, target_node),
        Role::Transit => tracing::info_span!(target: TARGET, "transit", %src, %dst, why, next_hop, target_node),
        Role::Target => tracing::info_span!(target: TARGET, "target", %src, %dst, why, next_hop, target_node),
    }
}

fn remote(trace: TraceContext) -> SpanContext {
    SpanContext::new(
        TraceId::from_bytes(trace.trace_id),
        SpanId::from_bytes(trace.span_id),
        TraceFlags::SAMPLED,
        true,
        TraceState::default(),
    )
}

fn local(span: &SpanContext) -> TraceContext {
    TraceContext { trace_id: span.trace_id().to_bytes(), span_id: span.span_id().to_bytes() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::sync::Arc;

    use bytes::Bytes;
    use causeway_proto::id::NodeId;
    use causeway_proto::key::NodePublic;
    use causeway_proto::packet::{Class, Path, Route};
    use causeway_proto::presence::Rank;
    use opentelemetry::trace::TracerProvider;
    use opentelemetry_sdk::error::OTelSdkResult;
    use opentelemetry_sdk::trace::{SdkTracerProvider, SpanData, SpanExporter};
    use parking_lot::Mutex;
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[derive(Debug, Clone, Default)]
    struct Collect(Arc<Mutex<Vec<SpanData>>>);

    impl SpanExporter for Collect {
        async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
            self.0.lock().extend(batch);
            Ok(())
        }
    }

    const RANK: Rank = Rank { clock_us: 1, node: NodeId(3) };

    fn packet(trace: Option<TraceContext>) -> Packet {
        let path = Path::default();
        let route =
            Route { origin: NodeId(1), target: RANK.node, rank_used: RANK, redirects: 0, path, from_derper: false, trace };
        let key = NodePublic::default();
        Packet { src: key, dst: key, class: Class::Data, payload: Bytes::new(), route: trace.map(|_| route) }
    }

    fn at(role: Role) -> Decision {
        let forward = Action::Forward { next_hop: NodeId(2), rank_used: RANK, redirects: 0 };
        Decision { role, action: if role == Role::Target { Action::Deliver } else { forward }, why: "a test" }
    }

    #[test]
    fn the_hops_of_a_sampled_packet_are_one_trace_each_below_the_one_before() {
        let collected = Collect::default();
        let provider = SdkTracerProvider::builder().with_simple_exporter(collected.clone()).build();
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            let (span, origin) = hop(|| true, &at(Role::Origin), &packet(None));
            drop(span);
            let (span, transit) = hop(|| false, &at(Role::Transit), &packet(origin));
            drop(span);
            let (span, target) = hop(|| false, &at(Role::Target), &packet(transit));
            drop(span);
            assert!(target.is_some());
        });
        let spans = collected.0.lock();
        let names: Vec<&str> = spans.iter().map(|span| span.name.as_ref()).collect();
        assert_eq!(names, ["origin", "transit", "target"]);
        for pair in spans.windows(2) {
            assert_eq!(pair[0].span_context.trace_id(), pair[1].span_context.trace_id());
            assert_eq!(pair[0].span_context.span_id(), pair[1].parent_span_id);
        }
    }

    #[test]
    fn only_an_origin_starts_a_trace_and_a_node_without_exporter_passes_it_on() {
        for role in [Role::Transit, Role::Target] {
            assert_eq!(hop(|| true, &at(role), &packet(None)).1, None);
        }
        assert_eq!(hop(|| false, &at(Role::Origin), &packet(None)).1, None);
        let trace = Some(TraceContext { trace_id: [1; 16], span_id: [2; 8] });
        assert_eq!(hop(|| false, &at(Role::Transit), &packet(trace)).1, trace);
    }
}
