//! The clone alarm for keys held here: two home claims of one key, both proven, for 30 s (`architecture.md` section 3).
//!
//! Clients see it as a Health frame; routing does not change.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::time::{Duration, Instant};

use causeway_control::presence::{CloneAlarm, CloneAlarmChange, PresenceView};
use causeway_proto::derp::frame::Frame;
use causeway_proto::id::NodeId;
use causeway_proto::key::NodePublic;
use causeway_proto::presence::PresenceKey;

use super::registry::Registry;

/// How often an overlap is looked at again, and how long the connection here has to prove that it lives.
const RECHECK: Duration = Duration::from_secs(5);

/// Shown by the client to its user.
const PROBLEM: &str = "this machine's relay key is in use on another machine too: one of them is a copy of the other";

/// Watches the keys that are home both here and elsewhere.
pub(super) struct CloneWatch {
    registry: Arc<Registry>,
    view: Arc<PresenceView>,
    own: NodeId,
    alarm: CloneAlarm,
    /// Keys that are home twice, and when their connections here were last asked for proof. A client may be silent for hours: only
    /// its answer tells a copy from a connection that is half open.
    asked: BTreeMap<PresenceKey, Instant>,
    recheck_at: Option<Instant>,
}

impl CloneWatch {
    pub(super) fn new(registry: Arc<Registry>, view: Arc<PresenceView>, own: NodeId) -> Self {
        Self { registry, view, own, alarm: CloneAlarm::default(), asked: BTreeMap::new(), recheck_at: None }
    }

    /// Something about the claims of `key` changed.
    pub(super) fn look_at(&mut self, key: PresenceKey, now: Instant) {
        if !(self.registry.is_home(&client(&key)) && self.is_home_elsewhere(&key)) {
            if self.asked.remove(&key).is_some() {
                self.observe(key, false, now);
            }
            return;
        }
        let Entry::Vacant(asked) = self.asked.entry(key) else { return };
        asked.insert(now);
        self.recheck_at.get_or_insert(now + RECHECK);
        self.registry.probe_home(&client(&key));
        self.observe(key, true, now);
    }

    /// Looks again at every overlap, and raises what has lasted.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        self.recheck_at = None;
        let keys: Vec<PresenceKey> = self.asked.keys().copied().collect();
        for key in keys {
            // A node that is lost or back makes no event of each of its claims.
            self.look_at(key, now);
            let Some(asked_at) = self.asked.get_mut(&key) else { continue };
            self.recheck_at = Some(now + RECHECK);
            // Who was asked between two looks has until the one after the next.
            if now >= *asked_at + RECHECK {
                let asked_at = std::mem::replace(asked_at, now);
                self.observe(key, self.registry.is_home_heard_since(&client(&key), asked_at), now);
                self.registry.probe_home(&client(&key));
            }
        }
        let changes = self.alarm.handle_timeout(now);
        self.report(changes);
    }

    fn observe(&mut self, key: PresenceKey, overlaps: bool, now: Instant) {
        let change = self.alarm.observe(key, overlaps, now);
        self.report(change);
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
