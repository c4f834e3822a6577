//! The gRPC service `Routing`: what would this node do with a packet? The same decision as for packets, without sending anything.

use std::sync::Arc;

use causeway_proto::id::NodeId;
use causeway_proto::packet::{Path, Route};
use causeway_rpc::convert::{MalformedMessage, node_public};
use causeway_rpc::v1;
use causeway_rpc::v1::routing_server::{Routing, RoutingServer};
use tonic::{Request, Response, Status};

use super::Router;
use super::decide::{Action, Decision, Ingress, Question};

/// Answers for one router.
#[derive(Debug, Clone)]
pub struct RoutingService {
    router: Arc<Router>,
}

impl RoutingService {
    /// The service, to be added to the routes of the mesh port.
    #[must_use]
    pub fn server(router: Arc<Router>) -> RoutingServer<Self> {
        RoutingServer::new(Self { router })
    }
}

#[tonic::async_trait]
impl Routing for RoutingService {
    async fn explain(&self, request: Request<v1::ExplainRequest>) -> Result<Response<v1::ExplainResponse>, Status> {
        Ok(Response::new(self.router.explain_request(request.get_ref())?))
    }
}

impl Router {
    /// Explains the next step of a packet at this node.
    ///
    /// # Errors
    /// [`MalformedMessage`] naming the field.
    pub fn explain_request(&self, request: &v1::ExplainRequest) -> Result<v1::ExplainResponse, MalformedMessage> {
        let src = node_public("src", &request.src)?;
        let dst = node_public("dst", &request.dst)?;
        let route = route_of(request)?;
        let ingress = if route.is_some() { Ingress::Link } else { Ingress::Client };
        let question = Question { src: &src, dst: &dst, ingress, route: route.as_ref(), ignore_local: false };
        let decision = self.explain(&question);
        let mut response = response_of(self.own(), &decision);
        if let Action::Forward { rank_used, .. } = decision.action {
            let claims = self.parts.view.claims(&dst.into());
            if let Some(claim) = claims.iter().find(|claim| claim.rank == rank_used) {
                response.why = format!("{}: {}", response.why, claim.why());
            }
        }
        Ok(response)
    }
}

/// The header the packet would have on arrival; none at its origin.
fn route_of(request: &v1::ExplainRequest) -> Result<Option<Route>, MalformedMessage> {
    if request.origin == 0 {
        return Ok(None);
    }
    let mut path = Path::default();
    for node in &request.path {
        path.push(NodeId(*node)).map_err(|_| MalformedMessage::new("path", "a path is at most 5 nodes"))?;
    }
    let rank_used = request.rank_used.ok_or(MalformedMessage::new("rank_used", "is needed beside origin"))?.into();
    let redirects = u8::try_from(request.redirects).map_err(|_| MalformedMessage::new("redirects", "is at most 2"))?;
    Ok(Some(Route { origin: NodeId(request.origin), target: NodeId(request.target), rank_used, redirects, path, trace: None }))
}

fn response_of(own: NodeId, decision: &Decision) -> v1::ExplainResponse {
    let mut response = v1::ExplainResponse {
        node_id: own.0,
        role: decision.role.label().to_owned(),
        why: decision.why.to_owned(),
        ..v1::ExplainResponse::default()
    };
    match decision.action {
        Action::Deliver => "deliver".clone_into(&mut response.action),
        Action::Forward { next_hop, rank_used, redirects } => {
            "forward".clone_into(&mut response.action);
            response.next_hop = next_hop.0;
            response.target = rank_used.node.0;
            response.rank_used = Some(rank_used.into());
            response.redirects = redirects.into();
        }
        Action::Drop { reason, .. } => {
            "drop".clone_into(&mut response.action);
            reason.label().clone_into(&mut response.drop_reason);
        }
    }
    response
}
