//! Whole-fleet tests: real processes on loopback, driven as an operator drives them.
//!
//! `cluster` runs a fleet by `causeway dev` and reads its ready file, `client` connects DERP clients to its nodes,
//! `proxy` cuts single node-to-node connections, `netns` makes networks with silent addresses, `metrics` reads what a node counts, `logs`
//! holds what must never stand in a log, `lone` runs single nodes with configurations of their own, `derper` runs a stock derper,
//! `programs` builds the binaries, `go` those of stock software, `files` copies and searches.

pub mod client;
pub mod cluster;
pub mod derper;
pub mod files;
pub mod go;
pub mod logs;
pub mod lone;
pub mod metrics;
pub mod netns;
pub mod programs;
pub mod proxy;
