//! Writes a connection: drains the lanes into one buffer, one write per batch.

use std::io;
use std::time::Duration;

use bytes::BytesMut;
use causeway_proto::packet::Packet;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::buffers;
use super::lanes::{Batch, Outbox};
use crate::forward::DropReason;
use crate::forward::accounting::Tally;

/// Puts frames into bytes; holds what the writer must remember of a connection.
pub trait Encode: Send {
    /// Its control frames.
    type Control: Send;

    /// Appends a control frame.
    fn control(&mut self, frame: Self::Control, out: &mut BytesMut);

    /// Appends the answer to a ping.
    fn pong(&mut self, data: [u8; 8], out: &mut BytesMut);

    /// Appends a packet.
    fn packet(&mut self, packet: &Packet, out: &mut BytesMut);

    /// Appends what is due at each tick: a keep-alive or a ping.
    fn tick(&mut self, out: &mut BytesMut);

    /// Everything of one write was appended.
    fn batch_ends(&mut self) {}

    /// Nothing is left to write.
    fn idle(&mut self) {}
}

/// Times and sizes of a writer.
#[derive(Clone, Copy, Debug)]
pub struct WriterLimits {
    /// A write without progress for so long marks the connection stalled.
    pub stalled_after: Duration,
    /// A write without progress for so long ends it. Not below `stalled_after`.
    pub closed_after: Duration,
    /// Period of [`Encode::tick`].
    pub tick: Duration,
    /// Most bytes of packets in one write. With `closed_after` this is the slowest reader that is not cut.
    pub batch_bytes: usize,
}

/// One write to a client: 32 KiB in 2 s is as slow as a kernel buffer that reports room in thirds allows for anyway.
const CLIENT_BATCH_BYTES: usize = 32 * 1024;

/// One write to a node: four TLS records.
const NODE_BATCH_BYTES: usize = 64 * 1024;

impl WriterLimits {
    /// For a client: cut after 2 s without progress (`derp.md` section 6.3).
    #[must_use]
    pub const fn client(keep_alive: Duration) -> Self {
        Self {
            stalled_after: Duration::from_secs(2),
            closed_after: Duration::from_secs(2),
            tick: keep_alive,
            batch_bytes: CLIENT_BATCH_BYTES,
        }
    }

    /// For a stock derper that meshes with us: 30 s.
    #[must_use]
    pub const fn stock_mesh(keep_alive: Duration) -> Self {
        Self {
            stalled_after: Duration::from_secs(30),
            closed_after: Duration::from_secs(30),
            tick: keep_alive,
            batch_bytes: NODE_BATCH_BYTES,
        }
    }

    /// For a link to a stock derper that this node dialled: cut after 5 s (`derp.md` section 8). There is nothing to send at a tick.
    pub const DERPER: Self = Self {
        stalled_after: Duration::from_secs(5),
        closed_after: Duration::from_secs(5),
        tick: Duration::from_secs(60),
        batch_bytes: NODE_BATCH_BYTES,
    };

    /// For a link to another node: routed around after 2 s, cut after 5 s, pinged every second.
    pub const LINK: Self = Self {
        stalled_after: Duration::from_secs(2),
        closed_after: Duration::from_secs(5),
        tick: Duration::from_secs(1),
        batch_bytes: NODE_BATCH_BYTES,
    };
}

/// How writing ended.
#[derive(Debug)]
pub enum WriterEnd {
    /// The lanes were closed: by their owner, or because the control lane was full.
    Closed,
    /// The connection was told to end.
    Cancelled,
    /// No progress for too long.
    Stalled,
    /// The transport failed.
    Io(io::Error),
}

/// Writes until the connection ends, then closes the lanes, so that everything queued is accounted for.
pub async fn run<W, E>(
    mut io: W,
    outbox: &Outbox<E::Control>,
    mut encode: E,
    limits: WriterLimits,
    cancel: CancellationToken,
) -> WriterEnd
where
    W: AsyncWrite + Unpin,
    E: Encode,
{
    let end = tokio::select! {
        biased;
        () = cancel.cancelled() => WriterEnd::Cancelled,
        // Dropped when cancelled: the connection ends, so a half-written frame does not matter; `InFlight` keeps the books.
        end = write_batches(&mut io, outbox, &mut encode, limits) => end,
    };
    outbox.close();
    end
}

async fn write_batches<W, E>(io: &mut W, outbox: &Outbox<E::Control>, encode: &mut E, limits: WriterLimits) -> WriterEnd
where
    W: AsyncWrite + Unpin,
    E: Encode,
{
    let mut next_tick = Instant::now() + limits.tick;
    let mut batch = Batch::default();
    loop {
        if !outbox.pop(&mut batch, limits.batch_bytes) {
            return WriterEnd::Closed;
        }
        let ticks = Instant::now() >= next_tick;
        if batch.is_empty() && !ticks {
            // An idle connection holds no batch memory.
            batch = Batch::default();
            encode.idle();
            tokio::select! {
                () = outbox.wait() => {}
                () = sleep_until(next_tick) => {}
            }
            continue;
        }
        let frames = batch.control.len() + usize::from(batch.pong.is_some()) + batch.packets.len() + usize::from(ticks);
        outbox.accounting().written(frames);
        let mut in_flight = InFlight { outbox, packets: Tally::default(), held: 0 };
        let mut out = buffers::take_write_buffer();
        encode_batch(encode, &mut batch, &mut out, &mut in_flight.packets);
        if ticks {
            encode.tick(&mut out);
            next_tick = Instant::now() + limits.tick;
        }
        encode.batch_ends();
        in_flight.hold(out.capacity());
        let written = write_all(io, &out, outbox, limits).await;
        buffers::return_write_buffer(out);
        match written {
            Ok(()) => in_flight.written(),
            Err(end) => return end,
        }
    }
}

fn encode_batch<E: Encode>(encode: &mut E, batch: &mut Batch<E::Control>, out: &mut BytesMut, packets: &mut Tally) {
    batch.control.drain(..).for_each(|frame| encode.control(frame, out));
    if let Some(data) = batch.pong.take() {
        encode.pong(data, out);
    }
    for packet in batch.packets.drain(..) {
        packets.add(&packet.payload);
        encode.packet(&packet, out);
    }
    batch.clear();
}

/// Packets between the lanes and the socket; a write that never ends well counts them as such.
struct InFlight<'a, C> {
    outbox: &'a Outbox<C>,
    packets: Tally,
    /// Memory of the write.
    held: usize,
}

impl<C> InFlight<'_, C> {
    fn hold(&mut self, bytes: usize) {
        self.held = bytes;
        self.outbox.budget().add(bytes);
    }

    fn written(mut self) {
        let written = std::mem::take(&mut self.packets);
        self.outbox.accounting().delivered(self.outbox.to(), written.packets(), written.bytes());
    }
}

impl<C> Drop for InFlight<'_, C> {
    fn drop(&mut self) {
        self.outbox.budget().give_back(self.held);
        if self.packets.packets() > 0 {
            self.outbox.accounting().dropped_from_queue(DropReason::WriteError, &self.packets);
        }
    }
}

async fn write_all<W, C>(io: &mut W, mut bytes: &[u8], outbox: &Outbox<C>, limits: WriterLimits) -> Result<(), WriterEnd>
where
    W: AsyncWrite + Unpin,
{
    while !bytes.is_empty() {
        let written = progress(outbox, limits, io.write(bytes)).await?;
        if written == 0 {
            return Err(WriterEnd::Io(io::ErrorKind::WriteZero.into()));
        }
        bytes = &bytes[written..];
    }
    progress(outbox, limits, io.flush()).await
}

/// Waits for one step of a write: notes a stall, and gives up after the deadline.
async fn progress<C, T>(
    outbox: &Outbox<C>,
    limits: WriterLimits,
    step: impl Future<Output = io::Result<T>>,
) -> Result<T, WriterEnd> {
    let mut step = std::pin::pin!(step);
    if let Ok(done) = timeout(limits.stalled_after, &mut step).await {
        return done.map_err(WriterEnd::Io);
    }
    outbox.set_stalled(true);
    let done = timeout(limits.closed_after.saturating_sub(limits.stalled_after), step).await;
    outbox.set_stalled(false);
    done.map_err(|_| WriterEnd::Stalled)?.map_err(WriterEnd::Io)
}

#[cfg(test)]
mod tests;
