//! Reaching a node's operator API: where (flags, environment, configuration file) and how (Unix socket or mutual TLS).

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use causeway_rpc::v1::operator_client::OperatorClient;
use hyper_util::rt::TokioIo;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use serde::Deserialize;
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};

use crate::ca;
use crate::cli::{Global, parse_duration};
use crate::failure::{Failure, innermost};
use crate::output::Format;

/// Where a node's packages put its operator socket.
pub const DEFAULT_SOCKET: &str = "/var/lib/causeway/operator.sock";
/// How long an answer may take unless told otherwise.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a connection may take to come up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The name asked for in TLS. Node certificates carry no DNS name; the chain to the fleet's CA is the check.
const SERVER_NAME: &str = "node.causeway.internal";

/// A client of the operator API.
pub type Operator = OperatorClient<Channel>;

/// Where a node's operator API is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A Unix socket on this machine, guarded by file permissions.
    Socket(PathBuf),
    /// A node's operator port, with operator credentials.
    Endpoint {
        /// HOST:PORT.
        address: String,
        /// The operator's certificate, PEM file.
        cert: PathBuf,
        /// Its private key, PEM file.
        key: PathBuf,
        /// The fleet CA's certificate, PEM file.
        ca: PathBuf,
    },
}

/// Everything flags, environment and configuration file decide.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The node to ask, or why it is unclear; only commands that ask a node care.
    pub target: Result<Target, String>,
    /// How long an answer may take.
    pub timeout: Duration,
    /// How results are printed.
    pub format: Format,
}

/// The configuration file, `~/.config/causeway/config.toml`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileSettings {
    socket: Option<PathBuf>,
    endpoint: Option<String>,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
    ca: Option<PathBuf>,
    timeout: Option<String>,
    output: Option<Format>,
}

impl Settings {
    /// Decides by flag, else environment variable, else configuration file, else default.
    ///
    /// Where to connect is decided as a whole: a socket or endpoint named by one source hides both of the sources after it.
    ///
    /// # Errors
    /// [`Failure::Usage`] naming the flag, variable or file and what would be right.
    pub fn resolve(global: &Global, environment: &dyn Fn(&str) -> Option<OsString>) -> Result<Self, Failure> {
        let file = read_file(environment)?;
        let from_environment = variable_text(environment, "CAUSEWAY_TIMEOUT").map_err(Failure::Usage)?;
        let timeout = match (global.timeout, from_environment, &file.timeout) {
            (Some(timeout), _, _) => timeout,
            (None, Some(from_environment), _) => {
                parse_duration(&from_environment).map_err(|why| Failure::Usage(format!("CAUSEWAY_TIMEOUT: {why}")))?
            }
            (None, None, Some(from_file)) => {
                parse_duration(from_file).map_err(|why| Failure::Usage(format!("configuration file: timeout: {why}")))?
            }
            (None, None, None) => DEFAULT_TIMEOUT,
        };
        let target = resolve_target(global, &file, environment);
        Ok(Self { target, timeout, format: global.output.or(file.output).unwrap_or_default() })
    }

    /// Connects to the node.
    ///
    /// # Errors
    /// [`Failure::Unreachable`] if nothing answers there, [`Failure::Usage`] for unusable credentials.
    pub async fn connect(&self) -> Result<Operator, Failure> {
        let target = self.target.as_ref().map_err(|why| Failure::Usage(why.clone()))?;
        connect(target, self.timeout).await
    }
}

fn variable_path(environment: &dyn Fn(&str) -> Option<OsString>, variable: &str) -> Option<PathBuf> {
    environment(variable).filter(|value| !value.is_empty()).map(PathBuf::from)
}

fn variable_text(environment: &dyn Fn(&str) -> Option<OsString>, variable: &str) -> Result<Option<String>, String> {
    let value = environment(variable).filter(|value| !value.is_empty());
    value.map(|value| value.into_string().map_err(|_| format!("{variable}: not valid UTF-8"))).transpose()
}

fn resolve_target(
    global: &Global,
    file: &FileSettings,
    environment: &dyn Fn(&str) -> Option<OsString>,
) -> Result<Target, String> {
    let sources = [
        (global.socket.clone(), global.endpoint.clone(), "the flags name"),
        (
            variable_path(environment, "CAUSEWAY_SOCKET"),
            variable_text(environment, "CAUSEWAY_ENDPOINT")?,
            "CAUSEWAY_SOCKET and CAUSEWAY_ENDPOINT name",
        ),
        (file.socket.clone(), file.endpoint.clone(), "the configuration file names"),
    ];
    let credential = |from_flag: &Option<PathBuf>, from_file: &Option<PathBuf>, flag: &str, variable: &str| {
        let path = from_flag.clone().or_else(|| variable_path(environment, variable)).or_else(|| from_file.clone());
        path.ok_or_else(|| format!("an endpoint needs operator credentials: --{flag} FILE (or {variable}) is missing"))
    };
    match sources.into_iter().find(|(socket, endpoint, _)| socket.is_some() || endpoint.is_some()) {
        Some((Some(_), Some(_), source)) => Err(format!("{source} both a socket and an endpoint: name one of them")),
        Some((Some(socket), None, _)) => Ok(Target::Socket(socket)),
        Some((None, Some(address), _)) => Ok(Target::Endpoint {
            address,
            cert: credential(&global.cert, &file.cert, "cert", "CAUSEWAY_CERT")?,
            key: credential(&global.key, &file.key, "key", "CAUSEWAY_KEY")?,
            ca: credential(&global.ca, &file.ca, "ca", "CAUSEWAY_CA")?,
        }),
        Some((None, None, _)) | None => Ok(Target::Socket(DEFAULT_SOCKET.into())),
    }
}

fn read_file(environment: &dyn Fn(&str) -> Option<OsString>) -> Result<FileSettings, Failure> {
    let (file, required) = match (environment("CAUSEWAY_CONFIG"), environment("XDG_CONFIG_HOME"), environment("HOME")) {
        (Some(file), _, _) => (PathBuf::from(file), true),
        (None, Some(base), _) if !base.is_empty() => (Path::new(&base).join("causeway/config.toml"), false),
        (None, _, Some(home)) => (Path::new(&home).join(".config/causeway/config.toml"), false),
        (None, _, None) => return Ok(FileSettings::default()),
    };
    match std::fs::read_to_string(&file) {
        Ok(text) => toml::from_str(&text).map_err(|error| Failure::Usage(format!("{}: {error}", file.display()))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !required => Ok(FileSettings::default()),
        Err(error) => Err(Failure::Usage(format!("{}: {error}", file.display()))),
    }
}

/// Connects to the operator API at `target`; each call may take `timeout`.
///
/// # Errors
/// [`Failure::Unreachable`] if nothing answers there, [`Failure::Usage`] for unusable credentials.
pub async fn connect(target: &Target, timeout: Duration) -> Result<Operator, Failure> {
    // The authority is never resolved: the connectors below know where to go.
    let endpoint =
        Endpoint::from_static("http://operator.causeway.internal").timeout(timeout).connect_timeout(CONNECT_TIMEOUT.min(timeout));
    let (channel, place) = match target {
        Target::Socket(path) => {
            let place = format!("the operator socket {}", path.display());
            let path = path.clone();
            let connector = tower::service_fn(move |_: http::Uri| {
                let path = path.clone();
                async move { UnixStream::connect(path).await.map(TokioIo::new) }
            });
            (endpoint.connect_with_connector(connector).await, place)
        }
        Target::Endpoint { address, cert, key, ca } => {
            let place = format!("the operator port {address}");
            let tls =
                TlsConnector::from(Arc::new(client_config(cert, key, ca).map_err(|error| Failure::Usage(format!("{error:#}")))?));
            let address = address.clone();
            let connector = tower::service_fn(move |_: http::Uri| {
                let (address, tls) = (address.clone(), tls.clone());
                async move {
                    let stream = TcpStream::connect(address).await?;
                    stream.set_nodelay(true)?;
                    let name = ServerName::try_from(SERVER_NAME).map_err(std::io::Error::other)?;
                    tls.connect(name, stream).await.map(TokioIo::new)
                }
            });
            (endpoint.connect_with_connector(connector).await, place)
        }
    };
    match channel {
        Ok(channel) => Ok(OperatorClient::new(channel)),
        Err(error) if is_broken(innermost(&error)) => Err(Failure::broken_connection(&error)),
        Err(error) => Err(Failure::Unreachable(format!("no node answers at {place}: {}", innermost(&error)))),
    }
}

/// Whether something answered at first and then ended the connection.
fn is_broken(error: &(dyn std::error::Error + 'static)) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset};
    error
        .downcast_ref::<std::io::Error>()
        .is_some_and(|error| matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset))
}

fn client_config(cert: &Path, key: &Path, ca: &Path) -> anyhow::Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(ca::read_certificate(ca)?).with_context(|| format!("--ca {}: no CA certificate", ca.display()))?;
    let chain = CertificateDer::pem_file_iter(cert)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| anyhow::anyhow!("--cert {}: no PEM certificate: {error}", cert.display()))?;
    let key_der = PrivateKeyDer::from_pem_file(key)
        .map_err(|error| anyhow::anyhow!("--key {}: no PEM private key: {error}", key.display()))?;
    let verifier = FleetVerifier::new(roots, Arc::clone(&provider))?;
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_auth_cert(chain, key_der)
        .with_context(|| format!("--cert {} and --key {} do not belong together", cert.display(), key.display()))?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// Accepts any node of the fleet: the certificate must chain to the fleet's CA and be valid now; which node it is does not matter.
#[derive(Debug)]
struct FleetVerifier(Arc<WebPkiServerVerifier>);

impl FleetVerifier {
    fn new(roots: RootCertStore, provider: Arc<CryptoProvider>) -> anyhow::Result<Self> {
        Ok(Self(WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build()?))
    }
}

impl ServerCertVerifier for FleetVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match self.0.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            // The name is looked at last, after chain, time and key usage: nothing else is forgiven here.
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}
