//! Who is there: seeds to find the fleet by, and the set of known nodes that everything else follows.

mod directory;
mod file;
mod node_set;
mod static_list;

pub(crate) use directory::Directory;
pub use file::SeedFile;
pub use node_set::{NodeEntry, NodeSet};
pub use static_list::StaticList;

use crate::config::Seeds;

/// Seeds taken from one source at most.
pub const SEEDS_MAX: usize = 1024;

/// Where mesh addresses of possible peers come from.
pub trait Discovery: Send {
    /// The HOST:PORT of possible peers, as of now; at most [`SEEDS_MAX`].
    fn seeds(&mut self) -> Vec<String>;
}

/// The sources that a configuration names.
#[must_use]
pub fn sources(seeds: &Seeds) -> Vec<Box<dyn Discovery>> {
    let mut sources: Vec<Box<dyn Discovery>> = vec![Box::new(StaticList::new(seeds.static_list.clone()))];
    if let Some(path) = &seeds.file {
        sources.push(Box::new(SeedFile::new(path.clone())));
    }
    sources
}

/// HOST:PORT with a port that is not 0.
fn is_address(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    !host.is_empty() && host.len() <= 255 && port.parse::<u16>().is_ok_and(|port| port > 0)
}
