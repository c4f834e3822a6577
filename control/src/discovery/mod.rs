//! Who is there: seeds to find the fleet by, and the set of known nodes that everything else follows.

mod node_set;

pub use node_set::{NodeEntry, NodeSet};
