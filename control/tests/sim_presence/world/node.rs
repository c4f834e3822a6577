//! A node of the simulated fleet, and what is on its way to others.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use causeway_control::presence::{
    EventBatch, GoneTimers, OwnerLog, PresenceEvent, PresenceView, Table, TableSnapshot, WatchInput,
};
use causeway_proto::id::{BootId, Epoch, NodeId, RegionId};
use causeway_proto::presence::PresenceKey;
use tokio::sync::broadcast;

use super::Coverage;
use crate::reference;

/// A message on its way from an owner to an observer.
#[derive(Debug, Clone)]
pub(super) struct Watch {
    pub(super) from: NodeId,
    pub(super) to: NodeId,
    pub(super) epoch: Epoch,
    pub(super) input: WatchInput,
}

pub(super) struct Node {
    pub(super) id: NodeId,
    pub(super) epoch: Epoch,
    pub(super) boot_id: BootId,
    pub(super) up: bool,
    pub(super) view: Arc<PresenceView>,
    pub(super) log: OwnerLog,
    pub(super) events: broadcast::Receiver<EventBatch>,
    /// Keys with a valid claim, by events alone.
    pub(super) present: BTreeSet<PresenceKey>,
    pub(super) gone: GoneTimers,
    pub(super) reference: reference::View,
    pub(super) table: Table,
    pub(super) applied: usize,
    /// The index at which the table was compared with the reference.
    pub(super) checked: usize,
    /// What survives a restart: a snapshot and the log index it was taken at.
    pub(super) stored: (TableSnapshot, usize),
    /// What the view knows of each owner's log: times its claims were dropped, epoch, sequence.
    pub(super) known: BTreeMap<NodeId, (usize, Epoch, u64)>,
}

impl Node {
    pub(super) fn start(
        id: NodeId,
        epoch: Epoch,
        boot_id: BootId,
        regions: &BTreeMap<NodeId, RegionId>,
        stored: (TableSnapshot, usize),
    ) -> Self {
        let view = Arc::new(PresenceView::new(id, regions[&id]));
        for (node, region) in regions {
            view.set_region(*node, *region);
        }
        let events = view.subscribe();
        let log = OwnerLog::new(id, epoch, boot_id, Arc::clone(&view));
        view.ingest_table_snapshot(&stored.0);
        Self {
            id,
            epoch,
            boot_id,
            up: true,
            view,
            log,
            events,
            present: BTreeSet::new(),
            gone: GoneTimers::default(),
            reference: reference::View::new(id),
            table: stored.0.table().clone(),
            applied: stored.1,
            checked: usize::MAX,
            stored,
            known: BTreeMap::new(),
        }
    }

    /// Follows the events, with the jitter of `rng`; returns the keys told to be gone.
    pub(super) fn drain(&mut self, jitter: f64, now: Instant, coverage: &mut Coverage) -> Vec<PresenceKey> {
        self.view.tell_changed_owners();
        let mut told = Vec::new();
        while let Ok(batch) = self.events.try_recv() {
            for event in batch.iter() {
                match *event {
                    PresenceEvent::Claimed { key, .. } => {
                        self.present.insert(key);
                        self.gone.handle_claimed(&key);
                    }
                    PresenceEvent::LastClaimGone { key, clean } => {
                        // May be repeated: keys of changed owners are told after what happened since.
                        self.present.remove(&key);
                        if self.gone.handle_gone(key, clean, jitter, now) && !self.view.has_valid_claim(&key) {
                            told.push(key);
                        }
                    }
                    PresenceEvent::OwnerLost { .. } => coverage.owners_lost += 1,
                    PresenceEvent::OwnerBack { .. } => coverage.owners_back += 1,
                    _ => {}
                }
            }
        }
        told.extend(self.gone.handle_timeout(|key| self.view.has_valid_claim(key), now));
        told
    }
}
