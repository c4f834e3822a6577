//! Reads a connection: parses everything the socket gave, then wakes each touched destination once.
