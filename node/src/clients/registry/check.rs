//! Whether the records of a registry agree.

use causeway_proto::presence::ClaimKind;

use super::Registry;

impl Registry {
    /// Keys with several connections here, and the connections of these keys.
    #[must_use]
    pub fn duplicates(&self) -> (usize, usize) {
        let mut duplicates = (0, 0);
        for shard in &self.shards {
            for state in shard.lock().values().filter(|state| state.connections.len() > 1) {
                duplicates = (duplicates.0 + 1, duplicates.1 + state.connections.len());
            }
        }
        duplicates
    }

    /// Where the registry, its gauges and the owner log contradict each other, in sentences. Holds up every login for the time of a
    /// walk over all clients.
    #[must_use]
    pub fn contradictions(&self) -> Vec<String> {
        let mut found = Vec::new();
        // All at once and in order; nobody else holds two.
        let shards: Vec<_> = self.shards.iter().map(|shard| shard.lock()).collect();
        let states = || shards.iter().flat_map(|shard| shard.iter());
        let active = self.active.pin();
        for (key, state) in states() {
            if active.get(key) != state.connections.active() {
                found.push(format!("{key}: packets do not go to its active connection"));
            }
            if state.rank != self.parts.owner_log.rank_of(&(*key).into()) {
                found.push(format!("{key}: connected here, but not what the owner log claims"));
            }
        }
        let connected = states().count();
        if active.len() != connected {
            found.push(format!("packets are delivered to {} keys, but {connected} are connected", active.len()));
        }
        let (clients, claimed) =
            (states().filter(|(_, state)| state.rank.is_some()).count(), self.parts.owner_log.count_of(ClaimKind::Derp));
        if clients != claimed {
            found.push(format!("the owner log claims {claimed} keys, but {clients} are connected"));
        }
        let connections: usize = states().map(|(_, state)| state.connections.len()).sum();
        let gauge = self.metrics.connections.get();
        if i64::try_from(connections) != Ok(gauge) {
            found.push(format!("{connections} connections, but the gauge says {gauge}"));
        }
        found
    }
}
