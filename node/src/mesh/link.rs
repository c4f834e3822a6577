//! The link to one node: its parallel connections as one [`PacketForwarder`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use causeway_proto::id::NodeId;
use causeway_proto::link::frame::LinkFrame;
use causeway_proto::packet::Packet;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::LinkStatus;
use crate::forward::chain::ForwarderChain;
use crate::forward::links::flow_hash;
use crate::forward::{PacketForwarder, Verdict};
use crate::pump::lanes::Outbox;

/// One connection of a link that has said hello.
#[derive(Debug)]
pub(super) struct Stripe {
    pub(super) outbox: Outbox<LinkFrame>,
    /// Nothing was heard for too long.
    pub(super) silent: AtomicBool,
    /// Last round trip in microseconds; 0: none yet.
    pub(super) round_trip_us: AtomicU64,
}

impl Stripe {
    fn is_up(&self) -> bool {
        !self.silent.load(Ordering::Relaxed) && !self.outbox.is_stalled() && !self.outbox.is_closed()
    }
}

/// The place of one connection of a link; empty while it is not up. Written by the connection's own task.
#[derive(Debug, Default)]
pub(super) struct StripeSlot(pub(super) ArcSwapOption<Stripe>);

impl PacketForwarder for StripeSlot {
    fn forward(&self, packet: Packet) -> Verdict {
        let stripe = self.0.load();
        let Some(stripe) = stripe.as_ref().filter(|stripe| stripe.is_up()) else { return Verdict::LinkDown(packet) };
        match stripe.outbox.forward(packet) {
            // Closed in between.
            Verdict::NotHere(packet) => Verdict::LinkDown(packet),
            verdict => verdict,
        }
    }
}

/// The way from this node to another.
#[derive(Debug)]
pub struct MeshLink {
    node: NodeId,
    pub(super) stripes: Vec<StripeSlot>,
    /// The node may be back: try at once.
    pub(super) retry: Notify,
    pub(super) last_error: Mutex<String>,
}

impl MeshLink {
    pub(super) fn new(node: NodeId, stripes: u8) -> Self {
        Self {
            node,
            stripes: (0..stripes).map(|_| StripeSlot::default()).collect(),
            retry: Notify::new(),
            last_error: Mutex::default(),
        }
    }

    /// Whether packets would get away now.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.stripes.iter().any(|slot| slot.0.load().as_ref().is_some_and(|stripe| stripe.is_up()))
    }

    /// Queues a control frame on any connection; false if there is none.
    pub(super) fn send(&self, frame: LinkFrame) -> bool {
        self.stripes
            .iter()
            .filter_map(|slot| slot.0.load_full())
            .find(|stripe| stripe.is_up())
            .is_some_and(|stripe| stripe.outbox.push_control(frame).is_ok())
    }

    pub(super) fn status(&self) -> LinkStatus {
        let stripes: Vec<Arc<Stripe>> = self.stripes.iter().filter_map(|slot| slot.0.load_full()).collect();
        let round_trip_us = stripes.iter().map(|stripe| stripe.round_trip_us.load(Ordering::Relaxed)).find(|us| *us > 0);
        LinkStatus {
            node: self.node,
            up: self.is_up(),
            stripes_up: stripes.iter().filter(|stripe| stripe.is_up()).count(),
            stripes: self.stripes.len(),
            round_trip: round_trip_us.map(Duration::from_micros),
            last_error: self.last_error.lock().clone(),
        }
    }
}

impl PacketForwarder for MeshLink {
    /// Queues the packet on the connection of its flow, or the next one that is up.
    fn forward(&self, packet: Packet) -> Verdict {
        let count = self.stripes.len();
        let first = flow_hash(&packet.src, &packet.dst) as usize % count;
        ForwarderChain::new((first..first + count).map(|place| &self.stripes[place % count])).forward(packet)
    }
}
