//! What the watch counts.

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

/// Why a stream or a message of it was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RefusedReason {
    /// The caller proved no node identity.
    NoIdentity,
    /// The follower's id is not that of its certificate.
    WrongFollower,
    /// The hello came from another node than the one dialled.
    WrongNode,
    /// A field of the wrong shape, or messages out of order.
    Malformed,
    /// Operations more than 1 h ahead.
    TooFarAhead,
    /// An epoch below the highest known.
    LowerEpoch,
    /// The same epoch by another process.
    OtherBootId,
    /// Operations were missing.
    Gap,
    /// More claims, or more nodes, than may be.
    TooMany,
    /// The node is evicted.
    Evicted,
}

impl EncodeLabelValue for RefusedReason {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> std::fmt::Result {
        let name = match self {
            Self::NoIdentity => "no_identity",
            Self::WrongFollower => "wrong_follower",
            Self::WrongNode => "wrong_node",
            Self::Malformed => "malformed",
            Self::TooFarAhead => "too_far_ahead",
            Self::LowerEpoch => "lower_epoch",
            Self::OtherBootId => "other_boot_id",
            Self::Gap => "gap",
            Self::TooMany => "too_many",
            Self::Evicted => "evicted",
        };
        EncodeLabelValue::encode(&name, encoder)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Refused {
    reason: RefusedReason,
}

/// Counters and gauges of the watch, shared by service and followers.
#[derive(Debug, Clone, Default)]
pub struct WatchMetrics {
    pub(super) streams_served: Gauge,
    pub(super) streams_live: Gauge,
    pub(super) snapshots_sent: Counter,
    pub(super) snapshots_received: Counter,
    pub(super) operations_sent: Counter,
    pub(super) operations_received: Counter,
    pub(super) dials: Counter,
    pub(super) dials_failed: Counter,
    pub(super) silent: Counter,
    pub(super) throttled: Counter,
    pub(super) clock_correction_us: Gauge,
    refused: Family<Refused, Counter>,
}

impl WatchMetrics {
    /// Registers everything below `causeway_watch_`.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("causeway_watch");
        registry.register("streams_served", "Watch streams to peers that are open", self.streams_served.clone());
        registry.register("streams_live", "Peers whose watch stream is live here", self.streams_live.clone());
        registry.register("snapshots_sent", "Snapshots of the owner log sent", self.snapshots_sent.clone());
        registry.register("snapshots_received", "Snapshots of owner logs taken in", self.snapshots_received.clone());
        registry.register("operations_sent", "Operations sent in deltas", self.operations_sent.clone());
        registry.register("operations_received", "Operations taken in from deltas", self.operations_received.clone());
        registry.register("dials", "Attempts to follow a peer", self.dials.clone());
        registry.register("dials_failed", "Attempts that reached no hello", self.dials_failed.clone());
        registry.register("silent", "Streams given up because they fell silent", self.silent.clone());
        registry.register("throttled", "Deltas read late because their owner sends too many operations", self.throttled.clone());
        registry.register("refused", "Streams and messages refused", self.refused.clone());
        registry.register_with_unit(
            "clock_correction",
            "Added to the local clock because it is off from the median of the peers",
            Unit::Other("microseconds".to_owned()),
            self.clock_correction_us.clone(),
        );
    }

    /// Counts a refusal.
    pub(super) fn refuse(&self, reason: RefusedReason) {
        self.refused.get_or_create(&Refused { reason }).inc();
    }

    /// How often something was refused for this reason.
    #[must_use]
    pub fn refused(&self, reason: RefusedReason) -> u64 {
        self.refused.get_or_create(&Refused { reason }).get()
    }
}
