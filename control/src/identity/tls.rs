//! Mutual TLS 1.3 between nodes: one port, two protocols by ALPN, peers told apart by the keys of their certificates.

mod verifier;

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use causeway_proto::id::NodeId;
use parking_lot::Mutex;
use rustls::client::WebPkiServerVerifier;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{AlertDescription, CertificateError, ClientConfig, RootCertStore, ServerConfig};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::certificate::{MESH_SERVER_NAME, MintedCertificate};
use super::{FleetTrust, NodeKey, PeerIdentity};
use verifier::{NamingVerifier, SeenIssuer};

/// A whole handshake, both ways, must be over by then.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// An established node-to-node connection.
pub type MeshStream = TlsStream<TcpStream>;

/// What is spoken on a node-to-node connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Alpn {
    /// gRPC: watch, Raft, fleet, routing.
    Grpc,
    /// `causeway-link/1`: packets.
    Link,
}

impl Alpn {
    /// The protocol's name in the TLS handshake.
    #[must_use]
    pub const fn as_bytes(self) -> &'static [u8] {
        match self {
            Self::Grpc => b"h2",
            Self::Link => b"causeway-link/1",
        }
    }
}

/// Why a node-to-node connection was not made, split by what the caller does next.
#[derive(Debug, thiserror::Error)]
pub enum MeshTlsError {
    /// The peer's certificate is from another mesh key, or it says ours is.
    #[error(
        "wrong mesh key: the peer's key has fingerprint {theirs}, ours {ours}; give both nodes the same mesh key file",
        theirs = theirs.as_deref().unwrap_or("not told (it refused our certificate)")
    )]
    WrongMeshKey {
        /// Fingerprint in the peer's issuer name; `None` if the peer refused us before we saw it.
        theirs: Option<String>,
        /// Fingerprint of the mesh key we mint from.
        ours: String,
    },
    /// Somebody of the fleet answered, but not the node dialled.
    #[error("node {found} answered instead of node {expected}")]
    WrongNode {
        /// Whom we dialled.
        expected: NodeId,
        /// Who answered.
        found: NodeId,
    },
    /// The node was evicted from the fleet.
    #[error("node {0} is evicted from the fleet")]
    NotAllowed(NodeId),
    /// The peer speaks no protocol of ours.
    #[error("the peer offered no known application protocol")]
    Protocol,
    /// Not done within [`HANDSHAKE_TIMEOUT`].
    #[error("no TLS handshake within {} s", HANDSHAKE_TIMEOUT.as_secs())]
    Timeout,
    /// The peer's certificate is not valid at this time: one of the two clocks is far off.
    #[error("the peer's certificate is not valid at this time: this node's clock or the peer's is off by days")]
    CertificateTime,
    /// The transport failed, or the peer broke TLS.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// Makes and accepts node-to-node connections.
#[derive(Debug)]
pub struct MeshTls {
    trust: FleetTrust,
    key: NodeKey,
    provider: Arc<CryptoProvider>,
    server_verifier: Arc<WebPkiServerVerifier>,
    client_verifier: Arc<dyn ClientCertVerifier>,
    certificate: Mutex<MintedCertificate>,
    evicted: watch::Sender<BTreeSet<NodeId>>,
}

impl MeshTls {
    /// Prepares TLS under `trust` for the node of `key`.
    ///
    /// # Panics
    /// Never: the derived authorities are valid roots.
    #[must_use]
    pub fn new(trust: FleetTrust, key: NodeKey) -> Self {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        for ca in trust.authorities() {
            roots.add(ca.certificate().clone()).expect("a derived authority is a valid root");
        }
        let roots = Arc::new(roots);
        let server_verifier = WebPkiServerVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
            .build()
            .expect("there is at least one root");
        let client_verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider))
            .build()
            .expect("there is at least one root");
        let certificate = Mutex::new(MintedCertificate::mint(&trust.current, &key, SystemTime::now()));
        Self { trust, key, provider, server_verifier, client_verifier, certificate, evicted: watch::Sender::default() }
    }

    /// This node, as its peers see it.
    #[must_use]
    pub const fn identity(&self) -> PeerIdentity {
        self.key.identity()
    }

    /// Fingerprint of the mesh key that this node mints its certificate from.
    pub(crate) fn fingerprint(&self) -> &str {
        self.trust.current.fingerprint()
    }

    /// The fleet CA's certificate: what operators check this node's operator port against. Public.
    #[must_use]
    pub fn ca_certificate(&self) -> &CertificateDer<'static> {
        self.trust.current.certificate()
    }

    /// This node's certificate of the moment and its key, for the operator port.
    #[must_use]
    pub fn server_certificate(&self) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        (self.certificate(), PrivateKeyDer::Pkcs8(self.key.pkcs8()))
    }

    /// Replaces the set of nodes that are refused although they hold the mesh key.
    pub fn set_evicted(&self, evicted: BTreeSet<NodeId>) {
        self.evicted.send_if_modified(|known| {
            let changed = *known != evicted;
            *known = evicted;
            changed
        });
    }

    /// Waits until `node` is evicted: what is open to it must close. Cancel safe.
    ///
    /// # Panics
    /// Never: the set lives as long as this.
    pub async fn evicted(&self, node: NodeId) {
        self.evicted.subscribe().wait_for(|evicted| evicted.contains(&node)).await.expect("its sender is borrowed here");
    }

    /// Takes the server side of a handshake on an accepted socket.
    ///
    /// # Errors
    /// [`MeshTlsError`]; the socket is closed then.
    pub async fn accept(&self, socket: TcpStream) -> Result<(MeshStream, PeerIdentity, Alpn), MeshTlsError> {
        let issuer = Arc::new(OnceLock::new());
        let acceptor = TlsAcceptor::from(Arc::new(self.server_config(&issuer)));
        let stream = within_deadline(acceptor.accept(socket)).await?.map_err(|error| self.explain(error, &issuer))?;
        let peer = self.admit(stream.get_ref().1.peer_certificates())?;
        let alpn = match stream.get_ref().1.alpn_protocol() {
            Some(name) if name == Alpn::Grpc.as_bytes() => Alpn::Grpc,
            Some(name) if name == Alpn::Link.as_bytes() => Alpn::Link,
            _ => return Err(MeshTlsError::Protocol),
        };
        Ok((TlsStream::Server(stream), peer, alpn))
    }

    /// Dials `addr` (HOST:PORT), without Nagle's delay, and takes the client side of the handshake. With `expected`, only that node will do.
    ///
    /// # Errors
    /// [`MeshTlsError`].
    pub async fn connect(
        &self,
        addr: &str,
        expected: Option<NodeId>,
        alpn: Alpn,
    ) -> Result<(MeshStream, PeerIdentity), MeshTlsError> {
        let socket = within_deadline(TcpStream::connect(addr)).await??;
        socket.set_nodelay(true)?;
        self.connect_over(socket, expected, alpn).await
    }

    /// Takes the client side of a handshake on a connected socket. With `expected`, only that node will do.
    ///
    /// # Errors
    /// [`MeshTlsError`]; the socket is closed then.
    pub async fn connect_over(
        &self,
        socket: TcpStream,
        expected: Option<NodeId>,
        alpn: Alpn,
    ) -> Result<(MeshStream, PeerIdentity), MeshTlsError> {
        let issuer = Arc::new(OnceLock::new());
        let connector = TlsConnector::from(Arc::new(self.client_config(&issuer, alpn)));
        let name = ServerName::try_from(MESH_SERVER_NAME).expect("the constant is a DNS name");
        let stream = within_deadline(connector.connect(name, socket)).await?.map_err(|error| self.explain(error, &issuer))?;
        if stream.get_ref().1.alpn_protocol() != Some(alpn.as_bytes()) {
            return Err(MeshTlsError::Protocol);
        }
        let peer = self.admit(stream.get_ref().1.peer_certificates())?;
        match expected {
            Some(expected) if expected != peer.node_id => Err(MeshTlsError::WrongNode { expected, found: peer.node_id }),
            _ => Ok((TlsStream::Client(stream), peer)),
        }
    }

    /// Whether whoever answers at `addr` refuses our certificate. Under TLS 1.3 that is heard only after the handshake, where gRPC loses it.
    pub(crate) async fn is_refused_at(&self, addr: &str) -> bool {
        let Ok((mut stream, _)) = self.connect(addr, None, Alpn::Grpc).await else { return false };
        match within_deadline(stream.read_u8()).await {
            Ok(Err(error)) => matches!(self.explain(error, &SeenIssuer::default()), MeshTlsError::WrongMeshKey { .. }),
            _ => false,
        }
    }

    fn certificate(&self) -> CertificateDer<'static> {
        let now = SystemTime::now();
        let mut certificate = self.certificate.lock();
        if certificate.is_stale(now) {
            *certificate = MintedCertificate::mint(&self.trust.current, &self.key, now);
        }
        certificate.der.clone()
    }

    fn server_config(&self, issuer: &SeenIssuer) -> ServerConfig {
        let verifier = Arc::new(NamingVerifier { inner: Arc::clone(&self.client_verifier), issuer: Arc::clone(issuer) });
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("ring has TLS 1.3")
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![self.certificate()], PrivateKeyDer::Pkcs8(self.key.pkcs8()))
            .expect("the certificate was minted for this key");
        config.alpn_protocols = [Alpn::Grpc, Alpn::Link].map(|alpn| alpn.as_bytes().to_vec()).into();
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        config
    }

    fn client_config(&self, issuer: &SeenIssuer, alpn: Alpn) -> ClientConfig {
        let verifier = Arc::new(NamingVerifier { inner: Arc::clone(&self.server_verifier), issuer: Arc::clone(issuer) });
        let mut config = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("ring has TLS 1.3")
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_auth_cert(vec![self.certificate()], PrivateKeyDer::Pkcs8(self.key.pkcs8()))
            .expect("the certificate was minted for this key");
        config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
        config.resumption = rustls::client::Resumption::disabled();
        config
    }

    /// Turns the peer's verified certificate into an identity, refusing evicted nodes.
    fn admit(&self, certificates: Option<&[CertificateDer<'_>]>) -> Result<PeerIdentity, MeshTlsError> {
        let malformed = || io::Error::new(io::ErrorKind::InvalidData, "the peer's certificate is no node certificate");
        let certificate = certificates.and_then(<[_]>::first).ok_or_else(malformed)?;
        let peer = identity_of(certificate).ok_or_else(malformed)?;
        if self.evicted.borrow().contains(&peer.node_id) {
            return Err(MeshTlsError::NotAllowed(peer.node_id));
        }
        Ok(peer)
    }

    fn explain(&self, error: io::Error, issuer: &SeenIssuer) -> MeshTlsError {
        let ours = || self.fingerprint().to_owned();
        let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) else {
            return MeshTlsError::Io(error);
        };
        match tls {
            rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
                MeshTlsError::WrongMeshKey { theirs: issuer.get().cloned(), ours: ours() }
            }
            rustls::Error::AlertReceived(AlertDescription::UnknownCA) => {
                MeshTlsError::WrongMeshKey { theirs: None, ours: ours() }
            }
            rustls::Error::InvalidCertificate(
                CertificateError::Expired
                | CertificateError::ExpiredContext { .. }
                | CertificateError::NotValidYet
                | CertificateError::NotValidYetContext { .. },
            )
            | rustls::Error::AlertReceived(AlertDescription::CertificateExpired) => MeshTlsError::CertificateTime,
            rustls::Error::NoApplicationProtocol | rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol) => {
                MeshTlsError::Protocol
            }
            _ => MeshTlsError::Io(error),
        }
    }
}

async fn within_deadline<T>(work: impl Future<Output = T>) -> Result<T, MeshTlsError> {
    tokio::time::timeout(HANDSHAKE_TIMEOUT, work).await.map_err(|_| MeshTlsError::Timeout)
}

/// The identity in a node certificate: its Ed25519 key, if the name in it agrees.
fn identity_of(certificate: &[u8]) -> Option<PeerIdentity> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let public_key: [u8; 32] = parsed.public_key().subject_public_key.data.as_ref().try_into().ok()?;
    let identity = PeerIdentity::of_public_key(public_key);
    let expected = format!("causeway://node/{}", identity.node_id);
    let names = parsed.subject_alternative_name().ok()??;
    names.value.general_names.iter().any(|name| matches!(name, GeneralName::URI(uri) if *uri == expected)).then_some(identity)
}

#[cfg(test)]
mod tests;
