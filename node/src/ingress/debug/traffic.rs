//! `/debug/traffic`: which clients move bytes, round by round (`derp.md` section 11).

use std::collections::HashMap;
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::clients::Registry;

/// Time between two rounds.
pub const TRAFFIC_INTERVAL: Duration = Duration::from_secs(2);

/// An endless page: a line of JSON for each connection that moved bytes since the last round, then an empty line. `Sent` and `Recv` are
/// bytes of DERP frames since the client connected, from the node's point of view, so that rates are the differences.
#[derive(Debug)]
pub struct TrafficPage {
    registry: Arc<Registry>,
    last: HashMap<u64, (u64, u64)>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Line {
    sent: u64,
    recv: u64,
    key: String,
    #[serde(skip_serializing_if = "is_zero")]
    unique_senders: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
const fn is_zero(n: &u64) -> bool {
    *n == 0
}

impl TrafficPage {
    pub(super) fn new(registry: Arc<Registry>) -> Self {
        Self { registry, last: HashMap::new() }
    }

    /// The next round; to be asked for each [`TRAFFIC_INTERVAL`].
    #[must_use]
    pub fn round(&mut self) -> String {
        let mut now = HashMap::new();
        let mut text = String::new();
        for connection in self.registry.connections() {
            let traffic = connection.traffic();
            let (sent, recv) = (traffic.sent(), traffic.received());
            now.insert(connection.id(), (sent, recv));
            if self.last.get(&connection.id()).copied().unwrap_or_default() == (sent, recv) {
                continue;
            }
            let key = connection.facts().key.to_text();
            let unique_senders = if connection.is_active() { traffic.unique_senders() } else { 0 };
            // Numbers and a key: both can be written.
            if let Ok(line) = serde_json::to_string(&Line { sent, recv, key, unique_senders }) {
                let _infallible = writeln!(text, "{line}");
            }
        }
        self.last = now;
        text.push('\n');
        text
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::time::Instant;

    use causeway_proto::key::NodePublic;
    use tokio_util::sync::CancellationToken;

    use super::super::DebugPages;
    use crate::clients::{ClientFacts, Registration};
    use crate::telemetry::exporter::{Exporter, registry};

    fn connect(pages: &DebugPages, key: u8, is_mesh_peer: bool) -> Registration {
        let (key, remote) = (NodePublic::from_bytes([key; 32]), SocketAddr::from(([192, 0, 2, 1], 1)));
        let facts = ClientFacts { is_mesh_peer, can_ack_pings: false, ..ClientFacts::ordinary(key, remote) };
        pages.parts.registry.register(facts, CancellationToken::new(), Instant::now()).expect("room")
    }

    #[test]
    fn a_round_has_the_clients_that_moved_bytes_since_the_last() {
        let pages = DebugPages::idle(Exporter::new(registry()));
        let mut page = pages.traffic();
        let (busy, idle, derper) = (connect(&pages, 1, false), connect(&pages, 2, false), connect(&pages, 3, true));
        assert_eq!(page.round(), "\n");
        let key = format!("nodekey:{}", "01".repeat(32));
        busy.connection().traffic().note_received(37);
        derper.connection().traffic().note_sent(5);
        assert_eq!(page.round(), format!("{{\"Sent\":0,\"Recv\":37,\"Key\":\"{key}\"}}\n\n"));
        assert_eq!(page.round(), "\n");
        busy.connection().traffic().note_sent(100);
        busy.connection().traffic().note_sender(&NodePublic::from_bytes([9; 32]));
        assert_eq!(page.round(), format!("{{\"Sent\":100,\"Recv\":37,\"Key\":\"{key}\",\"UniqueSenders\":1}}\n\n"));
        drop((busy, idle));
        assert_eq!(page.round(), "\n");
    }
}
