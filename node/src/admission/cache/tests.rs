#![allow(clippy::unwrap_used, reason = "tests")]

use std::net::{IpAddr, Ipv4Addr};

use causeway_proto::key::NodePublic;
use tokio::sync::{mpsc, oneshot};

use super::*;

const LIFETIMES: Lifetimes =
    Lifetimes { allow: Duration::from_secs(300), deny: Duration::from_secs(30), stale: Duration::from_secs(3_600) };
const NO: Decision = Decision::Deny(Denial::UrlDenied);
const AWAY: Decision = Decision::Deny(Denial::UrlUnreachable);

/// Hands each question to the test, which answers or does not.
struct Asked(mpsc::Sender<(Applicant, oneshot::Sender<Result<Decision, Failure>>)>);

impl Source for Asked {
    fn ask(&self, applicant: Applicant) -> BoxFuture<'_, Result<Decision, Failure>> {
        Box::pin(async move {
            let (answer, answered) = oneshot::channel();
            self.0.send((applicant, answer)).await.unwrap();
            answered.await.unwrap()
        })
    }

    fn deadline(&self) -> Duration {
        Duration::from_secs(5)
    }

    fn unreachable(&self) -> Decision {
        AWAY
    }

    fn label(&self) -> &'static str {
        "verify_url"
    }
}

type Questions = mpsc::Receiver<(Applicant, oneshot::Sender<Result<Decision, Failure>>)>;

fn cached() -> (Cached<Asked>, Questions, AdmissionMetrics) {
    let (ask, questions) = mpsc::channel(1_024);
    let metrics = AdmissionMetrics::default();
    (Cached::new(Asked(ask), LIFETIMES, metrics.clone()), questions, metrics)
}

fn applicant(n: u16) -> Applicant {
    let mut key = [7; 32];
    key[..2].copy_from_slice(&n.to_be_bytes());
    Applicant { key: NodePublic::from_bytes(key), source: IpAddr::V4(Ipv4Addr::LOCALHOST) }
}

fn failure() -> Result<Decision, Failure> {
    Err(Failure { otherwise: AWAY, why: "test".into() })
}

/// Decides on `n`; the source is asked and gives `answer`.
async fn asked(cached: &Cached<Asked>, questions: &mut Questions, n: u16, answer: Result<Decision, Failure>) -> Decision {
    let give = async {
        let (asked_about, give) = questions.recv().await.unwrap();
        assert_eq!(asked_about, applicant(n));
        give.send(answer).unwrap();
    };
    futures::join!(cached.decide(applicant(n)), give).0
}

/// Decides on `n`; the source must not be asked.
async fn remembered(cached: &Cached<Asked>, questions: &mut Questions, n: u16) -> Decision {
    let decision = cached.decide(applicant(n)).await;
    assert!(questions.try_recv().is_err());
    decision
}

async fn pass(seconds: u64) {
    tokio::time::advance(Duration::from_secs(seconds)).await;
}

#[tokio::test(start_paused = true)]
async fn a_yes_and_a_no_are_remembered_for_their_times() {
    let (cached, mut questions, metrics) = cached();
    assert_eq!(asked(&cached, &mut questions, 1, Ok(Decision::Allow)).await, Decision::Allow);
    assert_eq!(asked(&cached, &mut questions, 2, Ok(NO)).await, NO);
    pass(29).await;
    assert_eq!(remembered(&cached, &mut questions, 1).await, Decision::Allow);
    assert_eq!(remembered(&cached, &mut questions, 2).await, NO);
    pass(1).await;
    assert_eq!(asked(&cached, &mut questions, 2, Ok(Decision::Allow)).await, Decision::Allow);
    pass(269).await;
    assert_eq!(remembered(&cached, &mut questions, 1).await, Decision::Allow);
    pass(1).await;
    assert_eq!(asked(&cached, &mut questions, 1, Ok(NO)).await, NO);
    let count = |came| metrics.questions_to("verify_url", came);
    assert_eq!([count(Came::Remembered), count(Came::Allowed), count(Came::Denied)], [3, 2, 2]);
}

#[tokio::test(start_paused = true)]
async fn an_old_yes_counts_while_the_source_is_away_and_a_failure_is_not_remembered() {
    let (cached, mut questions, metrics) = cached();
    asked(&cached, &mut questions, 1, Ok(Decision::Allow)).await;
    pass(300).await;
    assert_eq!(asked(&cached, &mut questions, 1, failure()).await, Decision::Allow);
    assert_eq!(asked(&cached, &mut questions, 2, failure()).await, AWAY, "a stranger");
    pass(3_299).await;
    assert_eq!(asked(&cached, &mut questions, 1, failure()).await, Decision::Allow);
    pass(1).await;
    assert_eq!(asked(&cached, &mut questions, 1, failure()).await, AWAY, "an hour after the yes");
    assert_eq!(asked(&cached, &mut questions, 1, Ok(Decision::Allow)).await, Decision::Allow);
    assert_eq!(metrics.questions_to("verify_url", Came::Stale), 2);
    assert_eq!(metrics.questions_to("verify_url", Came::Failed), 2);
    // A no ends an older yes.
    pass(300).await;
    asked(&cached, &mut questions, 1, Ok(NO)).await;
    pass(30).await;
    assert_eq!(asked(&cached, &mut questions, 1, failure()).await, AWAY);
}

#[tokio::test(start_paused = true)]
async fn who_does_not_answer_in_time_is_away() {
    let (cached, mut questions, _) = cached();
    let started = tokio::time::Instant::now();
    let never = async {
        let question = questions.recv().await.unwrap();
        tokio::time::sleep(Duration::from_secs(6)).await;
        drop(question);
    };
    let decided = async {
        let decision = cached.decide(applicant(1)).await;
        assert_eq!(started.elapsed(), Duration::from_secs(5));
        decision
    };
    assert_eq!(futures::join!(decided, never).0, AWAY);
}

#[tokio::test(start_paused = true)]
async fn one_question_at_a_time_per_applicant_even_if_whoever_asked_first_gives_up() {
    let (cached, mut questions, _) = cached();
    let mut first = Box::pin(cached.decide(applicant(1)));
    assert!(futures::poll!(&mut first).is_pending());
    let others: Vec<_> = (0..50).map(|_| cached.decide(applicant(1))).collect();
    let others = futures::future::join_all(others);
    let answer = async {
        let (_, answer) = questions.recv().await.unwrap();
        drop(first);
        answer.send(Ok(Decision::Allow)).unwrap();
    };
    let (decisions, ()) = futures::join!(others, answer);
    assert!(decisions.iter().all(|decision| *decision == Decision::Allow));
    assert!(questions.try_recv().is_err());
    assert!(cached.shared.memory.lock().questions.is_empty());
    // Nobody waits any more: the question ends, and its entry with it.
    let mut alone = Box::pin(cached.decide(applicant(2)));
    assert!(futures::poll!(&mut alone).is_pending());
    drop(alone);
    assert!(cached.shared.memory.lock().questions.is_empty());
}

#[tokio::test(start_paused = true)]
async fn questions_on_their_way_are_bounded() {
    let (cached, mut questions, _) = cached();
    let mut waiting: Vec<_> = (0..300).map(|n| Box::pin(cached.decide(applicant(n)))).collect();
    for decision in &mut waiting {
        assert!(futures::poll!(decision).is_pending());
        // Its budget is not the test's.
        tokio::task::yield_now().await;
    }
    let mut asked = Vec::new();
    while let Ok(question) = questions.try_recv() {
        asked.push(question);
    }
    assert_eq!(asked.len(), ASKING_MAX);
    for (_, answer) in asked {
        answer.send(Ok(Decision::Allow)).unwrap();
    }
    let answer_the_rest = async {
        for _ in ASKING_MAX..300 {
            questions.recv().await.unwrap().1.send(Ok(NO)).unwrap();
        }
    };
    let (decisions, ()) = futures::join!(futures::future::join_all(waiting), answer_the_rest);
    assert_eq!(decisions.iter().filter(|decision| **decision == NO).count(), 300 - ASKING_MAX);
}

#[test]
fn memory_is_bounded_and_keeps_what_is_looked_for() {
    let mut map = Generations::with_max(100);
    map.insert(0, 0);
    for n in 1..10_000 {
        assert_eq!(map.find(&0), Some(0), "{n}");
        map.insert(n, n);
        assert!(map.recent.len() + map.older.len() <= 100);
    }
    assert_eq!((map.find(&9_999), map.find(&9_000)), (Some(9_999), None));
    map.remove(&0);
    assert_eq!(map.find(&0), None);
}
