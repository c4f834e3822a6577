//! Log lines on standard error, as text or JSON, and the layer that hands spans to the trace exporter.

use std::io;

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{EnvFilter, Layer};

use super::traces::Traces;
use crate::config::LogFormat;

/// The log filter or the process's subscriber cannot be set.
#[derive(Debug, thiserror::Error)]
pub enum LogsError {
    /// `log.filter` does not parse.
    #[error("log.filter: {0}")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    /// There is a subscriber already.
    #[error(transparent)]
    Taken(#[from] TryInitError),
}

/// Libraries whose lines are only for their own authors: what matters of Raft, the control plane says itself. The configured filter comes after and may say otherwise.
const QUIETER: &str = "openraft=off,chunked_wal=warn,raft_log=warn";

/// Makes this process log, and trace if `traces` is given.
///
/// # Errors
/// [`LogsError`].
pub fn init(filter: &str, format: LogFormat, traces: Option<&Traces>) -> Result<(), LogsError> {
    let filter = EnvFilter::builder().parse(format!("{QUIETER},{filter}"))?;
    let lines = tracing_subscriber::fmt::layer().with_writer(io::stderr);
    let lines = match format {
        LogFormat::Text => lines.with_ansi(false).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    tracing_subscriber::registry().with(lines.with_filter(filter)).with(traces.map(Traces::layer)).try_init()?;
    Ok(())
}
