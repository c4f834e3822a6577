//! A server whose key is known before: no round trip to ask for it, and no other server is taken for it.

use causeway_client::{ClientBuilder, ConnectError, Connection};
use causeway_proto::derp::handshake::client::HandshakeError;
use causeway_proto::key::{NodePrivate, NodePublic};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::server::{Ca, Options, Server};

async fn connect(ca: &Ca, server: &Server, expected: NodePublic) -> Result<Connection, ConnectError> {
    let builder = ClientBuilder::new(NodePrivate::generate()).trust(ca.trust()).endpoint(server.endpoint());
    builder.server_key(expected).connect(&TaskTracker::new(), &CancellationToken::new()).await
}

#[tokio::test]
async fn a_known_key_saves_the_round_trip_even_without_meta_cert_or_tls() {
    let ca = Ca::new();
    for options in [
        Options::default(),
        Options { meta_cert: false, ..Options::default() },
        Options { versions: vec![&rustls::version::TLS12], ..Options::default() },
        Options { tls: false, ..Options::default() },
    ] {
        let mut server = Server::start(&ca, options).await;
        let connection = connect(&ca, &server, server.key).await.expect("the expected server");
        assert!(connection.info().fast_start && connection.info().server_key == server.key);
        let session = server.accept().await;
        assert!(session.pipelined && session.head.fast_start());
    }
}

#[tokio::test]
async fn a_server_with_another_key_is_refused_and_both_are_named() {
    let ca = Ca::new();
    let expected = NodePrivate::generate().public();
    for options in
        [Options::default(), Options { meta_cert: false, ..Options::default() }, Options { tls: false, ..Options::default() }]
    {
        let server = Server::start(&ca, options).await;
        let error = connect(&ca, &server, expected).await.expect_err("another server");
        let ConnectError::Handshake { addr, source } = &error else { panic!("{error}") };
        assert_eq!((*addr, source), (server.addr, &HandshakeError::OtherServerKey { expected, shown: server.key }));
        assert!(
            error.to_string().contains(&expected.to_string()) && error.to_string().contains(&server.key.to_string()),
            "{error}"
        );
    }
}
