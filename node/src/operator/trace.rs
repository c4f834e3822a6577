//! Which nodes a packet would pass, and why.

use causeway_rpc::convert::presence_key;
use causeway_rpc::v1;
use tonic::Status;

use super::OperatorParts;
use crate::router::explain::{RoutingService, Way};

/// Follows a packet from the node that holds `src` (this one, if nobody does) to its end.
pub(super) async fn trace(parts: &OperatorParts, request: &v1::TraceRequest) -> Result<v1::TraceResponse, Status> {
    let src = presence_key("src", &request.src)?;
    presence_key("dst", &request.dst)?;
    let claims = parts.view.claims(&src);
    let origin = claims.iter().find(|claim| claim.is_usable()).map_or(parts.router.own(), |claim| claim.node);
    let question = v1::ExplainRequest { src: request.src.clone(), dst: request.dst.clone(), ..v1::ExplainRequest::default() };
    let routing = RoutingService::new(parts.router.clone(), parts.peers.clone());
    let Way { hops, unanswered } = routing.explain_from(origin, question).await?;
    let delivered = unanswered.is_none() && hops.last().is_some_and(|hop| hop.action == "deliver");
    Ok(v1::TraceResponse { delivered, hops, unanswered })
}
