//! Presence: which node holds which client key (`architecture.md` section 3).
//!
//! Only the node holding a client speaks for it, in its [`OwnerLog`]. Prefixes of that log reach every node by watch and by Raft;
//! [`Table`] is what Raft applied, [`PresenceView`] the longest prefix known by either way, and the one answer to "who holds K?".
//! Everything here is pure: no sockets, no clock, no iteration order of a hash map that could be seen.

pub mod clock;
pub mod clone_alarm;
pub mod command;
pub mod fence;
pub mod gone;
mod limits;
mod log_identity;
pub mod owner_log;
pub mod prefer;
pub mod table;
pub mod view;

pub use clock::{HybridClock, PeerClocks};
pub use clone_alarm::{CloneAlarm, CloneAlarmChange};
pub use command::{Command, DecodeCommandError};
pub use fence::FenceMonitor;
pub use gone::GoneTimers;
pub use limits::{CLAIMS_PER_OWNER_MAX, OWNERS_MAX};
pub use log_identity::LogIdentity;
pub use owner_log::{Batch, OwnerLog, OwnerLogFull, OwnerSnapshot, TooOld};
pub use prefer::{Candidate, Preference, Validity};
pub use table::{Applied, Outcome, Refusal, Table, TableEvent, TableSnapshot};
pub use view::{EventBatch, IngestError, OwnerStatus, PresenceCounts, PresenceEvent, PresenceView, WatchInput};
