//! Snapshots on disk: one file, written aside, synced and renamed; every block has a checksum.
//!
//! ```text
//! "CWSNAP01"
//! block: header (RaftSnapshotHeader)      block: length u32, CRC-32C of length and bytes u32, bytes
//! block: fleet (FleetSnapshot)
//! blocks: presence table
//! end: length 0, CRC-32C of the count u32, count of blocks u64
//! ```

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use causeway_rpc::v1;
use futures::{Stream, StreamExt};
use prost::Message;
use tokio::io::AsyncWriteExt;
use tonic::Status;

use super::codec::{log_id_from, log_id_to, stored_membership_from, stored_membership_to};
use super::fleet_state::FleetState;
use super::types::{GROUP_ID, SnapshotMeta};
use crate::data_dir::sync_dir;
use crate::presence::table::BLOCK_SIZE_MAX;
use crate::presence::{Table, TableSnapshot};

const MAGIC: &[u8; 8] = b"CWSNAP01";
/// Largest snapshot that is received: 10^7 claims are half of it.
const SNAPSHOT_SIZE_MAX: u64 = 1 << 30;
const SUFFIX: &str = "snapshot";
const SUFFIX_ASIDE: &str = "tmp";

/// Why a snapshot cannot be used. Names the file.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The file cannot be read or written.
    #[error("raft snapshot {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// The content is not what was written.
    #[error(
        "raft snapshot {path} is damaged ({what}): nothing was changed. If the voters are healthy, move the data directory away and start as a new node; otherwise restore the file"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found.
        what: String,
    },
}

/// A complete snapshot in a file. A received file that is not installed is deleted with the last handle.
#[derive(Debug, Clone)]
pub(crate) struct SnapshotFile {
    file: Arc<OwnedFile>,
    length: u64,
}

#[derive(Debug)]
struct OwnedFile {
    path: PathBuf,
    temporary: bool,
}

impl Drop for OwnedFile {
    fn drop(&mut self) {
        if self.temporary {
            // Already gone once it was installed.
            drop(fs::remove_file(&self.path));
        }
    }
}

impl SnapshotFile {
    fn new(path: PathBuf, length: u64, temporary: bool) -> Self {
        Self { file: Arc::new(OwnedFile { path, temporary }), length }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.file.path
    }

    /// Bytes of the file.
    pub(crate) const fn length(&self) -> u64 {
        self.length
    }
}

/// What a snapshot holds.
#[derive(Debug)]
pub(crate) struct SnapshotContent {
    pub(crate) meta: SnapshotMeta,
    pub(crate) fleet: FleetState,
    pub(crate) table: Table,
}

/// The directory of a group's snapshots; it keeps the newest only.
#[derive(Debug, Clone)]
pub(crate) struct SnapshotStore {
    dir: Arc<PathBuf>,
    incoming: Arc<AtomicU64>,
}

impl SnapshotStore {
    /// Makes the directory, clearing away what a crash left half written.
    ///
    /// # Errors
    /// [`SnapshotError::Io`].
    pub(crate) fn open(dir: PathBuf) -> Result<Self, SnapshotError> {
        let io_error = |source| SnapshotError::Io { path: dir.clone(), source };
        fs::create_dir_all(&dir).map_err(io_error)?;
        for entry in fs::read_dir(&dir).map_err(io_error)? {
            let path = entry.map_err(io_error)?.path();
            if path.extension().is_some_and(|extension| extension == SUFFIX_ASIDE) {
                fs::remove_file(&path).map_err(io_error)?;
            }
        }
        Ok(Self { dir: Arc::new(dir), incoming: Arc::default() })
    }

    fn aside(&self) -> PathBuf {
        let number = self.incoming.fetch_add(1, Ordering::Relaxed);
        self.dir.join(format!("{number}.{SUFFIX_ASIDE}"))
    }

    fn place(&self, meta: &SnapshotMeta) -> PathBuf {
        let index = meta.last_log_id.as_ref().map_or(0, |id| id.index);
        let term = meta.last_log_id.as_ref().map_or(0, |id| id.leader_id.term);
        self.dir.join(format!("{index:020}-{term:020}.{SUFFIX}"))
    }

    /// Writes a snapshot and drops older ones. Blocks on the disk.
    ///
    /// # Errors
    /// Any I/O error; the older snapshot stands then.
    pub(crate) fn write(&self, meta: &SnapshotMeta, fleet: &FleetState, table: &TableSnapshot) -> io::Result<SnapshotFile> {
        let aside = self.aside();
        let written = write_file(&aside, meta, fleet, table).and_then(|length| Ok((self.adopt(&aside, meta)?, length)));
        match written {
            Ok((path, length)) => Ok(SnapshotFile::new(path, length, false)),
            Err(error) => {
                drop(fs::remove_file(&aside));
                Err(error)
            }
        }
    }

    /// Makes a synced file the current snapshot.
    fn adopt(&self, from: &Path, meta: &SnapshotMeta) -> io::Result<PathBuf> {
        let place = self.place(meta);
        if from != place {
            fs::rename(from, &place)?;
            sync_dir(&self.dir)?;
        }
        for other in self.files()? {
            if other != place {
                fs::remove_file(other)?;
            }
        }
        Ok(place)
    }

    /// Makes a file the current snapshot and reads it. Blocks on the disk.
    ///
    /// # Errors
    /// An I/O error, of kind `InvalidData` if the file is not what `meta` says.
    pub(crate) fn install(&self, meta: &SnapshotMeta, snapshot: &SnapshotFile) -> io::Result<SnapshotContent> {
        let content = read_file(snapshot.path()).map_err(io::Error::other)?;
        if content.meta != *meta {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the snapshot's header and its announcement differ"));
        }
        self.adopt(snapshot.path(), meta)?;
        Ok(content)
    }

    /// The current snapshot, if there is one. Blocks on the disk.
    ///
    /// # Errors
    /// [`SnapshotError`], naming the file.
    pub(crate) fn current(&self) -> Result<Option<(SnapshotMeta, SnapshotFile)>, SnapshotError> {
        let io_error = |source| SnapshotError::Io { path: self.dir.to_path_buf(), source };
        // Names sort by index. More than one is left if a crash came between the rename and the clearing.
        let Some(path) = self.files().map_err(io_error)?.into_iter().max() else { return Ok(None) };
        let content = read_file(&path)?;
        let length = fs::metadata(&path).map_err(io_error)?.len();
        Ok(Some((content.meta, SnapshotFile::new(path, length, false))))
    }

    /// Bytes of the current snapshot, 0 if there is none.
    pub(crate) fn size(&self) -> u64 {
        let newest = self.files().ok().and_then(|files| files.into_iter().max());
        newest.and_then(|path| fs::metadata(path).ok()).map_or(0, |metadata| metadata.len())
    }

    fn files(&self) -> io::Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(self.dir.as_path())? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == SUFFIX) {
                files.push(path);
            }
        }
        Ok(files)
    }

    /// Stores a snapshot that comes in pieces.
    ///
    /// # Errors
    /// The sender's status, or `INVALID_ARGUMENT`/`INTERNAL`.
    pub(crate) async fn receive(
        &self,
        length: u64,
        pieces: impl Stream<Item = Result<Bytes, Status>>,
    ) -> Result<SnapshotFile, Status> {
        if length > SNAPSHOT_SIZE_MAX {
            return Err(Status::invalid_argument(format!("a snapshot of {length} bytes is too large")));
        }
        let disk = |error: io::Error| Status::internal(format!("cannot store the snapshot: {error}"));
        let path = self.aside();
        let received = SnapshotFile::new(path.clone(), length, true);
        let mut file = tokio::fs::File::create(&path).await.map_err(disk)?;
        let mut pieces = std::pin::pin!(pieces);
        let mut total = 0;
        while let Some(piece) = pieces.next().await {
            let piece = piece?;
            total += piece.len() as u64;
            if total > length {
                return Err(Status::invalid_argument("the snapshot is longer than announced"));
            }
            file.write_all(&piece).await.map_err(disk)?;
        }
        if total != length {
            return Err(Status::invalid_argument("the snapshot is shorter than announced"));
        }
        file.sync_all().await.map_err(disk)?;
        // Reads all of it once, so that openraft is only ever given a whole one.
        let check = path.clone();
        let checked = tokio::task::spawn_blocking(move || read_file(&check)).await;
        match checked {
            Ok(Ok(_)) => Ok(received),
            Ok(Err(error)) => Err(Status::invalid_argument(error.to_string())),
            Err(error) => Err(Status::internal(error.to_string())),
        }
    }
}

fn write_file(path: &Path, meta: &SnapshotMeta, fleet: &FleetState, table: &TableSnapshot) -> io::Result<u64> {
    let mut out = BufWriter::new(File::create(path)?);
    out.write_all(MAGIC)?;
    let header = v1::RaftSnapshotHeader {
        group_id: GROUP_ID,
        vote: None,
        last_log_id: meta.last_log_id.as_ref().map(log_id_to),
        last_membership: Some(stored_membership_to(&meta.last_membership)),
        length: 0,
        sender: None,
    };
    write_block(&mut out, &header.encode_to_vec())?;
    write_block(&mut out, &fleet.to_snapshot().encode_to_vec())?;
    let mut count: u64 = 2;
    for block in table.blocks() {
        write_block(&mut out, &block)?;
        count += 1;
    }
    let count = count.to_be_bytes();
    out.write_all(&0_u32.to_be_bytes())?;
    out.write_all(&crc32c::crc32c(&count).to_be_bytes())?;
    out.write_all(&count)?;
    let file = out.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.sync_all()?;
    Ok(file.metadata()?.len())
}

/// Blocks are never stored with their bare length: one byte is added so that an empty block differs from the end.
fn write_block(out: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    let length = u32::try_from(bytes.len() + 1).map_err(|_| io::Error::other("a snapshot block is too long"))?;
    out.write_all(&length.to_be_bytes())?;
    out.write_all(&checksum(length, bytes).to_be_bytes())?;
    out.write_all(bytes)
}

fn checksum(length: u32, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&length.to_be_bytes()), bytes)
}

fn read_file(path: &Path) -> Result<SnapshotContent, SnapshotError> {
    let damaged = |what: String| SnapshotError::Damaged { path: path.to_owned(), what };
    let io_error = |source: io::Error| match source.kind() {
        io::ErrorKind::UnexpectedEof => damaged("it is cut short".to_owned()),
        io::ErrorKind::InvalidData => damaged(source.to_string()),
        _ => SnapshotError::Io { path: path.to_owned(), source },
    };
    let mut input = BufReader::with_capacity(1 << 20, File::open(path).map_err(io_error)?);
    let mut magic = [0; MAGIC.len()];
    input.read_exact(&mut magic).map_err(io_error)?;
    if magic != *MAGIC {
        return Err(damaged("it is no snapshot of this version".to_owned()));
    }
    let mut blocks = Blocks { input, count: 0, failed: None };
    let header = blocks.next().and_then(|block| v1::RaftSnapshotHeader::decode(block).ok());
    let fleet = blocks.next().and_then(|block| v1::FleetSnapshot::decode(block).ok());
    let table = Table::from_blocks(&mut blocks);
    if let Some(error) = blocks.failed {
        return Err(io_error(error));
    }
    let (Some(header), Some(fleet)) = (header, fleet) else { return Err(damaged("its header cannot be read".to_owned())) };
    let last_membership =
        stored_membership_from(header.last_membership.unwrap_or_default()).map_err(|error| damaged(error.to_string()))?;
    Ok(SnapshotContent {
        meta: SnapshotMeta { last_log_id: header.last_log_id.as_ref().map(log_id_from), last_membership },
        fleet: FleetState::from_snapshot(fleet),
        table: table.map_err(|error| damaged(error.to_string()))?,
    })
}

/// The blocks of a file up to its end mark; a failure ends the iteration and is kept.
struct Blocks<R> {
    input: R,
    count: u64,
    failed: Option<io::Error>,
}

impl<R: Read> Blocks<R> {
    fn read(&mut self) -> io::Result<Option<Bytes>> {
        let invalid = |what| io::Error::new(io::ErrorKind::InvalidData, what);
        let (mut length, mut expected) = ([0; 4], [0; 4]);
        self.input.read_exact(&mut length)?;
        self.input.read_exact(&mut expected)?;
        let (length, expected) = (u32::from_be_bytes(length), u32::from_be_bytes(expected));
        if length == 0 {
            let mut count = [0; 8];
            self.input.read_exact(&mut count)?;
            let whole = crc32c::crc32c(&count) == expected && u64::from_be_bytes(count) == self.count;
            return if whole { Ok(None) } else { Err(invalid("blocks are missing")) };
        }
        let size = length as usize - 1;
        if size > BLOCK_SIZE_MAX {
            return Err(invalid("a block is too long"));
        }
        let mut bytes = Vec::new();
        self.input.by_ref().take(size as u64).read_to_end(&mut bytes)?;
        if bytes.len() != size {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if checksum(length, &bytes) != expected {
            return Err(invalid("a checksum is wrong"));
        }
        self.count += 1;
        Ok(Some(bytes.into()))
    }
}

impl<R: Read> Iterator for Blocks<R> {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        if self.failed.is_some() {
            return None;
        }
        self.read().unwrap_or_else(|error| {
            self.failed = Some(error);
            None
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::presence::Command;
    use crate::raft::fleet_state::sample_record;
    use causeway_proto::id::{BootId, Epoch, NodeId};
    use causeway_proto::presence::{ClaimKind, Op, PresenceKey};

    fn content() -> (SnapshotMeta, FleetState, Table) {
        let mut fleet = FleetState::default();
        fleet.form(&v1::FormFleet { fleet_id: "f".to_owned(), nodes: vec![sample_record("a1", 1)], ..Default::default() });
        let mut table = Table::default();
        let ops = (0..100_u8)
            .map(|n| Op::Claim { key: PresenceKey([n; 32]), clock_us: n.into(), home: n % 2 == 0, kind: ClaimKind::Derp })
            .collect();
        table.apply(&Command::Apply { node: NodeId(7), epoch: Epoch(1), boot_id: BootId([1; 16]), first_seq: 1, ops });
        let leader_id = crate::raft::types::LeaderId { term: 3, node_id: 7 };
        let last_log_id = Some(crate::raft::types::LogId { leader_id, index: 9 });
        (SnapshotMeta { last_log_id, ..Default::default() }, fleet, table)
    }

    #[test]
    fn a_snapshot_is_read_back_and_only_the_newest_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let store = SnapshotStore::open(dir.path().to_owned()).unwrap();
        assert!(store.current().unwrap().is_none());
        let (mut meta, fleet, table) = content();
        store.write(&meta, &fleet, &table.snapshot()).unwrap();
        meta.last_log_id.as_mut().unwrap().index = 10;
        store.write(&meta, &fleet, &table.snapshot()).unwrap();
        let (found, file) = store.current().unwrap().expect("there is one");
        assert_eq!(found, meta);
        let content = store.install(&found, &file).unwrap();
        assert_eq!(content.fleet, fleet);
        assert_eq!(content.table.snapshot().digest(), table.snapshot().digest());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let store = SnapshotStore::open(dir.path().to_owned()).unwrap();
        let (meta, fleet, table) = content();
        let file = store.write(&meta, &fleet, &table.snapshot()).unwrap();
        let whole = fs::read(file.path()).unwrap();
        for at in (0..whole.len()).step_by(7) {
            let mut bent = whole.clone();
            bent[at] ^= 4;
            fs::write(file.path(), &bent).unwrap();
            let error = store.current().expect_err("a flipped bit").to_string();
            assert!(error.contains(SUFFIX), "{error}");
            fs::write(file.path(), &whole[..at]).unwrap();
            assert!(matches!(store.current(), Err(SnapshotError::Damaged { .. })), "cut at {at}");
        }
    }

    #[tokio::test]
    async fn a_received_file_must_be_whole_and_is_cleared_away_otherwise() {
        let dir = tempfile::tempdir().unwrap();
        let store = SnapshotStore::open(dir.path().join("here")).unwrap();
        let there = SnapshotStore::open(dir.path().join("there")).unwrap();
        let (meta, fleet, table) = content();
        let file = there.write(&meta, &fleet, &table.snapshot()).unwrap();
        let bytes = Bytes::from(fs::read(file.path()).unwrap());
        let pieces = |cut: usize| futures::stream::iter([Ok(bytes.slice(..cut / 2)), Ok(bytes.slice(cut / 2..cut))]);
        let received = store.receive(file.length(), pieces(bytes.len())).await.unwrap();
        store.install(&meta, &received).unwrap();
        drop(received);
        assert!(store.receive(file.length(), pieces(bytes.len() - 1)).await.is_err());
        assert!(store.receive(file.length() - 1, pieces(bytes.len() - 1)).await.is_err());
        assert!(store.receive(u64::MAX, pieces(1)).await.is_err());
        assert_eq!(fs::read_dir(dir.path().join("here")).unwrap().count(), 1);
        assert!(store.current().unwrap().is_some());
    }
}
