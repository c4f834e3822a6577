//! Metrics of the process itself, read when asked for.

use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use super::stderr;

/// Panics of any thread since start. A panic ends one connection only, and must be 0 in every test.
static PANICS: AtomicU64 = AtomicU64::new(0);

/// Counts and logs panics from now on.
pub fn count_panics() {
    std::panic::set_hook(Box::new(|info| {
        PANICS.fetch_add(1, Ordering::Relaxed);
        let location = info.location().map(ToString::to_string).unwrap_or_default();
        let message = info.payload_as_str().unwrap_or("no message");
        tracing::error!(location, message, "a task panicked");
    }));
}

/// `causeway_process_*`.
#[derive(Debug)]
pub struct ProcessMetrics;

impl Collector for ProcessMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let gauges = [
            ("causeway_process_resident_memory_bytes", "Memory of the process that is in RAM", resident_bytes()),
            ("causeway_process_open_fds", "Open file descriptors", open_fds()),
            ("causeway_process_threads", "Threads", threads()),
        ];
        for (name, help, value) in gauges {
            let Some(value) = value else { continue };
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        let panics = ConstCounter::new(PANICS.load(Ordering::Relaxed));
        let help = "Panics of any thread since start";
        panics.encode(encoder.encode_descriptor("causeway_process_panics", help, None, panics.metric_type())?)?;
        let lost = ConstCounter::new(stderr::lost_lines());
        let help = "Log lines lost since start because standard error did not take them";
        lost.encode(encoder.encode_descriptor("causeway_log_lost_lines", help, None, lost.metric_type())?)
    }
}

/// Memory of the process that is in RAM; `None` where the system does not tell.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?.trim().strip_suffix(" kB")?;
    kib.parse::<u64>().ok().map(|kib| kib * 1024)
}

fn open_fds() -> Option<u64> {
    Some(std::fs::read_dir("/proc/self/fd").ok()?.count() as u64)
}

fn threads() -> Option<u64> {
    Some(std::fs::read_dir("/proc/self/task").ok()?.count() as u64)
}

#[cfg(test)]
mod tests {
    use crate::telemetry::exporter::{Exporter, registry};

    #[test]
    fn the_process_shows_its_memory_descriptors_threads_and_panics() {
        let text = Exporter::new(registry()).text().expect("text");
        let value = |name: &str| -> f64 {
            let line = text
                .lines()
                .find(|line| line.starts_with(&format!("causeway_{name} ")))
                .unwrap_or_else(|| panic!("{name}: {text}"));
            line.rsplit(' ').next().and_then(|value| value.parse().ok()).expect("a number")
        };
        assert!(
            value("process_resident_memory_bytes") > 1e6 && value("process_open_fds") > 2.0 && value("process_threads") >= 1.0
        );
        assert!(text.contains("causeway_process_panics_total 0") && text.contains("causeway_log_lost_lines_total 0"), "{text}");
        assert!(text.ends_with("# EOF\n"));
    }
}
