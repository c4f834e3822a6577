//! Routes packets: to a client here, or towards the node that holds the destination (`architecture.md` section 4).
//!
//! [`decide`] says what to do; this file does it. Nothing here waits, and a local hit takes no lock but the destination's own.

pub mod decide;
pub mod explain;
pub mod metrics;
mod trace;

use std::sync::Arc;

use causeway_control::presence::PresenceView;
use causeway_proto::id::NodeId;
use causeway_proto::key::NodePublic;
use causeway_proto::link::frame::Stale;
use causeway_proto::packet::{Packet, Path, Route, TraceContext};
use causeway_proto::presence::Rank;

use crate::clients::Registry;
use crate::forward::links::NodeLinks;
use crate::forward::{Accounting, DropReason, PacketForwarder, Verdict};
use decide::{Action, Decision, Ingress, Local, Question, Tables, decide};
use metrics::RouterMetrics;
pub use trace::Sampler;

/// What a router needs of the node around it.
#[derive(Clone)]
pub struct RouterParts {
    /// This node.
    pub own: NodeId,
    /// Its clients.
    pub registry: Arc<Registry>,
    /// Who holds which key.
    pub view: Arc<PresenceView>,
    /// The links to other nodes.
    pub links: Arc<dyn NodeLinks>,
    /// The node's books.
    pub accounting: Arc<Accounting>,
    /// Which packets start a trace.
    pub sampler: Sampler,
}

impl std::fmt::Debug for RouterParts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RouterParts").field("own", &self.own).finish_non_exhaustive()
    }
}

/// The router of one node.
#[derive(Debug)]
pub struct Router {
    parts: RouterParts,
    metrics: RouterMetrics,
}

/// Decisions tried for one packet when connections or links go away in between.
const ATTEMPTS_MAX: usize = 4;

impl Router {
    /// A router.
    #[must_use]
    pub fn new(parts: RouterParts) -> Arc<Self> {
        Arc::new(Self { parts, metrics: RouterMetrics::default() })
    }

    /// This node.
    #[must_use]
    pub fn own(&self) -> NodeId {
        self.parts.own
    }

    /// This area's metrics.
    #[must_use]
    pub const fn metrics(&self) -> &RouterMetrics {
        &self.metrics
    }

    /// Delivers the packet, sends it on, or drops it; never gives it back. The caller has counted it as accepted.
    pub fn route(&self, ingress: Ingress, mut packet: Packet) -> Verdict {
        let arrived = packet.route;
        let mut ignore_local = false;
        for _ in 0..ATTEMPTS_MAX {
            let question = Question { src: &packet.src, dst: &packet.dst, ingress, route: arrived.as_ref(), ignore_local };
            let decision = decide(self.parts.own, self, &question);
            packet.route = arrived;
            packet = match self.execute(decision, packet) {
                Verdict::NotHere(packet) => {
                    ignore_local = true;
                    packet
                }
                Verdict::LinkDown(packet) => packet,
                done => return done,
            };
        }
        self.drop_packet(DropReason::LinkDown)
    }

    /// What [`Self::route`] would do.
    #[must_use]
    pub fn explain(&self, question: &Question<'_>) -> Decision {
        decide(self.parts.own, self, question)
    }

    fn execute(&self, decision: Decision, mut packet: Packet) -> Verdict {
        let (span, trace) = trace::hop(self.parts.sampler, &decision, &packet);
        let _entered = span.enter();
        match decision.action {
            Action::Deliver => self.deliver(packet),
            Action::Forward { next_hop, rank_used, redirects } => {
                let Some(route) = self.route_onward(&packet, rank_used, redirects, trace) else {
                    return self.drop_packet(DropReason::PathFull);
                };
                packet.route = Some(route);
                let verdict = self.parts.links.forward_to(next_hop, packet);
                if verdict == Verdict::Queued {
                    self.metrics.forwarded(decision.role, next_hop != route.target, redirects > 0);
                }
                verdict
            }
            Action::Drop { reason, tell_origin } => {
                if tell_origin {
                    self.tell_origin(&packet);
                }
                self.drop_packet(reason)
            }
        }
    }

    fn deliver(&self, packet: Packet) -> Verdict {
        let dst = packet.dst;
        let mut packet = Some(packet);
        let delivered =
            self.parts.registry.with_active(&dst, |connection| packet.take().map(|packet| connection.outbox().forward(packet)));
        match (delivered.flatten(), packet) {
            (Some(verdict), _) => verdict,
            (None, Some(packet)) => Verdict::NotHere(packet),
            (None, None) => unreachable!("the packet is taken only to be forwarded"),
        }
    }

    /// The header of the packet as it leaves this node; `None` if its path is full.
    fn route_onward(&self, packet: &Packet, rank_used: Rank, redirects: u8, trace: Option<TraceContext>) -> Option<Route> {
        let mut route = packet.route.unwrap_or(Route {
            origin: self.parts.own,
            target: rank_used.node,
            rank_used,
            redirects,
            path: Path::default(),
            trace: None,
        });
        route.path.push(self.parts.own).ok()?;
        Some(Route { target: rank_used.node, rank_used, redirects, trace, ..route })
    }

    fn tell_origin(&self, packet: &Packet) {
        let Some(route) = packet.route else { return };
        let stale = Stale { key: packet.dst.into(), target: route.target, rank_used: route.rank_used };
        let told = self.parts.links.tell_stale(route.origin, stale);
        self.metrics.stale_noticed(told);
    }

    fn drop_packet(&self, reason: DropReason) -> Verdict {
        self.parts.accounting.dropped(reason);
        Verdict::Dropped(reason)
    }
}

impl PacketForwarder for Router {
    /// Routes a packet that came over a link.
    fn forward(&self, packet: Packet) -> Verdict {
        self.route(Ingress::Link, packet)
    }
}

impl Tables for Router {
    fn local(&self, key: &NodePublic) -> Option<Local> {
        self.parts.registry.with_active(key, |connection| Local {
            proven: connection.proof().is_proven(),
            is_mesh_peer: connection.facts().is_mesh_peer,
        })
    }

    fn prefer(&self, key: &NodePublic, excluded: &dyn Fn(NodeId) -> bool) -> Option<Rank> {
        self.parts.view.prefer(&(*key).into(), excluded).map(|candidate| candidate.rank)
    }

    fn link_is_up(&self, node: NodeId) -> bool {
        self.parts.links.is_up(node)
    }

    fn transits(&self, target: NodeId) -> Vec<NodeId> {
        self.parts.view.heard_by(target)
    }
}
