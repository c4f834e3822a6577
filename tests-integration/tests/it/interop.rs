//! Stock software: Tailscale's own Go client code against two nodes of one region and one of another.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, ensure};
use causeway_proto::key::MeshKey;
use causeway_tests_integration::cluster::Cluster;
use causeway_tests_integration::files::write_private;
use causeway_tests_integration::logs::Expected;
use causeway_tests_integration::programs::repository;

/// Builds the scenario runner; `None` where Go is missing.
pub(crate) fn derp_go(into: &std::path::Path) -> anyhow::Result<Option<PathBuf>> {
    if Command::new("go").arg("version").output().is_err() {
        println!("skipped: go is not installed");
        return Ok(None);
    }
    let program = into.join("derp-go");
    let output = Command::new("go")
        .args(["build", "-o"])
        .arg(&program)
        .arg(".")
        .current_dir(repository().join("tests-integration/interop/derp-go"))
        .output()?;
    ensure!(output.status.success(), "derp-go does not build: {}", String::from_utf8_lossy(&output.stderr));
    Ok(Some(program))
}

#[tokio::test(flavor = "multi_thread")]
async fn interop_stock_go_clients_and_mesh_peers_pass_every_scenario() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let Some(program) = derp_go(dir.path())? else { return Ok(()) };
    let mesh_key_file = dir.path().join("derp-mesh.key");
    write_private(&mesh_key_file, &MeshKey::generate().expose_hex())?;
    let mesh_key = mesh_key_file.to_str().context("path")?;
    let arguments = ["--regions", "2", "--nodes-per-region", "2", "--derp-mesh-key-file", mesh_key].map(str::to_owned);
    let cluster = Cluster::start_with(&arguments).await?;

    let map_file = dir.path().join("map.json");
    std::fs::write(&map_file, cluster.causeway("a-1", &["-o", "json", "derpmap"]).await?.stdout)?;
    let output = tokio::process::Command::new(program)
        .arg("-map")
        .arg(&map_file)
        .arg("-ca")
        .arg(&cluster.ready().ca_file)
        .arg("-mesh-key-file")
        .arg(&mesh_key_file)
        .args(["-strict", "all"])
        .output()
        .await?;
    let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("{said}");
    ensure!(output.status.success(), "stock clients are not content:\n{said}{errors}");
    let passed = said.lines().filter(|line| line.starts_with("ok ")).count();
    ensure!(passed >= 15, "only {passed} scenarios ran:\n{said}");
    // Scenarios that try a wrong mesh key or misuse frames are worth a warning.
    cluster.finish(&["a-1", "a-2", "b-1", "b-2"], &Expected::default().line("mesh").line("client")).await
}
