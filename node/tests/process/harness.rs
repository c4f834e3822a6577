//! Starts `causewayd` in a directory of its own and ends it whatever happens.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use causeway_node::lifecycle::ready_file::Ready;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

/// Everything here may be slow on a busy machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// How often a condition is looked at again.
const POLL: Duration = Duration::from_millis(10);

/// A directory with a key file and a configuration that a node starts with.
pub(crate) struct Home {
    pub(crate) dir: TempDir,
    pub(crate) config: PathBuf,
}

/// 64 hex digits that must never show up anywhere.
pub(crate) const MESH_KEY: &str = "5a5b5c5d5e5f505152535455565758595a5b5c5d5e5f50515253545556575859";

impl Home {
    /// A standalone node on loopback, all ports from 0.
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().display();
        let text = format!(
            "name = 'a-1'\ndata_dir = '{path}/data'\nmesh_key_file = '{path}/mesh.key'\nstandalone = true\n\
             [region]\nid = 901\ncode = 'a'\n[advertise]\nhost_name = 'localhost'\nipv4 = '127.0.0.1'\n[tls]\nself_signed = true\n\
             [derp]\nlisten = '127.0.0.1:0'\nplain_http_listen = '127.0.0.1:0'\n[stun]\nlisten = '127.0.0.1:0'\n\
             [mesh]\nlisten = '127.0.0.1:0'\n[metrics]\nlisten = '127.0.0.1:0'\n[raft]\nprofile = 'lan'\n"
        );
        let config = dir.path().join("node.toml");
        fs::write(&config, text).unwrap();
        write_secret(&dir.path().join("mesh.key"), MESH_KEY);
        Self { dir, config }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The command for this node with further arguments.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_causewayd"));
        command.arg("--config").arg(&self.config).args(arguments);
        command.stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    /// Runs to the end; exit code and everything it printed.
    pub(crate) async fn run(&self, arguments: &[&str]) -> (Option<i32>, String, String) {
        let output = timeout(DEADLINE, self.command(arguments).output()).await.expect("ends by itself").unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    }

    /// Starts and waits until it serves.
    pub(crate) async fn start(&self, arguments: &[&str]) -> Node {
        let command = self.command(arguments);
        self.start_command(command).await
    }

    /// As [`Self::start`], with a command of the caller's; `--ready-file` is added.
    pub(crate) async fn start_command(&self, mut command: Command) -> Node {
        command.stderr(fs::File::create(self.path("log")).unwrap());
        self.start_with_stderr(command).await
    }

    /// As [`Self::start_command`], with a standard error of the caller's.
    pub(crate) async fn start_with_stderr(&self, mut command: Command) -> Node {
        let (ready_file, log) = (self.path("ready.json"), self.path("log"));
        command.arg("--ready-file").arg(&ready_file);
        let mut child = command.spawn().unwrap();
        let ready = async {
            loop {
                // An earlier process that was killed may have left its own.
                let ready = fs::read_to_string(&ready_file).ok().map(|text| serde_json::from_str::<Ready>(&text).unwrap());
                if let Some(ready) = ready.filter(|ready| Some(ready.pid) == child.id()) {
                    return ready;
                }
                if let Some(status) = child.try_wait().unwrap() {
                    panic!("ended early ({status}):\n{}", fs::read_to_string(&log).unwrap_or_default());
                }
                sleep(POLL).await;
            }
        };
        let ready = timeout(DEADLINE, ready)
            .await
            .unwrap_or_else(|_| panic!("not ready:\n{}", fs::read_to_string(&log).unwrap_or_default()));
        Node { child, ready, ready_file, log }
    }
}

pub(crate) fn write_secret(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

/// A running node. It is killed on drop.
pub(crate) struct Node {
    pub(crate) child: Child,
    pub(crate) ready: Ready,
    pub(crate) ready_file: PathBuf,
    log: PathBuf,
}

impl Node {
    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(i32::try_from(self.child.id().unwrap()).unwrap()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    pub(crate) async fn ended(&mut self) -> ExitStatus {
        timeout(DEADLINE, self.child.wait()).await.expect("ends").unwrap()
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// Ends it at once (SIGKILL), and its listeners with it.
    pub(crate) async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }

    /// Ends it in order once it is ready, and checks that it said nothing that it must not.
    pub(crate) async fn stop(mut self) {
        self.until_ready().await;
        self.signal(rustix::process::Signal::TERM);
        let status = self.ended().await;
        let log = self.log();
        assert_eq!(status.code(), Some(0), "{log}");
        let log: String = log.lines().filter(|line| !line.contains("admission is open")).collect();
        for bad in [" ERROR ", " WARN ", "panicked", MESH_KEY] {
            assert!(!log.contains(bad), "{bad} in:\n{log}");
        }
        assert!(!self.ready_file.exists(), "the ready file goes with its node");
    }

    pub(crate) fn metrics_address(&self) -> &str {
        self.ready.metrics.strip_prefix("http://").and_then(|url| url.strip_suffix("/metrics")).unwrap()
    }

    /// The metrics as text.
    pub(crate) async fn metrics(&self) -> String {
        get(self.metrics_address(), "/metrics").await
    }

    /// Waits until `/readyz` says yes.
    pub(crate) async fn until_ready(&self) {
        self.until_answer("/readyz", |answer| answer.starts_with("HTTP/1.1 200 ")).await;
    }

    /// Waits until the metrics hold this line.
    pub(crate) async fn until_sample(&self, line: &str) {
        self.until_answer("/metrics", |answer| answer.lines().any(|own| own == line)).await;
    }

    /// Waits until a page of the metrics listener is what is `wanted`.
    pub(crate) async fn until_answer(&self, path: &str, wanted: impl Fn(&str) -> bool) {
        let mut answer = String::new();
        let reached = async {
            while !wanted(&answer) {
                sleep(POLL).await;
                answer = get(self.metrics_address(), path).await;
            }
        };
        if timeout(DEADLINE, reached).await.is_err() {
            panic!("{path} stays at {answer}\n{}", self.log());
        }
    }

    /// Sum of a metric over its labels; `name` with its suffix.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        let text = self.metrics().await;
        let value = |line: &str| line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok()).unwrap();
        text.lines().filter(|line| line.split([' ', '{']).next() == Some(name)).map(value).sum()
    }

    /// Waits until a metric satisfies `wanted`.
    pub(crate) async fn until_metric(&self, name: &str, wanted: impl Fn(f64) -> bool) {
        let reached = async {
            while !wanted(self.metric(name).await) {
                sleep(POLL).await;
            }
        };
        if timeout(DEADLINE, reached).await.is_err() {
            panic!("{name} stays at {}", self.metric(name).await);
        }
    }
}

/// One HTTP request without TLS; the whole answer.
pub(crate) async fn get(address: &str, path: &str) -> String {
    try_get(address, path).await.unwrap()
}

/// One HTTP request without TLS, which a node without descriptors may refuse.
async fn try_get(address: &str, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await?;
    let mut answer = String::new();
    timeout(DEADLINE, stream.read_to_string(&mut answer)).await.expect("an answer")?;
    Ok(answer)
}

/// Waits until a node that was short of descriptors answers again.
pub(crate) async fn until_served(address: &str) {
    let served = async {
        while !try_get(address, "/healthz").await.is_ok_and(|answer| answer.ends_with("ok\n")) {
            sleep(POLL).await;
        }
    };
    timeout(DEADLINE, served).await.expect("served again");
}
