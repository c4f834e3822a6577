//! The gRPC service `Routing`: which way would a packet go from here? The same decisions as for packets, without sending anything. The
//! question travels as the packet would, so that it gets through wherever the packet does.

use std::sync::Arc;
use std::time::Duration;

use causeway_control::{ChannelUse, PeerChannels};
use causeway_proto::id::NodeId;
use causeway_proto::packet::{PATH_LEN_MAX, Path, Route};
use causeway_rpc::convert::{MalformedMessage, node_public};
use causeway_rpc::v1;
use causeway_rpc::v1::explain_step::Step;
use causeway_rpc::v1::routing_client::RoutingClient;
use causeway_rpc::v1::routing_server::{Routing, RoutingServer};
use futures::stream::{self, BoxStream};
use futures::{FutureExt, StreamExt, TryStreamExt};
use tonic::{Request, Response, Status};

use super::Router;
use super::decide::{Action, Decision, Ingress, Question};

/// How long a node may take to tell its own step.
const HOP_DEADLINE: Duration = Duration::from_secs(2);

/// What is added for each node that may be on the way still, so that who is next to a silent one notices first and names it.
const RELAY_ALLOWANCE: Duration = Duration::from_millis(200);

/// The steps of a way as the nodes on it tell them.
type Steps = BoxStream<'static, Result<v1::ExplainStep, Status>>;

/// The way of a packet.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Way {
    /// As far as it is known.
    pub hops: Vec<v1::ExplainResponse>,
    /// The node that did not tell its step, if the way does not end with the hops.
    pub unanswered: Option<v1::Unanswered>,
}

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
    pub async fn explain_from(&self, origin: NodeId, mut question: v1::ExplainRequest) -> Result<Way, Status> {
        let router = &self.router;
        let mut steps = if origin == router.own() {
            self.steps_from_here(question)?
        } else {
            let mut ask = origin;
            if !router.parts.links.is_up(origin) {
                let hears_it = router.parts.view.heard_by(origin).into_iter().find(|node| router.parts.links.is_up(*node));
                ask = hears_it.unwrap_or(origin);
            }
            question.at = if ask == origin { 0 } else { origin.0 };
            self.ask(ask, question)
        };
        let mut way = Way::default();
        while let Some(step) = steps.try_next().await? {
            match step.step {
                Some(Step::Hop(hop)) => way.hops.push(hop),
                Some(Step::Unanswered(unanswered)) => way.unanswered = Some(unanswered),
                None => {}
            }
        }
        Ok(way)
    }

    /// This node's step, and what the nodes after it tell.
    fn steps_from_here(&self, mut question: v1::ExplainRequest) -> Result<Steps, Status> {
        let own = self.router.own();
        let hop = self.router.explain_request(&question)?;
        let next = (hop.action == "forward").then_some(NodeId(hop.next_hop));
        if question.origin == 0 {
            question.origin = own.0;
        }
        question.target = hop.target;
        question.rank_used = hop.rank_used;
        question.redirects = hop.redirects;
        question.path.push(own.0);
        let first = stream::iter([Ok(v1::ExplainStep { step: Some(Step::Hop(hop)) })]);
        Ok(match next {
            Some(next) => first.chain(self.ask(next, question)).boxed(),
            None => first.boxed(),
        })
    }

    /// What `node` and those after it tell.
    fn ask(&self, node: NodeId, question: v1::ExplainRequest) -> Steps {
        let patience = Patience::of(&question);
        let channel = self.peers.channel(node, ChannelUse::Fleet);
        let asked = async move {
            let answer = match channel {
                Ok(channel) => RoutingClient::new(channel).explain(question).await,
                Err(error) => Err(Status::unavailable(error.to_string())),
            };
            match answer {
                Ok(steps) => steps.into_inner().boxed(),
                Err(status) => stream::iter([Err(status)]).boxed(),
            }
        };
        told_by(node, patience, asked.flatten_stream().boxed())
    }
}

/// How long to wait for the steps that a node tells.
#[derive(Debug, Clone, Copy)]
struct Patience {
    /// For its own.
    first: Duration,
    /// For each further one: it has the same patience with the next node.
    further: Duration,
}

impl Patience {
    fn of(question: &v1::ExplainRequest) -> Self {
        // Who only passes the question on tells no step of its own.
        let first = HOP_DEADLINE * (1 + u32::from(question.at != 0));
        Self { first, further: HOP_DEADLINE + RELAY_ALLOWANCE * nodes_to_come(question) }
    }
}

/// The steps that `node` tells; a node that keeps the next step waiting is named, and ends the way.
fn told_by(node: NodeId, patience: Patience, steps: Steps) -> Steps {
    let waiting = Some((steps, node, patience.first));
    let told = stream::unfold(waiting, move |waiting| async move {
        let (mut steps, expected, deadline) = waiting?;
        let silent = |why: &str| {
            let unanswered = v1::Unanswered { node_id: expected.0, why: why.to_owned() };
            Some((Ok(v1::ExplainStep { step: Some(Step::Unanswered(unanswered)) }), None))
        };
        match tokio::time::timeout(deadline, steps.next()).await {
            Ok(Some(Ok(step))) => {
                let next = match &step.step {
                    Some(Step::Hop(hop)) => NodeId(hop.next_hop),
                    Some(Step::Unanswered(_)) | None => expected,
                };
                Some((Ok(step), Some((steps, next, patience.further))))
            }
            Ok(Some(Err(status))) => silent(status.message()),
            Ok(None) => None,
            Err(_) => silent("no answer in time"),
        }
    });
    told.take(STEPS_MAX).boxed()
}

/// Steps that are believed of a node: those of a full path, and who did not answer.
const STEPS_MAX: usize = PATH_LEN_MAX + 2;

/// How many nodes may be on the way from the one asked on, itself included: fewer with each step, so that who is nearer gives up first.
fn nodes_to_come(question: &v1::ExplainRequest) -> u32 {
    // The last node on a full path only delivers or drops.
    let left = (PATH_LEN_MAX + 1).saturating_sub(question.path.len());
    u32::try_from(left).unwrap_or(u32::MAX).saturating_add(u32::from(question.at != 0))
}

#[tonic::async_trait]
impl Routing for RoutingService {
    type ExplainStream = Steps;

    async fn explain(&self, request: Request<v1::ExplainRequest>) -> Result<Response<Steps>, Status> {
        let mut question = request.into_inner();
        let at = NodeId(std::mem::take(&mut question.at));
        // Passed on once only: the node it begins at is asked directly.
        let from_here = at == NodeId(0) || at == self.router.own();
        Ok(Response::new(if from_here { self.steps_from_here(question)? } else { self.ask(at, question) }))
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

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: Patience = Patience { first: HOP_DEADLINE, further: HOP_DEADLINE };

    fn hop(node: u64, next_hop: u64) -> Steps {
        let hop = v1::ExplainResponse { node_id: node, next_hop, ..v1::ExplainResponse::default() };
        stream::iter([Ok(v1::ExplainStep { step: Some(Step::Hop(hop)) })]).boxed()
    }

    /// What comes of a way: ids of the hops, who did not answer, and after how long that was known.
    async fn outcome(steps: Steps) -> (Vec<u64>, Option<u64>, Duration) {
        let started = tokio::time::Instant::now();
        let (mut hops, mut unanswered) = (Vec::new(), None);
        for step in steps.try_collect::<Vec<_>>().await.expect("steps") {
            match step.step.expect("a step") {
                Step::Hop(hop) => hops.push(hop.node_id),
                Step::Unanswered(node) => unanswered = Some(node.node_id),
            }
        }
        (hops, unanswered, started.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_node_is_named_after_its_own_deadline_wherever_it_stands() {
        let question = |asked: usize| v1::ExplainRequest { path: vec![0; asked], ..v1::ExplainRequest::default() };
        let patience = |asked| Patience::of(&question(asked));
        // The node asked itself, and the third one on the way, behind two that relay what it does not say.
        let silent = |node, asked| told_by(NodeId(node), patience(asked), stream::pending().boxed());
        assert_eq!(outcome(silent(1, 1)).await, (vec![], Some(1), HOP_DEADLINE));
        let behind_two = told_by(NodeId(2), patience(2), hop(2, 3).chain(silent(3, 3)).boxed());
        let behind_one = told_by(NodeId(1), patience(1), hop(1, 2).chain(behind_two).boxed());
        assert_eq!(outcome(behind_one).await, (vec![1, 2], Some(3), HOP_DEADLINE));
        // One that answers and then dies with the question costs a little more, since the next might still answer through it.
        let died = told_by(NodeId(1), patience(1), hop(1, 2).chain(stream::pending()).boxed());
        let (hops, unanswered, after) = outcome(died).await;
        assert_eq!((hops, unanswered), (vec![1], Some(2)));
        assert!(after < HOP_DEADLINE * 2, "{after:?}");
    }

    #[tokio::test]
    async fn a_node_that_breaks_off_or_goes_on_for_ever_ends_the_way() {
        let broken = told_by(NodeId(1), FULL, stream::iter([Err(Status::unavailable("gone"))]).boxed());
        assert_eq!(outcome(broken).await.1, Some(1));
        let endless = stream::repeat_with(|| hop(1, 1)).flatten().boxed();
        assert_eq!(outcome(told_by(NodeId(1), FULL, endless)).await.0.len(), STEPS_MAX);
    }
}
