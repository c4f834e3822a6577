//! Log, vote and commit marker on disk, on `raft-log`: one checksummed write-ahead log per group with group commit.
//!
//! A torn tail (a record cut short, or zeros where it should be) is cut off at start. Damage before the tail refuses to open.
//! The first failed write or sync ends this node's part in Raft; nothing is retried.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use causeway_rpc::v1;
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::{LogState, OptionalSend, RaftLogReader};
use parking_lot::RwLock;
use raft_log::api::raft_log_writer::RaftLogWriter;
use raft_log::codeq::{Decode, Encode};
use tokio::sync::oneshot;

use crate::data_dir::sync_dir;
use crate::raft::codec::{payload_from, payload_to};
use crate::raft::types::{Entry, LeaderId, LogId, TypeConfig, Vote};

/// Appends wait so long for company before a sync; nearly zero would mean one sync per append.
const FLUSH_BATCH_WAIT: Duration = Duration::from_micros(150);
/// Disk is freed in whole chunks.
const CHUNK_SIZE_MAX: usize = 64 << 20;
/// Entries kept in memory for followers.
const LOG_CACHE_BYTES: usize = 64 << 20;
/// For reading a chunk at start.
const READ_BUFFER_BYTES: usize = 1 << 20;
/// Bytes of entries per read for replication; one entry is always returned.
const READ_BYTES_MAX: u64 = 1 << 20;
/// A payload longer than this was never written by us.
const PAYLOAD_BYTES_MAX: u32 = 64 << 20;

/// Why the log cannot be opened. Names the file.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The directory or a file cannot be used.
    #[error("raft log {path}: {source}")]
    Io {
        /// The directory or file.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// A record before the tail is damaged.
    #[error(
        "raft log file {path} is damaged ({source}): this node cannot vote with it. Nothing was changed. If the other voters are healthy, move the data directory away and start as a new node; otherwise restore the file"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found.
        source: io::Error,
    },
}

/// How far the log was appended, as of a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Appended {
    /// Bytes that the log's files had when the process started, and of the entries appended since then.
    pub(crate) bytes: u64,
    /// The last index; entries of all those bytes are at most there.
    pub(crate) index: u64,
}

/// A group's log. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct DiskLog {
    log: Arc<RwLock<raft_log::RaftLog<LogTypes>>>,
    appended_bytes: Arc<AtomicU64>,
}

impl DiskLog {
    /// Opens or makes the log in `dir`, cutting off a torn tail.
    ///
    /// # Errors
    /// [`LogError`], naming the file.
    pub(crate) fn open(dir: &Path) -> Result<Self, LogError> {
        let io_error = |source| LogError::Io { path: dir.to_owned(), source };
        std::fs::create_dir_all(dir).map_err(io_error)?;
        let mut config = raft_log::Config::new(dir.display());
        config.wal.flush_batch_wait = Some(FLUSH_BATCH_WAIT);
        config.wal.chunk_max_size = Some(CHUNK_SIZE_MAX);
        config.wal.read_buffer_size = Some(READ_BUFFER_BYTES);
        config.log_cache_capacity = Some(LOG_CACHE_BYTES);
        let log = raft_log::RaftLog::open(Arc::new(config)).map_err(|source| explain(dir, source))?;
        sync_dir(dir).map_err(io_error)?;
        let appended_bytes = Arc::new(AtomicU64::new(files_bytes(dir).map_err(io_error)?));
        Ok(Self { log: Arc::new(RwLock::new(log)), appended_bytes })
    }

    /// How far the log is appended now.
    pub(crate) fn appended(&self) -> Appended {
        let log = self.log.read();
        let index = log.log_state().last().map_or(0, |id| id.index);
        Appended { bytes: self.appended_bytes.load(Ordering::Relaxed), index }
    }

    fn write<T>(&self, work: impl FnOnce(&mut raft_log::RaftLog<LogTypes>) -> Result<T, io::Error>) -> Result<T, io::Error> {
        let mut log = self.log.write();
        work(&mut log).map_err(|error| first_failure(&log, error))
    }

    fn read_entries(&self, start: u64, end: u64, bytes_max: u64) -> Result<Vec<Entry>, io::Error> {
        let log = self.log.read();
        let mut entries = Vec::new();
        let mut bytes = 0;
        for item in log.read(start, end) {
            let (log_id, payload) = item?;
            bytes += payload.0.len() as u64;
            if bytes > bytes_max && !entries.is_empty() {
                break;
            }
            entries.push(Entry { log_id: log_id.into(), payload: payload.decode()? });
        }
        Ok(entries)
    }
}

fn files_bytes(dir: &Path) -> io::Result<u64> {
    std::fs::read_dir(dir)?.map(|entry| Ok(entry?.metadata()?.len())).sum()
}

/// The failure that ended the library's writer, if it has ended: whoever writes after that is told of a closed channel only.
fn first_failure(log: &raft_log::RaftLog<LogTypes>, error: io::Error) -> io::Error {
    log.wait_worker_idle().err().unwrap_or(error)
}

/// Tells damage from other failures and finds the file: the library names the chunk in its message only.
fn explain(dir: &Path, source: io::Error) -> LogError {
    let message = source.to_string();
    let named = message.split_once("ChunkId(").and_then(|(_, rest)| rest.split_once(')')).map(|(chunk, _)| chunk);
    let path = match named {
        Some(chunk) => dir.join(format!("r-{chunk}.wal")),
        None => dir.to_owned(),
    };
    match source.kind() {
        io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput | io::ErrorKind::UnexpectedEof => {
            LogError::Damaged { path, source }
        }
        _ => LogError::Io { path, source },
    }
}

impl RaftLogReader<TypeConfig> for DiskLog {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        let start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(start) => start.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(end) => end.saturating_add(1),
            Bound::Excluded(end) => *end,
            Bound::Unbounded => u64::MAX,
        };
        if start >= end {
            return Ok(Vec::new());
        }
        self.read_entries(start, end, u64::MAX)
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.log.read().log_state().vote().map(|vote| (*vote).into()))
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        if start >= end {
            return Ok(Vec::new());
        }
        self.read_entries(start, end, READ_BYTES_MAX)
    }
}

impl RaftLogStorage<TypeConfig> for DiskLog {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let log = self.log.read();
        let state = log.log_state();
        let last_purged_log_id = state.purged().map(|id| (*id).into());
        Ok(LogState { last_purged_log_id, last_log_id: state.last().map(|id| (*id).into()) })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let (done, flushed) = oneshot::channel();
        self.write(|log| {
            log.save_vote((*vote).into())?;
            log.flush(true, Some(Flushed::Vote(done)))
        })?;
        let gone = |_| first_failure(&self.log.read(), io::Error::other("the log's writer is gone"));
        flushed.await.map_err(gone)?
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        let Some(committed) = committed.map(StoredLogId::from) else { return Ok(()) };
        self.write(|log| {
            // A marker beyond the log or behind the last one tells nothing; the library refuses it.
            let state = log.log_state();
            if Some(&committed) > state.last() || Some(&committed) <= state.committed() {
                return Ok(());
            }
            log.commit(committed)?;
            // Not synced: losing the marker only costs a replay.
            log.flush(false, None)
        })
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.log.read().log_state().committed().map(|id| (*id).into()))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut bytes = 0;
        let stored: Vec<_> = entries
            .into_iter()
            .map(|entry| {
                let payload = StoredPayload::encode(&entry.payload);
                bytes += payload.0.len() as u64;
                (StoredLogId::from(entry.log_id), payload)
            })
            .collect();
        self.write(|log| {
            log.append(stored)?;
            self.appended_bytes.fetch_add(bytes, Ordering::Relaxed);
            log.flush(true, Some(Flushed::Entries(callback)))
        })
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> Result<(), io::Error> {
        self.write(|log| {
            let state = log.log_state();
            let purged_next = state.purged().map_or(0, |id| id.index + 1);
            let next = last_log_id.map_or(0, |id| id.index + 1).max(purged_next);
            if next >= state.last().map_or(0, |id| id.index + 1) {
                return Ok(());
            }
            log.truncate(next)?;
            log.flush(true, None)
        })
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), io::Error> {
        self.write(|log| {
            log.purge(log_id.into())?;
            // Chunks are removed only after a synced flush.
            log.flush(true, None)
        })
    }
}

/// Told when bytes are on disk, or not.
enum Flushed {
    Vote(oneshot::Sender<Result<(), io::Error>>),
    Entries(IOFlushed<TypeConfig>),
}

impl raft_log::Callback for Flushed {
    fn send(self, result: Result<(), io::Error>) {
        match self {
            // A receiver that is gone no longer wants to know.
            Self::Vote(done) => drop(done.send(result)),
            Self::Entries(callback) => callback.io_completed(result),
        }
    }
}

#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct LogTypes;

impl raft_log::Types for LogTypes {
    type LogId = StoredLogId;
    type LogPayload = StoredPayload;
    type Vote = StoredVote;
    type Callback = Flushed;
    type UserData = u64;

    fn log_index(log_id: &StoredLogId) -> u64 {
        log_id.index
    }

    fn payload_size(payload: &StoredPayload) -> u64 {
        payload.0.len() as u64
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct StoredLogId {
    term: u64,
    node_id: u64,
    index: u64,
}

impl From<LogId> for StoredLogId {
    fn from(id: LogId) -> Self {
        Self { term: id.leader_id.term, node_id: id.leader_id.node_id, index: id.index }
    }
}

impl From<StoredLogId> for LogId {
    fn from(id: StoredLogId) -> Self {
        Self { leader_id: LeaderId { term: id.term, node_id: id.node_id }, index: id.index }
    }
}

impl Encode for StoredLogId {
    fn encode<W: io::Write>(&self, mut w: W) -> Result<usize, io::Error> {
        Ok(self.term.encode(&mut w)? + self.node_id.encode(&mut w)? + self.index.encode(&mut w)?)
    }
}

impl Decode for StoredLogId {
    fn decode<R: io::Read>(mut r: R) -> Result<Self, io::Error> {
        Ok(Self { term: u64::decode(&mut r)?, node_id: u64::decode(&mut r)?, index: u64::decode(&mut r)? })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct StoredVote {
    term: u64,
    node_id: u64,
    committed: bool,
}

impl From<Vote> for StoredVote {
    fn from(vote: Vote) -> Self {
        Self { term: vote.leader_id.term, node_id: vote.leader_id.node_id, committed: vote.committed }
    }
}

impl From<StoredVote> for Vote {
    fn from(vote: StoredVote) -> Self {
        Self { leader_id: LeaderId { term: vote.term, node_id: vote.node_id }, committed: vote.committed }
    }
}

impl Encode for StoredVote {
    fn encode<W: io::Write>(&self, mut w: W) -> Result<usize, io::Error> {
        Ok(self.term.encode(&mut w)? + self.node_id.encode(&mut w)? + u8::from(self.committed).encode(&mut w)?)
    }
}

impl Decode for StoredVote {
    fn decode<R: io::Read>(mut r: R) -> Result<Self, io::Error> {
        Ok(Self { term: u64::decode(&mut r)?, node_id: u64::decode(&mut r)?, committed: u8::decode(&mut r)? != 0 })
    }
}

/// An encoded [`v1::RaftPayload`].
#[derive(Debug, Clone)]
struct StoredPayload(Bytes);

impl StoredPayload {
    fn encode(payload: &crate::raft::types::Payload) -> Self {
        Self(prost::Message::encode_to_vec(&payload_to(payload)).into())
    }

    fn decode(self) -> Result<crate::raft::types::Payload, io::Error> {
        let invalid = |error: String| io::Error::new(io::ErrorKind::InvalidData, error);
        let payload = <v1::RaftPayload as prost::Message>::decode(self.0).map_err(|error| invalid(error.to_string()))?;
        payload_from(payload).map_err(|error| invalid(error.to_string()))
    }
}

impl Encode for StoredPayload {
    fn encode<W: io::Write>(&self, mut w: W) -> Result<usize, io::Error> {
        let length = u32::try_from(self.0.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        // The length has a checksum of its own: a flipped bit in it must not look like a record that was cut short.
        let n = length.encode(&mut w)? + crc32c::crc32c(&length.to_be_bytes()).encode(&mut w)?;
        w.write_all(&self.0)?;
        Ok(n + self.0.len())
    }
}

impl Decode for StoredPayload {
    fn decode<R: io::Read>(mut r: R) -> Result<Self, io::Error> {
        let (length, checksum) = (u32::decode(&mut r)?, u32::decode(&mut r)?);
        if checksum != crc32c::crc32c(&length.to_be_bytes()) || length > PAYLOAD_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the length of a payload is damaged"));
        }
        let mut bytes = Vec::new();
        io::Read::read_to_end(&mut io::Read::take(&mut r, length.into()), &mut bytes)?;
        if bytes.len() != length as usize {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(Self(bytes.into()))
    }
}

#[cfg(test)]
mod tests;
