//! Whole-fleet tests: real processes on loopback, driven as an operator drives them.
//!
//! `cluster` runs a fleet by `causeway dev` and reads its ready file,
//! `metrics` reads what a node counts, `logs` holds what must never stand in a log, `programs` builds the binaries.

pub mod cluster;
pub mod logs;
pub mod metrics;
pub mod programs;
