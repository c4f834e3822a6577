//! Raft between nodes, over gRPC on the mesh port.

mod client;
mod service;

pub(crate) use client::Network;
pub(crate) use service::{IsNewest, RaftService};
