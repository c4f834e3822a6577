//! Who is there: seeds to find the fleet by, and the set of known nodes that everything else follows.

mod directory;
mod dns;
mod file;
mod metrics;
mod node_set;
mod static_list;

pub(crate) use directory::Directory;
pub use dns::{DNS_NAMES_MAX, DnsName, DnsSeeds, MESH_PORT, Pace};
pub use file::SeedFile;
pub use metrics::DiscoveryMetrics;
pub use node_set::{NodeEntry, NodeSet};
pub use static_list::StaticList;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Seeds taken from one source at most.
pub const SEEDS_MAX: usize = 1024;

/// Where a node looks for others until the fleet's own records tell it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seeds {
    /// HOST:PORT of mesh ports.
    pub static_list: Vec<String>,
    /// A file with a JSON list of HOST:PORT, read again when it changes.
    pub file: Option<PathBuf>,
    /// Names that stand for mesh ports.
    pub dns: Vec<DnsName>,
    /// Where these are asked for; empty: as the system is configured.
    pub dns_servers: Vec<SocketAddr>,
}

/// Where mesh addresses of possible peers come from.
pub trait Discovery: Send {
    /// The HOST:PORT of possible peers, as of now; at most [`SEEDS_MAX`].
    fn seeds(&mut self) -> Vec<String>;
}

/// A node that starts waits so long for DNS, and then goes on without.
const FIRST_ANSWER: Duration = Duration::from_secs(2);

/// The sources that a configuration names. Waits for the first answers of DNS, but not for long.
pub async fn sources(
    seeds: &Seeds,
    metrics: &DiscoveryMetrics,
    tracker: &TaskTracker,
    cancel: &CancellationToken,
) -> Vec<Box<dyn Discovery>> {
    let mut sources: Vec<Box<dyn Discovery>> = vec![Box::new(StaticList::new(seeds.static_list.clone()))];
    if let Some(path) = &seeds.file {
        sources.push(Box::new(SeedFile::new(path.clone())));
    }
    if !seeds.dns.is_empty() {
        let (names, servers) = (seeds.dns.clone(), seeds.dns_servers.clone());
        let mut dns = DnsSeeds::start(names, servers, Pace::default(), metrics.clone(), tracker, cancel.clone());
        // Late answers are taken up in the rounds that follow.
        drop(tokio::time::timeout(FIRST_ANSWER, dns.asked_once()).await);
        sources.push(Box::new(dns));
    }
    sources
}

/// HOST:PORT with a port that is not 0.
fn is_address(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    !host.is_empty() && host.len() <= 255 && port.parse::<u16>().is_ok_and(|port| port > 0)
}
