//! The contract that everything below and above the router shares: somebody who takes a packet, or says why not.
//!
//! Implementors: a local client's queue, a mesh link, and [`chain::ForwarderChain`].

pub mod accounting;
pub mod chain;
pub mod drop_reason;
pub mod links;

use causeway_proto::packet::Packet;

pub use accounting::{Accounting, Books};
pub use drop_reason::DropReason;

/// Takes packets towards somewhere. Only enqueues: never waits, never blocks.
pub trait PacketForwarder: Send + Sync {
    /// Enqueues the packet or refuses it at once. A packet that was `Queued` is never offered to anybody else.
    fn forward(&self, packet: Packet) -> Verdict;
}

impl<F: PacketForwarder + ?Sized> PacketForwarder for &F {
    fn forward(&self, packet: Packet) -> Verdict {
        (**self).forward(packet)
    }
}

/// What became of an offered packet.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub enum Verdict {
    /// Enqueued: from here on it is delivered, or dropped and counted, by whoever took it.
    Queued,
    /// Not reachable this way; the packet comes back for the next alternative.
    NotHere(Packet),
    /// The way exists but is down; the packet comes back for the next alternative.
    LinkDown(Packet),
    /// Gone, already counted under this reason.
    Dropped(DropReason),
}
