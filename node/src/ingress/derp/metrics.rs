//! What is counted about DERP logins and connections.

use causeway_proto::derp::frame::PeerGoneReason;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::accept::Opening;

/// One label from a closed list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

/// Counters of the DERP door.
#[derive(Debug, Default)]
pub struct DerpMetrics {
    accepts: Counter,
    fast_starts: Counter,
    websockets: Counter,
    logins: Counter,
    refused: Family<Reason, Counter>,
    ended: Family<Reason, Counter>,
    pub(super) pings: Counter,
    pub(super) pongs: Counter,
    pub(super) pings_ignored: Counter,
    pub(super) not_here: Counter,
    pub(super) unknown_frames: Counter,
    pub(super) mesh_tries_refused: Counter,
    peer_gone_disconnected: Counter,
    peer_gone_not_here: Counter,
    pub(super) mesh_updates: MeshUpdateMetrics,
}

/// Changes of who is connected, as they are written to stock derpers that watch; the buckets are those of stock servers.
#[derive(Debug)]
pub(super) struct MeshUpdateMetrics {
    pub(super) batch_changes: Histogram,
    pub(super) batches: Histogram,
}

impl Default for MeshUpdateMetrics {
    fn default() -> Self {
        Self {
            batch_changes: Histogram::new([0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1_000.0]),
            batches: Histogram::new([0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0]),
        }
    }
}

impl DerpMetrics {
    /// Declares everything under `causeway_derp_`.
    pub fn register(&self, registry: &mut Registry) {
        let mut counter = |name: &str, help: &str, counter: &Counter| registry.register(name, help, counter.clone());
        counter("causeway_derp_accepts", "Upgraded connections", &self.accepts);
        counter("causeway_derp_fast_starts", "Upgraded connections without an HTTP response", &self.fast_starts);
        counter("causeway_derp_websocket_accepts", "Upgraded connections inside a WebSocket", &self.websockets);
        counter("causeway_derp_logins", "Logins answered", &self.logins);
        counter("causeway_derp_pings", "Pings received", &self.pings);
        counter("causeway_derp_pongs", "Pongs queued", &self.pongs);
        counter("causeway_derp_pings_ignored", "Pings above the rate or while a pong waited", &self.pings_ignored);
        counter("causeway_derp_not_here_notices", "Senders told that a peer is not here", &self.not_here);
        counter("causeway_derp_unknown_frames", "Frames of unknown type skipped", &self.unknown_frames);
        counter("causeway_derp_mesh_key_refusals", "Mesh keys not taken: wrong, or from elsewhere", &self.mesh_tries_refused);
        let help = "PeerGone frames written that say the peer left";
        counter("causeway_derp_peer_gone_disconnected_frames", help, &self.peer_gone_disconnected);
        let help = "PeerGone frames written that say the peer is not here";
        counter("causeway_derp_peer_gone_not_here_frames", help, &self.peer_gone_not_here);
        let help = "Changes in one write to a stock derper that watches";
        registry.register("causeway_derp_mesh_update_batch_changes", help, self.mesh_updates.batch_changes.clone());
        let help = "Such writes one after the other, until nothing was left to tell";
        registry.register("causeway_derp_mesh_update_batches", help, self.mesh_updates.batches.clone());
        registry.register("causeway_derp_logins_refused", "Connections closed before login", self.refused.clone());
        registry.register("causeway_derp_connections_ended", "Connections closed after login", self.ended.clone());
    }

    pub(super) fn accepted(&self, opening: Opening) {
        self.accepts.inc();
        match opening {
            Opening::Upgrade => {}
            Opening::FastStart => {
                self.fast_starts.inc();
            }
            Opening::WebSocket => {
                self.websockets.inc();
            }
        }
    }

    pub(super) fn logged_in(&self) {
        self.logins.inc();
    }

    pub(super) fn peer_gone_written(&self, reason: PeerGoneReason) {
        match reason {
            PeerGoneReason::Disconnected => self.peer_gone_disconnected.inc(),
            PeerGoneReason::NotHere => self.peer_gone_not_here.inc(),
            // A server writes no other.
            PeerGoneReason::MeshConnectionBroke | PeerGoneReason::Other(_) => return,
        };
    }

    /// `reason` is one of the fixed labels of the error types.
    pub(super) fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&Reason { reason }).inc();
    }

    /// `reason` is one of the fixed labels of the error types.
    pub(super) fn ended(&self, reason: &'static str) {
        self.ended.get_or_create(&Reason { reason }).inc();
    }

    /// How many connections were closed before login for `reason`.
    #[must_use]
    pub fn refused_for(&self, reason: &'static str) -> u64 {
        self.refused.get_or_create(&Reason { reason }).get()
    }

    /// How many connections ended after login for `reason`.
    #[must_use]
    pub fn ended_for(&self, reason: &'static str) -> u64 {
        self.ended.get_or_create(&Reason { reason }).get()
    }
}
