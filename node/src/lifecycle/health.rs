//! Whether this node is ready for traffic, and if not, why, in sentences.

use std::sync::Arc;

use parking_lot::RwLock;

/// Says what is amiss; nothing if all is well.
pub type Condition = Box<dyn Fn() -> Vec<String> + Send + Sync>;

/// The node's conditions. Cheap to clone.
#[derive(Clone, Default)]
pub struct Health {
    conditions: Arc<RwLock<Vec<Condition>>>,
}

impl std::fmt::Debug for Health {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Health").field("not_ready_because", &self.not_ready_because()).finish()
    }
}

impl Health {
    /// Adds a condition.
    pub fn add(&self, condition: impl Fn() -> Vec<String> + Send + Sync + 'static) {
        self.conditions.write().push(Box::new(condition));
    }

    /// Everything that is amiss; empty if the node is ready.
    #[must_use]
    pub fn not_ready_because(&self) -> Vec<String> {
        self.conditions.read().iter().flat_map(|condition| condition()).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn a_node_is_ready_when_no_condition_complains() {
        let health = Health::default();
        let lost = Arc::new(AtomicBool::new(true));
        let flag = Arc::clone(&lost);
        health.add(move || if flag.load(Ordering::Relaxed) { vec!["no quorum".into()] } else { Vec::new() });
        assert_eq!(health.not_ready_because(), ["no quorum"]);
        lost.store(false, Ordering::Relaxed);
        assert!(health.not_ready_because().is_empty());
    }
}
