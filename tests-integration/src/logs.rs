//! What a node's log must not hold: an ERROR, a WARN the test did not declare, a secret.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::Context as _;
use data_encoding::{BASE64, HEXLOWER};

use crate::files::files_below;

/// Bytes of every key of ours.
const KEY_LEN: usize = 32;

/// Lines a test expects; everything else at WARN or above fails it.
#[derive(Debug, Clone)]
pub struct Expected {
    fragments: Vec<String>,
}

impl Default for Expected {
    /// What every node says: nothing here restricts admission.
    fn default() -> Self {
        Self { fragments: vec!["admission is open".to_owned()] }
    }
}

impl Expected {
    /// Declares that lines holding `fragment` may appear at WARN or ERROR.
    #[must_use]
    pub fn line(mut self, fragment: &str) -> Self {
        self.fragments.push(fragment.to_owned());
        self
    }
}

/// The lines of a log file that nobody expected, at WARN or above, or about a panic.
///
/// # Errors
/// The file cannot be read.
pub fn unexpected_lines(file: &Path, expected: &Expected) -> anyhow::Result<Vec<String>> {
    let text = std::fs::read(file).with_context(|| format!("read {}", file.display()))?;
    let text = String::from_utf8_lossy(&text);
    let bad =
        text.lines().map(without_colour).filter(|line| is_serious(line) && !expected.fragments.iter().any(|f| line.contains(f)));
    Ok(bad.collect())
}

/// Secrets found in a text: each is looked for as it is, and never printed.
#[must_use]
pub fn holds_secret(text: &str, secrets: &[String]) -> bool {
    let text = text.to_ascii_lowercase();
    secrets.iter().any(|secret| !secret.is_empty() && text.contains(&secret.to_ascii_lowercase()))
}

/// Every key in the files below `dir`, in the forms in which a program might print it: the lines of PEM private keys, keys written as
/// 64 hex digits, and in files for their owner only keys of 32 bytes.
///
/// # Errors
/// A file cannot be read.
pub fn secrets_below(dir: &Path) -> anyhow::Result<Vec<String>> {
    let mut secrets = Vec::new();
    for file in files_below(dir)? {
        // A running fleet replaces files.
        let (Ok(bytes), Ok(metadata)) = (std::fs::read(&file), file.metadata()) else { continue };
        let is_private = metadata.permissions().mode() & 0o077 == 0;
        if is_private && bytes.len() == KEY_LEN {
            secrets.extend([HEXLOWER.encode(&bytes), BASE64.encode(&bytes)]);
        } else if let Ok(text) = std::str::from_utf8(&bytes) {
            secrets.extend(keys_in(text));
        }
    }
    Ok(secrets)
}

fn keys_in(text: &str) -> Vec<String> {
    let trimmed = text.trim();
    if trimmed.len() == 2 * KEY_LEN && trimmed.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return vec![trimmed.to_owned()];
    }
    let mut lines = Vec::new();
    let mut in_key = false;
    for line in text.lines() {
        if line.starts_with("-----") {
            in_key = line.contains("BEGIN") && line.contains("PRIVATE KEY");
        } else if in_key {
            lines.push(line.to_owned());
        }
    }
    lines
}

fn is_serious(line: &str) -> bool {
    // openraft warns of every lost message, which a busy machine and a stopping peer both cause; our own modules say what follows.
    let library =
        line.contains("WARN openraft::") || (line.contains("\"level\":\"WARN\"") && line.contains("\"target\":\"openraft::"));
    !library && has_serious_level(line)
}

fn has_serious_level(line: &str) -> bool {
    // Text format puts the level after the time stamp, JSON names it.
    let mut words = line.split_whitespace().take(2);
    words.any(|word| word == "WARN" || word == "ERROR")
        || line.contains("\"level\":\"WARN\"")
        || line.contains("\"level\":\"ERROR\"")
        || line.contains("panicked at")
}

fn without_colour(line: &str) -> String {
    let mut plain = String::with_capacity(line.len());
    let mut rest = line;
    while let Some(at) = rest.find("\u{1b}[") {
        plain.push_str(&rest[..at]);
        let escape = &rest[at..];
        rest = escape.find('m').map_or("", |end| &escape[end + 1..]);
    }
    plain + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serious_lines_are_found_in_both_formats_and_with_colour() {
        let dir = tempfile::tempdir().expect("dir");
        let file = dir.path().join("log");
        let text = "2026-11-21T12:00:00Z  INFO node: ready WARN is only a word here\n\
                    2026-11-21T12:00:00Z \u{1b}[33m WARN\u{1b}[0m node: odd\n\
                    {\"timestamp\":\"x\",\"level\":\"ERROR\",\"fields\":{}}\n\
                    2026-11-21T12:00:00Z  WARN link: link down peer=b-1\n\
                    2026-11-21T12:00:00Z  WARN openraft::core::heartbeat: failed to send a heartbeat\n\
                    thread 'main' panicked at src/x.rs:1:1:\n";
        std::fs::write(&file, text).expect("write");
        let found = unexpected_lines(&file, &Expected::default().line("link down")).expect("readable");
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(found[0].contains("odd") && found[1].contains("ERROR") && found[2].contains("panicked"));
    }

    #[test]
    fn keys_are_found_in_files_in_every_form() {
        use crate::files::write_private;

        let dir = tempfile::tempdir().expect("dir");
        let path = |name: &str| dir.path().join(name);
        write_private(&path("mesh.key"), &format!("{}\n", "0f".repeat(32))).expect("write");
        write_private(&path("identity.key"), &"k".repeat(32)).expect("write");
        let pem = "-----BEGIN CERTIFICATE-----\nopen\n-----END CERTIFICATE-----\n\
                   -----BEGIN PRIVATE KEY-----\nhidden\n-----END PRIVATE KEY-----\n";
        write_private(&path("tls.pem"), pem).expect("write");
        std::fs::write(path("public"), "p".repeat(32)).expect("write");
        let found = secrets_below(dir.path()).expect("readable");
        assert_eq!(found, ["6b".repeat(32), BASE64.encode(&[b'k'; 32]), "0f".repeat(32), "hidden".to_owned()]);
    }

    #[test]
    fn secrets_are_found_in_any_case() {
        let secrets = ["abcdef0123".to_owned()];
        assert!(holds_secret("key=ABCDEF0123", &secrets));
        assert!(!holds_secret("key=abcdef012", &secrets));
    }
}
