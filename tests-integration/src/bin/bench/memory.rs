//! What an idle TLS client costs a node in resident memory.

use std::path::Path;

use causeway_client::Connection;

use super::process::resident_bytes;
use super::relay::{Derper, Door, fleet};

const STEPS: [usize; 2] = [1_000, 5_000];

async fn fill(name: &str, door: &Door, pid: u32) -> anyhow::Result<()> {
    // One client before counting: whatever is made once is made.
    let mut clients: Vec<Connection> = vec![door.log_in().await?.0];
    let empty = resident_bytes(pid)?;
    for step in STEPS {
        while clients.len() <= step {
            clients.push(door.log_in().await?.0);
        }
        let each = (resident_bytes(pid)? - empty) as f64 / 1024.0 / step as f64;
        println!("  {name:32} {step:5} clients   {each:6.1} KiB each");
    }
    Ok(())
}

pub(crate) async fn run(derper: Option<&Path>) -> anyhow::Result<()> {
    println!("\nmemory: resident bytes of the node per idle TLS client");
    let cluster = fleet(1, 1).await?;
    let node = cluster.node("a-1");
    fill("causewayd", &Door::of(&cluster, node)?, node.pid).await?;
    if let Some(program) = derper {
        let stock = Derper::start(program).await?;
        fill("stock derper", &stock.door(), stock.pid()).await?;
    }
    Ok(())
}
