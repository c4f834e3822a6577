//! Mutual TLS 1.3 between nodes: one port, two protocols by ALPN, peers told apart by the keys of their certificates.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use causeway_proto::id::NodeId;
use parking_lot::Mutex;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig,
    SignatureScheme,
};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::certificate::{MESH_SERVER_NAME, MintedCertificate};
use super::fleet_ca::fingerprint_of_common_name;
use super::{FleetTrust, NodeKey, PeerIdentity};

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

/// The fingerprint in the issuer name of a certificate that did not verify.
type SeenIssuer = Arc<OnceLock<String>>;

/// Verifies as the inner verifier does, and remembers the issuer of a refused certificate, so that a wrong mesh key is named.
#[derive(Debug)]
struct NamingVerifier<V: ?Sized> {
    issuer: SeenIssuer,
    inner: Arc<V>,
}

impl<V: ?Sized> NamingVerifier<V> {
    fn note_issuer(&self, certificate: &[u8]) {
        let Ok((_, parsed)) = X509Certificate::from_der(certificate) else { return };
        let name = parsed.issuer().iter_common_name().next().and_then(|name| name.as_str().ok());
        if let Some(fingerprint) = name.and_then(fingerprint_of_common_name) {
            self.issuer.get_or_init(|| fingerprint.to_owned());
        }
    }
}

impl ServerCertVerifier for NamingVerifier<WebPkiServerVerifier> {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.inner
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
            .inspect_err(|_| self.note_issuer(end_entity))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

impl ClientCertVerifier for NamingVerifier<dyn ClientCertVerifier> {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // No hints: a client with one certificate has nothing to choose, and hints would make it send none on a mismatch.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.inner.verify_client_cert(end_entity, intermediates, now).inspect_err(|_| self.note_issuer(end_entity))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use causeway_proto::key::MeshKey;
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    fn node(seed: u8, current: &MeshKey, next: Option<&MeshKey>) -> MeshTls {
        MeshTls::new(FleetTrust::new(current, next), NodeKey::from_seed(&[seed; 32]))
    }

    type Accepted = Result<(MeshStream, PeerIdentity, Alpn), MeshTlsError>;
    type Connected = Result<(MeshStream, PeerIdentity), MeshTlsError>;

    async fn shake(server: &MeshTls, client: &MeshTls, expected: Option<NodeId>, alpn: Alpn) -> (Accepted, Connected) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let accept = async { server.accept(listener.accept().await.unwrap().0).await };
        tokio::join!(accept, client.connect(&addr, expected, alpn))
    }

    #[tokio::test]
    async fn nodes_of_one_mesh_key_know_each_other_by_key_and_protocol() {
        let key = MeshKey::generate();
        let (a, b) = (node(1, &key, None), node(2, &key, None));
        for alpn in [Alpn::Grpc, Alpn::Link] {
            let (accepted, connected) = shake(&a, &b, Some(a.identity().node_id), alpn).await;
            let ((mut server, client_id, spoken), (mut client, server_id)) = (accepted.unwrap(), connected.unwrap());
            assert_eq!((client_id, server_id, spoken), (b.identity(), a.identity(), alpn));
            client.write_all(b"ping").await.unwrap();
            client.flush().await.unwrap();
            let mut read = [0; 4];
            server.read_exact(&mut read).await.unwrap();
            assert_eq!(&read, b"ping");
        }
    }

    #[tokio::test]
    async fn a_wrong_mesh_key_is_named_on_both_sides() {
        let (one, other) = (MeshKey::generate(), MeshKey::generate());
        let (a, b) = (node(1, &one, None), node(2, &other, None));
        let (accepted, connected) = shake(&a, &b, None, Alpn::Grpc).await;
        let (ours, theirs) = (FleetTrust::new(&one, None), FleetTrust::new(&other, None));
        match connected {
            Err(MeshTlsError::WrongMeshKey { theirs: Some(seen), ours: own }) => {
                assert_eq!((seen.as_str(), own.as_str()), (ours.current.fingerprint(), theirs.current.fingerprint()));
            }
            unexpected => panic!("{unexpected:?}"),
        }
        assert!(matches!(accepted, Err(MeshTlsError::WrongMeshKey { theirs: None, .. })), "{accepted:?}");
    }

    #[tokio::test]
    async fn a_mesh_key_is_rotated_without_a_gap() {
        let (old, new) = (MeshKey::generate(), MeshKey::generate());
        // One that trusts the new key too, one that has made it its current one.
        let (a, b) = (node(1, &old, Some(&new)), node(2, &new, Some(&old)));
        for (server, client) in [(&a, &b), (&b, &a)] {
            let (accepted, connected) = shake(server, client, None, Alpn::Grpc).await;
            assert!(accepted.is_ok() && connected.is_ok());
        }
    }

    #[tokio::test]
    async fn another_node_and_an_evicted_one_are_refused() {
        let key = MeshKey::generate();
        let (a, b) = (node(1, &key, None), node(2, &key, None));
        let (_, connected) = shake(&a, &b, Some(NodeId(7)), Alpn::Grpc).await;
        assert!(matches!(connected, Err(MeshTlsError::WrongNode { expected: NodeId(7), .. })));
        a.set_evicted(BTreeSet::from([b.identity().node_id]));
        let (accepted, _) = shake(&a, &b, None, Alpn::Grpc).await;
        assert!(matches!(accepted, Err(MeshTlsError::NotAllowed(id)) if id == b.identity().node_id));
        let (_, connected) = shake(&b, &a, None, Alpn::Grpc).await;
        assert!(matches!(connected, Err(MeshTlsError::NotAllowed(id)) if id == b.identity().node_id));
    }

    #[tokio::test]
    async fn a_peer_that_says_nothing_or_nonsense_is_let_go() {
        let key = MeshKey::generate();
        let a = node(1, &key, None);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut nonsense = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        nonsense.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        let (socket, _) = listener.accept().await.unwrap();
        assert!(matches!(a.accept(socket).await, Err(MeshTlsError::Io(_))));
        let silent = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (socket, _) = listener.accept().await.unwrap();
        tokio::time::pause();
        assert!(matches!(a.accept(socket).await, Err(MeshTlsError::Timeout)));
        drop(silent);
    }

    #[tokio::test]
    async fn a_certificate_of_the_fleet_for_another_key_does_not_pass_as_a_node() {
        let key = MeshKey::generate();
        let ca = super::super::FleetCa::derive(&key);
        let minted = MintedCertificate::mint(&ca, &NodeKey::from_seed(&[3; 32]), SystemTime::now());
        assert_eq!(identity_of(&minted.der), Some(NodeKey::from_seed(&[3; 32]).identity()));
        assert_eq!(identity_of(ca.certificate()), None);
        assert!(!minted.is_stale(SystemTime::now()));
        assert!(minted.is_stale(SystemTime::now() + Duration::from_secs(25 * 3600)));
    }
}
