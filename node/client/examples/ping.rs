//! Connects once, says how, and pings the server: `cargo run --example ping -- --address HOST:PORT --ca FILE`.
#![allow(clippy::print_stdout, reason = "an example prints")]

mod support;

use std::time::Duration;

use causeway_client::ConnectError;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

const PINGS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(200);

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = support::Args::parse()?;
    let (tasks, cancel) = (TaskTracker::new(), CancellationToken::new());
    let builder = args.builder().await?.preferred(false).app_name("ping");
    let started = Instant::now();
    let connection = match builder.connect(&tasks, &cancel).await {
        Ok(connection) => connection,
        Err(error @ ConnectError::Config(_)) => anyhow::bail!("{error}\n{}", support::USAGE),
        Err(error) => return Err(error.into()),
    };
    let info = connection.info();
    println!("connected to {} at {} in {:?}", info.node, info.remote_addr, started.elapsed());
    println!("server key {}, fast start {}", info.server_key.to_text(), info.fast_start);
    let (sender, mut receiver) = connection.split();
    // Pongs arrive only while somebody receives.
    tasks.spawn(async move { while receiver.recv().await.is_ok() {} });
    for n in 1..=PINGS {
        println!("ping {n}: {:?}", sender.ping().await?);
        tokio::time::sleep(PAUSE).await;
    }
    sender.close().await;
    Ok(())
}
