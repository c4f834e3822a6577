//! The audit log: one line under the log target `audit` for each change that an operator asks for: who, what, and what came of it.

use crate::ingress::operator::{AUDIT_TARGET, Caller};

/// Writes the line of an action that is done or has failed, and passes its result on.
pub(super) fn record<T, E: std::fmt::Display>(caller: &Caller, action: &str, details: &str, done: Result<T, E>) -> Result<T, E> {
    let result = match &done {
        Ok(_) => "done".to_owned(),
        Err(error) => format!("failed: {error}"),
    };
    tracing::info!(target: AUDIT_TARGET, who = %caller.who, action, details, result, "an operator's action");
    done
}
