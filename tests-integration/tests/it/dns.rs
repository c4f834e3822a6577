//! Discovery by DNS alone: nodes that know nothing but a name become one fleet.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context as _, ensure};
use causeway_control::testing::DnsServer;
use causeway_proto::key::MeshKey;
use causeway_tests_integration::cluster::Turn;
use causeway_tests_integration::files::write_private;
use causeway_tests_integration::lone::LoneNode;

#[tokio::test(flavor = "multi_thread")]
async fn nodes_find_each_other_by_the_records_of_a_service_and_by_nothing_else() -> anyhow::Result<()> {
    let _turn = Turn::take().await?;
    let dir = tempfile::tempdir()?;
    let key_file = dir.path().join("mesh.key");
    write_private(&key_file, &MeshKey::generate().expose_hex())?;
    let dns = DnsServer::start((Ipv4Addr::LOCALHOST, 0).into()).await?;

    // There are no records when they start: a deployment writes them when it knows the addresses.
    let mut nodes = Vec::new();
    for (name, region) in [("a-1", 901), ("b-1", 902), ("c-1", 903)] {
        let own = dir.path().join(name);
        std::fs::create_dir(&own)?;
        let text = format!(
            "name = '{name}'\ndata_dir = '{0}/data'\nmesh_key_file = '{1}'\n[region]\nid = {region}\ncode = '{2}'\n\
             [advertise]\nhost_name = '127.0.0.1'\nipv4 = '127.0.0.1'\n[tls]\nself_signed = true\n[raft]\nprofile = 'lan'\n\
             [derp]\nlisten = '127.0.0.1:0'\n[stun]\nlisten = ''\n[metrics]\nlisten = ''\n[mesh]\nlisten = '127.0.0.1:0'\n\
             [discovery]\ndns = ['_mesh._tcp.test.']\ndns_servers = ['{3}']\n",
            own.display(),
            key_file.display(),
            &name[..1],
            dns.addr(),
        );
        let config = own.join("node.toml");
        std::fs::write(&config, text)?;
        nodes.push(LoneNode::start(&config, &[], &own).await?);
    }
    ensure!(known(&nodes[0], &[]).await? == 1, "it cannot know of anybody yet");

    dns.set_addresses("mesh.test.", 1, &[Ipv4Addr::LOCALHOST.into()]).await;
    let ports = nodes.iter().map(|node| Ok(("mesh.test.", node.ready.mesh.parse::<SocketAddr>()?.port())));
    dns.set_service("_mesh._tcp.test.", 1, &ports.collect::<anyhow::Result<Vec<_>>>()?).await;

    nodes[0].said(&["cluster", "init", "--expect", "3"]).await?;
    for node in &nodes {
        ensure!(known(node, &["--wait", "healthy=60s"]).await? == 3, "{}", node.log());
    }
    for node in nodes {
        node.stop().await?;
    }
    Ok(())
}

/// How many nodes `node` knows of.
async fn known(node: &LoneNode, arguments: &[&str]) -> anyhow::Result<usize> {
    let status = node.said(&[&["-o", "json", "cluster", "status"], arguments].concat()).await?;
    let status: serde_json::Value = serde_json::from_str(&status)?;
    Ok(status["nodes"].as_array().context("nodes")?.len())
}
