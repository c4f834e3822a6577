//! One node alone: started from the documented file, asked by the command line, imported from a derper, grown into a fleet.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use causeway_client::{Connection, Event};
use causeway_ops::ca::Authority;
use causeway_proto::key::{MeshKey, NodePrivate, NodePublic};
use causeway_tests_integration::cluster::{Turn, wait_for};
use causeway_tests_integration::files::write_private;
use causeway_tests_integration::lone::LoneNode;
use causeway_tests_integration::metrics::{Scrape, http_get};
use causeway_tests_integration::programs::{Programs, repository};

const DEADLINE: Duration = Duration::from_secs(30);

/// What a test machine lacks of the documented one: its ports, paths and certificate.
fn here(dir: &Path) -> Vec<String> {
    let at = |name: &str| dir.join(name).display().to_string();
    ["derp.listen", "stun.listen", "metrics.listen", "derp.plain_http_listen"]
        .map(|field| format!("{field}=127.0.0.1:0"))
        .into_iter()
        .chain([format!("data_dir={}", at("data")), format!("derp.server_key_file={}", at("server.key"))])
        .chain([format!("tls.cert_file={}", at("relay.test.crt")), format!("tls.key_file={}", at("relay.test.key"))])
        .collect()
}

/// A certificate in the form of a derper's manual mode.
fn make_certificate(dir: &Path) -> anyhow::Result<()> {
    let (authority, ca) = Authority::new("test CA", 1)?;
    std::fs::write(dir.join("ca.pem"), ca.certificate_pem)?;
    let issued = authority.issue_server(&["relay.test", "derp.example.com"], &[], 1)?;
    std::fs::write(dir.join("relay.test.crt"), issued.certificate_pem)?;
    write_private(&dir.join("relay.test.key"), &issued.key_pem)
}

async fn packet(connection: &mut Connection) -> anyhow::Result<(NodePublic, Vec<u8>)> {
    let next = async {
        loop {
            if let Event::Packet { src, payload } = connection.recv().await? {
                return anyhow::Ok((src, payload.to_vec()));
            }
        }
    };
    tokio::time::timeout(DEADLINE, next).await.context("no packet came")?
}

#[tokio::test(flavor = "multi_thread")]
async fn the_documented_file_runs_one_node_that_every_command_understands() -> anyhow::Result<()> {
    let _turn = Turn::take().await?;
    let dir = tempfile::tempdir()?;
    make_certificate(dir.path())?;
    let node = LoneNode::start(&repository().join("docs/operations/standalone.toml"), &here(dir.path()), dir.path()).await?;
    ensure!(node.ready.mesh.is_empty(), "no mesh key, no mesh port: {}", node.ready.mesh);
    let (alice, bob) = (NodePrivate::generate(), NodePrivate::generate());
    let (from, mut to) = (node.connect(&alice).await?, node.connect(&bob).await?);
    from.sender().send(&bob.public(), b"alone").await?;
    assert_eq!(packet(&mut to).await?, (alice.public(), b"alone".to_vec()));

    wait_for("a healthy fleet of one", DEADLINE, async || {
        Ok(node.causeway(&["cluster", "status", "--wait", "healthy=1ms"]).await?.status.success().then_some(()))
    })
    .await?;
    let (a, b) = (alice.public().to_text(), bob.public().to_text());
    let presence = node.said(&["presence", "ls"]).await?;
    ensure!(presence.contains(&a) && presence.contains(&b), "{presence}");
    wait_for("the claim to be committed", DEADLINE, async || {
        Ok(node.causeway(&["presence", "get", &a, "--consistent"]).await?.status.success().then_some(()))
    })
    .await?;
    ensure!(node.said(&["node", "ls"]).await?.contains("leader"));
    let shown = node.said(&["node", "get"]).await?;
    ensure!(shown.contains("derp.example.com"), "{shown}");
    let map = node.said(&["derpmap"]).await?;
    ensure!(map.contains("derp.example.com") && map.contains("900"), "{map}");
    let served = http_get(&format!("http://{}/derpmap", node.ready.plain_http)).await?;
    ensure!(served.contains("\"RegionID\":900") && served.contains("derp.example.com"), "{served}");
    ensure!(node.said(&["trace", &a, &b]).await?.contains("delivered"));
    ensure!(node.said(&["ping", "derp.example.com"]).await?.contains("answered"));
    let init = node.causeway(&["cluster", "init"]).await?;
    let said = String::from_utf8_lossy(&init.stderr).into_owned();
    ensure!(init.status.code() == Some(2) && said.contains("docs/operations/standalone.md"), "{said}");

    let audit = node.log().lines().filter(|line| line.contains("audit")).map(str::to_owned).collect::<Vec<_>>();
    let uid = rustix::process::getuid().as_raw();
    ensure!(audit.len() == 1 && audit[0].contains("init_cluster") && audit[0].contains(&format!("uid {uid}")), "{audit:?}");
    ensure!(audit[0].contains("failed: ") && audit[0].contains("join_policy"), "{audit:?}");
    drop((from, to));
    node.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn interop_stock_go_clients_and_mesh_peers_take_one_node_alone() -> anyhow::Result<()> {
    let _turn = Turn::take().await?;
    let dir = tempfile::tempdir()?;
    let Some(program) = crate::interop::derp_go(dir.path())? else { return Ok(()) };
    make_certificate(dir.path())?;
    let mesh_key = dir.path().join("mesh.psk");
    write_private(&mesh_key, &MeshKey::generate().expose_hex())?;
    let mut sets = here(dir.path());
    sets.extend([format!("derp_mesh.key_file={}", mesh_key.display()), "derp_mesh.allow=[\"127.0.0.0/8\"]".to_owned()]);
    sets.push("advertise.ipv4=127.0.0.1".to_owned());
    let node = LoneNode::start(&repository().join("docs/operations/standalone.toml"), &sets, dir.path()).await?;
    // A node that has just started leads itself soon, and then lists itself.
    let map_file = dir.path().join("map.json");
    wait_for("a map with this node", DEADLINE, async || {
        let map = node.said(&["-o", "json", "derpmap"]).await?;
        std::fs::write(&map_file, &map)?;
        Ok(map.contains("derp.example.com").then_some(()))
    })
    .await?;
    let mut stock = tokio::process::Command::new(program);
    stock.arg("-map").arg(&map_file).arg("-ca").arg(dir.path().join("ca.pem")).arg("-mesh-key-file").arg(&mesh_key);
    let output = stock.arg("all").output().await?;
    let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "stock clients are not content:\n{said}{errors}");
    let passed = said.lines().filter(|line| line.starts_with("ok ")).count();
    ensure!(passed >= 14, "only {passed} scenarios ran:\n{said}");
    node.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_starts_from_what_was_imported_of_a_derper_and_keeps_its_key() -> anyhow::Result<()> {
    let _turn = Turn::take().await?;
    let dir = tempfile::tempdir()?;
    make_certificate(dir.path())?;
    let key = NodePrivate::generate();
    let at = |name: &str| dir.path().join(name).display().to_string();
    write_private(&dir.path().join("derper.key"), &format!("{{\"PrivateKey\": \"{}\"}}", key.expose_text()))?;
    write_private(&dir.path().join("mesh.psk"), &MeshKey::generate().expose_hex())?;
    let flags = [
        "-hostname=relay.test".to_owned(),
        "--certmode=manual".to_owned(),
        format!("-certdir={}", dir.path().display()),
        "-c".to_owned(),
        at("derper.key"),
        "-a=127.0.0.1:0".to_owned(),
        "-http-port=-1".to_owned(),
        "-stun=false".to_owned(),
        format!("-mesh-psk-file={}", at("mesh.psk")),
    ];
    let import = async |more: &[String]| {
        let program = Programs::get()?.causeway();
        let mut command = tokio::process::Command::new(program);
        command.args(["import", "derper", "--data-dir", &at("data"), "--out", &at("out"), "--"]).args(&flags).args(more);
        command.env("HOME", dir.path()).env("TS_ALLOW_DEBUG_IP", "");
        anyhow::Ok(command.output().await?)
    };
    let contradiction = import(&["-mesh-with=a/b/c".to_owned()]).await?;
    ensure!(contradiction.status.code() == Some(2) && !dir.path().join("out").exists());
    let output = import(&["-tcp-write-timeout=5s".to_owned()]).await?;
    let (report, errors) = (String::from_utf8(output.stdout)?, String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{errors}");
    ensure!(report.contains("-tcp-write-timeout") && report.contains("differs") && !report.contains("privkey"), "{report}");
    let again = import(&[]).await?;
    ensure!(again.status.code() == Some(1) && String::from_utf8_lossy(&again.stderr).contains("not overwritten"));

    let sets = ["metrics.listen=127.0.0.1:0".to_owned()];
    let node = LoneNode::start(&dir.path().join("out/causewayd.toml"), &sets, dir.path()).await?;
    assert_eq!(node.ready.derp_public_key, key.public().to_untyped_hex());
    let connection = node.connect(&NodePrivate::generate()).await?;
    let varz = http_get(&node.ready.metrics.replace("/metrics", "/debug/varz")).await?;
    assert_eq!(Scrape::parse(&varz)?.sum("derp_accepts", &[]), Some(1.0));
    drop(connection);
    node.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standalone_node_grows_into_a_fleet_with_its_keys_and_its_clients() -> anyhow::Result<()> {
    let _turn = Turn::take().await?;
    let dir = tempfile::tempdir()?;
    make_certificate(dir.path())?;
    let (first_dir, second_dir) = (dir.path().join("first"), dir.path().join("second"));
    [&first_dir, &second_dir].into_iter().try_for_each(std::fs::create_dir)?;
    let config = repository().join("docs/operations/standalone.toml");
    let sets = |of: &Path| {
        let mut sets = here(dir.path());
        sets.extend([format!("data_dir={}/data", of.display()), format!("derp.server_key_file={}/server.key", of.display())]);
        sets.extend(["advertise.ipv4=127.0.0.1".to_owned(), "raft.profile=lan".to_owned()]);
        sets
    };
    let (alice, bob) = (NodePrivate::generate(), NodePrivate::generate());
    let alone = LoneNode::start(&config, &sets(&first_dir), &first_dir).await?;
    let before = alone.ready.clone();
    drop(alone.connect(&alice).await?);
    // Its fleet of one is formed before it is stopped.
    wait_for("a healthy fleet of one", DEADLINE, async || {
        Ok(alone.causeway(&["cluster", "status", "--wait", "healthy=1ms"]).await?.status.success().then_some(()))
    })
    .await?;
    alone.stop().await?;

    write_private(&dir.path().join("mesh.key"), &MeshKey::generate().expose_hex())?;
    let meshed = |of: &Path| {
        let mesh_key = format!("mesh_key_file={}", dir.path().join("mesh.key").display());
        let grown = ["standalone=false".to_owned(), "mesh.listen=127.0.0.1:0".to_owned(), mesh_key];
        sets(of).into_iter().chain(grown).collect::<Vec<_>>()
    };
    let first = LoneNode::start(&config, &meshed(&first_dir), &first_dir).await?;
    assert_eq!(first.ready.derp_public_key, before.derp_public_key, "the server's key stays");
    assert_eq!(first.ready.node_id, before.node_id, "the node stays the node it was");
    let init = first.said(&["cluster", "init"]).await?;
    ensure!(init.contains("existed already"), "{init}");

    let seed = format!("discovery.static=[\"{}\"]", first.ready.mesh);
    let second_sets = meshed(&second_dir).into_iter().chain(["name=second".to_owned(), seed]).collect::<Vec<_>>();
    let second = LoneNode::start(&config, &second_sets, &second_dir).await?;
    let from = first.connect(&alice).await?;
    let mut to = second.connect(&bob).await?;
    for node in [&first, &second] {
        wait_for("both nodes in the fleet", DEADLINE, async || {
            let nodes = node.said(&["-o", "json", "node", "ls"]).await?;
            let nodes: Vec<serde_json::Value> = serde_json::from_str(&nodes)?;
            let settled = nodes.len() == 2 && nodes.iter().all(|node| node["heard"] == true && node["raft_role"] != "");
            Ok(settled.then_some(()))
        })
        .await?;
    }
    wait_for("the first node to know the second's client", DEADLINE, async || {
        Ok(first.causeway(&["presence", "get", &bob.public().to_text()]).await?.status.success().then_some(()))
    })
    .await?;
    from.sender().send(&bob.public(), b"across").await?;
    assert_eq!(packet(&mut to).await?, (alice.public(), b"across".to_vec()));

    let audit = first.log().lines().filter(|line| line.contains("audit")).map(str::to_owned).collect::<Vec<_>>();
    ensure!(audit.len() == 1 && audit[0].contains("init_cluster") && audit[0].contains("done"), "{audit:?}");
    drop((from, to));
    second.stop().await?;
    first.stop().await
}
