#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;

use super::*;

const OWN: NodeId = NodeId(1);
const SRC: NodePublic = NodePublic::from_bytes([1; 32]);
const DST: NodePublic = NodePublic::from_bytes([2; 32]);

/// Claims in order of preference.
#[derive(Default)]
struct Fake {
    local: Option<Local>,
    claims: Vec<Rank>,
    /// Claims of clients of stock derpers, in order of preference.
    behind_derpers: Vec<Rank>,
    /// A stock derper that this node has a link to holds it.
    derper: bool,
    up: BTreeSet<NodeId>,
    hear_target: Vec<NodeId>,
}

impl Tables for Fake {
    fn local(&self, key: &NodePublic) -> Option<Local> {
        self.local.filter(|_| *key == DST)
    }

    fn prefer(&self, _: &NodePublic, excluded: &dyn Fn(NodeId) -> bool) -> Option<Claimed> {
        let held = self.claims.iter().map(|rank| Claimed { rank: *rank, behind_derper: false });
        let foreign = self.behind_derpers.iter().map(|rank| Claimed { rank: *rank, behind_derper: true });
        held.chain(foreign).find(|claim| !excluded(claim.rank.node))
    }

    fn derper_holds(&self, _: &NodePublic) -> bool {
        self.derper
    }

    fn link_is_up(&self, node: NodeId) -> bool {
        self.up.contains(&node)
    }

    fn transits(&self, _: NodeId) -> Vec<NodeId> {
        self.hear_target.clone()
    }
}

const PROVEN: Option<Local> = Some(Local { proven: true, is_mesh_peer: false });
const SUSPECT: Option<Local> = Some(Local { proven: false, is_mesh_peer: false });

fn rank(node: u64) -> Rank {
    Rank { clock_us: 100 + node, node: NodeId(node) }
}

fn up(nodes: &[u64]) -> BTreeSet<NodeId> {
    nodes.iter().copied().map(NodeId).collect()
}

fn ask(tables: &Fake, ingress: Ingress, route: Option<&Route>) -> Action {
    decide(OWN, tables, &Question { src: &SRC, dst: &DST, ingress, route, ignore_local: false }).action
}

fn at_origin(tables: &Fake) -> Action {
    ask(tables, Ingress::Client, None)
}

/// A packet from node 9 for `target`, having visited `path`.
fn route(target: u64, path: &[u64], redirects: u8) -> Route {
    let mut visited = Path::default();
    path.iter().for_each(|node| visited.push(NodeId(*node)).unwrap());
    Route {
        origin: NodeId(path[0]),
        target: NodeId(target),
        rank_used: rank(target),
        redirects,
        path: visited,
        from_derper: false,
        trace: None,
    }
}

fn forward(next_hop: u64, target: u64, redirects: u8) -> Action {
    Action::Forward { next_hop: NodeId(next_hop), rank_used: rank(target), redirects }
}

fn drop_for(reason: DropReason) -> Action {
    Action::Drop { reason, tell_origin: false }
}

#[test]
fn the_origin_prefers_a_proven_connection_then_the_best_reachable_claim_then_a_suspect_connection() {
    let claims = vec![rank(2), rank(3)];
    let tables = |local, nodes: &[u64]| Fake { local, claims: claims.clone(), up: up(nodes), ..Fake::default() };
    assert_eq!(at_origin(&tables(PROVEN, &[2, 3])), Action::Deliver);
    assert_eq!(at_origin(&tables(SUSPECT, &[2, 3])), forward(2, 2, 0));
    assert_eq!(at_origin(&tables(None, &[3])), forward(3, 3, 0), "the best claim's node cannot be reached");
    assert_eq!(at_origin(&tables(SUSPECT, &[])), Action::Deliver);
    assert_eq!(at_origin(&tables(None, &[])), drop_for(DropReason::LinkDown));
    assert_eq!(at_origin(&Fake { local: SUSPECT, ..Fake::default() }), Action::Deliver);
    assert_eq!(at_origin(&Fake::default()), drop_for(DropReason::UnknownDest));
}

#[test]
fn a_transit_is_used_when_the_direct_link_is_down_and_always_the_same_one_for_a_flow() {
    let tables = Fake {
        claims: vec![rank(2)],
        up: up(&[3, 4, 5]),
        hear_target: vec![OWN, NodeId(2), NodeId(3), NodeId(4), NodeId(6)],
        ..Fake::default()
    };
    let Action::Forward { next_hop, rank_used, .. } = at_origin(&tables) else { panic!("a transit is there") };
    assert!([NodeId(3), NodeId(4)].contains(&next_hop), "hears the target, and its link is up");
    assert_eq!(rank_used, rank(2));
    assert_eq!(at_origin(&tables), at_origin(&tables));
    let used: BTreeSet<_> = (0..50)
        .map(|n| {
            let src = NodePublic::from_bytes([n; 32]);
            decide(OWN, &tables, &Question { src: &src, dst: &DST, ingress: Ingress::Client, route: None, ignore_local: false })
                .action
        })
        .filter_map(|action| if let Action::Forward { next_hop, .. } = action { Some(next_hop) } else { None })
        .collect();
    assert_eq!(used.len(), 2, "flows spread over both");
}

#[test]
fn a_transit_passes_on_without_looking_at_presence() {
    let tables = Fake { local: PROVEN, claims: vec![rank(7)], up: up(&[2, 3]), hear_target: vec![NodeId(3)], ..Fake::default() };
    assert_eq!(ask(&tables, Ingress::Link, Some(&route(2, &[9], 0))), forward(2, 2, 0));
    assert_eq!(
        ask(&tables, Ingress::Link, Some(&route(5, &[9], 0))),
        Action::Forward { next_hop: NodeId(3), rank_used: rank(5), redirects: 0 }
    );
    assert_eq!(ask(&tables, Ingress::Link, Some(&route(5, &[9, 3], 0))), drop_for(DropReason::LinkDown), "no node twice");
    assert_eq!(ask(&tables, Ingress::Link, Some(&route(2, &[9, 8, 7, 6], 0))), forward(2, 2, 0));
    assert_eq!(ask(&tables, Ingress::Link, Some(&route(2, &[9, 8, 7, 6, 5], 0))), drop_for(DropReason::PathFull));
    assert_eq!(
        ask(&tables, Ingress::Link, Some(&route(5, &[9, 8, 7, 6], 0))),
        drop_for(DropReason::LinkDown),
        "no room for two more"
    );
    assert_eq!(ask(&tables, Ingress::Link, Some(&route(2, &[9, 1], 0))), drop_for(DropReason::Loop));
    assert_eq!(ask(&tables, Ingress::Link, Some(&route(9, &[9, 8], 0))), drop_for(DropReason::Loop));
}

#[test]
fn the_target_delivers_or_redirects_twice_or_tells_the_origin() {
    let stale = Action::Drop { reason: DropReason::Stale, tell_origin: true };
    let tables = |local| Fake { local, claims: vec![rank(9), rank(8), rank(2)], up: up(&[2, 8, 9]), ..Fake::default() };
    let at_target = |local, path: &[u64], redirects| ask(&tables(local), Ingress::Link, Some(&route(1, path, redirects)));
    assert_eq!(at_target(PROVEN, &[9], 0), Action::Deliver);
    assert_eq!(at_target(None, &[9], 0), forward(8, 8, 1), "the best claim whose node it has not visited");
    assert_eq!(at_target(SUSPECT, &[9, 8], 1), forward(2, 2, 2));
    assert_eq!(at_target(SUSPECT, &[9, 8], 2), Action::Deliver, "no third redirect");
    assert_eq!(at_target(None, &[9, 8], 2), stale);
    assert_eq!(at_target(None, &[9, 8, 2], 1), stale, "every claim was visited");
    assert_eq!(at_target(None, &[9, 3, 4, 5, 6], 0), stale, "no room on the path");
}

#[test]
fn what_a_stock_derper_forwards_never_reaches_another_one() {
    let stock = Some(Local { proven: true, is_mesh_peer: true });
    let tables = Fake { local: stock, ..Fake::default() };
    assert_eq!(ask(&tables, Ingress::StockMesh, None), drop_for(DropReason::UnknownDestOnForward));
    assert_eq!(ask(&tables, Ingress::Client, None), Action::Deliver);
    let ours = Fake { local: stock, claims: vec![rank(2)], up: up(&[2]), ..Fake::default() };
    assert_eq!(ask(&ours, Ingress::StockMesh, None), forward(2, 2, 0), "on inside our own mesh");
    assert_eq!(ask(&Fake { local: PROVEN, ..Fake::default() }, Ingress::StockMesh, None), Action::Deliver);
}

#[test]
fn a_client_of_a_stock_derper_is_reached_where_no_client_of_ours_has_the_key() {
    let tables = |local, claims: &[Rank], derper| Fake {
        local,
        claims: claims.to_vec(),
        behind_derpers: vec![rank(3), rank(4)],
        derper,
        up: up(&[2, 3, 4]),
        ..Fake::default()
    };
    assert_eq!(at_origin(&tables(None, &[], true)), Action::ToDerper, "its own link before those of others");
    assert_eq!(at_origin(&tables(None, &[], false)), forward(3, 3, 0));
    assert_eq!(at_origin(&tables(None, &[rank(2)], true)), forward(2, 2, 0), "a client of ours wins");
    assert_eq!(at_origin(&tables(PROVEN, &[], true)), Action::Deliver);
    assert_eq!(at_origin(&tables(SUSPECT, &[], true)), Action::ToDerper);
    assert_eq!(at_origin(&tables(None, &[rank(9)], true)), Action::ToDerper, "the client of ours cannot be reached");

    let at_target = |claims: &[Rank], derper, path: &[u64], redirects| {
        ask(&tables(None, claims, derper), Ingress::Link, Some(&route(1, path, redirects)))
    };
    assert_eq!(at_target(&[], true, &[9], 0), Action::ToDerper);
    assert_eq!(at_target(&[rank(2)], true, &[9], 0), forward(2, 2, 1), "it has moved to one of ours");
    assert_eq!(at_target(&[rank(2)], true, &[9, 8], 2), Action::ToDerper, "no third redirect, but the derper is near");
    assert_eq!(at_target(&[], false, &[9, 3], 0), forward(4, 4, 1));
}

#[test]
fn what_one_stock_derper_forwarded_goes_to_no_other_wherever_it_is() {
    let tables = Fake { behind_derpers: vec![rank(3)], derper: true, up: up(&[2, 3]), ..Fake::default() };
    assert_eq!(ask(&tables, Ingress::StockMesh, None), drop_for(DropReason::UnknownDestOnForward));
    let forwarded = Route { from_derper: true, ..route(1, &[9], 0) };
    let stale = Action::Drop { reason: DropReason::Stale, tell_origin: true };
    assert_eq!(ask(&tables, Ingress::Link, Some(&forwarded)), stale, "at the target");
    let with_ours = Fake { claims: vec![rank(2)], ..tables };
    assert_eq!(ask(&with_ours, Ingress::StockMesh, None), forward(2, 2, 0));
    assert_eq!(ask(&with_ours, Ingress::Link, Some(&forwarded)), forward(2, 2, 1));
}

#[test]
fn a_connection_that_closed_just_now_is_as_good_as_none() {
    let tables = Fake { local: PROVEN, claims: vec![rank(2)], up: up(&[2]), ..Fake::default() };
    let question = Question { src: &SRC, dst: &DST, ingress: Ingress::Client, route: None, ignore_local: true };
    assert_eq!(decide(OWN, &tables, &question).action, forward(2, 2, 0));
}
