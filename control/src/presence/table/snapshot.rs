//! A frozen table and its packed form, for Raft snapshots.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use causeway_proto::id::{BootId, Epoch, NodeId};
use causeway_proto::presence::{Op, PresenceKey};
use sha2::{Digest, Sha256};

use super::{Record, TAG_HOME, Table, TableOwner, kind_of, shard_of};
use crate::presence::limits::OWNERS_MAX;

/// A snapshot block ends with the shard that makes it at least this long.
const BLOCK_TARGET: usize = 256 << 10;
/// Longest block that [`Table::from_blocks`] reads.
pub const BLOCK_SIZE_MAX: usize = 64 << 20;
pub(super) const OWNER_LEN: usize = 8 + 8 + 16 + 8 + 1 + 8 + 4;
pub(super) const RECORD_LEN: usize = size_of::<Record>();

const OWNER_FENCED: u8 = 1;
const OWNER_DROPPED: u8 = 2;
const OWNER_EVICTED: u8 = 4;

/// Why blocks are no table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BlockError {
    /// There is no first block, which lists the owners.
    #[error("the block of owners is missing")]
    NoOwners,
    /// A block of this length holds no whole number of records, or too many.
    #[error("a block of {0} bytes holds no whole number of records, or too many")]
    Length(usize),
    /// Records are not in strictly ascending order.
    #[error("records are out of order")]
    Order,
    /// An unknown tag.
    #[error("unknown record tag {0:#04x}")]
    Tag(u8),
    /// The number of claims is not the one stated for this owner.
    #[error("node {0} has another number of claims than stated")]
    Count(NodeId),
}

/// A frozen table.
#[derive(Debug, Clone)]
pub struct TableSnapshot {
    pub(super) table: Table,
}

impl TableSnapshot {
    /// The table it was taken of, unchanging.
    #[must_use]
    pub const fn table(&self) -> &Table {
        &self.table
    }

    /// Packed bytes: first the owners, then the claims in ascending order, in blocks of about 256 KiB. Equal tables give equal blocks.
    pub fn blocks(&self) -> impl Iterator<Item = Bytes> {
        let mut shards = self.table.shards.iter();
        let claims = std::iter::from_fn(move || {
            let mut block = BytesMut::new();
            for shard in shards.by_ref() {
                for record in shard.iter() {
                    block.put_slice(&record.key);
                    block.put_slice(&record.node);
                    block.put_slice(&record.clock_us);
                    block.put_u8(record.tag);
                }
                if block.len() >= BLOCK_TARGET {
                    break;
                }
            }
            (!block.is_empty()).then(|| block.freeze())
        });
        std::iter::once(self.owners_block()).chain(claims)
    }

    fn owners_block(&self) -> Bytes {
        let mut block = BytesMut::with_capacity(self.table.owners.len() * OWNER_LEN);
        for (node, owner) in &self.table.owners {
            let flag = |set: bool, bit: u8| if set { bit } else { 0 };
            block.put_u64(node.0);
            block.put_u64(owner.epoch.0);
            block.put_slice(&owner.boot_id.0);
            block.put_u64(owner.seq);
            let fenced = flag(owner.fenced_epoch.is_some(), OWNER_FENCED);
            block.put_u8(fenced | flag(owner.dropped, OWNER_DROPPED) | flag(owner.evicted, OWNER_EVICTED));
            block.put_u64(owner.fenced_epoch.unwrap_or_default().0);
            block.put_u32(u32::try_from(owner.claims).expect("bounded by CLAIMS_PER_OWNER_MAX"));
        }
        block.freeze()
    }

    /// SHA-256 over all blocks: equal exactly for equal tables.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        let mut digest = Sha256::new();
        for block in self.blocks() {
            digest.update((block.len() as u64).to_be_bytes());
            digest.update(&block);
        }
        digest.finalize().into()
    }

    /// All claims of one owner, sorted by key.
    #[must_use]
    pub fn claims_of(&self, node: NodeId) -> Vec<Op> {
        let packed = node.0.to_be_bytes();
        let records = self.table.shards.iter().flat_map(|shard| shard.iter()).filter(|record| record.node == packed);
        records.map(claim_op).collect()
    }

    /// The claims of every owner, each sorted by key, in one walk.
    #[must_use]
    pub fn claims_by_owner(&self) -> BTreeMap<NodeId, Vec<Op>> {
        let mut by_owner: BTreeMap<NodeId, Vec<Op>> = BTreeMap::new();
        for record in self.table.shards.iter().flat_map(|shard| shard.iter()) {
            by_owner.entry(record.owner()).or_default().push(claim_op(record));
        }
        by_owner
    }
}

fn claim_op(record: &Record) -> Op {
    let kind = kind_of(record.tag).expect("only checked tags are stored");
    Op::Claim { key: PresenceKey(record.key), clock_us: record.clock_us(), home: record.tag & TAG_HOME != 0, kind }
}

impl Table {
    /// Rebuilds a table from [`TableSnapshot::blocks`].
    ///
    /// # Errors
    /// [`BlockError`] if the blocks are not exactly what a table makes.
    pub fn from_blocks(blocks: impl IntoIterator<Item = impl AsRef<[u8]>>) -> Result<Self, BlockError> {
        let mut blocks = blocks.into_iter();
        let mut table = Self::default();
        table.read_owners(blocks.next().ok_or(BlockError::NoOwners)?.as_ref())?;
        let mut claims: BTreeMap<NodeId, usize> = BTreeMap::new();
        let mut last: Option<([u8; 32], [u8; 8])> = None;
        for block in blocks {
            let block = block.as_ref();
            if block.len() > BLOCK_SIZE_MAX || !block.len().is_multiple_of(RECORD_LEN) {
                return Err(BlockError::Length(block.len()));
            }
            for bytes in block.chunks_exact(RECORD_LEN) {
                let record = read_record(bytes)?;
                if last >= Some(record.place()) {
                    return Err(BlockError::Order);
                }
                last = Some(record.place());
                *claims.entry(record.owner()).or_default() += 1;
                Arc::make_mut(&mut table.shards[shard_of(&record.key)]).push(record);
            }
        }
        for (node, owner) in &table.owners {
            if claims.remove(node).unwrap_or(0) != owner.claims {
                return Err(BlockError::Count(*node));
            }
        }
        match claims.keys().next() {
            Some(node) => Err(BlockError::Count(*node)),
            None => Ok(table),
        }
    }

    fn read_owners(&mut self, mut block: &[u8]) -> Result<(), BlockError> {
        if !block.len().is_multiple_of(OWNER_LEN) || block.len() / OWNER_LEN > OWNERS_MAX {
            return Err(BlockError::Length(block.len()));
        }
        while block.has_remaining() {
            let node = NodeId(block.get_u64());
            let epoch = Epoch(block.get_u64());
            let mut boot_id = BootId::default();
            block.copy_to_slice(&mut boot_id.0);
            let seq = block.get_u64();
            let flags = block.get_u8();
            let fenced_epoch = Some(Epoch(block.get_u64())).filter(|_| flags & OWNER_FENCED != 0);
            let (dropped, evicted) = (flags & OWNER_DROPPED != 0, flags & OWNER_EVICTED != 0);
            let claims = block.get_u32() as usize;
            if self.owners.last_key_value().is_some_and(|(last, _)| *last >= node) {
                return Err(BlockError::Order);
            }
            let owner = TableOwner { epoch, boot_id, seq, fenced_epoch, dropped, evicted, claims };
            self.owners.insert(node, owner);
        }
        Ok(())
    }
}

fn read_record(mut bytes: &[u8]) -> Result<Record, BlockError> {
    let mut record = Record { key: [0; 32], node: [0; 8], clock_us: [0; 8], tag: 0 };
    bytes.copy_to_slice(&mut record.key);
    bytes.copy_to_slice(&mut record.node);
    bytes.copy_to_slice(&mut record.clock_us);
    record.tag = bytes.get_u8();
    match kind_of(record.tag) {
        Some(_) => Ok(record),
        None => Err(BlockError::Tag(record.tag)),
    }
}
