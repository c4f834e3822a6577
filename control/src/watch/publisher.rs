//! One follower's stream of this node's owner log. Pulled by the transport: what is not yet asked for is not yet made, so a slow
//! follower costs nothing but its place in the log, and operations coalesce exactly while it is busy.

use std::sync::Arc;

use causeway_proto::id::NodeId;
use causeway_proto::presence::{PACKED_OP_LEN, pack_ops};
use causeway_rpc::v1;
use causeway_rpc::v1::watch_message::Message;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{WATCH_HEARTBEAT_INTERVAL, WATCH_OPS_BYTES_MAX, WatchMetrics, micros};
use crate::config::WallClock;
use crate::presence::view::Cursor;
use crate::presence::{OwnerLog, OwnerSnapshot};

/// Operations in one delta: small enough that a heartbeat never waits long behind one on a slow path.
const DELTA_BYTES_MAX: usize = 256 << 10;
/// Claims in one piece of a snapshot.
const PIECE_BYTES_MAX: usize = WATCH_OPS_BYTES_MAX / PACKED_OP_LEN * PACKED_OP_LEN;

/// What comes next on the stream.
enum Phase {
    Hello,
    Snapshot { snapshot: OwnerSnapshot, sent: usize },
    Deltas,
}

pub(super) struct Publisher {
    log: OwnerLog,
    last_seq: watch::Receiver<u64>,
    live: watch::Receiver<Arc<[NodeId]>>,
    clock: WallClock,
    metrics: WatchMetrics,
    cancel: CancellationToken,
    phase: Phase,
    resumed: bool,
    next_seq: u64,
    heartbeat_due: Instant,
}

impl Publisher {
    pub(super) fn new(
        log: OwnerLog,
        live: watch::Receiver<Arc<[NodeId]>>,
        clock: WallClock,
        metrics: WatchMetrics,
        cancel: CancellationToken,
        cursor: Cursor,
    ) -> Self {
        let own = log.identity();
        let same_process = (cursor.epoch, cursor.boot_id) == (own.epoch, own.boot_id);
        let resumed = same_process && log.ops_from(cursor.next_seq, 0).is_ok();
        let last_seq = log.subscribe();
        let heartbeat_due = Instant::now() + WATCH_HEARTBEAT_INTERVAL;
        let next_seq = cursor.next_seq;
        Self { log, last_seq, live, clock, metrics, cancel, phase: Phase::Hello, resumed, next_seq, heartbeat_due }
    }

    /// The next message; `None` when the stream is to end.
    pub(super) async fn next(&mut self) -> Option<v1::WatchMessage> {
        loop {
            if self.cancel.is_cancelled() {
                return None;
            }
            if let Some(message) = self.ready() {
                return Some(v1::WatchMessage { message: Some(message) });
            }
            // All of these may be dropped and waited for again. A closed channel would mean that the node is gone.
            let alive = tokio::select! {
                () = self.cancel.cancelled() => false,
                changed = self.last_seq.changed() => changed.is_ok(),
                changed = self.live.changed() => {
                    self.heartbeat_due = Instant::now();
                    changed.is_ok()
                }
                () = tokio::time::sleep_until(self.heartbeat_due) => true,
            };
            if !alive {
                return None;
            }
        }
    }

    /// What can be said at once.
    fn ready(&mut self) -> Option<Message> {
        match &mut self.phase {
            Phase::Hello => {
                let message = self.hello();
                self.phase = if self.resumed { Phase::Deltas } else { self.snapshot() };
                return Some(message);
            }
            Phase::Snapshot { snapshot, sent } => {
                let end = snapshot.packed.len().min(*sent + PIECE_BYTES_MAX);
                let ops = snapshot.packed.slice(*sent..end);
                let (seq, last) = (snapshot.seq, end == snapshot.packed.len());
                *sent = end;
                if last {
                    self.next_seq = seq + 1;
                    self.phase = Phase::Deltas;
                    self.metrics.snapshots_sent.inc();
                }
                return Some(Message::Snapshot(v1::WatchSnapshot { seq, ops, last }));
            }
            Phase::Deltas => {}
        }
        if Instant::now() >= self.heartbeat_due {
            return Some(self.heartbeat());
        }
        let last_seq = *self.last_seq.borrow_and_update();
        match self.log.ops_from(self.next_seq, DELTA_BYTES_MAX) {
            Ok(batch) if batch.ops.is_empty() => {
                debug_assert!(self.next_seq > last_seq, "everything announced is in the log");
                None
            }
            Ok(batch) => {
                self.next_seq = batch.next_seq();
                self.metrics.operations_sent.inc_by(batch.ops.len() as u64);
                Some(Message::Delta(v1::WatchDelta { first_seq: batch.first_seq, ops: pack_ops(&batch.ops) }))
            }
            Err(_) => {
                self.phase = self.snapshot();
                self.ready()
            }
        }
    }

    fn snapshot(&self) -> Phase {
        Phase::Snapshot { snapshot: self.log.snapshot(), sent: 0 }
    }

    fn hello(&self) -> Message {
        let own = self.log.identity();
        Message::Hello(v1::WatchHello {
            node_id: own.node.0,
            epoch: own.epoch.0,
            boot_id: own.boot_id.0.to_vec().into(),
            clock_us: micros((self.clock)()),
            resumed: self.resumed,
        })
    }

    fn heartbeat(&mut self) -> Message {
        self.heartbeat_due = Instant::now() + WATCH_HEARTBEAT_INTERVAL;
        let hears = self.live.borrow_and_update().iter().map(|node| node.0).collect();
        Message::Heartbeat(v1::WatchHeartbeat { clock_us: micros((self.clock)()), seq: self.log.last_seq(), hears })
    }
}
