//! Keeps the link to one stock derper: dials, logs in, and dials again when it is lost.

use std::io;
use std::time::Duration;

use causeway_client::{ClientBuilder, ConnectError, Endpoint, LoggedIn, WATCH_RETRY};
use causeway_control::NodeSet;
use causeway_proto::derpmap::NodeAddress;
use causeway_proto::key::NodePublic;
use tokio::time::sleep;

use super::DerpMeshParts;
use super::connection::{self, LinkEnd};
use crate::config::Derper;

/// Pause before the next dial, instead of [`WATCH_RETRY`], for a listed host that turned out to be a node of this fleet: it may become a stock derper again.
const SIBLING_RETRY: Duration = Duration::from_secs(60);

/// Keeps the link until cancelled, or for as long as it does not lead back to this very node.
pub(super) async fn keep(parts: DerpMeshParts, derper: Derper) {
    let name = derper.endpoint.name.clone();
    let mut last = String::new();
    loop {
        let linked = tokio::select! {
            () = parts.cancel.cancelled() => return,
            linked = link(&parts, &derper) => linked,
        };
        let (why, retry) = match linked {
            Ok(LinkEnd::Own) => {
                tracing::info!(derper = %name, "not linked: this derper is this node itself");
                return;
            }
            Ok(LinkEnd::Sibling) => ("it is a node of this fleet".to_owned(), SIBLING_RETRY),
            Ok(end) => (end.to_string(), WATCH_RETRY),
            Err(error) => {
                parts.derpers.metrics().dials_failed.inc();
                (error.to_string(), WATCH_RETRY)
            }
        };
        if why != last {
            tracing::info!(derper = %name, %why, "not linked to a stock derper");
            last = why;
        }
        tokio::select! {
            () = parts.cancel.cancelled() => return,
            () = sleep(retry) => {}
        }
    }
}

/// Links until the link ends.
async fn link(parts: &DerpMeshParts, derper: &Derper) -> Result<LinkEnd, ConnectError> {
    let logged_in = log_in(parts, derper).await?;
    let server_key = logged_in.info().server_key;
    if server_key == parts.server_key.public() {
        return Ok(LinkEnd::Own);
    }
    let mut nodes = parts.nodes.clone();
    if is_node(&nodes.borrow_and_update(), &server_key) {
        return Ok(LinkEnd::Sibling);
    }
    let metrics = parts.derpers.metrics();
    tracing::info!(derper = %derper.endpoint.name, remote = %logged_in.info().remote_addr, key = %server_key, "linked to a stock derper");
    metrics.up.inc();
    let sibling = async {
        while nodes.changed().await.is_ok() {
            if is_node(&nodes.borrow_and_update(), &server_key) {
                return;
            }
        }
        std::future::pending().await
    };
    // Dropped when one of the others comes first: the link then ends itself.
    let end = tokio::select! {
        end = connection::run(logged_in, parts) => end,
        () = sibling => LinkEnd::Sibling,
    };
    metrics.up.dec();
    metrics.ended(end.reason());
    Ok(end)
}

/// Whether a node of the fleet has this server key.
fn is_node(nodes: &NodeSet, key: &NodePublic) -> bool {
    nodes.iter().any(|node| node.record.relay.as_ref().is_some_and(|relay| relay.derp_public_key == key.as_bytes()[..]))
}

async fn log_in(parts: &DerpMeshParts, derper: &Derper) -> Result<LoggedIn, ConnectError> {
    let endpoint = match &derper.dial_host {
        Some(dial_host) => elsewhere(&derper.endpoint, dial_host).await?,
        None => derper.endpoint.clone(),
    };
    let mut client = ClientBuilder::new(parts.server_key.clone())
        .endpoint(endpoint)
        .mesh_key(parts.mesh_key.clone())
        .can_ack_pings(false)
        .preferred(false);
    if let Some(trust) = &parts.trust {
        client = client.trust(trust.clone());
    }
    client.log_in().await
}

/// The same server, found at another host's addresses.
async fn elsewhere(endpoint: &Endpoint, dial_host: &str) -> Result<Endpoint, ConnectError> {
    let resolve = |source| ConnectError::Resolve { host: dial_host.to_owned(), source };
    let found: Vec<_> = tokio::net::lookup_host((dial_host, endpoint.port)).await.map_err(resolve)?.collect();
    let mut endpoint = Endpoint { ipv4: NodeAddress::Disabled, ipv6: NodeAddress::Disabled, ..endpoint.clone() };
    for address in found.iter().rev() {
        match address.ip() {
            std::net::IpAddr::V4(ip) => endpoint.ipv4 = NodeAddress::Fixed(ip),
            std::net::IpAddr::V6(ip) => endpoint.ipv6 = NodeAddress::Fixed(ip),
        }
    }
    if found.is_empty() {
        return Err(resolve(io::Error::new(io::ErrorKind::NotFound, "it has no address")));
    }
    Ok(endpoint)
}
