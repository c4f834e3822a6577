//! How long packets take to clients and back, as the kernel's TCP measures it anyway: read every 10 s for all of them together.

mod sock_diag;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry as MetricsRegistry, Unit};
use tokio::net::TcpStream;
use tokio::time::{MissedTickBehavior, interval_at};
use tokio_util::sync::CancellationToken;

use crate::clients::Registry;

/// As stock servers do.
const PERIOD: Duration = Duration::from_secs(10);

/// Upper bounds in seconds, those of stock servers.
const BOUNDS: [f64; 7] = [0.01, 0.02, 0.05, 0.1, 0.15, 0.25, 0.5];

/// The number by which the kernel tells a socket from all others of its life; `None` if it has none.
#[must_use]
pub fn cookie_of(socket: &TcpStream) -> Option<u64> {
    rustix::net::sockopt::socket_cookie(socket).ok()
}

/// What is counted. Cheap to clone.
#[derive(Clone, Debug)]
pub struct RoundTripMetrics {
    seconds: Histogram,
    unread: Counter,
}

impl Default for RoundTripMetrics {
    fn default() -> Self {
        Self { seconds: Histogram::new(BOUNDS), unread: Counter::default() }
    }
}

impl RoundTripMetrics {
    pub(super) fn register(&self, area: &mut MetricsRegistry) {
        let help = "Round trips to clients as TCP measures them, each read every 10 s";
        area.register_with_unit("tcp_round_trip", help, Unit::Seconds, self.seconds.clone());
        area.register("tcp_round_trips_unread", "Round trips to clients that the kernel did not tell", self.unread.clone());
    }
}

/// Reads the round trip times of the clients that came in by `listeners`, until cancelled.
pub async fn keep_reading(
    registry: Arc<Registry>,
    listeners: Vec<SocketAddr>,
    metrics: RoundTripMetrics,
    cancel: CancellationToken,
) {
    let mut ticks = interval_at(tokio::time::Instant::now() + PERIOD, PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut says_why = true;
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let listeners = listeners.clone();
        // The kernel writes down every connection there is.
        let Ok(read) = tokio::task::spawn_blocking(move || read_all(&listeners)).await else { return };
        if let Err(error) = &read
            && std::mem::take(&mut says_why)
        {
            tracing::info!(%error, "round trip times of clients cannot be read");
        }
        count(&registry, &read.unwrap_or_default(), &metrics);
    }
}

/// Round trip times by cookie. Blocks.
fn read_all(listeners: &[SocketAddr]) -> io::Result<HashMap<u64, Duration>> {
    let mut all = HashMap::new();
    for listener in listeners {
        sock_diag::read(listener, |cookie, round_trip| {
            all.insert(cookie, round_trip);
        })?;
    }
    Ok(all)
}

fn count(registry: &Registry, read: &HashMap<u64, Duration>, metrics: &RoundTripMetrics) {
    for connection in registry.connections() {
        match connection.facts().socket.and_then(|socket| read.get(&socket)) {
            Some(round_trip) => metrics.seconds.observe(round_trip.as_secs_f64()),
            None => {
                metrics.unread.inc();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests; a skipped one says so")]

    use std::net::Ipv6Addr;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// A client of `listener` that was sent a byte, and what the node has of it.
    async fn connected(listener: &TcpListener, to: SocketAddr) -> (TcpStream, TcpStream) {
        let mut client = TcpStream::connect(to).await.unwrap();
        let (mut here, _) = listener.accept().await.unwrap();
        here.write_all(b"x").await.unwrap();
        client.read_exact(&mut [0]).await.unwrap();
        (client, here)
    }

    #[tokio::test]
    async fn the_kernel_tells_the_round_trips_of_a_listeners_connections_and_of_no_others() {
        for (address, dial) in [
            (SocketAddr::from(([127, 0, 0, 1], 0)), None),
            // IPv4 clients of a listener for both families.
            (SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)), Some([127, 0, 0, 1])),
        ] {
            let listener = TcpListener::bind(address).await.unwrap();
            let bound = listener.local_addr().unwrap();
            let to = dial.map_or(bound, |dial| SocketAddr::from((dial, bound.port())));
            let (one, two) = (connected(&listener, to).await, connected(&listener, to).await);
            let read = match read_all(&[bound]) {
                Ok(read) => read,
                // Sandboxes forbid netlink; a kernel may lack the module.
                Err(error) => return eprintln!("skipped: the kernel does not tell the round trips of sockets: {error}"),
            };
            assert_eq!(read.len(), 2, "{read:?}");
            for (client, here) in [&one, &two] {
                let round_trip = read[&cookie_of(here).unwrap()];
                assert!(round_trip > Duration::ZERO && round_trip < Duration::from_secs(1), "{round_trip:?}");
                assert!(!read.contains_key(&cookie_of(client).unwrap()), "the other end has another port");
            }
            drop((one, two));
        }
    }
}
