//! What is counted about routing, and the books of packets.

use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

use super::decide::Role;
use crate::forward::DropReason;
use crate::forward::accounting::{AcceptedFrom, Accounting, Books, DeliveredTo, PacketKind, WRITE_BOUNDS};

/// Counters of the router's less ordinary steps.
#[derive(Debug, Default)]
pub struct RouterMetrics {
    forwarded: Counter,
    transit: Counter,
    via_transit: Counter,
    redirected: Counter,
    stale_sent: Counter,
    stale_lost: Counter,
}

impl RouterMetrics {
    /// Declares everything under `causeway_router_`.
    pub fn register(&self, registry: &mut Registry) {
        let mut counter = |name: &str, help: &str, counter: &Counter| registry.register(name, help, counter.clone());
        counter("causeway_router_forwarded_packets", "Packets queued on a link", &self.forwarded);
        counter("causeway_router_transit_packets", "Packets passed on for others", &self.transit);
        counter(
            "causeway_router_detoured_packets",
            "Packets sent to a transit because the direct link is down",
            &self.via_transit,
        );
        counter("causeway_router_redirected_packets", "Packets sent on to a better claim", &self.redirected);
        counter("causeway_router_stale_notices_sent", "Stale claims that origins were told of", &self.stale_sent);
        counter("causeway_router_stale_notices_lost", "Stale claims whose origin could not be told", &self.stale_lost);
    }

    pub(super) fn forwarded(&self, role: Role, detour: bool, redirected: bool) {
        self.forwarded.inc();
        if role == Role::Transit {
            self.transit.inc();
        }
        if detour {
            self.via_transit.inc();
        }
        if redirected && role == Role::Target {
            self.redirected.inc();
        }
    }

    pub(super) fn stale_noticed(&self, told: bool) {
        if told {
            self.stale_sent.inc()
        } else {
            self.stale_lost.inc()
        };
    }
}

/// Exports the books as `causeway_packets_*`.
#[derive(Debug)]
pub struct PacketBooks(pub Arc<Accounting>);

impl Collector for PacketBooks {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let books = self.0.books();
        let from = AcceptedFrom::ALL.map(AcceptedFrom::label);
        let to = DeliveredTo::ALL.map(DeliveredTo::label);
        let out = &mut encoder;
        accepted(out, &books)?;
        family(
            out,
            "causeway_packets_accepted",
            "Payload that came in",
            Some(&Unit::Bytes),
            "from",
            &from,
            &books.accepted_bytes,
        )?;
        family(out, "causeway_packets_delivered", "Packets written", None, "to", &to, &books.delivered)?;
        family(out, "causeway_packets_delivered", "Payload written", Some(&Unit::Bytes), "to", &to, &books.delivered_bytes)?;
        dropped(out, "Packets dropped", None, |reason, kind| books.dropped_of(reason, kind).0)?;
        dropped(out, "Payload of packets dropped", Some(&Unit::Bytes), |reason, kind| books.dropped_of(reason, kind).1)?;
        writes(out, &books)?;
        let waited = ConstGauge::new(books.queue_ms);
        let help = "Time that packets of the data lanes wait to be written, a moving average";
        waited.encode(out.encode_descriptor("causeway_packets_queue_milliseconds", help, None, waited.metric_type())?)?;
        let queued = ConstGauge::new(books.queued);
        queued.encode(out.encode_descriptor(
            "causeway_packets_queued",
            "Packets waiting to be written",
            None,
            queued.metric_type(),
        )?)
    }
}

fn accepted(out: &mut DescriptorEncoder<'_>, books: &Books) -> Result<(), std::fmt::Error> {
    let metric_type = ConstCounter::new(0u64).metric_type();
    let mut family = out.encode_descriptor("causeway_packets_accepted", "Packets that came in", None, metric_type)?;
    for (index, from) in AcceptedFrom::ALL.into_iter().enumerate() {
        let disco = books.accepted_disco[index];
        for (kind, packets) in [(PacketKind::Disco, disco), (PacketKind::Other, books.accepted[index].saturating_sub(disco))] {
            ConstCounter::new(packets).encode(family.encode_family(&[("from", from.label()), ("kind", kind.label())])?)?;
        }
    }
    Ok(())
}

fn dropped(
    out: &mut DescriptorEncoder<'_>,
    help: &str,
    unit: Option<&Unit>,
    count: impl Fn(DropReason, PacketKind) -> u64,
) -> Result<(), std::fmt::Error> {
    let metric_type = ConstCounter::new(0u64).metric_type();
    let mut family = out.encode_descriptor("causeway_packets_dropped", help, unit, metric_type)?;
    for reason in DropReason::ALL {
        for kind in PacketKind::ALL {
            let labels = [("reason", reason.label()), ("kind", kind.label())];
            ConstCounter::new(count(reason, kind)).encode(family.encode_family(&labels)?)?;
        }
    }
    Ok(())
}

/// Frames per write to a client or node.
fn writes(out: &mut DescriptorEncoder<'_>, books: &Books) -> Result<(), std::fmt::Error> {
    let bounds = WRITE_BOUNDS.iter().map(|bound| *bound as f64).chain([f64::INFINITY]);
    let buckets: Vec<(f64, u64)> = bounds.zip(books.writes).collect();
    let help = "Frames per write to a client or node";
    let mut histogram = out.encode_descriptor("causeway_packets_write_frames", help, None, MetricType::Histogram)?;
    let count = books.writes.iter().sum();
    histogram.encode_histogram::<NoLabelSet>(books.written_frames as f64, count, &buckets, None)
}

fn family(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    unit: Option<&Unit>,
    label: &'static str,
    values: &[&'static str],
    counts: &[u64],
) -> Result<(), std::fmt::Error> {
    let metric_type = ConstCounter::new(0u64).metric_type();
    let mut family = encoder.encode_descriptor(name, help, unit, metric_type)?;
    for (value, count) in values.iter().zip(counts) {
        let labels = [(label, *value)];
        ConstCounter::new(*count).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}
