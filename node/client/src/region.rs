//! Which node of a region to connect to: the first that answers, in the map's order (`derp.md` section 15.1).

use causeway_proto::derpmap::{DerpMap, Region};
use causeway_proto::id::RegionId;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::connection::Connection;
use crate::endpoint::Endpoint;
use crate::error::{ConfigError, ConnectError};
use crate::login::{CONNECT_TIMEOUT, Login};

/// The region of this id, if it has a relay node.
pub(crate) fn find_region(map: &DerpMap, id: RegionId) -> Result<&Region, ConfigError> {
    let region = map.regions.get(&id).ok_or(ConfigError::NoRegion(id))?;
    if relay_nodes(region).next().is_none() {
        return Err(ConfigError::NoRelayNode(id));
    }
    Ok(region)
}

/// The region's relay nodes, in order.
pub(crate) fn relay_nodes(region: &Region) -> impl Iterator<Item = Endpoint> {
    region.nodes.iter().filter_map(Endpoint::of_node)
}

/// Connects to the first node of the region that answers a login. Unlike stock clients it also goes on to the next node when TLS or the
/// login fails, as long as there is time. All of it takes at most [`CONNECT_TIMEOUT`]; the error is that of the first node.
pub(crate) async fn connect_region(
    region: &Region,
    login: &Login,
    tasks: &TaskTracker,
    cancel: &CancellationToken,
) -> Result<Connection, ConnectError> {
    let deadline = Instant::now() + CONNECT_TIMEOUT;
    let ideal = region.nodes.first().map(|node| node.name.as_str());
    let mut first_error = None;
    for endpoint in relay_nodes(region) {
        let ideal = ideal.filter(|name| *name != endpoint.name);
        match Connection::open(&endpoint, ideal, login, deadline, tasks, cancel).await {
            Ok(connection) => return Ok(connection),
            Err(error) => {
                tracing::debug!(node = %endpoint, %error, "node does not answer");
                first_error.get_or_insert(error);
            }
        }
        if Instant::now() >= deadline {
            break;
        }
    }
    Err(first_error.unwrap_or_else(|| ConfigError::NoRelayNode(region.region_id).into()))
}
