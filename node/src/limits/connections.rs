//! Who may still connect: per source, unauthenticated, authenticated, in total.
//!
//! The listener asks [`ConnectionGate::admit`] for each accepted socket and hands the [`Permit`] on with it; login turns it into an
//! authenticated one. Dropping it gives the place back. A source is an IPv4 address or an IPv6 /64, with four times the allowance
//! for the whole /48.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::bucket::{Rate, TokenBucket};

/// Numbers of the gate; each is a field of the node's configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// Connections altogether.
    pub total: usize,
    /// Connections that have not logged in.
    pub unauthenticated: usize,
    /// Connections of one source that have not logged in.
    pub unauthenticated_per_source: usize,
    /// New connections of one source.
    pub per_source: Rate,
    /// New connections of everybody.
    pub global: Rate,
    /// Logged-in connections of one IPv4 address.
    pub authenticated_per_ipv4: usize,
    /// Logged-in connections of one IPv6 /64.
    pub authenticated_per_ipv6: usize,
}

impl ConnectionLimits {
    /// The defaults of the threat model for a machine with so many cores.
    #[must_use]
    pub const fn defaults(cores: usize) -> Self {
        let global = 500 * cores as u64;
        Self {
            total: 50_000,
            unauthenticated: 2_048,
            unauthenticated_per_source: 128,
            per_source: Rate { per_second: 100, burst: 500 },
            global: Rate { per_second: global, burst: 2 * global },
            authenticated_per_ipv4: 1_024,
            authenticated_per_ipv6: 256,
        }
    }

    const fn is_pressed(&self, unauthenticated: usize) -> bool {
        4 * unauthenticated >= 3 * self.unauthenticated
    }
}

/// Why a connection was refused; each is a value of the metric label `reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refusal {
    /// Too many unauthenticated connections of this source.
    #[error("too many connections of this source are waiting to log in")]
    SourceUnauthenticated,
    /// This source connects too often.
    #[error("this source connects too often")]
    SourceRate,
    /// Too many authenticated connections of this source.
    #[error("too many clients of this source")]
    SourceAuthenticated,
    /// Too many unauthenticated connections altogether.
    #[error("too many connections are waiting to log in")]
    Unauthenticated,
    /// Everybody together connects too often.
    #[error("too many new connections")]
    Rate,
    /// Too many connections altogether.
    #[error("too many connections")]
    Total,
}

impl Refusal {
    /// Every refusal, in the order of their metric labels.
    pub const ALL: [Self; 6] = [
        Self::SourceUnauthenticated,
        Self::SourceRate,
        Self::SourceAuthenticated,
        Self::Unauthenticated,
        Self::Rate,
        Self::Total,
    ];

    /// The metric label.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::SourceUnauthenticated => "source_unauthenticated",
            Self::SourceRate => "source_rate",
            Self::SourceAuthenticated => "source_authenticated",
            Self::Unauthenticated => "unauthenticated",
            Self::Rate => "rate",
            Self::Total => "total",
        }
    }
}

/// Allowance of a /48 as a multiple of a /64's.
const SITE_ALLOWANCE: usize = 4;

/// Sources remembered only for their rate; above it the ones whose bucket is full again are forgotten.
const IDLE_SOURCES_MAX: usize = 65_536;

/// Time to log in while there is room.
const LOGIN_DEADLINE: Duration = Duration::from_secs(10);

/// Time to log in above three quarters of the unauthenticated limit.
const LOGIN_DEADLINE_PRESSED: Duration = Duration::from_secs(2);

/// One group of addresses that shares an allowance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Source {
    Ipv4([u8; 4]),
    Ipv6Net64(u64),
    Ipv6Site48(u64),
}

/// The groups an address belongs to, with the factor of their allowance. IPv4-mapped addresses count as IPv4.
fn sources_of(address: IpAddr) -> [Option<(Source, usize)>; 2] {
    match address.to_canonical() {
        IpAddr::V4(v4) => [Some((Source::Ipv4(v4.octets()), 1)), None],
        IpAddr::V6(v6) => {
            let high = high_half(v6);
            [Some((Source::Ipv6Net64(high), 1)), Some((Source::Ipv6Site48(high >> 16), SITE_ALLOWANCE))]
        }
    }
}

fn high_half(address: Ipv6Addr) -> u64 {
    (u128::from(address) >> 64) as u64
}

struct SourceState {
    bucket: TokenBucket,
    /// Oldest first: ids grow.
    unauthenticated: BTreeMap<u64, CancellationToken>,
    authenticated: usize,
}

#[derive(Default)]
struct Counts {
    next_id: u64,
    total: usize,
    unauthenticated: usize,
    global: Option<TokenBucket>,
    sources: HashMap<Source, SourceState>,
}

/// Shared by all listeners of a node.
pub struct ConnectionGate {
    limits: ArcSwap<ConnectionLimits>,
    counts: Mutex<Counts>,
}

impl std::fmt::Debug for ConnectionGate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConnectionGate").field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl ConnectionGate {
    /// A gate with nobody inside.
    #[must_use]
    pub fn new(limits: ConnectionLimits) -> Arc<Self> {
        Arc::new(Self { limits: ArcSwap::from_pointee(limits), counts: Mutex::default() })
    }

    /// Goes on with other numbers. Whoever is inside stays; rates hold from the next connection on.
    pub fn set_limits(&self, limits: ConnectionLimits) {
        self.limits.store(Arc::new(limits));
    }

    /// Lets a new connection of `address` in, or says why not.
    ///
    /// # Errors
    /// [`Refusal`], the source's own limits first.
    pub fn admit(self: &Arc<Self>, address: IpAddr, now: Instant) -> Result<Permit, Refusal> {
        let sources = sources_of(address);
        let evict = CancellationToken::new();
        let limits = **self.limits.load();
        let mut counts = self.counts.lock();
        counts.forget_idle(now);
        for (source, factor) in sources.into_iter().flatten() {
            let state = counts.source(source, limits.per_source, factor, now);
            if state.unauthenticated.len() >= limits.unauthenticated_per_source * factor {
                return Err(Refusal::SourceUnauthenticated);
            }
            if !state.bucket.take(1, now) {
                return Err(Refusal::SourceRate);
            }
        }
        if counts.total >= limits.total {
            return Err(Refusal::Total);
        }
        let newcomer_weight = sources[0].map_or(0, |(source, _)| counts.unauthenticated_of(source));
        if limits.is_pressed(counts.unauthenticated) {
            counts.evict_heaviest(newcomer_weight);
        }
        if counts.unauthenticated >= limits.unauthenticated {
            return Err(Refusal::Unauthenticated);
        }
        let global = counts.global.get_or_insert_with(|| TokenBucket::new(limits.global, now));
        global.set_rate(limits.global, now);
        if !global.take(1, now) {
            return Err(Refusal::Rate);
        }
        let pressed = limits.is_pressed(counts.unauthenticated);
        let id = counts.enter(sources, &evict);
        drop(counts);
        let login_deadline = now + if pressed { LOGIN_DEADLINE_PRESSED } else { LOGIN_DEADLINE };
        Ok(Permit { gate: Arc::clone(self), id, sources, authenticated: false, evicted: evict, login_deadline })
    }
}

impl Counts {
    fn source(&mut self, source: Source, rate: Rate, factor: usize, now: Instant) -> &mut SourceState {
        let factor = factor as u64;
        let rate = Rate { per_second: rate.per_second * factor, burst: rate.burst * factor };
        let state = self.sources.entry(source).or_insert_with(|| SourceState {
            bucket: TokenBucket::new(rate, now),
            unauthenticated: BTreeMap::new(),
            authenticated: 0,
        });
        state.bucket.set_rate(rate, now);
        state
    }

    fn unauthenticated_of(&self, source: Source) -> usize {
        self.sources.get(&source).map_or(0, |state| state.unauthenticated.len())
    }

    /// Cancels the oldest waiting connection of the source with most of them, if that is more than the newcomer's has.
    fn evict_heaviest(&mut self, newcomer_weight: usize) {
        let heaviest = self
            .sources
            .iter()
            .filter(|(source, _)| !matches!(source, Source::Ipv6Site48(_)))
            .map(|(source, state)| (state.unauthenticated.len(), *source))
            .max()
            .filter(|(weight, _)| *weight > newcomer_weight + 1);
        let oldest = heaviest
            .and_then(|(_, source)| self.sources.get(&source))
            .and_then(|state| state.unauthenticated.iter().find(|(_, token)| !token.is_cancelled()));
        if let Some((_, token)) = oldest {
            token.cancel();
        }
    }

    fn enter(&mut self, sources: [Option<(Source, usize)>; 2], evict: &CancellationToken) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        self.total += 1;
        self.unauthenticated += 1;
        for (source, _) in sources.into_iter().flatten() {
            if let Some(state) = self.sources.get_mut(&source) {
                state.unauthenticated.insert(id, evict.clone());
            }
        }
        id
    }

    fn forget_idle(&mut self, now: Instant) {
        if self.sources.len() > IDLE_SOURCES_MAX + self.total {
            self.sources
                .retain(|_, state| state.authenticated > 0 || !state.unauthenticated.is_empty() || !state.bucket.is_full(now));
        }
    }
}

/// A place inside the gate, given back on drop.
pub struct Permit {
    gate: Arc<ConnectionGate>,
    id: u64,
    sources: [Option<(Source, usize)>; 2],
    authenticated: bool,
    evicted: CancellationToken,
    login_deadline: Instant,
}

impl std::fmt::Debug for Permit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Permit").field("id", &self.id).field("authenticated", &self.authenticated).finish_non_exhaustive()
    }
}

impl Permit {
    /// When login must be over: 10 s after the connection came, 2 s under pressure.
    #[must_use]
    pub const fn login_deadline(&self) -> Instant {
        self.login_deadline
    }

    /// Cancelled when this connection must make room for others; only before login.
    #[must_use]
    pub fn evicted(&self) -> CancellationToken {
        self.evicted.clone()
    }

    /// Counts this connection as logged in.
    ///
    /// # Errors
    /// [`Refusal::SourceAuthenticated`] if its source has too many logged-in connections.
    pub fn authenticate(&mut self) -> Result<(), Refusal> {
        if self.authenticated {
            return Ok(());
        }
        let limits = **self.gate.limits.load();
        let mut counts = self.gate.counts.lock();
        for (source, factor) in self.sources.into_iter().flatten() {
            let limit = match source {
                Source::Ipv4(_) => limits.authenticated_per_ipv4,
                Source::Ipv6Net64(_) | Source::Ipv6Site48(_) => limits.authenticated_per_ipv6,
            };
            if counts.sources.get(&source).is_some_and(|state| state.authenticated >= limit * factor) {
                return Err(Refusal::SourceAuthenticated);
            }
        }
        counts.unauthenticated -= 1;
        for (source, _) in self.sources.into_iter().flatten() {
            if let Some(state) = counts.sources.get_mut(&source) {
                state.unauthenticated.remove(&self.id);
                state.authenticated += 1;
            }
        }
        drop(counts);
        self.authenticated = true;
        Ok(())
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut counts = self.gate.counts.lock();
        counts.total -= 1;
        if !self.authenticated {
            counts.unauthenticated -= 1;
        }
        for (source, _) in self.sources.into_iter().flatten() {
            if let Some(state) = counts.sources.get_mut(&source) {
                if self.authenticated {
                    state.authenticated -= 1;
                } else {
                    state.unauthenticated.remove(&self.id);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn small() -> ConnectionLimits {
        ConnectionLimits {
            total: 10,
            unauthenticated: 8,
            unauthenticated_per_source: 3,
            per_source: Rate { per_second: 1, burst: 5 },
            global: Rate { per_second: 1_000, burst: 1_000 },
            authenticated_per_ipv4: 2,
            authenticated_per_ipv6: 1,
        }
    }

    fn v4(last: u8) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(192, 0, 2, last))
    }

    #[test]
    fn a_source_fills_its_own_limits_first_and_drops_give_back() {
        let gate = ConnectionGate::new(small());
        let now = Instant::now();
        let held: Vec<Permit> = (0..3).map(|_| gate.admit(v4(1), now).expect("room for three")).collect();
        assert_eq!(gate.admit(v4(1), now).expect_err("full"), Refusal::SourceUnauthenticated);
        assert!(gate.admit(v4(2), now).is_ok());
        drop(held);
        assert!(gate.admit(v4(1), now).is_ok());
        assert!(gate.admit(v4(1), now).is_ok());
        assert_eq!(gate.admit(v4(1), now).expect_err("five in no time"), Refusal::SourceRate);
        assert_eq!(gate.counts.lock().total, 0, "everything given back");
    }

    #[test]
    fn mapped_addresses_are_ipv4_and_a_site_has_four_times_a_network() {
        let gate = ConnectionGate::new(small());
        let now = Instant::now();
        let mapped = IpAddr::V6(Ipv4Addr::new(192, 0, 2, 1).to_ipv6_mapped());
        assert_eq!(sources_of(mapped), sources_of(v4(1)));
        let network = |n: u16| IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, n, 0, 0, 0, 1));
        let mut held = Vec::new();
        for n in 0..4 {
            let mut permit = gate.admit(network(n), now).expect("room");
            permit.authenticate().expect("one per /64, four per /48");
            held.push(permit);
        }
        let mut fifth = gate.admit(network(9), now).expect("room");
        assert_eq!(fifth.authenticate(), Err(Refusal::SourceAuthenticated));
    }

    #[test]
    fn under_pressure_deadlines_shrink_and_the_heaviest_source_makes_room() {
        let gate = ConnectionGate::new(small());
        let now = Instant::now();
        let heavy: Vec<Permit> = (0..3).map(|_| gate.admit(v4(1), now).expect("room")).collect();
        let light: Vec<Permit> = (2..5).map(|n| gate.admit(v4(n), now).expect("room")).collect();
        assert_eq!(light[0].login_deadline() - now, LOGIN_DEADLINE);
        let pressed = gate.admit(v4(9), now).expect("room");
        assert_eq!(pressed.login_deadline() - now, LOGIN_DEADLINE_PRESSED);
        assert!(heavy[0].evicted().is_cancelled(), "the oldest of the heaviest");
        assert!(!heavy[1].evicted().is_cancelled() && !light[0].evicted().is_cancelled());
    }

    #[test]
    fn other_numbers_hold_from_the_next_connection_on_and_nobody_inside_is_hurt() {
        let gate = ConnectionGate::new(small());
        let now = Instant::now();
        let mut held: Vec<Permit> = (0..3).map(|_| gate.admit(v4(1), now).expect("room for three")).collect();
        gate.set_limits(ConnectionLimits { unauthenticated_per_source: 1, authenticated_per_ipv4: 3, ..small() });
        assert_eq!(gate.admit(v4(1), now).expect_err("more than one inside"), Refusal::SourceUnauthenticated);
        held.iter_mut().for_each(|permit| permit.authenticate().expect("three may log in now"));
        gate.set_limits(ConnectionLimits { per_source: Rate { per_second: 1, burst: 1 }, ..small() });
        assert!(gate.admit(v4(1), now).is_ok());
        assert_eq!(gate.admit(v4(1), now).expect_err("the burst is one now"), Refusal::SourceRate);
    }

    #[test]
    fn the_total_holds_for_everybody() {
        let gate = ConnectionGate::new(ConnectionLimits { unauthenticated: 100, ..small() });
        let now = Instant::now();
        let held: Vec<Permit> = (0..10).map(|n| gate.admit(v4(n), now).expect("room for ten")).collect();
        assert_eq!(gate.admit(v4(99), now).expect_err("eleventh"), Refusal::Total);
        drop(held);
        assert!(gate.admit(v4(99), now).is_ok());
    }
}
