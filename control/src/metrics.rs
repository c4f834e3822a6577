//! What the control plane counts and measures.

use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use crate::discovery::DiscoveryMetrics;
use crate::fleet::Fleet;
use crate::refusals::CallsRefused;
use crate::status::Status;
use crate::watch::WatchMetrics;

/// Metrics of watch, Raft, fleet and discovery.
#[derive(Debug, Clone)]
pub struct ControlMetrics {
    pub(crate) watch: WatchMetrics,
    pub(crate) calls_refused: CallsRefused,
    pub(crate) discovery: DiscoveryMetrics,
    pub(crate) fleet: Arc<Fleet>,
}

impl ControlMetrics {
    /// Registers everything below `causeway_watch_`, `causeway_raft_`, `causeway_fleet_` and `causeway_discovery_`.
    pub fn register(&self, registry: &mut Registry) {
        self.watch.register(registry);
        self.calls_refused.register(registry);
        self.discovery.register(registry);
        registry.register_collector(Box::new(FleetCollector { status: Status { fleet: Arc::clone(&self.fleet) } }));
    }
}

/// Reads Raft's own numbers when they are scraped: nothing is kept twice.
#[derive(Debug)]
struct FleetCollector {
    status: Status,
}

impl Collector for FleetCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let raft = self.status.raft();
        let cluster = self.status.cluster();
        let heard = cluster.nodes.iter().filter(|node| node.heard).count() as u64;
        let fenced = cluster.nodes.iter().filter(|node| node.fenced).count() as u64;
        let values: [(&str, &str, u64); 13] = [
            ("causeway_raft_term_number", "Current term", raft.term),
            ("causeway_raft_leading", "1 if this node leads", u64::from(raft.state == "leader")),
            ("causeway_raft_leader_known", "1 if a leader is known and heard", u64::from(cluster.leader != 0)),
            ("causeway_raft_quorum", "1 if a majority of voters is heard and a leader is known", u64::from(cluster.quorum)),
            ("causeway_raft_stopped", "1 if this node left Raft after a failure", u64::from(!raft.stopped_because.is_empty())),
            ("causeway_raft_last_log_index_number", "Index of the last entry stored", raft.last_log_index),
            ("causeway_raft_committed_index_number", "Index of the last entry known committed", raft.committed_index),
            ("causeway_raft_applied_index_number", "Index of the last entry applied", raft.applied_index),
            ("causeway_raft_snapshot_index_number", "Index of the last entry in the snapshot", raft.snapshot_index),
            ("causeway_raft_quorum_ack_milliseconds", "On the leader: since a quorum acknowledged it", raft.quorum_ack_ms),
            ("causeway_fleet_nodes", "Nodes known", cluster.nodes.len() as u64),
            ("causeway_fleet_nodes_heard", "Nodes heard here", heard),
            ("causeway_fleet_nodes_fenced", "Nodes taken for dead by the fleet", fenced),
        ];
        for (name, help, value) in values {
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            let metric = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
            gauge.encode(metric)?;
        }
        Ok(())
    }
}
