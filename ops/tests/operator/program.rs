//! Runs the program, and serves it a node on a socket.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use causeway_rpc::v1::operator_server::OperatorServer;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::node::Node;

/// The server, until dropped.
pub(crate) struct Served {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) stop: CancellationToken,
    pub(crate) tasks: TaskTracker,
}

impl Served {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("dir"), stop: CancellationToken::new(), tasks: TaskTracker::new() }
    }

    pub(crate) fn on_socket() -> (Self, PathBuf) {
        let served = Self::new();
        let path = served.dir.path().join("operator.sock");
        let incoming = UnixListenerStream::new(tokio::net::UnixListener::bind(&path).expect("bound"));
        let stop = served.stop.clone();
        served.tasks.spawn(async move {
            let server = tonic::transport::Server::builder().add_service(OperatorServer::new(Node));
            server.serve_with_incoming_shutdown(incoming, stop.cancelled()).await.expect("served");
        });
        (served, path)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

pub(crate) async fn causeway(arguments: &[&str]) -> Output {
    tokio::process::Command::new(env!("CARGO_BIN_EXE_causeway"))
        .args(arguments)
        .env_remove("CAUSEWAY_SOCKET")
        .env_remove("CAUSEWAY_ENDPOINT")
        .env("HOME", "/nonexistent")
        .env_remove("XDG_CONFIG_HOME")
        .stdin(Stdio::null())
        .output()
        .await
        .expect("the program runs")
}

pub(crate) async fn at(socket: &Path, arguments: &[&str]) -> Output {
    let mut all = vec!["--socket", socket.to_str().expect("text")];
    all.extend(arguments);
    causeway(&all).await
}

pub(crate) fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).expect("text")
}

pub(crate) fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).expect("text")
}
