//! What the router moves: a packet, its class, and the route header it carries between nodes.

use bytes::Bytes;

use crate::id::NodeId;
use crate::key::NodePublic;
use crate::presence::Rank;

/// First bytes of a disco packet (Tailscale's path discovery): `TS` and the UTF-8 speech balloon.
pub const DISCO_MAGIC: [u8; 6] = [0x54, 0x53, 0xf0, 0x9f, 0x92, 0xac];

/// Shortest disco packet: magic 6, sender 32, nonce 24.
pub const DISCO_LEN_MIN: usize = 62;

/// How urgent a packet is: which lane it waits in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Class {
    /// Keeps paths alive: disco packets and WireGuard handshakes.
    Liveness = 0,
    /// Everything else.
    Data = 1,
}

impl Class {
    /// Classifies a payload by its first bytes.
    #[must_use]
    pub fn of(payload: &[u8]) -> Self {
        if is_disco(payload) || is_wireguard_handshake(payload) { Self::Liveness } else { Self::Data }
    }
}

/// Whether a payload looks like disco: the rule stock servers use (`derp.md` section 5.5).
#[must_use]
pub fn is_disco(payload: &[u8]) -> bool {
    payload.len() >= DISCO_LEN_MIN && payload.starts_with(&DISCO_MAGIC)
}

/// WireGuard handshake initiation (148 bytes), response (92) or cookie reply (64): type byte, three zero bytes.
fn is_wireguard_handshake(payload: &[u8]) -> bool {
    matches!(
        (payload.len(), payload.first_chunk::<4>()),
        (148, Some([1, 0, 0, 0])) | (92, Some([2, 0, 0, 0])) | (64, Some([3, 0, 0, 0]))
    )
}

/// Most nodes a packet may visit, its origin included.
pub const PATH_LEN_MAX: usize = 5;

/// Most times a target may send a packet on to a better claim.
pub const REDIRECTS_MAX: u8 = 2;

/// The nodes a packet has visited, in order; at most [`PATH_LEN_MAX`].
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Path {
    nodes: [NodeId; PATH_LEN_MAX],
    len: u8,
}

/// The path holds [`PATH_LEN_MAX`] nodes already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the path holds {PATH_LEN_MAX} nodes already")]
pub struct PathFull;

impl Path {
    /// Adds the node the packet is at.
    ///
    /// # Errors
    /// [`PathFull`] if there is no room.
    pub fn push(&mut self, node: NodeId) -> Result<(), PathFull> {
        let slot = self.nodes.get_mut(usize::from(self.len)).ok_or(PathFull)?;
        *slot = node;
        self.len += 1;
        Ok(())
    }

    /// Whether the packet has visited `node`.
    #[must_use]
    pub fn contains(&self, node: NodeId) -> bool {
        self.as_slice().contains(&node)
    }

    /// The nodes visited, origin first.
    #[must_use]
    pub fn as_slice(&self) -> &[NodeId] {
        &self.nodes[..usize::from(self.len)]
    }
}

impl std::fmt::Debug for Path {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.as_slice()).finish()
    }
}

/// W3C trace context of a sampled packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext {
    /// Trace id, not all zero.
    pub trace_id: [u8; 16],
    /// Span id of the hop that sent the packet on.
    pub span_id: [u8; 8],
}

/// What a packet carries between nodes, beside source and destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The node whose client (or stock mesh peer) sent the packet: it chose `target` and `rank_used`.
    pub origin: NodeId,
    /// The node thought to hold the destination.
    pub target: NodeId,
    /// Rank of the claim that made `target` the choice.
    pub rank_used: Rank,
    /// How often a target sent the packet on to a better claim.
    pub redirects: u8,
    /// Nodes visited.
    pub path: Path,
    /// A stock derper forwarded it to `origin`: no node may give it to another one (`derp.md` section 5.9).
    pub from_derper: bool,
    /// Present if this packet is sampled for tracing.
    pub trace: Option<TraceContext>,
}

/// A packet from one client key to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Key of the sender, proven by its connection (or stated by a node of the fleet).
    pub src: NodePublic,
    /// Key of the receiver.
    pub dst: NodePublic,
    /// Which lane it waits in.
    pub class: Class,
    /// At most 65,536 bytes; never looked into beyond [`Class::of`].
    pub payload: Bytes,
    /// `None` at its origin until a claim on another node is chosen.
    pub route: Option<Route>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn class_of_a_payload_follows_its_first_bytes_and_length() {
        let mut disco = vec![0; DISCO_LEN_MIN];
        disco[..6].copy_from_slice(&DISCO_MAGIC);
        let mut initiation = [0; 148];
        initiation[0] = 1;
        let cases: [(&[u8], Class); 5] = [
            (&disco, Class::Liveness),
            (&disco[..DISCO_LEN_MIN - 1], Class::Data),
            (&initiation, Class::Liveness),
            (&initiation[..147], Class::Data),
            (&[], Class::Data),
        ];
        for (payload, class) in cases {
            assert_eq!(Class::of(payload), class, "{} bytes", payload.len());
        }
    }

    #[test]
    fn a_path_takes_five_nodes_and_refuses_the_sixth() {
        let mut path = Path::default();
        for n in 0..5 {
            path.push(NodeId(n)).expect("room for five");
        }
        assert_eq!(path.push(NodeId(5)), Err(PathFull));
        assert!(path.contains(NodeId(4)) && !path.contains(NodeId(5)));
    }
}
