//! What one client may use.

use super::pace::Rates;
use crate::pump::lanes::LaneLimits;

/// What one client may use.
#[derive(Clone, Copy, Debug)]
pub struct ClientLimits {
    /// Bounds of one connection's lanes.
    pub lanes: LaneLimits,
    /// Connections one key may have; when one more comes, the one that has been inactive longest is closed.
    pub connections_per_key: usize,
    /// How fast clients may send.
    pub rates: Rates,
}

impl Default for ClientLimits {
    fn default() -> Self {
        Self { lanes: LaneLimits::CLIENT, connections_per_key: CONNECTIONS_PER_KEY, rates: Rates::default() }
    }
}

/// Default of [`ClientLimits::connections_per_key`]: a stock client that reaches one node only has a connection to it for each home region
/// of its peers, and none of them may end another (`stock-clients.md` section 2).
pub const CONNECTIONS_PER_KEY: usize = 16;
