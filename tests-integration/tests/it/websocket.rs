//! DERP inside a WebSocket, by Tailscale's own client code built with WebSocket support.

use std::process::Command;

use anyhow::ensure;
use causeway_tests_integration::cluster::Cluster;
use causeway_tests_integration::logs::Expected;
use causeway_tests_integration::programs::repository;

#[tokio::test(flavor = "multi_thread")]
async fn interop_stock_clients_talk_through_websockets_of_two_nodes() -> anyhow::Result<()> {
    if Command::new("go").arg("version").output().is_err() {
        println!("skipped: go is not installed");
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let program = dir.path().join("websocket");
    let built = Command::new("go")
        .args(["build", "-tags", "ts_debug_websockets", "-o"])
        .arg(&program)
        .arg("./websocket")
        .current_dir(repository().join("tests-integration/interop/derp-go"))
        .output()?;
    ensure!(built.status.success(), "the client does not build: {}", String::from_utf8_lossy(&built.stderr));

    let cluster = Cluster::start(1, 2, &[]).await?;
    let urls = cluster.nodes().iter().map(|node| format!("https://{}/derp", node.derp));
    let output = tokio::process::Command::new(program).args(urls).env("SSL_CERT_FILE", &cluster.ready().ca_file).output().await?;
    ensure!(output.status.success(), "stock clients are not content: {}", String::from_utf8_lossy(&output.stderr));
    for node in ["a-1", "a-2"] {
        let accepted = cluster.metrics(node).await?.sum("causeway_derp_websocket_accepts_total", &[]);
        ensure!(accepted == Some(1.0), "{node} counted {accepted:?} WebSockets");
    }
    cluster.finish(&["a-1", "a-2"], &Expected::default()).await
}
