//! What is counted about routing, and the books of packets.

use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

use super::decide::Role;
use crate::forward::DropReason;
use crate::forward::accounting::{AcceptedFrom, Accounting, DeliveredTo};

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
        let reasons = DropReason::ALL.map(DropReason::label);
        let out = &mut encoder;
        family(out, "causeway_packets_accepted", "Packets that came in", None, "from", &from, &books.accepted)?;
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
        family(out, "causeway_packets_dropped", "Packets dropped", None, "reason", &reasons, &books.dropped)?;
        let queued = ConstGauge::new(books.queued);
        queued.encode(out.encode_descriptor(
            "causeway_packets_queued",
            "Packets waiting to be written",
            None,
            queued.metric_type(),
        )?)
    }
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
