//! The writing side of the view: one writer at a time, and readers see the owners it leaves.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use causeway_proto::id::{Epoch, NodeId, RegionId};
use causeway_proto::presence::Op;
use parking_lot::MutexGuard;

use super::PresenceView;
use super::entry::{OwnerEntry, any_valid};
use super::event::PresenceEvent;
use super::input::IngestError;
use super::owner::Owner;
use super::writer::{News, Writer};
use crate::presence::log_identity::LogIdentity;
use crate::presence::prefer::Validity;

/// Events in one batch, so that what a slow subscriber pins is bounded.
const BATCH_EVENTS_MAX: usize = 1024;

impl PresenceView {
    /// Learns a node's region.
    pub fn set_region(&self, node: NodeId, region: RegionId) {
        self.write(|writer, news| {
            let slot = writer.slot(node)?;
            if writer.owners[slot].region != Some(region) {
                writer.owners[slot].region = Some(region);
                self.publish(writer, news);
                news.events.push(PresenceEvent::RegionLearnt { node });
            }
            Ok(())
        })
        .unwrap_or_else(|error| tracing::warn!(%node, %error, "region of a node is not kept"));
    }

    /// Starts the own log of this process.
    pub(in crate::presence) fn open_own(&self, identity: LogIdentity) {
        self.write(|writer, news| {
            let slot = writer.slot(identity.node)?;
            self.open_epoch(writer, news, slot, identity.epoch, identity.boot_id);
            self.publish(writer, news);
            Ok(())
        })
        .expect("the own node is the first owner");
    }

    /// The sequence up to which the own log is known here.
    pub(in crate::presence) fn own_seq(&self) -> u64 {
        self.owners.load()[0].seq.load(Ordering::Relaxed)
    }

    /// Takes in operations of the own log, from [`Self::own_seq`] on or from before. Several callers may do so at once: operations count
    /// by their sequence.
    pub(in crate::presence) fn extend_own(&self, first_seq: u64, ops: &[Op]) {
        self.write(|writer, news| self.extend(writer, news, 0, first_seq, ops))
            .expect("the own log is contiguous and within its limits");
    }

    /// Takes in all claims of the own log as of `seq`.
    pub(in crate::presence) fn replace_own(&self, seq: u64, claims: &[Op]) {
        self.write(|writer, news| self.watch_snapshot(writer, news, 0, seq, claims)).expect("the own log is within its limits");
    }

    /// Somebody knows a higher epoch of this node than its own.
    pub fn own_epoch_seen(&self, epoch: Epoch) {
        let own = self.owners.load()[0].epoch;
        if own > Epoch(0) && epoch > own {
            self.superseded.send_if_modified(|seen| {
                let news = Some(epoch) > *seen;
                *seen = (*seen).max(Some(epoch));
                news
            });
        }
    }

    pub(super) fn write<T>(
        &self,
        write: impl FnOnce(&mut Writer, &mut News) -> Result<T, IngestError>,
    ) -> Result<T, IngestError> {
        self.write_locked(&mut self.writer.lock(), write)
    }

    /// As [`Self::write`], for a caller that writes again at once: whoever waits goes first.
    pub(super) fn write_and_yield(&self, write: impl FnOnce(&mut Writer, &mut News)) {
        let mut writer = self.writer.lock();
        self.write_locked(&mut writer, |writer, news| {
            write(writer, news);
            Ok(())
        })
        .expect("it refuses nothing");
        MutexGuard::unlock_fair(writer);
    }

    fn write_locked<T>(
        &self,
        writer: &mut Writer,
        write: impl FnOnce(&mut Writer, &mut News) -> Result<T, IngestError>,
    ) -> Result<T, IngestError> {
        let mut news = News::default();
        let result = write(writer, &mut news);
        let owners = self.owners.load();
        let claims = self.claims.pin();
        for (key, clean) in news.lost {
            if claims.get(&key).is_none_or(|claims| !any_valid(&owners, claims.as_slice())) {
                news.events.push(PresenceEvent::LastClaimGone { key, clean });
            }
        }
        // Under the lock, so that subscribers see changes in their order.
        for batch in news.events.chunks(BATCH_EVENTS_MAX) {
            if self.events.send(batch.into()).is_err() {
                break;
            }
        }
        result
    }

    /// Lets readers see the owners as they are now, and tells whose claims stopped or began to count.
    pub(super) fn publish(&self, writer: &mut Writer, news: &mut News) {
        let entry = |owner: &Owner| OwnerEntry {
            node: owner.node,
            region: owner.region,
            epoch: owner.epoch,
            validity: writer.validity(self.own, owner),
            hears: Arc::clone(&owner.hears),
            seq: Arc::clone(&owner.seq),
            retired: owner.retired,
        };
        let entries: Vec<OwnerEntry> = writer.owners.iter().map(entry).collect();
        self.publish_live(&entries);
        let mut untold = false;
        for (owner, entry) in writer.owners.iter_mut().zip(&entries) {
            let (node, valid) = (owner.node, entry.validity.is_valid());
            if !owner.retired {
                match (owner.published_valid.replace(valid), valid) {
                    (Some(true), false) => news.events.push(PresenceEvent::OwnerLost { node }),
                    (Some(false), true) => news.events.push(PresenceEvent::OwnerBack { node }),
                    _ => continue,
                }
                owner.changes += 1;
            }
            untold |= owner.claims > 0;
        }
        self.owners.store(Arc::new(entries));
        if untold {
            self.untold.notify_one();
        }
    }

    fn publish_live(&self, owners: &[OwnerEntry]) {
        let mut live: Vec<NodeId> =
            owners.iter().filter(|owner| owner.validity == Validity::Live).map(|owner| owner.node).collect();
        live.sort_unstable();
        self.live.send_if_modified(|last| {
            let news = **last != *live;
            if news {
                *last = live.into();
            }
            news
        });
    }
}
