//! What moving a gigabyte costs: 1,400-byte packets over TLS, on one node, over one hop, and on a stock derper.

use std::path::Path;

use super::flow::{Pair, run_all};
use super::process::cpu_seconds;
use super::relay::{Derper, Door, fleet};
use super::statistics::median;

const PAIRS: usize = 8;
const PACKETS_EACH: usize = 40_000;
const PAYLOAD_LEN: usize = 1_400;

struct Setting {
    name: &'static str,
    from: Door,
    to: Door,
    pids: Vec<u32>,
    cpu_per_gb: Vec<f64>,
    packets_per_second: Vec<f64>,
}

impl Setting {
    fn new(name: &'static str, from: Door, to: Door, pids: Vec<u32>) -> Self {
        Self { name, from, to, pids, cpu_per_gb: Vec::new(), packets_per_second: Vec::new() }
    }

    fn cpu(&self) -> anyhow::Result<f64> {
        self.pids.iter().map(|pid| cpu_seconds(*pid)).sum()
    }

    async fn measure(&mut self) -> anyhow::Result<()> {
        let mut pairs = Vec::with_capacity(PAIRS);
        for _ in 0..PAIRS {
            pairs.push(Pair::connect(&self.from, &self.to).await?);
        }
        let before = self.cpu()?;
        let seconds = run_all(pairs, PACKETS_EACH, PAYLOAD_LEN).await?;
        let packets = (PAIRS * PACKETS_EACH) as f64;
        self.cpu_per_gb.push((self.cpu()? - before) / (packets * PAYLOAD_LEN as f64 / 1e9));
        self.packets_per_second.push(packets / seconds);
        Ok(())
    }
}

pub(crate) async fn run(derper: Option<&Path>, rounds: usize) -> anyhow::Result<()> {
    let cluster = fleet(2, 1).await?;
    let (a, b) = (cluster.node("a-1"), cluster.node("b-1"));
    let (door_a, door_b) = (Door::of(&cluster, a)?, Door::of(&cluster, b)?);
    let mut settings = vec![
        Setting::new("one node", door_a.clone(), door_a.clone(), vec![a.pid]),
        Setting::new("one hop (two nodes together)", door_a, door_b, vec![a.pid, b.pid]),
    ];
    let stock = match derper {
        Some(program) => Some(Derper::start(program).await?),
        None => None,
    };
    if let Some(stock) = &stock {
        settings.push(Setting::new("stock derper, one node", stock.door(), stock.door(), vec![stock.pid()]));
    }
    for _ in 0..rounds {
        // There and back: whatever drifts hits all alike.
        for setting in &mut settings {
            setting.measure().await?;
        }
        for setting in settings.iter_mut().rev() {
            setting.measure().await?;
        }
    }
    println!("\nforward: {PAIRS} pairs, {PAYLOAD_LEN}-byte packets over TLS, {} runs each, medians", 2 * rounds);
    for setting in &mut settings {
        let (cpu, rate) = (median(&mut setting.cpu_per_gb), median(&mut setting.packets_per_second));
        println!("  {:32} {cpu:6.2} CPU-s per GB   {rate:9.0} packets/s (load generator on the same cores)", setting.name);
    }
    Ok(())
}
