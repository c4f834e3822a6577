//! What is counted about admission.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use super::Denial;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Asked {
    source: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

const fn reload(good: bool) -> &'static str {
    if good { "ok" } else { "refused" }
}

/// How a decision of a source came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Came {
    /// It was remembered.
    Remembered,
    /// The source let the client in.
    Allowed,
    /// The source did not.
    Denied,
    /// The source failed to decide, and an old yes counted.
    Stale,
    /// The source failed to decide.
    Failed,
}

impl Came {
    const fn label(self) -> &'static str {
        match self {
            Self::Remembered => "remembered",
            Self::Allowed => "allowed",
            Self::Denied => "denied",
            Self::Stale => "stale",
            Self::Failed => "failed",
        }
    }
}

/// Counters of admission. Cheap to clone.
#[derive(Clone, Debug)]
pub struct AdmissionMetrics {
    refused: Family<Reason, Counter>,
    questions: Family<Asked, Counter>,
    reloads: Family<Outcome, Counter>,
    pub(super) rechecked: Counter,
    pub(super) evicted: Counter,
}

impl Default for AdmissionMetrics {
    fn default() -> Self {
        let refused = Family::<Reason, Counter>::default();
        for denial in Denial::ALL {
            drop(refused.get_or_create(&Reason { reason: denial.label() }));
        }
        Self {
            refused,
            questions: Family::default(),
            reloads: Family::default(),
            rechecked: Counter::default(),
            evicted: Counter::default(),
        }
    }
}

impl AdmissionMetrics {
    /// Declares everything under `causeway_admission_`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("causeway_admission_refused", "Logins that were not admitted", self.refused.clone());
        registry.register(
            "causeway_admission_questions",
            "Decisions of sources that are asked over a connection, and how they came about",
            self.questions.clone(),
        );
        registry.register("causeway_admission_list_reloads", "Changed list files read again", self.reloads.clone());
        registry.register("causeway_admission_rechecks", "Connected clients decided on again", self.rechecked.clone());
        registry.register(
            "causeway_admission_evicted",
            "Connected clients closed because they are not admitted any more",
            self.evicted.clone(),
        );
    }

    pub(super) fn refused(&self, denial: Denial) {
        self.refused.get_or_create(&Reason { reason: denial.label() }).inc();
    }

    pub(super) fn question(&self, source: &'static str, came: Came) {
        self.questions.get_or_create(&Asked { source, outcome: came.label() }).inc();
    }

    pub(super) fn reloaded(&self, good: bool) {
        self.reloads.get_or_create(&Outcome { outcome: reload(good) }).inc();
    }

    /// How many logins were refused for `denial`.
    #[must_use]
    pub fn refused_for(&self, denial: Denial) -> u64 {
        self.refused.get_or_create(&Reason { reason: denial.label() }).get()
    }

    /// How many changed lists could be used, or could not.
    #[must_use]
    pub fn reloads_that_were(&self, good: bool) -> u64 {
        self.reloads.get_or_create(&Outcome { outcome: reload(good) }).get()
    }

    /// How many connected clients were decided on again.
    #[must_use]
    pub fn rechecks(&self) -> u64 {
        self.rechecked.get()
    }

    /// How many decisions of a source came about so.
    #[must_use]
    pub fn questions_to(&self, source: &'static str, came: Came) -> u64 {
        self.questions.get_or_create(&Asked { source, outcome: came.label() }).get()
    }
}
