//! Stock mesh peers that watch who is connected here (`derp.md` section 5.7), and at the sibling nodes of the region.

use std::collections::HashSet;
use std::sync::Arc;

use causeway_control::presence::{Candidate, PresenceView};
use causeway_proto::derp::frame::{Frame, PeerGoneReason, PresentFlags};
use causeway_proto::id::NodeId;
use causeway_proto::key::NodePublic;
use causeway_proto::presence::{ClaimKind, PresenceKey};
use parking_lot::Mutex;

use super::connection::ClientConnection;
use crate::config::Announce;

/// Clients of other nodes that watchers are told of; beyond it they are not announced, and counted.
pub const ELSEWHERE_MAX: usize = 131_072;

/// Frames that may wait for a watcher: a flood of everybody and half as much again in changes. A watcher that falls behind further is
/// closed, and floods itself afresh when it is back.
const WATCHER_BACKLOG_MAX: usize = 2 * ELSEWHERE_MAX;

/// Watchers a node serves.
pub const WATCHERS_MAX: usize = 64;

/// There are [`WATCHERS_MAX`] watchers already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{WATCHERS_MAX} connections watch already")]
pub struct TooManyWatchers;

/// Whose clients a watcher is told of beside those connected here.
#[derive(Debug)]
pub(super) struct Elsewhere<'a> {
    pub(super) view: &'a PresenceView,
    pub(super) announce: Announce,
}

impl Elsewhere<'_> {
    /// Whether another node that is announced holds the key. What stock derpers hold they announce to each other themselves.
    fn has(&self, key: &NodePublic) -> bool {
        self.view.claims(&(*key).into()).iter().any(|claim| self.counts(claim))
    }

    fn counts(&self, claim: &Candidate) -> bool {
        let own: NodeId = self.view.own();
        let near = self.announce == Announce::Fleet || claim.own_region;
        claim.kind == ClaimKind::Derp && claim.node != own && claim.validity.is_valid() && near
    }

    fn all(&self) -> HashSet<NodePublic> {
        let mut all = HashSet::new();
        self.view.for_each(|PresenceKey(key), claims| {
            if all.len() < ELSEWHERE_MAX && claims.iter().any(|claim| self.counts(claim)) {
                all.insert(NodePublic::from_bytes(key));
            }
        });
        all
    }
}

#[derive(Debug, Default)]
struct State {
    watching: Vec<Arc<ClientConnection>>,
    /// Keys at other nodes that the watchers know of; kept while somebody watches.
    elsewhere: HashSet<NodePublic>,
}

/// Who watches. Changes here reach the watchers in the order in which they took effect, because whoever changes the registry holds
/// the lock of the key's shard while calling; changes elsewhere are looked up in the view under the lock of this.
#[derive(Debug, Default)]
pub(super) struct Watchers {
    state: Mutex<State>,
}

impl Watchers {
    /// Adds a watcher and floods it with everybody present; again if it watches already.
    pub(super) fn watch(
        &self,
        watcher: &Arc<ClientConnection>,
        elsewhere: &Elsewhere<'_>,
        everybody_here: impl FnOnce(&mut dyn FnMut(&ClientConnection)),
        is_here: impl Fn(&NodePublic) -> bool,
    ) -> Result<(), TooManyWatchers> {
        // The lock is held during the flood, so that no change slips in before what it changes.
        let mut state = self.state.lock();
        if !state.watching.contains(watcher) {
            if state.watching.len() >= WATCHERS_MAX {
                return Err(TooManyWatchers);
            }
            if state.watching.is_empty() {
                state.elsewhere = elsewhere.all();
            }
            watcher.outbox.raise_control_limit(WATCHER_BACKLOG_MAX);
            state.watching.push(Arc::clone(watcher));
        }
        everybody_here(&mut |connection| tell(watcher, present(connection)));
        state.elsewhere.iter().filter(|key| !is_here(key)).for_each(|key| tell(watcher, present_elsewhere(*key)));
        Ok(())
    }

    pub(super) fn forget(&self, watcher: &ClientConnection) {
        let mut state = self.state.lock();
        state.watching.retain(|watching| **watching != *watcher);
        if state.watching.is_empty() {
            state.elsewhere = HashSet::new();
        }
    }

    pub(super) fn connected(&self, connection: &ClientConnection) {
        self.state.lock().tell_all(|| present(connection));
    }

    /// The last connection of `key` here is gone.
    pub(super) fn gone(&self, key: NodePublic) {
        let state = self.state.lock();
        if !state.elsewhere.contains(&key) {
            state.tell_all(|| gone(key));
        }
    }

    /// Claims of other nodes on `key` changed. Returns whether it could not be announced.
    pub(super) fn changed_elsewhere(
        &self,
        key: NodePublic,
        elsewhere: &Elsewhere<'_>,
        is_here: impl Fn(&NodePublic) -> bool,
    ) -> bool {
        let mut state = self.state.lock();
        !state.watching.is_empty() && state.set(key, elsewhere.has(&key), is_here(&key))
    }

    /// Claims of many keys may have changed: looks at them all. Returns how many could not be announced.
    pub(super) fn all_changed_elsewhere(&self, elsewhere: &Elsewhere<'_>, is_here: impl Fn(&NodePublic) -> bool) -> usize {
        let mut state = self.state.lock();
        if state.watching.is_empty() {
            return 0;
        }
        let all = elsewhere.all();
        let left: Vec<NodePublic> = state.elsewhere.difference(&all).copied().collect();
        let came: Vec<NodePublic> = all.difference(&state.elsewhere).copied().collect();
        let mut not_announced = 0;
        for (keys, present) in [(left, false), (came, true)] {
            not_announced += keys.into_iter().filter(|key| state.set(*key, present, is_here(key))).count();
        }
        not_announced
    }

    pub(super) fn len(&self) -> usize {
        self.state.lock().watching.len()
    }
}

impl State {
    /// Notes whether another node has the key, and tells the watchers if that is news to them. True if there is no room for it.
    fn set(&mut self, key: NodePublic, present: bool, is_here: bool) -> bool {
        if present {
            let full = self.elsewhere.len() >= ELSEWHERE_MAX && !self.elsewhere.contains(&key);
            if !full && self.elsewhere.insert(key) && !is_here {
                self.tell_all(|| present_elsewhere(key));
            }
            return full;
        }
        if self.elsewhere.remove(&key) && !is_here {
            self.tell_all(|| gone(key));
        }
        false
    }

    fn tell_all(&self, frame: impl Fn() -> Frame) {
        for watcher in &self.watching {
            tell(watcher, frame());
        }
    }
}

fn tell(watcher: &ClientConnection, frame: Frame) {
    // A full lane closes the watcher.
    let _refused = watcher.send(frame);
}

const fn present(connection: &ClientConnection) -> Frame {
    Frame::PeerPresent {
        peer: connection.facts.key,
        addr: Some(connection.facts.remote),
        flags: connection.facts.present_flags(),
    }
}

/// Only the node it is connected to knows its address.
const fn present_elsewhere(key: NodePublic) -> Frame {
    Frame::PeerPresent { peer: key, addr: None, flags: PresentFlags::REGULAR }
}

const fn gone(key: NodePublic) -> Frame {
    Frame::PeerGone { peer: key, reason: PeerGoneReason::Disconnected }
}
