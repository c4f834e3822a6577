//! The doors that clients come in by: from an accepted socket over TLS and HTTP to DERP, each step with a limit and a deadline.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::BytesMut;
use causeway_proto::websocket::Handshake;
use rustls::ProtocolVersion;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::derp::{DerpServer, Opening, UpgradedStream};
use super::http::{self, Door, Ended, Site};
use super::metrics::IngressMetrics;
use super::proxy;
use super::round_trips::cookie_of;
use super::tls::HTTP2;
use super::tls::challenges::ACME_TLS;
use super::websocket::{self, WebSocketStream};
use crate::config::Cidr;
use crate::lifecycle::runtimes::adopt;
use crate::lifecycle::tasks::{Executor, Tasks};
use crate::limits::connections::{ConnectionGate, ConnectionLimits, Permit, Refusal};

/// A socket that waits longer for its turn to shake hands is closed before anything is read.
const HANDSHAKE_WAIT_MAX: Duration = Duration::from_secs(2);

/// How long a TLS handshake may take.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);

/// Connections to the metrics listener at the same time, and how long one may last.
const METRICS_CONNECTIONS_MAX: usize = 32;
const METRICS_CONNECTION_DEADLINE: Duration = Duration::from_secs(60);

/// How long one connection of an HTTP proxy may last that carries requests of many clients.
const PROXY_CONNECTION_DEADLINE: Duration = Duration::from_secs(60);

/// From whom PROXY headers are taken, who then must send them; per listener.
#[derive(Clone, Debug, Default)]
pub struct Balancers {
    /// Of the TLS listener.
    pub derp: Vec<Cidr>,
    /// Of the plain one.
    pub plain_http: Vec<Cidr>,
}

impl Balancers {
    fn of(&self, door: Door) -> &[Cidr] {
        match door {
            Door::Derp => &self.derp,
            Door::Plain => &self.plain_http,
            Door::Metrics => &[],
        }
    }
}

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
    /// Whose PROXY headers are taken.
    pub balancers: Balancers,
    /// Connections at the same time of proxies whose client is not known yet.
    pub proxied: usize,
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
    proxied: Arc<Semaphore>,
    metrics_connections: Arc<Semaphore>,
}

/// How a socket came.
enum Arrived {
    Directly(Entry),
    /// From a load balancer that is about to name the client.
    Proxied(OwnedSemaphorePermit),
}

/// The place that a connection takes.
enum Entry {
    Client(Permit),
    /// A proxy's, over which requests of many clients come. What one of them upgrades gets a place of its own.
    Proxy(OwnedSemaphorePermit),
}

impl Entry {
    /// Until when HTTP may be spoken.
    fn deadline(&self) -> Instant {
        match self {
            Self::Client(permit) => permit.login_deadline().into(),
            Self::Proxy(_) => Instant::now() + PROXY_CONNECTION_DEADLINE,
        }
    }

    fn evicted(&self) -> CancellationToken {
        match self {
            Self::Client(permit) => permit.evicted(),
            Self::Proxy(_) => CancellationToken::new(),
        }
    }
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
        let proxied = Arc::new(Semaphore::new(parts.proxied));
        Arc::new(Self { parts, handshakes, proxied, metrics_connections: Arc::new(Semaphore::new(METRICS_CONNECTIONS_MAX)) })
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
        let arrived = if self.parts.balancers.of(door).iter().any(|network| network.contains(remote.ip())) {
            Arc::clone(&self.proxied).try_acquire_owned().map(Arrived::Proxied).map_err(|_| "proxied_total")
        } else {
            // Refused before anything is spent on the socket; dropping it closes it.
            self.entry(remote).map(Arrived::Directly)
        };
        let arrived = match arrived {
            Ok(arrived) => arrived,
            Err(reason) => return self.parts.metrics.refused(door.label(), reason),
        };
        let Ok(socket) = adopt(&self.parts.packet, socket) else {
            return self.parts.metrics.refused(door.label(), "reactor");
        };
        let doors = Arc::clone(self);
        let serve = async move {
            tokio::select! {
                () = doors.parts.tasks.cancel.cancelled() => {}
                served = doors.serve(door, socket, remote, arrived) => if let Err(reason) = served {
                    doors.parts.metrics.refused(door.label(), reason);
                },
            }
        };
        self.parts.tasks.spawn_on(&self.parts.control, serve);
    }

    /// The place of a client's connection, or of one over which a proxy sends the requests of many.
    fn entry(&self, remote: SocketAddr) -> Result<Entry, &'static str> {
        if self.parts.site.trusts(&remote) {
            return Arc::clone(&self.proxied).try_acquire_owned().map(Entry::Proxy).map_err(|_| "proxied_total");
        }
        self.admit(remote).map(Entry::Client)
    }

    fn admit(&self, client: SocketAddr) -> Result<Permit, &'static str> {
        self.parts.gate.admit(client.ip(), Instant::now().into_std()).map_err(Refusal::label)
    }

    async fn serve(&self, door: Door, mut socket: TcpStream, remote: SocketAddr, arrived: Arrived) -> Result<(), &'static str> {
        let (remote, entry, is_proxied) = match arrived {
            Arrived::Directly(entry) => (remote, entry, false),
            Arrived::Proxied(_place) => {
                let remote = self.named_by_balancer(door, &mut socket, remote).await?;
                (remote, self.entry(remote)?, true)
            }
        };
        let evicted = entry.evicted();
        let served = async {
            if !is_proxied {
                self.refuse_proxy_header(door, &socket, entry.deadline()).await?;
            }
            match door {
                Door::Derp => self.serve_tls(socket, remote, entry).await,
                Door::Plain | Door::Metrics => {
                    let cookie = cookie_of(&socket);
                    self.serve_http(Door::Plain, (Box::new(socket), cookie), remote, entry).await
                }
            }
        };
        tokio::select! {
            () = evicted.cancelled() => Err("evicted"),
            served = served => served,
        }
    }

    /// Where load balancers name clients, nobody else may.
    async fn refuse_proxy_header(&self, door: Door, socket: &TcpStream, by: Instant) -> Result<(), &'static str> {
        if self.parts.balancers.of(door).is_empty() {
            return Ok(());
        }
        let sends_header = timeout_at(by, proxy::sends_header(socket)).await.map_err(|_| "silent")?;
        if sends_header { Err("proxy_untrusted") } else { Ok(()) }
    }

    async fn named_by_balancer(
        &self,
        door: Door,
        socket: &mut TcpStream,
        remote: SocketAddr,
    ) -> Result<SocketAddr, &'static str> {
        let client = proxy::client_of(socket).await.map_err(|error| {
            tracing::debug!(%remote, %error, "connection of a load balancer refused");
            error.reason()
        })?;
        if client.is_some() {
            self.parts.metrics.proxied(door.label(), "proxy_protocol");
        }
        Ok(client.unwrap_or(remote))
    }

    async fn serve_tls(&self, socket: TcpStream, remote: SocketAddr, entry: Entry) -> Result<(), &'static str> {
        let cookie = cookie_of(&socket);
        let turns = self.handshakes.load_full();
        let turn = timeout(HANDSHAKE_WAIT_MAX, turns.acquire()).await.map_err(|_| "handshake_queue")?;
        let by = (Instant::now() + HANDSHAKE_DEADLINE).min(entry.deadline());
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
                let session = stream.get_ref().1;
                let _active = self.parts.metrics.tls_connection(version_label(session.protocol_version()));
                if session.alpn_protocol() == Some(HTTP2) {
                    return self.serve_http2(Box::new(stream), remote, entry).await;
                }
                self.serve_http(Door::Derp, (Box::new(stream), cookie), remote, entry).await
            }
            Ok(Err(error)) => {
                tracing::debug!(%remote, %error, "TLS handshake failed");
                Err("tls_failed")
            }
            Err(_) => Err("tls_timeout"),
        }
    }

    async fn serve_http2(&self, io: AnyStream, remote: SocketAddr, entry: Entry) -> Result<(), &'static str> {
        let executor = Executor::new(self.parts.control.clone(), self.parts.tasks.clone());
        http::http2::serve(io, Door::Derp, &self.parts.site, remote, entry.deadline(), executor).await
    }

    /// The stream comes with the kernel's name for its socket.
    async fn serve_http(
        &self,
        door: Door,
        (io, socket): (AnyStream, Option<u64>),
        remote: SocketAddr,
        entry: Entry,
    ) -> Result<(), &'static str> {
        match http::serve(io, door, &self.parts.site, remote, entry.deadline()).await {
            Ended::Closed(None) => Ok(()),
            Ended::Closed(Some(reason)) => Err(reason),
            Ended::Derp { io, buffered, head, client, websocket } => {
                if client != remote {
                    self.parts.metrics.proxied(door.label(), "forwarded_for");
                }
                let permit = match entry {
                    Entry::Client(permit) => permit,
                    Entry::Proxy(_place) => self.admit(client)?,
                };
                let ideal_node = head.ideal_node().map(ToOwned::to_owned);
                let opening = if head.fast_start() { Opening::FastStart } else { Opening::Upgrade };
                let upgraded = UpgradedStream { io, buffered, remote: client, socket, opening, ideal_node, permit };
                match websocket {
                    Some(handshake) => Box::pin(self.serve_websocket(&handshake, upgraded)).await,
                    None => {
                        Box::pin(self.parts.derp.serve(upgraded)).await;
                        Ok(())
                    }
                }
            }
        }
    }

    async fn serve_websocket(&self, handshake: &Handshake, upgraded: UpgradedStream<AnyStream>) -> Result<(), &'static str> {
        let UpgradedStream { mut io, buffered, remote, socket, ideal_node, permit, .. } = upgraded;
        let answer = async {
            io.write_all(websocket::switching_protocols(handshake, (self.parts.site.clock)()).as_bytes()).await?;
            if handshake.speaks_derp { io.flush().await } else { websocket::refuse(&mut io).await }
        };
        let by = permit.login_deadline().into();
        timeout_at(by, answer).await.map_err(|_| "http_write_timeout")?.map_err(|_| "http_io")?;
        if !handshake.speaks_derp {
            return Err("websocket_subprotocol");
        }
        let io: AnyStream = Box::new(WebSocketStream::new(io, buffered).map_err(|_| "websocket_protocol")?);
        let opening = Opening::WebSocket;
        self.parts
            .derp
            .serve(UpgradedStream { io, buffered: BytesMut::new(), remote, socket, opening, ideal_node, permit })
            .await;
        Ok(())
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
                ended = http::serve(Box::new(socket) as AnyStream, Door::Metrics, &doors.parts.site, remote, by) => match ended {
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

/// TLS, plain or WebSocket: one type for what follows. Generic over them, this crate takes eight minutes to compile.
type AnyStream = Box<dyn Stream>;

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<Io: AsyncRead + AsyncWrite + Unpin + Send> Stream for Io {}
