//! Which nodes a packet would pass, and why: asks each node on the way what it would do.

use std::time::Duration;

use causeway_control::ChannelUse;
use causeway_proto::id::NodeId;
use causeway_proto::packet::PATH_LEN_MAX;
use causeway_rpc::convert::presence_key;
use causeway_rpc::v1;
use causeway_rpc::v1::routing_client::RoutingClient;
use opentelemetry::Context;
use tonic::{Request, Status};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::OperatorParts;
use crate::telemetry::traces::inject;

/// How long one node may take to answer.
const HOP_DEADLINE: Duration = Duration::from_secs(5);

/// Follows a packet from the node that holds `src` (this one, if nobody does) to its end.
pub(super) async fn trace(parts: &OperatorParts, request: &v1::TraceRequest) -> Result<v1::TraceResponse, Status> {
    let src = presence_key("src", &request.src)?;
    presence_key("dst", &request.dst)?;
    let own = parts.router.own();
    let origin = parts.view.claims(&src).iter().find(|claim| claim.is_usable()).map_or(own, |claim| claim.node);
    let mut at = origin;
    let mut question = v1::ExplainRequest { src: request.src.clone(), dst: request.dst.clone(), ..v1::ExplainRequest::default() };
    let mut response = v1::TraceResponse::default();
    // The last node on a full path only delivers or drops.
    for _ in 0..=PATH_LEN_MAX {
        let hop = explain(parts, at, question.clone()).await?;
        let (action, next_hop) = (hop.action.clone(), NodeId(hop.next_hop));
        question.origin = origin.0;
        question.target = hop.target;
        question.rank_used = hop.rank_used;
        question.redirects = hop.redirects;
        question.path.push(at.0);
        response.hops.push(hop);
        if action != "forward" {
            response.delivered = action == "deliver";
            break;
        }
        at = next_hop;
    }
    Ok(response)
}

async fn explain(parts: &OperatorParts, node: NodeId, question: v1::ExplainRequest) -> Result<v1::ExplainResponse, Status> {
    if node == parts.router.own() {
        return Ok(parts.router.explain_request(&question)?);
    }
    let name = parts.nodes.borrow().get(node).map_or_else(|| node.to_string(), |node| node.record.name.clone());
    let unavailable = |why: &dyn std::fmt::Display| Status::unavailable(format!("node {name} cannot be asked: {why}"));
    let channel = parts.peers.channel(node, ChannelUse::Fleet).map_err(|error| unavailable(&error))?;
    let mut request = Request::new(question);
    let context: Context = tracing::Span::current().context();
    inject(&context, request.metadata_mut());
    let mut client = RoutingClient::new(channel);
    match tokio::time::timeout(HOP_DEADLINE, client.explain(request)).await {
        Ok(answer) => answer.map(tonic::Response::into_inner).map_err(|status| unavailable(&status.message())),
        Err(_) => Err(unavailable(&"no answer")),
    }
}
