//! Measures the regions of a map: the sockets around `causeway_proto::netcheck`, which decides what to send and when to stop.
//!
//! STUN over UDP first; if not one answer came, HTTPS. ICMP, which stock clients try beside HTTPS, needs privileges and is left out.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use causeway_proto::derpmap::{DerpMap, Node, NodeAddress};
use causeway_proto::id::RegionId;
use causeway_proto::limits::STUN_DATAGRAM_LEN_MAX;
use causeway_proto::netcheck::{Families, Family, Plan, Probe, REPORT_TIMEOUT, Report, StunProbes, fallback_nodes};
use causeway_proto::stun::message::{TransactionId, binding_request, parse_binding_response};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::net::UdpSocket;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::dial::Route;
use crate::endpoint::Endpoint;
use crate::http;
use crate::tls::Trust;
use crate::transport::Transport;

/// Regions measured over HTTPS at a time.
const HTTPS_AT_ONCE: usize = 16;

/// Largest body of an answer to a latency check; stock servers send none.
const LATENCY_CHECK_LEN_MAX: usize = 4 * 1024;

/// Measures all regions of a map that may be a home. Takes at most 5 s; less once enough is known.
///
/// `trust` verifies nodes measured over HTTPS; `None` means the system's roots.
pub async fn measure_regions(map: &DerpMap, trust: Option<&Trust>) -> Report {
    let sockets = Sockets::open().await;
    let plan = Plan::full(map, sockets.families());
    measure_with(map, plan, &sockets, &Route { trust: trust.cloned(), proxy: None }).await
}

/// Measures what `plan` says, and over HTTPS if no UDP answer comes.
async fn measure_with(map: &DerpMap, plan: Plan, sockets: &Sockets, route: &Route) -> Report {
    let deadline = Instant::now() + REPORT_TIMEOUT;
    let mut report = StunRun::new(map, plan, sockets).run().await;
    if !report.udp() {
        tracing::debug!("no answer over UDP: measuring over HTTPS");
        measure_https(map, &mut report, deadline, route).await;
    }
    report
}

/// As [`measure_regions`], but only the regions that matter if `last` is known: the fastest and the home.
pub(crate) async fn measure_again(map: &DerpMap, last: Option<&Report>, home: Option<RegionId>, route: &Route) -> Report {
    let sockets = Sockets::open().await;
    let plan = match last {
        Some(last) => Plan::incremental(map, sockets.families(), last, home),
        None => Plan::full(map, sockets.families()),
    };
    measure_with(map, plan, &sockets, route).await
}

/// One UDP socket per family that the host has.
struct Sockets {
    v4: Option<UdpSocket>,
    v6: Option<UdpSocket>,
}

impl Sockets {
    async fn open() -> Self {
        Self {
            v4: UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await.ok(),
            v6: UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).await.ok(),
        }
    }

    const fn families(&self) -> Families {
        Families { v4: self.v4.is_some(), v6: self.v6.is_some() }
    }

    const fn of(&self, family: Family) -> Option<&UdpSocket> {
        match family {
            Family::V4 => self.v4.as_ref(),
            Family::V6 => self.v6.as_ref(),
        }
    }
}

/// What happens next in the STUN part.
enum Step {
    Sent(Probe, Option<(TransactionId, Instant)>),
    Datagram(usize),
    Timer,
}

/// The STUN part of one netcheck.
struct StunRun<'a> {
    nodes: HashMap<&'a str, &'a Node>,
    sockets: &'a Sockets,
    probes: StunProbes,
    /// Sent and not answered.
    sent: HashMap<TransactionId, (Probe, Instant)>,
    /// Regions without an answer, and how many of their probes may still bring one. With none left there is nothing to wait for.
    awaited: BTreeMap<RegionId, usize>,
}

impl<'a> StunRun<'a> {
    fn new(map: &'a DerpMap, plan: Plan, sockets: &'a Sockets) -> Self {
        let nodes = map.regions.values().flat_map(|region| &region.nodes).map(|node| (node.name.as_str(), node)).collect();
        let mut awaited = BTreeMap::new();
        for probe in &plan.probes {
            *awaited.entry(probe.region).or_insert(0) += 1;
        }
        let probes = StunProbes::new(plan, Instant::now().into_std());
        Self { nodes, sockets, probes, sent: HashMap::new(), awaited }
    }

    async fn run(mut self) -> Report {
        let (mut buf4, mut buf6) = ([0; STUN_DATAGRAM_LEN_MAX], [0; STUN_DATAGRAM_LEN_MAX]);
        let mut sending = FuturesUnordered::new();
        while !self.awaited.is_empty() && !self.probes.is_done(Instant::now().into_std()) {
            while let Some(probe) = self.probes.poll_transmit(Instant::now().into_std()) {
                let node = self.nodes.get(probe.node.as_str()).copied();
                sending.push(send(self.sockets, node, probe));
            }
            let wake = self.probes.poll_timeout().map_or_else(Instant::now, |(at, _)| at.into());
            // None of these loses anything when it is dropped: `recv` leaves the datagram, the set keeps its futures.
            let (step, buf) = tokio::select! {
                Some((probe, sent)) = sending.next() => (Step::Sent(probe, sent), &buf4),
                len = recv(self.sockets.v4.as_ref(), &mut buf4) => (Step::Datagram(len), &buf4),
                len = recv(self.sockets.v6.as_ref(), &mut buf6) => (Step::Datagram(len), &buf6),
                () = sleep_until(wake) => (Step::Timer, &buf4),
            };
            match step {
                Step::Sent(probe, sent) => self.note_sent(probe, sent),
                Step::Datagram(len) => self.take(&buf[..len]),
                Step::Timer => {}
            }
        }
        self.probes.into_report()
    }

    fn note_sent(&mut self, probe: Probe, sent: Option<(TransactionId, Instant)>) {
        match sent {
            Some((transaction, at)) => {
                self.sent.insert(transaction, (probe, at));
            }
            // No address or no route in this family.
            None => {
                if let Some(left) = self.awaited.get_mut(&probe.region) {
                    *left -= 1;
                    if *left == 0 {
                        self.awaited.remove(&probe.region);
                    }
                }
            }
        }
    }

    fn take(&mut self, datagram: &[u8]) {
        let Ok((transaction, global)) = parse_binding_response(datagram) else {
            return;
        };
        let Some((probe, sent)) = self.sent.remove(&transaction) else {
            return;
        };
        self.awaited.remove(&probe.region);
        self.probes.handle_answer(&probe, sent.elapsed(), global, Instant::now().into_std());
    }
}

/// Sends one probe; `None` if that is not possible.
async fn send(sockets: &Sockets, node: Option<&Node>, probe: Probe) -> (Probe, Option<(TransactionId, Instant)>) {
    let sent = async {
        let addr = stun_addr(node?, probe.family).await?;
        let transaction: TransactionId = rand::random();
        let at = Instant::now();
        sockets.of(probe.family)?.send_to(&binding_request(&transaction), addr).await.ok()?;
        Some((transaction, at))
    };
    let sent = sent.await;
    (probe, sent)
}

/// Where a node answers STUN in this family.
async fn stun_addr(node: &Node, family: Family) -> Option<SocketAddr> {
    let port = node.stun_port()?;
    let of_family = |ip: &IpAddr| ip.is_ipv4() == (family == Family::V4);
    if !node.stun_test_ip.is_empty() {
        let ip = node.stun_test_ip.parse().ok().filter(of_family)?;
        return Some(SocketAddr::new(ip, port));
    }
    let fixed = match family {
        Family::V4 => match node.ipv4() {
            NodeAddress::Fixed(ip) => Some(ip.into()),
            NodeAddress::Disabled => return None,
            NodeAddress::Dns => None,
        },
        Family::V6 => match node.ipv6() {
            NodeAddress::Fixed(ip) => Some(ip.into()),
            NodeAddress::Disabled => return None,
            NodeAddress::Dns => None,
        },
    };
    if let Some(ip) = fixed {
        return Some(SocketAddr::new(ip, port));
    }
    let mut found = tokio::net::lookup_host((node.host_name.as_str(), port)).await.ok()?;
    found.find(|addr| of_family(&addr.ip()))
}

/// Waits for a datagram; for ever without a socket. Errors (an unreachable port reported back) are no answers.
async fn recv(socket: Option<&UdpSocket>, buf: &mut [u8]) -> usize {
    match socket {
        Some(socket) => socket.recv(buf).await.unwrap_or(0),
        None => std::future::pending().await,
    }
}

async fn measure_https(map: &DerpMap, report: &mut Report, deadline: Instant, route: &Route) {
    let endpoints: Vec<_> = fallback_nodes(map).filter_map(|(region, node)| Some((region, Endpoint::of_node(node)?))).collect();
    let measured = futures::stream::iter(endpoints)
        .map(|(region, endpoint)| async move { Some((region, https_latency(&endpoint, route).await?)) })
        .buffer_unordered(HTTPS_AT_ONCE);
    let mut measured = std::pin::pin!(measured);
    while let Ok(Some(one)) = timeout_at(deadline, measured.next()).await {
        if let Some((region, latency)) = one {
            report.add_fallback(region, latency);
        }
    }
}

/// The time of one request over a connection that is already there.
async fn https_latency(endpoint: &Endpoint, route: &Route) -> Option<Duration> {
    let reached = route.reach(endpoint).await.ok()?;
    let (mut transport, _) = Transport::new(reached.socket, endpoint, route.trust.as_ref()).await.ok()?;
    let started = Instant::now();
    let answer = http::get(&mut transport, &endpoint.host_header(), "/derp/latency-check", LATENCY_CHECK_LEN_MAX).await;
    let (status, _) = answer.ok()?;
    (status <= 299).then(|| started.elapsed())
}
