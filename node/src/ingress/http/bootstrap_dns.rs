//! Addresses of a few names for clients whose DNS does not work (`derp.md` section 12.4), resolved beforehand and kept.

use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use futures::future::BoxFuture;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolverConfig};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::RData;
use parking_lot::Mutex;
use rand::seq::SliceRandom;
use serde::Serialize;
use sha2::{Digest, Sha256};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use super::debug::is_loopback;
use crate::config;
use crate::ingress::metrics::BootstrapDnsMetrics;

/// Between two rounds of questions.
const REFRESH_PERIOD: Duration = Duration::from_secs(600);

/// How long one round may take; what is not answered then keeps its last answer.
const REFRESH_DEADLINE: Duration = Duration::from_secs(60);

/// Names asked for that are remembered for the metric, then all are forgotten; and the longest one.
const QUERIED_MAX: usize = 500;
const QUERIED_LEN_MAX: usize = 255;

/// Most addresses of a name.
const ADDRESSES_MAX: usize = 64;

/// Answers questions, as the system's DNS does.
pub trait Resolve: Send + Sync {
    /// All addresses of a name, of both families.
    fn addresses<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Vec<IpAddr>, String>>;

    /// The TXT records of a name.
    fn texts<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Vec<String>, String>>;
}

/// Asks the servers of the configuration, or those of the system.
#[expect(missing_debug_implementations, reason = "the resolver has none")]
pub struct SystemResolver(TokioResolver);

impl SystemResolver {
    /// A resolver that asks `servers`; if there are none, as the system is configured.
    ///
    /// # Errors
    /// The system's configuration cannot be read.
    pub fn new(servers: &[SocketAddr]) -> Result<Self, NetError> {
        let mut builder = if servers.is_empty() {
            TokioResolver::builder_tokio()?
        } else {
            let server = |address: &SocketAddr| {
                let mut connections = vec![ConnectionConfig::udp(), ConnectionConfig::tcp()];
                connections.iter_mut().for_each(|connection| connection.port = address.port());
                NameServerConfig::new(address.ip(), true, connections)
            };
            let servers = servers.iter().map(server).collect();
            let config = ResolverConfig::from_parts(None, Vec::new(), servers);
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        };
        builder.options_mut().ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
        // Each round asks anew.
        builder.options_mut().cache_size = 0;
        Ok(Self(builder.build()?))
    }
}

impl Resolve for SystemResolver {
    fn addresses<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Vec<IpAddr>, String>> {
        Box::pin(async move {
            let found = self.0.lookup_ip(name).await.map_err(|error| error.to_string())?;
            Ok(found.iter().collect())
        })
    }

    fn texts<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Vec<String>, String>> {
        Box::pin(async move {
            let found = self.0.txt_lookup(name).await.map_err(|error| error.to_string())?;
            let text = |data: &RData| match data {
                RData::TXT(txt) => Some(String::from_utf8_lossy(&txt.txt_data.concat()).into_owned()),
                _ => None,
            };
            Ok(found.answers().iter().filter_map(|record| text(&record.data)).collect())
        })
    }
}

/// A name and its addresses.
type Addresses = BTreeMap<String, Vec<IpAddr>>;

/// A name that only those who ask for it learn.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Unpublished {
    addresses: Vec<IpAddr>,
    percent: u8,
}

/// The answers of the last round.
#[derive(Debug)]
struct Answers {
    published: Addresses,
    /// The published ones as clients get them.
    document: Bytes,
    unpublished: BTreeMap<String, Unpublished>,
}

/// What is answered.
#[derive(Debug)]
pub struct BootstrapDns {
    answers: ArcSwap<Answers>,
    queried: Mutex<HashSet<String>>,
    metrics: BootstrapDnsMetrics,
}

impl BootstrapDns {
    /// Nothing has been resolved yet.
    #[must_use]
    pub fn new(metrics: BootstrapDnsMetrics) -> Arc<Self> {
        let answers = Answers { published: Addresses::new(), document: Bytes::new(), unpublished: BTreeMap::new() };
        Arc::new(Self { answers: ArcSwap::from_pointee(answers), queried: Mutex::default(), metrics })
    }

    /// The JSON for a client that asks for `query`: that name alone if it is unpublished and rolled out to this client, else all that
    /// are published. Empty if there is none.
    #[must_use]
    pub fn answer(&self, query: Option<&str>, client: IpAddr) -> Bytes {
        self.metrics.requests.inc();
        let answers = self.answers.load();
        if let Some(query) = query {
            self.note(query);
            if let Some(only) = self.unpublished(&answers, query, client) {
                return only;
            }
            // A name that is in neither list counts as one that is not published yet.
            match answers.published.get(query) {
                Some(addresses) if addresses.is_empty() => self.metrics.published_misses.inc(),
                Some(_) => self.metrics.published_hits.inc(),
                None => self.metrics.unpublished_misses.inc(),
            };
        }
        answers.document.clone()
    }

    fn unpublished(&self, answers: &Answers, query: &str, client: IpAddr) -> Option<Bytes> {
        let found = answers.unpublished.get(query).filter(|found| !found.addresses.is_empty())?;
        self.metrics.unpublished_hits.inc();
        if !is_rolled_out(client, found.percent) {
            self.metrics.unpublished_percent_misses.inc();
            return None;
        }
        Some(document(&BTreeMap::from([(query, &found.addresses)])))
    }

    fn note(&self, query: &str) {
        if query.len() > QUERIED_LEN_MAX {
            return;
        }
        let mut queried = self.queried.lock();
        queried.insert(query.to_owned());
        if queried.len() > QUERIED_MAX {
            queried.clear();
        }
        self.metrics.queried_domains.set(i64::try_from(queried.len()).unwrap_or(i64::MAX));
    }

    /// Asks now and every ten minutes until cancelled.
    pub async fn keep_fresh(self: Arc<Self>, names: config::BootstrapDns, resolver: impl Resolve, cancel: CancellationToken) {
        let mut ticks = interval(REFRESH_PERIOD);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = cancel.cancelled() => return,
                _ = ticks.tick() => {}
            }
            tokio::select! {
                () = cancel.cancelled() => return,
                () = self.refresh(&names, &resolver) => {}
            }
        }
    }

    /// One round. What cannot be resolved keeps its last answer, unlike at stock servers.
    async fn refresh(&self, names: &config::BootstrapDns, resolver: &impl Resolve) {
        let last = self.answers.load_full();
        let (mut published, mut unpublished) = (last.published.clone(), last.unpublished.clone());
        let round = async {
            for name in &names.names {
                if let Some(addresses) = self.resolve(name, resolver).await {
                    published.insert(name.clone(), addresses);
                }
            }
            for entry in &names.unpublished {
                let Some(addresses) = self.resolve(&entry.name, resolver).await else { continue };
                let percent = match &entry.percent_name {
                    None => 100,
                    Some(name) => percent(&self.counted(name, resolver.texts(name).await).unwrap_or_default()),
                };
                unpublished.insert(entry.name.clone(), Unpublished { addresses, percent });
            }
        };
        if timeout(REFRESH_DEADLINE, round).await.is_err() {
            self.metrics.failures.inc();
            tracing::warn!("bootstrap DNS was not resolved in time; what is missing keeps its last answer");
        }
        let document = if published.is_empty() { Bytes::new() } else { document(&published) };
        self.answers.store(Arc::new(Answers { published, document, unpublished }));
    }

    async fn resolve(&self, name: &str, resolver: &impl Resolve) -> Option<Vec<IpAddr>> {
        let mut addresses = self.counted(name, resolver.addresses(name).await)?;
        addresses.truncate(ADDRESSES_MAX);
        // Clients try the first ones first: let it not always be the same, nor always the same family.
        addresses.shuffle(&mut rand::rng());
        Some(addresses)
    }

    fn counted<T>(&self, name: &str, answer: Result<T, String>) -> Option<T> {
        answer
            .inspect_err(|error| {
                self.metrics.failures.inc();
                tracing::warn!(name, error, "bootstrap DNS: not resolved");
            })
            .ok()
    }
}

/// 0 to 100 from TXT records; the last good one counts, none is 0.
fn percent(texts: &[String]) -> u8 {
    texts.iter().filter_map(|text| text.parse().ok().filter(|percent| *percent <= 100)).next_back().unwrap_or(0)
}

/// Always the same for one address; by chance for this machine, to try it out.
fn is_rolled_out(client: IpAddr, percent: u8) -> bool {
    let share = u16::from(percent);
    if share == 0 || share == 100 {
        return share == 100;
    }
    if is_loopback(client) {
        return rand::random();
    }
    let octets = match client {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    };
    let digest = Sha256::digest(octets);
    u16::from_be_bytes([digest[0], digest[1]]) % 100 < share
}

/// JSON, indented by tabs as stock servers write it.
fn document(addresses: &impl Serialize) -> Bytes {
    let mut json = Vec::new();
    let format = serde_json::ser::PrettyFormatter::with_indent(b"\t");
    let written = addresses.serialize(&mut serde_json::Serializer::with_formatter(&mut json, format));
    debug_assert!(written.is_ok(), "names and addresses are JSON");
    Bytes::from(json)
}

#[cfg(test)]
mod tests;
