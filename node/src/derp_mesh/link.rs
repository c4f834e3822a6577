//! The way to one stock derper: its queue, as one [`PacketForwarder`].

use std::sync::atomic::{AtomicBool, Ordering};

use causeway_proto::derp::frame::Frame;
use causeway_proto::packet::Packet;

use crate::forward::accounting::DeliveredTo;
use crate::forward::{PacketForwarder, Verdict};
use crate::pump::lanes::{LaneLimits, Outbox, PumpShared};

/// One link that is up, from its login to its end.
#[derive(Debug)]
pub struct DerperLink {
    outbox: Outbox<Frame>,
    over: AtomicBool,
}

impl DerperLink {
    /// A link with empty lanes.
    #[must_use]
    pub fn new(pump: PumpShared) -> Self {
        Self { outbox: Outbox::new(LaneLimits::DERPER, DeliveredTo::StockMesh, pump), over: AtomicBool::new(false) }
    }

    /// Its queues.
    #[must_use]
    pub const fn outbox(&self) -> &Outbox<Frame> {
        &self.outbox
    }

    /// Whether packets would get away now.
    #[must_use]
    pub fn is_up(&self) -> bool {
        !self.over.load(Ordering::Relaxed)
    }

    /// Ends it for good: what waits is dropped and counted.
    pub fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
        self.outbox.close();
    }
}

impl PacketForwarder for DerperLink {
    fn forward(&self, packet: Packet) -> Verdict {
        match self.outbox.forward(packet) {
            // Closed in between.
            Verdict::NotHere(packet) => Verdict::LinkDown(packet),
            verdict => verdict,
        }
    }
}
