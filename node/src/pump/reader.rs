//! Reads a connection: parses everything the socket gave, then wakes each touched destination once.

use std::io;
use std::pin::Pin;
use std::time::Instant;

use bytes::BytesMut;
use futures::future::poll_fn;
use tokio::io::AsyncRead;
use tokio_util::io::poll_read_buf;
use tokio_util::sync::CancellationToken;

use super::{buffers, wake};

/// Decodes the frames of one connection and acts on them. Synchronous: whatever it sends is queued.
pub trait FrameHandler: Send {
    /// Why the connection must end.
    type Refusal: Send;

    /// Bytes arrived: proof that the other side lives.
    fn received(&mut self, now: Instant);

    /// Decodes one frame from the front of `buffer` and acts on it; false if the buffer holds no whole frame.
    ///
    /// # Errors
    /// The refusal that ends the connection.
    fn handle_frame(&mut self, buffer: &mut BytesMut, now: Instant) -> Result<bool, Self::Refusal>;

    /// Until when nothing more may be taken from the connection: its other side then waits in TCP, and nothing is dropped.
    fn paused_until(&self) -> Option<Instant> {
        None
    }
}

/// How reading ended.
#[derive(Debug)]
pub enum ReaderEnd<R> {
    /// The other side closed; `clean` if at a frame's border.
    Eof {
        /// No part of a frame was waiting.
        clean: bool,
    },
    /// The transport failed.
    Io(io::Error),
    /// The handler refused a frame.
    Refused(R),
    /// The connection was told to end.
    Cancelled,
}

/// Frames handled before other tasks of the thread get their turn.
const FRAMES_PER_TURN: usize = 256;

/// Reads until the connection ends. `pending` holds bytes that came before.
pub async fn run<R, H>(mut io: R, mut pending: BytesMut, handler: &mut H, cancel: &CancellationToken) -> ReaderEnd<H::Refusal>
where
    R: AsyncRead + Unpin,
    H: FrameHandler,
{
    loop {
        match handle_all(&mut pending, handler).await {
            Ok(None) => {}
            Ok(Some(until)) => {
                buffers::release_read_room(&mut pending);
                tokio::select! {
                    biased;
                    () = cancel.cancelled() => return ReaderEnd::Cancelled,
                    () = tokio::time::sleep_until(until.into()) => continue,
                }
            }
            Err(refusal) => return ReaderEnd::Refused(refusal),
        }
        let read = tokio::select! {
            biased;
            () = cancel.cancelled() => return ReaderEnd::Cancelled,
            // Cancel safe: whatever was read is in `pending`.
            read = fill(&mut io, &mut pending) => read,
        };
        match read {
            Ok(0) => return ReaderEnd::Eof { clean: pending.is_empty() },
            Ok(_) => handler.received(now()),
            Err(error) => return ReaderEnd::Io(error),
        }
    }
}

/// Handles every whole frame of `pending`, giving way after each turn; until when the handler wants a pause, if it does.
async fn handle_all<H: FrameHandler>(pending: &mut BytesMut, handler: &mut H) -> Result<Option<Instant>, H::Refusal> {
    while !pending.is_empty() {
        let now = now();
        match wake::after(|| handle_turn(pending, handler, now))? {
            Turn::Empty => return Ok(handler.paused_until().filter(|until| *until > now)),
            Turn::Paused(until) => return Ok(Some(until)),
            Turn::More => tokio::task::yield_now().await,
        }
    }
    Ok(None)
}

/// How a turn ended.
enum Turn {
    /// No whole frame is left.
    Empty,
    /// The handler wants a pause.
    Paused(Instant),
    /// There may be more frames.
    More,
}

/// Handles at most one turn of frames.
fn handle_turn<H: FrameHandler>(pending: &mut BytesMut, handler: &mut H, now: Instant) -> Result<Turn, H::Refusal> {
    for _ in 0..FRAMES_PER_TURN {
        if let Some(until) = handler.paused_until().filter(|until| *until > now) {
            return Ok(Turn::Paused(until));
        }
        if !handler.handle_frame(pending, now)? {
            return Ok(Turn::Empty);
        }
    }
    Ok(Turn::More)
}

/// Reads what is there into `pending`, holding read memory only while bytes are at hand.
async fn fill<R: AsyncRead + Unpin>(io: &mut R, pending: &mut BytesMut) -> io::Result<usize> {
    poll_fn(|cx| {
        buffers::ensure_read_room(pending);
        let read = poll_read_buf(Pin::new(&mut *io), cx, pending);
        if read.is_pending() {
            buffers::release_read_room(pending);
        }
        read
    })
    .await
}

/// Tokio's clock, so that paused time reaches the handlers.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
