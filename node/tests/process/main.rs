//! Real `causewayd` processes: how they start, refuse to start, serve and end.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod harness;
mod lifecycle;
mod limits;
mod operator;
mod relay;
mod startup;
mod stock_metrics;
mod traces;
