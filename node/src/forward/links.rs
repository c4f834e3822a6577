//! What the router needs of the links to other nodes.

use causeway_proto::id::NodeId;
use causeway_proto::key::NodePublic;
use causeway_proto::link::frame::Stale;
use causeway_proto::packet::Packet;

use super::Verdict;

/// The links from this node to the others.
pub trait NodeLinks: Send + Sync {
    /// Whether packets to `node` would get away now.
    fn is_up(&self, node: NodeId) -> bool;

    /// Queues a packet, whose route is complete, on the link to `node`. `LinkDown` gives it back.
    fn forward_to(&self, node: NodeId, packet: Packet) -> Verdict;

    /// Tells `node` that a claim it used does not hold; false if there is no way to tell it.
    fn tell_stale(&self, node: NodeId, stale: Stale) -> bool;
}

/// The same for every packet of one sender to one receiver.
pub(crate) fn flow_hash(src: &NodePublic, dst: &NodePublic) -> u64 {
    let first = |key: &NodePublic| key.as_bytes().first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    mix(first(src).rotate_left(32) ^ first(dst))
}

/// Spreads the bits of a number: the finaliser of SplitMix64.
pub(crate) const fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}
