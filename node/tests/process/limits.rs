//! Limits at the doors of a real node, and taking up a changed configuration without a restart.

use std::fs;
use std::io::ErrorKind;
use std::time::Duration;

use causeway_client::{ClientBuilder, ConnectError, Connection, Endpoint};
use causeway_proto::key::NodePrivate;
use rustix::process::Signal;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::harness::{DEADLINE, Home, Node};

async fn connect(node: &Node, key: &NodePrivate) -> Result<Connection, ConnectError> {
    let mut endpoint = Endpoint::new(&node.ready.derp).unwrap();
    endpoint.insecure_for_tests = true;
    let builder = ClientBuilder::new(key.clone()).endpoint(endpoint);
    builder.connect(&TaskTracker::new(), &CancellationToken::new()).await
}

async fn connect_anew(node: &Node) -> Result<Connection, ConnectError> {
    connect(node, &NodePrivate::generate()).await
}

/// Waits until the other side has closed.
async fn closed(mut stream: TcpStream) {
    let mut byte = [0];
    match timeout(DEADLINE, stream.read(&mut byte)).await.expect("closed") {
        Ok(0) => {}
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        other => panic!("{other:?}"),
    }
}

impl Home {
    fn edit(&self, edit: impl FnOnce(String) -> String) {
        let text = fs::read_to_string(&self.config).unwrap();
        fs::write(&self.config, edit(text)).unwrap();
    }
}

impl Node {
    /// Makes it read its configuration, and waits until it has.
    async fn reload(&self) {
        let before = self.metric("causeway_config_reloads_total").await;
        self.signal(Signal::HUP);
        self.until_metric("causeway_config_reloads_total", |reloads| reloads == before + 1.0).await;
    }

    async fn end(mut self) {
        self.signal(Signal::TERM);
        assert_eq!(self.ended().await.code(), Some(0));
    }
}

#[tokio::test]
async fn a_burst_above_the_accept_rate_is_closed_at_once_and_the_listener_goes_on() {
    let home = Home::new();
    home.edit(|text| format!("{text}[limits]\naccepts_per_second_per_source = 1\naccept_burst_per_source = 5\n"));
    let node = home.start(&[]).await;
    let mut burst = Vec::new();
    for _ in 0..100 {
        burst.push(TcpStream::connect(&node.ready.derp).await.unwrap());
    }
    // The last ones, for which no allowance was left: long before any deadline of a handshake.
    let refused = burst.split_off(50);
    timeout(Duration::from_secs(3), futures::future::join_all(refused.into_iter().map(closed))).await.expect("at once");
    node.until_metric("causeway_ingress_refused_connections_total", |refused| refused >= 90.0).await;
    drop(burst);
    // A stock relay's process would have ended; this one takes whoever waits for the next second.
    let served = async {
        while connect_anew(&node).await.is_err() {
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    timeout(DEADLINE, served).await.expect("served again");
    // Another rate holds without a restart.
    home.edit(|text| {
        text.replace("accept_burst_per_source = 5", "accept_burst_per_source = 1000").replace("source = 1\n", "source = 1000\n")
    });
    node.reload().await;
    let mut clients = Vec::new();
    for _ in 0..20 {
        // The larger bucket fills at the new rate.
        let client = async {
            loop {
                if let Ok(client) = connect_anew(&node).await {
                    return client;
                }
            }
        };
        clients.push(timeout(DEADLINE, client).await.expect("served"));
    }
    drop(clients);
    node.stop().await;
}

#[tokio::test]
async fn handshakes_that_go_nowhere_do_not_keep_others_out() {
    let home = Home::new();
    let node = home.start(&["--set", "limits.tls_handshakes_per_core=1"]).await;
    let cores = std::thread::available_parallelism().unwrap().get();
    let mut silent = Vec::new();
    for _ in 0..cores + 8 {
        silent.push(TcpStream::connect(&node.ready.derp).await.unwrap());
    }
    // All but those that hold a turn are closed after two seconds, before anything is read of them.
    let queued = silent.split_off(cores);
    timeout(Duration::from_secs(10), futures::future::join_all(queued.into_iter().map(closed))).await.expect("closed");
    drop(silent);
    drop(timeout(DEADLINE, connect_anew(&node)).await.expect("in time").expect("served"));
    node.stop().await;
}

#[tokio::test]
async fn an_address_has_so_many_clients() {
    let home = Home::new();
    let node = home.start(&["--set", "limits.authenticated_per_ipv4=2"]).await;
    let (one, _other) = (connect_anew(&node).await.unwrap(), connect_anew(&node).await.unwrap());
    assert!(connect_anew(&node).await.is_err());
    node.until_metric("causeway_derp_logins_refused_total", |refused| refused == 1.0).await;
    drop(one);
    node.until_metric("causeway_clients_connections", |connections| connections == 1.0).await;
    assert!(connect_anew(&node).await.is_ok());
    node.stop().await;
}

#[tokio::test]
async fn a_changed_configuration_is_taken_up_and_a_bad_one_is_not() {
    let home = Home::new();
    let [member, other] = [(); 2].map(|()| NodePrivate::generate());
    let list = home.path("deny");
    fs::write(&list, other.public().to_text()).unwrap();
    let node = home.start(&[]).await;
    let (mut stays, mut goes) = (connect(&node, &member).await.unwrap(), connect(&node, &other).await.unwrap());
    let good = fs::read_to_string(&home.config).unwrap();

    fs::write(&home.config, "nonsense").unwrap();
    node.reload().await;
    fs::write(&home.config, good.replace("[stun]", "[log]\nfilter = 'a=b=c'\n[stun]")).unwrap();
    node.reload().await;
    fs::write(&home.config, good.replace("code = 'a'", "code = 'b'").replace("[stun]", "[limits]\nconnections = 7\n[stun]"))
        .unwrap();
    node.reload().await;
    let log = node.log();
    for wanted in ["node.toml", "log.filter", "region.code: has changed, which needs a restart", "the one in force stays"] {
        assert!(log.contains(wanted), "{wanted} in:\n{log}");
    }
    assert!(!log.contains("limits.connections: has changed"), "{log}");

    let admission = format!("[admission]\nsources = ['deny_file']\ndeny_file = '{}'\n", list.display());
    fs::write(&home.config, good.replace("[stun]", &format!("{admission}[log]\nfilter = 'debug'\n[stun]"))).unwrap();
    node.reload().await;
    let closed = async { while goes.recv().await.is_ok() {} };
    timeout(DEADLINE, closed).await.expect("a client that is denied from now on is closed");
    assert!(connect(&node, &other).await.is_err());
    node.until_metric("causeway_admission_evicted_total", |evicted| evicted == 1.0).await;
    let sender = stays.sender().clone();
    let (pong, _) = tokio::join!(sender.ping(), timeout(Duration::from_secs(1), stays.recv()));
    pong.expect("others are not disturbed");
    let log = node.log();
    assert!(log.contains("took up the changed configuration") && log.contains("admission.deny_file"), "{log}");
    assert!(log.contains("DEBUG"), "the log filter holds");
    let refused = format!("client={} reason=\"listed\"", other.public().to_text());
    assert!(log.contains(&refused), "{log}");

    // Back to open admission, by the file as it was.
    fs::write(&home.config, &good).unwrap();
    node.reload().await;
    assert!(connect(&node, &other).await.is_ok());
    node.reload().await;
    assert!(node.log().contains("has not changed"));
    node.end().await;
}
