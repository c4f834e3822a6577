#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;

const PAGE: &str = include_str!("../../../../../docs/operations/metrics.md");

/// Every stock name of `derp.md` section 11; of the families of the Go runtime, the prefix.
const STOCK: &str = "derp_accepts derp_current_connections derp_current_home_connections derp_current_notideal_connections \
    derp_clients_total derp_clients_local derp_clients_remote derp_current_dup_client_keys derp_current_dup_client_conns \
    derp_total_dup_client_conns derp_watchers derp_packets_received derp_bytes_received derp_packets_received_kind derp_packets_sent \
    derp_bytes_sent derp_packets_forwarded_out derp_packets_forwarded_in derp_packets_dropped derp_bytes_dropped derp_home_moves_in \
    derp_home_moves_out derp_got_ping derp_sent_pong derp_peer_gone_disconnected_frames derp_peer_gone_not_here_frames \
    derp_unknown_frames derp_multiforwarder_created derp_multiforwarder_deleted derp_packet_forwarder_delete_other_value \
    derp_sclient_write_timeouts derp_average_queue_duration_ms derp_tcp_rtt derp_mesh_update_batch_size derp_mesh_update_loop_count \
    derp_buffered_write_frames derp_memstats_sys0 derp_current_file_descriptors derp_rate_limit_per_client_bytes_per_second \
    derp_rate_limit_per_client_burst_bytes derp_rate_limit_per_client_waited derp_websocket_accepts derper_tls_request_version \
    derper_tls_active_version tls_listener_accepted_connections tls_listener_rejected_connections stun_requests stun_addrfamily \
    bootstrap_dns_requests bootstrap_dns_published_hits bootstrap_dns_published_misses bootstrap_dns_unpublished_hits \
    bootstrap_dns_unpublished_misses bootstrap_dns_unpublished_percent_misses bootstrap_dns_queried_domains process_start_unix_time \
    uptime_sec goroutines node_boot_time_seconds version go_version go_sync_mutex_wait_seconds memstats_ go_ process_";

/// Rows of the page's stock table: the name, and what is said of it.
fn rows() -> Vec<(String, String)> {
    let table = PAGE.split("## Stock names").nth(1).unwrap().split("\n## ").next().unwrap();
    let rows = table.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
    rows.map(|(name, said)| (name.to_owned(), said.trim_end_matches(" |").to_owned())).collect()
}

/// Our metrics behind a source.
fn sources(source: Source) -> Vec<&'static str> {
    match source {
        Sum(name, _) | Drops(name) | Histogram(name) => vec![name],
        Sums(terms) => terms.iter().map(|(name, _)| *name).collect(),
        Labelled(_, words) => words.iter().map(|(_, name, _)| *name).collect(),
        Buckets { of, beside: (_, other), .. } => vec![of, other],
        Here(_) | Maybe(_) | Version => Vec::new(),
    }
}

#[test]
fn every_stock_name_is_served_or_listed_with_the_reason_why_not() {
    let rows = rows();
    let said = |name: &str| rows.iter().find(|(row, _)| row == name).map(|(_, said)| said.as_str());
    for name in STOCK.split_whitespace() {
        let is_it = |served: String| served == name || name.ends_with('_') && served.starts_with(name);
        let served = TABLE.iter().any(|(group, key, _)| is_it(name_of(group, key)));
        let said = said(name).unwrap_or_else(|| panic!("{name} is not on the page"));
        assert_eq!(served, !said.starts_with("not applicable: "), "{name}: {said}");
        assert!(served || said.len() > "not applicable: ".len() + 10, "{name}: no reason");
    }
}

#[test]
fn the_page_names_our_metrics_behind_each_stock_name() {
    let rows = rows();
    // The version of a group stands in the JSON only.
    for (group, key, source) in TABLE.iter().filter(|(group, key, _)| (*group, *key) != ("derp", "version")) {
        let name = name_of(group, key);
        let row = rows.iter().find(|(row, _)| *row == name || row.ends_with('_') && name.starts_with(row.as_str()));
        let (_, said) = row.unwrap_or_else(|| panic!("{name} is not on the page"));
        for ours in sources(*source) {
            assert!(said.contains(ours) || row.is_some_and(|(row, _)| row.ends_with('_')), "{name}: `{ours}` is not in `{said}`");
        }
    }
}

#[tokio::test]
async fn round_trips_are_counted_in_one_bucket_each_as_stock_does() {
    let name = "causeway_ingress_tcp_round_trip_seconds";
    let bounds = ["0.01", "0.02", "0.05", "0.1", "0.15", "0.25", "0.5", "+Inf"];
    let up_to = [3, 3, 4, 4, 4, 4, 4, 6];
    let mut text = String::from("causeway_ingress_tcp_round_trips_unread_total 2\n");
    for (bound, count) in bounds.iter().zip(up_to) {
        text.push_str(&format!("{name}_bucket{{le=\"{bound}\"}} {count}\n"));
    }
    let parts = super::super::DebugPages::idle(crate::telemetry::exporter::Exporter::new(crate::telemetry::exporter::registry()));
    let metrics = collect(&parts.parts, &Samples::parse(&text));
    let rtt = metrics.iter().find(|metric| metric.name() == "derp_tcp_rtt").unwrap();
    let Value::Labelled("le", values) = &rtt.value else { panic!("{rtt:?}") };
    let counted: Vec<_> = values.iter().filter(|(_, count)| *count > 0.0).copied().collect();
    assert_eq!(counted, [("10ms", 3.0), ("50ms", 1.0), ("inf", 2.0), ("error", 2.0)]);
    assert_eq!(values.len(), 9);
}

#[test]
fn names_and_types_are_as_a_stock_server_writes_them() {
    let metric = |group, key, value| Metric { group, key, value };
    let metrics = [
        metric("derp", "accepts", Value::One(3.0)),
        metric("derp", "gauge_watchers", Value::One(1.0)),
        metric("derp", "counter_packets_received_kind", Value::Labelled("kind", vec![("disco", 1.0), ("other", 2.0)])),
        metric("", "derp_packets_dropped", Value::Drops(vec![(("queue_head", "disco"), 4.0)])),
        metric(
            "derp",
            "counter_buffered_write_frames",
            Value::Histogram { buckets: vec![("0".into(), 0.0), ("+Inf".into(), 2.0)], sum: 7.0, count: 2.0 },
        ),
        metric("", "process_start_unix_time", Value::One(1_795_272_641.0)),
        metric("", "counter_process_cpu_seconds_total", Value::One(0.25)),
        metric("", "version", Value::Text("0.1.0".into())),
    ];
    assert_eq!(
        super::super::render::varz(&metrics),
        "# TYPE derp_accepts counter\nderp_accepts 3\n# TYPE derp_watchers gauge\nderp_watchers 1\n\
         # TYPE derp_packets_received_kind counter\nderp_packets_received_kind{kind=\"disco\"} 1\nderp_packets_received_kind{kind=\"other\"} 2\n\
         # TYPE derp_packets_dropped counter\nderp_packets_dropped{reason=\"queue_head\",kind=\"disco\"} 4\n\
         # TYPE derp_buffered_write_frames histogram\nderp_buffered_write_frames_bucket{le=\"0\"} 0\n\
         derp_buffered_write_frames_bucket{le=\"+Inf\"} 2\nderp_buffered_write_frames_sum 7\nderp_buffered_write_frames_count 2\n\
         process_start_unix_time 1795272641\n# TYPE process_cpu_seconds_total counter\nprocess_cpu_seconds_total 0.25\n\
         version{version=\"0.1.0\",binary=\"causewayd\"} 1\n"
    );
    let vars: serde_json::Value = serde_json::from_str(&super::super::render::vars(&metrics)).unwrap();
    assert_eq!(
        vars,
        serde_json::json!({
            "derp": {
                "accepts": 3,
                "gauge_watchers": 1,
                "counter_packets_received_kind": {"disco": 1, "other": 2},
                "counter_buffered_write_frames": {"0": 0, "+Inf": 2, "sum": 7, "count": 2},
            },
            "derp_packets_dropped": {"queue_head": {"disco": 4}},
            "process_start_unix_time": 1_795_272_641,
            "version": "0.1.0",
        })
    );
}
