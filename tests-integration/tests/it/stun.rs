//! STUN of a running node, as clients use it.

use std::time::Duration;

use causeway_proto::stun::message::{binding_request, parse_binding_response};
use causeway_tests_integration::cluster::Cluster;
use causeway_tests_integration::logs::Expected;
use tokio::net::UdpSocket;

#[tokio::test(flavor = "multi_thread")]
async fn a_node_tells_a_client_its_address_and_ignores_nonsense() -> anyhow::Result<()> {
    let cluster = Cluster::start(1, 1, &[]).await?;
    let socket = UdpSocket::bind("127.0.0.1:0").await?;
    socket.connect(&cluster.node("a-1").stun).await?;
    // If nonsense were answered, its answer would come first.
    let mut spoilt = binding_request(&[1; 12]);
    spoilt[39] ^= 1;
    socket.send(&spoilt).await?;
    socket.send(b"hello").await?;
    socket.send(&binding_request(&[2; 12])).await?;
    let mut answer = [0; 1500];
    let len = tokio::time::timeout(Duration::from_secs(5), socket.recv(&mut answer)).await??;
    let (transaction, address) = parse_binding_response(&answer[..len])?;
    assert_eq!((transaction, address, len), ([2; 12], socket.local_addr()?, 32));
    cluster.finish(&["a-1"], &Expected::default()).await
}
