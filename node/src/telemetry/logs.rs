//! Log lines on standard error, as text or JSON, and the layer that hands spans to the trace exporter.

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{EnvFilter, Layer, Registry, reload};

use super::stderr::StandardError;
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

/// Changes the filter of a process that logs.
#[derive(Debug, Clone)]
pub struct LogFilter {
    handle: reload::Handle<EnvFilter, Registry>,
}

impl LogFilter {
    /// Goes on with another filter.
    ///
    /// # Errors
    /// [`LogsError::Filter`].
    pub fn set(&self, filter: &str) -> Result<(), LogsError> {
        // The subscriber lives as long as the process.
        drop(self.handle.reload(self::filter(filter)?));
        Ok(())
    }
}

/// Makes this process log, and trace if `traces` is given.
///
/// # Errors
/// [`LogsError`].
pub fn init(filter: &str, format: LogFormat, traces: Option<&Traces>) -> Result<LogFilter, LogsError> {
    let lines = tracing_subscriber::fmt::layer().with_writer(|| StandardError);
    let lines = match format {
        LogFormat::Text => lines.with_ansi(false).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    let (filter, handle) = reload::Layer::new(self::filter(filter)?);
    tracing_subscriber::registry().with(lines.with_filter(filter)).with(traces.map(Traces::layer)).try_init()?;
    Ok(LogFilter { handle })
}

fn filter(configured: &str) -> Result<EnvFilter, LogsError> {
    Ok(EnvFilter::builder().parse(format!("{QUIETER},{configured}"))?)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::*;

    fn logged(configured: &str) -> String {
        let written = Arc::new(Mutex::new(Vec::new()));
        let writer = Arc::clone(&written);
        let lines = tracing_subscriber::fmt::layer().with_writer(move || Buffer(Arc::clone(&writer)));
        let subscriber = tracing_subscriber::registry().with(lines.with_filter(filter(configured).expect("directives")));
        tracing::subscriber::with_default(subscriber, || {
            tracing::error!(target: "openraft::raft::raft_inner", "of the library");
            tracing::info!("of ours");
        });
        let bytes = std::mem::take(&mut *written.lock());
        String::from_utf8(bytes).expect("text")
    }

    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Buffer {
        fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
            self.0.lock().extend_from_slice(line);
            Ok(line.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn libraries_are_quiet_unless_the_configuration_says_otherwise() {
        let default = logged("info");
        assert!(default.contains("of ours") && !default.contains("of the library"), "{default}");
        assert!(logged("info,openraft=error").contains("of the library"));
    }
}
