//! Writes a connection: drains the lanes into one buffer, one write per batch.
