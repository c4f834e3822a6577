//! Real `causewayd` processes: how they start, refuse to start, serve and end.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr, reason = "tests; a skipped one says so")]

mod acme;
mod front;
mod harness;
mod lifecycle;
mod limits;
mod operator;
mod pebble;
mod relay;
mod startup;
mod stock_metrics;
mod traces;
