//! Applies committed commands to the fleet's state and the presence table, and tells the rest of the node what changed.
//!
//! In memory: after a restart openraft installs the last snapshot and replays the log behind it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use causeway_proto::id::NodeId;
use causeway_rpc::v1;
use futures::{Stream, StreamExt};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder, Snapshot};
use parking_lot::RwLock;
use prost::Message;
use tokio::sync::watch;

use super::fleet_state::FleetState;
use super::snapshot::{SnapshotFile, SnapshotStore};
use super::types::{Command, Entry, LogId, Reply, SnapshotMeta, StoredMembership, TypeConfig};
use crate::presence::fence::Member;
use crate::presence::{self, Outcome, PresenceView, Refusal, Table, TableEvent, TableSnapshot};

/// The replicated state, and what openraft needs to know about it.
#[derive(Debug, Default)]
pub(crate) struct Replicated {
    pub(crate) last_applied: Option<LogId>,
    pub(crate) membership: StoredMembership,
    pub(crate) fleet: FleetState,
    pub(crate) table: Table,
}

/// What others follow of the replicated state: everything but the claims. A new one is published when it changes.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct FleetView {
    pub(crate) fleet: Arc<FleetState>,
    /// Nodes whose present epoch is fenced.
    pub(crate) fenced: BTreeSet<NodeId>,
    /// Owners, their epochs and fences, as the leader's fence monitor takes them.
    pub(crate) owners: BTreeMap<NodeId, Member>,
    /// The index of the last entry that changed any of it, or a later one.
    pub(crate) applied_index: u64,
}

/// A group's state machine. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct StateMachine {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    state: RwLock<Replicated>,
    changed: watch::Sender<Arc<FleetView>>,
    view: Arc<PresenceView>,
    snapshots: SnapshotStore,
}

impl StateMachine {
    pub(crate) fn new(view: Arc<PresenceView>, snapshots: SnapshotStore) -> Self {
        let inner = Inner { state: RwLock::default(), changed: watch::Sender::default(), view, snapshots };
        Self { inner: Arc::new(inner) }
    }

    /// Reads the replicated state. Keep it short: applying waits meanwhile.
    pub(crate) fn read<T>(&self, read: impl FnOnce(&Replicated) -> T) -> T {
        read(&self.inner.state.read())
    }

    /// Everything but the claims, as it changes.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Arc<FleetView>> {
        self.inner.changed.subscribe()
    }

    fn apply_entry(&self, entry: Entry) -> Reply {
        let mut events = Vec::new();
        let mut fleet_changed = false;
        let reply = {
            let mut state = self.inner.state.write();
            state.last_applied = Some(entry.log_id);
            match entry.payload {
                EntryPayload::Blank => Reply::Nothing,
                EntryPayload::Membership(membership) => {
                    state.membership = StoredMembership::new(Some(entry.log_id), membership);
                    Reply::Nothing
                }
                EntryPayload::Normal(command) => apply_command(&mut state, &command, &mut events, &mut fleet_changed),
            }
        };
        // Applying is one at a time, so the view sees events in log order although the lock is free again.
        self.inner.view.ingest_table(&events);
        fleet_changed |= events.iter().any(|event| match event {
            // A part of a log changes what is followed only when it opens an epoch, which shows as a replacement.
            TableEvent::Advanced { .. } => false,
            TableEvent::Replaced { .. }
            | TableEvent::Fenced { .. }
            | TableEvent::Unfenced { .. }
            | TableEvent::Dropped { .. }
            | TableEvent::Evicted { .. } => true,
        });
        if fleet_changed {
            self.publish();
        }
        reply
    }

    fn publish(&self) {
        let view = self.read(|state| {
            let owners: BTreeMap<_, _> =
                state.table.owners().map(|(node, owner)| (node, Member::of_table(node, owner))).collect();
            let fenced = owners.values().filter(|owner| owner.fenced).map(|owner| owner.node).collect();
            let applied_index = state.last_applied.map_or(0, |id| id.index);
            FleetView { fleet: Arc::new(state.fleet.clone()), fenced, owners, applied_index }
        });
        self.inner.changed.send_replace(Arc::new(view));
    }
}

fn apply_command(state: &mut Replicated, command: &Command, events: &mut Vec<TableEvent>, fleet_changed: &mut bool) -> Reply {
    use v1::raft_command::Command as Kind;
    let Ok(v1::RaftCommand { command: Some(command) }) = v1::RaftCommand::decode(command.0.as_ref()) else {
        return Reply::Refused("the command cannot be read by this release".to_owned());
    };
    if let Kind::Presence(bytes) = command {
        return match presence::Command::decode(&bytes) {
            Ok(command) => apply_presence(&mut state.table, &command, events),
            Err(error) => Reply::Refused(error.to_string()),
        };
    }
    *fleet_changed = true;
    let evicts = if let Kind::EvictNode(evict) = &command { Some(NodeId(evict.node_id)) } else { None };
    let Replicated { fleet, table, .. } = state;
    let reply = fleet.apply(command, |node| table.owner(node).is_some_and(presence::table::TableOwner::is_fenced));
    if let (Some(node), false) = (evicts, matches!(reply, Reply::Refused(_))) {
        apply_presence(table, &presence::Command::Evict { node }, events);
    }
    reply
}

fn apply_presence(table: &mut Table, command: &presence::Command, events: &mut Vec<TableEvent>) -> Reply {
    let applied = table.apply(command);
    events.extend(applied.events);
    match applied.outcome {
        Outcome::Applied { seq } | Outcome::Unchanged { seq } => Reply::Applied { seq },
        Outcome::Refused(Refusal::Gap { expected_seq }) => Reply::Gap { expected_seq },
        Outcome::Refused(Refusal::NeedsReset { at_least_seq }) => Reply::NeedsReset { at_least_seq },
        Outcome::Refused(Refusal::LowerEpoch { .. } | Refusal::OtherBootId { .. }) => {
            let (epoch, boot_id) = table.owner(command.node()).map(|owner| (owner.epoch, owner.boot_id)).unwrap_or_default();
            Reply::Superseded { epoch, boot_id }
        }
        Outcome::Refused(refusal) => Reply::Refused(refusal.to_string()),
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotFile;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        Ok(self.read(|state| (state.last_applied, state.membership.clone())))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some(entry) = entries.next().await {
            let (entry, responder) = entry?;
            let reply = self.apply_entry(entry);
            if let Some(responder) = responder {
                responder.send(reply);
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        let (meta, fleet, table) = self.read(|state| {
            let meta = SnapshotMeta { last_log_id: state.last_applied, last_membership: state.membership.clone() };
            (meta, state.fleet.clone(), state.table.snapshot())
        });
        SnapshotBuilder { meta, fleet: Arc::new(fleet), table: Arc::new(table), snapshots: self.inner.snapshots.clone() }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: SnapshotFile) -> Result<(), io::Error> {
        let (store, meta) = (self.inner.snapshots.clone(), meta.clone());
        let content = tokio::task::spawn_blocking(move || store.install(&meta, &snapshot)).await??;
        let table = content.table.snapshot();
        *self.inner.state.write() = Replicated {
            last_applied: content.meta.last_log_id,
            membership: content.meta.last_membership,
            fleet: content.fleet,
            table: content.table,
        };
        self.inner.view.ingest_table_snapshot(&table);
        self.publish();
        Ok(())
    }

    async fn get_current_snapshot(
        &mut self,
    ) -> Result<Option<Snapshot<LeaderIdOf, u64, openraft::EmptyNode, SnapshotFile>>, io::Error> {
        let store = self.inner.snapshots.clone();
        let current = tokio::task::spawn_blocking(move || store.current()).await?.map_err(io::Error::other)?;
        Ok(current.map(|(meta, snapshot)| Snapshot { meta, snapshot }))
    }
}

type LeaderIdOf = super::types::LeaderId;

/// A frozen copy of the state on its way to disk.
#[derive(Debug)]
pub(crate) struct SnapshotBuilder {
    meta: SnapshotMeta,
    fleet: Arc<FleetState>,
    table: Arc<TableSnapshot>,
    snapshots: SnapshotStore,
}

impl RaftSnapshotBuilder<TypeConfig> for SnapshotBuilder {
    type SnapshotData = SnapshotFile;

    async fn build_snapshot(&mut self) -> Result<Snapshot<LeaderIdOf, u64, openraft::EmptyNode, SnapshotFile>, io::Error> {
        let (store, meta) = (self.snapshots.clone(), self.meta.clone());
        let (fleet, table) = (Arc::clone(&self.fleet), Arc::clone(&self.table));
        let written = tokio::task::spawn_blocking(move || store.write(&meta, &fleet, &table)).await??;
        Ok(Snapshot { meta: self.meta.clone(), snapshot: written })
    }
}
