//! The order of claims for an observer: a pure function of the valid claims and the observer, never of arrival order.
//!
//! An own proven connection comes before all of these; that is the router's business.

use std::fmt;

use causeway_proto::id::{Epoch, NodeId};
use causeway_proto::presence::{ClaimKind, Rank};

/// Whether and why an owner's claims count here (`docs/protocols/presence.md`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Validity {
    /// This node's own claims.
    Own,
    /// The owner's watch stream is live here, in its highest known epoch.
    Live,
    /// A peer whose stream is live here hears the owner.
    Vouched(NodeId),
    /// Its stream was never live here in this epoch, and Raft has not fenced it.
    Unfenced,
    /// Its stream was live here and broke, and no peer hears it.
    Lost,
    /// Raft has fenced the epoch.
    Fenced,
    /// The owner left the fleet for good.
    Evicted,
}

impl Validity {
    /// Whether claims count.
    #[must_use]
    pub const fn is_valid(self) -> bool {
        !matches!(self, Self::Lost | Self::Fenced | Self::Evicted)
    }

    /// Whether the owner is this node or its watch stream is live here.
    #[must_use]
    pub const fn is_live(self) -> bool {
        matches!(self, Self::Own | Self::Live)
    }
}

impl fmt::Display for Validity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Own => f.write_str("own client"),
            Self::Live => f.write_str("watch stream live"),
            Self::Vouched(peer) => write!(f, "heard by {peer}"),
            Self::Unfenced => f.write_str("known by Raft, not fenced, not yet heard"),
            Self::Lost => f.write_str("not valid: watch stream lost and nobody hears it"),
            Self::Fenced => f.write_str("not valid: fenced by Raft"),
            Self::Evicted => f.write_str("not valid: evicted from the fleet"),
        }
    }
}

/// A claim as an observer sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// The claiming node.
    pub node: NodeId,
    /// When and where it was minted.
    pub rank: Rank,
    /// The client calls that connection its home.
    pub home: bool,
    /// The front door.
    pub kind: ClaimKind,
    /// The owner's epoch.
    pub epoch: Epoch,
    /// Whether it counts, and why.
    pub validity: Validity,
    /// The owner is of the observer's region.
    pub own_region: bool,
    /// A stale notice hides it until its owner's log goes on.
    pub hidden: bool,
}

/// Sort key: the greatest is preferred.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Preference {
    usable: bool,
    held: bool,
    own: bool,
    live: bool,
    own_region: bool,
    home: bool,
    rank: Rank,
}

impl Candidate {
    /// Whether the router may choose it.
    #[must_use]
    pub const fn is_usable(&self) -> bool {
        self.validity.is_valid() && !self.hidden
    }

    /// Whether the client is connected to a stock derper that the node watches, not to the node.
    #[must_use]
    pub const fn is_behind_derper(&self) -> bool {
        matches!(self.kind, ClaimKind::Derper)
    }

    /// Its place among the claims of one key: connected to the node itself, live stream, own region, home, greatest rank, in this order.
    #[must_use]
    pub fn preference(&self) -> Preference {
        Preference {
            usable: self.is_usable(),
            held: !self.is_behind_derper(),
            own: self.validity == Validity::Own,
            live: self.validity.is_live(),
            own_region: self.own_region,
            home: self.home,
            rank: self.rank,
        }
    }

    /// What decided its place, for operators.
    #[must_use]
    pub fn why(&self) -> String {
        let mut why = self.validity.to_string();
        for (holds, words) in [
            (self.is_behind_derper(), "behind a stock derper"),
            (self.own_region, "own region"),
            (self.home, "home"),
            (self.hidden, "hidden by a stale notice"),
        ] {
            if holds {
                why.push_str(", ");
                why.push_str(words);
            }
        }
        why
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use proptest::prelude::*;

    use super::*;

    fn candidate() -> impl Strategy<Value = Candidate> {
        let validity = prop::sample::select(vec![
            Validity::Live,
            Validity::Vouched(NodeId(9)),
            Validity::Unfenced,
            Validity::Lost,
            Validity::Fenced,
            Validity::Evicted,
        ]);
        let kind = prop::sample::select(vec![ClaimKind::Derp, ClaimKind::Derper]);
        let flags = (any::<bool>(), any::<bool>(), any::<bool>());
        (0u64..6, 0u64..4, validity, kind, flags).prop_map(|(node, clock_us, validity, kind, (home, own_region, hidden))| {
            Candidate {
                node: NodeId(node),
                rank: Rank { clock_us, node: NodeId(node) },
                home,
                kind,
                epoch: Epoch(1),
                validity,
                own_region,
                hidden,
            }
        })
    }

    /// The rule of the design, sentence by sentence: whether `a` comes before `b`.
    fn before(a: &Candidate, b: &Candidate) -> bool {
        let rules: [fn(&Candidate) -> bool; 5] = [
            Candidate::is_usable,
            |claim| claim.kind != ClaimKind::Derper,
            |claim| claim.validity.is_live(),
            |claim| claim.own_region,
            |claim| claim.home,
        ];
        for rule in rules {
            if rule(a) != rule(b) {
                return rule(a);
            }
        }
        a.rank > b.rank
    }

    proptest! {
        #[test]
        fn the_preferred_claim_is_the_one_the_rules_name_whatever_the_order(
            candidates in prop::collection::vec(candidate(), 1..8),
            rotate in any::<prop::sample::Index>(),
        ) {
            let best = candidates.iter().max_by_key(|claim| claim.preference()).unwrap();
            prop_assert!(candidates.iter().all(|other| !before(other, best)));
            let mut rotated = candidates.clone();
            rotated.rotate_left(rotate.index(candidates.len()));
            rotated.reverse();
            let again = rotated.iter().max_by_key(|claim| claim.preference()).unwrap();
            prop_assert_eq!(best.preference(), again.preference());
        }
    }

    #[test]
    fn an_own_claim_comes_first_and_reasons_are_words() {
        let other = Candidate {
            node: NodeId(2),
            rank: Rank { clock_us: 9, node: NodeId(2) },
            home: true,
            kind: ClaimKind::Derp,
            epoch: Epoch(1),
            validity: Validity::Live,
            own_region: true,
            hidden: false,
        };
        let own = Candidate { validity: Validity::Own, home: false, rank: Rank::default(), ..other };
        assert!(own.preference() > other.preference());
        assert_eq!(other.why(), "watch stream live, own region, home");
        let vouched = Candidate { validity: Validity::Vouched(NodeId(0xab)), own_region: false, hidden: true, ..other };
        assert_eq!(vouched.why(), "heard by 00000000000000ab, home, hidden by a stale notice");
    }
}
