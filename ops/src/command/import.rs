//! `causeway import`: a node's configuration from what ran before.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context;
use serde::Serialize;

use crate::ca::{write_public, write_secret};
use crate::cli::{DerperArgs, ImportCommand};
use crate::derper::{Fate, Flags, Imported, Note, Options, convert};
use crate::failure::Failure;
use crate::fleet::node::causewayd;
use crate::output::{Output, Table};

/// The configuration's name inside `--out`.
const CONFIG: &str = "causewayd.toml";

#[derive(Serialize)]
struct Report<'a> {
    /// Empty with `--check`.
    config_file: String,
    config: &'a str,
    secret_files: Vec<String>,
    notes: &'a [Note],
}

/// Imports.
///
/// # Errors
/// [`Failure::Usage`] for flags that contradict themselves or that no node does; otherwise if a file cannot be written, or `causewayd`
/// does not take the configuration.
pub fn run(command: ImportCommand, output: &mut Output<'_>) -> Result<(), Failure> {
    let ImportCommand::Derper(args) = command;
    let flags = Flags::parse(&args.flags).map_err(Failure::Usage)?;
    let kept = args.out.clone();
    // With --check, everything lies in a directory that goes away.
    let temporary = tempfile::tempdir().context("no temporary directory")?;
    let out = kept.clone().unwrap_or_else(|| temporary.path().to_owned());
    let environment = |name: &str| std::env::var(name).ok();
    let imported = convert::convert(&flags, &environment, &options(args, &out)).map_err(Failure::Usage)?;
    let files = write(&imported, &out)?;
    check(&out.join(CONFIG))?;
    let config_file = kept.map(|out| out.join(CONFIG).display().to_string()).unwrap_or_default();
    let report = Report { config_file, config: &imported.config, secret_files: files, notes: &imported.notes };
    Ok(output.one(&report, || table(&report))?)
}

fn options(args: DerperArgs, out: &Path) -> Options {
    let DerperArgs { name, region_id, region_code, data_dir, .. } = args;
    Options { name, region_id, region_code, data_dir, out: out.to_owned() }
}

/// Writes secrets first, so that a configuration never names a file that is not there; returns their paths.
fn write(imported: &Imported, out: &Path) -> Result<Vec<String>, Failure> {
    std::fs::create_dir_all(out).with_context(|| format!("--out {}: cannot be made", out.display()))?;
    let config = out.join(CONFIG);
    if config.exists() {
        return Err(Failure::Failed(anyhow::anyhow!("{}: exists already and is not overwritten", config.display())));
    }
    let mut files = Vec::new();
    for secret in &imported.secrets {
        let file = out.join(secret.file_name);
        write_secret(&file, &secret.text)?;
        files.push(file.display().to_string());
    }
    write_public(&config, &imported.config)?;
    Ok(files)
}

/// Lets `causewayd` say whether it would start from it.
fn check(config: &Path) -> anyhow::Result<()> {
    let program: PathBuf = causewayd()?;
    let mut command = Command::new(&program);
    command.arg("--check").arg("--config").arg(config).stdin(Stdio::null());
    let checked = command.output().with_context(|| format!("{}: cannot be started", program.display()))?;
    if !checked.status.success() {
        anyhow::bail!("causewayd does not take it: {}", String::from_utf8_lossy(&checked.stderr).trim_end());
    }
    Ok(())
}

fn table(report: &Report<'_>) -> String {
    let mut text = String::new();
    if report.config_file.is_empty() {
        text.push_str(report.config);
    } else {
        text.push_str(&format!("{}\n", report.config_file));
        report.secret_files.iter().for_each(|file| text.push_str(&format!("{file} (for its owner only)\n")));
    }
    let mut table = Table::new(["DERPER", "", "HERE"]);
    for note in report.notes {
        let fate = if note.fate == Fate::Kept { "" } else { "differs" };
        table.row([note.subject.clone(), fate.to_owned(), note.text.clone()]);
    }
    text.push_str(&format!("\n{table}"));
    text
}
