//! How a command ends when it does not succeed: one sentence for the operator and the exit code it stands for.

use std::error::Error;
use std::fmt;
use std::process::ExitCode;

/// Why a command did not do what was asked.
#[derive(Debug)]
pub enum Failure {
    /// It was tried and failed (exit code 1).
    Failed(anyhow::Error),
    /// What was typed or configured makes no sense (exit code 2).
    Usage(String),
    /// The node, key or file asked for does not exist (exit code 3).
    NotFound(String),
    /// No node answered (exit code 4).
    Unreachable(String),
}

impl Failure {
    /// The number the process exits with.
    #[must_use]
    pub const fn code(&self) -> u8 {
        match self {
            Self::Failed(_) => 1,
            Self::Usage(_) => 2,
            Self::NotFound(_) => 3,
            Self::Unreachable(_) => 4,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(error) => write!(f, "{error:#}"),
            Self::Usage(text) | Self::NotFound(text) | Self::Unreachable(text) => f.write_str(text),
        }
    }
}

impl From<&Failure> for ExitCode {
    fn from(failure: &Failure) -> Self {
        Self::from(failure.code())
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        // An error that already knows its exit code keeps it, whatever context was added on the way.
        match error.downcast::<Self>() {
            Ok(failure) => failure,
            Err(error) => Self::Failed(error),
        }
    }
}

impl Error for Failure {}

/// The innermost cause: outer layers say only "transport error".
#[must_use]
pub fn innermost<'a>(error: &'a (dyn Error + 'static)) -> &'a (dyn Error + 'static) {
    std::iter::successors(Some(error), |&error| error.source()).last().unwrap_or(error)
}

impl Failure {
    /// The connection to a node ended before the answer: the node ended, or refuses our certificate, which it does after the
    /// handshake of TLS 1.3 is over for us.
    #[must_use]
    pub fn broken_connection(error: &(dyn Error + 'static)) -> Self {
        // Its alert is lost where the node's end was reset before we read it, so say what it may be.
        let hint = "over --endpoint, a node that refuses the certificate ends it like this";
        Self::Unreachable(format!("the connection broke ({hint}): {}", innermost(error)))
    }
}

impl From<tonic::Status> for Failure {
    fn from(status: tonic::Status) -> Self {
        let message = status.message().to_owned();
        // Only a status made on this side has a source: the node never answered.
        if let Some(source) = status.source()
            && !innermost(source).is::<tonic::TimeoutExpired>()
        {
            return Self::broken_connection(source);
        }
        match status.code() {
            tonic::Code::NotFound => Self::NotFound(message),
            tonic::Code::InvalidArgument => Self::Usage(message),
            tonic::Code::Unavailable => Self::Unreachable(format!("no answer: {message}")),
            tonic::Code::DeadlineExceeded | tonic::Code::Cancelled => {
                Self::Unreachable("no answer in time: raise --timeout, or look whether the node is overloaded".to_owned())
            }
            code => Self::Failed(anyhow::anyhow!("the node refused: {message} ({code:?})")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_codes_become_exit_codes() {
        for (status, code) in [
            (tonic::Status::not_found("x"), 3),
            (tonic::Status::invalid_argument("x"), 2),
            (tonic::Status::unavailable("x"), 4),
            (tonic::Status::deadline_exceeded("x"), 4),
            (tonic::Status::permission_denied("x"), 1),
            (tonic::Status::internal("x"), 1),
        ] {
            assert_eq!(Failure::from(status.clone()).code(), code, "{status}");
        }
    }

    #[test]
    fn a_failure_keeps_its_exit_code_through_anyhow() {
        let wrapped: anyhow::Error = Failure::NotFound("no such node".to_owned()).into();
        assert_eq!(Failure::from(wrapped).code(), 3);
        assert_eq!(Failure::from(anyhow::anyhow!("boom")).code(), 1);
    }
}
