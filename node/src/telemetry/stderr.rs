//! Standard error behind a bounded buffer: whoever logs never waits for the terminal, pipe or disk at its other end.
//!
//! A thread of its own writes what was logged, in order and in large pieces. Lines for which there is no room are lost and counted.

use std::io::{self, Write};
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// Bytes that wait to be written at most; as many again may be with the writing thread.
const BUFFER_MAX: usize = 1 << 20;

/// How long the end of the process waits for the other end to take the last lines.
const FLUSH_DEADLINE: Duration = Duration::from_secs(1);

static LINES: Lines = Lines::new();

/// Where log lines go; one call of `write` is one line.
#[derive(Clone, Copy, Debug)]
pub struct StandardError;

impl Write for StandardError {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        static WRITER: Once = Once::new();
        WRITER.call_once(|| {
            let writer = std::thread::Builder::new().name("log".into());
            // Without a thread there is nobody to write: every line beyond the buffer is counted as lost.
            drop(writer.spawn(|| LINES.drain(&mut io::stderr())));
        });
        LINES.push(line);
        Ok(line.len())
    }

    /// Waits until all is written, for a second at most.
    fn flush(&mut self) -> io::Result<()> {
        if LINES.wait_until_written(FLUSH_DEADLINE) { Ok(()) } else { Err(io::ErrorKind::TimedOut.into()) }
    }
}

/// Lines lost since start because standard error did not take them.
pub fn lost_lines() -> u64 {
    LINES.lost.load(Ordering::Relaxed)
}

struct Lines {
    waiting: Mutex<Waiting>,
    /// There is something to write, or nothing any more.
    changed: Condvar,
    lost: AtomicU64,
}

struct Waiting {
    bytes: Vec<u8>,
    /// The thread is at it.
    writing: bool,
}

impl Lines {
    const fn new() -> Self {
        let waiting = Mutex::new(Waiting { bytes: Vec::new(), writing: false });
        Self { waiting, changed: Condvar::new(), lost: AtomicU64::new(0) }
    }

    fn push(&self, line: &[u8]) {
        let mut waiting = self.waiting.lock();
        if waiting.bytes.len() + line.len() > BUFFER_MAX {
            self.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        waiting.bytes.extend_from_slice(line);
        drop(waiting);
        self.changed.notify_all();
    }

    /// Writes for as long as the process lives.
    fn drain(&self, out: &mut impl Write) {
        let mut bytes = Vec::new();
        loop {
            let mut waiting = self.waiting.lock();
            waiting.writing = false;
            self.changed.notify_all();
            self.changed.wait_while(&mut waiting, |waiting| waiting.bytes.is_empty());
            bytes.clear();
            std::mem::swap(&mut bytes, &mut waiting.bytes);
            waiting.writing = true;
            drop(waiting);
            if out.write_all(&bytes).is_err() {
                let lines = bytes.iter().filter(|byte| **byte == b'\n').count();
                self.lost.fetch_add(lines as u64, Ordering::Relaxed);
            }
        }
    }

    fn wait_until_written(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let mut waiting = self.waiting.lock();
        let left = |waiting: &mut Waiting| waiting.writing || !waiting.bytes.is_empty();
        !self.changed.wait_while_until(&mut waiting, left, deadline).timed_out()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

    use super::*;

    /// Takes nothing until it is let, then all until nobody receives.
    struct Stalled(Option<Receiver<()>>, SyncSender<Vec<u8>>);

    impl Write for Stalled {
        fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
            if let Some(stall) = self.0.take() {
                stall.recv().map_err(|_| io::ErrorKind::BrokenPipe)?;
            }
            self.1.send(piece.to_vec()).map_err(|_| io::ErrorKind::BrokenPipe)?;
            Ok(piece.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_stalled_end_costs_lines_but_never_a_wait_and_then_all_goes_on_in_order() {
        let lines = Arc::new(Lines::new());
        let ((let_it, may), (wrote, pieces)) = (sync_channel(1), sync_channel(8));
        let writer = Arc::clone(&lines);
        std::thread::spawn(move || writer.drain(&mut Stalled(Some(may), wrote)));
        let line = |number: usize| format!("{number:01023}\n").into_bytes();
        let pushed = 2 * BUFFER_MAX / 1024 + 10;
        (0..pushed).for_each(|number| lines.push(&line(number)));
        let lost = lines.lost.load(Ordering::Relaxed);
        assert!(lost >= 10, "{lost}");
        assert!(!lines.wait_until_written(Duration::from_millis(1)), "nothing was taken");
        let_it.send(()).expect("the thread lives");
        assert!(lines.wait_until_written(Duration::from_secs(30)));
        let written: Vec<u8> = pieces.try_iter().flatten().collect();
        let kept = pushed - usize::try_from(lost).expect("few");
        assert_eq!(written.len(), kept * 1024);
        assert!(written.starts_with(&line(0)));
        // An end that is gone loses every line.
        drop(pieces);
        lines.push(&line(0));
        assert!(lines.wait_until_written(Duration::from_secs(30)));
        assert_eq!(lines.lost.load(Ordering::Relaxed), lost + 1);
    }
}
