//! The binaries under test, built once per test process.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context as _, bail};

/// Names a folder with ready-made `causeway` and `causewayd`; nothing is built then.
pub const BIN_DIR_VARIABLE: &str = "CAUSEWAY_BIN_DIR";

/// Where `causeway` and `causewayd` lie, in one folder.
#[derive(Debug, Clone)]
pub struct Programs {
    dir: PathBuf,
}

impl Programs {
    /// Builds both programs on first use (a no-op where they are fresh) and names their folder.
    ///
    /// # Errors
    /// The build failed.
    pub fn get() -> anyhow::Result<Self> {
        static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
        let dir = BUILT.get_or_init(|| build().map_err(|error| format!("{error:#}")));
        dir.clone().map(|dir| Self { dir }).map_err(anyhow::Error::msg)
    }

    /// The operator's command line.
    #[must_use]
    pub fn causeway(&self) -> PathBuf {
        self.dir.join("causeway")
    }

    /// The node.
    #[must_use]
    pub fn causewayd(&self) -> PathBuf {
        self.dir.join("causewayd")
    }
}

fn build() -> anyhow::Result<PathBuf> {
    if let Some(dir) = std::env::var_os(BIN_DIR_VARIABLE) {
        return Ok(PathBuf::from(dir));
    }
    // A test binary lies in TARGET/PROFILE/deps, a program in TARGET/PROFILE.
    let executable = std::env::current_exe().context("own path")?;
    let folder = executable.parent().context("a program lies in a folder")?;
    let profile_dir = if folder.ends_with("deps") { folder.parent().context("TARGET/PROFILE/deps")? } else { folder };
    let target_dir = profile_dir.parent().context("a profile's folder lies in the target folder")?;
    // `cargo test` names itself; another cargo than that one would build everything anew.
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| env!("CARGO").into());
    let mut command = Command::new(&cargo);
    command.args(["build", "--quiet", "-p", "causeway-node", "-p", "causeway-ops", "--bins", "--target-dir"]);
    command.arg(target_dir).current_dir(repository());
    if profile_dir.ends_with("release") {
        command.arg("--release");
    }
    let output = command.output().with_context(|| format!("run {}", cargo.display()))?;
    if !output.status.success() {
        bail!("the programs under test do not build:\n{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(profile_dir.to_owned())
}

/// The root of the repository.
#[must_use]
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("this package is a folder of the repository")
}
