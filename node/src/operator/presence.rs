//! Presence for operators: entries with the reason of each claim's place, lists, and a stream of changes.

use std::sync::Arc;

use causeway_control::presence::view::PresenceCounts;
use causeway_control::presence::{Candidate, EventBatch, PresenceEvent};
use causeway_control::{CommittedClaim, NodeSet};
use causeway_proto::id::NodeId;
use causeway_proto::presence::{PresenceKey, Rank};
use causeway_rpc::v1;
use futures::Stream;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::OperatorParts;

/// Entries that wait for a slow operator; the rest waits in the map.
const STREAM_QUEUE: usize = 64;

/// All claims on a key as this node sees them, preferred first.
pub(super) fn entry(key: PresenceKey, claims: &[Candidate], nodes: &NodeSet) -> v1::PresenceEntry {
    let preferred = claims.iter().position(Candidate::is_usable);
    let claims = claims.iter().enumerate().map(|(place, claim)| {
        let (node_name, region_code) = names(nodes, claim.node);
        v1::PresenceClaim {
            rank: Some(claim.rank.into()),
            home: claim.home,
            kind: v1::ClaimKind::from(claim.kind).into(),
            epoch: claim.epoch.0,
            valid: claim.validity.is_valid(),
            preferred: preferred == Some(place),
            why: claim.why(),
            node_name,
            region_code,
        }
    });
    v1::PresenceEntry { key: key.0.to_vec().into(), claims: claims.collect() }
}

/// All claims on a key that Raft has committed.
pub(super) fn committed_entry(key: PresenceKey, claims: &[CommittedClaim], nodes: &NodeSet) -> v1::PresenceEntry {
    let claims = claims.iter().map(|claim| {
        let (node_name, region_code) = names(nodes, claim.rank.node);
        v1::PresenceClaim {
            rank: Some(claim.rank.into()),
            home: claim.home,
            kind: v1::ClaimKind::from(claim.kind).into(),
            epoch: claim.epoch.0,
            valid: !claim.fenced,
            // Preference belongs to an observer; a consistent read has none.
            preferred: false,
            why: if claim.fenced { "committed by Raft, fenced" } else { "committed by Raft" }.to_owned(),
            node_name,
            region_code,
        }
    });
    v1::PresenceEntry { key: key.0.to_vec().into(), claims: claims.collect() }
}

/// Counts with the nodes' names.
pub(super) fn counted(counts: &PresenceCounts, nodes: &NodeSet) -> v1::PresenceCount {
    let by_node = counts.by_node.iter().map(|(node, claims)| v1::NodeClaims {
        node_id: node.0,
        name: names(nodes, *node).0,
        claims: *claims as u64,
    });
    v1::PresenceCount {
        keys: counts.keys as u64,
        claims: counts.claims as u64,
        home_claims: counts.home_claims as u64,
        by_node: by_node.collect(),
    }
}

fn names(nodes: &NodeSet, node: NodeId) -> (String, String) {
    nodes.get(node).map(|node| (node.record.name.clone(), node.region_code().to_owned())).unwrap_or_default()
}

/// Every entry that has a claim of the node and region asked for.
pub(super) fn list(
    parts: &Arc<OperatorParts>,
    request: &v1::ListPresenceRequest,
) -> impl Stream<Item = Result<v1::PresenceEntry, Status>> + use<> {
    let (node, region) = (request.node_id, request.region_id);
    let limit = if request.limit == 0 { usize::MAX } else { request.limit as usize };
    let (out, entries) = mpsc::channel(STREAM_QUEUE);
    let own = Arc::clone(parts);
    let produce = async move {
        let nodes = Arc::clone(&own.nodes.borrow());
        let wanted = |claim: &Candidate| {
            let in_region = || nodes.region_of(claim.node).is_some_and(|of| of.0 == region);
            (node == 0 || claim.node.0 == node) && (region == 0 || in_region())
        };
        let mut keys = Vec::new();
        own.view.for_each(|key, claims| {
            if keys.len() < limit && claims.iter().any(wanted) {
                keys.push(key);
            }
        });
        keys.sort_unstable();
        for key in keys {
            let claims = own.view.claims(&key);
            // Gone since; not an entry any more.
            if claims.is_empty() {
                continue;
            }
            if out.send(Ok(entry(key, &claims, &nodes))).await.is_err() {
                return;
            }
        }
    };
    parts.tracker.spawn(until_cancelled(Arc::clone(parts), produce));
    ReceiverStream::new(entries)
}

async fn until_cancelled(parts: Arc<OperatorParts>, work: impl Future<Output = ()>) {
    tokio::select! {
        () = parts.cancel.cancelled() => {}
        () = work => {}
    }
}

/// What is present, then every change. A reader that falls behind is told everything afresh.
pub(super) fn watch(
    parts: Arc<OperatorParts>,
    key: Option<PresenceKey>,
    changes_only: bool,
    clock_us: fn() -> u64,
) -> impl Stream<Item = Result<v1::PresenceChange, Status>> + use<> {
    let (out, changes) = mpsc::channel(STREAM_QUEUE);
    let watcher = Watcher { parts: Arc::clone(&parts), key, clock_us, out };
    let work = watcher.run(changes_only);
    parts.tracker.spawn(until_cancelled(Arc::clone(&parts), work));
    ReceiverStream::new(changes)
}

struct Watcher {
    parts: Arc<OperatorParts>,
    key: Option<PresenceKey>,
    clock_us: fn() -> u64,
    out: mpsc::Sender<Result<v1::PresenceChange, Status>>,
}

/// The operator went away.
struct Gone;

impl Watcher {
    async fn run(self, changes_only: bool) {
        // Subscribed before anything is read, so that no change falls between.
        let mut events = self.parts.view.subscribe();
        let first = if changes_only { self.send(self.change("synced")).await } else { self.send_present().await };
        if first.is_err() {
            return;
        }
        loop {
            let sent = tokio::select! {
                () = self.out.closed() => return,
                received = events.recv() => match received {
                    Ok(batch) => self.send_batch(&batch).await,
                    Err(RecvError::Lagged(_)) => self.send_present().await,
                    Err(RecvError::Closed) => return,
                },
            };
            if sent.is_err() {
                return;
            }
        }
    }

    async fn send(&self, change: v1::PresenceChange) -> Result<(), Gone> {
        self.out.send(Ok(change)).await.map_err(|_| Gone)
    }

    async fn send_present(&self) -> Result<(), Gone> {
        let keys = match self.key {
            Some(key) => vec![key],
            None => {
                let mut keys = Vec::new();
                self.parts.view.for_each(|key, _| keys.push(key));
                keys.sort_unstable();
                keys
            }
        };
        for key in keys {
            for claim in self.parts.view.claims(&key).iter().filter(|claim| claim.validity.is_valid()) {
                let kind = v1::ClaimKind::from(claim.kind).into();
                self.send(v1::PresenceChange { home: claim.home, kind, ..self.about(key, "present", claim.rank) }).await?;
            }
        }
        self.send(self.change("synced")).await
    }

    async fn send_batch(&self, batch: &EventBatch) -> Result<(), Gone> {
        for event in batch.iter() {
            if let Some(change) = self.change_of(event) {
                self.send(change).await?;
            }
        }
        Ok(())
    }

    fn change_of(&self, event: &PresenceEvent) -> Option<v1::PresenceChange> {
        let wanted = |key: &PresenceKey| self.key.is_none_or(|wanted| wanted == *key);
        match event {
            PresenceEvent::Claimed { key, rank, home, kind } if wanted(key) => {
                let kind = v1::ClaimKind::from(*kind).into();
                Some(v1::PresenceChange { home: *home, kind, ..self.about(*key, "claimed", *rank) })
            }
            PresenceEvent::Released { key, rank, .. } if wanted(key) => Some(self.about(*key, "released", *rank)),
            PresenceEvent::OwnerLost { node } => Some(self.about_owner("owner_lost", *node)),
            PresenceEvent::OwnerBack { node } => Some(self.about_owner("owner_back", *node)),
            _ => None,
        }
    }

    fn change(&self, change: &str) -> v1::PresenceChange {
        v1::PresenceChange { change: change.to_owned(), at_us: (self.clock_us)(), ..v1::PresenceChange::default() }
    }

    fn about(&self, key: PresenceKey, change: &str, rank: Rank) -> v1::PresenceChange {
        v1::PresenceChange { key: key.0.to_vec().into(), rank: Some(rank.into()), ..self.change(change) }
    }

    fn about_owner(&self, change: &str, node: NodeId) -> v1::PresenceChange {
        v1::PresenceChange { rank: Some(Rank { clock_us: 0, node }.into()), ..self.change(change) }
    }
}
