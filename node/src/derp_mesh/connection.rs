//! One link to a stock derper, from its login to its end: reads who is connected there, writes packets for them.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use bytes::BytesMut;
use causeway_client::{LoggedIn, READ_TIMEOUT};
use causeway_proto::derp::decoder::DecodeError;
use causeway_proto::derp::encoder;
use causeway_proto::derp::frame::{Frame, PresentFlags};
use causeway_proto::derp::handshake::client::ClientSession;
use causeway_proto::key::NodePublic;
use causeway_proto::packet::Packet;
use parking_lot::Mutex;
use tokio::time::sleep_until;

use super::table::Derpers;
use super::{DerpMeshParts, DerperLink};
use crate::pump::reader::{self, FrameHandler, ReaderEnd};
use crate::pump::writer::{self, Encode, WriterEnd, WriterLimits};

/// How a link ended.
#[derive(Debug)]
pub(super) enum LinkEnd {
    Reader(ReaderEnd<DecodeError>),
    Writer(WriterEnd),
    Silent,
    /// It leads to this very node.
    Own,
    /// It leads to another node of the fleet.
    Sibling,
}

impl LinkEnd {
    pub(super) const fn reason(&self) -> &'static str {
        match self {
            Self::Reader(ReaderEnd::Eof { .. }) => "eof",
            Self::Reader(ReaderEnd::Io(_)) => "read_error",
            Self::Reader(ReaderEnd::Refused(error)) => error.reason(),
            Self::Reader(ReaderEnd::Cancelled) | Self::Writer(WriterEnd::Closed | WriterEnd::Cancelled) => "closed",
            Self::Writer(WriterEnd::Stalled) => "write_stalled",
            Self::Writer(WriterEnd::Io(_)) => "write_error",
            Self::Silent => "silent",
            Self::Own => "own",
            Self::Sibling => "sibling",
        }
    }
}

impl std::fmt::Display for LinkEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Reader(ReaderEnd::Refused(error)) => error.fmt(f),
            Self::Reader(ReaderEnd::Io(error)) | Self::Writer(WriterEnd::Io(error)) => error.fmt(f),
            _ => f.write_str(self.reason()),
        }
    }
}

/// Watches the derper and forwards to it until the link ends. However this ends, everything learned on the link is forgotten.
pub(super) async fn run(logged_in: LoggedIn, parts: &DerpMeshParts) -> LinkEnd {
    let (io, buffered, session) = logged_in.into_parts();
    let (read_half, write_half) = tokio::io::split(io);
    let link = Arc::new(DerperLink::new(parts.pump.clone()));
    link.outbox().push_control(Frame::WatchConns).expect("the lane is empty");
    let heard = Mutex::new(now());
    let mut handler = LinkHandler {
        session,
        heard: &heard,
        own: parts.server_key.public(),
        learned: Learned { derpers: Arc::clone(&parts.derpers), link: Arc::clone(&link), keys: HashSet::new() },
    };
    let cancel = parts.cancel.child_token();
    let end = tokio::select! {
        end = reader::run(read_half, buffered, &mut handler, &cancel) => LinkEnd::Reader(end),
        end = writer::run(write_half, link.outbox(), LinkEncode, WriterLimits::DERPER, cancel.clone()) => LinkEnd::Writer(end),
        () = silence(&heard) => LinkEnd::Silent,
    };
    handler.learned.forget().await;
    end
}

/// Returns when nothing was heard for too long.
async fn silence(heard: &Mutex<Instant>) {
    loop {
        let last = *heard.lock();
        sleep_until((last + READ_TIMEOUT).into()).await;
        if *heard.lock() == last {
            return;
        }
    }
}

/// Keys forgotten before other tasks of the thread get their turn.
const KEYS_PER_TURN: usize = 256;

/// Keys learned on a link; dropping it ends the link and forgets them.
struct Learned {
    derpers: Arc<Derpers>,
    link: Arc<DerperLink>,
    keys: HashSet<NodePublic>,
}

impl Learned {
    fn present(&mut self, key: NodePublic) {
        if self.keys.contains(&key) {
            return;
        }
        match self.derpers.present(key, &self.link) {
            Ok(()) => {
                self.keys.insert(key);
            }
            Err(_) => {
                self.derpers.metrics().keys_refused.inc();
            }
        }
    }

    /// Forgets everything, giving way to other tasks now and then.
    async fn forget(&mut self) {
        self.link.end();
        let keys: Vec<NodePublic> = self.keys.drain().collect();
        for some in keys.chunks(KEYS_PER_TURN) {
            some.iter().for_each(|key| self.derpers.gone(key, &self.link));
            tokio::task::yield_now().await;
        }
    }

    fn gone(&mut self, key: &NodePublic) {
        self.keys.remove(key);
        self.derpers.gone(key, &self.link);
    }
}

impl Drop for Learned {
    fn drop(&mut self) {
        self.link.end();
        self.keys.iter().for_each(|key| self.derpers.gone(key, &self.link));
    }
}

/// Acts on what the derper says.
struct LinkHandler<'a> {
    session: ClientSession,
    heard: &'a Mutex<Instant>,
    own: NodePublic,
    learned: Learned,
}

impl FrameHandler for LinkHandler<'_> {
    type Refusal = DecodeError;

    fn received(&mut self, now: Instant) {
        *self.heard.lock() = now;
    }

    fn handle_frame(&mut self, buffer: &mut BytesMut, _: Instant) -> Result<bool, DecodeError> {
        let Some(frame) = self.session.decoder.decode(buffer)? else { return Ok(false) };
        match frame {
            // Relays that mesh with the derper are nobody's clients.
            Frame::PeerPresent { peer, flags, .. } if peer == self.own || flags.contains(PresentFlags::MESH_PEER) => {}
            Frame::PeerPresent { peer, .. } if !peer.is_zero() => self.learned.present(peer),
            // Whatever the reason: also when a packet that we forwarded found nobody there.
            Frame::PeerGone { peer, .. } => self.learned.gone(&peer),
            Frame::Ping { data } => {
                // One at a time is answered, as everywhere.
                self.learned.link.outbox().push_pong(data);
            }
            // Signs of life, notices for a client's user, and packets to this node's server key, which is nobody's.
            _ => {}
        }
        Ok(true)
    }
}

/// Puts packets into ForwardPacket frames.
struct LinkEncode;

impl Encode for LinkEncode {
    type Control = Frame;

    fn control(&mut self, frame: Frame, out: &mut BytesMut) {
        encoder::encode(&frame, out);
    }

    fn pong(&mut self, data: [u8; 8], out: &mut BytesMut) {
        encoder::encode_pong(data, out);
    }

    fn packet(&mut self, packet: &Packet, out: &mut BytesMut) {
        out.extend_from_slice(&encoder::forward_packet_header(&packet.src, &packet.dst, packet.payload.len()));
        out.extend_from_slice(&packet.payload);
    }

    fn tick(&mut self, _: &mut BytesMut) {
        // Nothing is due from this side: the derper sends the keep-alives.
    }
}

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
