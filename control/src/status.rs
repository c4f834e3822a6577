//! What operators see of the control plane.

use causeway_rpc::v1;

/// Answers operators' questions about fleet and Raft from what this node knows; never waits.
#[derive(Debug, Clone)]
pub struct Status {}

impl Status {
    /// The fleet's id, empty until this node is in one.
    #[must_use]
    pub fn fleet_id(&self) -> String {
        String::new()
    }

    /// The fleet as this node sees it.
    #[must_use]
    pub fn cluster(&self) -> v1::ClusterStatus {
        v1::ClusterStatus::default()
    }

    /// All nodes, in the order of their names.
    #[must_use]
    pub fn nodes(&self) -> Vec<v1::NodeSummary> {
        Vec::new()
    }

    /// All regions, in the order of their ids.
    #[must_use]
    pub fn regions(&self) -> Vec<v1::RegionSummary> {
        Vec::new()
    }

    /// This node's part in Raft.
    #[must_use]
    pub fn raft(&self) -> v1::RaftStatus {
        v1::RaftStatus::default()
    }

    /// Why this node's control plane is not ready, in sentences; empty if it is.
    #[must_use]
    pub fn not_ready_because(&self) -> Vec<String> {
        vec!["this node is in no fleet yet".to_owned()]
    }
}
