//! Progress of long work, as lines on standard error.

use std::io::{self, Write};
use std::time::Instant;

/// Says what happens, each line with the seconds since the beginning.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    command: &'static str,
    started: Instant,
}

impl Progress {
    /// Begins now; `command` leads every line.
    #[must_use]
    pub fn start(command: &'static str) -> Self {
        Self { command, started: Instant::now() }
    }

    /// Prints a line. Nobody reading it is no reason to fail.
    pub fn say(&self, text: &str) {
        let seconds = self.started.elapsed().as_secs_f32();
        drop(writeln!(io::stderr().lock(), "{}: {seconds:6.2} s  {text}", self.command));
    }
}
