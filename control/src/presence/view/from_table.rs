//! Takes in what Raft applied.

use std::sync::Arc;

use causeway_proto::id::{BootId, Epoch};
use causeway_proto::presence::Op;

use super::PresenceView;
use super::input::IngestError;
use super::writer::{News, Writer};
use crate::presence::table::{TableEvent, TableSnapshot};

impl PresenceView {
    /// Takes in what Raft applied, in log order.
    pub fn ingest_table(&self, events: &[TableEvent]) {
        for event in events {
            self.write(|writer, news| self.table_event(writer, news, event)).unwrap_or_else(|error| {
                tracing::warn!(%error, "applied presence does not fit this node's view");
            });
        }
    }

    /// Takes in a whole table: after a start or the installation of a snapshot.
    pub fn ingest_table_snapshot(&self, snapshot: &TableSnapshot) {
        let mut claims = snapshot.claims_by_owner();
        for (node, owner) in snapshot.table().owners() {
            let mut events = Vec::new();
            if owner.epoch > Epoch(0) && !owner.dropped {
                let (epoch, boot_id, seq) = (owner.epoch, owner.boot_id, owner.seq);
                let ops = claims.remove(&node).unwrap_or_default();
                events.push(TableEvent::Replaced { node, epoch, boot_id, seq, ops });
            }
            events.push(match owner.fenced_epoch {
                Some(epoch) => TableEvent::Fenced { node, epoch },
                None => TableEvent::Unfenced { node },
            });
            if owner.dropped {
                events.push(TableEvent::Dropped { node, epoch: owner.epoch });
            }
            if owner.evicted {
                events.push(TableEvent::Evicted { node });
            }
            self.ingest_table(&events);
        }
    }

    fn table_event(&self, writer: &mut Writer, news: &mut News, event: &TableEvent) -> Result<(), IngestError> {
        let (TableEvent::Advanced { node, .. }
        | TableEvent::Replaced { node, .. }
        | TableEvent::Fenced { node, .. }
        | TableEvent::Unfenced { node }
        | TableEvent::Dropped { node, .. }
        | TableEvent::Evicted { node }) = event;
        if *node == self.own {
            if let TableEvent::Advanced { epoch, .. } | TableEvent::Replaced { epoch, .. } = event {
                self.own_epoch_seen(*epoch);
            }
            return Ok(());
        }
        let slot = writer.slot(*node)?;
        if writer.owners[slot].evicted {
            return Ok(());
        }
        match event {
            TableEvent::Advanced { epoch, boot_id, first_seq, ops, .. } => {
                let owner = &writer.owners[slot];
                if (*epoch, *boot_id) == (owner.epoch, owner.boot_id) && !owner.incomplete {
                    self.extend(writer, news, slot, *first_seq, ops)?;
                }
            }
            TableEvent::Replaced { epoch, boot_id, seq, ops, .. } => {
                self.table_replaced(writer, news, slot, (*epoch, *boot_id), *seq, ops);
            }
            TableEvent::Fenced { epoch, .. } => {
                writer.owners[slot].fenced_epoch = Some(*epoch);
                self.publish(writer, news);
            }
            TableEvent::Unfenced { .. } => {
                writer.owners[slot].fenced_epoch = None;
                self.publish(writer, news);
            }
            TableEvent::Dropped { epoch, .. } => {
                let owner = &writer.owners[slot];
                if owner.epoch == *epoch && !writer.validity(self.own, owner).is_valid() {
                    let slot = self.clear(writer, news, slot);
                    writer.owners[slot].incomplete = true;
                    self.publish(writer, news);
                }
            }
            TableEvent::Evicted { .. } => {
                let slot = self.clear(writer, news, slot);
                let owner = &mut writer.owners[slot];
                (owner.evicted, owner.live, owner.hears) = (true, false, Arc::default());
                self.publish(writer, news);
            }
        }
        Ok(())
    }

    fn table_replaced(
        &self,
        writer: &mut Writer,
        news: &mut News,
        mut slot: usize,
        (epoch, boot_id): (Epoch, BootId),
        seq: u64,
        ops: &[Op],
    ) {
        let owner = &writer.owners[slot];
        // Two processes with one epoch (a copied data directory): the one that speaks here is believed while it does.
        let other_process = epoch == owner.epoch && boot_id != owner.boot_id && !owner.live;
        if epoch > owner.epoch || other_process {
            slot = self.open_epoch(writer, news, slot, epoch, boot_id);
            self.publish(writer, news);
        }
        let owner = &writer.owners[slot];
        if (epoch, boot_id) == (owner.epoch, owner.boot_id) && (owner.incomplete || seq > owner.seq()) {
            self.replace(writer, news, slot, seq, ops);
        }
    }
}
