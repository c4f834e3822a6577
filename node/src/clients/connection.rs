//! One connection of a client, as the router and the registry see it.

use std::net::SocketAddr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use causeway_proto::derp::frame::{Frame, PresentFlags};
use causeway_proto::key::NodePublic;
use tokio_util::sync::CancellationToken;

use super::proven::Proof;
use super::traffic::Traffic;
use crate::pump::lanes::{ControlRefused, Outbox};

/// What a login says of a connection.
#[derive(Clone, Copy, Debug)]
pub struct ClientFacts {
    /// Key that the login proved.
    pub key: NodePublic,
    /// Where it comes from.
    pub remote: SocketAddr,
    /// Logged in with a DERP mesh key.
    pub is_mesh_peer: bool,
    /// Declared itself a prober.
    pub is_prober: bool,
    /// Sent an `Ideal-Node` header.
    pub is_not_ideal: bool,
    /// Answers pings.
    pub can_ack_pings: bool,
    /// What the kernel calls its socket; none if it does not say.
    pub socket: Option<u64>,
}

impl ClientFacts {
    /// A client like most: it answers pings, and nothing else is said of it.
    #[must_use]
    pub const fn ordinary(key: NodePublic, remote: SocketAddr) -> Self {
        Self { key, remote, is_mesh_peer: false, is_prober: false, is_not_ideal: false, can_ack_pings: true, socket: None }
    }

    pub(super) const fn present_flags(&self) -> PresentFlags {
        PresentFlags::of_client(self.is_mesh_peer, self.is_prober, self.is_not_ideal)
    }
}

/// Why this side ended a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// Its control lane was full: it reads too slowly.
    ControlLane,
    /// Its client may not be connected any more.
    NotAdmitted,
}

impl CloseReason {
    /// The metric label.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::ControlLane => "control_lane",
            Self::NotAdmitted => "not_admitted",
        }
    }
}

/// A registered connection.
#[derive(Debug)]
pub struct ClientConnection {
    pub(super) id: u64,
    pub(super) facts: ClientFacts,
    pub(super) connected_at: Instant,
    pub(super) outbox: Outbox<Frame>,
    pub(super) cancel: CancellationToken,
    pub(super) proof: Proof,
    /// Other connections of this key may be active instead: a frame must be noted.
    pub(super) shares_key: AtomicBool,
    pub(super) is_active: AtomicBool,
    pub(super) preferred: AtomicBool,
    pub(super) closed_because: OnceLock<CloseReason>,
    pub(super) traffic: Traffic,
}

impl PartialEq for ClientConnection {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl ClientConnection {
    /// Unique among the connections of this process.
    #[must_use]
    pub const fn id(&self) -> u64 {
        self.id
    }

    /// What its login said.
    #[must_use]
    pub const fn facts(&self) -> &ClientFacts {
        &self.facts
    }

    /// Its queues.
    #[must_use]
    pub const fn outbox(&self) -> &Outbox<Frame> {
        &self.outbox
    }

    /// Whether it is proven to live.
    #[must_use]
    pub const fn proof(&self) -> &Proof {
        &self.proof
    }

    /// Cancelled when the connection must end.
    #[must_use]
    pub const fn cancel(&self) -> &CancellationToken {
        &self.cancel
    }

    /// What it has carried.
    #[must_use]
    pub const fn traffic(&self) -> &Traffic {
        &self.traffic
    }

    /// Whether it is the one of its key that packets are written to.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.is_active.load(Ordering::Relaxed)
    }

    /// Ends the connection.
    pub fn close(&self, reason: CloseReason) {
        // The first reason stands.
        let _later = self.closed_because.set(reason);
        self.cancel.cancel();
    }

    /// Why this side ended it, if there is more to say than that it did.
    #[must_use]
    pub fn closed_because(&self) -> Option<CloseReason> {
        self.closed_because.get().copied()
    }

    /// Queues a control frame; if its lane is full the connection ends.
    ///
    /// # Errors
    /// [`ControlRefused`].
    pub fn send(&self, frame: Frame) -> Result<(), ControlRefused> {
        self.outbox.push_control(frame).inspect_err(|refused| match refused {
            ControlRefused::Full => self.close(CloseReason::ControlLane),
            ControlRefused::Closed => self.cancel.cancel(),
        })
    }

    /// Challenges the connection because another claim of its key was seen: a suspect one is probed.
    pub(super) fn challenge(&self, now: Instant) {
        if self.proof.challenge(now) {
            self.probe();
        }
    }

    /// Asks for a sign of life.
    pub(super) fn probe(&self) {
        // The data does not matter: any byte is proof.
        let probe = if self.facts.can_ack_pings { Frame::Ping { data: self.id.to_be_bytes() } } else { Frame::KeepAlive };
        // A connection that cannot take the probe is ending anyway.
        let _refused = self.send(probe);
    }

    /// Whether a frame of this connection can change which connection of its key is active.
    pub(super) fn must_note_frames(&self) -> bool {
        self.shares_key.load(Ordering::Relaxed) && !self.is_active.load(Ordering::Relaxed)
    }
}
