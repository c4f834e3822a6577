//! proptest strategies for the values of this crate, a way to feed a decoder in pieces, and the bodies of the fuzz targets
//! (feature `testing`).

pub mod fuzz;

use bytes::{Bytes, BytesMut};
use proptest::collection::{btree_set, vec};
use proptest::prelude::*;
use proptest::sample::subsequence;

use crate::derp::frame::{Frame, PeerGoneReason, PresentFlags};
use crate::id::{Epoch, NodeId};
use crate::key::NodePublic;
use crate::link::frame::{Hello, LinkFrame, Stale};
use crate::packet::{Class, PATH_LEN_MAX, Packet, Path, REDIRECTS_MAX, Route, TraceContext};
use crate::presence::{ClaimKind, Op, PresenceKey, Rank};

/// Longest payload that the strategies make; tests of the limits themselves use tables.
const PAYLOAD_LEN_MAX: usize = 300;

/// Any key but the all-zero one; not the public half of a known private key.
pub fn node_public() -> impl Strategy<Value = NodePublic> {
    any::<[u8; 32]>().prop_map(NodePublic::from_bytes).prop_filter("zero is no key", |key| !key.is_zero())
}

/// A payload, often empty or short.
pub fn payload() -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..PAYLOAD_LEN_MAX).prop_map(Bytes::from)
}

/// Frames that a client sends after login.
pub fn frame_to_server() -> impl Strategy<Value = Frame> {
    prop_oneof![
        (node_public(), payload()).prop_map(|(dst, payload)| Frame::SendPacket { dst, payload }),
        any::<bool>().prop_map(|preferred| Frame::NotePreferred { preferred }),
        (node_public(), node_public(), payload()).prop_map(|(src, dst, payload)| Frame::ForwardPacket { src, dst, payload }),
        Just(Frame::WatchConns),
        node_public().prop_map(|peer| Frame::ClosePeer { peer }),
        any::<[u8; 8]>().prop_map(|data| Frame::Ping { data }),
        any::<[u8; 8]>().prop_map(|data| Frame::Pong { data }),
    ]
}

/// Frames that a server sends after its greeting.
pub fn frame_to_client() -> impl Strategy<Value = Frame> {
    prop_oneof![
        payload().prop_map(|sealed| Frame::ServerInfo { sealed }),
        (node_public(), payload()).prop_map(|(src, payload)| Frame::RecvPacket { src, payload }),
        Just(Frame::KeepAlive),
        (node_public(), any::<u8>())
            .prop_map(|(peer, reason)| Frame::PeerGone { peer, reason: PeerGoneReason::from_byte(reason) }),
        (node_public(), prop::option::of(socket_addr()), any::<u8>()).prop_map(|(peer, addr, flags)| Frame::PeerPresent {
            peer,
            addr,
            flags: PresentFlags(flags)
        }),
        any::<[u8; 8]>().prop_map(|data| Frame::Ping { data }),
        any::<[u8; 8]>().prop_map(|data| Frame::Pong { data }),
        ".{0,40}".prop_map(|problem| Frame::Health { problem }),
        any::<(u32, u32)>().prop_map(|(reconnect_in_ms, try_for_ms)| Frame::Restarting { reconnect_in_ms, try_for_ms }),
    ]
}

/// An address that a PeerPresent frame can carry: not unspecified, and IPv4 rather than IPv4-mapped.
pub fn socket_addr() -> impl Strategy<Value = std::net::SocketAddr> {
    let ip = any::<std::net::IpAddr>().prop_map(|ip| ip.to_canonical());
    (ip, any::<u16>())
        .prop_filter("all zero means unknown", |(ip, _)| *ip != std::net::Ipv6Addr::UNSPECIFIED)
        .prop_map(Into::into)
}

/// Any node id.
pub fn node_id() -> impl Strategy<Value = NodeId> {
    any::<u64>().prop_map(NodeId)
}

/// Any rank.
pub fn rank() -> impl Strategy<Value = Rank> {
    (any::<u64>(), node_id()).prop_map(|(clock_us, node)| Rank { clock_us, node })
}

/// A path as it is on a link: one node at least, none twice.
pub fn path() -> impl Strategy<Value = Path> {
    btree_set(any::<u64>(), 1..=PATH_LEN_MAX).prop_map(|nodes| nodes.into_iter().collect::<Vec<_>>()).prop_shuffle().prop_map(
        |nodes| {
            let mut path = Path::default();
            for node in nodes {
                path.push(NodeId(node)).expect("at most as many as fit");
            }
            path
        },
    )
}

/// A route as it is on a link.
pub fn route() -> impl Strategy<Value = Route> {
    let trace = any::<([u8; 16], [u8; 8])>()
        .prop_filter("a trace id is not zero", |(trace_id, _)| *trace_id != [0; 16])
        .prop_map(|(trace_id, span_id)| TraceContext { trace_id, span_id });
    (node_id(), node_id(), rank(), 0..=REDIRECTS_MAX, path(), any::<bool>(), prop::option::of(trace)).prop_map(
        |(origin, target, rank_used, redirects, path, from_derper, trace)| Route {
            origin,
            target,
            rank_used,
            redirects,
            path,
            from_derper,
            trace,
        },
    )
}

/// A packet with a route.
pub fn packet() -> impl Strategy<Value = Packet> {
    let class = prop_oneof![Just(Class::Liveness), Just(Class::Data)];
    (node_public(), node_public(), class, payload(), route()).prop_map(|(src, dst, class, payload, route)| Packet {
        src,
        dst,
        class,
        payload,
        route: Some(route),
    })
}

/// Any frame of a link.
pub fn link_frame() -> impl Strategy<Value = LinkFrame> {
    let hello = (node_id(), any::<u64>(), 1..=u8::MAX)
        .prop_flat_map(|(node, epoch, stripes)| (0..stripes).prop_map(move |s| Hello::new(node, Epoch(epoch), s, stripes)));
    let stale = (presence_key(), node_id(), rank()).prop_map(|(key, target, rank_used)| Stale { key, target, rank_used });
    prop_oneof![
        hello.prop_map(LinkFrame::Hello),
        packet().prop_map(LinkFrame::Packet),
        stale.prop_map(LinkFrame::Stale),
        any::<[u8; 8]>().prop_map(LinkFrame::Ping),
        any::<[u8; 8]>().prop_map(LinkFrame::Pong),
        Just(LinkFrame::KeepAlive),
    ]
}

/// Any presence key.
pub fn presence_key() -> impl Strategy<Value = PresenceKey> {
    any::<[u8; 32]>().prop_map(PresenceKey)
}

/// Any operation of an owner log.
pub fn op() -> impl Strategy<Value = Op> {
    let kinds = [ClaimKind::Derp, ClaimKind::Tx3, ClaimKind::Turbo, ClaimKind::Quicpipe, ClaimKind::Derper];
    let kind = prop::sample::select(kinds.to_vec());
    prop_oneof![
        (presence_key(), any::<u64>(), any::<bool>(), kind).prop_map(|(key, clock_us, home, kind)| Op::Claim {
            key,
            clock_us,
            home,
            kind
        }),
        (presence_key(), any::<u64>(), any::<bool>()).prop_map(|(key, clock_us, clean)| Op::Release { key, clock_us, clean }),
    ]
}

/// Bytes, and where to cut them.
pub fn with_cuts(bytes: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = (Vec<u8>, Vec<usize>)> {
    bytes.prop_flat_map(|bytes| {
        let places: Vec<_> = (0..bytes.len()).collect();
        let most = places.len().min(12);
        (Just(bytes), subsequence(places, 0..=most))
    })
}

/// What a decoder makes of `bytes` arriving in pieces: its frames, what is left over, and the error it ended with.
pub fn decode_pieces<F, E>(
    bytes: &[u8],
    cuts: &[usize],
    mut decode: impl FnMut(&mut BytesMut) -> Result<Option<F>, E>,
) -> (Vec<F>, BytesMut, Option<E>) {
    let (mut frames, mut buf, mut start) = (Vec::new(), BytesMut::new(), 0);
    for end in cuts.iter().copied().chain([bytes.len()]) {
        buf.extend_from_slice(&bytes[start..end]);
        start = end;
        loop {
            match decode(&mut buf) {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => return (frames, buf, Some(error)),
            }
        }
    }
    (frames, buf, None)
}
