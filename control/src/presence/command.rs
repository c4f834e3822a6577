//! What Raft orders about presence, and its encoding in the log.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use causeway_proto::id::{BootId, Epoch, NodeId};
use causeway_proto::presence::{Op, UnpackError, pack_ops, unpack_ops};

use super::limits::CLAIMS_PER_OWNER_MAX;

/// One change of the presence table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// The next part of an owner log. An empty first part (`first_seq` 1) announces a new epoch.
    Apply {
        /// The owner.
        node: NodeId,
        /// The owner's epoch.
        epoch: Epoch,
        /// The owner's process.
        boot_id: BootId,
        /// Sequence of the first operation.
        first_seq: u64,
        /// Operations `first_seq`, `first_seq + 1`, …
        ops: Vec<Op>,
    },
    /// All claims of an owner as of `seq`; for an owner log that cannot be continued where the table stands.
    Reset {
        /// The owner.
        node: NodeId,
        /// The owner's epoch.
        epoch: Epoch,
        /// The owner's process.
        boot_id: BootId,
        /// The last sequence that is included.
        seq: u64,
        /// Claims only, at most one per key.
        ops: Vec<Op>,
    },
    /// The owner is silent: its claims of this epoch and older ones do not count.
    Fence {
        /// The owner.
        node: NodeId,
        /// The highest epoch that was silent.
        epoch: Epoch,
    },
    /// The owner was heard again.
    Unfence {
        /// The owner.
        node: NodeId,
        /// The epoch it was heard in.
        epoch: Epoch,
    },
    /// The owner stayed fenced: its claims are dropped. They come back by a [`Command::Reset`] only.
    DropFenced {
        /// The owner.
        node: NodeId,
        /// The epoch that is fenced.
        epoch: Epoch,
    },
    /// The owner left the fleet for good: its claims are dropped and none is accepted again.
    Evict {
        /// The owner.
        node: NodeId,
    },
}

/// Why bytes are no [`Command`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeCommandError {
    /// Shorter than its kind needs.
    #[error("the command is cut short")]
    Short,
    /// Bytes behind the end.
    #[error("{0} bytes follow the command")]
    Trailing(usize),
    /// No such kind.
    #[error("unknown command kind {0}")]
    Kind(u8),
    /// More operations than an owner may have claims.
    #[error("{0} operations are more than a command may hold")]
    TooManyOps(usize),
    /// Malformed operations.
    #[error(transparent)]
    Ops(#[from] UnpackError),
}

/// Operations a command may hold.
pub const COMMAND_OPS_MAX: usize = CLAIMS_PER_OWNER_MAX;

const KIND_APPLY: u8 = 1;
const KIND_RESET: u8 = 2;
const KIND_FENCE: u8 = 3;
const KIND_UNFENCE: u8 = 4;
const KIND_DROP_FENCED: u8 = 5;
const KIND_EVICT: u8 = 6;

impl Command {
    /// The owner this command is about.
    #[must_use]
    pub const fn node(&self) -> NodeId {
        match self {
            Self::Apply { node, .. }
            | Self::Reset { node, .. }
            | Self::Fence { node, .. }
            | Self::Unfence { node, .. }
            | Self::DropFenced { node, .. }
            | Self::Evict { node } => *node,
        }
    }

    /// Encodes for the Raft log: kind 1, node 8, epoch 8, then boot id 16, sequence 8 and packed operations where there are any.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        match self {
            Self::Apply { node, epoch, boot_id, first_seq, ops } => {
                put_log(&mut out, KIND_APPLY, *node, *epoch, boot_id, *first_seq, ops);
            }
            Self::Reset { node, epoch, boot_id, seq, ops } => put_log(&mut out, KIND_RESET, *node, *epoch, boot_id, *seq, ops),
            Self::Fence { node, epoch } => put_head(&mut out, KIND_FENCE, *node, *epoch),
            Self::Unfence { node, epoch } => put_head(&mut out, KIND_UNFENCE, *node, *epoch),
            Self::DropFenced { node, epoch } => put_head(&mut out, KIND_DROP_FENCED, *node, *epoch),
            Self::Evict { node } => {
                out.put_u8(KIND_EVICT);
                out.put_u64(node.0);
            }
        }
        out.freeze()
    }

    /// Decodes what [`Self::encode`] made; reserves nothing before the length is checked.
    ///
    /// # Errors
    /// [`DecodeCommandError`].
    pub fn decode(mut bytes: &[u8]) -> Result<Self, DecodeCommandError> {
        let kind = bytes.try_get_u8().map_err(short)?;
        let node = NodeId(bytes.try_get_u64().map_err(short)?);
        if kind == KIND_EVICT {
            return end(bytes, Self::Evict { node });
        }
        if !(KIND_APPLY..=KIND_DROP_FENCED).contains(&kind) {
            return Err(DecodeCommandError::Kind(kind));
        }
        let epoch = Epoch(bytes.try_get_u64().map_err(short)?);
        match kind {
            KIND_FENCE => return end(bytes, Self::Fence { node, epoch }),
            KIND_UNFENCE => return end(bytes, Self::Unfence { node, epoch }),
            KIND_DROP_FENCED => return end(bytes, Self::DropFenced { node, epoch }),
            _ => {}
        }
        let mut boot_id = BootId::default();
        bytes.try_copy_to_slice(&mut boot_id.0).map_err(short)?;
        let seq = bytes.try_get_u64().map_err(short)?;
        let count = bytes.len() / causeway_proto::presence::PACKED_OP_LEN;
        if count > COMMAND_OPS_MAX {
            return Err(DecodeCommandError::TooManyOps(count));
        }
        let ops = unpack_ops(bytes)?;
        Ok(if kind == KIND_APPLY {
            Self::Apply { node, epoch, boot_id, first_seq: seq, ops }
        } else {
            Self::Reset { node, epoch, boot_id, seq, ops }
        })
    }
}

fn put_head(out: &mut BytesMut, kind: u8, node: NodeId, epoch: Epoch) {
    out.put_u8(kind);
    out.put_u64(node.0);
    out.put_u64(epoch.0);
}

fn put_log(out: &mut BytesMut, kind: u8, node: NodeId, epoch: Epoch, boot_id: &BootId, seq: u64, ops: &[Op]) {
    put_head(out, kind, node, epoch);
    out.put_slice(&boot_id.0);
    out.put_u64(seq);
    out.put_slice(&pack_ops(ops));
}

fn short(_: bytes::TryGetError) -> DecodeCommandError {
    DecodeCommandError::Short
}

fn end(rest: &[u8], command: Command) -> Result<Command, DecodeCommandError> {
    if rest.is_empty() { Ok(command) } else { Err(DecodeCommandError::Trailing(rest.len())) }
}

#[cfg(test)]
mod tests {
    use causeway_proto::presence::{ClaimKind, PresenceKey};
    use proptest::prelude::*;

    use super::*;

    fn op() -> impl Strategy<Value = Op> {
        let kind = prop::sample::select(vec![ClaimKind::Derp, ClaimKind::Tx3, ClaimKind::Turbo, ClaimKind::Quicpipe]);
        (any::<[u8; 32]>(), any::<u64>(), any::<bool>(), kind, any::<bool>()).prop_map(|(key, clock_us, flag, kind, claim)| {
            let key = PresenceKey(key);
            if claim { Op::Claim { key, clock_us, home: flag, kind } } else { Op::Release { key, clock_us, clean: flag } }
        })
    }

    fn command() -> impl Strategy<Value = Command> {
        let head = (any::<u64>(), any::<u64>(), any::<[u8; 16]>(), any::<u64>());
        (0..6, head, prop::collection::vec(op(), 0..20)).prop_map(|(kind, (node, epoch, boot_id, seq), ops)| {
            let (node, epoch, boot_id) = (NodeId(node), Epoch(epoch), BootId(boot_id));
            match kind {
                0 => Command::Apply { node, epoch, boot_id, first_seq: seq, ops },
                1 => Command::Reset { node, epoch, boot_id, seq, ops },
                2 => Command::Fence { node, epoch },
                3 => Command::Unfence { node, epoch },
                4 => Command::DropFenced { node, epoch },
                _ => Command::Evict { node },
            }
        })
    }

    proptest! {
        #[test]
        fn commands_round_trip_and_their_beginnings_are_refused(command in command(), cut in any::<prop::sample::Index>()) {
            let bytes = command.encode();
            prop_assert_eq!(Command::decode(&bytes), Ok(command));
            let cut = cut.index(bytes.len());
            // A cut between two operations leaves a shorter command.
            if let Ok(shorter) = Command::decode(&bytes[..cut]) {
                prop_assert_eq!(&shorter.encode(), &bytes[..cut]);
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(command) = Command::decode(&bytes) {
                prop_assert_eq!(command.encode(), bytes);
            }
        }
    }

    #[test]
    fn errors_tell_what_is_wrong() {
        let fence = Command::Fence { node: NodeId(1), epoch: Epoch(2) }.encode();
        assert_eq!(Command::decode(&fence[..16]), Err(DecodeCommandError::Short));
        assert_eq!(Command::decode(&[&fence[..], b"xy"].concat()), Err(DecodeCommandError::Trailing(2)));
        assert_eq!(Command::decode(&[9; 30]), Err(DecodeCommandError::Kind(9)));
        let mut many = Command::Reset { node: NodeId(1), epoch: Epoch(2), boot_id: BootId::default(), seq: 0, ops: vec![] }
            .encode()
            .to_vec();
        many.resize(many.len() + (COMMAND_OPS_MAX + 1) * causeway_proto::presence::PACKED_OP_LEN, 0);
        assert_eq!(Command::decode(&many), Err(DecodeCommandError::TooManyOps(COMMAND_OPS_MAX + 1)));
    }
}
