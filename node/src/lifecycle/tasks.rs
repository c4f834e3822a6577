//! The root of all tasks: every task starts here, knows when to end, and is joined at shutdown.

use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// A tracker and the token that ends what it tracks.
#[derive(Debug, Clone, Default)]
pub struct Tasks {
    /// Counts what runs.
    pub tracker: TaskTracker,
    /// Ends it.
    pub cancel: CancellationToken,
}

/// Some tasks did not end in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{running} tasks were still running {} s after shutdown began", deadline.as_secs())]
pub struct StillRunning {
    /// How many.
    pub running: usize,
    /// How long they were given.
    pub deadline: Duration,
}

impl Tasks {
    /// Starts a task on `runtime`.
    pub fn spawn_on<F>(&self, runtime: &Handle, task: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send + 'static> + Send + 'static,
    {
        self.tracker.spawn_on(task, runtime)
    }

    /// Tells every task to end and waits for them.
    ///
    /// # Errors
    /// [`StillRunning`] after `deadline`; what is left ends with the process.
    pub async fn end(&self, deadline: Duration) -> Result<(), StillRunning> {
        self.cancel.cancel();
        self.tracker.close();
        tokio::time::timeout(deadline, self.tracker.wait())
            .await
            .map_err(|_| StillRunning { running: self.tracker.len(), deadline })
    }
}

/// Runs what hyper starts for its connections as tasks of the node.
#[derive(Clone, Debug)]
pub struct Executor {
    runtime: Handle,
    tasks: Tasks,
}

impl Executor {
    /// Starts them on `runtime`.
    #[must_use]
    pub const fn new(runtime: Handle, tasks: Tasks) -> Self {
        Self { runtime, tasks }
    }
}

impl<F: Future<Output: Send> + Send + 'static> hyper::rt::Executor<F> for Executor {
    fn execute(&self, task: F) {
        let cancel = self.tasks.cancel.clone();
        self.tasks.spawn_on(&self.runtime, async move {
            tokio::select! {
                () = cancel.cancelled() => {}
                _ = task => {}
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn ending_joins_tasks_that_listen_and_names_how_many_do_not() {
        let tasks = Tasks::default();
        let cancel = tasks.cancel.clone();
        tasks.spawn_on(&Handle::current(), async move { cancel.cancelled().await });
        assert_eq!(tasks.end(Duration::from_secs(1)).await, Ok(()));

        let tasks = Tasks::default();
        tasks.spawn_on(&Handle::current(), std::future::pending::<()>());
        let deadline = Duration::from_secs(1);
        assert_eq!(tasks.end(deadline).await, Err(StillRunning { running: 1, deadline }));
    }
}
