//! Tells key by key what it means that an owner's claims stopped or began to count, and takes out the claims of former processes.
//!
//! An owner's keys are found by a walk over all keys, which is long: writers go on meanwhile, and wait for a slice at most.

use causeway_proto::presence::{PresenceKey, Rank};

use super::PresenceView;
use super::claims::{Claim, Claims};
use super::entry::{OwnerEntry, any_valid, is_valid};
use super::event::PresenceEvent;
use super::owner::Owner;
use super::writer::{News, Writer};

/// Keys told under the write lock at a time: well below a millisecond in a release build.
pub(super) const SLICE_KEYS_MAX: usize = 256;

/// What a walk has to do about the claims of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Task {
    /// Tell whether keys with claims of it are present.
    tell: bool,
    /// Take its claims out.
    take_out: bool,
    /// The owner's count of changes.
    changes: u64,
}

impl Task {
    const NONE: Self = Self { tell: false, take_out: false, changes: 0 };

    const fn is_any(self) -> bool {
        self.tell || self.take_out
    }
}

impl PresenceView {
    /// Returns once there is something for [`Self::tell_changed_owners`] to do.
    pub async fn changed_owners(&self) {
        self.untold.notified().await;
    }

    /// Tells subscribers which keys lost their last valid claim, or have one again, because owners were lost or came back.
    ///
    /// Takes long where there are many claims, so it is for a thread that may be held up. What changes meanwhile is told as well, so
    /// an event may be repeated.
    pub fn tell_changed_owners(&self) {
        let _alone = self.telling.lock();
        let tasks = tasks(&self.writer.lock());
        if tasks.iter().all(|task| !task.is_any()) {
            return;
        }
        let concerned = |claims: &Claims| claims.as_slice().iter().any(|claim| task(&tasks, claim).is_any());
        let all = self.claims.pin();
        let mut keys: Vec<PresenceKey> = all.iter().filter(|(_, claims)| concerned(claims)).map(|(key, _)| *key).collect();
        drop(all);
        // The map's order must not show.
        keys.sort_unstable();
        for (owner, task) in self.writer.lock().owners.iter_mut().zip(&tasks) {
            // What was released until now told itself.
            owner.gathered = task.changes.max(owner.gathered);
        }
        for slice in keys.chunks(SLICE_KEYS_MAX) {
            self.write_and_yield(|writer, news| {
                let owners = self.owners.load();
                slice.iter().for_each(|key| self.tell_key(writer, news, &owners, &tasks, *key));
            });
        }
        let mut writer = self.writer.lock();
        for (slot, _) in tasks.iter().enumerate().filter(|(_, task)| task.take_out) {
            if writer.owners[slot].claims == 0 {
                writer.free.push_back(slot);
            }
        }
    }

    fn tell_key(&self, writer: &mut Writer, news: &mut News, owners: &[OwnerEntry], tasks: &[Task], key: PresenceKey) {
        let map = self.claims.pin();
        let Some(held) = map.get(&key) else {
            news.lost.insert(key, false);
            return;
        };
        let claims = held.as_slice();
        if !any_valid(owners, claims) {
            if claims.iter().any(|claim| task(tasks, claim).tell) {
                news.lost.insert(key, false);
            }
        } else if claims.iter().filter(|claim| is_valid(owners, claim)).all(|claim| task(tasks, claim).tell) {
            let mut back: Vec<&Claim> = claims.iter().filter(|claim| is_valid(owners, claim)).collect();
            back.sort_unstable_by_key(|claim| claim.owner);
            news.events.extend(back.into_iter().map(|claim| PresenceEvent::Claimed {
                key,
                rank: Rank { clock_us: claim.clock_us, node: owners[usize::from(claim.owner)].node },
                home: claim.home,
                kind: claim.kind,
            }));
        }
        let (gone, stay): (Vec<Claim>, Vec<Claim>) = claims.iter().partition(|claim| task(tasks, claim).take_out);
        if gone.is_empty() {
            return;
        }
        gone.iter().for_each(|claim| writer.owners[usize::from(claim.owner)].claims -= 1);
        match Claims::from_vec(stay) {
            Some(stay) => map.insert(key, stay),
            None => map.remove(&key),
        };
    }
}

/// What is to be told or taken out, by slot.
fn tasks(writer: &Writer) -> Vec<Task> {
    let take = |owner: &Owner| {
        let tell = owner.changes != owner.gathered;
        let any = owner.claims > 0;
        Task { tell: tell && any, take_out: owner.retired && any, changes: owner.changes }
    };
    writer.owners.iter().map(take).collect()
}

/// Slots that are newer than the tasks have none.
fn task(tasks: &[Task], claim: &Claim) -> Task {
    tasks.get(usize::from(claim.owner)).copied().unwrap_or(Task::NONE)
}
