//! `causeway local`: what Terraform's local target calls.

use std::time::Duration;

use anyhow::Context;
use serde::Serialize;
use tokio::time::Instant;

use super::derpmap::settings::MapSettings;
use crate::ca;
use crate::cli::LocalCommand;
use crate::failure::Failure;
use crate::fleet::health::{self, Init};
use crate::fleet::layout::{FleetDir, write_atomically};
use crate::fleet::local::{self, LocalNode, LocalStatus};
use crate::fleet::prepare;
use crate::fleet::spec::NodeSpec;
use crate::output::{Format, Output, Table, yes_no};

/// How often `local status --wait` looks.
const STATUS_INTERVAL: Duration = Duration::from_millis(200);

/// Runs `causeway local ...`.
///
/// # Errors
/// See [`Failure`].
pub async fn run(command: LocalCommand, output: &mut Output<'_>) -> Result<(), Failure> {
    match command {
        LocalCommand::Start { state, config, leash, wait } => {
            let spec = read_config(&config)?;
            let fleet = FleetDir::new(&state.state_dir)?;
            let node = local::start(&fleet, spec, leash.as_deref(), wait).await?;
            Ok(output.one(&node, || format!("{} serves: DERP {}, process {}", node.node.name, node.node.derp, node.node.pid))?)
        }
        LocalCommand::Stop { state, node, remove } => {
            let fleet = FleetDir::new(&state.state_dir)?;
            local::leave(&fleet, &node, remove).await?;
            Ok(output.one(&Gone { node: &node }, || format!("{node} does not run"))?)
        }
        LocalCommand::List { state } => {
            let fleet = FleetDir::new(&state.state_dir)?;
            let nodes: Vec<LocalNode> = fleet.nodes()?.iter().map(local::describe).collect::<anyhow::Result<_>>()?;
            Ok(output.list(&nodes, table)?)
        }
        LocalCommand::Init { state, voters, operator_ca, wait } => {
            let operator_ca_der = operator_ca.map(|file| ca::read_certificate(&file)).transpose().map_err(usage)?;
            let fleet = FleetDir::new(&state.state_dir)?;
            init(&fleet, voters, operator_ca_der.map(|der| der.to_vec()).unwrap_or_default(), wait, output).await
        }
        LocalCommand::Derpmap { state, settings, wait } => {
            let text = text_or_file("--settings", &settings)?;
            let settings = MapSettings::parse_json(&text).map_err(|why| Failure::Usage(format!("--settings: {why}")))?;
            let fleet = FleetDir::new(&state.state_dir)?;
            let edited = health::set_derp_map(&local::asked(&fleet)?, settings.to_message(), wait).await?;
            Ok(output.one(&edited, || format!("the settings are in force; regions edited: {}", edited.regions.len()))?)
        }
        LocalCommand::Status { state, json, wait, file } => {
            let fleet = FleetDir::new(&state.state_dir)?;
            status(&fleet, json, wait, file.as_deref(), output).await
        }
        LocalCommand::Clean { state } => {
            let removed = local::clean(&FleetDir::new(&state.state_dir)?).await?;
            Ok(output.one(&removed, || format!("removed {} nodes", removed.len()))?)
        }
        LocalCommand::Supervise { state, node, leash } => {
            Ok(local::supervise(&FleetDir::new(&state.state_dir)?, &node, leash.as_deref()).await?)
        }
    }
}

#[derive(Serialize)]
struct Gone<'a> {
    node: &'a str,
}

fn usage(error: anyhow::Error) -> Failure {
    Failure::Usage(format!("{error:#}"))
}

fn read_config(config: &str) -> Result<NodeSpec, Failure> {
    NodeSpec::parse(&text_or_file("--config", config)?).map_err(usage)
}

/// The value of a flag that takes a text or `@FILE`.
fn text_or_file(flag: &str, value: &str) -> Result<String, Failure> {
    match value.strip_prefix('@') {
        None => Ok(value.to_owned()),
        Some(file) => std::fs::read_to_string(file).map_err(|error| Failure::NotFound(format!("{flag} @{file}: {error}"))),
    }
}

async fn init(
    fleet: &FleetDir,
    voters: Vec<String>,
    operator_ca_der: Vec<u8>,
    wait: Duration,
    output: &mut Output<'_>,
) -> Result<(), Failure> {
    let nodes = fleet.nodes()?;
    let specs: Vec<NodeSpec> = nodes.iter().map(prepare::read_spec).collect::<anyhow::Result<_>>()?;
    for voter in &voters {
        if !specs.iter().any(|spec| spec.name == *voter) {
            return Err(Failure::NotFound(format!("--voters: there is no node {voter:?} in {}", fleet.path().display())));
        }
    }
    let voters = if voters.is_empty() { health::default_voters(&specs) } else { voters };
    let first = nodes.iter().find(|node| voters.iter().any(|voter| voter == node.name()));
    let first = first.ok_or_else(|| Failure::NotFound(format!("{}: there is no node to ask", fleet.path().display())))?;
    let deadline = Instant::now() + wait;
    let request = Init { voters, nodes: specs.len(), operator_ca_der, wait };
    health::init(first.socket(), request).await?;
    health::wait_healthy(&local::asked(fleet)?, deadline.saturating_duration_since(Instant::now())).await?;
    health::export_fleet_ca(fleet, first.socket()).await?;
    let status = local::status(fleet).await?;
    Ok(output.one(&status, || text(&status))?)
}

async fn status(
    fleet: &FleetDir,
    json: bool,
    wait: Option<Duration>,
    file: Option<&std::path::Path>,
    output: &mut Output<'_>,
) -> Result<(), Failure> {
    let deadline = Instant::now() + wait.unwrap_or_default();
    let status = loop {
        let status = local::status(fleet).await?;
        if status.healthy || Instant::now() >= deadline {
            break status;
        }
        tokio::time::sleep(STATUS_INTERVAL).await;
    };
    if let Some(file) = file {
        let text = serde_json::to_string_pretty(&status).context("the status cannot be rendered")?;
        write_atomically(file, &format!("{text}\n"), 0o644)?;
    }
    if json && output.format() == Format::Table {
        output
            .raw(format!("{}\n", serde_json::to_string_pretty(&status).context("the status cannot be rendered")?).as_bytes())?;
    } else {
        output.one(&status, || text(&status))?;
    }
    if wait.is_some() && !status.healthy {
        return Err(Failure::Failed(anyhow::anyhow!("the fleet is not healthy: {}", status.problems.join("; "))));
    }
    Ok(())
}

fn table(nodes: &[LocalNode]) -> Table {
    let mut table = Table::new(["NODE", "REGION", "RUNS", "PID", "DERP", "MESH", "OPERATOR SOCKET"]);
    for node in nodes {
        table.row([
            node.node.name.clone(),
            format!("{} ({})", node.node.region, node.node.region_id),
            yes_no(node.running),
            if node.node.pid == 0 { String::new() } else { node.node.pid.to_string() },
            node.node.derp.clone(),
            node.mesh.clone(),
            node.node.operator_socket.display().to_string(),
        ]);
    }
    table
}

fn text(status: &LocalStatus) -> String {
    let mut properties = Table::properties();
    properties
        .property("healthy", yes_no(status.healthy))
        .property("fleet", &*status.fleet_id)
        .property("leader", &*status.leader)
        .property("DERP map", &*status.derpmap_url)
        .property("CA", status.ca_file.display().to_string());
    for problem in &status.problems {
        properties.property("problem", &**problem);
    }
    format!("{properties}\n{}", table(&status.nodes))
}
