//! `causeway presence`: who holds which key.

use causeway_rpc::v1;
use serde::Serialize;

use super::{Names, interrupted, key_text, kind_text};
use crate::cli::{KeyArg, PresenceCommand};
use crate::connect::{Operator, Settings};
use crate::failure::Failure;
use crate::output::{Format, Output, Table, count, timestamp, yes_no};

/// One key and all claims on it, preferred first.
#[derive(Debug, Clone, Serialize)]
pub struct Entry {
    /// `nodekey:` and 64 hex digits.
    pub key: String,
    /// All claims, in the asked node's order of preference.
    pub claims: Vec<Claim>,
}

/// One node's claim on a key.
#[derive(Debug, Clone, Serialize)]
pub struct Claim {
    /// Name of the node.
    pub node: String,
    /// 16 hex digits.
    pub node_id: String,
    /// Code of its region.
    pub region: String,
    /// Whether the client called this its home.
    pub home: bool,
    /// derp, tx3, turbo or quicpipe.
    pub kind: &'static str,
    /// When it was minted, microseconds since the Unix epoch.
    pub clock_us: u64,
    /// Start of the node it belongs to.
    pub epoch: u64,
    /// Whether it counts.
    pub valid: bool,
    /// Whether packets go there.
    pub preferred: bool,
    /// What decided its place.
    pub why: String,
}

impl Entry {
    /// Asks a node who holds `key`.
    ///
    /// # Errors
    /// [`Failure::NotFound`] if nobody does; others see [`Failure`].
    pub async fn ask(operator: &mut Operator, key: KeyArg, consistent: bool) -> Result<Self, Failure> {
        let request = v1::GetPresenceRequest { key: bytes::Bytes::copy_from_slice(key.0.as_bytes()), consistent };
        Ok(Self::new(operator.get_presence(request).await?.into_inner()))
    }

    fn new(entry: v1::PresenceEntry) -> Self {
        let claim = |claim: v1::PresenceClaim| {
            let rank = claim.rank.unwrap_or_default();
            Claim {
                node: claim.node_name,
                node_id: super::node_id_text(rank.node_id),
                region: claim.region_code,
                home: claim.home,
                kind: kind_text(claim.kind),
                clock_us: rank.clock_us,
                epoch: claim.epoch,
                valid: claim.valid,
                preferred: claim.preferred,
                why: claim.why,
            }
        };
        Self { key: key_text(&entry.key), claims: entry.claims.into_iter().map(claim).collect() }
    }

    /// As a table for people.
    #[must_use]
    pub fn text(&self) -> String {
        let mut table = Table::new(["NODE", "REGION", "PREFERRED", "VALID", "HOME", "KIND", "CLAIMED (UTC)", "WHY"]);
        for claim in &self.claims {
            table.row([
                claim.node.clone(),
                claim.region.clone(),
                yes_no(claim.preferred),
                yes_no(claim.valid),
                yes_no(claim.home),
                claim.kind.to_owned(),
                timestamp(claim.clock_us),
                claim.why.clone(),
            ]);
        }
        format!("{}\n{table}", self.key)
    }

    fn summary(&self) -> [String; 3] {
        let preferred = self.claims.iter().find(|claim| claim.preferred);
        let others: Vec<String> = self.claims.iter().filter(|claim| !claim.preferred).map(|claim| claim.node.clone()).collect();
        [
            self.key.clone(),
            preferred.map(|claim| format!("{} ({})", claim.node, claim.region)).unwrap_or_default(),
            others.join(", "),
        ]
    }
}

#[derive(Serialize)]
struct Change {
    at_us: u64,
    change: String,
    key: String,
    node: String,
    node_id: String,
    home: bool,
    kind: &'static str,
    clock_us: u64,
}

#[derive(Serialize)]
struct Counts {
    keys: u64,
    claims: u64,
    home_claims: u64,
    by_node: Vec<NodeCount>,
}

#[derive(Serialize)]
struct NodeCount {
    node: String,
    node_id: String,
    claims: u64,
}

/// Runs `causeway presence ...`.
///
/// # Errors
/// See [`Failure`].
pub async fn run(command: PresenceCommand, settings: &Settings, output: &mut Output<'_>) -> Result<(), Failure> {
    let mut operator = settings.connect().await?;
    match command {
        PresenceCommand::Get { key, consistent } => {
            let entry = Entry::ask(&mut operator, key, consistent).await?;
            Ok(output.one(&entry, || entry.text())?)
        }
        PresenceCommand::Ls { node, region, limit } => list(&mut operator, node, region, limit, output).await,
        PresenceCommand::Watch { key, changes_only } => watch(&mut operator, key, changes_only, output).await,
        PresenceCommand::Count => {
            let counts = operator.count_presence(v1::CountPresenceRequest {}).await?.into_inner();
            let by_node = counts.by_node.into_iter().map(|node| NodeCount {
                node: node.name,
                node_id: super::node_id_text(node.node_id),
                claims: node.claims,
            });
            let counts =
                Counts { keys: counts.keys, claims: counts.claims, home_claims: counts.home_claims, by_node: by_node.collect() };
            Ok(output.one(&counts, || counts_text(&counts))?)
        }
    }
}

fn counts_text(counts: &Counts) -> String {
    let mut table = Table::new(["NODE", "CLAIMS"]);
    for node in &counts.by_node {
        table.row([node.node.clone(), count(node.claims)]);
    }
    let (keys, claims, home) = (count(counts.keys), count(counts.claims), count(counts.home_claims));
    format!("{keys} keys, {claims} claims, {home} of them home\n\n{table}")
}

async fn list(
    operator: &mut Operator,
    node: Option<String>,
    region: Option<String>,
    limit: u32,
    output: &mut Output<'_>,
) -> Result<(), Failure> {
    let node_id = match node {
        None => 0,
        Some(node) => Names::fetch(operator).await?.find(&node)?.node.as_ref().map_or(0, |record| record.node_id),
    };
    let region_id = match region {
        None => 0,
        Some(region) => find_region(operator, &region).await?,
    };
    let mut stream = operator.list_presence(v1::ListPresenceRequest { node_id, region_id, limit }).await?.into_inner();
    let mut entries = Vec::new();
    while let Some(entry) = stream.message().await? {
        let entry = Entry::new(entry);
        // Lines go out as they come, so that a million keys need no memory here; the other formats need the whole list.
        if output.format() == Format::Jsonl {
            output.event(&entry, String::new)?;
        } else {
            entries.push(entry);
        }
    }
    if output.format() == Format::Jsonl {
        return Ok(());
    }
    Ok(output.list(&entries, |entries| {
        let mut table = Table::new(["KEY", "PREFERRED", "ALSO AT"]);
        for entry in entries {
            table.row(entry.summary());
        }
        table
    })?)
}

async fn find_region(operator: &mut Operator, code_or_id: &str) -> Result<u64, Failure> {
    let regions = operator.list_regions(v1::ListRegionsRequest {}).await?.into_inner().regions;
    let known: Vec<v1::Region> = regions.into_iter().filter_map(|summary| summary.region).collect();
    let wanted = code_or_id.parse::<u64>().ok();
    known.iter().find(|region| region.code == code_or_id || Some(region.id) == wanted).map(|region| region.id).ok_or_else(|| {
        let codes: Vec<&str> = known.iter().map(|region| region.code.as_str()).collect();
        Failure::NotFound(format!("there is no region {code_or_id:?}; there are {}", codes.join(", ")))
    })
}

async fn watch(operator: &mut Operator, key: Option<KeyArg>, changes_only: bool, output: &mut Output<'_>) -> Result<(), Failure> {
    let stop = interrupted()?;
    let names = Names::fetch(operator).await?;
    let key = key.map(|key| bytes::Bytes::copy_from_slice(key.0.as_bytes())).unwrap_or_default();
    let mut stream = operator.watch_presence(v1::WatchPresenceRequest { key, changes_only }).await?.into_inner();
    while let Some(message) = stop.run_until_cancelled(stream.message()).await {
        let Some(change) = message? else {
            return Err(Failure::Unreachable("the node ended the stream".to_owned()));
        };
        let rank = change.rank.unwrap_or_default();
        let change = Change {
            at_us: change.at_us,
            change: change.change,
            key: if change.key.is_empty() { String::new() } else { key_text(&change.key) },
            node: names.of(rank.node_id),
            node_id: super::node_id_text(rank.node_id),
            home: change.home,
            kind: kind_text(change.kind),
            clock_us: rank.clock_us,
        };
        output.event(&change, || {
            let home = if change.home { " home" } else { "" };
            format!("{}  {:<10} {} {}{home}", timestamp(change.at_us), change.change, change.key, change.node)
        })?;
    }
    Ok(())
}
