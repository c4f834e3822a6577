//! STUN on UDP: tells clients their address as the internet sees it (threat model section 4.7).

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use causeway_proto::stun::message::{binding_response, parse_binding_request};
use prometheus_client::metrics::counter::Counter;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;
use tokio_util::sync::CancellationToken;

use super::listener::BindError;
use super::metrics::IngressMetrics;
use crate::limits::bucket::{Rate, TokenBucket};

/// Datagrams handled before other tasks get a turn.
const BATCH: usize = 64;

/// No request is longer; what is beyond is cut and then refused.
const DATAGRAM_LEN_MAX: usize = 1500;

/// Socket buffer, in bytes: a burst while the node is busy.
const SOCKET_BUFFER: usize = 1 << 20;

/// Pause after an error that is not about one datagram.
const ERROR_PAUSE: Duration = Duration::from_millis(50);

/// A bound STUN socket.
#[derive(Debug)]
pub struct StunServer {
    socket: UdpSocket,
    local_addr: SocketAddr,
    require_software: bool,
    limiter: TokenBucket,
    counters: Counters,
}

#[derive(Debug)]
struct Counters {
    answered: Counter,
    not_stun: Counter,
    bad_source: Counter,
    limited: Counter,
    unsent: Counter,
    errors: Counter,
    ipv4: Counter,
    ipv6: Counter,
}

impl StunServer {
    /// Binds the address of `stun.listen`. Needs a runtime.
    ///
    /// # Errors
    /// [`BindError`].
    pub fn bind(
        config: crate::config::Stun,
        answers_per_second: u64,
        metrics: &IngressMetrics,
        now: Instant,
    ) -> Result<Self, BindError> {
        let address = config.listen;
        let bind = || {
            let socket = Socket::new(Domain::for_address(address), Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
            if address.is_ipv6() {
                socket.set_only_v6(false)?;
            }
            socket.set_recv_buffer_size(SOCKET_BUFFER)?;
            socket.bind(&address.into())?;
            let socket = UdpSocket::from_std(socket.into())?;
            Ok((socket.local_addr()?, socket))
        };
        let (local_addr, socket) = bind().map_err(|source| BindError::new("stun.listen", address, source))?;
        let counters = Counters {
            answered: metrics.stun("answered"),
            not_stun: metrics.stun("not_stun"),
            bad_source: metrics.stun("bad_source"),
            limited: metrics.stun("rate_limited"),
            unsent: metrics.stun("unsent"),
            errors: metrics.stun("error"),
            ipv4: metrics.stun_family("ipv4"),
            ipv6: metrics.stun_family("ipv6"),
        };
        // A tenth of a second of answers may come at once.
        let rate = Rate { per_second: answers_per_second, burst: (answers_per_second / 10).max(1) };
        Ok(Self { socket, local_addr, require_software: config.require_software, limiter: TokenBucket::new(rate, now), counters })
    }

    /// The address as bound.
    #[must_use]
    pub const fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Answers until cancelled.
    pub async fn run(mut self, cancel: CancellationToken, clock: fn() -> Instant) {
        let mut datagram = [0; DATAGRAM_LEN_MAX];
        loop {
            let ready = tokio::select! {
                () = cancel.cancelled() => return,
                ready = self.socket.readable() => ready,
            };
            let worked = ready.and_then(|()| self.answer_batch(&mut datagram, clock()));
            if let Err(error) = worked {
                self.counters.errors.inc();
                tracing::warn!(%error, "cannot read from the STUN socket");
                tokio::time::sleep(ERROR_PAUSE).await;
            }
            tokio::task::yield_now().await;
        }
    }

    /// Answers what is waiting, at most [`BATCH`].
    fn answer_batch(&mut self, datagram: &mut [u8], now: Instant) -> io::Result<()> {
        for _ in 0..BATCH {
            match self.socket.try_recv_from(datagram) {
                Ok((len, from)) => self.answer(&datagram[..len], from, now),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                // An answer of ours came back as unreachable.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn answer(&mut self, datagram: &[u8], from: SocketAddr, now: Instant) {
        if !is_answerable(from, self.local_addr) {
            self.counters.bad_source.inc();
            return;
        }
        let Ok(transaction) = parse_binding_request(datagram, self.require_software) else {
            self.counters.not_stun.inc();
            return;
        };
        let family = if from.ip().to_canonical().is_ipv4() { &self.counters.ipv4 } else { &self.counters.ipv6 };
        family.inc();
        if !self.limiter.take(1, now) {
            self.counters.limited.inc();
            return;
        }
        // A full socket buffer drops the answer: the client asks again.
        match self.socket.try_send_to(binding_response(&transaction, from).as_ref(), from) {
            Ok(_) => self.counters.answered.inc(),
            Err(_) => self.counters.unsent.inc(),
        };
    }
}

/// Whether an answer to this source cannot hit a crowd, ourselves, or nobody.
fn is_answerable(from: SocketAddr, local: SocketAddr) -> bool {
    let ip = from.ip().to_canonical();
    let own = from.port() == local.port() && (ip == local.ip().to_canonical() || ip.is_loopback());
    let crowd = ip.is_multicast() || ip == IpAddr::V4(Ipv4Addr::BROADCAST);
    from.port() != 0 && !ip.is_unspecified() && !crowd && !own
}

#[cfg(test)]
mod tests {
    use causeway_proto::stun::message::{binding_request, parse_binding_response};
    use tokio_util::task::TaskTracker;

    use super::*;
    use crate::config::Stun;

    fn bind(listen: &str, per_second: u64) -> (StunServer, IngressMetrics) {
        let metrics = IngressMetrics::default();
        let config = Stun { listen: listen.parse().expect("address"), require_software: true };
        (StunServer::bind(config, per_second, &metrics, Instant::now()).expect("bound"), metrics)
    }

    /// Asks from a fresh socket of `family` and returns the answer's bytes, with the address it came from.
    async fn ask(server_port: u16, client: &str, server: &str, request: &[u8]) -> Option<(Vec<u8>, SocketAddr)> {
        let socket = UdpSocket::bind(client).await.expect("client socket");
        socket.send_to(request, (server, server_port)).await.expect("sent");
        let mut answer = [0; 100];
        let (len, _) =
            tokio::time::timeout(Duration::from_millis(500), socket.recv_from(&mut answer)).await.ok()?.expect("received");
        Some((answer[..len].to_vec(), socket.local_addr().expect("address")))
    }

    #[tokio::test]
    async fn real_sockets_of_both_families_learn_their_address() {
        let (server, metrics) = bind("[::]:0", 1000);
        let port = server.local_addr().port();
        let (tracker, cancel) = (TaskTracker::new(), CancellationToken::new());
        tracker.spawn(server.run(cancel.clone(), Instant::now));
        for (client, host, len) in [("127.0.0.1:0", "127.0.0.1", 32), ("[::1]:0", "::1", 44)] {
            let request = binding_request(&[7; 12]);
            let (answer, own) = ask(port, client, host, &request).await.expect("an answer");
            assert_eq!(answer.len(), len, "{client}");
            assert_eq!(parse_binding_response(&answer), Ok(([7; 12], own)));
        }
        // A wrong fingerprint gets nothing; then a good one proves that the server lives.
        let mut bad = binding_request(&[8; 12]);
        bad[39] ^= 1;
        assert!(ask(port, "127.0.0.1:0", "127.0.0.1", &bad).await.is_none());
        assert!(ask(port, "127.0.0.1:0", "127.0.0.1", &binding_request(&[9; 12])).await.is_some());
        assert_eq!((metrics.stun("answered").get(), metrics.stun("not_stun").get()), (3, 1));
        cancel.cancel();
        tracker.close();
        tracker.wait().await;
    }

    #[tokio::test]
    async fn above_the_ceiling_nothing_is_answered() {
        let (mut server, metrics) = bind("127.0.0.1:0", 10);
        let now = Instant::now();
        let from = SocketAddr::from(([127, 0, 0, 1], 9));
        server.socket.writable().await.expect("writable");
        for _ in 0..5 {
            server.answer(&binding_request(&[1; 12]), from, now);
        }
        assert_eq!((metrics.stun("answered").get(), metrics.stun("rate_limited").get()), (1, 4));
    }

    #[test]
    fn sources_that_cannot_be_a_client_get_nothing() {
        let local = "192.0.2.1:3478".parse().expect("address");
        for (from, good) in [
            ("198.51.100.7:1000", true),
            ("[2001:db8::1]:1000", true),
            ("198.51.100.7:0", false),
            ("224.0.0.1:1000", false),
            ("[ff02::1]:1000", false),
            ("255.255.255.255:1000", false),
            ("0.0.0.0:1000", false),
            ("192.0.2.1:3478", false),
            ("[::ffff:192.0.2.1]:3478", false),
            ("127.0.0.1:3478", false),
            ("127.0.0.1:3479", true),
        ] {
            assert_eq!(is_answerable(from.parse().expect("address"), local), good, "{from}");
        }
    }
}
