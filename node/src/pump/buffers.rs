//! Memory for reading and writing that no idle connection holds: one pool per thread.

use std::cell::RefCell;

use bytes::BytesMut;
use causeway_proto::limits::LINK_BODY_LEN_MAX;

/// Size of a fresh read chunk. Frames are sliced out of it without copying; what is left serves the next read on this thread.
const CHUNK: usize = 64 * 1024;

/// Least room to offer a read: the plaintext of one TLS record.
pub(super) const READ_ROOM: usize = 16 * 1024;

/// Most that one frame cut from a chunk may keep from being freed: the chunk for the greatest frame of a packet.
pub(super) const CHUNK_MAX: usize = CHUNK + 2 * READ_ROOM;

const _: () = assert!(
    LINK_BODY_LEN_MAX + READ_ROOM + READ_ROOM / 2 <= CHUNK_MAX,
    "the longest frame of a packet, all but a byte of it, and room"
);

/// Write buffers kept per thread, and the largest worth keeping: a full batch and one packet of the greatest size beyond it.
const WRITE_BUFFERS: usize = 4;
const WRITE_BUFFER_MAX: usize = 256 * 1024;

thread_local! {
    static READ: RefCell<BytesMut> = RefCell::default();
    static WRITE: RefCell<Vec<BytesMut>> = const { RefCell::new(Vec::new()) };
}

/// Gives `pending` room for a read, keeping its bytes.
pub(super) fn ensure_read_room(pending: &mut BytesMut) {
    if pending.capacity() - pending.len() >= READ_ROOM {
        return;
    }
    let wanted = pending.len() + READ_ROOM;
    let mut chunk = READ.with_borrow_mut(std::mem::take);
    if chunk.capacity() < wanted {
        chunk = BytesMut::with_capacity(CHUNK.max(wanted));
    }
    chunk.extend_from_slice(pending);
    *pending = chunk;
}

/// Takes the unused room from `pending`, which keeps exactly its bytes.
pub(super) fn release_read_room(pending: &mut BytesMut) {
    let room = pending.split_off(pending.len());
    *pending = if pending.is_empty() { BytesMut::new() } else { BytesMut::from(&pending[..]) };
    if room.capacity() >= READ_ROOM {
        READ.set(room);
    }
}

/// An empty buffer to write into.
pub(super) fn take_write_buffer() -> BytesMut {
    WRITE.with_borrow_mut(Vec::pop).unwrap_or_default()
}

/// Returns a write buffer for reuse.
pub(super) fn return_write_buffer(mut buffer: BytesMut) {
    buffer.clear();
    if buffer.capacity() <= WRITE_BUFFER_MAX {
        WRITE.with_borrow_mut(|pool| {
            if pool.len() < WRITE_BUFFERS {
                pool.push(buffer);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn released_room_serves_the_next_read_and_pending_bytes_survive() {
        let mut pending = BytesMut::new();
        ensure_read_room(&mut pending);
        let chunk = pending.as_ptr();
        pending.extend_from_slice(b"frame");
        let frame = pending.split_to(5).freeze();
        release_read_room(&mut pending);
        assert_eq!(pending.capacity(), 0, "an idle connection holds nothing");
        ensure_read_room(&mut pending);
        assert_eq!(pending.as_ptr() as usize, chunk as usize + 5, "the same chunk goes on behind the frame");
        pending.extend_from_slice(b"part");
        release_read_room(&mut pending);
        assert_eq!((&pending[..], &frame[..]), (&b"part"[..], &b"frame"[..]));
        ensure_read_room(&mut pending);
        assert_eq!(&pending[..], b"part");
    }
}
