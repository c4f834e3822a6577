//! From the numbers of the configuration to the limits of each part.

use crate::clients::{ClientLimits, Rates};
use crate::config::Limits;
use crate::lifecycle::descriptors;
use crate::limits::bucket::Rate;
use crate::limits::connections::ConnectionLimits;
use crate::pump::lanes::LaneLimits;

pub(super) fn client_limits(limits: &Limits) -> ClientLimits {
    let rate = |per_second, burst| (per_second > 0).then_some(Rate { per_second, burst });
    ClientLimits {
        lanes: LaneLimits { bytes: count(limits.client_queue_bytes), ..LaneLimits::CLIENT },
        connections_per_key: count(limits.connections_per_key),
        rates: Rates {
            client: rate(limits.client_rate_bytes_per_second, limits.client_burst_bytes),
            key: rate(limits.key_rate_bits_per_second / 8, limits.key_burst_bytes),
        },
    }
}

pub(super) fn connection_limits(limits: &Limits) -> ConnectionLimits {
    let global = limits.accepts_per_second_per_core * cores() as u64;
    ConnectionLimits {
        total: count(descriptors::clients_max(limits.connections)),
        unauthenticated: count(limits.unauthenticated),
        unauthenticated_per_source: count(limits.unauthenticated_per_source),
        per_source: Rate { per_second: limits.accepts_per_second_per_source, burst: limits.accept_burst_per_source },
        global: Rate { per_second: global, burst: 2 * global },
        authenticated_per_ipv4: count(limits.authenticated_per_ipv4),
        authenticated_per_ipv6: count(limits.authenticated_per_ipv6),
    }
}

/// TLS handshakes at the same time.
pub(super) fn handshakes(limits: &Limits) -> usize {
    cores() * usize::try_from(limits.tls_handshakes_per_core).unwrap_or(usize::MAX >> 8)
}

pub(super) fn count(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}
