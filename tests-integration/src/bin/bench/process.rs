//! What the kernel says of a process: CPU time and resident memory.

use anyhow::Context as _;

/// CPU seconds a process has used, user and system.
pub(crate) fn cpu_seconds(pid: u32) -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("process {pid}"))?;
    // The name in parentheses may hold anything; what follows is plain. Fields 14 and 15 are user and system time.
    let (_, fields) = stat.rsplit_once(')').context("/proc/PID/stat")?;
    let mut fields = fields.split_ascii_whitespace().skip(11);
    let mut ticks = || fields.next().and_then(|field| field.parse::<u64>().ok()).context("/proc/PID/stat");
    Ok((ticks()? + ticks()?) as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// Resident memory in bytes.
pub(crate) fn resident_bytes(pid: u32) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).with_context(|| format!("process {pid}"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().context("VmRSS")?;
    Ok(kib * 1024)
}

/// Prints the machine, so that a record of the figures says where they come from.
pub(crate) fn describe_machine() {
    let read = |file: &str| std::fs::read_to_string(file).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or(": unknown");
    let cores = cpuinfo.lines().filter(|line| line.starts_with("processor")).count();
    let memory = read("/proc/meminfo").lines().next().unwrap_or_default().replace("MemTotal:", "");
    let kernel = read("/proc/sys/kernel/osrelease");
    println!(
        "machine: {cores} cores,{}, memory {}, Linux {}",
        model.trim_start_matches([' ', '\t', ':']),
        memory.trim(),
        kernel.trim()
    );
}
