//! Who may log in: decides on a proven key before it is registered, and again while it is connected (`derp.md` section 10).
//!
//! [`policy`] asks the configured sources in order; [`list`], [`verify_url`] and [`tailscaled`] are the sources, the latter two
//! behind [`cache`]; [`watch`] looks at changed files and at the clients that are connected.

pub mod cache;
pub mod list;
pub mod metrics;
pub mod policy;
pub mod tailscaled;
#[cfg(test)]
pub(crate) mod testing;
pub mod verify_url;
pub mod watch;

use std::net::IpAddr;

use causeway_proto::key::NodePublic;
use futures::future::BoxFuture;

pub use policy::Policy;

/// A login, or a client that is connected, to decide on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Applicant {
    /// Key that the login proved.
    pub key: NodePublic,
    /// Where it comes from, IPv4 unmapped.
    pub source: IpAddr,
}

/// What was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Let in.
    Allow,
    /// Closed without a word.
    Deny(Denial),
}

/// Why a client is not let in; each is a value of the metric label `reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Denial {
    /// Not in the allow list.
    NotListed,
    /// In the deny list.
    Listed,
    /// The admission URL says no.
    UrlDenied,
    /// The admission URL answers with another status than 200, below 500.
    UrlStatus,
    /// The admission URL answers with a status of 500 or more.
    UrlFailing,
    /// The admission URL answers with something else than the JSON object that is wanted.
    UrlAnswer,
    /// The admission URL does not answer.
    UrlUnreachable,
    /// The local Tailscale daemon does not know the key.
    DaemonUnknown,
    /// The local Tailscale daemon answers with another status than 200 or 404.
    DaemonStatus,
    /// The local Tailscale daemon does not answer.
    DaemonUnreachable,
}

impl Denial {
    /// Every reason, in the order of their metric labels.
    pub const ALL: [Self; 10] = [
        Self::NotListed,
        Self::Listed,
        Self::UrlDenied,
        Self::UrlStatus,
        Self::UrlFailing,
        Self::UrlAnswer,
        Self::UrlUnreachable,
        Self::DaemonUnknown,
        Self::DaemonStatus,
        Self::DaemonUnreachable,
    ];

    /// The metric label.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::NotListed => "not_listed",
            Self::Listed => "listed",
            Self::UrlDenied => "url_denied",
            Self::UrlStatus => "url_status",
            Self::UrlFailing => "url_failing",
            Self::UrlAnswer => "url_answer",
            Self::UrlUnreachable => "url_unreachable",
            Self::DaemonUnknown => "daemon_unknown",
            Self::DaemonStatus => "daemon_status",
            Self::DaemonUnreachable => "daemon_unreachable",
        }
    }

    /// Whether whoever decides was asked in vain: that is no reason to close a client that is connected.
    #[must_use]
    pub const fn is_outage(self) -> bool {
        matches!(self, Self::UrlFailing | Self::UrlUnreachable | Self::DaemonStatus | Self::DaemonUnreachable)
    }
}

/// Decides on logins. Stock mesh peers, who know the DERP mesh key, are not asked about.
pub trait Admission: Send + Sync {
    /// Decides within the login deadline; whoever takes longer has denied.
    fn decide(&self, applicant: Applicant) -> BoxFuture<'_, Decision>;

    /// Which of those who decide cannot at the moment, and why, in sentences: each is asked about `key`, which is nobody's. Nothing is
    /// remembered of it.
    fn faults(&self, key: NodePublic) -> BoxFuture<'_, Vec<String>> {
        let _nobodys = key;
        Box::pin(std::future::ready(Vec::new()))
    }

    /// Another number after each change by which a decision may differ from the last one.
    fn generation(&self) -> u64 {
        0
    }
}

/// Lets in whoever proves a key.
#[derive(Clone, Copy, Debug, Default)]
pub struct Open;

impl Admission for Open {
    fn decide(&self, _: Applicant) -> BoxFuture<'_, Decision> {
        Box::pin(std::future::ready(Decision::Allow))
    }
}
