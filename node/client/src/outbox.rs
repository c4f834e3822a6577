//! What a connection has yet to send: frames encoded into one buffer, which the writer task takes whole and writes at once.
//!
//! A sender copies its packet once, under a lock held for that copy alone, and wakes the writer only if the buffer was empty. So a busy
//! connection costs neither a wake-up nor a write per packet.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::BytesMut;
use tokio::sync::Notify;

use crate::error::ConnectionError;
use crate::rate::TokenBucket;

/// Most bytes of packets that wait for the writer. Several of the largest packets fit, and a stalled socket holds little that is stale.
pub(crate) const OUTBOX_LEN_MAX: usize = 256 * 1024;

/// Room above [`OUTBOX_LEN_MAX`] for frames that are not packets (pongs, pings, notes), so that a full box does not silence them.
pub(crate) const OUTBOX_CONTROL_LEN: usize = 4 * 1024;

/// A frame has no room now.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// Wait for [`Outbox::room`].
    Full,
    /// Above the rate that the server announced.
    OverRate,
    /// The connection is over.
    Closed,
}

#[derive(Debug, Default)]
struct State {
    buffer: BytesMut,
    limit: Option<TokenBucket>,
    closed: Option<Arc<ConnectionError>>,
}

/// Shared by all senders of a connection and its writer.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    state: Mutex<State>,
    /// Woken when the buffer stops being empty, and when the connection closes.
    filled: Notify,
    /// Woken when the writer has taken the buffer, and when the connection closes.
    drained: Notify,
}

impl Outbox {
    /// No code panics while it holds this lock; were it so, the buffer would still be whole frames or closed.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends `header` and `payload` of a packet; `cost` is what the server's rate limit counts, `None` if it does not apply.
    pub(crate) fn push_packet(&self, header: &[u8], payload: &[u8], cost: Option<usize>) -> Result<(), Refused> {
        let mut state = self.lock();
        let len = header.len() + payload.len();
        if state.closed.is_some() {
            return Err(Refused::Closed);
        }
        if state.buffer.len() + len > OUTBOX_LEN_MAX {
            return Err(Refused::Full);
        }
        if let (Some(cost), Some(limit)) = (cost, state.limit.as_mut())
            && !limit.take(cost, tokio::time::Instant::now().into_std())
        {
            return Err(Refused::OverRate);
        }
        let was_empty = state.buffer.is_empty();
        state.buffer.extend_from_slice(header);
        state.buffer.extend_from_slice(payload);
        drop(state);
        if was_empty {
            self.filled.notify_one();
        }
        Ok(())
    }

    /// Appends a frame that is not a packet.
    pub(crate) fn push_control(&self, frame: &[u8]) -> Result<(), Refused> {
        let mut state = self.lock();
        if state.closed.is_some() {
            return Err(Refused::Closed);
        }
        if state.buffer.len() + frame.len() > OUTBOX_LEN_MAX + OUTBOX_CONTROL_LEN {
            return Err(Refused::Full);
        }
        state.buffer.extend_from_slice(frame);
        drop(state);
        self.filled.notify_one();
        Ok(())
    }

    /// Waits until the writer has taken what was there, or the connection closed. Make it before the push that it follows:
    /// it remembers a wake-up from its creation on.
    pub(crate) fn room(&self) -> tokio::sync::futures::Notified<'_> {
        self.drained.notified()
    }

    /// Sets or removes the limit that the server announced.
    pub(crate) fn set_limit(&self, limit: Option<TokenBucket>) {
        self.lock().limit = limit;
    }

    /// Ends the connection for senders and writer; the first reason stays.
    pub(crate) fn close(&self, error: Arc<ConnectionError>) -> Arc<ConnectionError> {
        let reason = Arc::clone(self.lock().closed.get_or_insert(error));
        self.filled.notify_one();
        self.drained.notify_waiters();
        reason
    }

    /// Why the connection is over, if it is.
    pub(crate) fn closed(&self) -> Option<Arc<ConnectionError>> {
        self.lock().closed.clone()
    }

    /// Waits for bytes and swaps them with `batch`, which must be empty; `false` once closed and, if by us, drained.
    ///
    /// # Cancel safety
    /// Nothing is taken unless it returns.
    pub(crate) async fn take(&self, batch: &mut BytesMut) -> bool {
        debug_assert!(batch.is_empty());
        loop {
            {
                let mut state = self.lock();
                match state.closed.as_deref() {
                    None => {}
                    // Our own close lets out what was accepted before it.
                    Some(ConnectionError::ClosedByUs) if !state.buffer.is_empty() => {}
                    Some(_) => return false,
                }
                if !state.buffer.is_empty() {
                    std::mem::swap(&mut state.buffer, batch);
                    drop(state);
                    self.drained.notify_waiters();
                    return true;
                }
            }
            // `notify_one` keeps one wake-up for a waiter that comes late, so a push between the check and this line is not missed.
            self.filled.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn over() -> Arc<ConnectionError> {
        Arc::new(ConnectionError::ClosedByUs)
    }

    #[tokio::test]
    async fn a_full_box_refuses_packets_but_takes_control_frames_and_a_taken_batch_makes_room() {
        let outbox = Outbox::default();
        let packet = vec![7; OUTBOX_LEN_MAX / 2];
        assert_eq!(outbox.push_packet(&[], &packet, None), Ok(()));
        assert_eq!(outbox.push_packet(&[1], &packet[1..], None), Ok(()));
        assert_eq!(outbox.push_packet(&[1], &[], None), Err(Refused::Full));
        assert_eq!(outbox.push_control(&[2; OUTBOX_CONTROL_LEN]), Ok(()));
        assert_eq!(outbox.push_control(&[2]), Err(Refused::Full));
        let room = outbox.room();
        let mut batch = BytesMut::new();
        assert!(outbox.take(&mut batch).await);
        assert_eq!(batch.len(), OUTBOX_LEN_MAX + OUTBOX_CONTROL_LEN);
        room.await;
        assert_eq!(outbox.push_packet(&[1], &packet, None), Ok(()));
    }

    #[tokio::test]
    async fn closing_ends_writer_waiters_and_senders_and_keeps_the_first_reason() {
        let outbox = Outbox::default();
        let room = outbox.room();
        outbox.close(over());
        room.await;
        assert!(!outbox.take(&mut BytesMut::new()).await);
        assert_eq!(outbox.push_packet(&[], &[], None), Err(Refused::Closed));
        assert_eq!(outbox.push_control(&[]), Err(Refused::Closed));
        let first = outbox.close(Arc::new(ConnectionError::ClosedByServer));
        assert!(matches!(*first, ConnectionError::ClosedByUs));
    }

    #[tokio::test]
    async fn what_was_accepted_before_our_own_close_is_still_handed_out() {
        let outbox = Outbox::default();
        assert_eq!(outbox.push_packet(&[1], &[2], None), Ok(()));
        outbox.close(over());
        let mut batch = BytesMut::new();
        assert!(outbox.take(&mut batch).await);
        assert_eq!(&batch[..], [1, 2]);
        batch.clear();
        assert!(!outbox.take(&mut batch).await);
    }

    #[tokio::test(start_paused = true)]
    async fn the_announced_rate_drops_what_does_not_fit_and_can_be_lifted() {
        let outbox = Outbox::default();
        outbox.set_limit(TokenBucket::new(100, 100, tokio::time::Instant::now().into_std()));
        assert_eq!(outbox.push_packet(&[], &[0; 60], Some(60)), Ok(()));
        assert_eq!(outbox.push_packet(&[], &[0; 60], Some(60)), Err(Refused::OverRate));
        assert_eq!(outbox.push_packet(&[], &[0; 60], None), Ok(()), "forwarded packets are not limited");
        tokio::time::advance(std::time::Duration::from_secs(1)).await;
        assert_eq!(outbox.push_packet(&[], &[0; 60], Some(60)), Ok(()));
        outbox.set_limit(None);
        assert_eq!(outbox.push_packet(&[], &[0; 60], Some(60)), Ok(()));
    }
}
