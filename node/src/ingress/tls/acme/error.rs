//! Why there is no certificate, in terms of the configuration.

use instant_acme::{Error, Problem};

use crate::config::Acme;
use crate::ingress::tls::CertificateError;

/// No certificate could be got.
#[derive(Debug, thiserror::Error)]
pub(in crate::ingress::tls) enum AcmeError {
    /// The directory refuses, or cannot be reached.
    #[error("{field}: {why}")]
    Refused {
        /// The field that says otherwise, as far as the directory tells.
        field: &'static str,
        /// In the directory's words.
        why: String,
    },
    /// A domain could not be proven.
    #[error("tls.acme.domains: {domain}: the {challenge} challenge failed: {why}")]
    Challenge {
        /// The domain.
        domain: String,
        /// The kind of challenge.
        challenge: &'static str,
        /// In the directory's words.
        why: String,
    },
    /// The directory's answer is not what it should be.
    #[error("tls.acme.directory: the answer is not {wanted}")]
    Chain {
        /// What would be right.
        wanted: &'static str,
    },
    /// The certificate does not fit its key, or cannot be kept.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// The order took too long.
    #[error("tls.acme.directory: no certificate within {0:?}")]
    Timeout(std::time::Duration),
}

/// Errors are named `urn:ietf:params:acme:error:NAME` (RFC 8555 section 6.7).
const TYPE_PREFIX: &str = "urn:ietf:params:acme:error:";

fn type_of(error: &Error) -> Option<&str> {
    match error {
        Error::Api(problem) => problem.r#type.as_deref()?.strip_prefix(TYPE_PREFIX),
        _ => None,
    }
}

/// Whether the directory gave this type of error.
pub(super) fn is_of_type(error: &Error, name: &str) -> bool {
    type_of(error) == Some(name)
}

/// What a directory says of a problem.
pub(super) fn text_of(problem: &Problem) -> String {
    problem.detail.clone().or_else(|| problem.r#type.clone()).unwrap_or_else(|| "no reason given".to_owned())
}

/// Names the field that an error is about; `registering`: it is the answer to a new account.
pub(super) fn refused(settings: &Acme, error: &Error, registering: bool) -> AcmeError {
    let binding = registering && settings.external_account.is_some();
    let (field, hint) = match type_of(error) {
        Some("invalidContact" | "unsupportedContact") => ("tls.acme.contact", ""),
        Some("externalAccountRequired") => {
            ("tls.acme.eab_kid", "; the directory wants an external account: set eab_kid and eab_key_file to what it gave you")
        }
        // What a wrong binding is called differs between directories.
        Some("unauthorized" | "malformed" | "badPublicKey") if binding => ("tls.acme.eab_kid and eab_key_file", ""),
        Some("rejectedIdentifier" | "unsupportedIdentifier") => ("tls.acme.domains", ""),
        Some("invalidProfile") => ("tls.acme.profile", ""),
        _ => ("tls.acme.directory", ""),
    };
    let why = match error {
        Error::Api(problem) if problem.subproblems.is_empty() => text_of(problem),
        error => error.to_string(),
    };
    AcmeError::Refused { field, why: why + hint }
}
