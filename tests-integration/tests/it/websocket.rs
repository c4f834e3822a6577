//! DERP inside a WebSocket, by Tailscale's own client code built with WebSocket support.

use anyhow::ensure;
use causeway_tests_integration::cluster::Cluster;
use causeway_tests_integration::go;
use causeway_tests_integration::logs::Expected;

#[tokio::test(flavor = "multi_thread")]
async fn interop_stock_clients_talk_through_websockets_of_two_nodes() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let arguments = ["-tags", "ts_debug_websockets", "./websocket"];
    let Some(program) = go::interop_program("websocket", &arguments, dir.path())? else { return Ok(()) };
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
