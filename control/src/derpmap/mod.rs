//! The DERP map of the fleet: a pure function ([`mod@build`]) of what Raft has, so that it is the same at every node, survives restarts, and
//! is frozen while there is no quorum.
//!
//! [`state`] is the replicated part, [`settings`] checks what an operator sets, [`keeper`] runs the grace times on the leader, [`serve`]
//! hands the newest map to the node and keeps the last one on disk, [`admin`] is the operator's side.

mod admin;
pub(crate) mod build;
pub(crate) mod keeper;
pub(crate) mod serve;
pub(crate) mod settings;
pub(crate) mod state;
