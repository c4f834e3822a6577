//! Presence: claims of nodes on client keys, and the operations of an owner log.
//!
//! Only the node that holds a client speaks for it, so an operation never names its node: the owner log it stands in does.

use std::fmt;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::id::NodeId;
use crate::key::NodePublic;

/// What a claim is on: a DERP client key, a certificate digest, a session id, padded to 32 bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PresenceKey(pub [u8; 32]);

impl From<NodePublic> for PresenceKey {
    fn from(key: NodePublic) -> Self {
        Self(*key.as_bytes())
    }
}

impl fmt::Debug for PresenceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&NodePublic::from_bytes(self.0), f)
    }
}

/// Which front door a claim comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
#[repr(u8)]
pub enum ClaimKind {
    /// A DERP client, keyed by its public key.
    Derp = 0,
    /// A tx3 target, keyed by its certificate digest.
    Tx3 = 1,
    /// A Turbo Tunnel session, keyed by its session id.
    Turbo = 2,
    /// A quicpipe connection-id range.
    Quicpipe = 3,
    /// A client of a stock derper that the node watches, keyed by its public key: worth less than any client of a node.
    Derper = 4,
}

impl ClaimKind {
    /// The kind numbered `bits`, if there is one.
    #[must_use]
    pub const fn from_bits(bits: u8) -> Option<Self> {
        match bits {
            0 => Some(Self::Derp),
            1 => Some(Self::Tx3),
            2 => Some(Self::Turbo),
            3 => Some(Self::Quicpipe),
            4 => Some(Self::Derper),
            _ => None,
        }
    }
}

/// When and where a claim was minted. Minted once and never changed: renewing, re-announcing or copying keeps it.
///
/// Ordered by clock, then node id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Rank {
    /// Hybrid logical clock in microseconds since the Unix epoch.
    pub clock_us: u64,
    /// The claiming node.
    pub node: NodeId,
}

/// One entry of an owner log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// The owner holds `key`.
    Claim {
        /// What is held.
        key: PresenceKey,
        /// [`Rank::clock_us`]; the rank's node is the owner.
        clock_us: u64,
        /// The client called this its home (DERP NotePreferred).
        home: bool,
        /// The front door it is held by.
        kind: ClaimKind,
    },
    /// The owner no longer holds the claim of exactly this rank.
    Release {
        /// What was held.
        key: PresenceKey,
        /// [`Rank::clock_us`] of the claim that ends.
        clock_us: u64,
        /// The client said goodbye (it closed its connection) instead of falling silent.
        clean: bool,
    },
}

/// Length of one packed [`Op`]: tag 1, key 32, clock 8.
pub const PACKED_OP_LEN: usize = 41;

const TAG_RELEASE: u8 = 0x80;
const TAG_CLEAN: u8 = 0x40;
const TAG_HOME: u8 = 0x40;

/// Why packed operations were refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UnpackError {
    /// The length is no multiple of [`PACKED_OP_LEN`].
    #[error("{0} bytes are no whole number of packed operations")]
    Length(usize),
    /// Unknown bits in an operation's tag.
    #[error("unknown operation tag {0:#04x}")]
    Tag(u8),
}

impl Op {
    /// The key this operation is about.
    #[must_use]
    pub const fn key(&self) -> &PresenceKey {
        match self {
            Self::Claim { key, .. } | Self::Release { key, .. } => key,
        }
    }

    /// The clock part of the rank this operation is about.
    #[must_use]
    pub const fn clock_us(&self) -> u64 {
        match self {
            Self::Claim { clock_us, .. } | Self::Release { clock_us, .. } => *clock_us,
        }
    }

    fn pack_into(&self, out: &mut BytesMut) {
        let tag = match self {
            Self::Claim { home, kind, .. } => *kind as u8 | if *home { TAG_HOME } else { 0 },
            Self::Release { clean, .. } => TAG_RELEASE | if *clean { TAG_CLEAN } else { 0 },
        };
        out.put_u8(tag);
        out.put_slice(&self.key().0);
        out.put_u64(self.clock_us());
    }

    fn unpack_from(packed: &mut impl Buf) -> Result<Self, UnpackError> {
        let tag = packed.get_u8();
        let mut key = [0; 32];
        packed.copy_to_slice(&mut key);
        let key = PresenceKey(key);
        let clock_us = packed.get_u64();
        if tag & !TAG_CLEAN == TAG_RELEASE {
            return Ok(Self::Release { key, clock_us, clean: tag & TAG_CLEAN != 0 });
        }
        let kind = ClaimKind::from_bits(tag & !TAG_HOME).ok_or(UnpackError::Tag(tag))?;
        Ok(Self::Claim { key, clock_us, home: tag & TAG_HOME != 0, kind })
    }
}

/// Packs operations for the watch stream, the Raft log and snapshots.
#[must_use]
pub fn pack_ops<'a>(ops: impl IntoIterator<Item = &'a Op>) -> Bytes {
    let ops = ops.into_iter();
    let mut out = BytesMut::with_capacity(ops.size_hint().0 * PACKED_OP_LEN);
    for op in ops {
        op.pack_into(&mut out);
    }
    out.freeze()
}

/// Unpacks what [`pack_ops`] packed.
///
/// # Errors
/// [`UnpackError`] if the length or a tag is not one that [`pack_ops`] makes.
pub fn unpack_ops(mut packed: &[u8]) -> Result<Vec<Op>, UnpackError> {
    if !packed.len().is_multiple_of(PACKED_OP_LEN) {
        return Err(UnpackError::Length(packed.len()));
    }
    let mut ops = Vec::with_capacity(packed.len() / PACKED_OP_LEN);
    while packed.has_remaining() {
        ops.push(Op::unpack_from(&mut packed)?);
    }
    Ok(ops)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::op;

    #[test]
    fn packed_operations_round_trip_and_unknown_tags_are_refused() {
        let ops = [
            Op::Claim { key: PresenceKey([1; 32]), clock_us: 7, home: true, kind: ClaimKind::Quicpipe },
            Op::Release { key: PresenceKey([2; 32]), clock_us: u64::MAX, clean: true },
            Op::Release { key: PresenceKey([3; 32]), clock_us: 0, clean: false },
        ];
        let packed = pack_ops(&ops);
        assert_eq!(packed.len(), 3 * PACKED_OP_LEN);
        assert_eq!(unpack_ops(&packed), Ok(ops.to_vec()));
        assert_eq!(unpack_ops(&packed[1..]), Err(UnpackError::Length(3 * PACKED_OP_LEN - 1)));
        let mut bad = packed.to_vec();
        bad[0] = 0x3f;
        assert_eq!(unpack_ops(&bad), Err(UnpackError::Tag(0x3f)));
    }

    proptest! {
        #[test]
        fn any_operations_round_trip_in_41_bytes_each(ops in prop::collection::vec(op(), 0..20)) {
            let packed = pack_ops(&ops);
            prop_assert_eq!(packed.len(), ops.len() * PACKED_OP_LEN);
            prop_assert_eq!(unpack_ops(&packed), Ok(ops));
        }

        #[test]
        fn what_unpacks_packs_to_the_same_bytes(tags: Vec<u8>, rest in any::<[u8; PACKED_OP_LEN - 1]>()) {
            let bytes: Vec<u8> = tags.iter().flat_map(|tag| [*tag].into_iter().chain(rest)).collect();
            if let Ok(ops) = unpack_ops(&bytes) {
                prop_assert_eq!(pack_ops(&ops), bytes);
            }
        }
    }
}
