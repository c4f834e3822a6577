//! `causeway derpmap`: the fleet's DERP map, how it is made, and a judgement of any map.

pub(super) mod settings;
mod yaml;

use std::io::{self, Read};
use std::path::Path;

use anyhow::Context;
use causeway_client::{MapError, Trust, load_map_json};
use causeway_proto::derpmap::lint::{Finding, Level, is_yaml, lint, lint_yaml};
use causeway_proto::limits::DERP_MAP_LEN_MAX;
use causeway_rpc::v1;
use serde::Serialize;

use crate::cli::DerpmapCommand;
use crate::connect::Settings;
use crate::failure::Failure;
use crate::output::{Output, Table};
use settings::MapSettings;

/// Stands for standard input.
const STDIN: &str = "-";

/// Does what was typed.
///
/// # Errors
/// See [`Failure`].
pub async fn run(command: DerpmapCommand, settings: &Settings, output: &mut Output<'_>) -> Result<(), Failure> {
    match command {
        DerpmapCommand::Show { yaml } => show(yaml, settings, output).await,
        DerpmapCommand::Settings => {
            let made = settings.connect().await?.get_derp_map_settings(v1::GetDerpMapSettingsRequest {}).await?.into_inner();
            let made = MapSettings::from_message(made);
            let text = toml::to_string(&made).context("the settings cannot be written as TOML")?;
            Ok(output.one(&made, || text)?)
        }
        DerpmapCommand::Apply { file, dry_run } => apply(&file, dry_run, settings, output).await,
        DerpmapCommand::Check { source, tls_ca } => check(&source, tls_ca.as_deref(), output).await,
    }
}

async fn show(yaml: bool, settings: &Settings, output: &mut Output<'_>) -> Result<(), Failure> {
    let mut operator = settings.connect().await?;
    let document = operator.get_derp_map(v1::GetDerpMapRequest {}).await?.into_inner();
    let map: serde_json::Value = serde_json::from_str(&document.json)
        .map_err(|error| Failure::Failed(anyhow::anyhow!("the node's DERP map is no JSON: {error}")))?;
    if yaml {
        return Ok(output.raw(yaml::for_headscale(&map).as_bytes())?);
    }
    Ok(output.one(&map, || map_table(&map))?)
}

fn map_table(map: &serde_json::Value) -> String {
    let mut table = Table::new(["REGION", "CODE", "NODE", "HOST", "IPV4", "IPV6", "DERP", "STUN"]);
    let text = |value: &serde_json::Value, field: &str| match &value[field] {
        serde_json::Value::String(text) => text.clone(),
        serde_json::Value::Null => String::new(),
        other => other.to_string(),
    };
    for region in map["Regions"].as_object().into_iter().flat_map(|regions| regions.values()) {
        for node in region["Nodes"].as_array().into_iter().flatten() {
            let port = |field: &str, default: &str| {
                Some(text(node, field)).filter(|port| !port.is_empty() && port != "0").unwrap_or(default.to_owned())
            };
            let stun = Some(port("STUNPort", "3478")).filter(|port| !port.starts_with('-')).unwrap_or_default();
            table.row([
                text(region, "RegionID"),
                text(region, "RegionCode"),
                text(node, "Name"),
                text(node, "HostName"),
                text(node, "IPv4"),
                text(node, "IPv6"),
                port("DERPPort", "443"),
                stun,
            ]);
        }
    }
    table.to_string()
}

/// What a change of the settings does to the map.
#[derive(Debug, Serialize)]
struct Applied {
    dry_run: bool,
    edited_regions: Vec<u64>,
    added_regions: Vec<u64>,
    retired_regions: Vec<u64>,
    findings: Vec<Finding>,
}

impl Applied {
    fn text(&self) -> String {
        let mut table = Table::properties();
        let ids = |ids: &[u64]| ids.iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
        table.property("settings", if self.dry_run { "not changed (dry run)" } else { "in force" });
        table.property("regions edited", ids(&self.edited_regions));
        table.property("regions added", ids(&self.added_regions));
        table.property("regions retired", ids(&self.retired_regions));
        let findings: Vec<String> = self.findings.iter().map(|finding| format!("{finding}\n")).collect();
        format!("{table}{}", findings.concat())
    }
}

async fn apply(file: &Path, dry_run: bool, settings: &Settings, output: &mut Output<'_>) -> Result<(), Failure> {
    let name = file.display();
    let text = if file.as_os_str() == STDIN {
        io::read_to_string(io::stdin().take(DERP_MAP_LEN_MAX as u64)).context("standard input cannot be read")?
    } else {
        std::fs::read_to_string(file).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Failure::NotFound(format!("{name}: there is no such file")),
            _ => Failure::Failed(anyhow::anyhow!("{name}: {error}")),
        })?
    };
    let wanted = MapSettings::parse(&text).map_err(|why| Failure::Usage(format!("{name}: {why}")))?;
    let request = v1::SetDerpMapSettingsRequest { settings: Some(wanted.to_message()), dry_run };
    let made = settings.connect().await?.set_derp_map_settings(request).await;
    let made = made.map_err(|status| match Failure::from(status) {
        Failure::Usage(why) => Failure::Usage(format!("{name}: {why}")),
        other => other,
    })?;
    let made = made.into_inner();
    let applied = Applied {
        dry_run,
        findings: lint(made.json.as_bytes()),
        edited_regions: made.edited_regions,
        added_regions: made.added_regions,
        retired_regions: made.retired_regions,
    };
    Ok(output.one(&applied, || applied.text())?)
}

/// What was found in a map.
#[derive(Debug, Serialize)]
struct Checked<'a> {
    source: &'a str,
    errors: usize,
    warnings: usize,
    notes: usize,
    findings: Vec<Finding>,
}

impl Checked<'_> {
    fn text(&self) -> String {
        let findings: Vec<String> = self.findings.iter().map(|finding| format!("{finding}\n")).collect();
        let counts = format!("{} errors, {} warnings, {} notes", self.errors, self.warnings, self.notes);
        format!("{}{}: {counts}\n", findings.concat(), self.source)
    }
}

async fn check(source: &str, tls_ca: Option<&Path>, output: &mut Output<'_>) -> Result<(), Failure> {
    let trust = tls_ca.map(Trust::ca_file).transpose().map_err(|error| Failure::Usage(format!("--tls-ca: {error}")))?;
    let text = if source == STDIN {
        let mut text = Vec::new();
        // One byte more than allowed is enough to see that it is too long.
        let limit = DERP_MAP_LEN_MAX as u64 + 1;
        io::stdin().take(limit).read_to_end(&mut text).context("standard input cannot be read")?;
        text
    } else {
        load_map_json(source, trust.as_ref()).await.map_err(|error| not_loaded(&error))?
    };
    let findings = if is_headscale_file(source, &text) { lint_yaml(&text) } else { lint(&text) };
    let count = |level: Level| findings.iter().filter(|finding| finding.level == level).count();
    let (errors, warnings, notes) = (count(Level::Error), count(Level::Warning), count(Level::Note));
    let checked = Checked { source, errors, warnings, notes, findings };
    output.one(&checked, || checked.text())?;
    match errors {
        0 => Ok(()),
        _ => Err(Failure::Failed(anyhow::anyhow!("{source} has errors"))),
    }
}

/// Headscale reads files as YAML; what it loads from URLs is JSON, as for everybody else.
fn is_headscale_file(source: &str, text: &[u8]) -> bool {
    let named = Path::new(source).extension().is_some_and(|extension| extension == "yaml" || extension == "yml");
    !source.contains("://") && (named || is_yaml(text))
}

fn not_loaded(error: &MapError) -> Failure {
    let text = error.to_string();
    match error {
        MapError::File { source, .. } if source.kind() == io::ErrorKind::NotFound => Failure::NotFound(text),
        MapError::Url(_) => Failure::Usage(text),
        MapError::Connect { .. } | MapError::Answer { .. } => Failure::Unreachable(text),
        _ => Failure::Failed(anyhow::anyhow!(text)),
    }
}
