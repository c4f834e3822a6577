//! Stock mesh peers that watch who is connected here (`derp.md` section 5.7).

use std::sync::Arc;

use causeway_proto::derp::frame::{Frame, PeerGoneReason};
use causeway_proto::key::NodePublic;
use parking_lot::Mutex;

use super::connection::ClientConnection;

/// Frames that may wait for a watcher: a flood of a full node and as much again in changes. A watcher that falls behind further is
/// closed, and floods itself afresh when it is back.
const WATCHER_BACKLOG_MAX: usize = 131_072;

/// Watchers a node serves.
pub const WATCHERS_MAX: usize = 64;

/// There are [`WATCHERS_MAX`] watchers already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{WATCHERS_MAX} connections watch already")]
pub struct TooManyWatchers;

/// Who watches. Changes reach the watchers in the order in which they took effect, because whoever changes the registry holds
/// the lock of the key's shard while calling here.
#[derive(Debug, Default)]
pub(super) struct Watchers {
    watching: Mutex<Vec<Arc<ClientConnection>>>,
}

impl Watchers {
    /// Adds a watcher and floods it with everybody present; again if it watches already.
    pub(super) fn watch(
        &self,
        watcher: &Arc<ClientConnection>,
        everybody: impl FnOnce(&mut dyn FnMut(&ClientConnection)),
    ) -> Result<(), TooManyWatchers> {
        // The lock is held during the flood, so that no change slips in before what it changes.
        let mut watching = self.watching.lock();
        if !watching.contains(watcher) {
            if watching.len() >= WATCHERS_MAX {
                return Err(TooManyWatchers);
            }
            watcher.outbox.raise_control_limit(WATCHER_BACKLOG_MAX);
            watching.push(Arc::clone(watcher));
        }
        everybody(&mut |connection| tell(watcher, present(connection)));
        Ok(())
    }

    pub(super) fn forget(&self, watcher: &ClientConnection) {
        self.watching.lock().retain(|watching| **watching != *watcher);
    }

    pub(super) fn connected(&self, connection: &ClientConnection) {
        self.tell_all(|| present(connection));
    }

    pub(super) fn gone(&self, key: NodePublic) {
        self.tell_all(|| Frame::PeerGone { peer: key, reason: PeerGoneReason::Disconnected });
    }

    pub(super) fn len(&self) -> usize {
        self.watching.lock().len()
    }

    fn tell_all(&self, frame: impl Fn() -> Frame) {
        for watcher in self.watching.lock().iter() {
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
