//! The choice of the home region, with history and hysteresis (`derp.md` section 16.2).

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use super::{FULL_REPORT_INTERVAL, Report};
use crate::id::RegionId;

/// Reports older than this do not count.
pub const HISTORY_AGE_MAX: Duration = Duration::from_secs(305);
/// Most reports kept: a run every 20 s needs 16.
pub const REPORTS_MAX: usize = 64;

/// A move must gain at least this much...
const MOVE_GAIN_MIN: Duration = Duration::from_millis(10);
/// A DERP frame this recent shows that a region is accessible.
const HEARD_RECENTLY: Duration = Duration::from_secs(8);
/// A home heard this recently is kept if nothing at all answered: twice the keepalive interval.
const HEARD_LATELY: Duration = Duration::from_secs(120);

/// What the choice depends on beside the reports.
pub struct HomeInputs<'a> {
    /// Factors from the DERP map.
    pub scores: &'a BTreeMap<RegionId, f64>,
    /// When a DERP frame last came from a region.
    pub last_frame: &'a dyn Fn(RegionId) -> Option<Instant>,
    /// Wins whenever it is accessible.
    pub forced: Option<RegionId>,
}

impl std::fmt::Debug for HomeInputs<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HomeInputs").field("scores", &self.scores).field("forced", &self.forced).finish_non_exhaustive()
    }
}

/// The reports of the last minutes and the home they led to.
#[derive(Debug, Default)]
pub struct History {
    reports: VecDeque<Report>,
    last_full: Option<Instant>,
    home: Option<RegionId>,
}

impl History {
    /// No report yet, no home.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The present home.
    #[must_use]
    pub const fn home(&self) -> Option<RegionId> {
        self.home
    }

    /// The last report, for [`super::Plan::incremental`].
    #[must_use]
    pub fn last(&self) -> Option<&Report> {
        self.reports.back()
    }

    /// Whether the next netcheck has to probe all regions.
    #[must_use]
    pub fn wants_full(&self, now: Instant) -> bool {
        let Some((last, last_full)) = self.last().zip(self.last_full) else {
            return true;
        };
        now.saturating_duration_since(last_full) >= FULL_REPORT_INTERVAL || (!last.udp() && last.captive_portal == Some(true))
    }

    /// Forgets everything but the home: the network changed, so old latencies mean nothing.
    pub fn network_changed(&mut self) {
        self.reports.clear();
        self.last_full = None;
    }

    /// Takes a report and names the home, if there is any.
    pub fn choose_home(&mut self, report: Report, inputs: &HomeInputs<'_>, now: Instant) -> Option<RegionId> {
        if report.is_full {
            self.last_full = Some(report.started);
        }
        while self.reports.len() >= REPORTS_MAX {
            self.reports.pop_front();
        }
        self.reports.retain(|old| now.saturating_duration_since(old.started) <= HISTORY_AGE_MAX);
        self.reports.push_back(report);
        self.home = self.choose(inputs, now);
        self.home
    }

    fn choose(&self, inputs: &HomeInputs<'_>, now: Instant) -> Option<RegionId> {
        let report = self.last()?;
        let heard_within = |region, limit: Duration| {
            (inputs.last_frame)(region).is_some_and(|at| at >= report.started || now.saturating_duration_since(at) <= limit)
        };
        let accessible = |region| report.latency.contains_key(&region) || heard_within(region, HEARD_RECENTLY);
        if let Some(forced) = inputs.forced.filter(|region| accessible(*region)) {
            return Some(forced);
        }
        let Some((best, best_latency)) = self.best_recent(report, inputs.scores) else {
            return self.home.filter(|home| heard_within(*home, HEARD_LATELY));
        };
        match self.home {
            Some(home) if home != best && accessible(home) => {
                let home_latency = report.latency.get(&home).map(|latency| scaled(*latency, inputs.scores.get(&home)));
                Some(if is_worth_moving(home_latency, best_latency) { best } else { home })
            }
            _ => Some(best),
        }
    }

    /// Of the regions in `report`, the one with the lowest latency in all reports kept.
    fn best_recent(&self, report: &Report, scores: &BTreeMap<RegionId, f64>) -> Option<(RegionId, Duration)> {
        let lowest = |region: &RegionId| self.reports.iter().filter_map(|r| r.latency.get(region)).min().copied();
        report
            .latency
            .keys()
            .filter_map(|region| Some((*region, scaled(lowest(region)?, scores.get(region)))))
            .min_by_key(|(region, latency)| (*latency, *region))
    }
}

/// Whether `best` beats the old home by at least 10 ms and at least one third. A home that is only heard, not measured, is kept.
fn is_worth_moving(home: Option<Duration>, best: Duration) -> bool {
    home.is_some_and(|home| home.saturating_sub(best) >= MOVE_GAIN_MIN && best.saturating_mul(3) <= home.saturating_mul(2))
}

/// Times `score` if that is above 0.
fn scaled(latency: Duration, score: Option<&f64>) -> Duration {
    match score {
        Some(score) if *score > 0.0 => Duration::try_from_secs_f64(latency.as_secs_f64() * score).unwrap_or(Duration::MAX),
        _ => latency,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::Family;
    use super::*;

    const NEVER: &dyn Fn(RegionId) -> Option<Instant> = &|_| None;

    fn report(at: Instant, latencies_ms: &[(u64, u64)]) -> Report {
        let mut report = Report::new(at, true);
        for (region, ms) in latencies_ms {
            let addr = "192.0.2.1:1".parse().expect("address");
            report.add_stun(RegionId(*region), Family::V4, Duration::from_millis(*ms), addr);
        }
        report
    }

    fn choose(history: &mut History, at: Instant, latencies_ms: &[(u64, u64)]) -> Option<u64> {
        choose_with(history, at, latencies_ms, &[], NEVER, None)
    }

    fn choose_with(
        history: &mut History,
        at: Instant,
        latencies_ms: &[(u64, u64)],
        scores: &[(u64, f64)],
        last_frame: &dyn Fn(RegionId) -> Option<Instant>,
        forced: Option<u64>,
    ) -> Option<u64> {
        let scores = scores.iter().map(|(region, score)| (RegionId(*region), *score)).collect();
        let inputs = HomeInputs { scores: &scores, last_frame, forced: forced.map(RegionId) };
        history.choose_home(report(at, latencies_ms), &inputs, at).map(|home| home.0)
    }

    #[test]
    fn a_move_needs_ten_milliseconds_and_a_third() {
        // Latency of the old home and the better one; whether it moves.
        let cases = [
            (29, 20, false), // 9 ms
            (30, 20, true),  // 10 ms, and exactly one third
            (30, 21, false),
            (200, 134, false), // 66 ms, but less than a third
            (200, 133, true),
        ];
        for (old, best, moves) in cases {
            let start = Instant::now();
            let mut history = History::new();
            assert_eq!(choose(&mut history, start, &[(1, old)]), Some(1));
            let then = choose(&mut history, start + Duration::from_secs(20), &[(1, old), (2, best)]);
            assert_eq!(then, Some(if moves { 2 } else { 1 }), "{old} ms to {best} ms");
        }
    }

    #[test]
    fn the_best_of_the_last_minutes_counts_for_regions_in_this_report() {
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let mut history = History::new();
        assert_eq!(choose(&mut history, start, &[(1, 20), (2, 100)]), Some(1));
        // A moment of congestion does not move the home, since its best is remembered...
        assert_eq!(choose(&mut history, at(20), &[(1, 500), (2, 100)]), Some(1));
        // ...but not for ever.
        assert_eq!(choose(&mut history, at(306), &[(1, 500), (2, 100)]), Some(2));
        // A region that does not answer now is no candidate.
        assert_eq!(choose(&mut history, at(320), &[(1, 500)]), Some(1));
    }

    #[test]
    fn a_home_that_is_heard_stays_even_unmeasured() {
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let mut history = History::new();
        choose(&mut history, start, &[(1, 100)]);
        let heard = |when: Instant| move |region: RegionId| (region == RegionId(1)).then_some(when);
        assert_eq!(choose_with(&mut history, at(20), &[(2, 5)], &[], &heard(at(12)), None), Some(1));
        assert_eq!(choose_with(&mut history, at(40), &[(2, 5)], &[], &heard(at(31)), None), Some(2));
    }

    #[test]
    fn without_any_answer_a_home_heard_within_two_minutes_stays() {
        for (silence, want) in [(120, Some(1)), (121, None)] {
            let start = Instant::now();
            let mut history = History::new();
            choose(&mut history, start, &[(1, 100)]);
            let at = start + Duration::from_secs(silence);
            assert_eq!(choose_with(&mut history, at, &[], &[], &|_| Some(start), None), want, "{silence} s");
        }
    }

    #[test]
    fn scores_weigh_and_nonsense_scores_are_ignored() {
        let now = Instant::now();
        let latencies = [(1, 50), (2, 80)];
        let scored = |scores: &[(u64, f64)]| choose_with(&mut History::new(), now, &latencies, scores, NEVER, None);
        assert_eq!(scored(&[]), Some(1));
        assert_eq!(scored(&[(2, 0.5)]), Some(2));
        assert_eq!(scored(&[(1, 2.0)]), Some(2));
        assert_eq!(scored(&[(2, -0.5), (1, 0.0)]), Some(1));
        assert_eq!(scored(&[(1, f64::NAN), (2, f64::INFINITY)]), Some(1));
    }

    #[test]
    fn a_forced_region_wins_while_it_is_accessible() {
        let now = Instant::now();
        let mut history = History::new();
        assert_eq!(choose_with(&mut history, now, &[(1, 5), (2, 500)], &[], NEVER, Some(2)), Some(2));
        let later = now + Duration::from_secs(20);
        assert_eq!(choose_with(&mut history, later, &[(1, 5)], &[], NEVER, Some(2)), Some(1));
    }

    #[test]
    fn a_full_report_is_due_at_first_every_five_minutes_and_behind_a_portal() {
        let start = Instant::now();
        let mut history = History::new();
        assert!(history.wants_full(start));
        choose(&mut history, start, &[(1, 5)]);
        assert!(!history.wants_full(start + Duration::from_secs(299)));
        assert!(history.wants_full(start + Duration::from_secs(300)));
        let mut portal = report(start, &[]);
        portal.captive_portal = Some(true);
        history.choose_home(portal, &HomeInputs { scores: &BTreeMap::new(), last_frame: NEVER, forced: None }, start);
        assert!(history.wants_full(start));
        history.network_changed();
        assert!(history.wants_full(start) && history.last().is_none());
    }

    proptest! {
        /// Latencies that stay within 10 ms of each other never move the home, however they wobble.
        #[test]
        fn regions_within_ten_milliseconds_never_flap(wobble in prop::collection::vec((50_u64..59, 50_u64..59, 50_u64..59), 1..40)) {
            let start = Instant::now();
            let mut history = History::new();
            let mut first = None;
            for (step, (a, b, c)) in wobble.into_iter().enumerate() {
                let at = start + Duration::from_secs(20 * step as u64);
                let home = choose(&mut history, at, &[(1, a), (2, b), (3, c)]);
                prop_assert_eq!(home, *first.get_or_insert(home));
            }
        }

        /// Any scores and latencies: no panic, and the home is a region that answered.
        #[test]
        fn the_home_is_a_region_that_answered(
            latencies in prop::collection::vec((1_u64..6, 0_u64..10_000_000), 1..6),
            scores in prop::collection::vec((1_u64..6, any::<f64>()), 0..6),
        ) {
            let home = choose_with(&mut History::new(), Instant::now(), &latencies, &scores, NEVER, None);
            prop_assert!(latencies.iter().any(|(region, _)| Some(*region) == home));
        }

        /// The history stays bounded.
        #[test]
        fn the_history_is_bounded(gaps_ms in prop::collection::vec(0_u64..400, 0..300)) {
            let mut now = Instant::now();
            let mut history = History::new();
            for gap in gaps_ms {
                now += Duration::from_millis(gap);
                choose(&mut history, now, &[(1, 1)]);
                prop_assert!(history.reports.len() <= REPORTS_MAX);
            }
        }
    }
}
