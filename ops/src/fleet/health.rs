//! Forms a fleet through a node's operator socket and waits until every node says that it is well.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use causeway_rpc::v1;
use serde::Serialize;
use tokio::time::Instant;

use super::layout::{FleetDir, write_atomically};
use super::spec::NodeSpec;
use crate::ca;
use crate::connect::{Operator, Target, connect};
use crate::failure::Failure;

/// Most voters a fleet may have.
const VOTERS_MAX: usize = 5;
/// How long one question to a node on this machine may take.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(2);
/// How often the nodes are asked.
const ASK_INTERVAL: Duration = Duration::from_millis(50);

/// Chooses voters: the first eligible node of each region in order, as many as keep their number odd, at most 5.
#[must_use]
pub fn default_voters(nodes: &[NodeSpec]) -> Vec<String> {
    let mut regions = Vec::new();
    let mut voters = Vec::new();
    for node in nodes.iter().filter(|node| node.voter_eligible) {
        if !regions.contains(&node.region.id) {
            regions.push(node.region.id);
            voters.push(node.name.clone());
        }
    }
    let odd = voters.len().min(VOTERS_MAX);
    voters.truncate(if odd.is_multiple_of(2) { odd.saturating_sub(1) } else { odd });
    voters
}

/// How to form a fleet.
#[derive(Debug, Clone)]
pub struct Init {
    /// Names of the voters.
    pub voters: Vec<String>,
    /// Waits until so many nodes are seen.
    pub nodes: usize,
    /// Certificate of the operators' CA, DER; empty: none yet.
    pub operator_ca_der: Vec<u8>,
    /// How long it may take.
    pub wait: Duration,
}

/// Forms the fleet; one that exists is fine.
///
/// # Errors
/// What the node said, or that it does not answer.
pub async fn init(socket: PathBuf, init: Init) -> anyhow::Result<v1::InitClusterResponse> {
    let mut operator = connect(&Target::Socket(socket), init.wait + QUESTION_TIMEOUT).await?;
    let request = v1::InitClusterRequest {
        voters: init.voters,
        join_policy: "open".to_owned(),
        operator_ca_der: init.operator_ca_der.into(),
        expected_nodes: u32::try_from(init.nodes)?,
        wait_ms: u64::try_from(init.wait.as_millis())?,
    };
    let response = operator
        .init_cluster(request)
        .await
        .map_err(|status| anyhow::anyhow!("the fleet cannot be formed: {} ({:?})", status.message(), status.code()))?;
    Ok(response.into_inner())
}

/// A node to ask.
#[derive(Debug, Clone)]
pub struct Asked {
    /// Its name.
    pub name: String,
    /// Its operator socket.
    pub socket: PathBuf,
}

/// What the nodes of a fleet say together.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// What keeps the fleet from being healthy, a sentence each.
    pub problems: Vec<String>,
    /// The fleet as the first node that answered sees it.
    pub cluster: Option<v1::ClusterStatus>,
}

/// Asks every node once: is it ready, does it see a leader and all `nodes`, has it a watch stream and a link to every other?
pub async fn ask(nodes: &[Asked]) -> Report {
    let answers = futures::future::join_all(nodes.iter().map(|node| ask_one(node, nodes.len()))).await;
    let mut report = Report::default();
    for (node, answer) in nodes.iter().zip(answers) {
        match answer {
            Ok((cluster, problems)) => {
                report.cluster.get_or_insert(cluster);
                report.problems.extend(problems.into_iter().map(|problem| format!("{}: {problem}", node.name)));
            }
            Err(error) => report.problems.push(format!("{}: {error:#}", node.name)),
        }
    }
    report
}

async fn ask_one(node: &Asked, expected: usize) -> anyhow::Result<(v1::ClusterStatus, Vec<String>)> {
    let mut operator = connect(&Target::Socket(node.socket.clone()), QUESTION_TIMEOUT).await?;
    let cluster = operator.get_cluster_status(v1::GetClusterStatusRequest {}).await.map_err(said)?.into_inner();
    let status = operator.get_node_status(v1::GetNodeStatusRequest {}).await.map_err(said)?.into_inner();
    Ok((cluster.clone(), problems(&cluster, &status, expected)))
}

fn said(status: tonic::Status) -> anyhow::Error {
    anyhow::anyhow!("{} ({:?})", status.message(), status.code())
}

fn problems(cluster: &v1::ClusterStatus, status: &v1::NodeStatus, expected: usize) -> Vec<String> {
    let mut problems = cluster.problems.clone();
    problems.extend(status.not_ready_because.iter().cloned());
    if cluster.leader == 0 {
        problems.push("no leader is known".to_owned());
    }
    if cluster.nodes.len() < expected {
        problems.push(format!("{} of {expected} nodes have joined", cluster.nodes.len()));
    }
    for peer in &status.peers {
        if !peer.watch_live || !peer.link_up {
            let missing = if peer.watch_live { "packet link" } else { "watch stream" };
            problems.push(format!("no {missing} to {} yet", peer.name));
        }
    }
    if status.peers.len() + 1 < expected {
        problems.push(format!("{} of {} peers are known", status.peers.len(), expected - 1));
    }
    if problems.is_empty() && !(cluster.healthy && status.ready) {
        problems.push("not healthy, without a reason given".to_owned());
    }
    problems
}

/// Asks again and again until nothing is wrong.
///
/// # Errors
/// With everything that is still wrong when `wait` is over.
pub async fn wait_healthy(nodes: &[Asked], wait: Duration) -> anyhow::Result<v1::ClusterStatus> {
    let deadline = Instant::now() + wait;
    loop {
        let report = ask(nodes).await;
        if report.problems.is_empty()
            && let Some(cluster) = report.cluster
        {
            return Ok(cluster);
        }
        if Instant::now() >= deadline {
            bail!("the fleet is not healthy after {} s:\n  {}", wait.as_secs(), report.problems.join("\n  "));
        }
        tokio::time::sleep(ASK_INTERVAL).await;
    }
}

/// What setting the DERP map's settings changed.
#[derive(Debug, Clone, Serialize)]
pub struct MapEdited {
    /// Ids of the regions whose entries are others now.
    pub regions: Vec<u64>,
}

/// Sets how the fleet makes its DERP map, through whichever node passes it on to the leader.
///
/// # Errors
/// The settings are refused, or nobody took them within `wait`.
pub async fn set_derp_map(nodes: &[Asked], settings: v1::DerpMapSettings, wait: Duration) -> anyhow::Result<MapEdited> {
    let deadline = Instant::now() + wait;
    loop {
        let mut problems = Vec::new();
        for node in nodes {
            match set_derp_map_at(node, settings.clone()).await {
                Ok(edited) => return Ok(edited),
                Err(refused @ Failure::Usage(_)) => return Err(refused.into()),
                Err(other) => problems.push(format!("{}: {other}", node.name)),
            }
        }
        if Instant::now() >= deadline {
            bail!("no node took the settings of the DERP map within {} s:\n  {}", wait.as_secs(), problems.join("\n  "));
        }
        tokio::time::sleep(ASK_INTERVAL).await;
    }
}

async fn set_derp_map_at(node: &Asked, settings: v1::DerpMapSettings) -> Result<MapEdited, Failure> {
    let mut operator = connect(&Target::Socket(node.socket.clone()), QUESTION_TIMEOUT).await?;
    let request = v1::SetDerpMapSettingsRequest { settings: Some(settings), dry_run: false };
    let made = operator.set_derp_map_settings(request).await?.into_inner();
    Ok(MapEdited { regions: [made.edited_regions, made.added_regions, made.retired_regions].concat() })
}

/// Fetches the fleet CA's certificate from a node and writes it where operators find it.
///
/// # Errors
/// If the node has none or the file cannot be written.
pub async fn export_fleet_ca(fleet: &FleetDir, socket: PathBuf) -> anyhow::Result<()> {
    let mut operator = connect(&Target::Socket(socket), QUESTION_TIMEOUT).await?;
    let pem = fleet_ca_pem(&mut operator).await.context("the fleet CA's certificate")?;
    write_atomically(&fleet.fleet_ca(), &pem, 0o644)
}

/// The fleet CA's certificate as a node gives it, PEM.
///
/// # Errors
/// If the node has none: it is standalone.
pub async fn fleet_ca_pem(operator: &mut Operator) -> anyhow::Result<String> {
    let status = operator.get_node_status(v1::GetNodeStatusRequest {}).await.map_err(Failure::from)?.into_inner();
    if status.fleet_ca_der.is_empty() {
        bail!("the node names none: it runs standalone, without a mesh key");
    }
    Ok(ca::certificate_pem(&status.fleet_ca_der))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, region: u64, voter_eligible: bool) -> NodeSpec {
        let text = format!(
            r#"{{"name":"{name}","region":{{"id":{region},"code":"r"}},"bind":"127.0.0.1","voter_eligible":{voter_eligible}}}"#
        );
        NodeSpec::parse(&text).expect("valid")
    }

    #[test]
    fn voters_are_odd_in_number_one_per_region_and_eligible() {
        let nodes = |regions: u64| -> Vec<NodeSpec> {
            (1..=regions).flat_map(|region| [1, 2].map(|ordinal| node(&format!("r{region}-{ordinal}"), region, true))).collect()
        };
        for (regions, voters) in [(1, 1), (2, 1), (3, 3), (4, 3), (5, 5), (9, 5)] {
            assert_eq!(default_voters(&nodes(regions)).len(), voters, "{regions}");
        }
        assert_eq!(default_voters(&nodes(3)), ["r1-1", "r2-1", "r3-1"]);
        assert_eq!(default_voters(&[node("a-1", 1, false), node("a-2", 1, true)]), ["a-2"]);
        assert!(default_voters(&[]).is_empty());
    }

    #[test]
    fn everything_missing_is_said() {
        let peer =
            |name: &str, watch_live, link_up| v1::PeerStatus { name: name.to_owned(), watch_live, link_up, ..Default::default() };
        let cluster =
            v1::ClusterStatus { leader: 1, healthy: true, nodes: vec![v1::NodeSummary::default(); 3], ..Default::default() };
        let status =
            v1::NodeStatus { ready: true, peers: vec![peer("b", true, true), peer("c", true, true)], ..Default::default() };
        assert!(problems(&cluster, &status, 3).is_empty());
        assert!(problems(&v1::ClusterStatus { healthy: false, ..cluster.clone() }, &status, 3)[0].contains("not healthy"));
        assert!(problems(&v1::ClusterStatus { leader: 0, ..cluster.clone() }, &status, 3)[0].contains("leader"));
        assert!(problems(&cluster, &status, 4).iter().any(|problem| problem.contains("3 of 4")));
        let cut = v1::NodeStatus { peers: vec![peer("b", false, true), peer("c", true, false)], ..status };
        assert_eq!(problems(&cluster, &cut, 3), ["no watch stream to b yet", "no packet link to c yet"]);
    }
}
