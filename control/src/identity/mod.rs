//! Who a node is and whom it trusts: the fleet's certificate authority, the node's own key, mutual TLS between nodes.

mod certificate;
mod evictable;
mod fleet_ca;
mod node_key;
mod tls;

use causeway_proto::id::NodeId;

pub(crate) use evictable::EvictableStream;
pub use fleet_ca::{FleetCa, FleetTrust};
pub use node_key::{NodeKey, NodeKeyError};
pub use tls::{Alpn, HANDSHAKE_TIMEOUT, MeshStream, MeshTls, MeshTlsError};

/// Who stands behind a node-to-node connection, as proven by its certificate.
///
/// The mesh server puts it into the extensions of every gRPC request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerIdentity {
    /// Derived from `public_key`.
    pub node_id: NodeId,
    /// Ed25519 key of the certificate.
    pub public_key: [u8; 32],
}

impl PeerIdentity {
    /// The identity that belongs to an Ed25519 public key.
    #[must_use]
    pub fn of_public_key(public_key: [u8; 32]) -> Self {
        Self { node_id: NodeId::of_public_key(&public_key), public_key }
    }
}

/// Makes a PKCS#8 (version 1) document of an Ed25519 seed (RFC 8410 section 7).
fn pkcs8_of_seed(seed: &[u8; 32]) -> zeroize::Zeroizing<Vec<u8>> {
    const PREFIX: [u8; 16] = [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
    let mut der = zeroize::Zeroizing::new(Vec::with_capacity(PREFIX.len() + seed.len()));
    der.extend_from_slice(&PREFIX);
    der.extend_from_slice(seed);
    der
}
