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
        Action::Deliver | Action::Drop { .. } => (None, None),
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
