//! `causeway raft`.

use causeway_rpc::v1;
use serde::Serialize;

use super::{Names, node_id_text};
use crate::cli::RaftCommand;
use crate::connect::Settings;
use crate::failure::Failure;
use crate::output::{Output, Table, count, milliseconds};

#[derive(Serialize)]
struct Status {
    node_id: String,
    state: String,
    term: u64,
    leader: String,
    leader_id: String,
    last_log_index: u64,
    committed_index: u64,
    applied_index: u64,
    snapshot_index: u64,
    purged_index: u64,
    quorum_ack_ms: Option<u64>,
    stopped_because: String,
    members: Vec<Member>,
}

#[derive(Serialize)]
struct Member {
    node_id: String,
    name: String,
    addr: String,
    voter: bool,
    matched_index: Option<u64>,
    heartbeat_ms: Option<u64>,
}

impl Status {
    fn new(status: v1::RaftStatus, names: &Names) -> Self {
        // Only the leader knows how far the others are.
        let told = status.leader_told;
        let members = status.members.into_iter().map(|member| Member {
            node_id: node_id_text(member.node_id),
            name: member.name,
            addr: member.addr,
            voter: member.voter,
            matched_index: told.then_some(member.matched_index),
            heartbeat_ms: told.then_some(member.heartbeat_ms),
        });
        Self {
            node_id: node_id_text(status.node_id),
            state: status.state,
            term: status.term,
            leader: names.of(status.leader),
            leader_id: node_id_text(status.leader),
            last_log_index: status.last_log_index,
            committed_index: status.committed_index,
            applied_index: status.applied_index,
            snapshot_index: status.snapshot_index,
            purged_index: status.purged_index,
            quorum_ack_ms: told.then_some(status.quorum_ack_ms),
            stopped_because: status.stopped_because,
            members: members.collect(),
        }
    }

    fn text(&self) -> String {
        let mut properties = Table::properties();
        properties
            .property("node", &*self.node_id)
            .property("state", &*self.state)
            .property("term", count(self.term))
            .property("leader", &*self.leader)
            .property(
                "log",
                format!("last {}, committed {}, applied {}", self.last_log_index, self.committed_index, self.applied_index),
            )
            .property("kept from", format!("snapshot {}, purged {}", self.snapshot_index, self.purged_index));
        if let Some(ms) = self.quorum_ack_ms {
            properties.property("quorum", format!("acknowledged {} ago", milliseconds(ms)));
        }
        if !self.stopped_because.is_empty() {
            properties.property("stopped", &*self.stopped_because);
        }
        let mut table = Table::new(["MEMBER", "ROLE", "ADDRESS", "MATCHED", "HEARTBEAT"]);
        for member in &self.members {
            table.row([
                if member.name.is_empty() { member.node_id.clone() } else { member.name.clone() },
                if member.voter { "voter" } else { "learner" }.to_owned(),
                member.addr.clone(),
                member.matched_index.map(count).unwrap_or_default(),
                member.heartbeat_ms.map(milliseconds).unwrap_or_default(),
            ]);
        }
        format!("{properties}\n{table}")
    }
}

/// Runs `causeway raft ...`.
///
/// # Errors
/// See [`Failure`].
pub async fn run(command: RaftCommand, settings: &Settings, output: &mut Output<'_>) -> Result<(), Failure> {
    let RaftCommand::Status = command;
    let mut operator = settings.connect().await?;
    let names = Names::fetch(&mut operator).await?;
    let status = operator.get_raft_status(v1::GetRaftStatusRequest {}).await?.into_inner();
    let status = Status::new(status, &names);
    Ok(output.one(&status, || status.text())?)
}
