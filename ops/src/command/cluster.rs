//! `causeway cluster`: forming a fleet, and how it is.

use std::time::Duration;

use causeway_rpc::v1;
use serde::Serialize;
use tokio::time::Instant;

use super::node::{NodeView, node_table};
use super::{Names, node_id_text};
use crate::ca;
use crate::cli::{ClusterCommand, JoinPolicy};
use crate::connect::{Operator, Settings};
use crate::failure::Failure;
use crate::fleet::health;
use crate::output::{Output, Table, count, yes_no};

/// How often `cluster status --wait` asks.
const ASK_INTERVAL: Duration = Duration::from_millis(200);

#[derive(Serialize)]
struct Formed {
    fleet_id: String,
    already: bool,
    voters: Vec<String>,
}

#[derive(Serialize)]
struct Status {
    fleet_id: String,
    healthy: bool,
    problems: Vec<String>,
    leader: String,
    leader_id: String,
    term: u64,
    quorum: bool,
    voters: Vec<String>,
    voters_unreachable: Vec<String>,
    join_policy: String,
    clients: u64,
    nodes: Vec<NodeView>,
}

impl Status {
    async fn ask(operator: &mut Operator) -> Result<Self, Failure> {
        let status = operator.get_cluster_status(v1::GetClusterStatusRequest {}).await?.into_inner();
        let names = Names(status.nodes);
        Ok(Self {
            fleet_id: status.fleet_id,
            healthy: status.healthy,
            problems: status.problems,
            leader: names.of(status.leader),
            leader_id: node_id_text(status.leader),
            term: status.term,
            quorum: status.quorum,
            voters: status.voters.iter().map(|&id| names.of(id)).collect(),
            voters_unreachable: status.voters_unreachable.iter().map(|&id| names.of(id)).collect(),
            join_policy: status.join_policy,
            clients: status.clients,
            nodes: names.0.into_iter().map(NodeView::new).collect(),
        })
    }

    fn text(&self) -> String {
        let mut properties = Table::properties();
        properties
            .property("fleet", if self.fleet_id.is_empty() { "not formed: `causeway cluster init`" } else { &*self.fleet_id })
            .property("healthy", yes_no(self.healthy))
            .property("leader", format!("{} (term {})", if self.leader.is_empty() { "none" } else { &*self.leader }, self.term))
            .property("quorum", yes_no(self.quorum))
            .property("voters", self.voters.join(", "))
            .property("joining", &*self.join_policy)
            .property("clients", count(self.clients));
        if !self.voters_unreachable.is_empty() {
            properties.property("lost voters", self.voters_unreachable.join(", "));
        }
        for problem in &self.problems {
            properties.property("problem", &**problem);
        }
        format!("{properties}\n{}", node_table(&self.nodes))
    }
}

/// Runs `causeway cluster ...`.
///
/// # Errors
/// See [`Failure`].
pub async fn run(command: ClusterCommand, settings: &Settings, output: &mut Output<'_>) -> Result<(), Failure> {
    match command {
        ClusterCommand::Init { voters, join, operator_ca, expect } => {
            let operator_ca_der = match operator_ca {
                None => bytes::Bytes::new(),
                Some(file) => {
                    let der = ca::read_certificate(&file).map_err(|error| Failure::Usage(format!("--operator-ca {error:#}")))?;
                    bytes::Bytes::copy_from_slice(&der)
                }
            };
            let join_policy = match join {
                JoinPolicy::Open => "open",
                JoinPolicy::Closed => "closed",
            };
            let request = v1::InitClusterRequest {
                voters,
                join_policy: join_policy.to_owned(),
                operator_ca_der,
                expected_nodes: expect,
                // The node gives up a little before the call does, so that its reason arrives.
                wait_ms: u64::try_from(settings.timeout.mul_f32(0.9).as_millis()).unwrap_or(u64::MAX),
            };
            let mut operator = settings.connect().await?;
            let response = operator.init_cluster(request).await?.into_inner();
            let names = Names::fetch(&mut operator).await?;
            let voters = response.voters.iter().map(|&id| names.of(id)).collect();
            let formed = Formed { fleet_id: response.fleet_id, already: response.already, voters };
            Ok(output.one(&formed, || {
                let how = if formed.already { "existed already" } else { "is formed" };
                format!("fleet {} {how}, voters {}", formed.fleet_id, formed.voters.join(", "))
            })?)
        }
        ClusterCommand::Status { wait } => status(wait, settings, output).await,
        ClusterCommand::Ca => {
            let pem = health::fleet_ca_pem(&mut settings.connect().await?).await?;
            Ok(output.raw(pem.as_bytes())?)
        }
    }
}

async fn status(wait: Option<Duration>, settings: &Settings, output: &mut Output<'_>) -> Result<(), Failure> {
    let deadline = Instant::now() + wait.unwrap_or_default();
    let mut operator = settings.connect().await?;
    let status = loop {
        let status = Status::ask(&mut operator).await?;
        if status.healthy || Instant::now() >= deadline {
            break status;
        }
        tokio::time::sleep(ASK_INTERVAL).await;
    };
    output.one(&status, || status.text())?;
    if wait.is_some() && !status.healthy {
        return Err(Failure::Failed(anyhow::anyhow!("the fleet is not healthy: {}", status.problems.join("; "))));
    }
    Ok(())
}
