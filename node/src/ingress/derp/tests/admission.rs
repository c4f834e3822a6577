//! Admission as clients meet it: at login, and while they are connected.

use std::fs;
use std::path::{Path, PathBuf};

use tokio::runtime::Handle;
use tokio::sync::Notify;

use super::*;
use crate::admission::cache::Lifetimes;
use crate::admission::list::KeyList;
use crate::admission::testing::{Behaviour, Server};
use crate::admission::{Denial, Policy, watch};
use crate::config::{self, AdmissionSource};
use crate::lifecycle::tasks::Tasks;

const FORGETFUL: Lifetimes = Lifetimes { allow: Duration::ZERO, deny: Duration::ZERO, stale: Duration::ZERO };

/// A node that asks `sources`, and decides again every `recheck`.
async fn node(sources: Vec<AdmissionSource>, recheck: Duration) -> (TestNode, Arc<Policy>) {
    let config = config::Admission { sources, fail_open: false, lifetimes: FORGETFUL, recheck };
    let policy = Policy::new(&config, Handle::current(), Tasks::default());
    let node = TestNode::start_with(Arc::<Policy>::clone(&policy)).await;
    let cancel = node.server.parts.cancel.clone();
    node.tracker.spawn(watch::lists(Arc::clone(&policy), cancel.clone()));
    node.tracker.spawn(watch::clients(Arc::clone(&policy), Arc::clone(&node.server.parts.registry), cancel));
    (node, policy)
}

fn write(path: &Path, keys: &[&NodePrivate]) {
    let text: Vec<String> = keys.iter().map(|key| key.public().to_text()).collect();
    fs::write(path, text.join("\n")).unwrap();
}

fn file(dir: &tempfile::TempDir, keys: &[&NodePrivate]) -> (PathBuf, Arc<KeyList>) {
    let path = dir.path().join("keys");
    write(&path, keys);
    let list = Arc::new(KeyList::load(&path).unwrap());
    (path, list)
}

impl TestNode {
    /// Logs in; `None` if the server closes instead.
    async fn try_login(&self, key: &NodePrivate) -> Option<Client> {
        let io = self.dial(true, None).await;
        self.login_over(Box::new(io), key.clone(), ClientInfo::current()).await
    }
}

fn url(address: SocketAddr) -> AdmissionSource {
    let tls = causeway_client::Trust::insecure_for_tests().unwrap().client_config();
    AdmissionSource::VerifyUrl { url: format!("http://{address}/").parse().unwrap(), tls }
}

#[tokio::test]
async fn a_changed_list_holds_for_logins_and_closes_who_is_connected() {
    let dir = tempfile::tempdir().unwrap();
    let [a, b, c] = [(); 3].map(|()| NodePrivate::generate());
    let (path, list) = file(&dir, &[&a, &b]);
    let (node, policy) = node(vec![AdmissionSource::AllowFile(list)], Duration::from_secs(3_600)).await;
    let (mut stays, mut goes) = (node.try_login(&a).await.unwrap(), node.try_login(&b).await.unwrap());
    assert!(node.try_login(&c).await.is_none());
    let mut mesh = node.mesh_peer().await;
    // A bad file changes nothing.
    fs::write(&path, "nonsense").unwrap();
    node.until("the bad list is noticed", |_| policy.metrics().reloads_that_were(false) == 1).await;
    goes.settle().await;
    write(&path, &[&a, &c]);
    assert_eq!(goes.next().await, None, "at once");
    node.until("counted", |node| node.server.metrics.ended_for("not_admitted") == 1).await;
    assert!(node.try_login(&b).await.is_none() && node.try_login(&c).await.is_some());
    stays.settle().await;
    mesh.settle().await;
    assert_eq!(policy.metrics().refused_for(Denial::NotListed), 2);
    assert_eq!(node.server.metrics.refused_for("denied"), 2);
}

#[tokio::test]
async fn connected_clients_are_decided_on_again_but_an_outage_closes_nobody() {
    let (server, address) = Server::tcp(Behaviour::allow(true)).await;
    let (node, policy) = node(vec![url(address)], Duration::from_millis(20)).await;
    let mut client = node.try_login(&NodePrivate::generate()).await.unwrap();
    for behaviour in [Behaviour::Close, Behaviour::Answer(503, String::new())] {
        server.behave(behaviour);
        let before = policy.metrics().rechecks();
        node.until("decided on again", |_| policy.metrics().rechecks() >= before + 3).await;
        client.settle().await;
        assert!(node.try_login(&NodePrivate::generate()).await.is_none(), "a stranger is not let in meanwhile");
    }
    server.behave(Behaviour::allow(false));
    assert_eq!(client.next().await, None);
    node.until("counted", |node| node.server.metrics.ended_for("not_admitted") == 1).await;
}

#[tokio::test]
async fn what_changes_while_a_login_is_decided_on_holds_for_it_too() {
    let dir = tempfile::tempdir().unwrap();
    let key = NodePrivate::generate();
    let (path, list) = file(&dir, &[]);
    let told = Arc::new(Notify::new());
    let (server, address) = Server::tcp(Behaviour::AllowWhen(Arc::clone(&told))).await;
    let (node, policy) = node(vec![AdmissionSource::DenyFile(list), url(address)], Duration::from_secs(3_600)).await;
    let change = async {
        server.asked(1).await;
        write(&path, &[&key]);
        node.until("the list is read again", |_| policy.metrics().reloads_that_were(true) == 1).await;
        told.notify_one();
    };
    let (client, ()) = futures::join!(node.try_login(&key), change);
    assert!(client.is_none());
    assert_eq!(policy.metrics().refused_for(Denial::Listed), 1);
    assert!(node.server.parts.registry.is_empty());
}
