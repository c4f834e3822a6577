//! Limits of connections and rates: who may still connect, who may still send.

pub mod bucket;
pub mod connections;
