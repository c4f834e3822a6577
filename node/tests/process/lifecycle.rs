//! How a node ends, and what it stands.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use rustix::fs::{FlockOperation, OFlags, fcntl_getfl, fcntl_setfl, flock};
use tokio::net::TcpStream;
use tokio::process::Command;

use crate::harness::{Home, get, until_served};

#[tokio::test]
async fn a_signal_ends_the_node_in_order() {
    let home = Home::new();
    let node = home.start(&[]).await;
    let socket = home.path("data/operator.sock");
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(node.ready.operator_socket == socket.display().to_string());
    node.until_metric("causeway_process_panics_total", |panics| panics == 0.0).await;
    node.stop().await;
    assert!(!socket.exists());
}

#[tokio::test]
async fn a_socket_left_by_a_killed_process_is_replaced() {
    let home = Home::new();
    let mut node = home.start(&[]).await;
    node.child.kill().await.unwrap();
    assert!(home.path("data/operator.sock").exists() && node.ready_file.exists(), "left behind");
    drop(node);
    home.start(&[]).await.stop().await;
}

#[tokio::test]
async fn the_node_ends_when_its_leash_is_let_go() {
    let home = Home::new();
    let path = home.path("leash");
    let holder = File::create(&path).unwrap();
    flock(&holder, FlockOperation::LockExclusive).unwrap();
    let mut node = home.start(&["--leash", path.to_str().unwrap()]).await;
    drop(holder);
    assert_eq!(node.ended().await.code(), Some(0));
    assert!(node.log().contains("leash"), "{}", node.log());
    let (code, _, error) = home.run(&["--leash", "/nonexistent/leash"]).await;
    assert!(code == Some(1) && error.contains("--leash /nonexistent/leash"), "{error}");
}

#[tokio::test]
async fn without_descriptors_the_node_stands_and_serves_again_afterwards() {
    let home = Home::new();
    // Enough to start with, not enough for the crowd.
    let mut command = Command::new("sh");
    command.arg("-c").arg("ulimit -n 96; exec \"$@\"").arg("sh").arg(env!("CARGO_BIN_EXE_causewayd"));
    command.arg("--config").arg(&home.config).kill_on_drop(true);
    // The limit on unauthenticated connections must not be what stops the crowd.
    command.args(["--set", "limits.connections=1000", "--set", "log.filter=error"]);
    let node = home.start_command(command).await;
    let plain = node.ready.plain_http.clone();
    assert!(get(&plain, "/healthz").await.ends_with("ok\n"));

    // The listener that nothing limits but the handshakes.
    let mut crowd = Vec::new();
    for _ in 0..150 {
        crowd.push(TcpStream::connect(&node.ready.mesh).await.unwrap());
    }
    // One of them must be refused by the reserved descriptor.
    let refused = tokio::time::timeout(Duration::from_secs(20), async {
        loop {
            for stream in &crowd {
                let mut byte = [0];
                if matches!(stream.try_read(&mut byte), Ok(0))
                    || matches!(stream.try_read(&mut byte), Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset)
                {
                    return;
                }
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    refused.await.expect("a connection is accepted and closed");
    drop(crowd);
    until_served(&plain).await;
    node.until_metric("causeway_ingress_shed_connections_total", |shed| shed >= 1.0).await;
    node.stop().await;
}

#[tokio::test]
async fn a_full_log_pipe_that_nobody_reads_stalls_nothing() {
    let home = Home::new();
    let (_reader, mut writer) = std::io::pipe().unwrap();
    let flags = fcntl_getfl(&writer).unwrap();
    fcntl_setfl(&writer, flags | OFlags::NONBLOCK).unwrap();
    while writer.write(&[b'x'; 4096]).is_ok() {}
    while writer.write(b"x").is_ok() {}
    fcntl_setfl(&writer, flags).unwrap();
    let mut command = home.command(&["--set", "log.filter=trace"]);
    command.stderr(writer);
    let mut node = home.start_with_stderr(command).await;
    node.until_ready().await;
    assert!(get(&node.ready.plain_http, "/healthz").await.ends_with("ok\n"));
    node.signal(rustix::process::Signal::TERM);
    assert_eq!(node.ended().await.code(), Some(0));
}

#[tokio::test]
async fn a_standalone_node_lists_its_region_at_once_and_stays_ready_when_idle() {
    let home = Home::new();
    let node = home.start(&[]).await;
    let map = get(&node.ready.plain_http, "/derpmap").await;
    assert!(map.contains(r#""RegionCode":"a""#) && map.contains(r#""Name":"a-1""#), "{map}");
    node.until_ready().await;
    // The only voter needs nobody's acknowledgement, however long ago the last write was.
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert!(get(&node.ready.plain_http, "/readyz").await.starts_with("HTTP/1.1 200 "), "{}", node.log());
    assert!(get(&node.ready.plain_http, "/derpmap").await.contains(r#""Name":"a-1""#));
    node.stop().await;
}
