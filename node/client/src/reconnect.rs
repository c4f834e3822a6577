//! A client that stays connected: to one server, one region, or the nearest region, through cuts, restarts and better regions.
//!
//! A driver task owns the connection. Everything it waits for is one [`Action`]; [`Driver::apply`] decides what follows.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use causeway_proto::derpmap::DerpMap;
use causeway_proto::id::RegionId;
use causeway_proto::key::NodePublic;
use causeway_proto::netcheck::{History, HomeInputs, Report};
use futures::future::BoxFuture;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::builder::{ClientBuilder, Server};
use crate::connection::{Connection, Event, Receiver};
use crate::error::{ConfigError, ConnectError, ConnectionError, PingError, SendError};
use crate::login::{CONNECT_TIMEOUT, Login};
use crate::netcheck::measure_again;
use crate::region::{connect_region, find_region, relay_nodes};
use crate::sender::Sender;
use crate::shared::ConnectionInfo;

/// Events that wait for the application. With none taken the connection is not read either.
const EVENTS_MAX: usize = 1024;

/// Longest pause between two attempts, before jitter.
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// A connection that lived this long was good: the next failure counts as the first again.
const STABLE_AFTER: Duration = Duration::from_secs(5);

/// A home that refused so many attempts in a row is passed over by the next measurement.
const HOME_FAILURES_MAX: u32 = 3;

/// Time between two netchecks, chosen anew each time (`derp.md` section 16.1).
const NETCHECK_INTERVAL_MS: std::ops::Range<u64> = 20_000..26_000;

/// Longest wait that a restarting server may ask for.
pub(crate) const RESTART_WAIT_MAX: Duration = Duration::from_secs(30);

/// Longest time that a restarting server may have us try at a quick pace.
const RESTART_TRY_MAX: Duration = Duration::from_secs(60);

/// Pace of attempts while a server restarts.
const RESTART_PACE: Duration = Duration::from_millis(250);

/// What happens to a [`Client`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum ClientEvent {
    /// Connected. Everything known from an earlier generation (who is present) is void.
    Connected {
        /// Counts connections from 1.
        generation: u64,
        /// The region, if the client has a map.
        region: Option<RegionId>,
        /// The connection.
        info: Box<ConnectionInfo>,
    },
    /// The connection is over; another attempt follows.
    Disconnected {
        /// Of the connection.
        generation: u64,
        /// Why.
        reason: Arc<ConnectionError>,
        /// When the next attempt starts.
        retry_in: Duration,
    },
    /// An attempt failed; another follows.
    ConnectFailed {
        /// Why.
        error: Arc<ConnectError>,
        /// Failures in a row.
        failures: u32,
        /// When the next attempt starts.
        retry_in: Duration,
    },
    /// Another region is the home from now on. The client stays on the old connection until the new one is there.
    HomeChanged {
        /// The old home.
        from: Option<RegionId>,
        /// The new home.
        to: RegionId,
        /// Its latency, if it was measured.
        latency: Option<Duration>,
    },
    /// The server told something.
    Received {
        /// Of the connection.
        generation: u64,
        /// What.
        event: Event,
    },
}

/// The connection of the moment.
#[derive(Clone, Debug)]
struct Current {
    generation: u64,
    sender: Sender,
}

/// A client that stays connected. Dropping it ends it.
#[derive(Debug)]
pub struct Client {
    handle: ClientHandle,
    events: mpsc::Receiver<ClientEvent>,
}

impl Client {
    /// The next event; `None` once the client is closed. Someone has to take them: with 1,024 waiting the client stops reading, so that
    /// its server drops what comes for it, and pings go unanswered.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn recv(&mut self) -> Option<ClientEvent> {
        self.events.recv().await
    }

    /// The sending side, for any number of tasks.
    #[must_use]
    pub const fn handle(&self) -> &ClientHandle {
        &self.handle
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.handle.close();
    }
}

/// The sending side of a [`Client`].
#[derive(Clone, Debug)]
pub struct ClientHandle {
    current: watch::Receiver<Option<Current>>,
    map: watch::Sender<Option<Arc<DerpMap>>>,
    cancel: CancellationToken,
}

impl ClientHandle {
    /// The sender of the present connection.
    ///
    /// # Errors
    /// [`SendError::NotConnected`].
    pub fn sender(&self) -> Result<Sender, SendError> {
        self.current.borrow().as_ref().map(|current| current.sender.clone()).ok_or(SendError::NotConnected)
    }

    /// Waits until connected; `None` if the client is closed instead.
    pub async fn connected(&self) -> Option<Sender> {
        let mut current = self.current.clone();
        let current = current.wait_for(Option::is_some).await.ok()?;
        current.as_ref().map(|current| current.sender.clone())
    }

    /// Generation of the present connection, counted from 1; `None` without one.
    #[must_use]
    pub fn generation(&self) -> Option<u64> {
        self.current.borrow().as_ref().map(|current| current.generation)
    }

    /// Queues a packet; waits while the queue is full.
    ///
    /// # Errors
    /// As [`Sender::send`], and [`SendError::NotConnected`]: nothing is kept for later.
    pub async fn send(&self, dst: &NodePublic, payload: &[u8]) -> Result<(), SendError> {
        self.sender()?.send(dst, payload).await
    }

    /// Round trip to the node.
    ///
    /// # Errors
    /// As [`Sender::ping`].
    pub async fn ping(&self) -> Result<Duration, PingError> {
        self.sender()?.ping().await
    }

    /// Uses another map from now on. The present connection stays unless its region is gone from the map.
    pub fn update_map(&self, map: Arc<DerpMap>) {
        self.map.send_replace(Some(map));
    }

    /// Closes the client; final.
    pub fn close(&self) {
        self.cancel.cancel();
    }
}

impl ClientBuilder {
    /// Starts a client that stays connected; its tasks run on `tasks` until it is closed or dropped, or `cancel` is cancelled.
    ///
    /// # Errors
    /// [`ConfigError`]: no server, or none that could ever be connected to.
    pub fn start(self, tasks: &TaskTracker, cancel: &CancellationToken) -> Result<Client, ConfigError> {
        let target = Target::new(self.server.ok_or(ConfigError::NoServer)?)?;
        let cancel = cancel.child_token();
        let (events, receiver) = mpsc::channel(EVENTS_MAX);
        let (current, current_receiver) = watch::channel(None);
        let (map, map_receiver) = watch::channel(None);
        let now = Instant::now();
        let driver = Driver {
            target,
            forced_home: self.forced_home,
            login: self.login,
            tasks: tasks.clone(),
            cancel: cancel.clone(),
            events,
            current,
            map: map_receiver,
            history: History::new(),
            heard: BTreeMap::new(),
            link: None,
            connecting: None,
            netcheck: None,
            netcheck_at: now,
            retry_at: now,
            failures: 0,
            generation: 0,
            restart: None,
        };
        tasks.spawn(driver.run());
        Ok(Client { handle: ClientHandle { current: current_receiver, map, cancel }, events: receiver })
    }
}

/// Where to connect, and how that may change.
#[derive(Debug)]
enum Target {
    Fixed(Server),
    Nearest { map: Arc<DerpMap>, home: Option<RegionId> },
}

impl Target {
    fn new(server: Server) -> Result<Self, ConfigError> {
        match server {
            Server::Nearest { map } => {
                any_region(&map).ok_or(ConfigError::NoRegions)?;
                Ok(Self::Nearest { map, home: None })
            }
            Server::Region { ref map, region } => {
                find_region(map, region)?;
                Ok(Self::Fixed(server))
            }
            Server::Endpoint(_) => Ok(Self::Fixed(server)),
        }
    }
}

/// An arbitrary but stable region with a relay that may be a home.
fn any_region(map: &DerpMap) -> Option<RegionId> {
    let may_be_home = map.regions.values().filter(|region| !region.no_measure_no_home);
    may_be_home.filter(|region| relay_nodes(region).next().is_some()).map(|region| region.region_id).next()
}

/// An established connection.
struct Link {
    receiver: Receiver,
    generation: u64,
    region: Option<RegionId>,
    since: Instant,
}

/// What a restarting server asked for.
#[derive(Clone, Copy)]
struct Restart {
    not_before: Instant,
    until: Instant,
}

/// What the driver waited for.
enum Action {
    Connected(Option<RegionId>, Result<Connection, ConnectError>),
    Received(Result<Event, Arc<ConnectionError>>),
    Retry,
    Measured(Report),
    Measure,
    NewMap,
}

type Connecting = BoxFuture<'static, (Option<RegionId>, Result<Connection, ConnectError>)>;

struct Driver {
    target: Target,
    forced_home: Option<RegionId>,
    login: Login,
    tasks: TaskTracker,
    cancel: CancellationToken,
    events: mpsc::Sender<ClientEvent>,
    current: watch::Sender<Option<Current>>,
    map: watch::Receiver<Option<Arc<DerpMap>>>,
    history: History,
    /// When a frame last came from a region.
    heard: BTreeMap<RegionId, Instant>,
    link: Option<Link>,
    connecting: Option<Connecting>,
    netcheck: Option<BoxFuture<'static, Report>>,
    netcheck_at: Instant,
    retry_at: Instant,
    failures: u32,
    generation: u64,
    restart: Option<Restart>,
}

impl Driver {
    async fn run(mut self) {
        while let Some(action) = self.next_action().await {
            let Some(event) = self.apply(action) else {
                continue;
            };
            // Waits for room: the application sets the pace. Once closed it is told nothing more, not even the end of the connection.
            let emitted = tokio::select! {
                biased;
                () = self.cancel.cancelled() => break,
                emitted = self.events.send(event) => emitted,
            };
            if emitted.is_err() {
                break;
            }
        }
        // Dropping the link's receiver closes the connection, whose writer lets out what is queued.
        self.current.send_replace(None);
    }

    /// The only place that waits for something to happen; `None` once the client is closed. Each future stays in its slot when another
    /// one wins.
    async fn next_action(&mut self) -> Option<Action> {
        let may_retry = self.wants_connection();
        let may_measure = matches!(self.target, Target::Nearest { .. }) && self.netcheck.is_none();
        // Not biased: a flood of packets must not starve the timers.
        Some(tokio::select! {
            () = self.cancel.cancelled() => return None,
            (region, result) = slot(&mut self.connecting) => Action::Connected(region, result),
            report = slot(&mut self.netcheck) => Action::Measured(report),
            event = receive(self.link.as_mut()) => Action::Received(event),
            Ok(()) = self.map.changed() => Action::NewMap,
            () = sleep_until(self.netcheck_at), if may_measure => Action::Measure,
            () = sleep_until(self.retry_at), if may_retry => Action::Retry,
        })
    }

    /// Whether there is no connection, or one to another region than the home, and none is being made.
    fn wants_connection(&self) -> bool {
        let is_missing = match (&self.target, &self.link) {
            // The first measurement decides where to connect.
            (Target::Nearest { home: None, .. }, _) => false,
            (Target::Nearest { home, .. }, Some(link)) => link.region != *home,
            (Target::Fixed(_), Some(_)) => false,
            (_, None) => true,
        };
        is_missing && self.connecting.is_none()
    }

    /// Decides what follows, and what the application is told. Never waits.
    fn apply(&mut self, action: Action) -> Option<ClientEvent> {
        match action {
            Action::Connected(region, Ok(connection)) => Some(self.connected(region, connection)),
            Action::Connected(_, Err(error)) => Some(self.connect_failed(error)),
            Action::Received(Ok(event)) => Some(self.received(event)),
            Action::Received(Err(reason)) => self.disconnected(reason),
            Action::Retry => {
                self.connect();
                None
            }
            Action::Measure => {
                self.measure();
                None
            }
            Action::Measured(report) => self.measured(report),
            Action::NewMap => {
                self.new_map();
                None
            }
        }
    }

    fn connect(&mut self) {
        let (tasks, cancel, login) = (self.tasks.clone(), self.cancel.clone(), self.login.clone());
        let (map, region) = match &self.target {
            Target::Fixed(Server::Endpoint(endpoint)) => {
                let endpoint = endpoint.clone();
                let deadline = Instant::now() + CONNECT_TIMEOUT;
                self.connecting =
                    Some(Box::pin(
                        async move { (None, Connection::open(&endpoint, None, &login, deadline, &tasks, &cancel).await) },
                    ));
                return;
            }
            Target::Fixed(Server::Region { map, region }) => (Arc::clone(map), Some(*region)),
            Target::Fixed(Server::Nearest { map }) => (Arc::clone(map), any_region(map)),
            Target::Nearest { map, home } => (Arc::clone(map), home.or_else(|| any_region(map))),
        };
        self.connecting = Some(Box::pin(async move {
            let found = region.ok_or(ConfigError::NoRegions).and_then(|region| find_region(&map, region));
            let result = match found {
                Ok(region) => connect_region(region, &login, &tasks, &cancel).await,
                Err(error) => Err(error.into()),
            };
            (region, result)
        }));
    }

    fn connected(&mut self, region: Option<RegionId>, connection: Connection) -> ClientEvent {
        self.connecting = None;
        self.restart = None;
        self.generation += 1;
        let generation = self.generation;
        let info = Box::new(connection.info().clone());
        let (sender, receiver) = connection.split();
        tracing::info!(node = %info.node, generation, fast_start = info.fast_start, "connected");
        // An old connection, to the former home, ends here: the new one has been answered.
        self.link = Some(Link { receiver, generation, region, since: Instant::now() });
        self.note_heard();
        self.current.send_replace(Some(Current { generation, sender }));
        ClientEvent::Connected { generation, region, info }
    }

    fn connect_failed(&mut self, error: ConnectError) -> ClientEvent {
        self.connecting = None;
        self.failures = self.failures.saturating_add(1);
        let retry_in = self.schedule_retry();
        tracing::debug!(%error, failures = self.failures, ?retry_in, "connect failed");
        self.netcheck_soon();
        ClientEvent::ConnectFailed { error: Arc::new(error), failures: self.failures, retry_in }
    }

    fn disconnected(&mut self, reason: Arc<ConnectionError>) -> Option<ClientEvent> {
        let link = self.link.take()?;
        self.current.send_replace(None);
        if link.since.elapsed() >= STABLE_AFTER {
            self.failures = 0;
        }
        self.failures = self.failures.saturating_add(1);
        let retry_in = self.schedule_retry();
        tracing::info!(generation = link.generation, %reason, ?retry_in, "disconnected");
        self.netcheck_soon();
        Some(ClientEvent::Disconnected { generation: link.generation, reason, retry_in })
    }

    fn schedule_retry(&mut self) -> Duration {
        let now = Instant::now();
        let mut wait = backoff(self.failures, rand::random_range(0.5..1.5));
        if let Some(restart) = self.restart {
            if now < restart.until {
                wait = wait.min(RESTART_PACE);
                if !self.has_another_node() {
                    wait = wait.max(restart.not_before.saturating_duration_since(now));
                }
            } else {
                self.restart = None;
            }
        }
        self.retry_at = now + wait;
        wait
    }

    /// Whether the region has more than one node: then nobody needs to wait for one that restarts.
    fn has_another_node(&self) -> bool {
        let (map, region) = match &self.target {
            Target::Fixed(Server::Region { map, region }) => (map, Some(*region)),
            Target::Nearest { map, home } => (map, *home),
            Target::Fixed(_) => return false,
        };
        region.and_then(|region| map.regions.get(&region)).is_some_and(|region| relay_nodes(region).nth(1).is_some())
    }

    fn received(&mut self, event: Event) -> ClientEvent {
        self.note_heard();
        if let Event::Restarting { reconnect_in, try_for } = event {
            let not_before = Instant::now() + reconnect_in.min(RESTART_WAIT_MAX);
            self.restart = Some(Restart { not_before, until: not_before + try_for.min(RESTART_TRY_MAX) });
        }
        let generation = self.link.as_ref().map_or(self.generation, |link| link.generation);
        ClientEvent::Received { generation, event }
    }

    fn note_heard(&mut self) {
        if let Some(region) = self.link.as_ref().and_then(|link| link.region) {
            self.heard.insert(region, Instant::now());
        }
    }

    /// A failure is a reason to look whether another region is nearer now; the one that runs anyway will do.
    fn netcheck_soon(&mut self) {
        self.netcheck_at = Instant::now();
    }

    fn measure(&mut self) {
        let Target::Nearest { map, home } = &self.target else {
            return;
        };
        let (map, home, route) = (Arc::clone(map), *home, self.login.route.clone());
        let wants_full = self.history.wants_full(Instant::now().into_std());
        let last = if wants_full { None } else { self.history.last().cloned() };
        self.netcheck = Some(Box::pin(async move { measure_again(&map, last.as_ref(), home, &route).await }));
    }

    fn measured(&mut self, mut report: Report) -> Option<ClientEvent> {
        self.netcheck = None;
        self.netcheck_at = Instant::now() + Duration::from_millis(rand::random_range(NETCHECK_INTERVAL_MS));
        let Target::Nearest { map, home } = &self.target else {
            return None;
        };
        let from = *home;
        if let Some(home) = from.filter(|_| self.failures >= HOME_FAILURES_MAX) {
            // It may answer measurements, but takes no connection: as good as neither measured nor heard.
            report.latency.remove(&home);
            self.heard.remove(&home);
        }
        let scores = map.home_params.as_ref().and_then(|params| params.region_score.clone()).unwrap_or_default();
        let last_frame = |region: RegionId| self.heard.get(&region).map(|at| at.into_std());
        let inputs = HomeInputs { scores: &scores, last_frame: &last_frame, forced: self.forced_home };
        let chosen = self.history.choose_home(report, &inputs, Instant::now().into_std());
        // Without any result: the old home, else any region, but always the same one.
        let usable = |region: &RegionId| find_region(map, *region).is_ok();
        let to = chosen.filter(usable).or_else(|| from.filter(usable)).or_else(|| any_region(map))?;
        if from == Some(to) {
            return None;
        }
        let latency = self.history.last().and_then(|report| report.latency.get(&to).copied());
        self.target = Target::Nearest { map: Arc::clone(map), home: Some(to) };
        self.move_to(to);
        Some(ClientEvent::HomeChanged { from, to, latency })
    }

    /// Connects to the new home at once; an attempt at another region is given up.
    fn move_to(&mut self, home: RegionId) {
        self.failures = 0;
        if self.link.as_ref().is_some_and(|link| link.region == Some(home)) {
            self.connecting = None;
            return;
        }
        self.connect();
    }

    fn new_map(&mut self) {
        let Some(new) = self.map.borrow_and_update().clone() else {
            return;
        };
        let linked = self.link.as_ref().and_then(|link| link.region);
        match &mut self.target {
            Target::Fixed(Server::Region { map, .. }) => *map = new,
            Target::Nearest { map, home } => {
                let is_gone = |region: &RegionId| find_region(&new, *region).is_err();
                if home.as_ref().is_some_and(is_gone) {
                    // The next measurement chooses; the connection, if there is one, lives on until then.
                    *home = linked.filter(|region| !is_gone(region));
                }
                *map = new;
                self.history.network_changed();
                self.netcheck_soon();
            }
            Target::Fixed(_) => {}
        }
    }
}

/// Waits for the future in the slot, for ever if there is none. It stays there if this is dropped.
async fn slot<T>(slot: &mut Option<BoxFuture<'static, T>>) -> T {
    match slot {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

async fn receive(link: Option<&mut Link>) -> Result<Event, Arc<ConnectionError>> {
    match link {
        Some(link) => link.receiver.recv().await,
        None => std::future::pending().await,
    }
}

/// Pause after so many failures in a row: min(n² · 10 ms, 5 s), times a factor between 0.5 and 1.5 (`derp.md` section 15.2).
fn backoff(failures: u32, jitter: f64) -> Duration {
    let square = u64::from(failures.min(1000)).pow(2);
    Duration::from_millis(square * 10).min(BACKOFF_MAX).mul_f64(jitter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_grows_with_the_square_up_to_its_limit() {
        for (failures, ms) in [(1, 10), (2, 40), (10, 1000), (22, 4840), (23, 5000), (u32::MAX, 5000)] {
            assert_eq!(backoff(failures, 1.0), Duration::from_millis(ms), "{failures} failures");
        }
        assert_eq!(backoff(10, 0.5), Duration::from_millis(500));
    }
}
