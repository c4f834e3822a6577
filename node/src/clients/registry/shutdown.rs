//! The end of all connections when the node goes: clients first, then the stock derpers that watch them.

use std::time::Duration;

use causeway_proto::derp::frame::Frame;
use tokio::time::timeout;

use super::Registry;

/// Clients of a node that goes come back within this time, not all at once.
const RECONNECT_SPREAD_MS: u32 = 1_000;

/// How long they try before they look for another region.
const TRY_FOR_MS: u32 = 10_000;

/// How long clients have to take what waits for them, and after them the mesh peers.
const GRACE: Duration = Duration::from_millis(500);

impl Registry {
    /// Tells every client that this node goes, each to come back a little later than the others (`derp.md` section 3.1), and ends its
    /// connection once that and all that waits for it is written. Stock derpers that watch hear of every departure before theirs ends.
    pub async fn shut_down(&self) {
        for mesh_peers in [false, true] {
            self.end_all(mesh_peers).await;
        }
    }

    async fn end_all(&self, mesh_peers: bool) {
        let connections = self.all(mesh_peers);
        for connection in &connections {
            let frame = Frame::Restarting { reconnect_in_ms: rand::random_range(0..RECONNECT_SPREAD_MS), try_for_ms: TRY_FOR_MS };
            // A connection that cannot take it ends anyway.
            let _refused = connection.send(frame);
            connection.outbox.finish();
        }
        let mut registrations = self.registrations(mesh_peers).subscribe();
        if timeout(GRACE, registrations.wait_for(|registrations| *registrations == 0)).await.is_err() {
            // Who reads too slowly hears of it by the end of the connection; so does who came in between.
            self.all(mesh_peers).iter().for_each(|connection| connection.cancel.cancel());
            let _late = timeout(GRACE, registrations.wait_for(|registrations| *registrations == 0)).await;
        }
    }
}
