//! `causeway demo`: a fleet, a tour of it, and nothing left behind.

use crate::cli::DemoArgs;
use crate::command::interrupted;
use crate::demo::bring_up::DemoFleet;
use crate::demo::tour;
use crate::failure::Failure;
use crate::fleet::progress::Progress;
use crate::output::Output;

/// Runs `causeway demo`.
///
/// # Errors
/// See [`Failure`].
pub async fn run(args: &DemoArgs, output: &mut Output<'_>) -> Result<(), Failure> {
    // Before anything is made: a signal from here on ends in taking everything down.
    let stop = interrupted()?;
    let mut fleet = DemoFleet::prepare(args, Progress::start("causeway demo"))?;
    let shown = stop
        .run_until_cancelled(async {
            let ready = fleet.bring_up().await?;
            tour::run(&fleet, &ready, !args.once, output).await
        })
        .await;
    let down = fleet.down().await;
    // Interrupting the demo is how it ends.
    shown.unwrap_or(Ok(()))?;
    Ok(down?)
}
