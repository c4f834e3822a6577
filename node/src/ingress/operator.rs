//! The operator's doors: a Unix socket guarded by file permissions, and mutual TLS under the operators' own CA. Both lead to the same
//! gRPC services; on the TLS port each method needs a role, and what is not listed is denied (threat model section 4.6).

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use causeway_control::{MeshTls, Status as ControlStatus};
use http::Request;
use parking_lot::Mutex;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::Connected;
use tower::{Layer, Service};

use super::metrics::IngressMetrics;
use crate::lifecycle::runtimes::adopt;
use crate::lifecycle::tasks::Tasks;
use crate::limits::bucket::{Rate, TokenBucket};
use crate::telemetry::grpc::TraceLayer;

/// Connections of operators, and requests at the same time on each.
const CONNECTIONS_MAX: usize = 32;
const STREAMS_MAX: u32 = 16;

/// Bytes of a request's header list.
const HEADER_LIST_MAX: u32 = 16 * 1024;

/// Requests of all operators together on the TLS port.
const REQUEST_RATE: Rate = Rate { per_second: 10, burst: 100 };

/// How long a TLS handshake may take.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);

/// HTTP/2 ping of an idle connection, and how long its answer may take.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Requests under way may end for so long after shutdown began.
const GRACE: Duration = Duration::from_secs(1);

/// Backlog of the socket.
const BACKLOG: i32 = 64;

/// Longest path a Unix socket can have.
const SOCKET_PATH_LEN_MAX: usize = 107;

/// The log target of what operators change, or try to.
pub const AUDIT_TARGET: &str = "audit";

/// The label of these doors in metrics.
pub const LABEL: &str = "operator";

/// What a caller may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Reads.
    Viewer,
    /// Reads and changes.
    Operator,
}

impl Role {
    fn of_organization(name: &str) -> Option<Self> {
        match name {
            "viewer" => Some(Self::Viewer),
            "operator" => Some(Self::Operator),
            _ => None,
        }
    }
}

/// Which role a method needs; `None`: nobody may call it over TLS.
fn role_needed(method: &str) -> Option<Role> {
    const READS: [&str; 13] = [
        "GetNodeStatus",
        "GetClusterStatus",
        "ListNodes",
        "ListRegions",
        "GetPresence",
        "ListPresence",
        "WatchPresence",
        "CountPresence",
        "GetDerpMap",
        "GetDerpMapSettings",
        "GetRaftStatus",
        "Trace",
        "Ping",
    ];
    match method.strip_prefix('/')?.split_once('/')? {
        ("causeway.v1.Operator", name) if READS.contains(&name) => Some(Role::Viewer),
        ("causeway.v1.Operator", "InitCluster" | "EvictNode" | "SetDerpMapSettings" | "ReloadConfiguration") => {
            Some(Role::Operator)
        }
        ("grpc.health.v1.Health", "Check" | "Watch" | "List") => Some(Role::Viewer),
        ("grpc.reflection.v1.ServerReflection", "ServerReflectionInfo") => Some(Role::Viewer),
        _ => None,
    }
}

/// The operator socket cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The path is too long for a Unix socket.
    #[error("operator.socket: {} is longer than {SOCKET_PATH_LEN_MAX} bytes: choose a shorter path", .0.display())]
    PathTooLong(PathBuf),
    /// Somebody answers on it.
    #[error("operator.socket: {}: another process serves this socket: stop it, or choose another path", .0.display())]
    InUse(PathBuf),
    /// Something else is there.
    #[error("operator.socket: {} exists and is not a socket: move it away, or choose another path", .0.display())]
    NotASocket(PathBuf),
    /// The system refuses.
    #[error("operator.socket: {}: {source}", path.display())]
    Io {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// The bound operator socket; removed on drop.
#[derive(Debug)]
pub struct OperatorSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl OperatorSocket {
    /// Binds the socket, for its owner only. One that a dead process left behind is replaced.
    ///
    /// # Errors
    /// [`SocketError`].
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        let failed = |source| SocketError::Io { path: path.to_owned(), source };
        if path.as_os_str().len() > SOCKET_PATH_LEN_MAX {
            return Err(SocketError::PathTooLong(path.to_owned()));
        }
        clear_stale(path)?;
        if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(parent).map_err(failed)?;
        }
        let bind = || {
            let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
            socket.bind(&SockAddr::unix(path)?)?;
            // Nobody can connect before `listen`.
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
            socket.listen(BACKLOG)?;
            UnixListener::from_std(std::os::fd::OwnedFd::from(socket).into())
        };
        Ok(Self { listener: bind().map_err(failed)?, path: path.to_owned() })
    }

    /// Hands connections to the server until cancelled.
    pub async fn run(self, door: Arc<OperatorDoor>, cancel: CancellationToken) {
        loop {
            let accepted = tokio::select! {
                () = cancel.cancelled() => return,
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => {
                    let who = who_by_socket(&stream);
                    door.take(Box::new(stream), Role::Operator, who).await;
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept on the operator socket");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }
}

impl Drop for OperatorSocket {
    fn drop(&mut self) {
        // A socket left behind is cleared by the next start.
        drop(std::fs::remove_file(&self.path));
    }
}

fn clear_stale(path: &Path) -> Result<(), SocketError> {
    let failed = |source| SocketError::Io { path: path.to_owned(), source };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => return Err(SocketError::NotASocket(path.to_owned())),
        Ok(_) => {}
    }
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(SocketError::InUse(path.to_owned()));
    }
    std::fs::remove_file(path).map_err(failed)
}

/// The gRPC server behind both doors.
pub struct OperatorDoor {
    connections: mpsc::Sender<io::Result<Connection>>,
    places: Arc<Semaphore>,
    handshakes: Arc<Semaphore>,
    metrics: IngressMetrics,
}

impl std::fmt::Debug for OperatorDoor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OperatorDoor").finish_non_exhaustive()
    }
}

impl OperatorDoor {
    /// The door, and the server that must be run.
    pub fn new(
        routes: Routes,
        metrics: IngressMetrics,
        cancel: CancellationToken,
    ) -> (Arc<Self>, impl Future<Output = ()> + Send) {
        let (connections, incoming) = mpsc::channel(CONNECTIONS_MAX);
        let places = || Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let door = Self { connections, places: places(), handshakes: places(), metrics };
        let authorize = AuthorizeLayer { bucket: Arc::new(Mutex::new(TokenBucket::new(REQUEST_RATE, now()))) };
        let serve = Server::builder()
            .max_concurrent_streams(STREAMS_MAX)
            .concurrency_limit_per_connection(STREAMS_MAX as usize)
            .http2_max_header_list_size(HEADER_LIST_MAX)
            .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
            .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
            .layer(authorize)
            .layer(TraceLayer::STARTS)
            .add_routes(routes)
            .serve_with_incoming_shutdown(ReceiverStream::new(incoming), cancel.clone().cancelled_owned());
        let run = async move {
            let cut = async {
                cancel.cancelled().await;
                tokio::time::sleep(GRACE).await;
            };
            tokio::select! {
                ended = serve => if let Err(error) = ended {
                    tracing::error!(%error, "the operator server ended");
                },
                () = cut => {}
            }
        };
        (Arc::new(door), run)
    }

    async fn take(&self, stream: Box<dyn Stream>, role: Role, who: String) {
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            return self.metrics.refused(LABEL, "total");
        };
        let local = stream.is_local();
        let connection = Connection { stream, caller: Caller { role, local, who: who.into() }, _place: place };
        if self.connections.send(Ok(connection)).await.is_err() {
            self.metrics.refused(LABEL, "shutdown");
        }
    }

    /// Shakes hands with an operator who came in by TCP.
    async fn take_tls(&self, socket: TcpStream, remote: SocketAddr, config: Result<ServerConfig, &'static str>) {
        let config = match config {
            Ok(config) => config,
            Err(reason) => return self.metrics.refused(LABEL, reason),
        };
        let handshake = TlsAcceptor::from(Arc::new(config)).accept(socket);
        match tokio::time::timeout(HANDSHAKE_DEADLINE, handshake).await {
            Ok(Ok(stream)) => match role_of(&stream) {
                Some((role, name)) => {
                    self.take(Box::new(stream), role, format!("certificate {name:?} from {remote}")).await;
                }
                None => self.metrics.refused(LABEL, "no_role"),
            },
            Ok(Err(error)) => {
                tracing::debug!(%remote, %error, "refused an operator");
                self.metrics.refused(LABEL, "tls_failed");
            }
            Err(_) => self.metrics.refused(LABEL, "tls_timeout"),
        }
    }
}

/// The operator's TCP listener leads here.
#[derive(Clone, Debug)]
pub struct OperatorPort {
    /// The server behind it.
    pub door: Arc<OperatorDoor>,
    /// The node's own certificate.
    pub tls: Arc<MeshTls>,
    /// Knows the operators' CA.
    pub status: ControlStatus,
    /// Where handshakes run.
    pub runtime: Handle,
    /// Root of the tasks.
    pub tasks: Tasks,
}

impl OperatorPort {
    /// Takes an accepted socket.
    pub fn take(&self, socket: std::net::TcpStream, remote: SocketAddr) {
        let Ok(place) = Arc::clone(&self.door.handshakes).try_acquire_owned() else {
            return self.door.metrics.refused(LABEL, "handshake_queue");
        };
        let Ok(socket) = adopt(&self.runtime, socket) else {
            return self.door.metrics.refused(LABEL, "reactor");
        };
        let port = self.clone();
        let shake = async move {
            // The certificates of this moment: both may have changed since the last connection.
            let config = server_config(port.status.operator_ca(), port.tls.server_certificate());
            tokio::select! {
                () = port.tasks.cancel.cancelled() => {}
                () = port.door.take_tls(socket, remote, config) => {}
            }
            drop(place);
        };
        self.tasks.spawn_on(&self.runtime, shake);
    }
}

/// TLS 1.3 with the node's own certificate, for holders of a certificate under the operators' CA.
fn server_config(
    operator_ca: Bytes,
    (certificate, key): (CertificateDer<'static>, PrivateKeyDer<'static>),
) -> Result<ServerConfig, &'static str> {
    if operator_ca.is_empty() {
        return Err("no_operator_ca");
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(operator_ca.to_vec())).map_err(|_| "bad_operator_ca")?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
    let verifier = verifier.build().map_err(|_| "bad_operator_ca")?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .and_then(|builder| builder.with_client_cert_verifier(verifier).with_single_cert(vec![certificate], key))
        .map_err(|_| "own_certificate")?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(config)
}

/// The account at the other end of the Unix socket.
fn who_by_socket(stream: &UnixStream) -> String {
    match stream.peer_cred() {
        Ok(peer) => format!("uid {}", peer.uid()),
        Err(error) => format!("unknown on the socket ({error})"),
    }
}

fn role_of(stream: &TlsStream<TcpStream>) -> Option<(Role, String)> {
    let certificate = stream.get_ref().1.peer_certificates()?.first()?;
    role_in(certificate)
}

/// What the one Organization of an operator's certificate allows, and whose it is.
fn role_in(certificate: &CertificateDer<'_>) -> Option<(Role, String)> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let mut organizations = certificate.subject().iter_organization();
    let role = Role::of_organization(organizations.next()?.as_str().ok()?);
    let name = certificate.subject().iter_common_name().next().and_then(|name| name.as_str().ok()).unwrap_or_default();
    role.filter(|_| organizations.next().is_none()).map(|role| (role, name.to_owned()))
}

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Who calls, as every request's extensions tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// What they may do.
    pub role: Role,
    /// By the Unix socket.
    pub local: bool,
    /// The account of this machine, or the certificate's name and where it comes from; for the audit log.
    pub who: Arc<str>,
}

impl Caller {
    /// Who sent a request; every request of these doors has a caller.
    #[must_use]
    pub fn of<T>(request: &tonic::Request<T>) -> Self {
        let unknown = || Self { role: Role::Viewer, local: false, who: "unknown".into() };
        request.extensions().get::<Self>().cloned().unwrap_or_else(unknown)
    }
}

/// A byte stream of either door.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {
    fn is_local(&self) -> bool;
}

impl Stream for UnixStream {
    fn is_local(&self) -> bool {
        true
    }
}

impl Stream for TlsStream<TcpStream> {
    fn is_local(&self) -> bool {
        false
    }
}

struct Connection {
    stream: Box<dyn Stream>,
    caller: Caller,
    _place: OwnedSemaphorePermit,
}

impl Connected for Connection {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Lets a request through to its method, or answers it.
#[derive(Clone)]
struct AuthorizeLayer {
    bucket: Arc<Mutex<TokenBucket>>,
}

impl<S> Layer<S> for AuthorizeLayer {
    type Service = Authorize<S>;

    fn layer(&self, inner: S) -> Authorize<S> {
        Authorize { inner, bucket: Arc::clone(&self.bucket) }
    }
}

#[derive(Clone)]
struct Authorize<S> {
    inner: S,
    bucket: Arc<Mutex<TokenBucket>>,
}

impl<S> Authorize<S> {
    /// Why a request is not let through. The socket's owner may do everything.
    fn refusal<B>(&self, request: &Request<B>) -> Option<Status> {
        let method = request.uri().path();
        let Some(caller) = request.extensions().get::<Caller>() else {
            return Some(Status::internal("the connection has no caller"));
        };
        if caller.local {
            return None;
        }
        if !self.bucket.lock().take(1, now()) {
            return Some(Status::resource_exhausted("too many requests of operators: at most 10 per second"));
        }
        match role_needed(method) {
            Some(needed) if caller.role >= needed => None,
            Some(_) => {
                tracing::info!(target: AUDIT_TARGET, who = %caller.who, action = method, result = "denied", "an operator's action");
                Some(Status::permission_denied(format!("{method} needs a certificate with the role operator")))
            }
            None => Some(Status::permission_denied(format!("{method} cannot be called on this port"))),
        }
    }
}

impl<S, B, R> Service<Request<B>> for Authorize<S>
where
    S: Service<Request<B>, Response = http::Response<R>, Error: Send + 'static, Future: Send + 'static>,
    R: Default + Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        match self.refusal(&request) {
            Some(status) => Box::pin(std::future::ready(Ok(status.into_http()))),
            None => Box::pin(self.inner.call(request)),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use prost::Message;
    use prost_types::FileDescriptorSet;
    use rcgen::{CertificateParams, DnType, KeyPair};

    use super::*;

    #[test]
    fn every_method_has_a_role_and_only_reads_are_for_viewers() {
        let schema = FileDescriptorSet::decode(causeway_rpc::FILE_DESCRIPTOR_SET).unwrap();
        let services = schema.file.iter().flat_map(|file| &file.service);
        let operator = services.clone().find(|service| service.name() == "Operator").unwrap();
        for method in &operator.method {
            let role = role_needed(&format!("/causeway.v1.Operator/{}", method.name()));
            let changes = ["InitCluster", "EvictNode", "SetDerpMapSettings", "ReloadConfiguration"];
            let wanted = if changes.contains(&method.name()) { Role::Operator } else { Role::Viewer };
            assert_eq!(role, Some(wanted), "{}", method.name());
        }
        for service in services.filter(|service| service.name() != "Operator") {
            for method in &service.method {
                assert_eq!(role_needed(&format!("/causeway.v1.{}/{}", service.name(), method.name())), None);
            }
        }
        assert_eq!(role_needed("/causeway.v1.Operator/Unknown"), None);
        assert_eq!(role_needed("nonsense"), None);
    }

    #[test]
    fn a_role_is_exactly_one_known_organization() {
        let role = |organizations: &[&str]| {
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::CommonName, "operator");
            for organization in organizations {
                params.distinguished_name.push(DnType::OrganizationName, *organization);
            }
            let role = role_in(params.self_signed(&KeyPair::generate().unwrap()).unwrap().der());
            role.map(|(role, name)| {
                assert_eq!(name, "operator");
                role
            })
        };
        assert_eq!(role(&["viewer"]), Some(Role::Viewer));
        assert_eq!(role(&["operator"]), Some(Role::Operator));
        assert_eq!(role(&["Operator"]), None);
        assert_eq!(role(&[]), None);
    }

    #[tokio::test]
    async fn the_socket_is_private_replaces_a_stale_one_and_never_a_live_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("inner/operator.sock");
        let socket = OperatorSocket::bind(&path).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        assert!(matches!(OperatorSocket::bind(&path), Err(SocketError::InUse(_))));
        drop(socket);
        // As a killed process leaves it.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        OperatorSocket::bind(&path).unwrap();
    }
}
