//! What writers of the view share: the owners, their slots, and what one write learnt. One writer at a time.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use causeway_proto::id::NodeId;
use causeway_proto::presence::PresenceKey;

use super::event::PresenceEvent;
use super::input::IngestError;
use super::owner::Owner;
use crate::presence::limits::OWNERS_MAX;
use crate::presence::prefer::Validity;

/// Owners and former owners whose claims are still being taken out; with more of those, claims are taken out at once.
const SLOTS_MAX: usize = 2 * OWNERS_MAX;

#[derive(Debug, Default)]
pub(super) struct Writer {
    pub(super) owners: Vec<Owner>,
    pub(super) slots: BTreeMap<NodeId, usize>,
    /// Slots whose claims are all taken out. The oldest is used first, long after any reader saw a claim of its former owner.
    pub(super) free: VecDeque<usize>,
}

impl Writer {
    /// The owner's index, made if it is new.
    pub(super) fn slot(&mut self, node: NodeId) -> Result<usize, IngestError> {
        if let Some(slot) = self.slots.get(&node) {
            return Ok(*slot);
        }
        if self.slots.len() >= OWNERS_MAX {
            return Err(IngestError::TooManyOwners);
        }
        self.take_slot(Owner::new(node)).ok_or(IngestError::TooManyOwners)
    }

    /// Gives `owner` a slot; `None` if all are taken.
    fn take_slot(&mut self, owner: Owner) -> Option<usize> {
        let node = owner.node;
        let slot = match self.free.pop_front() {
            Some(slot) => {
                self.owners[slot] = owner;
                slot
            }
            None if self.owners.len() < SLOTS_MAX => {
                self.owners.push(owner);
                self.owners.len() - 1
            }
            None => return None,
        };
        self.slots.insert(node, slot);
        Some(slot)
    }

    /// Moves a node to a slot without claims; its claims stay behind with the old one. `None` if no slot is left.
    pub(super) fn retire(&mut self, slot: usize) -> Option<usize> {
        let old = &self.owners[slot];
        let successor = Owner { seq: Arc::default(), claims: 0, gathered: old.changes, hears: Arc::clone(&old.hears), ..*old };
        let taken = self.take_slot(successor)?;
        let old = &mut self.owners[slot];
        old.changes += u64::from(old.published_valid == Some(true));
        (old.retired, old.live, old.hears) = (true, false, Arc::default());
        Some(taken)
    }

    pub(super) fn validity(&self, own: NodeId, owner: &Owner) -> Validity {
        if owner.retired {
            return Validity::Lost;
        }
        if owner.node == own {
            return Validity::Own;
        }
        if owner.evicted {
            return Validity::Evicted;
        }
        if owner.live {
            return Validity::Live;
        }
        let vouches = |peer: &&Owner| peer.live && peer.hears.binary_search(&owner.node).is_ok();
        if let Some(peer) = self.owners.iter().filter(vouches).map(|peer| peer.node).min() {
            return Validity::Vouched(peer);
        }
        match (owner.was_live, owner.is_fenced()) {
            (_, true) => Validity::Fenced,
            (true, false) => Validity::Lost,
            (false, false) => Validity::Unfenced,
        }
    }
}

/// What one write learnt, until it is told to subscribers.
#[derive(Debug, Default)]
pub(super) struct News {
    pub(super) events: Vec<PresenceEvent>,
    /// Keys that lost a valid claim, in order, with whether the client said goodbye.
    pub(super) lost: BTreeMap<PresenceKey, bool>,
}
