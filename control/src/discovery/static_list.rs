//! Seeds from the configuration.

use super::{Discovery, SEEDS_MAX, is_address};

/// A fixed list.
#[derive(Debug, Clone)]
pub struct StaticList {
    seeds: Vec<String>,
}

impl StaticList {
    /// Keeps what is an address; the rest is logged.
    #[must_use]
    pub fn new(mut seeds: Vec<String>) -> Self {
        seeds.retain(|seed| {
            let good = is_address(seed);
            if !good {
                tracing::warn!(seed, "a seed must be HOST:PORT");
            }
            good
        });
        seeds.truncate(SEEDS_MAX);
        Self { seeds }
    }
}

impl Discovery for StaticList {
    fn seeds(&mut self) -> Vec<String> {
        self.seeds.clone()
    }
}
