//! Where the files of a fleet on this machine are, and how they are written.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

/// Longest path a Unix socket may have (`sun_path` without its final zero).
const SOCKET_PATH_LEN_MAX: usize = 107;

/// The directory of a fleet: its own files, and a directory per node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FleetDir(PathBuf);

impl FleetDir {
    /// The fleet in `path`, made absolute so that processes started elsewhere find it.
    ///
    /// # Errors
    /// If the current directory is unknown.
    pub fn new(path: &Path) -> anyhow::Result<Self> {
        Ok(Self(std::path::absolute(path).with_context(|| format!("{}: no usable path", path.display()))?))
    }

    /// The directory itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The mesh key.
    #[must_use]
    pub fn mesh_key(&self) -> PathBuf {
        self.0.join("mesh.key")
    }

    /// Certificate of the CA that signed the nodes' TLS certificates; clients trust it.
    #[must_use]
    pub fn ca(&self) -> PathBuf {
        self.0.join("ca.pem")
    }

    /// Private key of that CA.
    #[must_use]
    pub fn ca_key(&self) -> PathBuf {
        self.0.join("ca-key.pem")
    }

    /// Certificate of the fleet CA, derived from the mesh key by the nodes; operators pin it.
    #[must_use]
    pub fn fleet_ca(&self) -> PathBuf {
        self.0.join("fleet-ca.pem")
    }

    /// JSON list of mesh addresses, from which nodes find each other.
    #[must_use]
    pub fn seeds(&self) -> PathBuf {
        self.0.join("seeds.json")
    }

    /// Locked while one of the fleet's own files changes.
    #[must_use]
    pub fn lock(&self) -> PathBuf {
        self.0.join("lock")
    }

    /// Locked exclusively by whoever runs the fleet, for as long as it shall live.
    #[must_use]
    pub fn leash(&self) -> PathBuf {
        self.0.join("leash")
    }

    /// What `causeway dev` was asked for.
    #[must_use]
    pub fn dev_state(&self) -> PathBuf {
        self.0.join("dev.json")
    }

    /// The fleet's own files, all that is not in a node's directory.
    #[must_use]
    pub fn own_files(&self) -> Vec<PathBuf> {
        vec![
            self.mesh_key(),
            self.ca(),
            self.ca_key(),
            self.fleet_ca(),
            self.seeds(),
            self.leash(),
            self.dev_state(),
            self.lock(),
        ]
    }

    /// The node called `name`.
    ///
    /// # Errors
    /// If the name is none a node may have, and so no safe file name.
    pub fn node(&self, name: &str) -> anyhow::Result<NodeDir> {
        check_node_name(name)?;
        Ok(NodeDir { name: name.to_owned(), path: self.0.join(name) })
    }

    /// All nodes that have a specification here, by name.
    ///
    /// # Errors
    /// If the directory cannot be read. A missing one has no nodes.
    pub fn nodes(&self) -> anyhow::Result<Vec<NodeDir>> {
        let entries = match fs::read_dir(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.with_context(|| format!("{}: cannot be listed", self.0.display()))?,
        };
        let mut nodes = Vec::new();
        for entry in entries {
            let entry = entry.with_context(|| format!("{}: cannot be listed", self.0.display()))?;
            let Some(name) = entry.file_name().to_str().map(str::to_owned) else { continue };
            if let Ok(node) = self.node(&name)
                && node.spec().exists()
            {
                nodes.push(node);
            }
        }
        nodes.sort_by(|a, b| natural_order(&a.name).cmp(&natural_order(&b.name)));
        Ok(nodes)
    }
}

/// `a-10` comes after `a-9`.
fn natural_order(name: &str) -> (&str, u64, &str) {
    let (stem, ordinal) = name.rsplit_once('-').unwrap_or((name, ""));
    (stem, ordinal.parse().unwrap_or(0), name)
}

/// Checks a node's name: a DNS label that starts with a letter.
///
/// # Errors
/// Saying what would be right.
pub fn check_node_name(name: &str) -> anyhow::Result<()> {
    let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let good = (1..=63).contains(&name.len())
        && name.as_bytes()[0].is_ascii_lowercase()
        && !name.ends_with('-')
        && name.bytes().all(legal);
    if !good {
        bail!("node name {name:?}: use 1 to 63 lower-case letters, digits and hyphens, first a letter, such as a-1");
    }
    Ok(())
}

/// The directory of one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeDir {
    name: String,
    path: PathBuf,
}

impl NodeDir {
    /// The node's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The directory itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the node is told, before it becomes a configuration.
    #[must_use]
    pub fn spec(&self) -> PathBuf {
        self.path.join("node.json")
    }

    /// Its configuration for `causewayd`.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.path.join("node.toml")
    }

    /// Its TLS certificate.
    #[must_use]
    pub fn cert(&self) -> PathBuf {
        self.path.join("cert.pem")
    }

    /// Private key of its TLS certificate.
    #[must_use]
    pub fn key(&self) -> PathBuf {
        self.path.join("key.pem")
    }

    /// What `causewayd` writes once it serves.
    #[must_use]
    pub fn ready(&self) -> PathBuf {
        self.path.join("ready.json")
    }

    /// Which process is the node.
    #[must_use]
    pub fn process(&self) -> PathBuf {
        self.path.join("process.json")
    }

    /// Which process restarts the node when it crashes (`causeway local` only).
    #[must_use]
    pub fn supervisor(&self) -> PathBuf {
        self.path.join("supervisor.json")
    }

    /// Exists while the node is meant not to run.
    #[must_use]
    pub fn stopped(&self) -> PathBuf {
        self.path.join("stopped")
    }

    /// The operator socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.path.join("operator.sock")
    }

    /// The data directory.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.path.join("data")
    }

    /// Standard output and error.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.path.join("log")
    }

    /// Refuses directories too deep for a Unix socket.
    ///
    /// # Errors
    /// Naming the directory and its limit.
    pub fn check_socket_len(&self) -> anyhow::Result<()> {
        let len = self.socket().as_os_str().len();
        if len > SOCKET_PATH_LEN_MAX {
            bail!(
                "{}: a path of {len} bytes is too long for a Unix socket (at most {SOCKET_PATH_LEN_MAX}); choose a shorter directory",
                self.socket().display()
            );
        }
        Ok(())
    }

    /// The last `lines` lines of the log, for error messages; empty if there is none.
    #[must_use]
    pub fn log_tail(&self, lines: usize) -> String {
        use std::io::{Read, Seek, SeekFrom};
        /// Enough for a screen of log lines.
        const TAIL_LEN_MAX: u64 = 32 * 1024;
        let read = || -> io::Result<Vec<u8>> {
            let mut log = fs::File::open(self.log())?;
            let len = log.metadata()?.len();
            log.seek(SeekFrom::Start(len.saturating_sub(TAIL_LEN_MAX)))?;
            let mut tail = Vec::new();
            log.take(TAIL_LEN_MAX).read_to_end(&mut tail)?;
            Ok(tail)
        };
        let tail = read().unwrap_or_default();
        let text = String::from_utf8_lossy(&tail);
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }
}

/// Makes a directory (and its parents) that only its owner may enter.
///
/// # Errors
/// Naming the directory.
pub fn make_private_dir(path: &Path) -> anyhow::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| format!("{}: the directory cannot be made", path.display()))
}

/// Replaces a file in one step: readers see the old text or the new, also after a kill at any point.
///
/// # Errors
/// Naming the file.
pub fn write_atomically(path: &Path, text: &str, mode: u32) -> anyhow::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}.tmp", std::process::id()));
    let temporary = PathBuf::from(temporary);
    let write = || -> io::Result<()> {
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().with_context(|| format!("{}: cannot be written", path.display()))
}

/// Removes a file; a missing one is fine.
///
/// # Errors
/// Naming the file.
pub fn remove_file(path: &Path) -> anyhow::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("{}: cannot be removed", path.display()))
        }
        _ => Ok(()),
    }
}

/// Removes a directory with all in it; a missing one is fine.
///
/// # Errors
/// Naming the directory.
pub fn remove_dir(path: &Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("{}: cannot be removed", path.display()))
        }
        _ => Ok(()),
    }
}

/// An exclusive lock on a file, held until dropped; the kernel frees it when the process dies.
#[derive(Debug)]
pub struct FileLock(#[expect(dead_code, reason = "held for its lock")] fs::File);

impl FileLock {
    /// Waits for the lock.
    ///
    /// # Errors
    /// Naming the file.
    pub fn wait(path: &Path) -> anyhow::Result<Self> {
        Self::take(path, rustix::fs::FlockOperation::LockExclusive)
    }

    /// Takes the lock if nobody has it.
    ///
    /// # Errors
    /// Naming the file, also if it is taken.
    pub fn try_now(path: &Path) -> anyhow::Result<Self> {
        Self::take(path, rustix::fs::FlockOperation::NonBlockingLockExclusive)
    }

    fn take(path: &Path, operation: rustix::fs::FlockOperation) -> anyhow::Result<Self> {
        let file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .with_context(|| format!("{}: cannot be opened", path.display()))?;
        rustix::io::retry_on_intr(|| rustix::fs::flock(&file, operation)).map_err(|error| match error {
            rustix::io::Errno::WOULDBLOCK => anyhow::anyhow!("{}: another process runs this fleet", path.display()),
            error => anyhow::Error::new(error).context(format!("{}: cannot be locked", path.display())),
        })?;
        Ok(Self(file))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_listed_in_natural_order_and_only_with_a_specification() {
        let dir = tempfile::tempdir().expect("dir");
        let fleet = FleetDir::new(dir.path()).expect("fleet");
        for name in ["a-10", "a-9", "b-1"] {
            let node = fleet.node(name).expect("name");
            make_private_dir(node.path()).expect("dir");
            write_atomically(&node.spec(), "{}", 0o600).expect("spec");
        }
        make_private_dir(&dir.path().join("other")).expect("dir");
        let names: Vec<String> = fleet.nodes().expect("nodes").iter().map(|node| node.name().to_owned()).collect();
        assert_eq!(names, ["a-9", "a-10", "b-1"]);
        assert!(FleetDir::new(&dir.path().join("absent")).expect("fleet").nodes().expect("none").is_empty());
    }

    #[test]
    fn names_that_are_no_safe_file_name_are_refused() {
        for wrong in ["", "..", "a/b", "A-1", "-a", "a-", "1a", &"a".repeat(64)] {
            let refused = check_node_name(wrong).expect_err(wrong).to_string();
            assert!(refused.contains("such as a-1"), "{refused}");
        }
        check_node_name("a-1").expect("fine");
    }

    #[test]
    fn a_directory_too_deep_for_a_socket_is_named() {
        let node = FleetDir::new(&PathBuf::from(format!("/{}", "d".repeat(100)))).expect("fleet").node("a-1").expect("name");
        let refused = node.check_socket_len().expect_err("too long").to_string();
        assert!(refused.contains("operator.sock") && refused.contains("shorter"), "{refused}");
    }

    #[test]
    fn a_lock_is_exclusive_and_ends_with_its_holder() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("lock");
        let held = FileLock::wait(&path).expect("first");
        let refused = FileLock::try_now(&path).expect_err("taken").to_string();
        assert!(refused.contains("another process"), "{refused}");
        drop(held);
        FileLock::try_now(&path).expect("free again");
    }

    #[test]
    fn the_log_tail_is_the_end() {
        let dir = tempfile::tempdir().expect("dir");
        let node = FleetDir::new(dir.path()).expect("fleet").node("a-1").expect("name");
        assert_eq!(node.log_tail(3), "");
        make_private_dir(node.path()).expect("dir");
        let text: String = (0..10_000).map(|line| format!("line {line}\n")).collect();
        fs::write(node.log(), text).expect("log");
        assert_eq!(node.log_tail(2), "line 9998\nline 9999");
    }
}
