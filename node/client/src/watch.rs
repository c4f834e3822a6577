//! Who is connected to a node: the watch loop of mesh peers and monitoring (`derp.md` section 15.3).

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use causeway_proto::derp::frame::{PeerGoneReason, PresentFlags};
use causeway_proto::key::NodePublic;
use futures::future::BoxFuture;
use tokio::time::{Sleep, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::builder::{ClientBuilder, Server};
use crate::connection::{Connection, Event};
use crate::error::{ConfigError, ConnectError, ConnectionError};
use crate::reconnect::RESTART_WAIT_MAX;
use crate::sender::Sender;
use crate::shared::ConnectionInfo;

/// Pause after a failure, unless the server said when it will be back.
pub const WATCH_RETRY: Duration = Duration::from_secs(5);

/// Most clients of a node that are kept; one that names more is not believed.
pub const WATCHED_PEERS_MAX: usize = 1 << 20;

/// What a [`Watch`] tells.
#[derive(Debug)]
#[non_exhaustive]
pub enum WatchEvent {
    /// Connected: all clients of the node follow as [`WatchEvent::Present`], the watcher itself among them.
    Connected {
        /// The connection.
        info: Box<ConnectionInfo>,
        /// Its sending side, e.g. to forward packets; until [`WatchEvent::Failed`].
        sender: Sender,
    },
    /// A client is connected. Told again for each of its connections: not paired with [`WatchEvent::Gone`].
    Present {
        /// Its key.
        peer: NodePublic,
        /// Its address, if the server tells.
        addr: Option<SocketAddr>,
        /// What kind of client it is.
        flags: PresentFlags,
    },
    /// A client is gone: its last connection closed, or, with [`PeerGoneReason::MeshConnectionBroke`], it was present when the watch failed and is
    /// told once.
    Gone {
        /// Its key.
        peer: NodePublic,
        /// Why.
        reason: PeerGoneReason,
    },
    /// The watch failed; whoever was present is told gone next, and another attempt follows.
    Failed {
        /// Why.
        why: WatchFailure,
        /// When the next attempt starts.
        retry_in: Duration,
    },
    /// The server is the watcher itself: it has the watcher's key. The watch is over.
    SelfConnect,
    /// What else the server told: packets for the watcher, health, pings that were answered.
    Received(Event),
}

/// Why a watch failed.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WatchFailure {
    /// It could not connect.
    #[error(transparent)]
    Connect(Arc<ConnectError>),
    /// The connection ended.
    #[error(transparent)]
    Connection(Arc<ConnectionError>),
    /// The server named more than [`WATCHED_PEERS_MAX`] clients.
    #[error("the server names more than {WATCHED_PEERS_MAX} clients")]
    TooManyPeers,
}

/// Watches who is connected to a node, for as long as it is polled; connects again after every failure. Dropping it ends it.
pub struct Watch {
    builder: ClientBuilder,
    tasks: TaskTracker,
    cancel: CancellationToken,
    state: State,
    present: BTreeSet<NodePublic>,
    /// When the server said it will be back.
    restart: Option<Duration>,
}

enum State {
    Connecting(BoxFuture<'static, Result<Connection, ConnectError>>),
    Connected(Box<Connection>),
    /// First empties what was present, then waits.
    Failed(Pin<Box<Sleep>>),
    Over,
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            State::Connecting(_) => "connecting",
            State::Connected(_) => "connected",
            State::Failed(_) => "failed",
            State::Over => "over",
        };
        f.debug_struct("Watch").field("state", &state).field("present", &self.present.len()).finish_non_exhaustive()
    }
}

impl ClientBuilder {
    /// Watches who is connected to a server or a region's node. The connection's writer runs on `tasks`; `cancel` ends all.
    ///
    /// # Errors
    /// [`ConfigError::WatchNeedsMeshKey`], [`ConfigError::NoServer`], [`ConfigError::NearestNeedsClient`].
    pub fn watch(self, tasks: &TaskTracker, cancel: &CancellationToken) -> Result<Watch, ConfigError> {
        if self.login.info.mesh_key.is_none() {
            return Err(ConfigError::WatchNeedsMeshKey);
        }
        match &self.server {
            None => return Err(ConfigError::NoServer),
            Some(Server::Nearest { .. }) => return Err(ConfigError::NearestNeedsClient),
            Some(Server::Endpoint(_) | Server::Region { .. }) => {}
        }
        let builder = self.watch_connections(true);
        let (tasks, cancel) = (tasks.clone(), cancel.child_token());
        let state = connect(&builder, &tasks, &cancel);
        Ok(Watch { builder, tasks, cancel, state, present: BTreeSet::new(), restart: None })
    }
}

fn connect(builder: &ClientBuilder, tasks: &TaskTracker, cancel: &CancellationToken) -> State {
    let (builder, tasks, cancel) = (builder.clone(), tasks.clone(), cancel.clone());
    State::Connecting(Box::pin(async move { builder.connect(&tasks, &cancel).await }))
}

impl Watch {
    /// The next event; `None` once the watch is over: cancelled, or connected to itself.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn recv(&mut self) -> Option<WatchEvent> {
        let cancel = self.cancel.clone();
        let event = cancel.run_until_cancelled(self.next()).await.flatten();
        if event.is_none() {
            self.state = State::Over;
            self.present.clear();
        }
        event
    }

    async fn next(&mut self) -> Option<WatchEvent> {
        loop {
            // Each future stays in its state when this is dropped.
            match &mut self.state {
                State::Connecting(connecting) => {
                    return Some(match connecting.await {
                        Ok(connection) => self.connected(connection),
                        Err(error) => self.failed(WatchFailure::Connect(Arc::new(error))),
                    });
                }
                State::Connected(connection) => match connection.recv().await {
                    Ok(event) => return Some(self.received(event)),
                    Err(reason) => return Some(self.failed(WatchFailure::Connection(reason))),
                },
                State::Failed(pause) => {
                    if let Some(peer) = self.present.pop_first() {
                        return Some(WatchEvent::Gone { peer, reason: PeerGoneReason::MeshConnectionBroke });
                    }
                    pause.await;
                    self.state = connect(&self.builder, &self.tasks, &self.cancel);
                }
                State::Over => return None,
            }
        }
    }

    fn connected(&mut self, connection: Connection) -> WatchEvent {
        self.restart = None;
        let info = Box::new(connection.info().clone());
        if info.server_key == self.builder.login.key.public() {
            tracing::info!(node = %info.node, "the server to be watched is this one");
            self.state = State::Over;
            return WatchEvent::SelfConnect;
        }
        let sender = connection.sender().clone();
        self.state = State::Connected(Box::new(connection));
        WatchEvent::Connected { info, sender }
    }

    fn received(&mut self, event: Event) -> WatchEvent {
        match event {
            Event::PeerPresent { peer, addr, flags } => {
                if self.present.len() >= WATCHED_PEERS_MAX && !self.present.contains(&peer) {
                    return self.failed(WatchFailure::TooManyPeers);
                }
                self.present.insert(peer);
                WatchEvent::Present { peer, addr, flags }
            }
            Event::PeerGone { peer, reason } => {
                self.present.remove(&peer);
                WatchEvent::Gone { peer, reason }
            }
            Event::Restarting { reconnect_in, .. } => {
                self.restart = Some(reconnect_in.min(RESTART_WAIT_MAX));
                WatchEvent::Received(event)
            }
            other => WatchEvent::Received(other),
        }
    }

    /// Ends the connection, if there is one.
    fn failed(&mut self, why: WatchFailure) -> WatchEvent {
        let retry_in = self.restart.take().unwrap_or(WATCH_RETRY);
        tracing::debug!(%why, present = self.present.len(), ?retry_in, "watch failed");
        self.state = State::Failed(Box::pin(sleep(retry_in)));
        WatchEvent::Failed { why, retry_in }
    }
}
