//! Changes an owner's claims in the view: what all three ways of learning of them (watch, Raft, the own log) come down to.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use causeway_proto::id::{BootId, Epoch};
use causeway_proto::presence::{Op, PresenceKey, Rank};

use super::PresenceView;
use super::claims::{Claim, Claims};
use super::event::PresenceEvent;
use super::input::IngestError;
use super::writer::{News, Writer};
use crate::presence::limits::exceeds_claims_max;

impl PresenceView {
    /// Adopts a higher epoch: nothing of it is known yet. Returns the owner's slot, to be published.
    pub(super) fn open_epoch(&self, writer: &mut Writer, news: &mut News, slot: usize, epoch: Epoch, boot_id: BootId) -> usize {
        let slot = self.clear(writer, news, slot);
        let owner = &mut writer.owners[slot];
        (owner.epoch, owner.boot_id, owner.incomplete) = (epoch, boot_id, false);
        (owner.live, owner.was_live, owner.hears) = (false, false, Arc::default());
        slot
    }

    /// Applies what is new of consecutive operations.
    pub(super) fn extend(
        &self,
        writer: &mut Writer,
        news: &mut News,
        slot: usize,
        first_seq: u64,
        ops: &[Op],
    ) -> Result<(), IngestError> {
        let owner = &writer.owners[slot];
        let known = owner.seq();
        if first_seq == 0 || first_seq.checked_add(ops.len() as u64).is_none() {
            return Err(IngestError::Malformed);
        }
        if owner.incomplete || first_seq > known + 1 {
            return Err(IngestError::Gap { expected_seq: known + 1 });
        }
        let new = usize::try_from(known + 1 - first_seq).ok().and_then(|skip| ops.get(skip..)).unwrap_or_default();
        let claims = self.claims.pin();
        let held = |key: &PresenceKey| {
            let claim = claims.get(key)?.as_slice().iter().find(|claim| usize::from(claim.owner) == slot)?;
            Some(claim.clock_us)
        };
        if exceeds_claims_max(owner.claims, new, held) {
            return Err(IngestError::TooManyClaims);
        }
        for op in new {
            self.apply_op(writer, news, slot, op);
        }
        writer.owners[slot].seq.store(known + new.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Makes `ops`, claims sorted by key, the whole of an owner's claims.
    pub(super) fn replace(&self, writer: &mut Writer, news: &mut News, slot: usize, seq: u64, ops: &[Op]) {
        for op in ops {
            self.apply_op(writer, news, slot, op);
        }
        if writer.owners[slot].claims > ops.len() {
            self.remove_where(writer, news, slot, |key| ops.binary_search_by_key(&key, Op::key).is_err());
        }
        let owner = &mut writer.owners[slot];
        owner.incomplete = false;
        owner.seq.store(seq, Ordering::Relaxed);
    }

    /// Ends all claims of a node. They are taken out later, so that this takes no time; returns the node's slot, to be published.
    pub(super) fn clear(&self, writer: &mut Writer, news: &mut News, slot: usize) -> usize {
        let slot = match writer.owners[slot].claims {
            0 => slot,
            _ => writer.retire(slot).unwrap_or_else(|| {
                self.remove_where(writer, news, slot, |_| true);
                slot
            }),
        };
        writer.owners[slot].seq.store(0, Ordering::Relaxed);
        slot
    }

    /// Takes claims out by a walk over everything, while other writers wait.
    fn remove_where(&self, writer: &mut Writer, news: &mut News, slot: usize, gone: impl Fn(&PresenceKey) -> bool) {
        let of_owner = |(key, claims): (&PresenceKey, &Claims)| {
            let claim = claims.as_slice().iter().find(|claim| usize::from(claim.owner) == slot)?;
            Some(Op::Release { key: *key, clock_us: claim.clock_us, clean: false })
        };
        let all = writer.owners[slot].claims;
        let mut releases: Vec<Op> = self.claims.pin().iter().filter_map(of_owner).take(all).filter(|op| gone(op.key())).collect();
        // The map's order must not show.
        releases.sort_unstable_by_key(|op| *op.key());
        for release in &releases {
            self.apply_op(writer, news, slot, release);
        }
    }

    /// A claim replaces the owner's older claim of the key; a release ends the claim of exactly its rank.
    fn apply_op(&self, writer: &mut Writer, news: &mut News, slot: usize, op: &Op) {
        self.clock.observe(op.clock_us());
        let owner = &mut writer.owners[slot];
        let counts = self.owners.load().get(slot).is_some_and(|entry| entry.validity.is_valid());
        let map = self.claims.pin();
        let key = *op.key();
        let mut claims = map.get(&key).map_or_else(Vec::new, |claims| claims.as_slice().to_vec());
        let held = claims.iter().position(|claim| usize::from(claim.owner) == slot);
        let rank = Rank { clock_us: op.clock_us(), node: owner.node };
        match (*op, held) {
            (Op::Claim { clock_us, home, kind, .. }, held) => {
                let claim = Claim { clock_us, owner: u16::try_from(slot).expect("at most OWNERS_MAX"), kind, home };
                match held {
                    Some(index) if claims[index].clock_us >= clock_us => return,
                    Some(index) => claims[index] = claim,
                    None => {
                        claims.push(claim);
                        owner.claims += 1;
                    }
                }
                if counts {
                    news.events.push(PresenceEvent::Claimed { key, rank, home, kind });
                }
            }
            (Op::Release { clock_us, clean, .. }, Some(index)) if claims[index].clock_us == clock_us => {
                claims.swap_remove(index);
                owner.claims -= 1;
                if counts {
                    news.events.push(PresenceEvent::Released { key, rank, clean });
                }
                if counts || owner.changes != owner.gathered {
                    news.lost.insert(key, clean && counts);
                }
            }
            (Op::Release { .. }, _) => return,
        }
        match Claims::from_vec(claims) {
            Some(claims) => map.insert(key, claims),
            None => map.remove(&key),
        };
    }
}
