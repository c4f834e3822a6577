//! The gRPC service `Routing`: which way would a packet go from here? The same decisions as for packets, without sending anything. The
//! question travels as the packet would, so that it gets through wherever the packet does.

use std::sync::Arc;
use std::time::Duration;

use causeway_control::{ChannelUse, PeerChannels};
use causeway_proto::id::NodeId;
use causeway_proto::packet::{PATH_LEN_MAX, Path, Route};
use causeway_rpc::convert::{MalformedMessage, node_public};
use causeway_rpc::v1;
use causeway_rpc::v1::routing_client::RoutingClient;
use causeway_rpc::v1::routing_server::{Routing, RoutingServer};
use tonic::{Request, Response, Status};

use super::Router;
use super::decide::{Action, Decision, Ingress, Question};

/// How long one node may take for its own step. A question waits so long for each node that may be on the way still.
const HOP_DEADLINE: Duration = Duration::from_secs(2);

/// Answers for one router, and asks the next ones.
#[derive(Debug, Clone)]
pub struct RoutingService {
    router: Arc<Router>,
    peers: PeerChannels,
}

impl RoutingService {
    /// Explains with `router`; asks other nodes over `peers`.
    #[must_use]
    pub const fn new(router: Arc<Router>, peers: PeerChannels) -> Self {
        Self { router, peers }
    }

    /// The service, to be added to the routes of the mesh port.
    #[must_use]
    pub fn server(self) -> RoutingServer<Self> {
        RoutingServer::new(self)
    }

    /// The way of a packet from node `origin` to its end. An origin without a link from here is asked through a node that hears it.
    ///
    /// Where a node cannot be asked the way ends, and says so.
    ///
    /// # Errors
    /// A malformed question.
    pub async fn explain_from(&self, origin: NodeId, mut question: v1::ExplainRequest) -> Result<v1::ExplainPath, Status> {
        let router = &self.router;
        if origin == router.own() {
            return self.explain_from_here(question).await;
        }
        let mut ask = origin;
        if !router.parts.links.is_up(origin) {
            let hears_it = router.parts.view.heard_by(origin).into_iter().find(|node| router.parts.links.is_up(*node));
            ask = hears_it.unwrap_or(origin);
        }
        question.at = if ask == origin { 0 } else { origin.0 };
        Ok(self.ask(ask, question).await)
    }

    /// This node's step, and what the nodes after it say.
    async fn explain_from_here(&self, mut question: v1::ExplainRequest) -> Result<v1::ExplainPath, Status> {
        let own = self.router.own();
        let hop = self.router.explain_request(&question)?;
        let mut way = v1::ExplainPath::default();
        if hop.action == "forward" {
            if question.origin == 0 {
                question.origin = own.0;
            }
            question.target = hop.target;
            question.rank_used = hop.rank_used;
            question.redirects = hop.redirects;
            question.path.push(own.0);
            way = self.ask(NodeId(hop.next_hop), question).await;
        }
        way.hops.insert(0, hop);
        Ok(way)
    }

    async fn ask(&self, node: NodeId, question: v1::ExplainRequest) -> v1::ExplainPath {
        let channel = match self.peers.channel(node, ChannelUse::Fleet) {
            Ok(channel) => channel,
            Err(error) => return unanswered(node, error.to_string()),
        };
        let deadline = HOP_DEADLINE * nodes_to_come(&question);
        match tokio::time::timeout(deadline, RoutingClient::new(channel).explain(question)).await {
            Ok(Ok(answer)) => answer.into_inner(),
            Ok(Err(status)) => unanswered(node, status.message().to_owned()),
            Err(_) => unanswered(node, "no answer in time".to_owned()),
        }
    }
}

/// A way of which nothing is known, because its first node cannot be asked.
const fn unanswered(node: NodeId, why: String) -> v1::ExplainPath {
    v1::ExplainPath { hops: Vec::new(), unanswered: Some(v1::Unanswered { node_id: node.0, why }) }
}

/// How many nodes may be on the way from the one asked on, itself included: fewer with each step, so that who is nearer gives up first.
fn nodes_to_come(question: &v1::ExplainRequest) -> u32 {
    // The last node on a full path only delivers or drops.
    let left = (PATH_LEN_MAX + 1).saturating_sub(question.path.len());
    u32::try_from(left).unwrap_or(u32::MAX).saturating_add(u32::from(question.at != 0))
}

#[tonic::async_trait]
impl Routing for RoutingService {
    async fn explain(&self, request: Request<v1::ExplainRequest>) -> Result<Response<v1::ExplainPath>, Status> {
        let mut question = request.into_inner();
        let at = NodeId(std::mem::take(&mut question.at));
        // Passed on once only: the node it begins at is asked directly.
        let way = if at == NodeId(0) || at == self.router.own() {
            self.explain_from_here(question).await?
        } else {
            self.ask(at, question).await
        };
        Ok(Response::new(way))
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
    Ok(Some(Route {
        origin: NodeId(request.origin),
        target: NodeId(request.target),
        rank_used,
        redirects,
        path,
        from_derper: false,
        trace: None,
    }))
}

fn response_of(own: NodeId, decision: &Decision) -> v1::ExplainResponse {
    let mut response = v1::ExplainResponse {
        node_id: own.0,
        role: decision.role.label().to_owned(),
        why: decision.why.to_owned(),
        ..v1::ExplainResponse::default()
    };
    match decision.action {
        Action::Deliver | Action::ToDerper => "deliver".clone_into(&mut response.action),
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
