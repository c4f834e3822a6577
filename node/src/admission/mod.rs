//! Who may log in: decides on a proven key, before it is registered.

use std::net::IpAddr;

use causeway_proto::key::NodePublic;
use futures::future::BoxFuture;

/// A login that waits for a decision.
#[derive(Clone, Copy, Debug)]
pub struct Applicant {
    /// Key that the login proved.
    pub key: NodePublic,
    /// Where it comes from, IPv4 unmapped.
    pub source: IpAddr,
}

/// What was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Decision {
    /// Let in.
    Allow,
    /// Closed without a word.
    Deny,
}

/// Decides on logins. Stock mesh peers, who know the DERP mesh key, are not asked about.
pub trait Admission: Send + Sync {
    /// Decides within the login deadline; whoever takes longer has denied.
    fn decide(&self, applicant: Applicant) -> BoxFuture<'_, Decision>;

    /// Whether anybody is let in, so that rates per key must protect the node.
    fn is_open(&self) -> bool;
}

/// Lets in whoever proves a key.
#[derive(Clone, Copy, Debug, Default)]
pub struct Open;

impl Admission for Open {
    fn decide(&self, _: Applicant) -> BoxFuture<'_, Decision> {
        Box::pin(std::future::ready(Decision::Allow))
    }

    fn is_open(&self) -> bool {
        true
    }
}
