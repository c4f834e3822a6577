//! Calls of peers that were refused: the closed list of reasons, counted at one place.

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

/// Why a call of a peer was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(crate) enum CallRefused {
    /// The connection proved no node identity.
    NoIdentity,
    /// The peer spoke for another node.
    NotItself,
    /// A newer process of the peer's node has been seen.
    Superseded,
    /// A field of the wrong shape.
    Malformed,
    /// The peer belongs to another fleet.
    OtherFleet,
    /// The peer's clock, or this node's, is off.
    ClockOff,
    /// The peer is not admitted.
    NotAdmitted,
    /// The peer asked for something only the leader does.
    NotAllowed,
    /// Claims more than 1 h ahead.
    TooFarAhead,
    /// More operations than a node may propose.
    TooFast,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Refused {
    reason: CallRefused,
}

/// Refused Raft and fleet calls, by reason.
#[derive(Debug, Clone, Default)]
pub(crate) struct CallsRefused {
    by_reason: Family<Refused, Counter>,
}

impl CallsRefused {
    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register("causeway_fleet_calls_refused", "Raft and fleet calls of peers refused", self.by_reason.clone());
    }

    /// Counts a refusal and passes its status on.
    pub(crate) fn count(&self, reason: CallRefused, status: tonic::Status) -> tonic::Status {
        self.by_reason.get_or_create(&Refused { reason }).inc();
        status
    }

    #[cfg(test)]
    pub(crate) fn counted(&self, reason: CallRefused) -> u64 {
        self.by_reason.get_or_create(&Refused { reason }).get()
    }
}
