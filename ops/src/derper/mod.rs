//! Reads how a stock derper is run, and says how a node does the same (`derp.md` section 12.1).
//!
//! [`flags`] knows its command line, [`convert`] turns it and the files and variables it names into a configuration, and says of each
//! what became of it. Nothing here writes a file.

pub mod convert;
pub mod flags;

pub use convert::{Fate, Imported, Note, Options, Secret};
pub use flags::{FLAGS, Flags, VARIABLES};
