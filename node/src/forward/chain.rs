//! Ordered alternatives for one packet.

use causeway_proto::packet::Packet;

use super::{PacketForwarder, Verdict};

/// Offers a packet to each alternative in order, and goes on to the next on `NotHere` and `LinkDown` only. The one place where this
/// rule stands.
///
/// The alternatives are an iterator, best first: nothing is looked up or allocated before it is that one's turn.
#[derive(Debug, Clone)]
pub struct ForwarderChain<I> {
    alternatives: I,
}

impl<I> ForwarderChain<I> {
    /// A chain of the given alternatives.
    #[must_use]
    pub const fn new(alternatives: I) -> Self {
        Self { alternatives }
    }
}

impl<I> PacketForwarder for ForwarderChain<I>
where
    I: IntoIterator<Item: PacketForwarder> + Clone + Send + Sync,
{
    /// The verdict of the first that keeps or drops the packet, else the last refusal; `NotHere` if there is no alternative.
    fn forward(&self, packet: Packet) -> Verdict {
        let mut refused = Verdict::NotHere(packet);
        for alternative in self.alternatives.clone() {
            refused = match refused {
                Verdict::NotHere(packet) | Verdict::LinkDown(packet) => alternative.forward(packet),
                Verdict::Queued | Verdict::Dropped(_) => return refused,
            };
        }
        refused
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use causeway_proto::key::NodePublic;
    use causeway_proto::packet::Class;

    use super::*;
    use crate::forward::DropReason;

    struct Down;
    struct Queue;
    struct Full;

    impl PacketForwarder for Down {
        fn forward(&self, packet: Packet) -> Verdict {
            Verdict::LinkDown(packet)
        }
    }

    impl PacketForwarder for Queue {
        fn forward(&self, _: Packet) -> Verdict {
            Verdict::Queued
        }
    }

    impl PacketForwarder for Full {
        fn forward(&self, _: Packet) -> Verdict {
            Verdict::Dropped(DropReason::QueueTail)
        }
    }

    fn packet() -> Packet {
        let key = NodePublic::default();
        Packet { src: key, dst: key, class: Class::Data, payload: Bytes::new(), route: None }
    }

    #[test]
    fn the_next_alternative_is_tried_only_when_the_packet_comes_back() {
        let chain = |alternatives: &[&dyn PacketForwarder]| ForwarderChain::new(alternatives).forward(packet());
        assert_eq!(chain(&[&Down, &Queue]), Verdict::Queued);
        assert_eq!(chain(&[&Full, &Queue]), Verdict::Dropped(DropReason::QueueTail));
        assert_eq!(chain(&[&Down]), Verdict::LinkDown(packet()));
        assert_eq!(chain(&[]), Verdict::NotHere(packet()));
    }
}
