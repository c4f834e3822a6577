//! `causeway trace`, `causeway ping`.

use causeway_rpc::v1;
use serde::Serialize;

use super::{Names, key_text, node_id_text};
use crate::cli::KeyArg;
use crate::connect::Settings;
use crate::failure::Failure;
use crate::output::{Output, Table, microseconds};

/// The way of a packet, as `causeway trace` prints it.
#[derive(Debug, Clone, Serialize)]
pub struct Trace {
    /// Key of the sender.
    pub src: String,
    /// Key of the receiver.
    pub dst: String,
    /// Whether it would arrive.
    pub delivered: bool,
    /// The nodes it would pass.
    pub hops: Vec<Hop>,
    /// The node that could not be asked, if the way beyond the hops is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unanswered: Option<Unanswered>,
}

/// A node on the way that could not be asked.
#[derive(Debug, Clone, Serialize)]
pub struct Unanswered {
    /// Its name.
    pub node: String,
    /// 16 hex digits.
    pub node_id: String,
    /// What went wrong.
    pub why: String,
}

/// One node on the way.
#[derive(Debug, Clone, Serialize)]
pub struct Hop {
    /// Its name.
    pub node: String,
    /// 16 hex digits.
    pub node_id: String,
    /// origin, transit or target.
    pub role: String,
    /// deliver, forward or drop.
    pub action: String,
    /// Name of the next node, with forward.
    pub next: String,
    /// Name of the node that shall deliver.
    pub target: String,
    /// One sentence.
    pub why: String,
    /// With drop.
    pub drop_reason: String,
}

impl Trace {
    /// Asks a node which way a packet would take.
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn ask(operator: &mut crate::connect::Operator, src: KeyArg, dst: KeyArg) -> Result<Self, Failure> {
        let names = Names::fetch(operator).await?;
        let key = |key: KeyArg| bytes::Bytes::copy_from_slice(key.0.as_bytes());
        let response = operator.trace(v1::TraceRequest { src: key(src), dst: key(dst) }).await?.into_inner();
        let hop = |hop: v1::ExplainResponse| Hop {
            node: names.of(hop.node_id),
            node_id: node_id_text(hop.node_id),
            role: hop.role,
            action: hop.action,
            next: names.of(hop.next_hop),
            target: names.of(hop.target),
            why: hop.why,
            drop_reason: hop.drop_reason,
        };
        Ok(Self {
            src: key_text(src.0.as_bytes()),
            dst: key_text(dst.0.as_bytes()),
            delivered: response.delivered,
            hops: response.hops.into_iter().map(hop).collect(),
            unanswered: response.unanswered.map(|unanswered| Unanswered {
                node: names.of(unanswered.node_id),
                node_id: node_id_text(unanswered.node_id),
                why: unanswered.why,
            }),
        })
    }

    /// `a-1 -> b-2`: the nodes passed.
    #[must_use]
    pub fn path(&self) -> String {
        let names: Vec<&str> = self.hops.iter().map(|hop| hop.node.as_str()).collect();
        names.join(" -> ")
    }

    fn text(&self) -> String {
        let mut table = Table::new(["NODE", "ROLE", "ACTION", "WHY"]);
        for hop in &self.hops {
            let action = match hop.action.as_str() {
                "forward" => format!("forward to {}", hop.next),
                "drop" => format!("drop ({})", hop.drop_reason),
                other => other.to_owned(),
            };
            table.row([hop.node.clone(), hop.role.clone(), action, hop.why.clone()]);
        }
        match &self.unanswered {
            Some(Unanswered { node, why, .. }) => {
                let path: String = self.hops.iter().map(|hop| format!("{} -> ", hop.node)).collect();
                format!("{table}not known further: {path}{node} cannot be asked: {why}\n")
            }
            None if self.delivered => format!("{table}delivered: {}\n", self.path()),
            None => format!("{table}not delivered: {}\n", self.path()),
        }
    }
}

/// Prints the way of a packet. A packet that would not arrive is a result, not a failure.
///
/// # Errors
/// See [`Failure`].
pub async fn trace(src: KeyArg, dst: KeyArg, settings: &Settings, output: &mut Output<'_>) -> Result<(), Failure> {
    let mut operator = settings.connect().await?;
    let trace = Trace::ask(&mut operator, src, dst).await?;
    Ok(output.one(&trace, || trace.text())?)
}

#[derive(Serialize)]
struct Pong {
    node: String,
    node_id: String,
    rtt_us: u64,
}

/// Measures round trips to a node.
///
/// # Errors
/// See [`Failure`].
pub async fn ping(node: &str, times: u32, settings: &Settings, output: &mut Output<'_>) -> Result<(), Failure> {
    let mut operator = settings.connect().await?;
    for _ in 0..times {
        let response = operator.ping(v1::PingRequest { node: node.to_owned() }).await?.into_inner();
        let pong = Pong { node: node.to_owned(), node_id: node_id_text(response.node_id), rtt_us: response.rtt_us };
        output.event(&pong, || format!("{node} ({}) answered in {}", pong.node_id, microseconds(pong.rtt_us)))?;
    }
    Ok(())
}
