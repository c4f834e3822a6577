//! Doing what was typed.

pub mod cluster;
pub mod completion;
pub mod demo;
pub mod derpmap;
pub mod dev;
pub mod import;
pub mod keys;
pub mod local;
pub mod node;
pub mod presence;
pub mod raft;
pub mod routing;

use std::io::Write;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::cli::{Cli, Command, DerpmapCommand};
use crate::connect::Settings;
use crate::failure::Failure;
use crate::output::Output;

/// Does what was typed; results go to `out`.
///
/// # Errors
/// See [`Failure`].
pub async fn run(cli: Cli, out: &mut dyn Write) -> Result<(), Failure> {
    let settings = Settings::resolve(&cli.global, &|name| std::env::var_os(name))?;
    let mut output = Output::new(settings.format, out);
    let output = &mut output;
    match cli.command {
        Command::Dev(args) => dev::run(args, output).await,
        Command::Demo(args) => demo::run(&args, output).await,
        Command::Local(command) => local::run(command, output).await,
        Command::Cluster(command) => cluster::run(command, &settings, output).await,
        Command::Node(command) => node::run(command, &settings, output).await,
        Command::Region(command) => node::run_region(command, &settings, output).await,
        Command::Presence(command) => presence::run(command, &settings, output).await,
        Command::Derpmap { command } => {
            derpmap::run(command.unwrap_or(DerpmapCommand::Show { yaml: false }), &settings, output).await
        }
        Command::Raft(command) => raft::run(command, &settings, output).await,
        Command::Trace { src, dst } => routing::trace(src, dst, &settings, output).await,
        Command::Ping { node, count } => routing::ping(&node, count, &settings, output).await,
        Command::OperatorCa(command) => keys::operator_ca(command, output),
        Command::MeshKey(command) => keys::mesh_key(command, output),
        Command::Import(command) => import::run(command, output),
        Command::Version => completion::version(output),
        Command::Completion { shell } => completion::print(shell, output),
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Failed(anyhow::Error::new(error).context("the result cannot be printed"))
    }
}

/// A token cancelled by Ctrl-C, SIGTERM or a terminal that goes away. Its tasks live as long as the process.
fn interrupted() -> anyhow::Result<CancellationToken> {
    let token = CancellationToken::new();
    let tasks = TaskTracker::new();
    for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
        let mut stream = signal(kind)?;
        let token = token.clone();
        tasks.spawn(async move {
            stream.recv().await;
            token.cancel();
        });
    }
    Ok(token)
}

/// 16 hex digits; empty for "none".
fn node_id_text(id: u64) -> String {
    if id == 0 { String::new() } else { causeway_proto::id::NodeId(id).to_string() }
}

/// `nodekey:` and 64 hex digits, or plain hex for what is no key.
fn key_text(key: &[u8]) -> String {
    <[u8; 32]>::try_from(key).map_or_else(
        |_| data_encoding::HEXLOWER.encode(key),
        |bytes| causeway_proto::key::NodePublic::from_bytes(bytes).to_text(),
    )
}

/// The name of a kind of claim.
fn kind_text(kind: i32) -> &'static str {
    use causeway_rpc::v1::ClaimKind;
    match ClaimKind::try_from(kind) {
        Ok(ClaimKind::Derp) => "derp",
        Ok(ClaimKind::Tx3) => "tx3",
        Ok(ClaimKind::Turbo) => "turbo",
        Ok(ClaimKind::Quicpipe) => "quicpipe",
        Ok(ClaimKind::Derper) => "derper",
        Err(_) => "unknown",
    }
}

/// Names of the fleet's nodes, for answers that hold ids only.
#[derive(Debug)]
struct Names(Vec<causeway_rpc::v1::NodeSummary>);

impl Names {
    async fn fetch(operator: &mut crate::connect::Operator) -> Result<Self, Failure> {
        let nodes = operator.list_nodes(causeway_rpc::v1::ListNodesRequest {}).await?.into_inner().nodes;
        Ok(Self(nodes))
    }

    /// The name, or the id of a node that is not known; empty for "none".
    fn of(&self, id: u64) -> String {
        let records = self.0.iter().filter_map(|summary| summary.node.as_ref());
        records.clone().find(|record| record.node_id == id).map_or_else(|| node_id_text(id), |record| record.name.clone())
    }

    /// The node with this name or id.
    fn find(&self, name_or_id: &str) -> Result<&causeway_rpc::v1::NodeSummary, Failure> {
        let wanted = name_or_id.parse::<causeway_proto::id::NodeId>().ok();
        let matches =
            |record: &causeway_rpc::v1::NodeRecord| record.name == name_or_id || wanted.is_some_and(|id| id.0 == record.node_id);
        self.0.iter().find(|summary| summary.node.as_ref().is_some_and(matches)).ok_or_else(|| {
            let names: Vec<&str> =
                self.0.iter().filter_map(|summary| summary.node.as_ref()).map(|record| record.name.as_str()).collect();
            Failure::NotFound(format!("there is no node {name_or_id:?}; there are {}", names.join(", ")))
        })
    }
}
