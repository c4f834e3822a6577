//! Follows presence for the clients connected here: challenges their connections when another node claims their key, and tells them
//! when a peer they talked to is gone or their key is in use twice. Stock derpers that watch are told of the clients of sibling nodes.

use std::sync::Arc;
use std::time::Instant;

use causeway_control::presence::{EventBatch, GoneTimers, PresenceEvent, PresenceView};
use causeway_proto::id::NodeId;
use causeway_proto::key::NodePublic;
use causeway_proto::presence::PresenceKey;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;

use super::clones::CloneWatch;
use super::registry::Registry;

/// Follows `view`, from this call on, until cancelled.
pub fn follow(
    registry: Arc<Registry>,
    view: Arc<PresenceView>,
    own: NodeId,
    cancel: CancellationToken,
) -> impl Future<Output = ()> + Send + 'static {
    let mut events = view.subscribe();
    let clones = CloneWatch::new(Arc::clone(&registry), Arc::clone(&view), own);
    let mut follower = Follower { registry, view, own, timers: GoneTimers::default(), clones };
    async move {
        loop {
            let due = follower.timers.poll_timeout().map(|(due, _)| due);
            tokio::select! {
                () = cancel.cancelled() => return,
                // Cancel safe: a batch that was not returned stays in the channel.
                received = events.recv() => match received {
                    Ok(batch) => follower.apply(&batch, now()),
                    Err(RecvError::Lagged(_)) => follower.catch_up(now()),
                    Err(RecvError::Closed) => return,
                },
                () = sleep_until(due) => follower.tell_gone(now()),
                () = sleep_until(follower.clones.poll_timeout()) => follower.clones.handle_timeout(now()),
            }
        }
    }
}

struct Follower {
    registry: Arc<Registry>,
    view: Arc<PresenceView>,
    own: NodeId,
    timers: GoneTimers,
    clones: CloneWatch,
}

impl Follower {
    fn apply(&mut self, batch: &EventBatch, now: Instant) {
        let mut nodes_changed = false;
        for event in batch.iter() {
            self.tell_watchers(event);
            match event {
                PresenceEvent::Claimed { key, rank, .. } => {
                    self.timers.handle_claimed(key);
                    if rank.node != self.own {
                        self.registry.challenge(&client(key), now);
                    }
                    self.clones.look_at(*key, now);
                }
                PresenceEvent::Released { key, .. } => self.clones.look_at(*key, now),
                PresenceEvent::LastClaimGone { key, clean } => self.gone(key, *clean, now),
                // The clone watch looks again by itself, and nothing else asks anything of clients.
                PresenceEvent::OwnerLost { .. } | PresenceEvent::OwnerBack { .. } | PresenceEvent::RegionLearnt { .. } => {
                    nodes_changed = true;
                }
                _ => {}
            }
        }
        if nodes_changed {
            self.registry.all_changed_elsewhere();
        }
    }

    fn tell_watchers(&self, event: &PresenceEvent) {
        if let PresenceEvent::Claimed { key, rank, .. } | PresenceEvent::Released { key, rank, .. } = event
            && rank.node != self.own
        {
            self.registry.changed_elsewhere(&client(key));
        }
    }

    fn gone(&mut self, key: &PresenceKey, clean: bool, now: Instant) {
        if self.timers.handle_gone(*key, clean, rand::random(), now) {
            self.registry.peer_gone().peer_gone(client(key));
        }
    }

    /// Events were missed: looks afresh at every key that matters here.
    fn catch_up(&mut self, now: Instant) {
        for source in self.registry.peer_gone().sources() {
            if !self.view.has_valid_claim(&source.into()) {
                self.gone(&source.into(), false, now);
            }
        }
        self.registry.all_changed_elsewhere();
        for key in self.registry.keys() {
            if self.view.prefer(&key.into(), &|_| false).is_some() {
                self.registry.challenge(&key, now);
                self.clones.look_at(key.into(), now);
            }
        }
    }

    fn tell_gone(&mut self, now: Instant) {
        for key in self.timers.handle_timeout(|key| self.view.has_valid_claim(key), now) {
            self.registry.peer_gone().peer_gone(client(&key));
        }
    }
}

const fn client(key: &PresenceKey) -> NodePublic {
    NodePublic::from_bytes(key.0)
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

#[cfg(test)]
mod tests;
