//! The claims of one key, as the view's map holds them.

use causeway_proto::presence::ClaimKind;

/// A claim in the map; the owner is an index, so that it takes 16 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Claim {
    pub(super) clock_us: u64,
    pub(super) owner: u16,
    pub(super) kind: ClaimKind,
    pub(super) home: bool,
}

/// Claims of one key, at most one per owner; nearly always a single one.
#[derive(Debug, Clone)]
pub(super) enum Claims {
    One(Claim),
    Many(Box<[Claim]>),
}

const _: () = assert!(size_of::<Claim>() == 16 && size_of::<Claims>() == 24);

impl Claims {
    pub(super) fn as_slice(&self) -> &[Claim] {
        match self {
            Self::One(claim) => std::slice::from_ref(claim),
            Self::Many(claims) => claims,
        }
    }

    pub(super) fn from_vec(claims: Vec<Claim>) -> Option<Self> {
        match claims.as_slice() {
            [] => None,
            [claim] => Some(Self::One(*claim)),
            _ => Some(Self::Many(claims.into_boxed_slice())),
        }
    }
}
