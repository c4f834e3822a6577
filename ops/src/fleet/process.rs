//! Processes known by more than a number: pids are reused, so a process is its pid, its start time and the machine's boot.
//!
//! Signals and waiting go through a pid descriptor, opened before the identity is checked: what is signalled is what was checked.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::layout::write_atomically;

/// How long a process that was asked to end may take before it is killed.
pub const STOP_GRACE: Duration = Duration::from_secs(10);
/// How long the kernel may take to end a killed process.
const KILL_GRACE: Duration = Duration::from_secs(5);

/// Which process something is; stays wrong for ever once that process has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// Its number.
    pub pid: u32,
    /// When it started, in clock ticks since the machine's boot (`/proc/PID/stat`, field 22).
    pub start_time: u64,
    /// The machine's boot.
    pub boot_id: String,
}

/// What `/proc/PID/stat` says of a process.
struct Stat {
    state: char,
    start_time: u64,
}

fn stat(pid: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command name in parentheses may hold anything, parentheses too: fields are counted after the last one.
    let fields: Vec<&str> = text[text.rfind(')')? + 1..].split_ascii_whitespace().collect();
    // Field 3 of the line is the first here, field 22 the twentieth.
    Some(Stat { state: fields.first()?.chars().next()?, start_time: fields.get(19)?.parse().ok()? })
}

fn boot_id() -> io::Result<String> {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|text| text.trim().to_owned())
}

impl Identity {
    /// The process that has number `pid` now.
    ///
    /// # Errors
    /// If there is none.
    pub fn of(pid: u32) -> anyhow::Result<Self> {
        let stat = stat(pid).with_context(|| format!("process {pid}: ended already"))?;
        Ok(Self { pid, start_time: stat.start_time, boot_id: boot_id().context("the machine's boot id cannot be read")? })
    }

    /// This process.
    ///
    /// # Errors
    /// If `/proc` cannot be read.
    pub fn own() -> anyhow::Result<Self> {
        Self::of(std::process::id())
    }

    /// Reads an identity file; `None` if there is none, or none that can be understood (a write cut short by a crash).
    #[must_use]
    pub fn read(path: &Path) -> Option<Self> {
        serde_json::from_str(&fs::read_to_string(path).ok()?).ok()
    }

    /// Writes an identity file.
    ///
    /// # Errors
    /// Naming the file.
    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        write_atomically(path, &serde_json::to_string(self)?, 0o600)
    }

    /// Whether this very process runs. A zombie is dead.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        let same = stat(self.pid).is_some_and(|stat| stat.start_time == self.start_time && !matches!(stat.state, 'Z' | 'X'));
        same && boot_id().is_ok_and(|boot| boot == self.boot_id)
    }

    /// A handle on the process, or `None` if it has ended.
    fn open(&self) -> Option<OwnedFd> {
        let pid = Pid::from_raw(i32::try_from(self.pid).ok()?)?;
        let descriptor = pidfd_open(pid, PidfdFlags::NONBLOCK).ok()?;
        self.is_alive().then_some(descriptor)
    }

    /// Sends a signal; returns whether the process was there to get it.
    #[must_use]
    pub fn signal(&self, signal: Signal) -> bool {
        self.open().is_some_and(|descriptor| pidfd_send_signal(descriptor, signal).is_ok())
    }

    /// Waits until the process has ended.
    ///
    /// # Cancel safety
    /// Safe: nothing is consumed.
    pub async fn ended(&self) {
        let Some(descriptor) = self.open() else { return };
        // A pid descriptor becomes readable when its process ends, parent or not.
        #[expect(deprecated, reason = "its successor is unsafe for types that may swap their descriptor; an OwnedFd cannot")]
        let Ok(descriptor) = AsyncFd::with_interest(descriptor, Interest::READABLE) else { return };
        drop(descriptor.readable().await);
    }

    /// Asks the process to end (SIGTERM), kills it if it takes longer than `grace`; returns how it went.
    ///
    /// # Errors
    /// If it is still there after being killed, which only the kernel can cause.
    pub async fn stop(&self, grace: Duration) -> anyhow::Result<Stopped> {
        if !self.signal(Signal::TERM) {
            return Ok(Stopped::WasGone);
        }
        if tokio::time::timeout(grace, self.ended()).await.is_ok() {
            return Ok(Stopped::Orderly);
        }
        self.kill().await?;
        Ok(Stopped::Killed)
    }

    /// Kills the process (SIGKILL) and waits for its end; returns whether it was there.
    ///
    /// # Errors
    /// If it is still there afterwards, which only the kernel can cause.
    pub async fn kill(&self) -> anyhow::Result<bool> {
        let was_there = self.signal(Signal::KILL);
        tokio::time::timeout(KILL_GRACE, self.ended())
            .await
            .with_context(|| format!("process {} does not end although it was killed", self.pid))?;
        Ok(was_there)
    }
}

/// How a process ended that was stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// It did not run.
    WasGone,
    /// It ended by itself when asked.
    Orderly,
    /// It took too long and was killed.
    Killed,
}

/// Prepares a command that keeps nothing of its caller's: no input, output appended to `log`.
///
/// # Errors
/// If the log cannot be opened.
pub fn detached(program: &Path, log: &Path) -> anyhow::Result<Command> {
    let open = || -> io::Result<(File, File)> {
        let out = OpenOptions::new().append(true).create(true).mode(0o600).open(log)?;
        let err = out.try_clone()?;
        Ok((out, err))
    };
    let (out, err) = open().with_context(|| format!("{}: cannot be opened for writing", log.display()))?;
    let mut command = Command::new(program);
    command.stdin(Stdio::null()).stdout(out).stderr(err);
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper() -> std::process::Child {
        Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().expect("sleep")
    }

    #[tokio::test]
    async fn a_process_is_known_by_its_start_time_and_a_zombie_is_dead() {
        let mut child = sleeper();
        let identity = Identity::of(child.id()).expect("alive");
        assert!(identity.is_alive());
        let reused = Identity { start_time: identity.start_time + 1, ..identity.clone() };
        assert!(!reused.is_alive() && !reused.signal(Signal::TERM), "another process with that number is not touched");
        let before_reboot = Identity { boot_id: "other".to_owned(), ..identity.clone() };
        assert!(!before_reboot.is_alive());

        // Nobody has waited for the child yet, so it stays a zombie.
        assert_eq!(identity.stop(STOP_GRACE).await.expect("stopped"), Stopped::Orderly);
        assert!(!identity.is_alive());
        assert_eq!(identity.stop(STOP_GRACE).await.expect("gone"), Stopped::WasGone);
        child.wait().expect("reaped");
        identity.ended().await;
    }

    #[tokio::test]
    async fn a_process_that_ignores_sigterm_is_killed() {
        let dir = tempfile::tempdir().expect("dir");
        let log = dir.path().join("log");
        let mut command = detached(Path::new("sh"), &log).expect("command");
        // The loop's own short children are in the same shell's hands: only the shell is signalled.
        let mut child = command.args(["-c", "trap '' TERM; echo armed; while :; do sleep 0.05; done"]).spawn().expect("sh");
        let identity = Identity::of(child.id()).expect("alive");
        while fs::read_to_string(&log).expect("log") != "armed\n" {
            tokio::task::yield_now().await;
        }
        assert_eq!(identity.stop(Duration::from_millis(100)).await.expect("stopped"), Stopped::Killed);
        child.wait().expect("reaped");
    }

    #[test]
    fn identity_files_round_trip_and_a_torn_one_is_none() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("process.json");
        assert_eq!(Identity::read(&path), None);
        let own = Identity::own().expect("alive");
        own.write(&path).expect("written");
        assert_eq!(Identity::read(&path), Some(own));
        fs::write(&path, "{\"pid\":1").expect("torn");
        assert_eq!(Identity::read(&path), None);
    }

    #[test]
    fn a_command_name_with_parentheses_does_not_confuse() {
        let dir = tempfile::tempdir().expect("dir");
        let odd = dir.path().join("a) Z 1 (b");
        fs::copy("/bin/sleep", &odd).expect("copy");
        let mut child = Command::new(&odd).arg("1000").spawn().expect("sleep");
        let identity = Identity::of(child.id()).expect("alive");
        // The copy execs after the fork: its start time is that of the fork, and its state is a running one.
        assert!(identity.is_alive());
        child.kill().expect("killed");
        child.wait().expect("reaped");
    }
}
