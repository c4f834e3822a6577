//! Tests of the whole: fleets of real processes, the repository's own rules.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests; a skipped one says so")]

mod bad_bytes;
mod boundaries;
mod clones;
mod demo;
mod derp;
mod derp_mesh;
mod derper_http;
mod derper_replaced;
mod derpmap;
mod dev;
mod dns;
mod drain;
mod failover;
mod interop;
mod load;
mod local;
mod lost_region;
mod machine_faults;
mod mesh;
mod operator;
mod presence;
mod proxies;
mod self_signed;
mod silent_regions;
mod standalone;
mod startup_errors;
mod stun;
mod terraform;
mod traces;
mod websocket;
