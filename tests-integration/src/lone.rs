//! Single `causewayd` processes with configurations of their own, ended whatever happens.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use causeway_client::{ClientBuilder, Connection, Endpoint};
use causeway_ops::fleet::ready::NodeReady;
use causeway_proto::key::NodePrivate;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::cluster::wait_for;
use crate::programs::Programs;

/// A node on a busy machine may take this long to serve, and to end.
const DEADLINE: Duration = Duration::from_secs(30);

/// A running node. It is killed on drop.
#[derive(Debug)]
pub struct LoneNode {
    process: Process,
    /// Where it listens.
    pub ready: NodeReady,
    log: PathBuf,
    programs: Programs,
}

impl LoneNode {
    /// Starts a node from `config` with the fields `sets`, and waits until it serves. Its files lie in `dir`.
    ///
    /// # Errors
    /// It ends early or does not serve in time; the error shows its log.
    pub async fn start(config: &Path, sets: &[String], dir: &Path) -> anyhow::Result<Self> {
        let programs = Programs::get()?;
        let (ready_file, log) = (dir.join("ready.json"), dir.join("log"));
        let mut command = Command::new(programs.causewayd());
        command.arg("--config").arg(config).arg("--ready-file").arg(&ready_file);
        command.args(sets.iter().flat_map(|set| ["--set", set.as_str()]));
        let output = std::fs::OpenOptions::new().create(true).append(true).open(&log)?;
        let mut process = Process(command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output).spawn()?);
        let pid = process.0.id();
        let ready = wait_for("the node to serve", DEADLINE, async || {
            if let Some(status) = process.0.try_wait()? {
                bail!("ended early, {status}");
            }
            // An earlier process that was killed may have left its own.
            Ok(NodeReady::read(&ready_file)?.filter(|ready| ready.pid == pid))
        })
        .await
        .with_context(|| std::fs::read_to_string(&log).unwrap_or_default())?;
        Ok(Self { process, ready, log, programs })
    }

    /// Starts a node from what `causeway import derper` makes of a derper's flags, with the fields `sets`. Its files lie in `dir`.
    ///
    /// # Errors
    /// The import refuses, or as [`Self::start`].
    pub async fn imported(flags: &[String], sets: &[String], dir: &Path) -> anyhow::Result<Self> {
        let out = dir.join("out");
        let mut command = tokio::process::Command::new(Programs::get()?.causeway());
        command.args(["import", "derper", "--data-dir"]).arg(dir.join("data")).arg("--out").arg(&out).arg("--").args(flags);
        let output = command.env("HOME", dir).env("TS_ALLOW_DEBUG_IP", "").output().await?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Self::start(&out.join("causewayd.toml"), sets, dir).await
    }

    /// Ends it in good order.
    ///
    /// # Errors
    /// It does not end, or not well.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        let pid = i32::try_from(self.process.0.id())?;
        rustix::process::kill_process(rustix::process::Pid::from_raw(pid).context("pid")?, rustix::process::Signal::TERM)?;
        let status = wait_for("the node to end", DEADLINE, async || Ok(self.process.0.try_wait()?)).await?;
        ensure!(status.success(), "{status}: {}", self.log());
        Ok(())
    }

    /// What it said.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Runs `causeway` against its operator socket.
    ///
    /// # Errors
    /// It cannot be run at all.
    pub async fn causeway(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        let mut command = tokio::process::Command::new(self.programs.causeway());
        command.arg("--socket").arg(&self.ready.operator_socket).args(arguments).stdin(Stdio::null());
        Ok(command.output().await?)
    }

    /// What `causeway` prints; it must succeed.
    ///
    /// # Errors
    /// It failed.
    pub async fn said(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = self.causeway(arguments).await?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "causeway {arguments:?}: {}: {errors}", output.status);
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Connects `key` over TLS without looking at the certificate.
    ///
    /// # Errors
    /// The login fails.
    pub async fn connect(&self, key: &NodePrivate) -> anyhow::Result<Connection> {
        let mut endpoint = Endpoint::new(&self.ready.derp)?;
        endpoint.insecure_for_tests = true;
        let builder = ClientBuilder::new(key.clone()).endpoint(endpoint);
        Ok(builder.connect(&TaskTracker::new(), &CancellationToken::new()).await?)
    }
}

/// A process that ends with its handle.
#[derive(Debug)]
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}
