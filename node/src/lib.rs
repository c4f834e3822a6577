//! A Causeway node as a library; `causewayd` is a thin binary on it.

pub mod admission;
pub mod app;
pub mod clients;
pub mod config;
pub mod derp_mesh;
pub mod forward;
mod http_client;
pub mod ingress;
pub mod lifecycle;
pub mod limits;
pub mod mesh;
pub mod operator;
pub mod pump;
pub mod router;
pub mod telemetry;
