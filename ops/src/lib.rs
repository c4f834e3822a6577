//! The operator's side of Causeway: the `causeway` command line, and the fleets it runs on one machine.
//!
//! `cli` is what can be typed, `command` does it, `derper` knows how stock derpers are run, `connect` reaches a node's operator API, `output` prints, and `fleet`
//! lays out, starts, watches and stops nodes as processes (shared by `causeway dev`, `causeway local` and `causeway demo`).

pub mod ca;
pub mod cli;
pub mod command;
pub mod connect;
pub mod demo;
pub mod derper;
pub mod failure;
pub mod fleet;
pub mod output;
