//! The `causeway` program against a real gRPC server of the operator API: what it prints, and how it exits.

mod derpmap;
mod node;
mod port;
mod program;

use std::path::PathBuf;
use std::process::Stdio;

use causeway_proto::key::{NodePrivate, NodePublic};

use node::{KEY, UNANSWERED};
use program::{Served, at, causeway, stderr, stdout};

#[tokio::test]
async fn tables_are_aligned_and_complete() {
    let (_served, socket) = Served::on_socket();
    let [key, unanswered] = [KEY, UNANSWERED].map(|key| NodePublic::from_bytes(key).to_text());
    let cases: &[(&[&str], &str)] = &[
        (
            &["node", "ls"],
            "NODE  ID                REGION   RAFT     HEARD  FENCED  EPOCH  CLAIMS  MESH            VERSION\n\
             a-1   0000000000000a01  a (901)  leader   yes    no      3      0       127.0.0.1:7001  0.1.0\n\
             b-1   0000000000000b01  b (902)  learner  yes    no      3      1,234   127.0.0.1:7001  0.1.0\n",
        ),
        (&["node", "reload"], "a-1 took up admission.fail_open, log.filter\n"),
        (&["node", "reload", "a-1"], "a-1: the configuration has not changed\n"),
        (&["node", "evict", "b-1"], "b-1 (0000000000000b01) is evicted\n"),
        (
            &["region", "ls"],
            "REGION  ID   NAME      NODES  HEARD  CLAIMS\n\
             a       901  Region a  1      1      0\n\
             b       902  Region b  1      1      1,234\n",
        ),
        (
            &["presence", "get", &key],
            &format!(
                "{key}\nNODE  REGION  PREFERRED  VALID  HOME  KIND  CLAIMED (UTC)            WHY\n\
                 b-1   b       yes        yes    yes   derp  2023-11-14 22:13:20.123  the only claim\n"
            ),
        ),
        (&["presence", "count"], "1,234 keys, 1,234 claims, 1,000 of them home\n\nNODE  CLAIMS\nb-1   1,234\n"),
        (
            &["derpmap"],
            "REGION  CODE  NODE  HOST      IPV4       IPV6  DERP  STUN\n901     a     901a  a-1.test  127.0.0.1  -     4443  3478\n",
        ),
        (
            &["trace", &key, &key],
            "NODE  ROLE    ACTION          WHY\n\
             a-1   origin  forward to b-1  the only claim\n\
             b-1   target  deliver         own connection\n\
             delivered: a-1 -> b-1\n",
        ),
        (
            &["trace", &key, &unanswered],
            "NODE  ROLE    ACTION          WHY\n\
             a-1   origin  forward to b-1  the only claim\n\
             not known further: a-1 -> b-1 cannot be asked: no answer in time\n",
        ),
        (&["ping", "b-1"], "b-1 (0000000000000b01) answered in 1.25 ms\n"),
        (&["cluster", "init", "--voters", "a-1"], "fleet f1 existed already, voters a-1\n"),
    ];
    for (arguments, expected) in cases {
        let output = at(&socket, arguments).await;
        assert_eq!(stdout(&output), *expected, "{arguments:?}: {}", stderr(&output));
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
    }
    let raft = at(&socket, &["raft", "status"]).await;
    assert!(stdout(&raft).contains("a-1     voter    h:1      7        12 ms"), "{}", stdout(&raft));
    let own = at(&socket, &["node", "get"]).await;
    assert!(stdout(&own).contains("42, up 4 min 5 s") && stdout(&own).contains("b-1   live   up"), "{}", stdout(&own));
    let cluster = at(&socket, &["cluster", "status"]).await;
    assert!(stdout(&cluster).contains("problem  b-1 is not heard: its clients are unreachable"), "{}", stdout(&cluster));
    let ca = at(&socket, &["cluster", "ca"]).await;
    assert_eq!(stdout(&ca), "-----BEGIN CERTIFICATE-----\nY2VydGlmaWNhdGU=\n-----END CERTIFICATE-----\n");
}

#[tokio::test]
async fn json_is_stable() {
    let (_served, socket) = Served::on_socket();
    let key = NodePublic::from_bytes(KEY).to_text();
    let output = at(&socket, &["-o", "jsonl", "presence", "ls", "--region", "b"]).await;
    assert_eq!(
        stdout(&output),
        format!(
            "{{\"key\":\"{key}\",\"claims\":[{{\"node\":\"b-1\",\"node_id\":\"0000000000000b01\",\"region\":\"b\",\"home\":true,\
             \"kind\":\"derp\",\"clock_us\":1700000000123456,\"epoch\":3,\"valid\":true,\"preferred\":true,\"why\":\"the only claim\"}}]}}\n"
        )
    );
    assert_eq!(stdout(&at(&socket, &["-o", "jsonl", "presence", "ls", "--region", "901"]).await), "");
    let nodes = at(&socket, &["node", "ls", "-o", "json"]).await;
    let nodes: serde_json::Value = serde_json::from_str(stdout(&nodes)).expect("json");
    let fields: Vec<&str> = nodes[1].as_object().expect("object").keys().map(String::as_str).collect();
    assert_eq!(
        fields,
        [
            "claims",
            "derp_port",
            "derp_public_key",
            "epoch",
            "fenced",
            "heard",
            "host_name",
            "ipv4",
            "ipv6",
            "mesh_addr",
            "name",
            "node_id",
            "raft_role",
            "region",
            "region_id",
            "stun_port",
            "version",
            "voter_eligible"
        ]
    );
    let map = at(&socket, &["derpmap", "-o", "json"]).await;
    let map: serde_json::Value = serde_json::from_str(stdout(&map)).expect("json");
    assert_eq!(map["Regions"]["901"]["Nodes"][0]["DERPPort"], 4443);
    // The server ends this stream; a real one never does.
    let watch = at(&socket, &["-o", "json", "presence", "watch"]).await;
    assert_eq!(watch.status.code(), Some(4));
    let change: serde_json::Value = serde_json::from_str(stdout(&watch)).expect("one line");
    assert_eq!((change["change"].as_str(), change["node"].as_str()), (Some("claimed"), Some("b-1")));
}

#[tokio::test]
async fn every_failure_has_its_exit_code_and_says_why() {
    let (served, socket) = Served::on_socket();
    let other = NodePrivate::generate().public().to_untyped_hex();
    let absent = served.dir.path().join("absent.sock");
    let file = served.dir.path().join("exists");
    std::fs::write(&file, "x").expect("written");
    let file = file.to_str().expect("text");
    let cases: &[(&[&str], i32, &str)] = &[
        (&["presence", "get", &other], 3, "nobody claims this key"),
        (&["node", "get", "c-1"], 3, "there are a-1, b-1"),
        (&["node", "evict", "c-1"], 3, "there are a-1, b-1"),
        (&["node", "evict", "a-1"], 4, "ask node `b-1`"),
        (&["node", "reload", "c-1"], 3, "node `c-1` is not known"),
        (&["node", "reload", "b-1"], 1, "b-1 refuses its configuration"),
        (&["presence", "ls", "--region", "z"], 3, "there are a, b"),
        (&["ping", "nowhere"], 3, "nowhere"),
        (&["ping", "cut"], 4, "no connection to cut"),
        (&["cluster", "init", "--voters", "a-1,b-1"], 2, "even number"),
        (&["cluster", "status", "--wait", "healthy=1ms"], 1, "b-1 is not heard"),
        (&["mesh-key", "new", file], 1, "exists already"),
        (&["presence", "get", "12"], 2, "64 hex digits"),
        (&["operator-ca", "issue", "alice", "--role", "viewer", "--dir", "/nonexistent"], 3, "operator-ca new"),
    ];
    for (arguments, code, why) in cases {
        let output = at(&socket, arguments).await;
        assert_eq!(output.status.code(), Some(*code), "{arguments:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(why), "{arguments:?}: {}", stderr(&output));
    }
    let unreachable = at(&absent, &["node", "ls"]).await;
    assert_eq!(unreachable.status.code(), Some(4));
    assert!(stderr(&unreachable).contains("absent.sock"), "{}", stderr(&unreachable));
    let half = causeway(&["--endpoint", "127.0.0.1:1", "node", "ls"]).await;
    assert_eq!(half.status.code(), Some(2));
    assert!(stderr(&half).contains("--cert"), "{}", stderr(&half));
}

#[tokio::test]
async fn environment_and_configuration_file_name_the_node_and_flags_win() {
    let (served, socket) = Served::on_socket();
    let config = served.dir.path().join("config.toml");
    std::fs::write(&config, format!("socket = {socket:?}\noutput = \"jsonl\"\n")).expect("written");
    let run = |variables: Vec<(&'static str, PathBuf)>, arguments: &'static [&'static str]| async move {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_causeway"));
        command.env_remove("CAUSEWAY_ENDPOINT").env_remove("CAUSEWAY_SOCKET").env("HOME", "/nonexistent");
        command.args(arguments).envs(variables).stdin(Stdio::null()).output().await.expect("the program runs")
    };
    let by_file = run(vec![("CAUSEWAY_CONFIG", config.clone())], &["node", "ls"]).await;
    assert_eq!(stdout(&by_file).lines().filter(|line| line.starts_with('{')).count(), 2, "{}", stderr(&by_file));
    let by_environment = run(vec![("CAUSEWAY_SOCKET", socket.clone())], &["node", "ls"]).await;
    assert!(stdout(&by_environment).starts_with("NODE"), "{}", stderr(&by_environment));
    let environment_wins =
        run(vec![("CAUSEWAY_CONFIG", config.clone()), ("CAUSEWAY_SOCKET", "/none".into())], &["node", "ls"]).await;
    assert_eq!(environment_wins.status.code(), Some(4));
    let flag_wins = run(vec![("CAUSEWAY_CONFIG", config.clone())], &["--socket", "/none", "node", "ls"]).await;
    assert_eq!(flag_wins.status.code(), Some(4));
    std::fs::write(&config, "sokcet = '/x'\n").expect("written");
    let misspelt = run(vec![("CAUSEWAY_CONFIG", config)], &["node", "ls"]).await;
    assert_eq!(misspelt.status.code(), Some(2));
    assert!(stderr(&misspelt).contains("sokcet") && stderr(&misspelt).contains("config.toml"), "{}", stderr(&misspelt));
}

#[tokio::test]
async fn completion_and_version_need_no_node() {
    for shell in ["bash", "zsh", "fish"] {
        let output = causeway(&["completion", shell]).await;
        assert!(output.status.success() && stdout(&output).contains("presence"), "{shell}");
    }
    assert_eq!(
        stdout(&causeway(&["-o", "jsonl", "version"]).await),
        format!("{{\"version\":\"{}\"}}\n", env!("CARGO_PKG_VERSION"))
    );
}
