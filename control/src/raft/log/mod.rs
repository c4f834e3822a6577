//! The durable Raft log.

mod disk;

pub use disk::LogError;
pub(crate) use disk::{Appended, DiskLog};
