//! Nonces that a directory refuses: a step of an order is then done again at once (RFC 8555 section 6.5).

use instant_acme::Error;

use super::error::is_of_type;

/// How often a step is done at most. The library makes up to three requests for each, which is too few where a directory refuses
/// many: one order has a dozen steps.
pub(super) const TRIES_MAX: u32 = 4;

/// Whether the directory refuses the nonce and nothing else: the step has not been done, and the refusal brought a fresh nonce.
pub(super) fn is_refused(error: &Error) -> bool {
    is_of_type(error, "badNonce")
}

/// Awaits a step, and again if its nonce is refused. (An `async` closure in its place cannot be proven to be `Send`.)
macro_rules! with_fresh_nonce {
    ($step:expr) => {{
        let mut tries = 1;
        loop {
            match $step.await {
                Err(error) if tries < nonce::TRIES_MAX && nonce::is_refused(&error) => {
                    tracing::debug!(%error, "the ACME directory refuses a nonce");
                    tries += 1;
                }
                done => break done,
            }
        }
    }};
}
pub(super) use with_fresh_nonce;

#[cfg(test)]
mod tests {
    use instant_acme::Problem;

    use super::super::nonce;
    use super::*;

    fn refusal(kind: &str) -> Error {
        let problem = format!("{{\"type\":\"urn:ietf:params:acme:error:{kind}\"}}");
        Error::Api(serde_json::from_str::<Problem>(&problem).expect("a problem"))
    }

    #[tokio::test]
    async fn a_step_is_done_again_for_a_refused_nonce_alone_and_not_for_ever() {
        for (kind, refusals, tries, works) in
            [("badNonce", 0, 1, true), ("badNonce", 3, 4, true), ("badNonce", 9, 4, false), ("malformed", 1, 1, false)]
        {
            let mut tried = 0;
            let mut step = || {
                tried += 1;
                std::future::ready(if tried > refusals { Ok(()) } else { Err(refusal(kind)) })
            };
            let done = with_fresh_nonce!(step());
            assert_eq!((done.is_ok(), tried), (works, tries), "{kind}, {refusals} times");
        }
    }
}
