//! Remembers what a source decided: answers for a while, an old yes while the source is away, one question at a time per applicant.
//!
//! What is known of those who were let in and of those who were not is kept apart, so that strangers cannot push members out.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::{BoxFuture, Shared, WeakShared};
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::metrics::{AdmissionMetrics, Came};
use super::{Applicant, Decision, Denial};
use crate::limits::bucket::{Rate, TokenBucket};

/// Decisions remembered of each kind.
const REMEMBERED_MAX: usize = 131_072;

/// Questions on their way to one source.
const ASKING_MAX: usize = 256;

/// A source failed to decide: an old yes still counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Holds if there is no old yes.
    pub otherwise: Decision,
    /// For the log.
    pub why: String,
}

/// Somebody who decides and must be asked over a connection.
pub trait Source: Send + Sync + 'static {
    /// Asks. Not called more often than `ASKING_MAX` at a time.
    fn ask(&self, applicant: Applicant) -> BoxFuture<'_, Result<Decision, Failure>>;

    /// How long that may take in all, waiting for a turn included.
    fn deadline(&self) -> Duration;

    /// What a question is answered with that was not answered in time.
    fn unreachable(&self) -> Decision;

    /// Its field in the configuration, and its metric label.
    fn label(&self) -> &'static str;
}

/// How long decisions are remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetimes {
    /// Until the source is asked again about a client that was let in.
    pub allow: Duration,
    /// Until it is asked again about one that was not.
    pub deny: Duration,
    /// How old a yes may be to count while the source does not answer.
    pub stale: Duration,
}

type Question = Shared<BoxFuture<'static, Decision>>;

/// A source with a memory.
pub struct Cached<S> {
    shared: Arc<Inner<S>>,
}

struct Inner<S> {
    source: S,
    lifetimes: Lifetimes,
    metrics: AdmissionMetrics,
    asking: Semaphore,
    memory: Mutex<Memory>,
    outage: Mutex<Outage>,
}

impl<S> std::fmt::Debug for Cached<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cached").field("lifetimes", &self.shared.lifetimes).finish_non_exhaustive()
    }
}

struct Memory {
    allowed: Generations<Applicant, Instant>,
    denied: Generations<Applicant, (Denial, Instant)>,
    /// An entry goes when its question ends or nobody waits for it any more.
    questions: HashMap<Applicant, WeakShared<BoxFuture<'static, Decision>>>,
}

impl<S: Source> Cached<S> {
    /// Nothing is known yet.
    pub fn new(source: S, lifetimes: Lifetimes, metrics: AdmissionMetrics) -> Self {
        let memory = Memory {
            allowed: Generations::with_max(REMEMBERED_MAX),
            denied: Generations::with_max(REMEMBERED_MAX),
            questions: HashMap::new(),
        };
        let (asking, memory) = (Semaphore::new(ASKING_MAX), Mutex::new(memory));
        let outage = Mutex::new(Outage { is_away: false, said: TokenBucket::new(OUTAGE_LINES, now()) });
        Self { shared: Arc::new(Inner { source, lifetimes, metrics, asking, memory, outage }) }
    }

    /// What is remembered, or else what the source says.
    pub async fn decide(&self, applicant: Applicant) -> Decision {
        let question = {
            let mut memory = self.shared.memory.lock();
            if let Some(decision) = memory.fresh(&applicant, self.shared.lifetimes, now()) {
                self.shared.metrics.question(self.shared.source.label(), Came::Remembered);
                return decision;
            }
            memory.questions.get(&applicant).and_then(WeakShared::upgrade).unwrap_or_else(|| {
                let question = Inner::question(Arc::clone(&self.shared), applicant);
                if let Some(weak) = question.downgrade() {
                    memory.questions.insert(applicant, weak);
                }
                question
            })
        };
        question.await
    }

    /// What the source says now. Nothing is remembered of it.
    ///
    /// # Errors
    /// It failed to decide.
    pub async fn ask(&self, applicant: Applicant) -> Result<Decision, Failure> {
        let answer = self.shared.answer(applicant).await;
        self.shared.note(&answer);
        answer
    }

    /// Its field in the configuration.
    pub fn label(&self) -> &'static str {
        self.shared.source.label()
    }
}

impl<S: Source> Inner<S> {
    async fn answer(&self, applicant: Applicant) -> Result<Decision, Failure> {
        let answered = async {
            // The semaphore is never closed.
            let _turn = self.asking.acquire().await;
            self.source.ask(applicant).await
        };
        timeout(self.source.deadline(), answered).await.unwrap_or_else(|_| {
            let why = format!("no answer within {} s", self.source.deadline().as_secs());
            Err(Failure { otherwise: self.source.unreachable(), why })
        })
    }

    fn question(inner: Arc<Self>, applicant: Applicant) -> Question {
        let forget = Forget { inner, applicant };
        let ask = async move {
            let inner = &forget.inner;
            let answer = inner.answer(applicant).await;
            inner.note(&answer);
            let decision = inner.memory.lock().take_in(applicant, &answer, inner.lifetimes, now());
            inner.metrics.question(inner.source.label(), came(&answer, decision));
            decision
        };
        ask.boxed().shared()
    }

    /// Says in the log when the source goes away and when it is back.
    fn note(&self, answer: &Result<Decision, Failure>) {
        let mut outage = self.outage.lock();
        let (source, is_away) = (self.source.label(), answer.is_err());
        if outage.is_away == is_away || !outage.said.take(1, now()) {
            return;
        }
        outage.is_away = is_away;
        match answer {
            Err(Failure { why, otherwise }) => {
                let strangers = if *otherwise == Decision::Allow { "let in" } else { "refused" };
                let stale = self.lifetimes.stale;
                tracing::warn!(source, %why, ?stale, strangers, "admission cannot be asked: whoever it let in lately may log in");
            }
            Ok(_) => tracing::info!(source, "admission answers again"),
        }
    }
}

/// Lines about an outage that comes and goes.
const OUTAGE_LINES: Rate = Rate { per_second: 1, burst: 4 };

struct Outage {
    is_away: bool,
    said: TokenBucket,
}

const fn came(answer: &Result<Decision, Failure>, decision: Decision) -> Came {
    match (answer, decision) {
        (Ok(_), Decision::Allow) => Came::Allowed,
        (Ok(_), Decision::Deny(_)) => Came::Denied,
        (Err(Failure { otherwise: Decision::Deny(_), .. }), Decision::Allow) => Came::Stale,
        (Err(_), _) => Came::Failed,
    }
}

/// Ends the entry of a question, however that ends.
struct Forget<S> {
    inner: Arc<Inner<S>>,
    applicant: Applicant,
}

impl<S> Drop for Forget<S> {
    fn drop(&mut self) {
        self.inner.memory.lock().questions.remove(&self.applicant);
    }
}

impl Memory {
    fn fresh(&mut self, applicant: &Applicant, lifetimes: Lifetimes, now: Instant) -> Option<Decision> {
        let is_younger = |at: Instant, than: Duration| now.saturating_duration_since(at) < than;
        if self.allowed.find(applicant).is_some_and(|at| is_younger(at, lifetimes.allow)) {
            return Some(Decision::Allow);
        }
        let (denial, at) = self.denied.find(applicant)?;
        is_younger(at, lifetimes.deny).then_some(Decision::Deny(denial))
    }

    fn take_in(
        &mut self,
        applicant: Applicant,
        answer: &Result<Decision, Failure>,
        lifetimes: Lifetimes,
        now: Instant,
    ) -> Decision {
        match answer {
            Ok(Decision::Allow) => {
                self.denied.remove(&applicant);
                self.allowed.insert(applicant, now);
                Decision::Allow
            }
            Ok(Decision::Deny(denial)) => {
                self.allowed.remove(&applicant);
                self.denied.insert(applicant, (*denial, now));
                Decision::Deny(*denial)
            }
            Err(Failure { otherwise, .. }) => {
                let age = self.allowed.find(&applicant).map(|at| now.saturating_duration_since(at));
                if age.is_some_and(|age| age < lifetimes.stale) { Decision::Allow } else { *otherwise }
            }
        }
    }
}

/// A bounded map that forgets what was not looked for lately: two generations, the older one dropped whole.
struct Generations<K, V> {
    recent: HashMap<K, V>,
    older: HashMap<K, V>,
    max: usize,
}

impl<K: Hash + Eq + Copy, V: Copy> Generations<K, V> {
    fn with_max(max: usize) -> Self {
        Self { recent: HashMap::new(), older: HashMap::new(), max }
    }

    fn find(&mut self, key: &K) -> Option<V> {
        if let Some(value) = self.recent.get(key) {
            return Some(*value);
        }
        let value = self.older.remove(key)?;
        self.insert(*key, value);
        Some(value)
    }

    fn insert(&mut self, key: K, value: V) {
        self.older.remove(&key);
        self.recent.insert(key, value);
        if self.recent.len() >= self.max.div_ceil(2) {
            self.older = std::mem::take(&mut self.recent);
        }
    }

    fn remove(&mut self, key: &K) {
        self.recent.remove(key);
        self.older.remove(key);
    }
}

/// Tokio's clock, so that paused time reaches it.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

#[cfg(test)]
mod tests;
