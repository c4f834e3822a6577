//! The operator's command line on a fleet: what it prints, and how it ends.

use std::process::Output;
use std::time::Duration;

use causeway_client::{Trust, load_map};
use causeway_proto::derpmap::DerpMap;
use causeway_proto::key::NodePrivate;
use causeway_tests_integration::client::TestClient;
use causeway_tests_integration::cluster::Cluster;
use causeway_tests_integration::logs::Expected;

fn list(value: &serde_json::Value) -> &Vec<serde_json::Value> {
    value.as_array().unwrap_or_else(|| panic!("a list: {value}"))
}

fn failed_with(output: &Output, code: i32, said: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert!(stderr.contains(said), "`{said}` is not in: {stderr}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_tells_the_truth_about_a_fleet() -> anyhow::Result<()> {
    let cluster = Cluster::start(3, 2, &[]).await?;
    let nodes = ["a-1", "a-2", "b-1", "b-2", "c-1", "c-2"];
    let alice = TestClient::connect(&cluster, "a-1").await?;
    alice.sender().note_preferred(true)?;
    let bob = TestClient::connect(&cluster, "c-2").await?;
    cluster.wait_held(&nodes, alice.key(), "a-1", Duration::from_secs(5)).await?;
    cluster.wait_held(&nodes, bob.key(), "c-2", Duration::from_secs(5)).await?;

    let status = cluster.causeway_json("b-1", &["cluster", "status"]).await?;
    assert_eq!((&status["healthy"], &status["quorum"]), (&true.into(), &true.into()), "{status}");
    assert_eq!(list(&status["voters"]).len(), 3, "{status}");
    let names: Vec<_> = list(&status["nodes"]).iter().filter_map(|node| node["name"].as_str()).collect();
    assert_eq!(names, nodes);

    let ls = cluster.causeway_json("a-2", &["node", "ls"]).await?;
    let ids: Vec<_> = list(&ls).iter().filter_map(|node| node["node_id"].as_str()).collect();
    let expected: Vec<_> = cluster.nodes().iter().map(|node| node.node_id.as_str()).collect();
    assert_eq!(ids, expected, "the same ids as in the ready file");
    let regions = cluster.causeway_json("a-2", &["region", "ls"]).await?;
    let sizes: Vec<_> = list(&regions).iter().map(|region| (region["code"].as_str(), region["nodes"].as_u64())).collect();
    assert_eq!(sizes, [(Some("a"), Some(2)), (Some("b"), Some(2)), (Some("c"), Some(2))]);

    let key = alice.key().to_text();
    let entry = cluster.causeway_json("c-1", &["presence", "get", &key]).await?;
    let claims = list(&entry["claims"]);
    assert_eq!(claims.len(), 1, "{entry}");
    assert_eq!((claims[0]["node"].as_str(), claims[0]["home"].as_bool()), (Some("a-1"), Some(true)), "{entry}");
    assert!(claims[0]["why"].as_str().is_some_and(|why| !why.is_empty()), "a claim says why it is where it is: {entry}");
    let consistent = cluster.causeway_json("c-1", &["presence", "get", "--consistent", &key]).await?;
    assert_eq!(consistent["claims"][0]["clock_us"], claims[0]["clock_us"], "what Raft has is what was seen by watch");
    let count = cluster.causeway_json("b-2", &["presence", "count"]).await?;
    assert_eq!((count["keys"].as_u64(), count["home_claims"].as_u64()), (Some(2), Some(1)), "{count}");

    let trace = cluster.causeway_json("a-1", &["trace", &key, &bob.key().to_text()]).await?;
    assert_eq!(trace["delivered"], true, "{trace}");
    let path: Vec<_> = list(&trace["hops"]).iter().filter_map(|hop| hop["node"].as_str()).collect();
    assert_eq!(path, ["a-1", "c-2"], "{trace}");
    let ping = cluster.causeway("a-1", &["ping", "c-2"]).await?;
    assert!(ping.status.success(), "{}", String::from_utf8_lossy(&ping.stderr));
    let raft = cluster.causeway_json("a-1", &["raft", "status"]).await?;
    assert_eq!(list(&raft["members"]).len(), 6, "{raft}");
    // A node that does not vote tells as much.
    let raft = cluster.causeway_json("a-2", &["raft", "status"]).await?;
    assert_eq!(raft["state"], "learner", "{raft}");
    assert!(
        list(&raft["members"]).iter().all(|member| member["matched_index"].as_u64().is_some_and(|index| index > 0)),
        "{raft}"
    );

    // The map of the operator API is the map clients load, and names every node with a name and an address that TLS can verify.
    let by_operator = cluster.causeway("a-1", &["-o", "json", "derpmap"]).await?;
    let by_operator = DerpMap::from_json(&by_operator.stdout)?;
    let trust = Trust::ca_file(&cluster.ready().ca_file)?;
    let by_http = load_map(&cluster.ready().derpmap_url, Some(&trust)).await?;
    assert_eq!(by_operator, by_http);
    assert!(!cluster.ready().insecure);
    let listed: Vec<_> = by_http.regions.values().flat_map(|region| &region.nodes).collect();
    assert_eq!(listed.len(), 6);
    for (node, in_map) in cluster.nodes().iter().zip(listed) {
        assert_eq!(in_map.host_name, format!("{}.causeway.test", node.name));
        assert_eq!(format!("{}:{}", in_map.ipv4, in_map.derp_port), node.derp);
        assert!(!in_map.insecure_for_tests);
    }
    drop((alice, bob));
    cluster.finish(&nodes, &Expected::default()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn exit_codes_say_what_kind_of_failure_it_was() -> anyhow::Result<()> {
    let cluster = Cluster::start(1, 1, &[]).await?;
    let absent = NodePrivate::generate().public().to_text();
    failed_with(&cluster.causeway("a-1", &["presence", "get", &absent]).await?, 3, "");
    failed_with(&cluster.causeway("a-1", &["node", "get", "z-9"]).await?, 3, "z-9");
    failed_with(&cluster.causeway("a-1", &["presence", "get", "abc"]).await?, 2, "nodekey:");
    failed_with(&cluster.causeway("a-1", &["dance"]).await?, 2, "dance");
    cluster.stop("a-1").await?;
    failed_with(&cluster.causeway("a-1", &["cluster", "status"]).await?, 4, "operator.sock");
    cluster.start_node("a-1").await?;
    cluster.wait_healthy("a-1", Duration::from_secs(20)).await?;
    cluster.finish(&["a-1"], &Expected::default()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_voter_reloads_the_configuration_of_another_node() -> anyhow::Result<()> {
    // The one voter is a-1.
    let cluster = Cluster::start(1, 2, &[]).await?;
    let file = cluster.node_dir("a-2").join("node.toml");
    let good = std::fs::read_to_string(&file)?;
    std::fs::write(&file, format!("{good}\n[admission]\nrecheck_seconds = 1234\n"))?;
    let reloaded = cluster.causeway_json("a-1", &["node", "reload", "a-2"]).await?;
    assert_eq!((&reloaded["name"], &reloaded["changed"]), (&"a-2".into(), &serde_json::json!(["admission.recheck_seconds"])));
    let log = std::fs::read_to_string(&cluster.node("a-2").log)?;
    let through = format!("through node {}", cluster.node("a-1").node_id);
    assert!(log.lines().any(|line| line.contains("audit") && line.contains(&through) && line.contains("done")), "{log}");

    std::fs::write(&file, format!("{good}\n[otlp]\nsample_ratio = 0.5\n"))?;
    let refused = cluster.causeway("a-1", &["node", "reload", "a-2"]).await?;
    failed_with(&refused, 1, "a-2 refuses its configuration");
    let said = String::from_utf8_lossy(&refused.stdout);
    assert!(said.contains("node.toml: otlp.sample_ratio: has changed, which needs a restart"), "{said}");
    failed_with(&cluster.causeway("a-2", &["node", "reload", "a-1"]).await?, 1, "only voters pass");
    failed_with(&cluster.causeway("a-1", &["node", "reload", "z-9"]).await?, 3, "z-9");
    std::fs::write(&file, good)?;
    cluster.finish(&["a-1", "a-2"], &Expected::default().line("the one in force stays")).await
}
