//! How soon a client is reachable: from "login answered at A" to "routable at B", by watch and by Raft.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use causeway_rpc::v1::{GetPresenceRequest, WatchPresenceRequest};

use super::relay::{Door, fleet};
use super::statistics::percentile;

const LOGINS: usize = 500;
const DEADLINE: Duration = Duration::from_secs(5);

fn wall_clock_us() -> anyhow::Result<f64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64() * 1e6)
}

pub(crate) async fn run() -> anyhow::Result<()> {
    let cluster = fleet(3, 1).await?;
    let door = Door::of(&cluster, cluster.node("a-1"))?;
    let mut operator = cluster.operator("b-1").await?;
    let mut changes =
        operator.watch_presence(WatchPresenceRequest { key: Vec::new().into(), changes_only: true }).await?.into_inner();
    let (mut by_watch, mut by_raft) = (Vec::with_capacity(LOGINS), Vec::with_capacity(LOGINS));
    for _ in 0..LOGINS {
        let (connection, key) = door.log_in().await?;
        let (answered_us, answered) = (wall_clock_us()?, Instant::now());
        let wanted = key.public();
        // The node stamps the change when its router begins to count the claim.
        let at_us = tokio::time::timeout(DEADLINE, async {
            loop {
                let change = changes.message().await?.context("the watch ended")?;
                if change.change == "claimed" && change.key.as_ref() == wanted.as_bytes() {
                    return anyhow::Ok(change.at_us as f64);
                }
            }
        })
        .await
        .context("the claim never reached b-1")??;
        // Published before the login is answered: it may be there first.
        by_watch.push((at_us - answered_us).max(0.0) / 1e3);
        let request = GetPresenceRequest { key: wanted.as_bytes().to_vec().into(), consistent: true };
        while operator.get_presence(request.clone()).await.is_err() {
            anyhow::ensure!(answered.elapsed() < DEADLINE, "the claim was never committed");
        }
        by_raft.push(answered.elapsed().as_secs_f64() * 1e3);
        connection.sender().close().await;
    }
    println!("\npresence: login answered at a-1 -> routable at b-1, three nodes, {LOGINS} logins");
    for (name, sample) in [("by watch", &mut by_watch), ("by Raft (consistent read)", &mut by_raft)] {
        println!("  {name:32} p50 {:6.2} ms   p99 {:6.2} ms", percentile(sample, 50.0), percentile(sample, 99.0));
    }
    Ok(())
}
