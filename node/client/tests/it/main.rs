//! The client against real servers on loopback: a scripted one built from the protocol's server side, and a stock derper.
#![allow(clippy::unwrap_used, clippy::unwrap_in_result, clippy::print_stderr, reason = "tests")]

mod connection;
mod dial;
mod netcheck;
mod proxy;
mod reconnect;
mod server;
mod server_key;
mod stock_derper;
mod trust;
mod watch;
