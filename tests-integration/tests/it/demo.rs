//! `make demo`: the whole tour, once, by Terraform where it is installed and without.

use std::process::{Command, Stdio};

use anyhow::ensure;
use causeway_tests_integration::cluster::Turn;
use causeway_tests_integration::programs::{Programs, repository};

async fn tour(by: &str) -> anyhow::Result<()> {
    let programs = Programs::get()?;
    let _turn = Turn::take().await?;
    // Where the demo works, so that what it leaves is seen.
    let temporary = tempfile::Builder::new().prefix("cwdemo").tempdir()?;
    let output = Command::new(programs.causeway())
        .args(["demo", "--once", "--by", by])
        .env("TMPDIR", temporary.path())
        .current_dir(repository())
        .stdin(Stdio::null())
        .output()?;
    let (shown, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{}\n{shown}\n{said}", output.status);
    ensure!(shown.matches("20 of 20").count() == 6, "every ordered pair of regions: {shown}");
    ensure!(shown.contains("200 of 200 packets arrived"), "the others carry on: {shown}");
    ensure!(shown.contains("is killed") && shown.contains("problem: "), "the loss is told: {shown}");
    let left: Vec<_> = std::fs::read_dir(temporary.path())?.collect();
    ensure!(left.is_empty(), "files are left: {left:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_shows_everything_and_leaves_nothing() -> anyhow::Result<()> {
    tour("dev").await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_by_terraform_shows_the_same() -> anyhow::Result<()> {
    if ["terraform", "tofu"].into_iter().all(|program| Command::new(program).arg("version").output().is_err()) {
        println!("skipped: neither terraform nor tofu is installed");
        return Ok(());
    }
    tour("terraform").await
}
