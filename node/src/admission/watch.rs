//! Keeps admission true while clients are connected: reads changed lists again, and decides again on whoever is connected.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tokio_util::sync::CancellationToken;

use super::policy::Policy;
use super::{Applicant, Decision};
use crate::clients::{ClientConnection, CloseReason, Registry};

/// How often the list files are looked at.
const LOOK_PERIOD: Duration = Duration::from_secs(1);

/// Connected clients decided on at the same time: logins must find their turn between them.
const RECHECKS_MAX: usize = 32;

/// Reads list files again when they change, until cancelled. A bad file is reported, and its last good version stands.
pub async fn lists(policy: Arc<Policy>, cancel: CancellationToken) {
    let mut ticks = interval(LOOK_PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            _ = ticks.tick() => {}
        }
        for list in policy.lists() {
            if !list.has_changed() {
                continue;
            }
            let reading = Arc::clone(&list);
            // It may be long.
            let Ok(read) = tokio::task::spawn_blocking(move || reading.reload()).await else { return };
            policy.metrics().reloaded(read.is_ok());
            match read {
                Ok(()) => {
                    tracing::info!(file = %list.path().display(), keys = list.len(), "took up the changed list");
                    policy.changed();
                }
                Err(error) => tracing::warn!(%error, "the changed list cannot be used; its last good version stands"),
            }
        }
    }
}

/// Decides again on every connected client: now and then, and at once when something changes, until cancelled.
pub async fn clients(policy: Arc<Policy>, registry: Arc<Registry>, cancel: CancellationToken) {
    let mut changes = policy.changes();
    loop {
        let due = Instant::now() + policy.recheck();
        tokio::select! {
            () = cancel.cancelled() => return,
            _ = changes.changed() => {}
            () = sleep_until(due) => {}
        }
        loop {
            changes.mark_unchanged();
            tokio::select! {
                () = cancel.cancelled() => return,
                () = recheck_all(&policy, &registry) => break,
                // What was decided so far may be out of date.
                _ = changes.changed() => {}
            }
        }
    }
}

async fn recheck_all(policy: &Policy, registry: &Registry) {
    if policy.is_open() {
        return;
    }
    let connections = futures::stream::iter(registry.connections());
    connections.for_each_concurrent(RECHECKS_MAX, |connection| async move { recheck(policy, &connection).await }).await;
}

async fn recheck(policy: &Policy, connection: &ClientConnection) {
    let applicant = Applicant { key: connection.facts().key, source: connection.facts().remote.ip().to_canonical() };
    policy.metrics().rechecked.inc();
    match policy.judge(applicant).await {
        // Whoever is connected stays while nobody can be asked.
        Decision::Deny(denial) if !denial.is_outage() => {
            policy.metrics().evicted.inc();
            policy.say(&applicant, denial, "a connected client is not admitted any more");
            connection.close(CloseReason::NotAdmitted);
        }
        Decision::Allow | Decision::Deny(_) => {}
    }
}
