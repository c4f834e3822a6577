//! Tests of the whole: fleets of real processes, the repository's own rules.

#![allow(clippy::unwrap_used, reason = "tests")]

mod boundaries;
