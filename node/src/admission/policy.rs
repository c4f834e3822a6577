//! The configured sources, asked in order: all must admit.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use causeway_proto::key::NodePublic;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::cache::{Cached, Failure};
use super::list::KeyList;
use super::metrics::AdmissionMetrics;
use super::tailscaled::Tailscaled;
use super::verify_url::VerifyUrl;
use super::{Admission, Applicant, Decision, Denial};
use crate::config::{self, AdmissionSource};
use crate::lifecycle::tasks::Tasks;
use crate::limits::bucket::{Rate, TokenBucket};

/// Lines in the log about clients that were not admitted.
const REFUSAL_LINES: Rate = Rate { per_second: 1, burst: 10 };

/// Who may log in, as configured.
#[derive(Debug)]
pub struct Policy {
    rules: ArcSwap<Rules>,
    /// Raised whenever a decision may differ from the last one.
    generation: watch::Sender<u64>,
    refusals: Mutex<Refusals>,
    metrics: AdmissionMetrics,
    runtime: Handle,
    tasks: Tasks,
}

#[derive(Debug)]
struct Rules {
    sources: Vec<Rule>,
    recheck: Duration,
}

#[derive(Debug)]
enum Rule {
    AllowList(Arc<KeyList>),
    DenyList(Arc<KeyList>),
    VerifyUrl(Cached<VerifyUrl>),
    Tailscaled(Cached<Tailscaled>),
}

#[derive(Debug)]
struct Refusals {
    lines: TokenBucket,
    unsaid: u64,
}

impl Policy {
    /// Asks the sources of `config`; what that needs runs on `runtime`.
    #[must_use]
    pub fn new(config: &config::Admission, runtime: Handle, tasks: Tasks) -> Arc<Self> {
        let metrics = AdmissionMetrics::default();
        let rules = ArcSwap::from_pointee(Rules::new(config, &metrics, &runtime, &tasks));
        let refusals = Mutex::new(Refusals { lines: TokenBucket::new(REFUSAL_LINES, now()), unsaid: 0 });
        Arc::new(Self { rules, generation: watch::Sender::new(0), refusals, metrics, runtime, tasks })
    }

    /// Goes on with another configuration; nothing is remembered of what the sources before decided.
    pub fn set(&self, config: &config::Admission) {
        self.rules.store(Arc::new(Rules::new(config, &self.metrics, &self.runtime, &self.tasks)));
        self.changed();
    }

    /// Whether anybody is let in.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.rules.load().sources.is_empty()
    }

    /// This area's metrics.
    #[must_use]
    pub const fn metrics(&self) -> &AdmissionMetrics {
        &self.metrics
    }

    /// Asks every source in order until one says no. One that cannot decide is a no too, but only once nobody else has one.
    pub(super) async fn judge(&self, applicant: Applicant) -> Decision {
        let rules = self.rules.load_full();
        let mut decision = Decision::Allow;
        for rule in &rules.sources {
            match (rule.decide(applicant).await, decision) {
                (Decision::Allow, _) => {}
                (Decision::Deny(denial), Decision::Deny(_)) if denial.is_outage() => {}
                (denied @ Decision::Deny(denial), _) => {
                    decision = denied;
                    if !denial.is_outage() {
                        break;
                    }
                }
            }
        }
        decision
    }

    /// How often connected clients are decided on again.
    pub(super) fn recheck(&self) -> Duration {
        self.rules.load().recheck
    }

    /// The list files in use.
    pub(super) fn lists(&self) -> Vec<Arc<KeyList>> {
        let lists = self.rules.load();
        let list = |rule: &Rule| match rule {
            Rule::AllowList(list) | Rule::DenyList(list) => Some(Arc::clone(list)),
            Rule::VerifyUrl(_) | Rule::Tailscaled(_) => None,
        };
        lists.sources.iter().filter_map(list).collect()
    }

    /// A decision may differ from now on.
    pub(super) fn changed(&self) {
        self.generation.send_modify(|generation| *generation += 1);
    }

    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    /// Says who is not let in and why, now and then.
    pub(super) fn say(&self, applicant: &Applicant, denial: Denial, what: &'static str) {
        let mut refusals = self.refusals.lock();
        if !refusals.lines.take(1, now()) {
            refusals.unsaid += 1;
            return;
        }
        let unsaid = std::mem::take(&mut refusals.unsaid);
        tracing::info!(client = %applicant.key.to_text(), reason = denial.label(), unsaid, "{what}");
    }
}

impl Rules {
    fn new(config: &config::Admission, metrics: &AdmissionMetrics, runtime: &Handle, tasks: &Tasks) -> Self {
        let lifetimes = config.lifetimes;
        let rule = |source: &AdmissionSource| match source {
            AdmissionSource::AllowFile(list) => Rule::AllowList(Arc::clone(list)),
            AdmissionSource::DenyFile(list) => Rule::DenyList(Arc::clone(list)),
            AdmissionSource::VerifyUrl { url, tls } => {
                let source = VerifyUrl::new(url.clone(), config.fail_open, Arc::clone(tls), runtime.clone(), tasks.clone());
                Rule::VerifyUrl(Cached::new(source, lifetimes, metrics.clone()))
            }
            AdmissionSource::Tailscaled(socket) => {
                let source = Tailscaled::new(socket.clone(), runtime.clone(), tasks.clone());
                Rule::Tailscaled(Cached::new(source, lifetimes, metrics.clone()))
            }
        };
        Self { sources: config.sources.iter().map(rule).collect(), recheck: config.recheck }
    }
}

impl Rule {
    async fn decide(&self, applicant: Applicant) -> Decision {
        match self {
            Self::AllowList(list) if list.contains(&applicant.key) => Decision::Allow,
            Self::AllowList(_) => Decision::Deny(Denial::NotListed),
            Self::DenyList(list) if list.contains(&applicant.key) => Decision::Deny(Denial::Listed),
            Self::DenyList(_) => Decision::Allow,
            Self::VerifyUrl(source) => source.decide(applicant).await,
            Self::Tailscaled(source) => source.decide(Tailscaled::about_key(applicant)).await,
        }
    }

    /// Why it cannot decide at the moment.
    async fn fault(&self, applicant: Applicant) -> Option<String> {
        let (label, answer) = match self {
            Self::AllowList(list) | Self::DenyList(list) => {
                let list = Arc::clone(list);
                // It may be long. A task that is cut short at the end of the process has found nothing.
                return tokio::task::spawn_blocking(move || list.fault()).await.ok()?.map(|fault| fault.to_string());
            }
            Self::VerifyUrl(source) => (source.label(), source.ask(applicant).await),
            Self::Tailscaled(source) => (source.label(), source.ask(Tailscaled::about_key(applicant)).await),
        };
        let why = match answer {
            Err(Failure { why, .. }) => why,
            Ok(Decision::Deny(Denial::UrlStatus)) => "an answer of another status than 200".to_owned(),
            Ok(Decision::Deny(Denial::UrlAnswer)) => "an answer that says neither yes nor no".to_owned(),
            Ok(_) => return None,
        };
        Some(format!("admission by {label}: {why}"))
    }
}

impl Admission for Policy {
    fn faults(&self, key: NodePublic) -> BoxFuture<'_, Vec<String>> {
        Box::pin(async move {
            let rules = self.rules.load_full();
            let applicant = Applicant { key, source: IpAddr::V4(Ipv4Addr::LOCALHOST) };
            let faults = rules.sources.iter().map(|rule| rule.fault(applicant));
            futures::future::join_all(faults).await.into_iter().flatten().collect()
        })
    }

    fn decide(&self, applicant: Applicant) -> BoxFuture<'_, Decision> {
        Box::pin(async move {
            let decision = self.judge(applicant).await;
            if let Decision::Deny(denial) = decision {
                self.metrics.refused(denial);
                self.say(&applicant, denial, "login not admitted");
            }
            decision
        })
    }

    fn generation(&self) -> u64 {
        *self.generation.borrow()
    }
}

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

#[cfg(test)]
mod tests;
