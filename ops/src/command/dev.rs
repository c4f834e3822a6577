//! `causeway dev`: a fleet in the foreground, and acting on one node of it from another process.

use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::interrupted;
use crate::cli::{DevAction, DevArgs, DevNode, DevRunArgs};
use crate::failure::Failure;
use crate::fleet::dev::{self, DevFleet};
use crate::fleet::node;
use crate::fleet::process::Stopped;
use crate::fleet::progress::Progress;
use crate::fleet::ready::FleetReady;
use crate::fleet::sweeper;
use crate::output::Output;

/// Runs `causeway dev ...`.
///
/// # Errors
/// See [`Failure`].
pub async fn run(args: DevArgs, output: &mut Output<'_>) -> Result<(), Failure> {
    match args.action {
        None => run_fleet(&args.run, output).await,
        Some(DevAction::Stop(node)) => stop(&node, output).await,
        Some(DevAction::Kill(node)) => kill(&node, output).await,
        Some(DevAction::Start(node)) => start(&node, output).await,
        Some(DevAction::Sweep { leash, fleet, remove }) => Ok(sweeper::run(&leash, &fleet, remove.as_deref()).await?),
    }
}

async fn run_fleet(args: &DevRunArgs, output: &mut Output<'_>) -> Result<(), Failure> {
    // Before anything is made: a signal from here on ends in taking everything down.
    let stop = interrupted()?;
    let progress = Progress::start("causeway dev");
    let mut fleet = DevFleet::lay_out(args, progress)?;
    let ran = serve(&mut fleet, &stop, output).await;
    let down = fleet.down().await;
    ran?;
    Ok(down?)
}

async fn serve(fleet: &mut DevFleet, stop: &CancellationToken, output: &mut Output<'_>) -> Result<(), Failure> {
    let Some(ready) = stop.run_until_cancelled(fleet.bring_up()).await else { return Ok(()) };
    let ready = ready?;
    output.one(&ready, || summary(&ready, fleet))?;
    stop.cancelled().await;
    Ok(())
}

fn summary(ready: &FleetReady, fleet: &DevFleet) -> String {
    let dir = fleet.dir().path().display();
    format!(
        "DERP map   {}   (trust {})\nnext       export CAUSEWAY_SOCKET={}\n           causeway cluster status\n           \
         causeway presence ls\n           causeway dev kill {} --dir {dir}\nCtrl-C takes the fleet down.\n",
        ready.derpmap_url,
        ready.ca_file.display(),
        ready.operator_socket.display(),
        ready.nodes.last().map_or("a-1", |node| node.name.as_str()),
    )
}

#[derive(Serialize)]
struct Acted<'a> {
    node: &'a str,
    /// Whether the node ran before.
    ran: bool,
}

async fn stop(args: &DevNode, output: &mut Output<'_>) -> Result<(), Failure> {
    let (_, found) = dev::find(&args.dir, &args.node)?;
    let stopped = node::stop(&found).await?;
    let acted = Acted { node: &args.node, ran: stopped != Stopped::WasGone };
    let how = match stopped {
        Stopped::WasGone => "did not run",
        Stopped::Orderly => "is stopped",
        Stopped::Killed => "did not end in time and was killed",
    };
    Ok(output.one(&acted, || format!("{} {how}", args.node))?)
}

async fn kill(args: &DevNode, output: &mut Output<'_>) -> Result<(), Failure> {
    let (_, found) = dev::find(&args.dir, &args.node)?;
    let ran = node::kill(&found).await?;
    let how = if ran { "is killed" } else { "did not run" };
    Ok(output.one(&Acted { node: &args.node, ran }, || format!("{} {how}", args.node))?)
}

async fn start(args: &DevNode, output: &mut Output<'_>) -> Result<(), Failure> {
    let (fleet, found) = dev::find(&args.dir, &args.node)?;
    let started = dev::start_again(&fleet, &found).await?;
    Ok(output.one(&started, || format!("{} serves: DERP {}, process {}", started.name, started.derp, started.pid))?)
}
