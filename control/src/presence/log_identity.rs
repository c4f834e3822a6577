//! Whose log an owner log is.

use causeway_proto::id::{BootId, Epoch, NodeId};

/// Whose log, of which process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogIdentity {
    /// The owner.
    pub node: NodeId,
    /// Its epoch.
    pub epoch: Epoch,
    /// Its process.
    pub boot_id: BootId,
}
