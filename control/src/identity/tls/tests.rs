#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;
use causeway_proto::key::MeshKey;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

fn node(seed: u8, current: &MeshKey, next: Option<&MeshKey>) -> MeshTls {
    MeshTls::new(FleetTrust::new(current, next), NodeKey::from_seed(&[seed; 32]))
}

type Accepted = Result<(MeshStream, PeerIdentity, Alpn), MeshTlsError>;
type Connected = Result<(MeshStream, PeerIdentity), MeshTlsError>;

async fn shake(server: &MeshTls, client: &MeshTls, expected: Option<NodeId>, alpn: Alpn) -> (Accepted, Connected) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    let accept = async { server.accept(listener.accept().await.unwrap().0).await };
    tokio::join!(accept, client.connect(&addr, expected, alpn))
}

#[tokio::test]
async fn nodes_of_one_mesh_key_know_each_other_by_key_and_protocol() {
    let key = MeshKey::generate();
    let (a, b) = (node(1, &key, None), node(2, &key, None));
    for alpn in [Alpn::Grpc, Alpn::Link] {
        let (accepted, connected) = shake(&a, &b, Some(a.identity().node_id), alpn).await;
        let ((mut server, client_id, spoken), (mut client, server_id)) = (accepted.unwrap(), connected.unwrap());
        assert_eq!((client_id, server_id, spoken), (b.identity(), a.identity(), alpn));
        client.write_all(b"ping").await.unwrap();
        client.flush().await.unwrap();
        let mut read = [0; 4];
        server.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"ping");
    }
}

#[tokio::test]
async fn a_wrong_mesh_key_is_named_on_both_sides() {
    let (one, other) = (MeshKey::generate(), MeshKey::generate());
    let (a, b) = (node(1, &one, None), node(2, &other, None));
    let (accepted, connected) = shake(&a, &b, None, Alpn::Grpc).await;
    let (ours, theirs) = (FleetTrust::new(&one, None), FleetTrust::new(&other, None));
    match connected {
        Err(MeshTlsError::WrongMeshKey { theirs: Some(seen), ours: own }) => {
            assert_eq!((seen.as_str(), own.as_str()), (ours.current.fingerprint(), theirs.current.fingerprint()));
        }
        unexpected => panic!("{unexpected:?}"),
    }
    assert!(matches!(accepted, Err(MeshTlsError::WrongMeshKey { theirs: None, .. })), "{accepted:?}");
}

#[tokio::test]
async fn a_mesh_key_is_rotated_without_a_gap() {
    let (old, new) = (MeshKey::generate(), MeshKey::generate());
    // One that trusts the new key too, one that has made it its current one.
    let (a, b) = (node(1, &old, Some(&new)), node(2, &new, Some(&old)));
    for (server, client) in [(&a, &b), (&b, &a)] {
        let (accepted, connected) = shake(server, client, None, Alpn::Grpc).await;
        assert!(accepted.is_ok() && connected.is_ok());
    }
}

#[tokio::test]
async fn another_node_and_an_evicted_one_are_refused() {
    let key = MeshKey::generate();
    let (a, b) = (node(1, &key, None), node(2, &key, None));
    let (_, connected) = shake(&a, &b, Some(NodeId(7)), Alpn::Grpc).await;
    assert!(matches!(connected, Err(MeshTlsError::WrongNode { expected: NodeId(7), .. })));
    a.set_evicted(BTreeSet::from([b.identity().node_id]));
    let (accepted, _) = shake(&a, &b, None, Alpn::Grpc).await;
    assert!(matches!(accepted, Err(MeshTlsError::NotAllowed(id)) if id == b.identity().node_id));
    let (_, connected) = shake(&b, &a, None, Alpn::Grpc).await;
    assert!(matches!(connected, Err(MeshTlsError::NotAllowed(id)) if id == b.identity().node_id));
}

#[tokio::test]
async fn a_peer_that_says_nothing_or_nonsense_is_let_go() {
    let key = MeshKey::generate();
    let a = node(1, &key, None);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut nonsense = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    nonsense.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let (socket, _) = listener.accept().await.unwrap();
    assert!(matches!(a.accept(socket).await, Err(MeshTlsError::Io(_))));
    let silent = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (socket, _) = listener.accept().await.unwrap();
    tokio::time::pause();
    assert!(matches!(a.accept(socket).await, Err(MeshTlsError::Timeout)));
    drop(silent);
}

#[tokio::test]
async fn a_certificate_of_the_fleet_for_another_key_does_not_pass_as_a_node() {
    let key = MeshKey::generate();
    let ca = crate::identity::FleetCa::derive(&key);
    let minted = MintedCertificate::mint(&ca, &NodeKey::from_seed(&[3; 32]), SystemTime::now());
    assert_eq!(identity_of(&minted.der), Some(NodeKey::from_seed(&[3; 32]).identity()));
    assert_eq!(identity_of(ca.certificate()), None);
    assert!(!minted.is_stale(SystemTime::now()));
    assert!(minted.is_stale(SystemTime::now() + Duration::from_secs(25 * 3600)));
}
