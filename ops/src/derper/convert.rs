//! From a derper's command line, files and variables to a node's configuration.

mod doors;
mod keys;
mod rules;

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::Serialize;
use toml::{Table, Value};

use super::flags::Flags;

/// What a derper does not say of itself.
#[derive(Debug, Clone)]
pub struct Options {
    /// The node's name; `None`: the host name.
    pub name: Option<String>,
    /// The region as the DERP map has it.
    pub region_id: u64,
    /// Its short code.
    pub region_code: String,
    /// Where the node keeps its state.
    pub data_dir: PathBuf,
    /// Where the secrets will lie.
    pub out: PathBuf,
}

/// What a derper's way of running becomes.
#[derive(Debug)]
pub struct Imported {
    /// The configuration.
    pub config: String,
    /// Files for the node's owner only.
    pub secrets: Vec<Secret>,
    /// What became of each flag and variable.
    pub notes: Vec<Note>,
}

/// A secret in a file of its own.
pub struct Secret {
    /// Its name inside [`Options::out`].
    pub file_name: &'static str,
    /// What it holds.
    pub text: String,
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Secret").field("file_name", &self.file_name).finish_non_exhaustive()
    }
}

/// What became of a flag or variable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Fate {
    /// A field of the configuration says the same.
    Kept,
    /// The node does something else; the text says what, and what to do.
    Differs,
}

/// One line of the report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Note {
    /// A flag with its dash, or a variable.
    pub subject: String,
    /// What became of it.
    pub fate: Fate,
    /// The field, or the reason and what to do.
    pub text: String,
}

/// The environment, as far as it is asked for.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Largest file worth reading.
const FILE_LEN_MAX: u64 = 64 * 1024;

/// Converts. Reads the files that the flags name.
///
/// # Errors
/// What derper itself would refuse, what contradicts itself, and what no node does; each names the flag and what to do.
pub fn convert(flags: &Flags, environment: Environment<'_>, options: &Options) -> Result<Imported, String> {
    let mut work = Work { flags, environment, options, config: Table::new(), secrets: Vec::new(), notes: Vec::new() };
    work.refuse()?;
    work.identity()?;
    work.listeners()?;
    work.server_key()?;
    work.mesh()?;
    work.admission();
    work.limits()?;
    work.pages()?;
    work.timeouts();
    work.variables();
    work.finish()
}

struct Work<'a> {
    flags: &'a Flags,
    environment: Environment<'a>,
    options: &'a Options,
    config: Table,
    secrets: Vec<Secret>,
    notes: Vec<Note>,
}

impl Work<'_> {
    /// What cannot be done at all.
    fn refuse(&self) -> Result<(), String> {
        for (name, why) in [
            ("version", "prints a version and runs nothing: leave it out"),
            ("dev", "is derper's development mode: `causeway dev` runs a whole fleet on this machine"),
            ("ace", "a node is no CONNECT proxy: leave it out, or keep a derper with -derp=false for it"),
        ] {
            if self.flags.is_on(name) {
                return Err(format!("-{name}: {why}"));
            }
        }
        if !self.flags.is_on("derp") {
            return Err(
                "-derp=false: a node always relays: keep the derper until its bootstrap DNS is not needed any more".into()
            );
        }
        Ok(())
    }

    fn identity(&mut self) -> Result<(), String> {
        let Some(host) = self.flags.given("hostname").filter(|host| !host.is_empty()) else {
            return Err(
                "-hostname: is missing: derper would call itself derp.tailscale.com; give the name that clients dial".into()
            );
        };
        let name = self.options.name.clone().unwrap_or_else(|| host.to_lowercase().replace(':', "-"));
        self.set("name", name);
        self.set("standalone", true);
        self.set("data_dir", text_of(&absolute(&self.options.data_dir)));
        self.set("region.id", i64::try_from(self.options.region_id).unwrap_or(i64::MAX));
        self.set("region.code", self.options.region_code.clone());
        self.set("advertise.host_name", host);
        match host.parse() {
            Ok(IpAddr::V4(address)) => self.set("advertise.ipv4", address.to_string()),
            Ok(IpAddr::V6(address)) => self.set("advertise.ipv6", address.to_string()),
            Err(_) => {}
        }
        self.kept("hostname", "name, advertise.host_name");
        Ok(())
    }

    fn finish(mut self) -> Result<Imported, String> {
        let head = "# Made by `causeway import derper`. Every field: node/config.example.toml.\n\n";
        let body = toml::to_string(&self.config).map_err(|error| format!("the configuration cannot be written: {error}"))?;
        self.notes.sort_by(|a, b| a.subject.cmp(&b.subject));
        Ok(Imported { config: format!("{head}{body}"), secrets: self.secrets, notes: self.notes })
    }
}

impl Work<'_> {
    /// Sets a field by its TOML path.
    fn set(&mut self, path: &str, value: impl Into<Value>) {
        let mut at = &mut self.config;
        let (sections, field) = path.rsplit_once('.').map_or((None, path), |(sections, field)| (Some(sections), field));
        for section in sections.into_iter().flat_map(|sections| sections.split('.')) {
            let entry = at.entry(section).or_insert_with(|| Value::Table(Table::new()));
            let Value::Table(table) = entry else { return };
            at = table;
        }
        at.insert(field.to_owned(), value.into());
    }

    /// Adds to a list of `section.field`.
    fn append(&mut self, path: &str, more: Vec<String>) {
        let (section, field) = path.split_once('.').unwrap_or(("", path));
        let present = self.config.get(section).and_then(|section| section.get(field)).and_then(Value::as_array);
        let mut all = present.cloned().unwrap_or_default();
        all.extend(more.into_iter().map(Value::String));
        self.set(path, all);
    }

    /// Keeps a secret in a file of its own; returns its path.
    fn secret(&mut self, file_name: &'static str, text: String) -> String {
        self.secrets.push(Secret { file_name, text });
        text_of(&absolute(&self.options.out.join(file_name)))
    }

    /// A flag that a field stands for now; said only of those given.
    fn kept(&mut self, flag: &str, text: &str) {
        self.unused(flag, text);
    }

    /// A flag that needs nothing; said only of those given.
    fn unused(&mut self, flag: &str, text: &str) {
        if self.flags.given(flag).is_some() {
            self.note(format!("-{flag}"), Fate::Kept, text);
        }
    }

    fn differs(&mut self, subject: &str, text: &str) {
        self.note(subject.to_owned(), Fate::Differs, text);
    }

    fn note(&mut self, subject: String, fate: Fate, text: &str) {
        self.notes.push(Note { subject, fate, text: text.to_owned() });
    }

    fn port(&self, flag: &str) -> Result<u16, String> {
        let text = self.flags.text(flag);
        text.parse().map_err(|_| format!("-{flag}: {text} is no port"))
    }
}

fn list(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned).collect()
}

fn text_of(path: &Path) -> String {
    path.display().to_string()
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// Reads a small file; `subject` is who names it.
fn read(path: &Path, subject: &str) -> Result<String, String> {
    let failed = |error: std::io::Error| format!("{subject}: {}: {error}", path.display());
    if std::fs::metadata(path).map_err(failed)?.len() > FILE_LEN_MAX {
        return Err(format!("{subject}: {}: is longer than {FILE_LEN_MAX} bytes", path.display()));
    }
    std::fs::read_to_string(path).map_err(failed)
}

#[cfg(test)]
mod tests;
