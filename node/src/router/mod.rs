//! Routes packets: to a client here, or towards the node that holds the destination (`architecture.md` section 4).
//!
//! [`mod@decide`] says what to do; this file does it. Nothing here waits, and a local hit takes no lock but the destination's own.

pub mod decide;
pub mod explain;
pub mod metrics;
mod trace;

use std::iter::repeat_n;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use causeway_control::presence::PresenceView;
use causeway_proto::id::NodeId;
use causeway_proto::key::NodePublic;
use causeway_proto::link::frame::Stale;
use causeway_proto::packet::{Packet, Path, Route, TraceContext};
use causeway_proto::presence::Rank;

use crate::clients::{ClientConnection, Registry};
use crate::derp_mesh::Derpers;
use crate::forward::chain::ForwarderChain;
use crate::forward::links::NodeLinks;
use crate::forward::{Accounting, DropReason, PacketForwarder, Verdict};
use decide::{Action, Claimed, Decision, Ingress, Local, Question, Tables, decide};
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
    /// Links to stock derpers, and whom they hold.
    pub derpers: Arc<Derpers>,
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
    pub fn route(&self, ingress: Ingress, packet: Packet) -> Verdict {
        let attempt = Attempt { router: self, ingress, arrived: packet.route, ignore_local: AtomicBool::new(false) };
        match ForwarderChain::new(repeat_n(&attempt, ATTEMPTS_MAX)).forward(packet) {
            Verdict::NotHere(packet) | Verdict::LinkDown(packet) => self.drop_packet(DropReason::LinkDown, &packet),
            done => done,
        }
    }

    /// What [`Self::route`] would do.
    #[must_use]
    pub fn explain(&self, question: &Question<'_>) -> Decision {
        self.parts.registry.look_up(question.dst, |connection| self.decide(question, connection))
    }

    fn decide(&self, question: &Question<'_>, connection: Option<&Arc<ClientConnection>>) -> Decision {
        decide(self.parts.own, &Seen { parts: &self.parts, connection }, question)
    }

    fn execute(
        &self,
        decision: Decision,
        mut packet: Packet,
        connection: Option<&Arc<ClientConnection>>,
        ingress: Ingress,
    ) -> Verdict {
        let (span, trace) = trace::hop(self.parts.sampler, &decision, &packet);
        let _entered = span.enter();
        match decision.action {
            Action::Deliver => match connection {
                Some(connection) => connection.outbox().forward(packet),
                None => Verdict::NotHere(packet),
            },
            Action::Forward { next_hop, rank_used, redirects } => {
                let from_derper = ingress == Ingress::StockMesh;
                let Some(route) = self.route_onward(&packet, rank_used, redirects, from_derper, trace) else {
                    return self.drop_packet(DropReason::PathFull, &packet);
                };
                packet.route = Some(route);
                let verdict = self.parts.links.forward_to(next_hop, packet);
                if verdict == Verdict::Queued {
                    self.metrics.forwarded(decision.role, next_hop != route.target, redirects > 0);
                }
                verdict
            }
            Action::ToDerper => self.parts.derpers.forward(packet),
            Action::Drop { reason, tell_origin } => {
                if tell_origin {
                    self.tell_origin(&packet);
                }
                self.drop_packet(reason, &packet)
            }
        }
    }

    /// The header of the packet as it leaves this node; `None` if its path is full. `from_derper` is of a packet that begins here.
    fn route_onward(
        &self,
        packet: &Packet,
        rank_used: Rank,
        redirects: u8,
        from_derper: bool,
        trace: Option<TraceContext>,
    ) -> Option<Route> {
        let mut route = packet.route.unwrap_or(Route {
            origin: self.parts.own,
            target: rank_used.node,
            rank_used,
            redirects,
            path: Path::default(),
            from_derper,
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

    fn drop_packet(&self, reason: DropReason, packet: &Packet) -> Verdict {
        self.parts.accounting.dropped(reason, &packet.payload);
        Verdict::Dropped(reason)
    }
}

impl PacketForwarder for Router {
    /// Routes a packet that came over a link.
    fn forward(&self, packet: Packet) -> Verdict {
        self.route(Ingress::Link, packet)
    }
}

/// One alternative for a packet: what is best now, after whatever was tried before has gone away. The registry is looked up once.
struct Attempt<'a> {
    router: &'a Router,
    ingress: Ingress,
    arrived: Option<Route>,
    /// The connection here closed while the packet was offered to it.
    ignore_local: AtomicBool,
}

impl PacketForwarder for Attempt<'_> {
    fn forward(&self, mut packet: Packet) -> Verdict {
        packet.route = self.arrived;
        let (src, dst) = (packet.src, packet.dst);
        let ignore_local = self.ignore_local.load(Ordering::Relaxed);
        let question = Question { src: &src, dst: &dst, ingress: self.ingress, route: self.arrived.as_ref(), ignore_local };
        let verdict = self.router.parts.registry.look_up(&dst, |connection| {
            let decision = self.router.decide(&question, connection);
            self.router.execute(decision, packet, connection, self.ingress)
        });
        if matches!(verdict, Verdict::NotHere(_)) {
            self.ignore_local.store(true, Ordering::Relaxed);
        }
        verdict
    }
}

/// What a decision about one destination reads.
struct Seen<'a> {
    parts: &'a RouterParts,
    /// The destination's active connection here.
    connection: Option<&'a Arc<ClientConnection>>,
}

impl Tables for Seen<'_> {
    fn local(&self, _: &NodePublic) -> Option<Local> {
        let connection = self.connection?;
        Some(Local { proven: connection.proof().is_proven(), is_mesh_peer: connection.facts().is_mesh_peer })
    }

    fn prefer(&self, key: &NodePublic, excluded: &dyn Fn(NodeId) -> bool) -> Option<Claimed> {
        let best = self.parts.view.prefer(&(*key).into(), excluded)?;
        Some(Claimed { rank: best.rank, behind_derper: best.is_behind_derper() })
    }

    fn derper_holds(&self, key: &NodePublic) -> bool {
        self.parts.derpers.can_reach(key)
    }

    fn link_is_up(&self, node: NodeId) -> bool {
        self.parts.links.is_up(node)
    }

    fn transits(&self, target: NodeId) -> Vec<NodeId> {
        self.parts.view.heard_by(target)
    }
}
