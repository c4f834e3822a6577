//! Fleets of `causewayd` processes on one machine: what `causeway dev`, `causeway local` and `causeway demo` share.
//!
//! [`layout`] says where files are, [`spec`] what a node is told, [`prepare`] makes both exist, [`process`] starts, knows and ends
//! processes, [`leash`] ties their life to somebody else's, [`node`] puts these together for one node, [`ready`] is what the running
//! fleet tells others, [`sweeper`] takes all down, and [`health`] forms the fleet and waits until it is well.

pub mod dev;
pub mod health;
pub mod layout;
pub mod leash;
pub mod local;
pub mod node;
pub mod prepare;
pub mod process;
pub mod progress;
pub mod ready;
pub mod spec;
pub mod sweeper;
