//! What the control plane is started with.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use causeway_proto::key::MeshKey;
use causeway_rpc::v1;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::discovery::Seeds;

/// Timing of Raft elections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RaftProfile {
    /// Regions up to 200 ms apart.
    #[default]
    Wan,
    /// One site: a new leader within 3 s.
    Lan,
}

/// A node's settings of the control plane.
#[derive(Debug, Clone)]
pub struct Config {
    /// Unique in the fleet; the data directory remembers it.
    pub name: String,
    /// Where identity, log and snapshots are kept.
    pub data_dir: PathBuf,
    /// The fleet's secret: our certificate is minted from it.
    pub mesh_key: MeshKey,
    /// Trusted as well, while the key is being rotated.
    pub mesh_key_next: Option<MeshKey>,
    /// What this node says of itself, with bound ports; `node_id`, `public_key`, `name` and `voter_eligible` are filled in.
    pub record: v1::NodeRecord,
    /// How to find the others.
    pub seeds: Seeds,
    /// Timing of elections.
    pub profile: RaftProfile,
    /// Whether this node may vote.
    pub voter_eligible: bool,
    /// A fleet of one, which forms itself.
    pub standalone: bool,
}

/// Reads the wall clock.
pub type WallClock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// How the process traces; the control plane knows no exporter.
#[derive(Debug, Clone, Copy)]
pub struct Tracing {
    /// Opens the span of a proposal made here if a trace shall start with it; else a disabled one.
    pub proposal: fn() -> tracing::Span,
    /// Writes the context of the current span, if that is exported, into the headers of a request to another node.
    pub inject: fn(&mut http::HeaderMap),
}

impl Tracing {
    /// Nothing is traced.
    pub const OFF: Self = Self { proposal: tracing::Span::none, inject: |_| {} };
}

/// What the control plane is given by the process.
#[derive(Clone)]
pub struct Deps {
    /// Every task starts on it.
    pub tracker: TaskTracker,
    /// Ends them.
    pub cancel: CancellationToken,
    /// The wall clock.
    pub clock: WallClock,
    /// Traces.
    pub tracing: Tracing,
}

impl std::fmt::Debug for Deps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Deps").finish_non_exhaustive()
    }
}
