//! A network of a test's own: a hub with many addresses, and clients that are each joined to it by a cable of their own. Every host is a network
//! namespace of Linux.
//!
//! A namespace lasts as long as its holder, a process that ends when its standard input does. So nothing is left behind, however the
//! test ends: the kernel removes the cables with the namespaces.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read as _;
use std::net::Ipv4Addr;
use std::os::fd::AsFd as _;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// What runs on a host takes no longer.
const RUN_MAX: Duration = Duration::from_secs(180);

/// The client's end of its cable.
const UPLINK: &str = "uplink";

/// Whether this process may make networks; prints a line that says so if not.
#[must_use]
#[expect(clippy::print_stdout, reason = "a skipped test says so")]
pub fn is_available() -> bool {
    let made = Network::new(1).and_then(|mut network| network.client());
    if let Err(error) = &made {
        println!("skipped: no network namespaces (they need root, iproute2 and util-linux): {error:#}");
    }
    made.is_ok()
}

/// One hub and its clients.
#[derive(Debug)]
pub struct Network {
    hub: Host,
    clients: u8,
}

impl Network {
    /// A hub that has the first so many [`address`]es.
    ///
    /// # Errors
    /// The right or a program is missing.
    pub fn new(addresses: u8) -> anyhow::Result<Self> {
        let hub = Host::new()?;
        for number in 1..=addresses {
            hub.ip(&format!("addr add {}/32 dev lo", address(number)))?;
        }
        Ok(Self { hub, clients: 0 })
    }

    /// Where the fleet runs.
    #[must_use]
    pub const fn hub(&self) -> &Host {
        &self.hub
    }

    /// One more host, which reaches every address of the hub and no other client.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn client(&mut self) -> anyhow::Result<Host> {
        let client = Host::new()?;
        self.clients = self.clients.checked_add(1).context("too many clients")?;
        let (number, pid) = (self.clients, client.holder.id());
        let cable = format!("client{number}");
        self.hub.ip(&format!("link add {cable} type veth peer name {UPLINK} netns {pid}"))?;
        self.hub.ip(&format!("addr add 10.90.{number}.1/24 dev {cable}"))?;
        self.hub.ip(&format!("link set {cable} up"))?;
        client.ip(&format!("addr add 10.90.{number}.2/24 dev {UPLINK}"))?;
        client.ip(&format!("link set {UPLINK} up"))?;
        client.ip(&format!("route add 10.90.0.0/24 dev {UPLINK}"))?;
        Ok(client)
    }
}

/// An address of the hub, counted from 1.
#[must_use]
pub const fn address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 90, 0, number)
}

/// A host of a network.
#[derive(Debug)]
pub struct Host {
    holder: Child,
}

impl Host {
    fn new() -> anyhow::Result<Self> {
        let mut command = Command::new("unshare");
        command.args(["--net", "sh", "-c", "echo; exec cat"]);
        let holder = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut host = Self { holder: holder.context("run unshare")? };
        // It says something as soon as it is in a namespace of its own.
        let mut said = [0];
        if host.holder.stdout.as_mut().context("piped")?.read_exact(&mut said).is_err() {
            let mut why = String::new();
            host.holder.stderr.as_mut().context("piped")?.read_to_string(&mut why)?;
            anyhow::bail!("{}", why.trim());
        }
        host.ip("link set lo up")?;
        Ok(host)
    }

    /// `program`, to be run on this host.
    #[must_use]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.namespace())).arg("--").arg(program);
        command
    }

    /// Runs `test` on this host: whatever it binds, dials and starts is there.
    ///
    /// # Errors
    /// That of `test`, or it took too long.
    pub fn run(&self, test: impl AsyncFnOnce() -> anyhow::Result<()> + Send) -> anyhow::Result<()> {
        let here = || {
            let namespace = File::open(self.namespace())?;
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
            // Threads and processes start in the namespace of the thread that starts them.
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
            let limited = async { tokio::time::timeout(RUN_MAX, test()).await };
            runtime.block_on(limited).with_context(|| format!("the test took longer than {RUN_MAX:?}"))?
        };
        // A thread of its own, for a thread that has moved stays where it is.
        let ended = std::thread::scope(|scope| scope.spawn(here).join());
        ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// From now on `address` neither answers nor refuses: what is sent there is for a network card that nobody has.
    ///
    /// # Errors
    /// `ip` failed.
    pub fn silence(&self, address: Ipv4Addr) -> anyhow::Result<()> {
        self.ip(&format!("neigh replace {address} lladdr 02:00:00:00:00:ff nud permanent dev {UPLINK}"))
    }

    /// Ends the silence of `address`.
    ///
    /// # Errors
    /// `ip` failed.
    pub fn hear(&self, address: Ipv4Addr) -> anyhow::Result<()> {
        self.ip(&format!("neigh del {address} dev {UPLINK}"))
    }

    fn ip(&self, arguments: &str) -> anyhow::Result<()> {
        let output = self.command("ip").args(arguments.split(' ')).stdin(Stdio::null()).output().context("run nsenter")?;
        ensure!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(())
    }

    fn namespace(&self) -> String {
        format!("/proc/{}/ns/net", self.holder.id())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // It may have ended by itself: nothing to do then.
        self.holder.kill().ok();
        self.holder.wait().ok();
    }
}
