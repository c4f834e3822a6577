//! Why packets are dropped: a closed list, counted at one place.

/// Why a packet accepted by this node was not delivered. Each is a value of the metric label `reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DropReason {
    /// Nobody in the fleet validly claims the destination.
    UnknownDest,
    /// A stock mesh peer forwarded a packet for a key that is not here.
    UnknownDestOnForward,
    /// Its connection closed while the packet waited.
    GoneDisconnected,
    /// It was the oldest in a full lane.
    QueueHead,
    /// It came into a full lane that could not make room.
    QueueTail,
    /// Memory of all queues together is at its ceiling.
    QueueMemory,
    /// Writing it failed.
    WriteError,
    /// No link to its target, and no transit node either.
    LinkDown,
    /// Its path holds this node already: a loop.
    Loop,
    /// Its path is full.
    PathFull,
    /// The target does not hold the destination and may not send it on again.
    Stale,
    /// The header of a packet from a link contradicts itself or its sender.
    BadHeader,
}

impl DropReason {
    /// Every reason, in the order of their metric labels.
    pub const ALL: [Self; 12] = [
        Self::UnknownDest,
        Self::UnknownDestOnForward,
        Self::GoneDisconnected,
        Self::QueueHead,
        Self::QueueTail,
        Self::QueueMemory,
        Self::WriteError,
        Self::LinkDown,
        Self::Loop,
        Self::PathFull,
        Self::Stale,
        Self::BadHeader,
    ];

    /// The metric label.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::UnknownDest => "unknown_dest",
            Self::UnknownDestOnForward => "unknown_dest_on_fwd",
            Self::GoneDisconnected => "gone_disconnected",
            Self::QueueHead => "queue_head",
            Self::QueueTail => "queue_tail",
            Self::QueueMemory => "queue_memory",
            Self::WriteError => "write_error",
            Self::LinkDown => "link_down",
            Self::Loop => "loop",
            Self::PathFull => "path_full",
            Self::Stale => "stale",
            Self::BadHeader => "bad_header",
        }
    }
}
