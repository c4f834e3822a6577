//! The debug pages that dashboards and monitoring of stock derpers read.

use std::collections::BTreeMap;
use std::time::Duration;

use causeway_client::Event;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::harness::{DEADLINE, Home, Node, get};
use crate::relay::{client, packet};

const PAGE: &str = include_str!("../../../docs/operations/metrics.md");

/// Samples of `/debug/varz`, each with its labels in its name.
async fn varz(node: &Node) -> BTreeMap<String, f64> {
    let answer = get(node.metrics_address(), "/debug/varz").await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 ") && head.contains("text/plain; version=0.0.4"), "{head}");
    let samples = body.lines().filter(|line| !line.starts_with('#')).map(|line| line.rsplit_once(' ').unwrap());
    samples.map(|(name, value)| (name.to_owned(), value.parse().unwrap())).collect()
}

#[tokio::test]
async fn stock_names_show_what_clients_did() {
    let home = Home::new();
    let node = home.start(&[]).await;
    let before = varz(&node).await;
    let drops = |samples: &BTreeMap<String, f64>| samples.keys().filter(|name| name.starts_with("derp_packets_dropped{")).count();
    assert_eq!(drops(&before), 14, "all combinations are there from the start");
    assert_eq!(before["derp_packets_dropped{reason=\"dup_client\",kind=\"disco\"}"], 0.0);

    let ((mut over_tls, a), (over_plain, b)) = (client(&node, false).await, client(&node, true).await);
    over_plain.sender().send(&a, b"12345").await.unwrap();
    assert_eq!(packet(&mut over_tls).await, (b, b"12345".to_vec()));
    let nobody = causeway_proto::key::NodePrivate::generate().public();
    let disco = [&causeway_proto::packet::DISCO_MAGIC[..], &[0; 60]].concat();
    over_tls.sender().send(&nobody, &disco).await.unwrap();
    // The answer shows that the drop is counted.
    while !matches!(over_tls.recv().await.unwrap(), Event::PeerGone { peer, .. } if peer == nobody) {}
    node.until_metric("causeway_packets_delivered_total", |delivered| delivered == 1.0).await;
    node.until_metric("causeway_clients_home_connections", |homes| homes == 2.0).await;

    let now = varz(&node).await;
    for (name, value) in [
        ("derp_accepts", 2.0),
        ("derp_current_connections", 2.0),
        ("derp_current_home_connections", 2.0),
        ("derp_clients_local", 2.0),
        ("derp_clients_total", 2.0),
        ("derp_clients_remote", 0.0),
        ("derp_packets_received", 2.0),
        ("derp_bytes_received", 71.0),
        ("derp_packets_received_kind{kind=\"disco\"}", 1.0),
        ("derp_packets_received_kind{kind=\"other\"}", 1.0),
        ("derp_packets_sent", 1.0),
        ("derp_bytes_sent", 5.0),
        ("derp_packets_dropped{reason=\"unknown_dest\",kind=\"disco\"}", 1.0),
        ("derp_bytes_dropped{reason=\"unknown_dest\",kind=\"disco\"}", 66.0),
        ("derp_peer_gone_not_here_frames", 1.0),
        ("derper_tls_request_version{version=\"1.3\"}", 1.0),
        ("tls_listener_accepted_connections", 1.0),
    ] {
        assert_eq!(now.get(name), Some(&value), "{name}");
    }
    assert!(now["derp_buffered_write_frames_count"] >= 2.0 && now["derp_current_file_descriptors"] > 2.0);
    assert!(now["process_start_unix_time"] > 1e9 && now["process_resident_memory_bytes"] > 1e6);

    let vars = get(node.metrics_address(), "/debug/vars").await;
    let vars: serde_json::Value = serde_json::from_str(vars.split_once("\r\n\r\n").unwrap().1).unwrap();
    assert_eq!(vars["derp"]["packets_received"], 2);
    assert_eq!(vars["derp"]["gauge_current_connections"], 2);
    assert_eq!(vars["derp_packets_dropped"]["unknown_dest"]["disco"], 1);
    let check = get(node.metrics_address(), "/debug/check").await;
    assert!(check.starts_with("HTTP/1.1 200 ") && check.ends_with("\r\n\r\nderp.Server ConsistencyCheck okay"), "{check}");
    // The kernel is asked every 10 s about both, whatever they speak.
    let round_trips = async {
        loop {
            let now = varz(&node).await;
            let counts = now.into_iter().filter(|(name, _)| name.starts_with("derp_tcp_rtt{")).collect::<BTreeMap<_, _>>();
            if counts.values().sum::<f64>() >= 2.0 {
                return counts;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let round_trips = timeout(DEADLINE, round_trips).await.expect("round trips are counted");
    if node.log().contains("round trip times of clients cannot be read") {
        eprintln!("skipped: this machine's kernel does not tell the round trips of sockets");
    } else {
        assert_eq!(round_trips["derp_tcp_rtt{le=\"error\"}"], 0.0, "{round_trips:?}");
    }
    drop((over_tls, over_plain));
    node.stop().await;
}

#[tokio::test]
async fn the_consistency_check_says_when_nobody_can_be_asked_about_logins() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let home = Home::new();
    let url = format!("admission.verify_url=http://{nobody}/verify");
    let mut node = home.start(&["--set", "admission.sources=[\"verify_url\"]", "--set", &url]).await;
    let check = get(node.metrics_address(), "/debug/check").await;
    assert!(check.starts_with("HTTP/1.1 500 ") && check.contains("admission by verify_url: "), "{check}");
    node.signal(rustix::process::Signal::TERM);
    assert!(node.ended().await.success());
    assert!(node.log().contains("admission cannot be asked"), "{}", node.log());
}

/// Speaks plain HTTP where TLS is wanted.
async fn get_nothing(address: &str) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
    // An alert or a reset.
    drop(stream.read_to_end(&mut Vec::new()).await);
}

/// The metrics of a node whose families show, which each does once it has counted something: a connection that ends, one that is refused.
async fn exported() -> String {
    let home = Home::new();
    let node = home.start(&[]).await;
    drop(client(&node, false).await);
    get_nothing(&node.ready.derp).await;
    node.until_metric("causeway_derp_connections_ended_total", |ended| ended == 1.0).await;
    node.until_metric("causeway_ingress_refused_connections_total", |refused| refused == 1.0).await;
    let exported = node.metrics().await;
    node.stop().await;
    exported
}

/// The page is held against the table in the code elsewhere; here, that what it calls ours is really there.
#[tokio::test]
async fn every_metric_the_page_maps_to_is_exported() {
    let exported = exported().await;
    let table = PAGE.split("## Stock names").nth(1).unwrap().split("\n## ").next().unwrap();
    let names = table.split('`').skip(1).step_by(2).filter(|word| word.starts_with("causeway_") && !word.ends_with('…'));
    let mut count = 0;
    for name in names.map(|word| word.split('{').next().unwrap()) {
        let family = name.strip_suffix("_total").unwrap_or(name);
        assert!(exported.contains(&format!("# TYPE {family} ")), "{name} is on the page but not exported");
        count += 1;
    }
    assert!(count > 30, "{count}");
}

#[tokio::test]
async fn every_exported_metric_is_on_the_page() {
    let exported = exported().await;
    let page = PAGE.split("## Our names").nth(1).unwrap();
    let types = exported.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    let names = types.map(|(name, kind)| if kind == "counter" { format!("{name}_total") } else { name.to_owned() });
    let missing: Vec<String> = names.filter(|name| !page.contains(&format!("| `{name}` | "))).collect();
    assert!(missing.is_empty(), "docs/operations/metrics.md lacks {missing:?}");
}
