//! What the process says of itself: logs, metrics, traces.

pub mod exporter;
pub mod grpc;
pub mod logs;
pub mod process;
pub mod stderr;
pub mod traces;
