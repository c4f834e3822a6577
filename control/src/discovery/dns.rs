//! Seeds from DNS: the addresses of names, and of the hosts that a service names. Asked again as the records' TTL says; while a name
//! cannot be resolved, its last good answer stands.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::RData;
use rand::Rng;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::metrics::DiscoveryMetrics;
use super::{Discovery, SEEDS_MAX};

/// The mesh port of names that give none.
pub const MESH_PORT: u16 = 7443;
/// Names that are looked up at most.
pub const DNS_NAMES_MAX: usize = 16;
/// Hosts of one service that are looked up at most.
const TARGETS_MAX: usize = 64;
/// Lookups under way at a time, per name.
const LOOKUPS_AT_A_TIME: usize = 8;
/// A server gets so long to answer, so many times.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
const ATTEMPTS: usize = 2;
const NAME_LEN_MAX: usize = 253;

/// When names are asked for again.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Not before, whatever the TTL.
    pub floor: Duration,
    /// Not later, whatever the TTL.
    pub ceiling: Duration,
    /// After a first failure; doubled with each further one.
    pub retry_first: Duration,
    /// The longest of these.
    pub retry_max: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            floor: Duration::from_secs(5),
            ceiling: Duration::from_secs(300),
            retry_first: Duration::from_secs(1),
            retry_max: Duration::from_secs(60),
        }
    }
}

impl Pace {
    /// `failures`: rounds in a row in which a name could not be resolved.
    fn wait(&self, ttl: Duration, failures: u32) -> Duration {
        let ttl = ttl.clamp(self.floor, self.ceiling);
        let Some(doublings) = failures.checked_sub(1) else { return ttl };
        let retry = self.retry_first.saturating_mul(1u32.checked_shl(doublings).unwrap_or(u32::MAX));
        ttl.min(retry.min(self.retry_max))
    }
}

/// A name to look up: `NAME`, `NAME:PORT` (A and AAAA records), or `_SERVICE._PROTOCOL.NAME` (SRV records).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsName {
    name: String,
    /// `None`: the SRV records say.
    port: Option<u16>,
}

impl FromStr for DnsName {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WANTED: &str = "wanted NAME, NAME:PORT, or _SERVICE._PROTOCOL.NAME, such as mesh.relay.example";
        let (name, port) = match text.rsplit_once(':') {
            Some((name, port)) => (name, Some(port.parse().ok().filter(|port| *port > 0).ok_or(WANTED)?)),
            None => (text, None),
        };
        let bare = name.strip_suffix('.').unwrap_or(name);
        let good = |label: &str| {
            (1..=63).contains(&label.len()) && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        };
        if bare.len() > NAME_LEN_MAX || !bare.split('.').all(good) {
            return Err(WANTED);
        }
        if bare.parse::<IpAddr>().is_ok() {
            return Err("an address needs no DNS: put ADDRESS:PORT into discovery.static");
        }
        let service = name.starts_with('_');
        if service && port.is_some() {
            return Err("the SRV records of a service give the port: leave it out");
        }
        Ok(Self { name: name.to_owned(), port: if service { None } else { Some(port.unwrap_or(MESH_PORT)) } })
    }
}

/// What DNS answered last.
#[derive(Debug)]
pub struct DnsSeeds {
    seeds: watch::Receiver<Option<Arc<[String]>>>,
}

impl DnsSeeds {
    /// Looks `names` up on a task of `tracker` until cancelled: at `servers`, or, if there are none, as the system is configured.
    #[must_use]
    pub fn start(
        names: Vec<DnsName>,
        servers: Vec<SocketAddr>,
        pace: Pace,
        metrics: DiscoveryMetrics,
        tracker: &tokio_util::task::TaskTracker,
        cancel: CancellationToken,
    ) -> Self {
        let (publish, seeds) = watch::channel(None);
        let names = names.into_iter().take(DNS_NAMES_MAX).map(|name| Watched { name, last: BTreeSet::new(), failing: false });
        let watch = Watch { names: names.collect(), servers, pace, metrics, failures: 0 };
        tracker.spawn(async move { cancel.run_until_cancelled(watch.run(publish)).await });
        Self { seeds }
    }

    /// Waits until every name has been asked for once, answered or not.
    pub async fn asked_once(&mut self) {
        // An error means that the task was cancelled: nobody needs an answer any more.
        drop(self.seeds.wait_for(Option::is_some).await);
    }

    /// Waits until the answer is another one.
    pub async fn changed(&mut self) {
        drop(self.seeds.changed().await);
    }
}

impl Discovery for DnsSeeds {
    fn seeds(&mut self) -> Vec<String> {
        self.seeds.borrow_and_update().as_deref().unwrap_or_default().to_vec()
    }
}

/// A name and its last good answer.
struct Watched {
    name: DnsName,
    last: BTreeSet<SocketAddr>,
    failing: bool,
}

struct Watch {
    names: Vec<Watched>,
    servers: Vec<SocketAddr>,
    pace: Pace,
    metrics: DiscoveryMetrics,
    /// Rounds in a row in which a name could not be resolved.
    failures: u32,
}

impl Watch {
    async fn run(mut self, publish: watch::Sender<Option<Arc<[String]>>>) {
        loop {
            let ttl = self.round().await;
            let addresses: BTreeSet<SocketAddr> = self.names.iter().flat_map(|watched| &watched.last).copied().collect();
            self.metrics.dns_addresses(addresses.len());
            let seeds: Arc<[String]> = addresses.iter().take(SEEDS_MAX).map(ToString::to_string).collect();
            publish.send_if_modified(|current| {
                let changed = current.as_ref() != Some(&seeds);
                if changed {
                    tracing::info!(seeds = seeds.len(), "DNS names other possible peers than before");
                    *current = Some(seeds);
                }
                changed
            });
            // Nodes that were started together shall not ask together for ever.
            let spread = rand::rng().random_range(0.9..1.1);
            tokio::time::sleep(self.pace.wait(ttl, self.failures).mul_f64(spread)).await;
        }
    }

    /// Asks for every name once; the shortest TTL among the answers.
    async fn round(&mut self) -> Duration {
        // Made anew each time, so that a changed system configuration is followed. It keeps no answers: their TTL is kept here.
        let resolver = resolver(&self.servers);
        let answers = self.names.iter().map(|watched| async {
            match &resolver {
                Ok(resolver) => look_up(resolver, &watched.name).await,
                Err(error) => Err(Failure::Failed(error.to_string())),
            }
        });
        let answers = futures::future::join_all(answers).await;
        let (mut ttl, mut failed) = (self.pace.ceiling, false);
        for (watched, answer) in self.names.iter_mut().zip(answers) {
            match answer {
                Ok(answer) => {
                    self.metrics.dns_lookup("ok");
                    ttl = ttl.min(answer.ttl);
                    watched.answered(answer.addresses);
                }
                Err(failure) => {
                    self.metrics.dns_lookup(failure.label());
                    failed = true;
                    watched.failed(&failure);
                }
            }
        }
        self.failures = if failed { self.failures.saturating_add(1) } else { 0 };
        ttl
    }
}

impl Watched {
    fn answered(&mut self, addresses: BTreeSet<SocketAddr>) {
        if std::mem::take(&mut self.failing) {
            tracing::info!(name = self.name.name, "a DNS name is resolved again");
        }
        self.last = addresses;
    }

    fn failed(&mut self, failure: &Failure) {
        if !std::mem::replace(&mut self.failing, true) {
            tracing::warn!(name = self.name.name, %failure, kept = self.last.len(), "a DNS name cannot be resolved; its last answer stands");
        }
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("there are no such records")]
    Empty,
    #[error("{0}")]
    Failed(String),
}

impl Failure {
    const fn label(&self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::Failed(_) => "failed",
        }
    }
}

impl From<NetError> for Failure {
    fn from(error: NetError) -> Self {
        if error.is_no_records_found() { Self::Empty } else { Self::Failed(error.to_string()) }
    }
}

struct Answer<T> {
    addresses: BTreeSet<T>,
    ttl: Duration,
}

fn resolver(servers: &[SocketAddr]) -> Result<TokioResolver, NetError> {
    let mut builder = if servers.is_empty() {
        TokioResolver::builder_tokio()?
    } else {
        let servers = servers.iter().map(|server| {
            let at = |mut connection: ConnectionConfig| {
                connection.port = server.port();
                connection
            };
            NameServerConfig::new(server.ip(), true, vec![at(ConnectionConfig::udp()), at(ConnectionConfig::tcp())])
        });
        let config = ResolverConfig::from_parts(None, Vec::new(), servers.collect());
        let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        builder.options_mut().use_hosts_file = ResolveHosts::Never;
        builder
    };
    let options = builder.options_mut();
    (options.timeout, options.attempts, options.cache_size) = (ANSWER_TIMEOUT, ATTEMPTS, 0);
    builder.build()
}

async fn look_up(resolver: &TokioResolver, name: &DnsName) -> Result<Answer<SocketAddr>, Failure> {
    match name.port {
        Some(port) => {
            let Answer { addresses, ttl } = addresses_of(resolver, &name.name).await?;
            Ok(Answer { addresses: addresses.into_iter().map(|ip| SocketAddr::new(ip, port)).collect(), ttl })
        }
        None => service(resolver, &name.name).await,
    }
}

/// The hosts of a service, as far as they can be resolved. Priority and weight say nothing to a node that wants to meet them all.
async fn service(resolver: &TokioResolver, name: &str) -> Result<Answer<SocketAddr>, Failure> {
    let records = resolver.srv_lookup(name).await?;
    let targets: BTreeSet<(String, u16)> = records
        .answers()
        .iter()
        .filter_map(|record| match &record.data {
            // A service that is "decidedly not available" has the root as its target (RFC 2782).
            RData::SRV(srv) if !srv.target.is_root() && srv.port > 0 => Some((srv.target.to_utf8(), srv.port)),
            _ => None,
        })
        .take(TARGETS_MAX)
        .collect();
    let resolved = futures::stream::iter(targets)
        .map(async |(target, port)| (port, addresses_of(resolver, &target).await))
        .buffer_unordered(LOOKUPS_AT_A_TIME)
        .collect::<Vec<_>>()
        .await;
    let mut all = Answer { addresses: BTreeSet::new(), ttl: ttl_of(&records) };
    let mut failure = Failure::Empty;
    for (port, answer) in resolved {
        match answer {
            Ok(answer) => {
                all.addresses.extend(answer.addresses.into_iter().map(|ip| SocketAddr::new(ip, port)));
                all.ttl = all.ttl.min(answer.ttl);
            }
            Err(reason) => failure = reason,
        }
    }
    if all.addresses.is_empty() { Err(failure) } else { Ok(all) }
}

/// All addresses of a host. One family is enough.
async fn addresses_of(resolver: &TokioResolver, host: &str) -> Result<Answer<IpAddr>, Failure> {
    let (v4, v6) = tokio::join!(resolver.ipv4_lookup(host), resolver.ipv6_lookup(host));
    let mut all = Answer { addresses: BTreeSet::new(), ttl: Duration::MAX };
    let mut failure = Failure::Empty;
    for answer in [v4, v6] {
        match answer.map_err(Failure::from) {
            Ok(records) => {
                all.addresses.extend(records.answers().iter().filter_map(|record| match &record.data {
                    RData::A(v4) => Some(IpAddr::V4(v4.0)),
                    RData::AAAA(v6) => Some(IpAddr::V6(v6.0)),
                    _ => None,
                }));
                all.ttl = all.ttl.min(ttl_of(&records));
            }
            Err(Failure::Empty) => {}
            Err(failed) => failure = failed,
        }
    }
    if all.addresses.is_empty() { Err(failure) } else { Ok(all) }
}

/// The shortest TTL on the way to the answer, aliases included.
fn ttl_of(records: &Lookup) -> Duration {
    records.answers().iter().map(|record| Duration::from_secs(record.ttl.into())).min().unwrap_or(Duration::MAX)
}

#[cfg(test)]
mod tests;
