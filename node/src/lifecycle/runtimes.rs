//! The only place that chooses threads: a control runtime (Raft, accept, TLS handshakes, login, operators) and a packet runtime.

use std::io;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::runtime::{Builder, Handle, Runtime};

/// How long blocking calls may still run once all tasks have ended.
const BLOCKING_DEADLINE: Duration = Duration::from_secs(1);

/// Both runtimes of a node.
#[derive(Debug)]
pub struct Runtimes {
    control: Runtime,
    packet: Runtime,
}

impl Runtimes {
    /// Starts their threads.
    ///
    /// # Errors
    /// The system cannot start so many threads.
    pub fn start(control_threads: usize, packet_threads: usize) -> io::Result<Self> {
        let runtime =
            |name: &str, threads| Builder::new_multi_thread().worker_threads(threads).thread_name(name).enable_all().build();
        Ok(Self { control: runtime("control", control_threads)?, packet: runtime("packet", packet_threads)? })
    }

    /// Where everything runs that is no packet.
    #[must_use]
    pub fn control(&self) -> &Handle {
        self.control.handle()
    }

    /// Where connections and links run after login.
    #[must_use]
    pub fn packet(&self) -> &Handle {
        self.packet.handle()
    }

    /// Runs `future` on the control runtime, on this thread.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.control.block_on(future)
    }

    /// Ends both; tasks that are left are cut off.
    pub fn stop(self) {
        self.packet.shutdown_timeout(BLOCKING_DEADLINE);
        self.control.shutdown_timeout(BLOCKING_DEADLINE);
    }
}

/// Registers a socket with a runtime's reactor, where it stays for its whole life.
///
/// # Errors
/// The reactor's.
pub fn adopt(runtime: &Handle, socket: std::net::TcpStream) -> io::Result<TcpStream> {
    let _entered = runtime.enter();
    TcpStream::from_std(socket)
}
