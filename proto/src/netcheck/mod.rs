//! How a client measures regions and picks its home (`derp.md` section 16). No sockets, no clock: the shell sends the probes and passes
//! the time.
//!
//! 1. [`Plan::full`] or [`Plan::incremental`] says which node to probe when; [`History::wants_full`] says which of the two.
//! 2. [`StunProbes`] walks the plan, takes answers, and says when enough is known.
//! 3. Without any UDP answer, [`fallback_nodes`] are measured over HTTPS.
//! 4. [`History::choose_home`] takes the [`Report`] and names the home.

mod home;
mod plan;
mod probes;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

pub use home::{HISTORY_AGE_MAX, History, HomeInputs, REPORTS_MAX};
pub use plan::{Families, Plan, Probe, fallback_nodes};
pub use probes::StunProbes;

use crate::id::RegionId;

/// How long a whole report may take.
pub const REPORT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long its STUN part may take.
pub const STUN_TIMEOUT: Duration = Duration::from_secs(3);
/// A full report is due at least this often.
pub const FULL_REPORT_INTERVAL: Duration = Duration::from_secs(300);
/// So many regions answering are enough.
pub const ENOUGH_REGIONS: usize = 3;

/// Address family of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// What a netcheck found out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// When the netcheck began.
    pub started: Instant,
    /// Whether all regions were probed.
    pub is_full: bool,
    /// Lowest latency by region, any family and method.
    pub latency: BTreeMap<RegionId, Duration>,
    /// Lowest latency by region over IPv4 UDP.
    pub latency_v4: BTreeMap<RegionId, Duration>,
    /// Lowest latency by region over IPv6 UDP.
    pub latency_v6: BTreeMap<RegionId, Duration>,
    /// Our IPv4 address as a relay saw it.
    pub global_v4: Option<SocketAddr>,
    /// Our IPv6 address as a relay saw it.
    pub global_v6: Option<SocketAddr>,
    /// Whether a captive portal was found; `None` if not looked for.
    pub captive_portal: Option<bool>,
}

impl Report {
    /// Nothing known yet.
    #[must_use]
    pub const fn new(started: Instant, is_full: bool) -> Self {
        Self {
            started,
            is_full,
            latency: BTreeMap::new(),
            latency_v4: BTreeMap::new(),
            latency_v6: BTreeMap::new(),
            global_v4: None,
            global_v6: None,
            captive_portal: None,
        }
    }

    /// Whether any UDP answer came.
    #[must_use]
    pub fn udp(&self) -> bool {
        !self.latency_v4.is_empty() || !self.latency_v6.is_empty()
    }

    /// Notes a STUN answer. Of several of a region the lowest latency stays.
    pub fn add_stun(&mut self, region: RegionId, family: Family, latency: Duration, global: SocketAddr) {
        let (by_family, known) = match family {
            Family::V4 => (&mut self.latency_v4, &mut self.global_v4),
            Family::V6 => (&mut self.latency_v6, &mut self.global_v6),
        };
        keep_lowest(by_family, region, latency);
        known.get_or_insert(global);
        keep_lowest(&mut self.latency, region, latency);
    }

    /// Notes a latency measured over HTTPS (or ICMP).
    pub fn add_fallback(&mut self, region: RegionId, latency: Duration) {
        keep_lowest(&mut self.latency, region, latency);
    }
}

fn keep_lowest(latencies: &mut BTreeMap<RegionId, Duration>, region: RegionId, latency: Duration) {
    latencies.entry(region).and_modify(|known| *known = latency.min(*known)).or_insert(latency);
}
