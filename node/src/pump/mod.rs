//! The one packet pump, for clients and links: a reader that parses everything the socket gave it, lanes in which packets wait, a
//! writer that drains them into one write.
//!
//! The wire format comes in as a [`reader::FrameHandler`] and a [`writer::Encode`]; nothing here knows DERP or the link protocol.

mod buffers;
pub mod lanes;
pub mod reader;
mod stopwatch;
pub(crate) mod wake;
pub mod writer;

use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;

/// Starts connection and link tasks: on the packet runtime, tracked for shutdown.
#[derive(Clone, Debug)]
pub struct PacketSpawner {
    tracker: TaskTracker,
    runtime: Handle,
}

impl PacketSpawner {
    /// Starts tasks on `runtime` and counts them in `tracker`.
    #[must_use]
    pub const fn new(tracker: TaskTracker, runtime: Handle) -> Self {
        Self { tracker, runtime }
    }

    /// Starts a task.
    pub fn spawn<F>(&self, task: F) -> tokio::task::JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.tracker.spawn_on(task, &self.runtime)
    }
}
