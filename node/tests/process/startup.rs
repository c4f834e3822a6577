//! What a node refuses to start with: each gives an exit code, and a message that names the thing and what to do.

use std::fs;

use crate::harness::{Home, MESH_KEY, write_secret};

#[tokio::test]
async fn bad_configurations_end_with_code_2_before_anything_is_made() {
    let home = Home::new();
    write_secret(&home.path("bad.key"), "not a key");
    let bad_key = format!("mesh_key_file={}", home.path("bad.key").display());
    let missing_key = format!("mesh_key_file={}", home.path("none.key").display());
    let cases: [(&[&str], &[&str]); 8] = [
        (&["--set", "region.colour=red"], &["--set region.colour=red", "unknown field `colour`"]),
        (&["--set", "region.id=0"], &["node.toml: region.id: ", "from 1"]),
        (&["--set", "name="], &["node.toml: name: ", "unique"]),
        (&["--set", &bad_key], &["node.toml: mesh_key_file: ", "bad.key", "64 hex digits"]),
        (&["--set", &missing_key], &["node.toml: mesh_key_file: ", "none.key", "cannot read"]),
        (&["--set", "tls.self_signed=false"], &["node.toml: tls: ", "cert_file and key_file"]),
        (&["--set", "derp.listen=somewhere"], &["node.toml: derp.listen: ", "ADDRESS:PORT"]),
        (&["--no-such-flag"], &["--no-such-flag"]),
    ];
    for (arguments, named) in cases {
        let (code, _, error) = home.run(arguments).await;
        assert_eq!(code, Some(2), "{arguments:?}: {error}");
        for wanted in named {
            assert!(error.contains(wanted), "{arguments:?}: `{wanted}` is not in: {error}");
        }
    }
    fs::write(&home.config, "name = 'a-1'\n[region]\nid = 901\ncode = 'a'\n[regoin]\n").unwrap();
    let (code, _, error) = home.run(&[]).await;
    assert!(code == Some(2) && error.contains("regoin") && error.contains("line 5"), "{error}");
    fs::remove_file(&home.config).unwrap();
    let (code, _, error) = home.run(&[]).await;
    assert!(code == Some(2) && error.contains("node.toml: cannot read the configuration file"), "{error}");
    assert!(!home.path("data").exists(), "nothing was made");
}

#[tokio::test]
async fn a_configuration_without_a_region_says_so() {
    let home = Home::new();
    let text = fs::read_to_string(&home.config).unwrap().replace("[region]\nid = 901\ncode = 'a'\n", "");
    fs::write(&home.config, text).unwrap();
    let (code, _, error) = home.run(&[]).await;
    assert!(code == Some(2) && error.contains("region: is missing: add a [region] section"), "{error}");
}

#[tokio::test]
async fn check_and_print_start_nothing_and_show_no_secret() {
    let home = Home::new();
    assert_eq!(home.run(&["--check"]).await, (Some(0), String::new(), String::new()));
    let (code, printed, _) = home.run(&["--print-config", "--set", "mesh.stripes=3"]).await;
    assert_eq!(code, Some(0));
    assert!(printed.contains("stripes = 3") && printed.contains("connections = 50000"), "{printed}");
    assert!(!printed.contains(MESH_KEY));
    assert!(!home.path("data").exists());
}

#[tokio::test]
async fn a_taken_port_names_the_field_and_the_address() {
    let home = Home::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for field in ["derp.listen", "derp.plain_http_listen", "mesh.listen", "metrics.listen", "operator.listen"] {
        let (code, _, error) = home.run(&["--set", &format!("{field}={address}")]).await;
        assert_eq!(code, Some(1), "{error}");
        let wanted = format!("causewayd: {field}: cannot listen on {address}: ");
        assert!(error.contains(&wanted) && error.contains("choose another port"), "{error}");
        assert!(!home.path("data/operator.sock").exists(), "nothing half started");
    }
}

#[tokio::test]
async fn a_data_directory_belongs_to_one_process_and_one_node() {
    let home = Home::new();
    let node = home.start(&[]).await;
    let (code, _, error) = home.run(&[]).await;
    let dir = home.path("data").display().to_string();
    assert!(code == Some(1) && error.contains(&dir) && error.contains("use"), "{error}");
    let epoch = node.ready.epoch;
    node.stop().await;

    let (code, _, error) = home.run(&["--set", "name=b-7"]).await;
    assert!(code == Some(1) && error.contains(&dir) && error.contains("a-1"), "{error}");

    let again = home.start(&[]).await;
    assert!(again.ready.epoch > epoch, "each start raises the epoch");
    again.stop().await;
}

#[tokio::test]
async fn a_socket_path_that_is_too_long_or_something_else_is_named() {
    let home = Home::new();
    let long = format!("operator.socket={}/{}", home.path("x").display(), "s".repeat(120));
    let (code, _, error) = home.run(&["--set", &long]).await;
    assert!(code == Some(1) && error.contains("operator.socket: ") && error.contains("shorter path"), "{error}");
    fs::write(home.path("file"), "").unwrap();
    let (code, _, error) = home.run(&["--set", &format!("operator.socket={}", home.path("file").display())]).await;
    assert!(code == Some(1) && error.contains("operator.socket: ") && error.contains("not a socket"), "{error}");
    assert!(home.path("file").exists(), "never removed");
}
