//! What is counted about clients.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::connection::ClientFacts;

/// Gauges and counters of the clients connected here.
#[derive(Debug, Default)]
pub struct ClientMetrics {
    pub(super) connections: Gauge,
    pub(super) home_connections: Gauge,
    pub(super) not_ideal_connections: Gauge,
    pub(super) mesh_peers: Gauge,
    pub(super) duplicate_connections: Counter,
    pub(super) home_moves_in: Counter,
    pub(super) home_moves_out: Counter,
    pub(super) evicted: Counter,
    pub(super) not_announced: Counter,
    pub(super) rate_pauses: Counter,
    pub(super) clone_alarms: Gauge,
    pub(super) clone_alarms_raised: Counter,
}

impl ClientMetrics {
    /// Declares everything under `causeway_clients_`.
    pub fn register(&self, registry: &mut Registry) {
        let mut gauge = |name: &str, help: &str, gauge: &Gauge| registry.register(name, help, gauge.clone());
        gauge("causeway_clients_connections", "DERP connections logged in", &self.connections);
        gauge("causeway_clients_home_connections", "Connections that are their client's home", &self.home_connections);
        gauge("causeway_clients_not_ideal_connections", "Connections with an Ideal-Node header", &self.not_ideal_connections);
        gauge("causeway_clients_mesh_peers", "Stock derpers meshing with this node", &self.mesh_peers);
        gauge(
            "causeway_clients_clone_alarms",
            "Keys that are home here and elsewhere, both proven, for 30 s",
            &self.clone_alarms,
        );
        let mut counter = |name: &str, help: &str, counter: &Counter| registry.register(name, help, counter.clone());
        counter(
            "causeway_clients_duplicate_connections",
            "Connections whose key was connected already",
            &self.duplicate_connections,
        );
        counter("causeway_clients_home_moves_in", "Changes to home more than 5 s after login", &self.home_moves_in);
        counter("causeway_clients_home_moves_out", "Changes from home more than 5 s after login", &self.home_moves_out);
        counter("causeway_clients_clone_alarms_raised", "Clone alarms raised", &self.clone_alarms_raised);
        counter("causeway_clients_not_announced", "Clients of siblings too many to tell stock derpers of", &self.not_announced);
        counter("causeway_clients_evicted", "Connections closed because their key had too many", &self.evicted);
        counter("causeway_clients_rate_pauses", "Times a client that sends too fast was not read from", &self.rate_pauses);
    }

    /// How often a client that sends too fast was not read from.
    #[must_use]
    pub fn rate_pauses(&self) -> u64 {
        self.rate_pauses.get()
    }

    /// Clone alarms raised so far.
    #[must_use]
    pub fn clone_alarms_raised(&self) -> u64 {
        self.clone_alarms_raised.get()
    }

    pub(super) fn clone_alarm(&self, raised: bool) {
        if raised {
            self.clone_alarms.inc();
            self.clone_alarms_raised.inc();
        } else {
            self.clone_alarms.dec();
        }
    }

    pub(super) fn connected(&self, facts: &ClientFacts, duplicate: bool) {
        self.connections.inc();
        if facts.is_not_ideal {
            self.not_ideal_connections.inc();
        }
        if facts.is_mesh_peer {
            self.mesh_peers.inc();
        }
        if duplicate {
            self.duplicate_connections.inc();
        }
    }

    pub(super) fn disconnected(&self, facts: &ClientFacts, preferred: bool) {
        self.connections.dec();
        if facts.is_not_ideal {
            self.not_ideal_connections.dec();
        }
        if facts.is_mesh_peer {
            self.mesh_peers.dec();
        }
        if preferred {
            self.home_connections.dec();
        }
    }

    pub(super) fn home_changed(&self, preferred: bool, is_move: bool) {
        if preferred {
            self.home_connections.inc();
        } else {
            self.home_connections.dec();
        }
        match (is_move, preferred) {
            (true, true) => {
                self.home_moves_in.inc();
            }
            (true, false) => {
                self.home_moves_out.inc();
            }
            (false, _) => {}
        }
    }
}
