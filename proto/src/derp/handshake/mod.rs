//! Login (`derp.md` section 4): each phase is a type, finishing one yields the next.

pub mod client;
pub mod server;

/// What reading in a phase led to.
#[derive(Debug)]
pub enum Step<Again, Done> {
    /// More bytes are needed; the same phase goes on.
    More(Again),
    /// The phase is over.
    Done(Done),
}

#[cfg(test)]
mod tests;
