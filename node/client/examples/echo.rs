//! Sends every packet back to its sender, through cuts and restarts: `cargo run --example echo -- --map URL`.
#![allow(clippy::print_stdout, reason = "an example prints")]

mod support;

use causeway_client::{ClientEvent, Event};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = support::Args::parse()?;
    let (tasks, cancel) = (TaskTracker::new(), CancellationToken::new());
    let key = causeway_proto::key::NodePrivate::generate();
    println!("echo as {}", key.public().to_text());
    let mut client = args.builder().await?.key(key).app_name("echo").start(&tasks, &cancel)?;
    let handle = client.handle().clone();
    while let Some(event) = client.recv().await {
        match event {
            ClientEvent::Connected { generation, region, info } => {
                let region = region.map_or_else(|| "-".to_owned(), |region| region.to_string());
                println!(
                    "connected: node {}, region {region}, generation {generation}, fast start {}",
                    info.node, info.fast_start
                );
            }
            ClientEvent::Disconnected { reason, retry_in, .. } => println!("disconnected: {reason}; next try in {retry_in:?}"),
            ClientEvent::ConnectFailed { error, retry_in, .. } => println!("not connected: {error}; next try in {retry_in:?}"),
            ClientEvent::HomeChanged { to, latency, .. } => println!("home region {to}, latency {latency:?}"),
            ClientEvent::Received { event: Event::Packet { src, payload }, .. } => {
                if let Err(error) = handle.send(&src, &payload).await {
                    println!("not echoed: {error}");
                }
            }
            ClientEvent::Received { event, .. } => println!("{event:?}"),
            _ => {}
        }
    }
    Ok(())
}
