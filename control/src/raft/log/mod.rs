//! The durable Raft log.

mod disk;

pub(crate) use disk::DiskLog;
pub use disk::LogError;
