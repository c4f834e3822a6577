//! What a node does with a packet: one pure decision, executed by the router and explained to operators (`architecture.md` section 4).

use causeway_proto::id::NodeId;
use causeway_proto::key::NodePublic;
use causeway_proto::packet::{PATH_LEN_MAX, Path, REDIRECTS_MAX, Route};
use causeway_proto::presence::Rank;

use crate::forward::DropReason;
use crate::forward::links::{flow_hash, mix};

/// Where a packet came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ingress {
    /// From a client: this node is its origin.
    Client,
    /// Forwarded by a stock derper: as from a client, but never to another stock derper.
    StockMesh,
    /// From another node of the fleet.
    Link,
}

/// What this node is to a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Chooses target and rank.
    Origin,
    /// Passes it on towards the target.
    Transit,
    /// Holds, or was thought to hold, the destination.
    Target,
}

impl Role {
    /// As in the gRPC schema and in span names.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Origin => "origin",
            Self::Transit => "transit",
            Self::Target => "target",
        }
    }
}

/// A connection of a key at this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Local {
    /// Proven to live.
    pub proven: bool,
    /// Of a stock derper.
    pub is_mesh_peer: bool,
}

/// The best claim of another node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claimed {
    /// Its rank; the rank's node is the claiming one.
    pub rank: Rank,
    /// The client is connected to a stock derper that the node watches.
    pub behind_derper: bool,
}

/// What a decision reads.
pub trait Tables {
    /// The active connection of `key` here.
    fn local(&self, key: &NodePublic) -> Option<Local>;
    /// The best usable claim of another node that is not excluded; clients of stock derpers come last.
    fn prefer(&self, key: &NodePublic, excluded: &dyn Fn(NodeId) -> bool) -> Option<Claimed>;
    /// Whether a stock derper that this node has a link to holds the key.
    fn derper_holds(&self, key: &NodePublic) -> bool;
    /// Whether the direct link to `node` is up.
    fn link_is_up(&self, node: NodeId) -> bool;
    /// Nodes that hear `target`, in order of their ids.
    fn transits(&self, target: NodeId) -> Vec<NodeId>;
}

/// The packet's part of a decision.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// Sender.
    pub src: &'a NodePublic,
    /// Destination.
    pub dst: &'a NodePublic,
    /// Where it came in.
    pub ingress: Ingress,
    /// Its header, if it came over a link.
    pub route: Option<&'a Route>,
    /// The local connection closed just now: decide as if there were none.
    pub ignore_local: bool,
}

impl Question<'_> {
    /// A stock derper forwarded the packet, here or at its origin: one hop only, so no other may get it (`derp.md` section 5.9).
    fn is_from_derper(&self) -> bool {
        self.ingress == Ingress::StockMesh || self.route.is_some_and(|route| route.from_derper)
    }
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Give it to the active connection here.
    Deliver,
    /// Send it over the link to `next_hop`.
    Forward {
        /// The node the link goes to: the target or a transit.
        next_hop: NodeId,
        /// The claim it goes to; its node is the target.
        rank_used: Rank,
        /// Redirects so far, this one included.
        redirects: u8,
    },
    /// Give it to the stock derper that holds the key.
    ToDerper,
    /// Drop it.
    Drop {
        /// Why.
        reason: DropReason,
        /// The claim its origin used does not hold: tell it.
        tell_origin: bool,
    },
}

/// What to do, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// What this node is to the packet.
    pub role: Role,
    /// What to do.
    pub action: Action,
    /// One sentence.
    pub why: &'static str,
}

/// Claims tried when the nodes of better ones cannot be reached.
const CLAIMS_TRIED_MAX: usize = 4;

/// Decides. Depends on nothing but its arguments.
pub fn decide(own: NodeId, tables: &impl Tables, question: &Question<'_>) -> Decision {
    match question.route {
        None => decide_at_origin(own, tables, question),
        Some(route) if route.path.contains(own) => drop_it(Role::Transit, DropReason::Loop, "this node is on its path already"),
        Some(route) if route.target == own => decide_at_target(own, tables, question, route),
        Some(route) => decide_in_transit(own, tables, question, route),
    }
}

fn decide_at_origin(own: NodeId, tables: &impl Tables, question: &Question<'_>) -> Decision {
    let role = Role::Origin;
    let local = local(tables, question);
    if local == Some(true) {
        return Decision { role, action: Action::Deliver, why: "a connection of the key here is proven to live" };
    }
    let choice = choose(own, tables, question, &Path::default());
    match choice.way {
        Some(Way::Node { rank_used, next_hop }) => {
            let direct = next_hop == rank_used.node;
            let why = if direct { "the preferred claim" } else { "the preferred claim; its direct link is down" };
            return Decision { role, action: Action::Forward { next_hop, rank_used, redirects: 0 }, why };
        }
        Some(Way::Derper) => return to_derper(role),
        None => {}
    }
    if local.is_some() {
        return Decision {
            role,
            action: Action::Deliver,
            why: "the connection here is suspect, but no other claim can be reached",
        };
    }
    if choice.any {
        return drop_it(role, DropReason::LinkDown, "no link to any node that claims the key, and no transit");
    }
    match question.ingress {
        Ingress::StockMesh => drop_it(role, DropReason::UnknownDestOnForward, "no client of the fleet has the key"),
        Ingress::Client | Ingress::Link => drop_it(role, DropReason::UnknownDest, "nobody validly claims the key"),
    }
}

fn decide_at_target(own: NodeId, tables: &impl Tables, question: &Question<'_>, route: &Route) -> Decision {
    let role = Role::Target;
    let local = local(tables, question);
    if local == Some(true) {
        return Decision { role, action: Action::Deliver, why: "a connection of the key here is proven to live" };
    }
    let may_redirect = route.redirects < REDIRECTS_MAX && route.path.as_slice().len() < PATH_LEN_MAX;
    let way = if may_redirect { choose(own, tables, question, &route.path).way } else { derper(tables, question) };
    match way {
        Some(Way::Node { rank_used, next_hop }) => {
            let why = "not proven here; redirected to the best claim whose node it has not visited";
            return Decision { role, action: Action::Forward { next_hop, rank_used, redirects: route.redirects + 1 }, why };
        }
        Some(Way::Derper) => return to_derper(role),
        None => {}
    }
    if local.is_some() {
        return Decision { role, action: Action::Deliver, why: "the connection here is suspect, but no other claim remains" };
    }
    let action = Action::Drop { reason: DropReason::Stale, tell_origin: true };
    Decision { role, action, why: "the key is not here and cannot be redirected; its origin is told" }
}

fn decide_in_transit(own: NodeId, tables: &impl Tables, question: &Question<'_>, route: &Route) -> Decision {
    let role = Role::Transit;
    if route.path.as_slice().len() >= PATH_LEN_MAX {
        return drop_it(role, DropReason::PathFull, "it has visited as many nodes as it may");
    }
    if route.path.contains(route.target) {
        return drop_it(role, DropReason::Loop, "its target is on its path already");
    }
    match next_hop(own, tables, question, route.target, &route.path) {
        Some(next_hop) => {
            let action = Action::Forward { next_hop, rank_used: route.rank_used, redirects: route.redirects };
            Decision { role, action, why: "passed on towards its target" }
        }
        None => drop_it(role, DropReason::LinkDown, "no link to its target, and no transit"),
    }
}

/// Whether the key has a connection here that may be used, and whether that is proven.
fn local(tables: &impl Tables, question: &Question<'_>) -> Option<bool> {
    if question.ignore_local {
        return None;
    }
    let local = tables.local(question.dst)?;
    // One hop only between stock derpers.
    let stock_to_stock = local.is_mesh_peer && question.is_from_derper();
    (!stock_to_stock).then_some(local.proven)
}

struct Choice {
    /// Where the best claim that can be reached leads.
    way: Option<Way>,
    /// There is a claim at all.
    any: bool,
}

enum Way {
    /// Over the link to `next_hop`, towards the node of the claim.
    Node { rank_used: Rank, next_hop: NodeId },
    /// To a stock derper that this node has a link to.
    Derper,
}

/// The stock derper that holds the key, if the packet may go to one and this node has a link to it.
fn derper(tables: &impl Tables, question: &Question<'_>) -> Option<Way> {
    (!question.is_from_derper() && tables.derper_holds(question.dst)).then_some(Way::Derper)
}

/// The best claim of a node that is neither this one nor on the path and that a link leads towards. A client of a stock derper is
/// looked for last, at this node's own links first.
fn choose(own: NodeId, tables: &impl Tables, question: &Question<'_>, path: &Path) -> Choice {
    let mut unreachable = [own; CLAIMS_TRIED_MAX];
    for tried in 0..CLAIMS_TRIED_MAX {
        let skipped = &unreachable[..tried];
        let excluded = |node: NodeId| node == own || path.contains(node) || skipped.contains(&node);
        let claimed = tables.prefer(question.dst, &excluded);
        let Some(Claimed { rank: rank_used, behind_derper }) = claimed else {
            return Choice { way: derper(tables, question), any: tried > 0 };
        };
        if behind_derper {
            if question.is_from_derper() {
                return Choice { way: None, any: tried > 0 };
            }
            if let Some(way) = derper(tables, question) {
                return Choice { way: Some(way), any: true };
            }
        }
        if let Some(next_hop) = next_hop(own, tables, question, rank_used.node, path) {
            return Choice { way: Some(Way::Node { rank_used, next_hop }), any: true };
        }
        unreachable[tried] = rank_used.node;
    }
    Choice { way: derper(tables, question), any: true }
}

/// The direct link if it is up, else a transit that hears the target: always the same one for a flow, so that order holds.
fn next_hop(own: NodeId, tables: &impl Tables, question: &Question<'_>, target: NodeId, path: &Path) -> Option<NodeId> {
    if tables.link_is_up(target) {
        return Some(target);
    }
    // This node and the transit must both fit on the path.
    if path.as_slice().len() + 2 > PATH_LEN_MAX {
        return None;
    }
    let flow = flow_hash(question.src, question.dst);
    tables
        .transits(target)
        .into_iter()
        .filter(|node| *node != own && *node != target && !path.contains(*node) && tables.link_is_up(*node))
        .max_by_key(|node| mix(flow ^ node.0))
}

const fn to_derper(role: Role) -> Decision {
    Decision { role, action: Action::ToDerper, why: "a stock derper that this node watches holds the key" }
}

const fn drop_it(role: Role, reason: DropReason, why: &'static str) -> Decision {
    Decision { role, action: Action::Drop { reason, tell_origin: false }, why }
}

#[cfg(test)]
mod tests;
