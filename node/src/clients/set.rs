//! Which of the connections of one key is active: the newest, then the last writer (`derp.md` section 7). Pure.

/// The connections of one key, the one least recently heard first. The last one is active.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientSet<T> {
    by_recency: Vec<T>,
}

impl<T> Default for ClientSet<T> {
    fn default() -> Self {
        Self { by_recency: Vec::new() }
    }
}

impl<T: PartialEq + Clone> ClientSet<T> {
    /// Adds a connection, which becomes active, to at most `max` in all. Returns the one that must be closed for it, if any: the one
    /// inactive longest; it is no member any more.
    pub fn add(&mut self, connection: T, max: usize) -> Option<T> {
        let evicted = (self.by_recency.len() >= max.max(1)).then(|| self.by_recency.remove(0));
        self.by_recency.push(connection);
        evicted
    }

    /// Notes a frame of a connection, which becomes active. Returns whether that changed anything.
    pub fn heard(&mut self, connection: &T) -> bool {
        if self.active() == Some(connection) {
            return false;
        }
        let Some(position) = self.by_recency.iter().position(|member| member == connection) else { return false };
        let member = self.by_recency.remove(position);
        self.by_recency.push(member);
        true
    }

    /// Removes a connection; false if it is no member. The most recent of the rest is active.
    pub fn remove(&mut self, connection: &T) -> bool {
        let Some(position) = self.by_recency.iter().position(|member| member == connection) else { return false };
        self.by_recency.remove(position);
        true
    }

    /// The connection that gets the packets.
    #[must_use]
    pub fn active(&self) -> Option<&T> {
        self.by_recency.last()
    }

    /// All connections, the most recent first.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.by_recency.iter().rev()
    }

    /// How many connections the key has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_recency.len()
    }

    /// Whether the key has no connection.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_recency.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    enum Step {
        Add(u32),
        Heard(u32),
        Leave(u32),
    }
    use Step::{Add, Heard, Leave};

    /// Each case: steps, and who is active after each (`derp.md` section 7, policy last writer).
    #[test]
    fn the_newest_is_active_then_the_last_writer() {
        let cases: [&[(Step, Option<u32>)]; 4] = [
            &[(Add(1), Some(1)), (Leave(1), None)],
            &[(Add(1), Some(1)), (Add(2), Some(2)), (Heard(1), Some(1)), (Heard(1), Some(1)), (Leave(1), Some(2))],
            &[
                (Add(1), Some(1)),
                (Add(2), Some(2)),
                (Add(3), Some(3)),
                (Heard(1), Some(1)),
                (Leave(1), Some(3)),
                (Leave(3), Some(2)),
            ],
            &[(Add(1), Some(1)), (Add(2), Some(2)), (Leave(1), Some(2)), (Leave(1), Some(2)), (Heard(9), Some(2))],
        ];
        for steps in cases {
            let mut set = ClientSet::default();
            for (step, active) in steps {
                match step {
                    Add(connection) => assert_eq!(set.add(*connection, 4), None),
                    Heard(connection) => {
                        set.heard(connection);
                    }
                    Leave(connection) => {
                        set.remove(connection);
                    }
                }
                assert_eq!(set.active(), active.as_ref());
            }
        }
    }

    #[test]
    fn a_fifth_connection_ends_the_one_inactive_longest() {
        let mut set = ClientSet::default();
        for connection in 1..=4 {
            assert_eq!(set.add(connection, 4), None);
        }
        assert!(set.heard(&1));
        assert_eq!(set.add(5, 4), Some(2));
        assert_eq!(set.iter().copied().collect::<Vec<_>>(), [5, 1, 4, 3]);
        assert_eq!(set.len(), 4);
    }
}
