//! The accept loop: binds TCP listeners and hands sockets on. It never ends on an error (threat model section 4.1).

use std::fs::File;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use rustix::io::Errno;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio_util::sync::CancellationToken;

use super::metrics::AcceptMetrics;

/// Connections the kernel completes before they are accepted: a storm of reconnects is instant.
const BACKLOG: i32 = 4096;

/// Unacknowledged data ends a connection after this long: half-open clients.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(15);

/// Idle time before TCP probes the peer.
const TCP_KEEPALIVE: Duration = Duration::from_secs(600);

/// First and longest pause while the system is out of descriptors or memory.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// A listener could not be bound.
#[derive(Debug, thiserror::Error)]
#[error("{field}: cannot listen on {address}: {source}{hint}")]
pub struct BindError {
    field: &'static str,
    address: SocketAddr,
    source: io::Error,
    hint: &'static str,
}

impl BindError {
    /// Names the configuration field and what to do.
    pub fn new(field: &'static str, address: SocketAddr, source: io::Error) -> Self {
        let hint = match source.kind() {
            io::ErrorKind::AddrInUse => " (stop the program that uses it, or choose another port)",
            io::ErrorKind::PermissionDenied => " (ports below 1024 need CAP_NET_BIND_SERVICE)",
            io::ErrorKind::AddrNotAvailable => " (the address is not one of this machine's)",
            _ => "",
        };
        Self { field, address, source, hint }
    }
}

/// A bound TCP listener with a descriptor in reserve.
#[derive(Debug)]
pub struct Listener {
    socket: AsyncFd<TcpListener>,
    local_addr: SocketAddr,
    /// Given up for a moment when there are no others, to accept and close one connection.
    reserve: Option<File>,
}

impl Listener {
    /// Binds `address`, named `field` in the configuration. Needs a runtime.
    ///
    /// # Errors
    /// [`BindError`].
    pub fn bind(field: &'static str, address: SocketAddr) -> Result<Self, BindError> {
        let bind = || {
            let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
            if address.is_ipv6() {
                socket.set_only_v6(false)?;
            }
            socket.set_reuse_address(true)?;
            // Accepted sockets inherit these.
            socket.set_tcp_user_timeout(Some(TCP_USER_TIMEOUT))?;
            socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(TCP_KEEPALIVE))?;
            socket.bind(&address.into())?;
            socket.listen(BACKLOG)?;
            let listener = TcpListener::from(socket);
            let local_addr = listener.local_addr()?;
            #[expect(
                deprecated,
                reason = "a std listener always returns its own, open descriptor; the replacement is unsafe code"
            )]
            let socket = AsyncFd::new(listener)?;
            Ok(Self { socket, local_addr, reserve: reserve() })
        };
        bind().map_err(|source| BindError::new(field, address, source))
    }

    /// The address as bound.
    #[must_use]
    pub const fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Hands every accepted socket (non-blocking, TCP_NODELAY) to `accepted` until cancelled.
    pub async fn run(
        mut self,
        cancel: CancellationToken,
        metrics: AcceptMetrics,
        mut accepted: impl FnMut(TcpStream, SocketAddr),
    ) {
        let mut pause = PAUSE_MIN;
        loop {
            let result = tokio::select! {
                () = cancel.cancelled() => return,
                result = self.socket.async_io(Interest::READABLE, TcpListener::accept) => result.and_then(prepare),
            };
            let error = match result {
                Ok((socket, remote)) => {
                    pause = PAUSE_MIN;
                    metrics.accepted();
                    accepted(socket, remote);
                    continue;
                }
                Err(error) => error,
            };
            metrics.failed();
            if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted | io::ErrorKind::InvalidInput)
            {
                continue;
            }
            tracing::warn!(local_addr = %self.local_addr, %error, pause_ms = pause.as_millis(), "cannot accept connections");
            if is_starved(&error) {
                self.shed(&metrics);
            }
            tokio::select! {
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(PAUSE_MAX),
            }
        }
    }

    /// Accepts one connection with the reserved descriptor and closes it, so that a client learns at once.
    fn shed(&mut self, metrics: &AcceptMetrics) {
        drop(self.reserve.take());
        if let Ok((socket, _)) = self.socket.get_ref().accept() {
            drop(socket);
            metrics.shed();
        }
        self.reserve = reserve();
    }
}

fn reserve() -> Option<File> {
    File::open("/dev/null").ok()
}

fn is_starved(error: &io::Error) -> bool {
    let starved = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    starved.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// Sets what is not inherited; an IPv4-mapped address becomes IPv4.
fn prepare((socket, remote): (TcpStream, SocketAddr)) -> io::Result<(TcpStream, SocketAddr)> {
    socket.set_nonblocking(true)?;
    SockRef::from(&socket).set_tcp_nodelay(true)?;
    Ok((socket, SocketAddr::new(remote.ip().to_canonical(), remote.port())))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use tokio::sync::mpsc;
    use tokio_util::task::TaskTracker;

    use super::*;
    use crate::ingress::metrics::IngressMetrics;

    #[tokio::test]
    async fn a_taken_port_names_field_address_and_what_to_do() {
        let first = Listener::bind("derp.listen", SocketAddr::from(([127, 0, 0, 1], 0))).expect("free port");
        let error = Listener::bind("derp.listen", first.local_addr()).expect_err("taken").to_string();
        assert!(
            error.contains("derp.listen") && error.contains(&first.local_addr().to_string()) && error.contains("another port"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn ipv4_clients_of_a_dual_stack_listener_have_ipv4_addresses() {
        let listener = Listener::bind("derp.listen", (Ipv6Addr::UNSPECIFIED, 0).into()).expect("bound");
        let port = listener.local_addr().port();
        let (accepted, mut sockets) = mpsc::channel(4);
        let (tracker, cancel) = (TaskTracker::new(), CancellationToken::new());
        let metrics = IngressMetrics::default().accept("derp");
        let run = listener.run(cancel.clone(), metrics.clone(), move |socket, remote| {
            accepted.try_send((socket, remote)).expect("room");
        });
        tracker.spawn(run);
        let client = TcpStream::connect(("127.0.0.1", port)).expect("connected");
        let (socket, remote) = sockets.recv().await.expect("accepted");
        assert_eq!(remote, client.local_addr().expect("address"));
        assert!(SockRef::from(&socket).tcp_nodelay().expect("option"));
        assert_eq!(SockRef::from(&socket).tcp_user_timeout().expect("option"), Some(TCP_USER_TIMEOUT));
        cancel.cancel();
        tracker.close();
        tracker.wait().await;
    }
}
