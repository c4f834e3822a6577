//! Taking up a changed configuration at an operator's wish: this node's, or another's through that node. What is done is what SIGHUP does.

use std::sync::Arc;
use std::time::Duration;

use causeway_control::{ChannelUse, PeerIdentity, Status as ControlStatus};
use causeway_proto::id::NodeId;
use causeway_rpc::v1;
use causeway_rpc::v1::configuration_client::ConfigurationClient;
use causeway_rpc::v1::configuration_server::{Configuration, ConfigurationServer};
use tokio::sync::{mpsc, oneshot};
use tonic::{Request, Response, Status};

use super::{OperatorParts, audit};
use crate::config::Reloaded;
use crate::ingress::operator::{Caller, Role};

/// Operators who wait for the reload of another to end.
const WAITING_MAX: usize = 4;

/// How long another node may take.
const DEADLINE: Duration = Duration::from_secs(5);

/// As much of an operator's name as a node believes of another.
const WHO_LEN_MAX: usize = 128;

/// Asks the owner of the configuration to read it again.
#[derive(Debug, Clone)]
pub struct ReloadHandle(mpsc::Sender<oneshot::Sender<Reloaded>>);

impl ReloadHandle {
    /// The handle, and what the owner answers to.
    #[must_use]
    pub fn new() -> (Self, mpsc::Receiver<oneshot::Sender<Reloaded>>) {
        let (asked, asks) = mpsc::channel(WAITING_MAX);
        (Self(asked), asks)
    }

    async fn reload(&self, own: NodeId) -> Result<v1::ReloadOutcome, Status> {
        let (asked, answer) = oneshot::channel();
        self.0.try_send(asked).map_err(|_| Status::unavailable("other reloads are under way: ask again"))?;
        let reloaded = answer.await.map_err(|_| Status::unavailable("the node is shutting down"))?;
        Ok(outcome(own, reloaded))
    }
}

fn outcome(own: NodeId, reloaded: Reloaded) -> v1::ReloadOutcome {
    match reloaded {
        Ok(changed) => v1::ReloadOutcome { node_id: own.0, changed, ..v1::ReloadOutcome::default() },
        Err(error) => v1::ReloadOutcome {
            node_id: own.0,
            file: error.file.display().to_string(),
            changed: Vec::new(),
            problems: error
                .problems
                .into_iter()
                .map(|problem| v1::ConfigurationProblem { field: problem.field, message: problem.message })
                .collect(),
        },
    }
}

/// Reloads the configuration of `node`, which is this one if it has no name, and writes it into the audit log.
pub(super) async fn reload(parts: &OperatorParts, caller: &Caller, node: &str) -> Result<v1::ReloadOutcome, Status> {
    recorded(caller, &format!("node={node:?}"), reload_node(parts, caller, node).await)
}

async fn reload_node(parts: &OperatorParts, caller: &Caller, node: &str) -> Result<v1::ReloadOutcome, Status> {
    let nodes = Arc::clone(&parts.nodes.borrow());
    let wanted = match node {
        "" => nodes.own(),
        name => nodes.find(name).ok_or_else(|| Status::not_found(format!("node `{name}` is not known")))?.id(),
    };
    if wanted == nodes.own() {
        return parts.reload.reload(wanted).await;
    }
    let channel = parts.peers.channel(wanted, ChannelUse::Fleet).map_err(|error| Status::unavailable(error.to_string()))?;
    let mut other = ConfigurationClient::new(channel);
    let asked = other.reload(v1::ReloadRequest { who: caller.who.to_string() });
    match tokio::time::timeout(DEADLINE, asked).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        // Without the source, which would say that this node did not answer.
        Ok(Err(status)) => Err(Status::new(status.code(), format!("node `{node}`: {}", status.message()))),
        Err(_) => Err(Status::unavailable(format!("node `{node}`: no answer in time"))),
    }
}

/// A configuration that is refused is an answer, but no success.
fn recorded(caller: &Caller, details: &str, done: Result<v1::ReloadOutcome, Status>) -> Result<v1::ReloadOutcome, Status> {
    let told = match &done {
        Ok(outcome) => match outcome.problems.first() {
            None => Ok(()),
            Some(problem) if problem.field.is_empty() => Err(format!("refused: {}", problem.message)),
            Some(problem) => Err(format!("refused: {}: {}", problem.field, problem.message)),
        },
        Err(status) => Err(status.message().to_owned()),
    };
    drop(audit::record(caller, "reload_configuration", details, told));
    done
}

/// Takes the wishes of operators that other nodes pass on.
#[derive(Debug, Clone)]
pub struct ConfigurationService {
    reload: ReloadHandle,
    status: ControlStatus,
}

impl ConfigurationService {
    /// Reloads through `reload`; asks `status` who votes.
    #[must_use]
    pub const fn new(reload: ReloadHandle, status: ControlStatus) -> Self {
        Self { reload, status }
    }

    /// The service, to be added to the routes of the mesh port.
    #[must_use]
    pub fn server(self) -> ConfigurationServer<Self> {
        ConfigurationServer::new(self)
    }
}

#[tonic::async_trait]
impl Configuration for ConfigurationService {
    async fn reload(&self, request: Request<v1::ReloadRequest>) -> Result<Response<v1::ReloadOutcome>, Status> {
        let peer = request.extensions().get::<PeerIdentity>().map(|peer| peer.node_id);
        let peer = peer.ok_or_else(|| Status::unauthenticated("the connection has no peer identity"))?;
        let who: String = request.get_ref().who.chars().take(WHO_LEN_MAX).collect();
        let caller = Caller { role: Role::Operator, local: false, who: format!("{who:?} through node {peer}").into() };
        let done = if self.status.is_voter(peer) {
            self.reload.reload(self.status.own()).await
        } else {
            Err(Status::permission_denied("only voters pass an operator's wishes on: ask a voter, or the node itself"))
        };
        recorded(&caller, "", done).map(Response::new)
    }
}
