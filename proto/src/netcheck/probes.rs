//! The STUN part of a netcheck: walks a plan, takes answers, knows when to stop (`derp.md` section 16.1).

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::{ENOUGH_REGIONS, Family, Plan, Probe, Report, STUN_TIMEOUT};

/// So many IPv4 answers tell whether our address looks the same to all: more are pointless for regions that are known.
const ENOUGH_IPV4_ANSWERS: usize = 2;

/// A netcheck's STUN part as it runs.
#[derive(Debug)]
pub struct StunProbes {
    queue: VecDeque<Probe>,
    report: Report,
    /// When to stop waiting for more.
    deadline: Instant,
    enough: bool,
}

impl StunProbes {
    /// Starts now.
    #[must_use]
    pub fn new(plan: Plan, now: Instant) -> Self {
        let report = Report::new(now, plan.is_full);
        Self { queue: plan.probes.into(), report, deadline: now + STUN_TIMEOUT, enough: false }
    }

    /// The next probe that is due; send it and ask again.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<Probe> {
        if self.is_done(now) {
            return None;
        }
        while let Some(probe) = self.queue.pop_front_if(|probe| self.report.started + probe.delay <= now) {
            if !self.is_pointless(&probe) {
                return Some(probe);
            }
        }
        None
    }

    /// When to call [`Self::poll_transmit`] again, or to look whether it [is done](Self::is_done).
    #[must_use]
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let next = self.queue.iter().find(|probe| !self.is_pointless(probe)).map(|probe| self.report.started + probe.delay);
        match next {
            Some(at) if at < self.deadline => Some((at, "next probe")),
            _ => Some((self.deadline, "end of STUN")),
        }
    }

    /// Takes the answer to a probe that was sent `latency` ago.
    pub fn handle_answer(&mut self, probe: &Probe, latency: Duration, global: SocketAddr, now: Instant) {
        self.report.add_stun(probe.region, probe.family, latency, global);
        if !self.enough && self.report.latency.len() >= ENOUGH_REGIONS {
            self.enough = true;
            let slowest = self.report.latency.values().max().copied().unwrap_or_default();
            let wait = if self.report.is_full { slowest * 2 } else { slowest };
            self.deadline = self.deadline.min(now + wait);
        }
    }

    /// Whether nothing more is to come.
    #[must_use]
    pub fn is_done(&self, now: Instant) -> bool {
        now >= self.deadline
    }

    /// What is known so far; final once [`Self::is_done`].
    #[must_use]
    pub const fn report(&self) -> &Report {
        &self.report
    }

    /// The report as it stands.
    #[must_use]
    pub fn into_report(self) -> Report {
        self.report
    }

    /// Whether an answer would add nothing: neither a region, nor a family, nor a second view of our IPv4 address.
    fn is_pointless(&self, probe: &Probe) -> bool {
        let (of_family, enough) = match probe.family {
            Family::V4 => (&self.report.latency_v4, ENOUGH_IPV4_ANSWERS),
            Family::V6 => (&self.report.latency_v6, 1),
        };
        of_family.contains_key(&probe.region) || (self.report.latency.contains_key(&probe.region) && of_family.len() >= enough)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::RegionId;

    fn probe(region: u64, family: Family, delay_ms: u64) -> Probe {
        Probe { delay: Duration::from_millis(delay_ms), region: RegionId(region), node: format!("{region}a"), family }
    }

    fn addr() -> SocketAddr {
        "192.0.2.1:1".parse().expect("address")
    }

    fn due(probes: &mut StunProbes, now: Instant) -> Vec<u64> {
        std::iter::from_fn(|| probes.poll_transmit(now)).map(|probe| probe.region.0).collect()
    }

    #[test]
    fn probes_leave_when_due_and_stop_for_a_region_that_answered() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let plan = vec![probe(1, Family::V4, 0), probe(2, Family::V4, 0), probe(1, Family::V4, 100), probe(2, Family::V4, 100)];
        let mut probes = StunProbes::new(Plan { probes: plan, is_full: true }, start);
        assert_eq!(due(&mut probes, start), [1, 2]);
        assert_eq!(probes.poll_timeout(), Some((at(100), "next probe")));
        probes.handle_answer(&probe(1, Family::V4, 0), Duration::from_millis(30), addr(), at(30));
        assert_eq!(due(&mut probes, at(100)), [2]);
        assert_eq!(probes.poll_timeout(), Some((start + STUN_TIMEOUT, "end of STUN")));
        assert!(!probes.is_done(at(2999)) && probes.is_done(at(3000)));
        assert_eq!(probes.report().latency[&RegionId(1)], Duration::from_millis(30));
    }

    #[test]
    fn after_three_regions_it_waits_for_the_slowest_and_twice_that_on_a_full_report() {
        for (is_full, end_ms) in [(false, 130), (true, 200)] {
            let start = Instant::now();
            let mut probes = StunProbes::new(Plan { probes: vec![probe(4, Family::V4, 500)], is_full }, start);
            for (region, ms) in [(1, 20), (2, 70), (3, 60)] {
                let now = start + Duration::from_millis(60);
                probes.handle_answer(&probe(region, Family::V4, 0), Duration::from_millis(ms), addr(), now);
            }
            let end = start + Duration::from_millis(end_ms);
            assert_eq!(probes.poll_timeout(), Some((end, "end of STUN")));
            assert!(probes.is_done(end) && probes.poll_transmit(end).is_none());
        }
    }

    #[test]
    fn a_known_region_is_probed_again_only_for_a_new_family_or_a_second_view() {
        let start = Instant::now();
        let later = start + Duration::from_millis(10);
        let plan = vec![probe(1, Family::V6, 5), probe(2, Family::V4, 5), probe(3, Family::V4, 5)];
        let mut probes = StunProbes::new(Plan { probes: plan, is_full: false }, start);
        probes.handle_answer(&probe(1, Family::V4, 0), Duration::from_millis(1), addr(), start);
        probes.handle_answer(&probe(2, Family::V6, 0), Duration::from_millis(1), addr(), start);
        // Region 1 over IPv6: both region and IPv6 are known. Region 2 over IPv4: a second view. Region 3: unknown.
        assert_eq!(due(&mut probes, later), [2, 3]);
    }
}
