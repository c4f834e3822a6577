//! A server without a DNS name: stock clients take its self-signed certificate by the pin in the DERP map, and no other.

use anyhow::{Context as _, ensure};
use causeway_tests_integration::lone::LoneNode;

use crate::interop::derp_go;

#[tokio::test(flavor = "multi_thread")]
async fn interop_a_stock_client_takes_the_pinned_certificate_and_refuses_another() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let Some(program) = derp_go(dir.path())? else { return Ok(()) };
    let text = format!(
        "name = 'a-1'\ndata_dir = '{}/data'\nstandalone = true\n[region]\nid = 901\ncode = 'a'\n[advertise]\nhost_name = '127.0.0.1'\n\
         ipv4 = '127.0.0.1'\n[tls]\nself_signed = true\n[derp]\nlisten = '127.0.0.1:0'\n[stun]\nlisten = ''\n\
         [mesh]\nlisten = ''\n[metrics]\nlisten = ''\n",
        dir.path().display()
    );
    let config = dir.path().join("node.toml");
    std::fs::write(&config, text)?;
    let node = LoneNode::start(&config, &[], dir.path()).await?;
    let map: serde_json::Value = serde_json::from_str(&node.said(&["-o", "json", "derpmap"]).await?)?;
    let entry = &map["Regions"]["901"]["Nodes"][0];
    let pin = entry["CertName"].as_str().context("CertName")?.to_owned();
    ensure!(pin.strip_prefix("sha256-raw:").is_some_and(|hex| hex.len() == 64), "{map}");
    // What an operator would paste is told at start.
    let log = node.log();
    let told = log.lines().find(|line| line.contains("clients need its pin")).context("the pin is not told")?;
    ensure!(told.contains("HostName") && told.contains("CertName") && told.matches(&pin).count() == 2, "{told}");

    let stock_client = async |pin: &str| -> anyhow::Result<std::process::Output> {
        let mut map = map.clone();
        map["Regions"]["901"]["Nodes"][0]["CertName"] = pin.into();
        let file = dir.path().join("map.json");
        std::fs::write(&file, map.to_string())?;
        // No CA is given: only the pin can make it trust the node.
        let mut command = tokio::process::Command::new(&program);
        Ok(command.arg("-map").arg(&file).args(["-strict", "one-node", "ping"]).output().await?)
    };
    let output = stock_client(&pin).await?;
    let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "a stock client does not take the pin:\n{said}{errors}");
    ensure!(said.lines().filter(|line| line.starts_with("ok ")).count() == 2, "{said}");

    let wrong = format!("sha256-raw:{}", "00".repeat(32));
    for refused in [wrong.as_str(), ""] {
        let output = stock_client(refused).await?;
        let said = String::from_utf8_lossy(&output.stdout);
        ensure!(
            !output.status.success() && said.contains("cert"),
            "`{refused}` is taken, or refused for another reason:\n{said}"
        );
    }
    node.stop().await
}
