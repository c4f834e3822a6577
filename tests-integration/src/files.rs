//! Files that tests copy, search and write.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

/// Every regular file below `dir`, sorted.
///
/// # Errors
/// A directory cannot be listed.
pub fn files_below(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            files.extend(files_below(&entry.path())?);
        } else if kind.is_file() {
            files.push(entry.path());
        }
    }
    files.sort();
    Ok(files)
}

/// Copies the regular files below `from` that are `wanted` to the same places below `to`.
///
/// # Errors
/// A file cannot be copied.
pub fn copy_files(from: &Path, to: &Path, wanted: impl Fn(&Path) -> bool) -> anyhow::Result<()> {
    for file in files_below(from)?.into_iter().filter(|file| wanted(file)) {
        let target = to.join(file.strip_prefix(from).context("a file below lies below")?);
        std::fs::create_dir_all(target.parent().context("a file lies in a folder")?)?;
        std::fs::copy(&file, &target).with_context(|| format!("copy {}", file.display()))?;
    }
    Ok(())
}

/// Writes a new file that only its owner may read.
///
/// # Errors
/// It exists, or cannot be written.
pub fn write_private(file: &Path, text: &str) -> anyhow::Result<()> {
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(file)?;
    Ok(file.write_all(text.as_bytes())?)
}
