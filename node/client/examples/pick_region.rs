//! Measures the regions of a map, nearest first: `cargo run --example pick_region -- --map URL`.
#![allow(clippy::print_stdout, reason = "an example prints")]

mod support;

use causeway_client::measure_regions;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = support::Args::parse()?;
    let map = args.load_map().await?;
    if map.regions.is_empty() {
        anyhow::bail!("the map has no regions");
    }
    let report = measure_regions(&map, args.trust.as_ref()).await;
    println!("measured over {}", if report.udp() { "UDP" } else { "HTTPS: no answer over UDP" });
    if let Some(addr) = report.global_v4 {
        println!("seen as {addr}");
    }
    if let Some(addr) = report.global_v6 {
        println!("seen as {addr}");
    }
    let mut regions: Vec<_> = map.regions.values().collect();
    regions.sort_by_key(|region| {
        let latency = report.latency.get(&region.region_id);
        (latency.is_none(), latency.copied())
    });
    for region in regions {
        let latency = report.latency.get(&region.region_id);
        let latency = latency.map_or_else(|| "no answer".to_owned(), |latency| format!("{latency:?}"));
        println!("{:>6}  {:8}  {:24}  {latency}", region.region_id.to_string(), region.region_code, region.region_name);
    }
    Ok(())
}
