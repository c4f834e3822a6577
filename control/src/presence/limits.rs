//! How much presence there may be.

use std::collections::BTreeMap;

use causeway_proto::presence::{Op, PresenceKey};

/// Claims one node may hold at a time: 1.2 x the default connection limit of a node (`threat-model.md` 4.4).
pub const CLAIMS_PER_OWNER_MAX: usize = 60_000;

/// Nodes whose presence is kept; a fleet is at most about 10^2 nodes today.
pub const OWNERS_MAX: usize = 1024;

/// Whether an owner that holds `held` claims would at any time hold too many while `ops` are applied.
///
/// `clock_of` gives the clock of the claim it holds on a key.
pub(super) fn exceeds_claims_max(held: usize, ops: &[Op], clock_of: impl Fn(&PresenceKey) -> Option<u64>) -> bool {
    if held + ops.len() <= CLAIMS_PER_OWNER_MAX {
        return false;
    }
    let mut clocks: BTreeMap<&PresenceKey, Option<u64>> = BTreeMap::new();
    let mut count = held;
    for op in ops {
        let clock = clocks.entry(op.key()).or_insert_with(|| clock_of(op.key()));
        match op {
            Op::Claim { clock_us, .. } => {
                count += usize::from(clock.is_none());
                *clock = (*clock).max(Some(*clock_us));
            }
            Op::Release { clock_us, .. } if *clock == Some(*clock_us) => {
                count -= 1;
                *clock = None;
            }
            Op::Release { .. } => {}
        }
        if count > CLAIMS_PER_OWNER_MAX {
            return true;
        }
    }
    false
}
