//! `causeway node` and `causeway region`.

use causeway_rpc::v1;
use serde::Serialize;

use super::{Names, node_id_text};
use crate::cli::{NodeCommand, RegionCommand};
use crate::connect::Settings;
use crate::failure::Failure;
use crate::output::{Output, Table, count, milliseconds, yes_no};

/// A node as lists show it.
#[derive(Debug, Serialize)]
pub(super) struct NodeView {
    name: String,
    node_id: String,
    region: String,
    region_id: u64,
    mesh_addr: String,
    host_name: String,
    ipv4: String,
    ipv6: String,
    derp_port: u32,
    stun_port: i32,
    derp_public_key: String,
    version: String,
    voter_eligible: bool,
    raft_role: String,
    epoch: u64,
    heard: bool,
    fenced: bool,
    claims: u64,
}

impl NodeView {
    pub(super) fn new(summary: v1::NodeSummary) -> Self {
        let record = summary.node.unwrap_or_default();
        let region = record.region.unwrap_or_default();
        let relay = record.relay.unwrap_or_default();
        Self {
            name: record.name,
            node_id: node_id_text(record.node_id),
            region: region.code,
            region_id: region.id,
            mesh_addr: record.mesh_addr,
            host_name: relay.host_name,
            ipv4: relay.ipv4,
            ipv6: relay.ipv6,
            derp_port: relay.derp_port,
            stun_port: relay.stun_port,
            derp_public_key: data_encoding::HEXLOWER.encode(&relay.derp_public_key),
            version: record.version,
            voter_eligible: record.voter_eligible,
            raft_role: summary.raft_role,
            epoch: summary.epoch,
            heard: summary.heard,
            fenced: summary.fenced,
            claims: summary.claims,
        }
    }

    fn text(&self) -> String {
        let mut properties = Table::properties();
        properties
            .property("name", &*self.name)
            .property("id", &*self.node_id)
            .property("region", format!("{} ({})", self.region, self.region_id))
            .property("Raft", &*self.raft_role)
            .property("heard", yes_no(self.heard))
            .property("fenced", yes_no(self.fenced))
            .property("epoch", self.epoch.to_string())
            .property("claims", count(self.claims))
            .property("mesh", &*self.mesh_addr)
            .property("DERP", format!("{} port {}", self.address(), self.derp_port))
            .property("DERP key", &*self.derp_public_key)
            .property("version", &*self.version);
        properties.to_string()
    }

    fn address(&self) -> String {
        let parts = [&self.host_name, &self.ipv4, &self.ipv6];
        parts.into_iter().filter(|part| !part.is_empty()).cloned().collect::<Vec<_>>().join(" ")
    }
}

pub(super) fn node_table(nodes: &[NodeView]) -> Table {
    let mut table = Table::new(["NODE", "ID", "REGION", "RAFT", "HEARD", "FENCED", "EPOCH", "CLAIMS", "MESH", "VERSION"]);
    for node in nodes {
        table.row([
            node.name.clone(),
            node.node_id.clone(),
            format!("{} ({})", node.region, node.region_id),
            node.raft_role.clone(),
            yes_no(node.heard),
            yes_no(node.fenced),
            node.epoch.to_string(),
            count(node.claims),
            node.mesh_addr.clone(),
            node.version.clone(),
        ]);
    }
    table
}

/// The node asked, as it describes itself.
#[derive(Serialize)]
struct OwnView {
    #[serde(flatten)]
    node: NodeView,
    boot_id: String,
    fleet_id: String,
    pid: u32,
    uptime_ms: u64,
    ready: bool,
    not_ready_because: Vec<String>,
    clients: u64,
    clients_home: u64,
    listeners: ListenersView,
    peers: Vec<PeerView>,
}

#[derive(Serialize)]
struct ListenersView {
    derp: String,
    plain_http: String,
    stun: String,
    mesh: String,
    operator: String,
    operator_socket: String,
    metrics: String,
}

#[derive(Serialize)]
struct PeerView {
    name: String,
    node_id: String,
    watch_live: bool,
    link_up: bool,
    last_heard_ms: u64,
    known_seq: u64,
    last_error: String,
}

impl OwnView {
    fn new(status: v1::NodeStatus, summary: Option<v1::NodeSummary>) -> Self {
        let listeners = status.listeners.unwrap_or_default();
        let summary = summary.unwrap_or(v1::NodeSummary { heard: true, epoch: status.epoch, ..Default::default() });
        let peer = |peer: v1::PeerStatus| PeerView {
            name: peer.name,
            node_id: node_id_text(peer.node_id),
            watch_live: peer.watch_live,
            link_up: peer.link_up,
            last_heard_ms: peer.last_heard_ms,
            known_seq: peer.known_seq,
            last_error: peer.last_error,
        };
        Self {
            node: NodeView::new(v1::NodeSummary { node: status.node, ..summary }),
            boot_id: status.boot_id,
            fleet_id: status.fleet_id,
            pid: status.pid,
            uptime_ms: status.uptime_ms,
            ready: status.ready,
            not_ready_because: status.not_ready_because,
            clients: status.clients,
            clients_home: status.clients_home,
            listeners: ListenersView {
                derp: listeners.derp,
                plain_http: listeners.plain_http,
                stun: listeners.stun,
                mesh: listeners.mesh,
                operator: listeners.operator,
                operator_socket: listeners.operator_socket,
                metrics: listeners.metrics,
            },
            peers: status.peers.into_iter().map(peer).collect(),
        }
    }

    fn text(&self) -> String {
        let mut properties = Table::properties();
        properties
            .property("ready", yes_no(self.ready))
            .property("process", format!("{}, up {}", self.pid, milliseconds(self.uptime_ms)))
            .property("fleet", &*self.fleet_id)
            .property("clients", format!("{} ({} at home here)", count(self.clients), count(self.clients_home)))
            .property("DERP port", &*self.listeners.derp)
            .property("plain HTTP", &*self.listeners.plain_http)
            .property("STUN", &*self.listeners.stun)
            .property("metrics", &*self.listeners.metrics)
            .property("operator", &*self.listeners.operator)
            .property("socket", &*self.listeners.operator_socket);
        for why in &self.not_ready_because {
            properties.property("not ready", &**why);
        }
        let mut peers = Table::new(["PEER", "WATCH", "LINK", "HEARD", "LOG", "LAST ERROR"]);
        for peer in &self.peers {
            peers.row([
                peer.name.clone(),
                if peer.watch_live { "live" } else { "silent" }.to_owned(),
                if peer.link_up { "up" } else { "down" }.to_owned(),
                format!("{} ago", milliseconds(peer.last_heard_ms)),
                peer.known_seq.to_string(),
                peer.last_error.clone(),
            ]);
        }
        format!("{}{properties}\n{peers}", self.node.text())
    }
}

#[derive(Serialize)]
struct Evicted {
    name: String,
    node_id: String,
}

/// What became of a node's configuration.
#[derive(Serialize)]
struct ReloadView {
    name: String,
    node_id: String,
    /// Fields that were taken up.
    changed: Vec<String>,
    /// Why nothing was.
    problems: Vec<ProblemView>,
    file: String,
}

#[derive(Serialize)]
struct ProblemView {
    field: String,
    message: String,
}

impl ReloadView {
    fn new(outcome: v1::ReloadOutcome, names: &Names) -> Self {
        let problem = |problem: v1::ConfigurationProblem| ProblemView { field: problem.field, message: problem.message };
        Self {
            name: names.of(outcome.node_id),
            node_id: node_id_text(outcome.node_id),
            changed: outcome.changed,
            problems: outcome.problems.into_iter().map(problem).collect(),
            file: outcome.file,
        }
    }

    fn text(&self) -> String {
        let name = &self.name;
        match (self.problems.as_slice(), self.changed.as_slice()) {
            ([], []) => format!("{name}: the configuration has not changed\n"),
            ([], changed) => format!("{name} took up {}\n", changed.join(", ")),
            (problems, _) => {
                let lines = problems.iter().map(|problem| match problem.field.as_str() {
                    "" => format!("{}: {}\n", self.file, problem.message),
                    field => format!("{}: {field}: {}\n", self.file, problem.message),
                });
                format!("{}{name} takes up nothing: the configuration in force goes on\n", lines.collect::<String>())
            }
        }
    }
}

/// Runs `causeway node ...`.
///
/// # Errors
/// See [`Failure`].
pub async fn run(command: NodeCommand, settings: &Settings, output: &mut Output<'_>) -> Result<(), Failure> {
    let mut operator = settings.connect().await?;
    let names = Names::fetch(&mut operator).await?;
    match command {
        NodeCommand::Ls => {
            let nodes: Vec<NodeView> = names.0.into_iter().map(NodeView::new).collect();
            Ok(output.list(&nodes, node_table)?)
        }
        NodeCommand::Get { node: Some(node) } => {
            let view = NodeView::new(names.find(&node)?.clone());
            Ok(output.one(&view, || view.text())?)
        }
        NodeCommand::Reload { node } => {
            let request = v1::ReloadConfigurationRequest { node: node.unwrap_or_default() };
            let view = ReloadView::new(operator.reload_configuration(request).await?.into_inner(), &names);
            output.one(&view, || view.text())?;
            match view.problems.as_slice() {
                [] => Ok(()),
                _ => Err(Failure::Failed(anyhow::anyhow!("{} refuses its configuration", view.name))),
            }
        }
        NodeCommand::Evict { node } => {
            let record = names.find(&node)?.node.clone().unwrap_or_default();
            let asked = v1::EvictNodeRequest { node: node_id_text(record.node_id) };
            let evicted =
                Evicted { name: record.name, node_id: node_id_text(operator.evict_node(asked).await?.get_ref().node_id) };
            Ok(output.one(&evicted, || format!("{} ({}) is evicted\n", evicted.name, evicted.node_id))?)
        }
        NodeCommand::Get { node: None } => {
            let status = operator.get_node_status(v1::GetNodeStatusRequest {}).await?.into_inner();
            let own_id = status.node.as_ref().map(|record| record.node_id);
            let is_own = |summary: &v1::NodeSummary| summary.node.as_ref().map(|record| record.node_id) == own_id;
            let view = OwnView::new(status, names.0.into_iter().find(is_own));
            Ok(output.one(&view, || view.text())?)
        }
    }
}

#[derive(Serialize)]
struct RegionView {
    id: u64,
    code: String,
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    latitude: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    longitude: Option<f64>,
    nodes: u32,
    nodes_heard: u32,
    claims: u64,
}

/// Runs `causeway region ...`.
///
/// # Errors
/// See [`Failure`].
pub async fn run_region(command: RegionCommand, settings: &Settings, output: &mut Output<'_>) -> Result<(), Failure> {
    let RegionCommand::Ls = command;
    let mut operator = settings.connect().await?;
    let regions = operator.list_regions(v1::ListRegionsRequest {}).await?.into_inner().regions;
    let view = |summary: v1::RegionSummary| {
        let region = summary.region.unwrap_or_default();
        RegionView {
            id: region.id,
            code: region.code,
            name: region.name,
            latitude: region.latitude,
            longitude: region.longitude,
            nodes: summary.nodes,
            nodes_heard: summary.nodes_heard,
            claims: summary.claims,
        }
    };
    let regions: Vec<RegionView> = regions.into_iter().map(view).collect();
    Ok(output.list(&regions, |regions| {
        let mut table = Table::new(["REGION", "ID", "NAME", "NODES", "HEARD", "CLAIMS"]);
        for region in regions {
            table.row([
                region.code.clone(),
                region.id.to_string(),
                region.name.clone(),
                region.nodes.to_string(),
                region.nodes_heard.to_string(),
                count(region.claims),
            ]);
        }
        table
    })?)
}
