//! Tailscale's own derper as a process.

use std::ffi::OsString;
use std::io::{BufRead as _, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};
use causeway_client::{Endpoint, Trust};
use tempfile::TempDir;
use tokio::net::TcpStream;

use crate::cluster::wait_for;

/// The name in its certificate.
pub const DERPER_NAME: &str = "derper.causeway.test";

const START_DEADLINE: Duration = Duration::from_secs(10);

/// A place on this machine where a derper runs, and runs again with the same key, certificate and port. Ended on drop.
#[derive(Debug)]
pub struct Derper {
    program: PathBuf,
    dir: TempDir,
    addr: SocketAddr,
    process: Option<Child>,
}

/// Whom a derper meshes with.
#[derive(Debug, Clone)]
pub struct MeshWith {
    /// The DERP mesh key.
    pub key_file: PathBuf,
    /// As in `--mesh-with`.
    pub with: Vec<String>,
    /// The roots that it verifies the others by.
    pub ca_file: PathBuf,
}

impl Derper {
    /// Chooses a port and makes a certificate for `program`; nothing runs yet.
    ///
    /// # Errors
    /// There is no port, or no file can be written.
    pub fn new(program: PathBuf) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let certified = rcgen::generate_simple_self_signed([DERPER_NAME.to_owned()])?;
        let write = |suffix, contents: &str| std::fs::write(dir.path().join(format!("{DERPER_NAME}.{suffix}")), contents);
        write("crt", &certified.cert.pem())?;
        write("key", &certified.signing_key.serialize_pem())?;
        // Derper takes no port 0; another process may take this one in between: then the start fails.
        let addr = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        Ok(Self { program, dir, addr, process: None })
    }

    /// Where it listens.
    #[must_use]
    pub const fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Where clients connect.
    #[must_use]
    pub fn endpoint(&self) -> Endpoint {
        Endpoint::at(self.addr, DERPER_NAME)
    }

    /// As a node's `derp_mesh.with` names it.
    #[must_use]
    pub fn mesh_name(&self) -> String {
        format!("{DERPER_NAME}:{}/{}", self.addr.port(), self.addr.ip())
    }

    /// The root that verifies its certificate.
    #[must_use]
    pub fn ca_file(&self) -> PathBuf {
        self.dir.path().join(format!("{DERPER_NAME}.crt"))
    }

    /// Whom its clients trust.
    ///
    /// # Errors
    /// Its certificate cannot be read.
    pub fn trust(&self) -> anyhow::Result<Trust> {
        Ok(Trust::ca_file(self.ca_file())?)
    }

    /// Starts it and returns when it serves.
    ///
    /// # Errors
    /// It does not start.
    pub async fn start(&mut self, mesh: Option<&MeshWith>) -> anyhow::Result<()> {
        let mut command = self.command();
        command.args(self.flags()).args(["-http-port=-1", "-stun=false"]);
        if let Some(mesh) = mesh {
            command.args([OsString::from("-mesh-psk-file"), mesh.key_file.clone().into()]);
            command.args(["-mesh-with", &mesh.with.join(",")]).env("SSL_CERT_FILE", &mesh.ca_file);
        }
        self.run(command).await
    }

    /// Starts it with these flags, [`Self::flags`] among them, and returns when it serves.
    ///
    /// # Errors
    /// It does not start.
    pub async fn start_with(&mut self, flags: &[String]) -> anyhow::Result<()> {
        let mut command = self.command();
        command.args(flags);
        self.run(command).await
    }

    /// The flags of its listener, its certificate and its key.
    #[must_use]
    pub fn flags(&self) -> Vec<String> {
        let certificate = format!("-certdir={}", self.dir.path().display());
        let mut flags = vec!["-certmode=manual".to_owned(), certificate];
        flags.extend(self.plain_flags());
        flags
    }

    /// As [`Self::flags`], without a certificate and so without TLS.
    #[must_use]
    pub fn plain_flags(&self) -> Vec<String> {
        let key = format!("-c={}/derper.json", self.dir.path().display());
        vec![format!("-hostname={DERPER_NAME}"), key, format!("-a={}", self.addr)]
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.current_dir(self.dir.path());
        command
    }

    async fn run(&mut self, mut command: Command) -> anyhow::Result<()> {
        let mut process = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        // Its log must not fill the pipe, and tells what went wrong.
        let log = std::fs::File::create(self.dir.path().join("log"))?;
        let stderr = process.stderr.take().context("piped")?;
        std::thread::spawn(move || {
            let mut log = log;
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let _unread = std::io::Write::write_all(&mut log, format!("{line}\n").as_bytes());
            }
        });
        self.process = Some(process);
        let addr = self.addr;
        wait_for("derper to listen", START_DEADLINE, async || {
            if let Some(status) = self.process.as_mut().context("just started")?.try_wait()? {
                bail!("derper ended: {status}: {}", self.log());
            }
            Ok(TcpStream::connect(addr).await.ok())
        })
        .await?;
        Ok(())
    }

    /// What it has said since its last start.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Ends it at once (SIGKILL).
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().ok();
            process.wait().ok();
        }
    }

    /// Its process, while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Child::id)
    }
}

impl Drop for Derper {
    fn drop(&mut self) {
        self.kill();
    }
}
