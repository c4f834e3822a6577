//! Ordered alternatives for one packet.

use std::sync::Arc;

use causeway_proto::packet::Packet;

use super::{PacketForwarder, Verdict};

/// Tries each alternative in order; goes on to the next on `NotHere` and `LinkDown` only.
pub struct ForwarderChain {
    alternatives: Vec<Arc<dyn PacketForwarder>>,
}

impl std::fmt::Debug for ForwarderChain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ForwarderChain").field("alternatives", &self.alternatives.len()).finish()
    }
}

impl ForwarderChain {
    /// A chain of the given alternatives, best first.
    #[must_use]
    pub const fn new(alternatives: Vec<Arc<dyn PacketForwarder>>) -> Self {
        Self { alternatives }
    }
}

impl PacketForwarder for ForwarderChain {
    fn forward(&self, packet: Packet) -> Verdict {
        let mut refused = Verdict::NotHere(packet);
        for alternative in &self.alternatives {
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
        let chain = |alternatives| ForwarderChain::new(alternatives).forward(packet());
        assert_eq!(chain(vec![Arc::new(Down), Arc::new(Queue)]), Verdict::Queued);
        assert_eq!(chain(vec![Arc::new(Full), Arc::new(Queue)]), Verdict::Dropped(DropReason::QueueTail));
        assert_eq!(chain(vec![Arc::new(Down)]), Verdict::LinkDown(packet()));
        assert_eq!(chain(vec![]), Verdict::NotHere(packet()));
    }
}
