//! Running `terraform apply` and `destroy` of `terraform/fleets/local` in a working copy.

use std::io::{self, BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, bail};

use crate::fleet::node;
use crate::fleet::process::{Identity, STOP_GRACE, detached};
use crate::fleet::progress::Progress;

/// The root that is applied, below the repository's `terraform` folder.
const ROOT: &str = "fleets/local";
/// Lines of Terraform's output shown when it fails.
const TAIL_LINES: usize = 30;
/// Folders and files of earlier runs, which a working copy must not have.
const NOT_COPIED: [&str; 3] = [".terraform", ".fleet", "terraform.tfstate"];

/// `terraform` or `tofu`, whichever is on the PATH.
#[must_use]
pub fn program() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let found = |name: &str| std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file());
    found("terraform").or_else(|| found("tofu"))
}

/// The repository's `terraform` folder: in or above the current directory, or above this program.
#[must_use]
pub fn source() -> Option<PathBuf> {
    let starts = [std::env::current_dir().ok(), std::env::current_exe().ok()];
    let above =
        |start: PathBuf| start.ancestors().map(|dir| dir.join("terraform")).find(|dir| dir.join(ROOT).join("main.tf").is_file());
    starts.into_iter().flatten().find_map(above)
}

/// A working copy of the fleet's code, and what it is applied with.
#[derive(Debug)]
pub struct Terraform {
    program: PathBuf,
    root: PathBuf,
    log: PathBuf,
    variables: Vec<String>,
    running: Option<Identity>,
    /// Whether an apply was begun, so that there may be something to destroy.
    begun: bool,
}

impl Terraform {
    /// Copies the code into `dir`.
    ///
    /// # Errors
    /// Naming the file that cannot be copied.
    pub fn prepare(
        program: PathBuf,
        source: &Path,
        dir: &Path,
        state_dir: &Path,
        leash: &Path,
        network: &str,
    ) -> anyhow::Result<Self> {
        let copy = dir.join("terraform");
        copy_tree(source, &copy)?;
        let variables = vec![
            format!("-var=state_dir={}", state_dir.display()),
            format!("-var=leash={}", leash.display()),
            format!("-var=network={network}"),
            format!("-var=cli={{path={:?}}}", node::causeway()?),
        ];
        Ok(Self { program, root: copy.join(ROOT), log: dir.join("terraform.log"), variables, running: None, begun: false })
    }

    /// `init` and `apply`.
    ///
    /// # Errors
    /// With the end of Terraform's output.
    ///
    /// # Cancel safety
    /// If dropped, Terraform goes on: [`Terraform::interrupt`] ends it.
    pub async fn apply(&mut self, progress: Progress) -> anyhow::Result<()> {
        self.run(&["init"], false).await?;
        progress.say(&format!("{} apply in a copy of terraform/{ROOT}", self.name()));
        self.begun = true;
        self.run(&["apply", "-auto-approve"], true).await
    }

    /// `destroy`, if there may be something.
    ///
    /// # Errors
    /// With the end of Terraform's output.
    pub async fn destroy(&mut self, progress: Progress) -> anyhow::Result<()> {
        if !self.begun {
            return Ok(());
        }
        progress.say(&format!("{} destroy", self.name()));
        self.run(&["destroy", "-auto-approve"], true).await
    }

    /// Ends a run that was given up.
    ///
    /// # Errors
    /// If it cannot be ended.
    pub async fn interrupt(&mut self) -> anyhow::Result<()> {
        match self.running.take() {
            Some(process) => process.stop(STOP_GRACE).await.map(drop),
            None => Ok(()),
        }
    }

    fn name(&self) -> String {
        self.program.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    }

    async fn run(&mut self, arguments: &[&str], with_variables: bool) -> anyhow::Result<()> {
        let mut command = detached(&self.program, &self.log)?;
        command.args(arguments).args(["-input=false", "-no-color"]).current_dir(&self.root);
        if with_variables {
            command.args(&self.variables);
        }
        // Asks nobody, calls nobody, reads no personal configuration; a missing configuration file would print warnings.
        command.env("CHECKPOINT_DISABLE", "1").env("TF_IN_AUTOMATION", "1").env("TF_CLI_CONFIG_FILE", "/dev/null");
        command.env_remove("TF_DATA_DIR").env_remove("TF_WORKSPACE").env("CAUSEWAY_TEARDOWN", "1");
        // Ctrl-C is for the demo, which then ends Terraform in good order.
        command.stdin(Stdio::null()).process_group(0);
        let mut child = tokio::process::Command::from(command)
            .spawn()
            .with_context(|| format!("{}: cannot be started", self.program.display()))?;
        self.running = child.id().and_then(|pid| Identity::of(pid).ok());
        let status = child.wait().await.with_context(|| format!("{}: cannot be waited for", self.program.display()))?;
        self.running = None;
        if !status.success() {
            bail!("{} {} failed ({status}):\n{}", self.name(), arguments[0], self.tail()?);
        }
        Ok(())
    }

    fn tail(&self) -> io::Result<String> {
        let mut tail = std::collections::VecDeque::with_capacity(TAIL_LINES);
        for line in BufReader::new(std::fs::File::open(&self.log)?).lines() {
            if tail.len() == TAIL_LINES {
                tail.pop_front();
            }
            tail.push_back(line?);
        }
        Ok(tail.make_contiguous().join("\n"))
    }
}

fn copy_tree(from: &Path, to: &Path) -> anyhow::Result<()> {
    std::fs::create_dir(to).with_context(|| format!("{}: cannot be made", to.display()))?;
    for entry in std::fs::read_dir(from).with_context(|| format!("{}: cannot be listed", from.display()))? {
        let entry = entry?;
        let name = entry.file_name();
        if name.to_str().is_some_and(|name| NOT_COPIED.iter().any(|left_out| name.starts_with(left_out))) {
            continue;
        }
        let (source, target) = (entry.path(), to.join(&name));
        if entry.file_type()?.is_dir() {
            copy_tree(&source, &target)?;
        } else {
            std::fs::copy(&source, &target).with_context(|| format!("{}: cannot be copied", source.display()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_working_copy_has_no_state_of_earlier_runs() {
        let dir = tempfile::tempdir().expect("dir");
        let from = dir.path().join("from");
        for file in
            ["modules/a/main.tf", "fleets/local/.terraform/x", "fleets/local/main.tf", "fleets/local/terraform.tfstate.backup"]
        {
            let path = from.join(file);
            std::fs::create_dir_all(path.parent().expect("parent")).expect("dirs");
            std::fs::write(path, "x").expect("written");
        }
        let to = dir.path().join("to");
        copy_tree(&from, &to).expect("copied");
        assert!(to.join("modules/a/main.tf").is_file() && to.join("fleets/local/main.tf").is_file());
        assert!(!to.join("fleets/local/.terraform").exists() && !to.join("fleets/local/terraform.tfstate.backup").exists());
    }
}
