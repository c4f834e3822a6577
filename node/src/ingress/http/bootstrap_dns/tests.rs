#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::HashMap;

use hickory_resolver::proto::op::{Message, MessageType};
use hickory_resolver::proto::rr::rdata::{A, AAAA, TXT};
use hickory_resolver::proto::rr::{Record, RecordType};
use hickory_resolver::proto::serialize::binary::{BinDecodable, BinEncodable};
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use super::*;
use crate::config::UnpublishedName;

type Zone = HashMap<(&'static str, RecordType), Vec<RData>>;

/// A DNS server on loopback that answers from the newest zone.
async fn dns_server(zone: watch::Receiver<Zone>, tracker: &TaskTracker) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    tracker.spawn(async move {
        let mut datagram = [0; 512];
        loop {
            let (len, from) = socket.recv_from(&mut datagram).await.unwrap();
            let mut message = Message::from_bytes(&datagram[..len]).unwrap();
            let query = message.queries[0].clone();
            let name = query.name().to_ascii();
            let found = {
                let zone = zone.borrow();
                zone.iter().find(|((known, kind), _)| *known == name && *kind == query.query_type()).map(|(_, data)| data.clone())
            };
            message.metadata.message_type = MessageType::Response;
            let records = found.unwrap_or_default().into_iter();
            message.answers.extend(records.map(|data| Record::from_rdata(query.name().clone(), 60, data)));
            socket.send_to(&message.to_bytes().unwrap(), from).await.unwrap();
        }
    });
    address
}

fn v4(address: &str) -> RData {
    RData::A(A(address.parse().unwrap()))
}

fn names() -> config::BootstrapDns {
    let unpublished = |name: &str, percent_name: Option<&str>| UnpublishedName {
        name: name.to_owned(),
        percent_name: percent_name.map(str::to_owned),
    };
    config::BootstrapDns {
        names: vec!["a.test.".into(), "gone.test.".into()],
        unpublished: vec![
            unpublished("all.test.", None),
            unpublished("half.test.", Some("percent.test.")),
            unpublished("none.test.", Some("nothing.test.")),
        ],
        servers: Vec::new(),
    }
}

fn zone() -> Zone {
    Zone::from([
        (("a.test.", RecordType::A), vec![v4("192.0.2.1"), v4("192.0.2.2")]),
        (("a.test.", RecordType::AAAA), vec![RData::AAAA(AAAA("2001:db8::1".parse().unwrap()))]),
        (("all.test.", RecordType::A), vec![v4("192.0.2.3")]),
        (("half.test.", RecordType::A), vec![v4("192.0.2.4")]),
        (("percent.test.", RecordType::TXT), vec![RData::TXT(TXT::new(vec!["50".into()]))]),
        (("none.test.", RecordType::A), vec![v4("192.0.2.5")]),
    ])
}

struct Fixture {
    dns: Arc<BootstrapDns>,
    resolver: SystemResolver,
    zone: watch::Sender<Zone>,
    _tracker: TaskTracker,
}

impl Fixture {
    async fn new() -> Self {
        let (sender, receiver) = watch::channel(zone());
        let tracker = TaskTracker::new();
        let resolver = SystemResolver::new(&[dns_server(receiver, &tracker).await]).unwrap();
        let fixture = Self { dns: BootstrapDns::new(BootstrapDnsMetrics::default()), resolver, zone: sender, _tracker: tracker };
        fixture.dns.refresh(&names(), &fixture.resolver).await;
        fixture
    }

    fn answer(&self, query: Option<&str>, client: &str) -> BTreeMap<String, Vec<IpAddr>> {
        let answer = self.dns.answer(query, client.parse().unwrap());
        serde_json::from_slice::<BTreeMap<String, Vec<IpAddr>>>(&answer)
            .unwrap()
            .into_iter()
            .map(|(name, mut addresses)| {
                addresses.sort();
                (name, addresses)
            })
            .collect()
    }
}

const STRANGER: &str = "203.0.113.9";

fn addresses(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

#[tokio::test]
async fn published_names_are_told_to_everybody_and_unpublished_ones_to_those_who_ask() {
    let f = Fixture::new().await;
    let published = BTreeMap::from([("a.test.".to_owned(), addresses(&["192.0.2.1", "192.0.2.2", "2001:db8::1"]))]);
    for query in [None, Some("a.test."), Some("b.test."), Some("none.test.")] {
        assert_eq!(f.answer(query, STRANGER), published, "{query:?}");
    }
    let only = BTreeMap::from([("all.test.".to_owned(), addresses(&["192.0.2.3"]))]);
    assert_eq!(f.answer(Some("all.test."), STRANGER), only);
    let metrics = &f.dns.metrics;
    let counts = [
        &metrics.requests,
        &metrics.published_hits,
        &metrics.published_misses,
        &metrics.unpublished_hits,
        &metrics.unpublished_misses,
        &metrics.unpublished_percent_misses,
        &metrics.failures,
    ];
    // Two names do not exist: one published, one TXT record.
    assert_eq!(counts.map(|counter| counter.get()), [5, 1, 0, 2, 2, 1, 2]);
    assert_eq!(metrics.queried_domains.get(), 4);
}

#[tokio::test]
async fn a_share_of_the_clients_gets_a_name_and_always_the_same_ones() {
    let f = Fixture::new().await;
    let chosen = |n: u8| f.answer(Some("half.test."), &format!("203.0.113.{n}")).contains_key("half.test.");
    let share = (0..200).filter(|n| chosen(*n)).count();
    assert!((60..140).contains(&share), "{share} of 200");
    for n in 0..200 {
        assert_eq!(chosen(n), chosen(n));
        assert_eq!(f.answer(Some("half.test."), &format!("::ffff:203.0.113.{n}")).contains_key("half.test."), chosen(n));
    }
    // On this machine anybody can try both.
    let local: HashSet<bool> = (0..200).map(|_| f.answer(Some("half.test."), "127.0.0.1").contains_key("half.test.")).collect();
    assert_eq!(local.len(), 2);
}

#[tokio::test]
async fn what_does_not_resolve_any_more_keeps_its_last_answer() {
    let f = Fixture::new().await;
    f.zone.send(Zone::from([(("gone.test.", RecordType::A), vec![v4("192.0.2.9")])])).unwrap();
    f.dns.refresh(&names(), &f.resolver).await;
    let all = f.answer(None, STRANGER);
    assert_eq!((all["a.test."].len(), &all["gone.test."]), (3, &addresses(&["192.0.2.9"])));
    assert_eq!(f.answer(Some("all.test."), STRANGER).len(), 1);
}

#[test]
fn the_document_is_indented_as_stock_servers_do() {
    let one = BTreeMap::from([("a", addresses(&["192.0.2.1", "2001:db8::1"]))]);
    assert_eq!(document(&one), "{\n\t\"a\": [\n\t\t\"192.0.2.1\",\n\t\t\"2001:db8::1\"\n\t]\n}");
}

#[test]
fn a_percentage_is_a_whole_number_up_to_a_hundred() {
    for (texts, wanted) in
        [(&["50"][..], 50), (&["0"], 0), (&["100"], 100), (&["101", "x", "-1", ""], 0), (&[], 0), (&["x", "7"], 7)]
    {
        assert_eq!(percent(&texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>()), wanted, "{texts:?}");
    }
}

#[test]
fn names_asked_for_are_forgotten_before_they_are_many() {
    let dns = BootstrapDns::new(BootstrapDnsMetrics::default());
    for n in 0..=QUERIED_MAX {
        assert!(dns.answer(Some(&format!("{n}.test")), STRANGER.parse().unwrap()).is_empty(), "nothing is configured");
    }
    assert_eq!(dns.metrics.queried_domains.get(), 0);
    drop(dns.answer(Some(&"x".repeat(QUERIED_LEN_MAX + 1)), STRANGER.parse().unwrap()));
    assert_eq!(dns.metrics.queried_domains.get(), 0, "no name is that long");
}
