//! The clone alarm for keys held here: two home claims of one key, both proven, for 30 s (`architecture.md` section 3).
//!
//! Clients see it as a Health frame; routing does not change.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use causeway_control::presence::{CloneAlarm, CloneAlarmChange, PresenceView};
use causeway_proto::derp::frame::Frame;
use causeway_proto::id::NodeId;
use causeway_proto::key::NodePublic;
use causeway_proto::presence::PresenceKey;

use super::registry::Registry;

/// How often an overlap is looked at again, and the connection here asked for proof.
const RECHECK: Duration = Duration::from_secs(5);

/// Shown by the client to its user.
const PROBLEM: &str = "this machine's relay key is in use on another machine too: one of them is a copy of the other";

/// Watches the keys that are home both here and elsewhere.
pub(super) struct CloneWatch {
    registry: Arc<Registry>,
    view: Arc<PresenceView>,
    own: NodeId,
    alarm: CloneAlarm,
    overlapping: BTreeSet<PresenceKey>,
    recheck_at: Option<Instant>,
}

impl CloneWatch {
    pub(super) fn new(registry: Arc<Registry>, view: Arc<PresenceView>, own: NodeId) -> Self {
        Self { registry, view, own, alarm: CloneAlarm::default(), overlapping: BTreeSet::new(), recheck_at: None }
    }

    /// Something about the claims of `key` changed.
    pub(super) fn look_at(&mut self, key: PresenceKey, now: Instant) {
        let overlaps = self.registry.is_proven_home(&client(&key)) && self.is_home_elsewhere(&key);
        if overlaps {
            self.overlapping.insert(key);
            self.recheck_at.get_or_insert(now + RECHECK);
        } else if !self.overlapping.remove(&key) {
            return;
        }
        let change = self.alarm.observe(key, overlaps, now);
        self.report(change);
    }

    /// Looks again at every overlap, and raises what has lasted.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        self.recheck_at = None;
        for key in self.overlapping.clone() {
            // Proof of before the last look would let a half-open connection count.
            self.registry.challenge(&client(&key), now);
            self.look_at(key, now);
        }
        let changes = self.alarm.handle_timeout(now);
        self.report(changes);
    }

    /// When to call [`Self::handle_timeout`] next.
    pub(super) const fn poll_timeout(&self) -> Option<Instant> {
        self.recheck_at
    }

    fn is_home_elsewhere(&self, key: &PresenceKey) -> bool {
        let counts = |claim: &causeway_control::presence::Candidate| {
            claim.node != self.own && claim.home && claim.is_usable() && claim.validity.is_live()
        };
        self.view.claims(key).iter().any(counts)
    }

    fn report(&self, changes: impl IntoIterator<Item = CloneAlarmChange>) {
        for change in changes {
            let (key, problem) = match change {
                CloneAlarmChange::Raised(key) => (client(&key), PROBLEM),
                CloneAlarmChange::Cleared(key) => (client(&key), ""),
            };
            let raised = !problem.is_empty();
            tracing::warn!(client = %key, raised, "clone alarm");
            self.registry.metrics().clone_alarm(raised);
            self.registry.send_to_key(&key, &Frame::Health { problem: problem.to_owned() });
        }
    }
}

const fn client(key: &PresenceKey) -> NodePublic {
    NodePublic::from_bytes(key.0)
}
