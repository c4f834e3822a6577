//! The frames of DERP as values (`derp.md` section 3).

use std::net::SocketAddr;

use bytes::Bytes;

use crate::key::NodePublic;

/// First byte of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
#[allow(missing_docs, reason = "each is the frame of the same name in [`Frame`]")]
pub enum FrameType {
    ServerKey = 0x01,
    ClientInfo = 0x02,
    ServerInfo = 0x03,
    SendPacket = 0x04,
    RecvPacket = 0x05,
    KeepAlive = 0x06,
    NotePreferred = 0x07,
    PeerGone = 0x08,
    PeerPresent = 0x09,
    ForwardPacket = 0x0a,
    WatchConns = 0x10,
    ClosePeer = 0x11,
    Ping = 0x12,
    Pong = 0x13,
    Health = 0x14,
    Restarting = 0x15,
}

impl FrameType {
    /// All types, in order of their byte.
    pub const ALL: [Self; 16] = [
        Self::ServerKey,
        Self::ClientInfo,
        Self::ServerInfo,
        Self::SendPacket,
        Self::RecvPacket,
        Self::KeepAlive,
        Self::NotePreferred,
        Self::PeerGone,
        Self::PeerPresent,
        Self::ForwardPacket,
        Self::WatchConns,
        Self::ClosePeer,
        Self::Ping,
        Self::Pong,
        Self::Health,
        Self::Restarting,
    ];

    /// The type of this byte, if it is known.
    #[must_use]
    pub const fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            0x01 => Self::ServerKey,
            0x02 => Self::ClientInfo,
            0x03 => Self::ServerInfo,
            0x04 => Self::SendPacket,
            0x05 => Self::RecvPacket,
            0x06 => Self::KeepAlive,
            0x07 => Self::NotePreferred,
            0x08 => Self::PeerGone,
            0x09 => Self::PeerPresent,
            0x0a => Self::ForwardPacket,
            0x10 => Self::WatchConns,
            0x11 => Self::ClosePeer,
            0x12 => Self::Ping,
            0x13 => Self::Pong,
            0x14 => Self::Health,
            0x15 => Self::Restarting,
            _ => return None,
        })
    }
}

/// One frame. Which side sends it is said in `derp.md` section 3.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Server's greeting: its public key.
    ServerKey {
        /// Key that logins are sealed to.
        key: NodePublic,
    },
    /// Login.
    ClientInfo {
        /// Key that the box proves.
        key: NodePublic,
        /// Nonce and box around [`crate::derp::info::ClientInfo`].
        sealed: Bytes,
    },
    /// Answer to a login.
    ServerInfo {
        /// Nonce and box around [`crate::derp::info::ServerInfo`].
        sealed: Bytes,
    },
    /// Packet from a client.
    SendPacket {
        /// Receiver.
        dst: NodePublic,
        /// At most [`crate::limits::PACKET_LEN_MAX`] bytes.
        payload: Bytes,
    },
    /// Packet to a client.
    RecvPacket {
        /// Sender.
        src: NodePublic,
        /// The packet.
        payload: Bytes,
    },
    /// Sign of life.
    KeepAlive,
    /// Whether this connection is the client's home.
    NotePreferred {
        /// True if it is.
        preferred: bool,
    },
    /// A peer is gone or was never here.
    PeerGone {
        /// The peer.
        peer: NodePublic,
        /// Which of the two.
        reason: PeerGoneReason,
    },
    /// A key is connected (sent to watchers).
    PeerPresent {
        /// The key.
        peer: NodePublic,
        /// Where it comes from, if told.
        addr: Option<SocketAddr>,
        /// What kind of client it is.
        flags: PresentFlags,
    },
    /// Packet from a mesh peer on behalf of one of its clients.
    ForwardPacket {
        /// Original sender.
        src: NodePublic,
        /// Receiver.
        dst: NodePublic,
        /// At most [`crate::limits::PACKET_LEN_MAX`] bytes.
        payload: Bytes,
    },
    /// Asks for PeerPresent and PeerGone of all local clients.
    WatchConns,
    /// Asks to close all connections of a key.
    ClosePeer {
        /// The key.
        peer: NodePublic,
    },
    /// Asks for a [`Frame::Pong`].
    Ping {
        /// Comes back in the Pong.
        data: PingData,
    },
    /// Answers a [`Frame::Ping`].
    Pong {
        /// As in the Ping.
        data: PingData,
    },
    /// A problem to show to the user; empty when it is over.
    Health {
        /// Text; what is not UTF-8 is replaced.
        problem: String,
    },
    /// The server is about to restart.
    Restarting {
        /// Milliseconds to wait before reconnecting.
        reconnect_in_ms: u32,
        /// Milliseconds to keep trying before treating it as a failure.
        try_for_ms: u32,
    },
}

impl Frame {
    /// The frame's type.
    #[must_use]
    pub const fn frame_type(&self) -> FrameType {
        match self {
            Self::ServerKey { .. } => FrameType::ServerKey,
            Self::ClientInfo { .. } => FrameType::ClientInfo,
            Self::ServerInfo { .. } => FrameType::ServerInfo,
            Self::SendPacket { .. } => FrameType::SendPacket,
            Self::RecvPacket { .. } => FrameType::RecvPacket,
            Self::KeepAlive => FrameType::KeepAlive,
            Self::NotePreferred { .. } => FrameType::NotePreferred,
            Self::PeerGone { .. } => FrameType::PeerGone,
            Self::PeerPresent { .. } => FrameType::PeerPresent,
            Self::ForwardPacket { .. } => FrameType::ForwardPacket,
            Self::WatchConns => FrameType::WatchConns,
            Self::ClosePeer { .. } => FrameType::ClosePeer,
            Self::Ping { .. } => FrameType::Ping,
            Self::Pong { .. } => FrameType::Pong,
            Self::Health { .. } => FrameType::Health,
            Self::Restarting { .. } => FrameType::Restarting,
        }
    }
}

/// The opaque bytes that a Ping carries and its Pong returns.
pub type PingData = [u8; 8];

/// Why a peer is gone (`derp.md` section 3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PeerGoneReason {
    /// Its last connection closed.
    Disconnected,
    /// No route to it is known.
    NotHere,
    /// Made up locally by a watch loop that lost its connection; never on the wire.
    MeshConnectionBroke,
    /// A reason of a later version.
    Other(u8),
}

impl PeerGoneReason {
    /// From the byte on the wire.
    #[must_use]
    pub const fn from_byte(byte: u8) -> Self {
        match byte {
            0x00 => Self::Disconnected,
            0x01 => Self::NotHere,
            0xf0 => Self::MeshConnectionBroke,
            other => Self::Other(other),
        }
    }

    /// The byte on the wire.
    #[must_use]
    pub const fn to_byte(self) -> u8 {
        match self {
            Self::Disconnected => 0x00,
            Self::NotHere => 0x01,
            Self::MeshConnectionBroke => 0xf0,
            Self::Other(other) => other,
        }
    }
}

/// What kind of client a PeerPresent is about; the bits combine. Zero means that the server did not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct PresentFlags(pub u8);

impl PresentFlags {
    /// Regular client; set only if no other bit is.
    pub const REGULAR: Self = Self(0x01);
    /// Logged in with the mesh key.
    pub const MESH_PEER: Self = Self(0x02);
    /// Declared itself a prober.
    pub const PROBER: Self = Self(0x04);
    /// Connected although another node of the region comes first (`Ideal-Node` header).
    pub const NOT_IDEAL: Self = Self(0x08);

    /// The flags of a client; [`Self::REGULAR`] if nothing else applies.
    #[must_use]
    pub const fn of_client(mesh_peer: bool, prober: bool, not_ideal: bool) -> Self {
        let mut bits = 0;
        if mesh_peer {
            bits |= Self::MESH_PEER.0;
        }
        if prober {
            bits |= Self::PROBER.0;
        }
        if not_ideal {
            bits |= Self::NOT_IDEAL.0;
        }
        if bits == 0 { Self::REGULAR } else { Self(bits) }
    }

    /// Whether all bits of `other` are set.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}
