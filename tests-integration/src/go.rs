//! Programs of public Go modules, such as Tailscale's own, built once per target folder.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use anyhow::{Context as _, ensure};

use crate::programs::repository;

/// The newest release of Tailscale's module that Go 1.26 builds; the same as in `tests-integration/interop/derp-go/go.mod`.
pub const TAILSCALE: &str = "v1.102.5";

/// Whether Go is there; prints a line that says so if not.
#[must_use]
#[expect(clippy::print_stdout, reason = "a skipped test says so")]
pub fn is_installed() -> bool {
    let found = Command::new("go").arg("version").output().is_ok_and(|output| output.status.success());
    if !found {
        println!("skipped: go is not installed");
    }
    found
}

/// Builds the program `tailscale.com/cmd/NAME` unless it lies below `tmp` already, which is the target folder's for tests
/// (`CARGO_TARGET_TMPDIR`). `None`, with a line that says so, where Go is missing.
///
/// # Errors
/// It does not build.
pub fn tailscale_program(name: &str, tmp: &Path) -> anyhow::Result<Option<PathBuf>> {
    static BUILDING: Mutex<()> = Mutex::new(());
    let _one_at_a_time = BUILDING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if !is_installed() {
        return Ok(None);
    }
    let folder = tmp.join(format!("tailscale-{TAILSCALE}"));
    let program = folder.join(name);
    if !program.exists() {
        let package = format!("tailscale.com/cmd/{name}@{TAILSCALE}");
        let output = Command::new("go").args(["install", &package]).env("GOBIN", &folder).output().context("run go")?;
        ensure!(output.status.success(), "{package} does not build: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(Some(program))
}

/// Builds a program of `tests-integration/interop/derp-go` as `into/NAME`, with these arguments of `go build`. `None`, with a line that says so,
/// where Go is missing.
///
/// # Errors
/// It does not build.
pub fn interop_program(name: &str, arguments: &[&str], into: &Path) -> anyhow::Result<Option<PathBuf>> {
    if !is_installed() {
        return Ok(None);
    }
    let program = into.join(name);
    let mut command = Command::new("go");
    command.args(["build", "-o"]).arg(&program).args(arguments);
    let output = command.current_dir(repository().join("tests-integration/interop/derp-go")).output().context("run go")?;
    ensure!(output.status.success(), "{name} does not build: {}", String::from_utf8_lossy(&output.stderr));
    Ok(Some(program))
}
