//! The one place that says which of our metrics is which of a stock derper's (`derp.md` section 11). `docs/operations/metrics.md` shows
//! the same table to people; a test compares them.

use std::time::UNIX_EPOCH;

use super::DebugParts;
use super::samples::Samples;
use crate::forward::accounting::PacketKind;
use crate::limits::bucket::Rate;

/// A stock metric with its value.
#[derive(Debug)]
pub(super) struct Metric {
    /// Its group in the JSON; empty: none.
    pub(super) group: &'static str,
    /// Its key there: `gauge_` and `counter_` say what it is.
    pub(super) key: &'static str,
    pub(super) value: Value,
}

#[derive(Debug)]
pub(super) enum Value {
    One(f64),
    /// A version.
    Text(String),
    /// The label, and a value for each of its words.
    Labelled(&'static str, Vec<(&'static str, f64)>),
    /// By reason and kind.
    Drops(Vec<((&'static str, &'static str), f64)>),
    /// Cumulative.
    Histogram {
        buckets: Vec<(String, f64)>,
        sum: f64,
        count: f64,
    },
}

/// Labels of ours that a sample must carry.
type Labels = &'static [(&'static str, &'static str)];

/// Where a value comes from.
#[derive(Debug, Clone, Copy)]
enum Source {
    /// The sum of one of our metrics.
    Sum(&'static str, Labels),
    /// Sums of several of our metrics.
    Sums(&'static [(&'static str, Labels)]),
    /// For each word of the label, one of our metrics.
    Labelled(&'static str, &'static [(&'static str, &'static str, Labels)]),
    /// One of ours with the labels `reason` and `kind`.
    Drops(&'static str),
    /// One of ours that is a histogram.
    Histogram(&'static str),
    /// A histogram of ours that stock writes as labels: a word for each bucket alone, and one for another metric of ours.
    Buckets { label: &'static str, of: &'static str, words: &'static [&'static str], beside: (&'static str, &'static str) },
    /// Looked up when asked.
    Here(fn(&DebugParts) -> f64),
    /// Looked up when asked, if it is there.
    Maybe(fn(&DebugParts) -> Option<f64>),
    /// The node's version.
    Version,
}

/// What bounds a client first.
fn client_rate(parts: &DebugParts) -> Option<Rate> {
    let rates = parts.registry.limits().rates;
    rates.client.or(rates.key)
}

use Source::{Buckets, Drops, Here, Histogram, Labelled, Maybe, Sum, Sums, Version};

/// Drop reasons of a stock derper. `dup_client` is always 0 here: one connection of a key is always active.
const STOCK_REASONS: [&str; 7] =
    ["dup_client", "gone_disconnected", "queue_head", "queue_tail", "unknown_dest", "unknown_dest_on_fwd", "write_error"];

/// Keys without a Prometheus type in a stock derper.
const UNTYPED: [&str; 7] = [
    "average_queue_duration_ms",
    "rate_limit_per_client_bytes_per_second",
    "rate_limit_per_client_burst_bytes",
    "derper_tls_request_version",
    "node_boot_time_seconds",
    "process_start_unix_time",
    "version",
];

/// Group, key, source.
type Row = (&'static str, &'static str, Source);

const CLIENT: Labels = &[("from", "client")];
const TO_CLIENT: Labels = &[("to", "client")];

const TABLE: &[Row] = &[
    ("derp", "accepts", Sum("causeway_derp_accepts_total", &[])),
    ("derp", "gauge_current_connections", Sum("causeway_clients_connections", &[])),
    ("derp", "gauge_current_home_connections", Sum("causeway_clients_home_connections", &[])),
    ("derp", "gauge_current_notideal_connections", Sum("causeway_clients_not_ideal_connections", &[])),
    ("derp", "gauge_clients_total", Here(clients_total)),
    ("derp", "gauge_clients_local", Here(clients_local)),
    ("derp", "gauge_clients_remote", Here(|parts| clients_total(parts) - clients_local(parts))),
    ("derp", "gauge_current_dup_client_keys", Here(|parts| parts.registry.duplicates().0 as f64)),
    ("derp", "gauge_current_dup_client_conns", Here(|parts| parts.registry.duplicates().1 as f64)),
    ("derp", "counter_total_dup_client_conns", Sum("causeway_clients_duplicate_connections_total", &[])),
    ("derp", "gauge_watchers", Here(|parts| parts.registry.watchers() as f64)),
    ("derp", "packets_received", Sum("causeway_packets_accepted_total", CLIENT)),
    ("derp", "bytes_received", Sum("causeway_packets_accepted_bytes_total", CLIENT)),
    (
        "derp",
        "counter_packets_received_kind",
        Labelled(
            "kind",
            &[
                ("disco", "causeway_packets_accepted_total", &[("from", "client"), ("kind", "disco")]),
                ("other", "causeway_packets_accepted_total", &[("from", "client"), ("kind", "other")]),
            ],
        ),
    ),
    ("derp", "packets_sent", Sum("causeway_packets_delivered_total", TO_CLIENT)),
    ("derp", "bytes_sent", Sum("causeway_packets_delivered_bytes_total", TO_CLIENT)),
    (
        "derp",
        "packets_forwarded_out",
        Sums(&[
            ("causeway_packets_delivered_total", &[("to", "link")]),
            ("causeway_packets_delivered_total", &[("to", "stock_mesh")]),
        ]),
    ),
    (
        "derp",
        "packets_forwarded_in",
        Sums(&[
            ("causeway_packets_accepted_total", &[("from", "link")]),
            ("causeway_packets_accepted_total", &[("from", "stock_mesh")]),
        ]),
    ),
    ("", "derp_packets_dropped", Drops("causeway_packets_dropped_total")),
    ("", "derp_bytes_dropped", Drops("causeway_packets_dropped_bytes_total")),
    ("derp", "multiforwarder_created", Sum("causeway_derp_mesh_multi_forwarders_created_total", &[])),
    ("derp", "multiforwarder_deleted", Sum("causeway_derp_mesh_multi_forwarders_deleted_total", &[])),
    ("derp", "packet_forwarder_delete_other_value", Sum("causeway_derp_mesh_strange_departures_total", &[])),
    ("derp", "home_moves_in", Sum("causeway_clients_home_moves_in_total", &[])),
    ("derp", "home_moves_out", Sum("causeway_clients_home_moves_out_total", &[])),
    ("derp", "got_ping", Sum("causeway_derp_pings_total", &[])),
    ("derp", "sent_pong", Sum("causeway_derp_pongs_total", &[])),
    ("derp", "peer_gone_disconnected_frames", Sum("causeway_derp_peer_gone_disconnected_frames_total", &[])),
    ("derp", "peer_gone_not_here_frames", Sum("causeway_derp_peer_gone_not_here_frames_total", &[])),
    ("derp", "unknown_frames", Sum("causeway_derp_unknown_frames_total", &[])),
    ("derp", "sclient_write_timeouts", Sum("causeway_derp_connections_ended_total", &[("reason", "write_stalled")])),
    ("derp", "average_queue_duration_ms", Sum("causeway_packets_queue_milliseconds", &[])),
    (
        "derp",
        "counter_tcp_rtt",
        Buckets {
            label: "le",
            of: "causeway_ingress_tcp_round_trip_seconds",
            words: &["10ms", "20ms", "50ms", "100ms", "150ms", "250ms", "500ms", "inf"],
            beside: ("error", "causeway_ingress_tcp_round_trips_unread_total"),
        },
    ),
    ("derp", "counter_mesh_update_batch_size", Histogram("causeway_derp_mesh_update_batch_changes")),
    ("derp", "counter_mesh_update_loop_count", Histogram("causeway_derp_mesh_update_batches")),
    ("derp", "counter_buffered_write_frames", Histogram("causeway_packets_write_frames")),
    ("derp", "gauge_memstats_sys0", Sum("causeway_process_resident_memory_bytes", &[])),
    ("derp", "gauge_current_file_descriptors", Sum("causeway_process_open_fds", &[])),
    ("derp", "rate_limit_per_client_bytes_per_second", Maybe(|parts| client_rate(parts).map(|rate| rate.per_second as f64))),
    ("derp", "rate_limit_per_client_burst_bytes", Maybe(|parts| client_rate(parts).map(|rate| rate.burst as f64))),
    ("derp", "rate_limit_per_client_waited", Sum("causeway_clients_rate_pauses_total", &[])),
    ("derp", "version", Version),
    ("", "derp_websocket_accepts", Sum("causeway_derp_websocket_accepts_total", &[])),
    (
        "",
        "derper_tls_request_version",
        Labelled(
            "version",
            &[
                ("1.2", "causeway_ingress_tls_connections_total", &[("version", "1.2")]),
                ("1.3", "causeway_ingress_tls_connections_total", &[("version", "1.3")]),
            ],
        ),
    ),
    (
        "",
        "gauge_derper_tls_active_version",
        Labelled(
            "version",
            &[
                ("1.2", "causeway_ingress_tls_active_connections", &[("version", "1.2")]),
                ("1.3", "causeway_ingress_tls_active_connections", &[("version", "1.3")]),
            ],
        ),
    ),
    ("tls_listener", "counter_accepted_connections", Sum("causeway_ingress_accepted_connections_total", &[("door", "derp")])),
    (
        "tls_listener",
        "counter_rejected_connections",
        Sums(&[
            ("causeway_ingress_refused_connections_total", &[("door", "derp"), ("reason", "rate")]),
            ("causeway_ingress_refused_connections_total", &[("door", "derp"), ("reason", "source_rate")]),
        ]),
    ),
    (
        "stun",
        "counter_requests",
        Labelled(
            "disposition",
            &[
                ("success", "causeway_stun_datagrams_total", &[("outcome", "answered")]),
                ("not_stun", "causeway_stun_datagrams_total", &[("outcome", "not_stun")]),
                ("read_error", "causeway_stun_datagrams_total", &[("outcome", "error")]),
                ("write_error", "causeway_stun_datagrams_total", &[("outcome", "unsent")]),
            ],
        ),
    ),
    (
        "stun",
        "counter_addrfamily",
        Labelled(
            "family",
            &[
                ("ipv4", "causeway_stun_requests_total", &[("family", "ipv4")]),
                ("ipv6", "causeway_stun_requests_total", &[("family", "ipv6")]),
            ],
        ),
    ),
    ("", "counter_bootstrap_dns_requests", Sum("causeway_bootstrap_dns_requests_total", &[])),
    ("", "counter_bootstrap_dns_published_hits", Sum("causeway_bootstrap_dns_published_hits_total", &[])),
    ("", "counter_bootstrap_dns_published_misses", Sum("causeway_bootstrap_dns_published_misses_total", &[])),
    ("", "counter_bootstrap_dns_unpublished_hits", Sum("causeway_bootstrap_dns_unpublished_hits_total", &[])),
    ("", "counter_bootstrap_dns_unpublished_misses", Sum("causeway_bootstrap_dns_unpublished_misses_total", &[])),
    ("", "counter_bootstrap_dns_unpublished_percent_misses", Sum("causeway_bootstrap_dns_unpublished_percent_misses_total", &[])),
    ("", "counter_bootstrap_dns_queried_domains", Sum("causeway_bootstrap_dns_queried_domains", &[])),
    ("", "process_start_unix_time", Here(start_unix_time)),
    ("", "counter_uptime_sec", Here(uptime)),
    ("", "node_boot_time_seconds", Maybe(|_| crate::telemetry::process::boot_time_seconds().map(|time| time as f64))),
    ("", "version", Version),
    ("", "counter_process_cpu_seconds_total", Sum("causeway_process_cpu_seconds_total", &[])),
    ("", "gauge_process_max_fds", Sum("causeway_process_max_fds", &[])),
    ("", "gauge_process_open_fds", Sum("causeway_process_open_fds", &[])),
    ("", "gauge_process_resident_memory_bytes", Sum("causeway_process_resident_memory_bytes", &[])),
    ("", "gauge_process_start_time_seconds", Sum("causeway_process_start_time_seconds", &[])),
    ("", "gauge_process_virtual_memory_bytes", Sum("causeway_process_virtual_memory_bytes", &[])),
];

fn clients_local(parts: &DebugParts) -> f64 {
    parts.registry.len() as f64
}

/// A key that has just come may be in the registry and not in the view yet.
fn clients_total(parts: &DebugParts) -> f64 {
    (parts.view.count_in_region(parts.region) as f64).max(clients_local(parts))
}

fn start_unix_time(parts: &DebugParts) -> f64 {
    parts.started.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() as f64
}

fn uptime(parts: &DebugParts) -> f64 {
    (parts.clock)().duration_since(parts.started).unwrap_or_default().as_secs() as f64
}

/// Every stock metric that is served, with its present value.
pub(super) fn collect(parts: &DebugParts, samples: &Samples) -> Vec<Metric> {
    TABLE.iter().filter_map(|(group, key, source)| Some(Metric { group, key, value: value(*source, parts, samples)? })).collect()
}

fn value(source: Source, parts: &DebugParts, samples: &Samples) -> Option<Value> {
    Some(match source {
        Sum(name, labels) => Value::One(samples.sum(name, labels)),
        Sums(terms) => Value::One(terms.iter().map(|(name, labels)| samples.sum(name, labels)).sum()),
        Labelled(label, words) => {
            let values = words.iter().map(|(word, name, labels)| (*word, samples.sum(name, labels)));
            Value::Labelled(label, values.collect())
        }
        Drops(name) => {
            let kinds = PacketKind::ALL.map(PacketKind::label);
            let pairs = STOCK_REASONS.into_iter().flat_map(|reason| kinds.map(|kind| (reason, kind)));
            Value::Drops(pairs.map(|at| (at, samples.sum(name, &[("reason", at.0), ("kind", at.1)]))).collect())
        }
        Histogram(name) => Value::Histogram {
            buckets: samples.buckets(name),
            sum: samples.sum(&format!("{name}_sum"), &[]),
            count: samples.sum(&format!("{name}_count"), &[]),
        },
        Buckets { label, of, words, beside: (word, other) } => {
            let (mut below, mut values) = (0.0, Vec::new());
            for (word, (_, up_to)) in words.iter().zip(samples.buckets(of)) {
                values.push((*word, up_to - below));
                below = up_to;
            }
            values.push((word, samples.sum(other, &[])));
            Value::Labelled(label, values)
        }
        Here(look) => Value::One(look(parts)),
        Maybe(look) => Value::One(look(parts)?),
        Version => Value::Text(env!("CARGO_PKG_VERSION").to_owned()),
    })
}

impl Metric {
    /// The name in Prometheus text.
    pub(super) fn name(&self) -> String {
        name_of(self.group, self.key)
    }

    /// Its type in Prometheus text; `None`: untyped.
    pub(super) fn kind(&self) -> Option<&'static str> {
        match &self.value {
            _ if UNTYPED.contains(&self.key) => None,
            Value::Histogram { .. } => Some("histogram"),
            _ if self.key.starts_with("gauge_") => Some("gauge"),
            _ => Some("counter"),
        }
    }

    /// Whether the JSON holds it: the standard metrics of a process are in the text only.
    pub(super) fn in_vars(&self) -> bool {
        !self.key.contains("_process_")
    }
}

fn name_of(group: &str, key: &str) -> String {
    let plain = key.strip_prefix("gauge_").or_else(|| key.strip_prefix("counter_")).unwrap_or(key);
    if group.is_empty() { plain.to_owned() } else { format!("{group}_{plain}") }
}

#[cfg(test)]
mod tests;
