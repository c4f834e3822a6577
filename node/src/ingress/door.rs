//! The doors that clients come in by: from an accepted socket over TLS and HTTP to DERP, each step with a limit and a deadline.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::ProtocolVersion;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsAcceptor;

use super::derp::{DerpServer, UpgradedStream};
use super::http::{self, Door, Ended, Site};
use super::metrics::IngressMetrics;
use super::tls::challenges::ACME_TLS;
use crate::lifecycle::runtimes::adopt;
use crate::lifecycle::tasks::Tasks;
use crate::limits::connections::{ConnectionGate, ConnectionLimits, Permit};

/// A socket that waits longer for its turn to shake hands is closed before anything is read.
const HANDSHAKE_WAIT_MAX: Duration = Duration::from_secs(2);

/// How long a TLS handshake may take.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);

/// Connections to the metrics listener at the same time, and how long one may last.
const METRICS_CONNECTIONS_MAX: usize = 32;
const METRICS_CONNECTION_DEADLINE: Duration = Duration::from_secs(60);

/// What the doors are made of.
#[derive(Clone)]
pub struct DoorParts {
    /// TLS with the current certificate.
    pub tls: TlsAcceptor,
    /// What HTTP answers from.
    pub site: Arc<Site>,
    /// DERP.
    pub derp: Arc<DerpServer>,
    /// Who may connect.
    pub gate: Arc<ConnectionGate>,
    /// TLS handshakes at the same time.
    pub handshakes: usize,
    /// Where TLS, HTTP and login run.
    pub control: Handle,
    /// Whose reactor the sockets belong to.
    pub packet: Handle,
    /// Root of the tasks.
    pub tasks: Tasks,
    /// Counts what happens.
    pub metrics: IngressMetrics,
}

impl std::fmt::Debug for DoorParts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DoorParts").field("metrics", &self.metrics).finish_non_exhaustive()
    }
}

/// All doors of a node that speak HTTP.
pub struct Doors {
    parts: DoorParts,
    /// Replaced as a whole when its size changes: handshakes under way keep their place in the old one.
    handshakes: ArcSwap<Semaphore>,
    metrics_connections: Arc<Semaphore>,
}

impl std::fmt::Debug for Doors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Doors").field("site", &self.parts.site).finish_non_exhaustive()
    }
}

impl Doors {
    /// Doors that are open.
    #[must_use]
    pub fn new(parts: DoorParts) -> Arc<Self> {
        let handshakes = ArcSwap::from_pointee(Semaphore::new(parts.handshakes));
        Arc::new(Self { parts, handshakes, metrics_connections: Arc::new(Semaphore::new(METRICS_CONNECTIONS_MAX)) })
    }

    /// Goes on with other limits; handshakes under way are not disturbed.
    pub fn set_limits(&self, connections: ConnectionLimits, handshakes: usize) {
        self.parts.gate.set_limits(connections);
        self.handshakes.store(Arc::new(Semaphore::new(handshakes)));
    }

    /// Takes a socket that came in by `door`.
    pub fn take(self: &Arc<Self>, door: Door, socket: std::net::TcpStream, remote: SocketAddr) {
        match door {
            Door::Derp | Door::Plain => self.take_client(door, socket, remote),
            Door::Metrics => self.take_scrape(socket, remote),
        }
    }

    fn take_client(self: &Arc<Self>, door: Door, socket: std::net::TcpStream, remote: SocketAddr) {
        // Refused before anything is spent on the socket; dropping it closes it.
        let permit = match self.parts.gate.admit(remote.ip(), Instant::now().into_std()) {
            Ok(permit) => permit,
            Err(refusal) => return self.parts.metrics.refused(door.label(), refusal.label()),
        };
        let Ok(socket) = adopt(&self.parts.packet, socket) else {
            return self.parts.metrics.refused(door.label(), "reactor");
        };
        let doors = Arc::clone(self);
        let serve = async move {
            let evicted = permit.evicted();
            let served = async {
                match door {
                    Door::Derp => doors.serve_tls(socket, remote, permit).await,
                    Door::Plain | Door::Metrics => doors.serve_http(Door::Plain, socket, remote, permit).await,
                }
            };
            tokio::select! {
                () = doors.parts.tasks.cancel.cancelled() => {}
                () = evicted.cancelled() => doors.parts.metrics.refused(door.label(), "evicted"),
                refused = served => if let Err(reason) = refused {
                    doors.parts.metrics.refused(door.label(), reason);
                },
            }
        };
        self.parts.tasks.spawn_on(&self.parts.control, serve);
    }

    async fn serve_tls(&self, socket: TcpStream, remote: SocketAddr, permit: Permit) -> Result<(), &'static str> {
        let turns = self.handshakes.load_full();
        let turn = timeout(HANDSHAKE_WAIT_MAX, turns.acquire()).await.map_err(|_| "handshake_queue")?;
        let by = (Instant::now() + HANDSHAKE_DEADLINE).min(permit.login_deadline().into());
        let handshake = timeout_at(by, self.parts.tls.accept(socket)).await;
        drop(turn);
        let outcome = match &handshake {
            Ok(Ok(_)) => "ok",
            Ok(Err(_)) => "failed",
            Err(_) => "timeout",
        };
        self.parts.metrics.tls_handshake(outcome);
        match handshake {
            // The handshake was the answer, and all that there is to say (RFC 8737 section 3).
            Ok(Ok(stream)) if stream.get_ref().1.alpn_protocol() == Some(ACME_TLS) => Ok(()),
            Ok(Ok(stream)) => {
                let _active = self.parts.metrics.tls_connection(version_label(stream.get_ref().1.protocol_version()));
                self.serve_http(Door::Derp, stream, remote, permit).await
            }
            Ok(Err(error)) => {
                tracing::debug!(%remote, %error, "TLS handshake failed");
                Err("tls_failed")
            }
            Err(_) => Err("tls_timeout"),
        }
    }

    async fn serve_http<Io>(&self, door: Door, io: Io, remote: SocketAddr, permit: Permit) -> Result<(), &'static str>
    where
        Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        match http::serve(io, door, &self.parts.site, remote, permit.login_deadline().into()).await {
            Ended::Closed(None) => Ok(()),
            Ended::Closed(Some(reason)) => Err(reason),
            Ended::Derp { io, buffered, head } => {
                let ideal_node = head.ideal_node().map(ToOwned::to_owned);
                let upgraded = UpgradedStream { io, buffered, remote, fast_start: head.fast_start(), ideal_node, permit };
                self.parts.derp.serve(upgraded).await;
                Ok(())
            }
        }
    }

    fn take_scrape(self: &Arc<Self>, socket: std::net::TcpStream, remote: SocketAddr) {
        let Ok(place) = Arc::clone(&self.metrics_connections).try_acquire_owned() else {
            return self.parts.metrics.refused(Door::Metrics.label(), "total");
        };
        let Ok(socket) = adopt(&self.parts.control, socket) else {
            return self.parts.metrics.refused(Door::Metrics.label(), "reactor");
        };
        let doors = Arc::clone(self);
        let serve = async move {
            let by = Instant::now() + METRICS_CONNECTION_DEADLINE;
            tokio::select! {
                () = doors.parts.tasks.cancel.cancelled() => {}
                ended = http::serve(socket, Door::Metrics, &doors.parts.site, remote, by) => match ended {
                    Ended::Closed(Some(reason)) => doors.parts.metrics.refused(Door::Metrics.label(), reason),
                    Ended::Closed(None) | Ended::Derp { .. } => {}
                },
            }
            drop(place);
        };
        self.parts.tasks.spawn_on(&self.parts.control, serve);
    }
}

const fn version_label(version: Option<ProtocolVersion>) -> &'static str {
    match version {
        Some(ProtocolVersion::TLSv1_2) => "1.2",
        Some(ProtocolVersion::TLSv1_3) => "1.3",
        _ => "unknown",
    }
}
