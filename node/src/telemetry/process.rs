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
        let cpu = ConstCounter::new(cpu_seconds().unwrap_or_default());
        let (name, help) = ("causeway_process_cpu_seconds", "Time on processors, user and system");
        cpu.encode(encoder.encode_descriptor(name, help, None, cpu.metric_type())?)?;
        let gauges = [
            ("causeway_process_resident_memory_bytes", "Memory of the process that is in RAM", resident_bytes()),
            ("causeway_process_open_fds", "Open file descriptors", open_fds()),
            ("causeway_process_max_fds", "Most file descriptors the process may have open", max_fds()),
            ("causeway_process_virtual_memory_bytes", "Address space of the process", virtual_bytes()),
            ("causeway_process_start_time_seconds", "Start of the process, since the Unix epoch", start_time_seconds()),
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
    status_bytes("VmRSS:")
}

fn virtual_bytes() -> Option<u64> {
    status_bytes("VmSize:")
}

fn status_bytes(field: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let kib = status.lines().find_map(|line| line.strip_prefix(field))?.trim().strip_suffix(" kB")?;
    kib.parse::<u64>().ok().map(|kib| kib * 1024)
}

/// Ticks of `/proc` per second: fixed in the kernel's interface.
const TICKS_PER_SECOND: u64 = 100;

/// Field of `/proc/self/stat`, counted from 1 as in its manual.
fn stat_field(number: usize) -> Option<u64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The second field is a name in parentheses, which may hold spaces.
    stat.rsplit_once(") ")?.1.split(' ').nth(number.checked_sub(3)?)?.parse().ok()
}

fn cpu_seconds() -> Option<f64> {
    Some((stat_field(14)? + stat_field(15)?) as f64 / TICKS_PER_SECOND as f64)
}

fn start_time_seconds() -> Option<u64> {
    Some(boot_time_seconds()? + stat_field(22)? / TICKS_PER_SECOND)
}

/// Boot of the machine, in seconds since the Unix epoch.
#[must_use]
pub fn boot_time_seconds() -> Option<u64> {
    std::fs::read_to_string("/proc/stat").ok()?.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

fn max_fds() -> Option<u64> {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).current
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
            value("process_max_fds") > 2.0
                && value("process_cpu_seconds_total") >= 0.0
                && value("process_start_time_seconds") > 1e9
                && value("process_virtual_memory_bytes") > value("process_resident_memory_bytes")
        );
        assert!(
            value("process_resident_memory_bytes") > 1e6 && value("process_open_fds") > 2.0 && value("process_threads") >= 1.0
        );
        assert!(text.contains("causeway_process_panics_total 0") && text.contains("causeway_log_lost_lines_total 0"), "{text}");
        assert!(text.ends_with("# EOF\n"));
    }
}
