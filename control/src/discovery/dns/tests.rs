#![allow(clippy::unwrap_used, reason = "tests")]

use std::net::Ipv4Addr;

use tokio_util::task::TaskTracker;

use super::*;
use crate::testing::DnsServer;

/// Everything here may be slow on a busy machine.
const DEADLINE: Duration = Duration::from_secs(30);

/// Changes show at once when records have no TTL.
const FAST: Pace = Pace {
    floor: Duration::from_millis(20),
    ceiling: Duration::from_secs(300),
    retry_first: Duration::from_millis(20),
    retry_max: Duration::from_millis(100),
};

const V4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

struct Bench {
    server: Option<DnsServer>,
    seeds: DnsSeeds,
    metrics: DiscoveryMetrics,
    cancel: CancellationToken,
    tracker: TaskTracker,
}

impl Bench {
    async fn new(names: &[&str], prepare: impl AsyncFnOnce(&DnsServer)) -> Self {
        let server = DnsServer::start(([127, 0, 0, 1], 0).into()).await.unwrap();
        prepare(&server).await;
        let (metrics, cancel, tracker) = (DiscoveryMetrics::default(), CancellationToken::new(), TaskTracker::new());
        let names = names.iter().map(|name| name.parse().unwrap()).collect();
        let mut seeds = DnsSeeds::start(names, vec![server.addr()], FAST, metrics.clone(), &tracker, cancel.clone());
        tokio::time::timeout(DEADLINE, seeds.asked_once()).await.unwrap();
        Self { server: Some(server), seeds, metrics, cancel, tracker }
    }

    fn server(&self) -> &DnsServer {
        self.server.as_ref().unwrap()
    }

    /// Waits until the seeds are these.
    async fn until(&mut self, wanted: &[&str]) {
        let reached = async {
            while self.seeds.seeds() != wanted {
                self.seeds.changed().await;
            }
        };
        if tokio::time::timeout(DEADLINE, reached).await.is_err() {
            panic!("wanted {wanted:?}, there are {:?}", self.seeds.seeds());
        }
    }

    /// Waits until one more lookup has ended so.
    async fn until_counted(&self, outcome: &'static str) {
        let before = self.metrics.dns_lookups(outcome);
        let counted = async {
            while self.metrics.dns_lookups(outcome) == before {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(DEADLINE, counted).await.unwrap_or_else(|_| panic!("no lookup ended as {outcome}"));
    }

    async fn end(self) {
        self.cancel.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }
}

#[test]
fn a_name_is_a_host_a_host_with_a_port_or_a_service() {
    let parsed = |text: &str| text.parse::<DnsName>().unwrap();
    assert_eq!(parsed("mesh.example"), DnsName { name: "mesh.example".into(), port: Some(MESH_PORT) });
    assert_eq!(parsed("mesh.example.:7000"), DnsName { name: "mesh.example.".into(), port: Some(7000) });
    assert_eq!(parsed("_mesh._tcp.example"), DnsName { name: "_mesh._tcp.example".into(), port: None });
    let long = format!("{}.example", "a".repeat(64));
    for (bad, wanted) in [
        ("", "NAME:PORT"),
        ("a..b", "NAME:PORT"),
        ("mesh example", "NAME:PORT"),
        ("mesh.example:0", "NAME:PORT"),
        ("mesh.example:x", "NAME:PORT"),
        (long.as_str(), "NAME:PORT"),
        ("192.0.2.1", "discovery.static"),
        ("192.0.2.1:7443", "discovery.static"),
        ("_mesh._tcp.example:7443", "leave it out"),
    ] {
        let error = bad.parse::<DnsName>().unwrap_err();
        assert!(error.contains(wanted), "{bad}: {error}");
    }
}

#[test]
fn the_ttl_counts_within_bounds_and_failures_are_tried_again_sooner_and_ever_later() {
    let pace = Pace::default();
    let seconds = Duration::from_secs;
    assert_eq!(pace.wait(seconds(60), 0), seconds(60));
    assert_eq!(pace.wait(Duration::ZERO, 0), pace.floor);
    assert_eq!(pace.wait(Duration::MAX, 0), pace.ceiling);
    let waits: Vec<u64> = (1..=8).map(|failures| pace.wait(Duration::MAX, failures).as_secs()).collect();
    assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
    assert_eq!(pace.wait(Duration::MAX, u32::MAX), pace.retry_max);
}

#[tokio::test]
async fn both_families_of_a_name_are_seeds_and_a_change_is_picked_up() {
    let (second, v6) = (IpAddr::from([192, 0, 2, 2]), "2001:db8::1".parse().unwrap());
    let mut bench =
        Bench::new(&["mesh.test.:7000", "mesh.test."], async |dns| dns.set_addresses("mesh.test.", 0, &[V4, v6]).await).await;
    let both = ["192.0.2.1:7000", "192.0.2.1:7443", "[2001:db8::1]:7000", "[2001:db8::1]:7443"];
    bench.until(&both).await;
    bench.server().set_addresses("mesh.test.", 0, &[second]).await;
    bench.until(&["192.0.2.2:7000", "192.0.2.2:7443"]).await;
    bench.server().set_addresses("mesh.test.", 0, &[v6]).await;
    bench.until(&["[2001:db8::1]:7000", "[2001:db8::1]:7443"]).await;
    bench.end().await;
}

#[tokio::test]
async fn a_ttl_that_has_not_run_out_is_respected() {
    let mut bench = Bench::new(&["mesh.test."], async |dns| dns.set_addresses("mesh.test.", 3600, &[V4]).await).await;
    bench.until(&["192.0.2.1:7443"]).await;
    assert_eq!(bench.metrics.dns_lookups("ok"), 1);
    // Ten times as long as it would take without a TTL.
    tokio::time::sleep(10 * FAST.floor).await;
    assert_eq!(bench.metrics.dns_lookups("ok"), 1);
    bench.end().await;
}

#[tokio::test]
async fn a_service_gives_the_hosts_and_ports_of_its_records_as_far_as_they_resolve() {
    let mut bench = Bench::new(&["_mesh._tcp.test."], async |dns| {
        dns.set_addresses("one.test.", 0, &[V4]).await;
        dns.set_service("_mesh._tcp.test.", 0, &[("one.test.", 7001), ("one.test.", 7002), ("missing.test.", 7003)]).await;
    })
    .await;
    bench.until(&["192.0.2.1:7001", "192.0.2.1:7002"]).await;
    bench.server().set_addresses("missing.test.", 0, &["2001:db8::3".parse().unwrap()]).await;
    bench.until(&["192.0.2.1:7001", "192.0.2.1:7002", "[2001:db8::3]:7003"]).await;
    // The service is declared not to be available: the last good answer stands.
    bench.server().set_service("_mesh._tcp.test.", 0, &[(".", 0)]).await;
    bench.until_counted("empty").await;
    assert_eq!(bench.seeds.seeds().len(), 3);
    bench.end().await;
}

#[tokio::test]
async fn a_name_that_does_not_exist_is_counted_and_found_when_it_appears_and_kept_when_it_goes() {
    let mut bench = Bench::new(&["late.test."], async |_| {}).await;
    assert!(bench.seeds.seeds().is_empty() && bench.metrics.dns_lookups("empty") >= 1);
    bench.server().set_addresses("late.test.", 0, &[V4]).await;
    bench.until(&["192.0.2.1:7443"]).await;
    bench.server().set_addresses("late.test.", 0, &[]).await;
    bench.until_counted("empty").await;
    assert_eq!(bench.seeds.seeds(), ["192.0.2.1:7443"], "the last good answer stands");
    bench.end().await;
}

#[tokio::test]
async fn a_dead_server_changes_nothing_and_is_asked_until_it_is_back() {
    let mut bench = Bench::new(&["mesh.test."], async |dns| dns.set_addresses("mesh.test.", 0, &[V4]).await).await;
    bench.until(&["192.0.2.1:7443"]).await;
    let addr = bench.server().addr();
    bench.server = None;
    bench.until_counted("failed").await;
    assert_eq!(bench.seeds.seeds(), ["192.0.2.1:7443"], "the last good answer stands");
    let again = DnsServer::start(addr).await.unwrap();
    again.set_addresses("mesh.test.", 0, &[IpAddr::from([192, 0, 2, 9])]).await;
    bench.until(&["192.0.2.9:7443"]).await;
    bench.end().await;
}
