//! Takes in what watch streams say.

use std::sync::Arc;
use std::time::Instant;

use causeway_proto::id::{Epoch, NodeId};
use causeway_proto::presence::Op;

use super::PresenceView;
use super::input::{IngestError, WatchInput};
use super::writer::{News, Writer};
use crate::presence::limits::{CLAIMS_PER_OWNER_MAX, OWNERS_MAX};
use crate::presence::log_identity::LogIdentity;
use crate::presence::table::is_claims_in_key_order;

/// Nodes a peer may vouch for.
pub(super) const HEARS_MAX: usize = OWNERS_MAX;

impl PresenceView {
    /// Takes in what a watch stream of `node` in `epoch` said at `now`.
    ///
    /// # Errors
    /// [`IngestError`]: the stream must be closed.
    pub fn ingest_watch(&self, node: NodeId, epoch: Epoch, input: WatchInput, now: Instant) -> Result<(), IngestError> {
        if node == self.own {
            return Err(IngestError::Own);
        }
        self.write(|writer, news| {
            if let WatchInput::Hello { boot_id } = input {
                return self.hello(writer, news, LogIdentity { node, epoch, boot_id }, now);
            }
            let slot = writer.slots.get(&node).copied().ok_or(IngestError::NoHello)?;
            let owner = &mut writer.owners[slot];
            if epoch < owner.epoch {
                return Err(IngestError::LowerEpoch { highest: owner.epoch });
            }
            if epoch > owner.epoch || !owner.live {
                return Err(IngestError::NoHello);
            }
            match input {
                WatchInput::Hello { .. } => {}
                WatchInput::Snapshot { seq, ops } => self.watch_snapshot(writer, news, slot, seq, &ops)?,
                WatchInput::Delta { first_seq, ops } => self.extend(writer, news, slot, first_seq, &ops)?,
                WatchInput::Heartbeat { hears } => self.heartbeat(writer, news, slot, hears)?,
                WatchInput::Down => {
                    (owner.live, owner.hears) = (false, Arc::default());
                    self.publish(writer, news);
                    return Ok(());
                }
            }
            writer.owners[slot].last_heard = Some(now);
            Ok(())
        })
    }

    fn hello(&self, writer: &mut Writer, news: &mut News, hello: LogIdentity, now: Instant) -> Result<(), IngestError> {
        if hello.epoch == Epoch(0) {
            return Err(IngestError::Malformed);
        }
        let mut slot = writer.slot(hello.node)?;
        let owner = &writer.owners[slot];
        if owner.evicted {
            return Err(IngestError::Evicted);
        }
        if hello.epoch < owner.epoch {
            return Err(IngestError::LowerEpoch { highest: owner.epoch });
        }
        if hello.epoch == owner.epoch && hello.boot_id != owner.boot_id {
            return Err(IngestError::OtherBootId { epoch: owner.epoch });
        }
        if hello.epoch > owner.epoch {
            slot = self.open_epoch(writer, news, slot, hello.epoch, hello.boot_id);
        }
        let owner = &mut writer.owners[slot];
        (owner.live, owner.was_live, owner.last_heard) = (true, true, Some(now));
        self.publish(writer, news);
        Ok(())
    }

    pub(super) fn watch_snapshot(
        &self,
        writer: &mut Writer,
        news: &mut News,
        slot: usize,
        seq: u64,
        ops: &[Op],
    ) -> Result<(), IngestError> {
        if !is_claims_in_key_order(ops) || seq < ops.len() as u64 {
            return Err(IngestError::Malformed);
        }
        if ops.len() > CLAIMS_PER_OWNER_MAX {
            return Err(IngestError::TooManyClaims);
        }
        let owner = &writer.owners[slot];
        if owner.incomplete || seq > owner.seq() {
            self.replace(writer, news, slot, seq, ops);
        }
        Ok(())
    }

    fn heartbeat(&self, writer: &mut Writer, news: &mut News, slot: usize, mut hears: Vec<NodeId>) -> Result<(), IngestError> {
        if hears.len() > HEARS_MAX {
            return Err(IngestError::Malformed);
        }
        hears.sort_unstable();
        hears.dedup();
        if *writer.owners[slot].hears != *hears {
            writer.owners[slot].hears = hears.into();
            self.publish(writer, news);
        }
        Ok(())
    }
}
