//! Which changes of the configuration a running node takes up.

use std::path::PathBuf;

use super::{Config, ConfigError, FileConfig, Problem};

/// Sections and fields that are taken up without a restart.
const RELOADABLE: &[&str] = &[
    "admission",
    "limits.connections",
    "limits.unauthenticated",
    "limits.unauthenticated_per_source",
    "limits.accepts_per_second_per_source",
    "limits.accept_burst_per_source",
    "limits.accepts_per_second_per_core",
    "limits.authenticated_per_ipv4",
    "limits.authenticated_per_ipv6",
    "limits.tls_handshakes_per_core",
    "limits.connections_per_key",
    "limits.key_rate_bits_per_second",
    "limits.key_burst_bytes",
    "limits.client_rate_bytes_per_second",
    "limits.client_burst_bytes",
    "log.filter",
];

/// The fields that were taken up, or why none was.
pub type Reloaded = Result<Vec<String>, ConfigError>;

/// Where the running configuration comes from.
#[derive(Debug, Clone, Default)]
pub struct Source {
    /// `--config`.
    pub path: PathBuf,
    /// `--set`, in order.
    pub sets: Vec<String>,
    /// What is in force.
    pub file: FileConfig,
}

impl Source {
    /// Reads everything again. Returns what is to be taken up, with the fields that changed; from then on it is in force.
    ///
    /// # Errors
    /// [`ConfigError`]: it is not valid, or fields have changed that need a restart. What is in force stays as it is.
    pub fn reload(&mut self) -> Result<(Config, Vec<String>), ConfigError> {
        let file = FileConfig::load(&self.path, &self.sets)?;
        let config = Config::validate(&self.path, &file)?;
        let changed = changed_fields(&self.file, &file);
        let fixed = changed.iter().filter(|field| !is_reloadable(field));
        let problems: Vec<Problem> = fixed
            .map(|field| Problem::new(field.as_str(), "has changed, which needs a restart: restart the node, or put it back"))
            .collect();
        if !problems.is_empty() {
            return Err(ConfigError::new(&self.path, problems));
        }
        self.file = file;
        Ok((config, changed))
    }
}

fn is_reloadable(field: &str) -> bool {
    RELOADABLE.iter().any(|known| field.strip_prefix(known).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')))
}

/// TOML paths of the fields in which two configurations differ.
fn changed_fields(old: &FileConfig, new: &FileConfig) -> Vec<String> {
    let table = |file: &FileConfig| toml::Value::try_from(file).unwrap_or_else(|_| toml::Value::Table(toml::Table::new()));
    let mut changed = Vec::new();
    compare(None, Some(&table(old)), Some(&table(new)), &mut changed);
    changed
}

fn compare(path: Option<&str>, old: Option<&toml::Value>, new: Option<&toml::Value>, changed: &mut Vec<String>) {
    if let (Some(toml::Value::Table(old)), Some(toml::Value::Table(new))) = (old, new) {
        let added = new.keys().filter(|key| !old.contains_key(*key));
        for key in old.keys().chain(added) {
            let path = path.map_or_else(|| key.clone(), |path| format!("{path}.{key}"));
            compare(Some(&path), old.get(key), new.get(key), changed);
        }
    } else if old != new {
        changed.extend(path.map(str::to_owned));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = include_str!("../../../docs/operations/configuration.md");

    #[test]
    fn changed_fields_are_named_by_their_path_and_only_some_need_a_restart() {
        let old = FileConfig { name: "a".into(), ..FileConfig::default() };
        assert!(changed_fields(&old, &old).is_empty());
        let mut new = old.clone();
        new.limits.connections += 1;
        new.admission.fail_open = true;
        new.log.filter = "debug".into();
        let changed = changed_fields(&old, &new);
        assert_eq!(changed, ["admission.fail_open", "limits.connections", "log.filter"]);
        assert!(changed.iter().all(|field| is_reloadable(field)));
        new.name = "b".into();
        new.region.latitude = Some(1.0);
        let fixed: Vec<String> = changed_fields(&old, &new).into_iter().filter(|field| !is_reloadable(field)).collect();
        assert_eq!(fixed, ["name", "region.latitude"]);
    }

    #[test]
    fn every_reloadable_field_exists_and_is_documented() {
        let toml::Value::Table(fields) = toml::Value::try_from(FileConfig::default()).expect("TOML") else { panic!("a table") };
        for known in RELOADABLE {
            let found = match known.split_once('.') {
                Some((section, field)) => fields[section].get(field).is_some(),
                None => fields.contains_key(*known),
            };
            assert!(found, "{known}");
            let documented =
                format!("`{}`", if fields.contains_key(*known) { format!("[{known}]") } else { (*known).to_owned() });
            assert!(PAGE.contains(&documented), "{documented} is not on the page");
        }
    }
}
