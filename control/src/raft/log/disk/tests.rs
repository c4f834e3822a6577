#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;

use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use tempfile::TempDir;

use super::*;
use crate::presence::PresenceView;
use crate::raft::snapshot::SnapshotStore;
use crate::raft::state_machine::StateMachine;
use crate::raft::types::Command;
use causeway_proto::id::{NodeId, RegionId};
use openraft::EntryPayload;
use openraft::type_config::TypeConfigExt;

struct Builder;

impl StoreBuilder<TypeConfig, DiskLog, StateMachine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, DiskLog, StateMachine), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().unwrap();
        let view = PresenceView::new(NodeId(1), RegionId(1));
        let machine = StateMachine::new(Arc::new(view), SnapshotStore::open(dir.path().join("snapshot")).unwrap());
        let log = DiskLog::open(&dir.path().join("log")).unwrap();
        Ok((dir, log, machine))
    }
}

#[tokio::test]
async fn openrafts_own_suite_passes() {
    Suite::test_all(Builder).await.unwrap();
}

fn log_id(term: u64, index: u64) -> LogId {
    LogId { leader_id: LeaderId { term, node_id: 1 }, index }
}

fn entry(index: u64) -> Entry {
    Entry { log_id: log_id(1, index), payload: EntryPayload::Normal(Command(vec![7; 100].into())) }
}

async fn append(log: &mut DiskLog, entries: impl IntoIterator<Item = Entry>) {
    let (done, flushed) = TypeConfig::oneshot();
    let entries: Vec<_> = entries.into_iter().collect();
    log.append(entries, IOFlushed::signal(done)).await.unwrap();
    flushed.await.unwrap().unwrap();
}

fn wal_file(dir: &Path) -> PathBuf {
    let mut files: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "wal"));
    files.sort();
    files.pop().unwrap()
}

async fn filled(dir: &Path) -> PathBuf {
    let mut log = DiskLog::open(dir).unwrap();
    log.save_vote(&Vote { leader_id: LeaderId { term: 1, node_id: 1 }, committed: true }).await.unwrap();
    append(&mut log, (0..20).map(entry)).await;
    drop(log);
    wal_file(dir)
}

async fn last_index(dir: &Path) -> Option<u64> {
    DiskLog::open(dir).unwrap().get_log_state().await.unwrap().last_log_id.map(|id| id.index)
}

#[tokio::test]
async fn everything_is_there_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path()).await;
    let mut log = DiskLog::open(dir.path()).unwrap();
    assert_eq!(log.try_get_log_entries(3..5).await.unwrap(), vec![entry(3), entry(4)]);
    assert!(log.read_vote().await.unwrap().is_some_and(|vote| vote.committed));
    log.save_committed(Some(log_id(1, 9))).await.unwrap();
    log.save_committed(Some(log_id(1, 99))).await.unwrap();
    log.purge(log_id(1, 5)).await.unwrap();
    log.truncate_after(Some(log_id(1, 30))).await.unwrap();
    log.truncate_after(Some(log_id(1, 15))).await.unwrap();
    append(&mut log, [entry(16)]).await;
    drop(log);
    let mut log = DiskLog::open(dir.path()).unwrap();
    let state = log.get_log_state().await.unwrap();
    assert_eq!((state.last_purged_log_id, state.last_log_id), (Some(log_id(1, 5)), Some(log_id(1, 16))));
    assert_eq!(log.read_committed().await.unwrap(), Some(log_id(1, 9)));
}

#[tokio::test]
async fn what_was_appended_before_a_restart_counts() {
    let dir = tempfile::tempdir().unwrap();
    let file = filled(dir.path()).await;
    let mut log = DiskLog::open(dir.path()).unwrap();
    let before = log.appended();
    assert_eq!(before, Appended { bytes: fs::metadata(file).unwrap().len(), index: 19 });
    append(&mut log, [entry(20)]).await;
    let after = log.appended();
    assert!(after.bytes > before.bytes + 100 && after.index == 20, "{before:?} {after:?}");
}

#[tokio::test]
async fn a_torn_or_zeroed_tail_is_cut() {
    let dir = tempfile::tempdir().unwrap();
    let file = filled(dir.path()).await;
    let whole = fs::read(&file).unwrap();
    fs::write(&file, &whole[..whole.len() - 20]).unwrap();
    assert_eq!(last_index(dir.path()).await, Some(18));

    let dir = tempfile::tempdir().unwrap();
    let file = filled(dir.path()).await;
    let mut zeroed = fs::read(&file).unwrap();
    zeroed.extend([0; 500]);
    fs::write(&file, &zeroed).unwrap();
    assert_eq!(last_index(dir.path()).await, Some(19));
}

#[tokio::test]
async fn damage_before_the_tail_is_refused_and_names_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = filled(dir.path()).await;
    let whole = fs::read(&file).unwrap();
    for at in [whole.len() / 3, whole.len() / 2, whole.len() / 2 + 1, whole.len() / 2 + 37, whole.len() / 2 + 61] {
        let mut bent = whole.clone();
        bent[at] ^= 0x10;
        fs::write(&file, &bent).unwrap();
        let error = DiskLog::open(dir.path()).expect_err("damaged");
        assert!(matches!(error, LogError::Damaged { .. }), "byte {at}: {error}");
        assert!(error.to_string().contains(file.file_name().unwrap().to_str().unwrap()), "{error}");
        assert_eq!(fs::read(&file).unwrap(), bent, "nothing was changed");
    }
}

#[tokio::test]
async fn a_length_that_was_bent_is_damage_and_not_a_torn_tail() {
    let dir = tempfile::tempdir().unwrap();
    let file = filled(dir.path()).await;
    let whole = fs::read(&file).unwrap();
    // Every single byte of a record in the middle, its length fields included.
    let middle = whole.len() / 2;
    for at in middle..middle + 170 {
        let mut bent = whole.clone();
        bent[at] ^= 0x01;
        fs::write(&file, &bent).unwrap();
        assert!(DiskLog::open(dir.path()).is_err(), "byte {at}");
    }
}
