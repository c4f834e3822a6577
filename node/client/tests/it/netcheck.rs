//! Measuring regions, and maps from nodes.

use std::time::{Duration, Instant};

use causeway_client::{MapError, load_map, measure_regions};
use causeway_proto::id::RegionId;

use crate::server::{Ca, Options, Server, map_of};

#[tokio::test]
async fn stun_measures_every_region_and_stops_when_nothing_more_can_come() {
    let ca = Ca::new();
    let (near, far) = (Server::start(&ca, Options::default()).await, Server::start(&ca, Options::default()).await);
    far.delay_stun(Duration::from_millis(40));
    let map = map_of(vec![(1, vec![near.node("1a", 1)]), (2, vec![far.node("2a", 2)])]);
    let started = Instant::now();
    let report = measure_regions(&map, Some(&ca.trust())).await;
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    assert!(report.is_full && report.udp());
    assert!(report.latency[&RegionId(1)] < report.latency[&RegionId(2)], "{report:?}");
    assert!(report.latency[&RegionId(2)] >= Duration::from_millis(40));
    assert!(report.global_v4.is_some_and(|addr| addr.ip().is_loopback()));
}

#[tokio::test]
async fn a_region_that_is_not_to_be_measured_is_not() {
    let ca = Ca::new();
    let server = Server::start(&ca, Options::default()).await;
    let mut map = map_of(vec![(1, vec![server.node("1a", 1)]), (2, vec![server.node("2a", 2)])]).as_ref().clone();
    map.regions.get_mut(&RegionId(2)).expect("region 2").no_measure_no_home = true;
    let report = measure_regions(&map, Some(&ca.trust())).await;
    assert_eq!(report.latency.keys().copied().collect::<Vec<_>>(), [RegionId(1)]);
}

#[tokio::test]
async fn without_stun_https_measures_what_answers_and_is_trusted() {
    let ca = Ca::new();
    let server = Server::start(&ca, Options::default()).await;
    let stranger = Server::start(&Ca::new(), Options::default()).await;
    let without_stun = |mut node: causeway_proto::derpmap::Node| {
        node.stun_port = -1;
        vec![node]
    };
    let map = map_of(vec![(1, without_stun(server.node("1a", 1))), (2, without_stun(stranger.node("2a", 2)))]);
    let report = measure_regions(&map, Some(&ca.trust())).await;
    assert!(!report.udp());
    assert_eq!(report.latency.keys().copied().collect::<Vec<_>>(), [RegionId(1)]);
}

#[tokio::test]
async fn a_silent_stun_port_falls_back_to_https_after_three_seconds() {
    let ca = Ca::new();
    let server = Server::start(&ca, Options { stun: false, ..Options::default() }).await;
    let map = map_of(vec![(1, vec![server.node("1a", 1)])]);
    let started = Instant::now();
    let report = measure_regions(&map, Some(&ca.trust())).await;
    assert!(!report.udp() && report.latency.contains_key(&RegionId(1)), "{report:?}");
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_map_is_loaded_from_a_node_and_what_is_wrong_is_named() {
    let ca = Ca::new();
    let server = Server::start(&ca, Options { host_name: "127.0.0.1", ..Options::default() }).await;
    let map = map_of(vec![(1, vec![server.node("1a", 1)])]);
    server.serve_map(map.to_json());
    let url = format!("https://{}/derpmap", server.addr);
    let trust = ca.trust();
    assert_eq!(load_map(&url, Some(&trust)).await.expect("map"), *map);

    let plain = Server::start(&ca, Options { tls: false, ..Options::default() }).await;
    plain.serve_map(map.to_json());
    assert_eq!(load_map(&format!("http://{}/derpmap", plain.addr), None).await.expect("map"), *map);

    let error = load_map(&format!("http://{}/nothing", plain.addr), None).await.expect_err("404");
    assert!(matches!(&error, MapError::Answer { why, .. } if why == "HTTP status 404"), "{error}");
    plain.serve_map(b"[]".to_vec());
    let error = load_map(&format!("http://{}/derpmap", plain.addr), None).await.expect_err("no map");
    assert!(matches!(error, MapError::Content { .. }), "{error}");
    let error = load_map(&url, Some(&Ca::new().trust())).await.expect_err("another CA");
    assert!(error.to_string().contains(&url) && error.to_string().contains("TLS"), "{error}");
    let error = load_map("http://192.0.2.1/derpmap", None).await.expect_err("not loopback");
    assert!(error.to_string().contains("loopback"), "{error}");
}
