//! How a client is set up: who it is, where it connects, whom it trusts.

use std::path::Path;
use std::sync::Arc;

use causeway_proto::derp::info::ClientInfo;
use causeway_proto::derpmap::DerpMap;
use causeway_proto::id::RegionId;
use causeway_proto::key::{MeshKey, NodePrivate, NodePublic};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::connection::Connection;
use crate::dial::Route;
use crate::endpoint::Endpoint;
use crate::error::{ConfigError, ConnectError};
use crate::login::{CONNECT_TIMEOUT, LoggedIn, Login, log_in};
use crate::proxy::Proxy;
use crate::region::{connect_region, find_region};
use crate::tls::Trust;

/// Where to connect.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Server {
    /// One server.
    Endpoint(Endpoint),
    /// The first node of a region that answers.
    Region {
        /// Names its nodes.
        map: Arc<DerpMap>,
        /// The region.
        region: RegionId,
    },
    /// The region that is nearest by measured latency; only for a reconnecting [`Client`](crate::Client).
    Nearest {
        /// Names the regions to choose from.
        map: Arc<DerpMap>,
    },
}

/// Sets up a [`Connection`] or a [`Client`](crate::Client).
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use causeway_client::{ClientBuilder, Endpoint, Event};
/// use causeway_proto::key::NodePrivate;
/// use tokio_util::{sync::CancellationToken, task::TaskTracker};
///
/// let (tasks, cancel) = (TaskTracker::new(), CancellationToken::new());
/// let mut connection = ClientBuilder::new(NodePrivate::generate())
///     .endpoint(Endpoint::new("derp.example.com:443")?)
///     .connect(&tasks, &cancel)
///     .await?;
/// while let Event::Packet { src, payload } = connection.recv().await? {
///     connection.sender().send(&src, &payload).await?;
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct ClientBuilder {
    pub(crate) server: Option<Server>,
    /// Wins the choice of the nearest region whenever it is accessible.
    pub(crate) forced_home: Option<RegionId>,
    pub(crate) login: Login,
}

impl ClientBuilder {
    /// A client with this key. It answers pings and calls its connection its home unless told otherwise.
    #[must_use]
    pub fn new(key: NodePrivate) -> Self {
        let info = ClientInfo { can_ack_pings: true, ..ClientInfo::current() };
        let login = Login { key, info, route: Route::default(), server_key: None, preferred: true, watch: false };
        Self { server: None, forced_home: None, login }
    }

    /// Logs in with this key instead.
    #[must_use]
    pub fn key(mut self, key: NodePrivate) -> Self {
        self.login.key = key;
        self
    }

    /// Connects to one server.
    #[must_use]
    pub fn endpoint(mut self, endpoint: Endpoint) -> Self {
        self.server = Some(Server::Endpoint(endpoint));
        self
    }

    /// Connects to the first node of a region that answers.
    #[must_use]
    pub fn region(mut self, map: Arc<DerpMap>, region: RegionId) -> Self {
        self.server = Some(Server::Region { map, region });
        self
    }

    /// Connects to the region that is nearest by measured latency, and follows when another becomes clearly nearer.
    #[must_use]
    pub fn nearest(mut self, map: Arc<DerpMap>) -> Self {
        self.server = Some(Server::Nearest { map });
        self
    }

    /// Of the regions to choose from, takes this one whenever it is accessible, however far it is; otherwise the nearest.
    #[must_use]
    pub const fn forced_home(mut self, region: RegionId) -> Self {
        self.forced_home = Some(region);
        self
    }

    /// Verifies servers by `trust` instead of the system's root certificates. Share one between many clients.
    #[must_use]
    pub fn trust(mut self, trust: Trust) -> Self {
        self.login.route.trust = Some(trust);
        self
    }

    /// Verifies servers by the certificates in a PEM file instead of the system's root certificates.
    ///
    /// # Errors
    /// [`ConfigError::CaFileRead`], [`ConfigError::CaFileContent`].
    pub fn ca_file(self, path: impl AsRef<Path>) -> Result<Self, ConfigError> {
        Ok(self.trust(Trust::ca_file(path)?))
    }

    /// Reaches servers through this proxy, as far as it is for them. Measurements over HTTPS go through it, STUN does not.
    #[must_use]
    pub fn proxy(mut self, proxy: Proxy) -> Self {
        self.login.route.proxy = Some(Arc::new(proxy));
        self
    }

    /// Reaches servers through the proxy that the environment names, if any: see [`Proxy::from_environment`].
    ///
    /// # Errors
    /// [`ConfigError::Proxy`], naming the variable.
    pub fn proxy_from_environment(mut self) -> Result<Self, ConfigError> {
        self.login.route.proxy = Proxy::from_environment()?.map(Arc::new);
        Ok(self)
    }

    /// Accepts only a server with this key, and saves the round trip that asks for it. Nodes have a key each, so it is for one server.
    #[must_use]
    pub const fn server_key(mut self, key: NodePublic) -> Self {
        self.login.server_key = Some(key);
        self
    }

    /// Whether the client says that it answers pings of the server, which it does in any case; true unless set.
    #[must_use]
    pub const fn can_ack_pings(mut self, can: bool) -> Self {
        self.login.info.can_ack_pings = can;
        self
    }

    /// Declares the client a prober.
    #[must_use]
    pub const fn prober(mut self, prober: bool) -> Self {
        self.login.info.is_prober = prober;
        self
    }

    /// Opaque name for the server's statistics.
    #[must_use]
    pub fn app_name(mut self, name: &str) -> Self {
        name.clone_into(&mut self.login.info.app_name);
        self
    }

    /// Logs in as a mesh peer. The key is sent to whoever holds the certificate: be sure of [`Self::trust`].
    #[must_use]
    pub fn mesh_key(mut self, key: MeshKey) -> Self {
        self.login.info.mesh_key = Some(key);
        self
    }

    /// Whether this connection is the client's home; true unless set. Side connections to the homes of peers say false.
    #[must_use]
    pub const fn preferred(mut self, preferred: bool) -> Self {
        self.login.preferred = preferred;
        self
    }

    /// Asks right after each login for the presence of all clients of the node. Without a mesh key it asks nothing.
    #[must_use]
    pub const fn watch_connections(mut self, watch: bool) -> Self {
        self.login.watch = watch;
        self
    }

    /// Connects to the endpoint and logs in, and hands the connection over in its parts. Neither home nor watch are asked for.
    ///
    /// # Errors
    /// [`ConnectError`]; [`ConfigError::NoServer`] if no endpoint is named.
    pub async fn log_in(&self) -> Result<LoggedIn, ConnectError> {
        let Some(Server::Endpoint(endpoint)) = &self.server else { return Err(ConfigError::NoServer.into()) };
        log_in(endpoint, None, &self.login, Instant::now() + CONNECT_TIMEOUT).await
    }

    /// Opens one connection, which never reconnects; its writer runs on `tasks` until it ends, at the latest when `cancel` is cancelled.
    ///
    /// # Errors
    /// [`ConnectError`]; [`ConfigError::NearestNeedsClient`] if no single region is named.
    pub async fn connect(&self, tasks: &TaskTracker, cancel: &CancellationToken) -> Result<Connection, ConnectError> {
        match &self.server {
            None => Err(ConfigError::NoServer.into()),
            Some(Server::Endpoint(endpoint)) => {
                Connection::open(endpoint, None, &self.login, Instant::now() + CONNECT_TIMEOUT, tasks, cancel).await
            }
            Some(Server::Region { map, region }) => connect_region(find_region(map, *region)?, &self.login, tasks, cancel).await,
            Some(Server::Nearest { .. }) => Err(ConfigError::NearestNeedsClient.into()),
        }
    }
}
