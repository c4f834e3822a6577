//! Asks the kernel about TCP sockets over netlink, as `ss` does (sock_diag(7)). Reading socket options one by one would take the
//! sockets themselves, which TLS and the packet pump own by then.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with};

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IPPROTO_TCP: u8 = 6;
/// Bit of `TCP_ESTABLISHED`.
const ESTABLISHED: u32 = 1 << 1;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// `NLM_F_REQUEST | NLM_F_DUMP`.
const REQUEST_DUMP: u16 = 0x1 | 0x300;
/// Bit of the attribute that is wanted.
const WANT_INFO: u8 = 1 << (INET_DIAG_INFO - 1);
const INET_DIAG_INFO: u16 = 2;

const HEADER_LEN: usize = 16;
const REQUEST_LEN: usize = HEADER_LEN + 56;
/// `struct inet_diag_msg`, and where it holds the cookie.
const DIAG_LEN: usize = 72;
const COOKIE_AT: usize = 44;
const ATTRIBUTE_HEADER_LEN: usize = 4;
/// Where `struct tcp_info` holds the smoothed round trip time, in microseconds.
const RTT_AT: usize = 68;

/// The kernel fills at most 32 KiB at a time.
const BUFFER_LEN: usize = 64 * 1024;

/// It answers while it is read from; this only keeps a fault from holding the thread.
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);

/// Calls `found` with the cookie and the round trip time of every established connection of `listener`'s port and family. Blocks.
pub(super) fn read(listener: &SocketAddr, mut found: impl FnMut(u64, Duration)) -> io::Result<()> {
    let socket = socket_with(AddressFamily::NETLINK, SocketType::DGRAM, SocketFlags::CLOEXEC, Some(netlink::SOCK_DIAG))?;
    set_socket_timeout(&socket, Timeout::Recv, Some(ANSWER_DEADLINE))?;
    send(&socket, &request(listener), SendFlags::empty())?;
    let mut buffer = vec![0; BUFFER_LEN];
    loop {
        let (len, sent) = recv(&socket, &mut buffer[..], RecvFlags::TRUNC)?;
        if sent > len {
            return Err(malformed());
        }
        if take(&buffer[..len], &mut found)? {
            return Ok(());
        }
    }
}

fn request(listener: &SocketAddr) -> [u8; REQUEST_LEN] {
    let family = if listener.is_ipv4() { AF_INET } else { AF_INET6 };
    let mut request = [0; REQUEST_LEN];
    let mut at = 0;
    let mut put = |bytes: &[u8]| {
        request[at..at + bytes.len()].copy_from_slice(bytes);
        at += bytes.len();
    };
    put(&(REQUEST_LEN as u32).to_ne_bytes());
    put(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    put(&REQUEST_DUMP.to_ne_bytes());
    // Sequence and port: the only request of its socket.
    put(&[0; 8]);
    put(&[family, IPPROTO_TCP, WANT_INFO, 0]);
    put(&ESTABLISHED.to_ne_bytes());
    // Of the socket's identity only its own port is asked for.
    put(&listener.port().to_be_bytes());
    request
}

/// Reads the messages of one datagram. True if the last one was among them.
fn take(mut datagram: &[u8], found: &mut impl FnMut(u64, Duration)) -> io::Result<bool> {
    while !datagram.is_empty() {
        let len = u32_at(datagram, 0).ok_or_else(malformed)? as usize;
        let kind = u16_at(datagram, 4).ok_or_else(malformed)?;
        let body = datagram.get(HEADER_LEN..len).ok_or_else(malformed)?;
        match kind {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => {
                let errno = u32_at(body, 0).ok_or_else(malformed)?.cast_signed();
                return Err(io::Error::from_raw_os_error(errno.saturating_neg()));
            }
            SOCK_DIAG_BY_FAMILY => {
                if let Some((cookie, round_trip)) = connection(body) {
                    found(cookie, round_trip);
                }
            }
            _ => {}
        }
        datagram = datagram.get(aligned(len)..).unwrap_or_default();
    }
    Ok(false)
}

/// Cookie and round trip time of a connection.
fn connection(body: &[u8]) -> Option<(u64, Duration)> {
    let cookie = u64::from(u32_at(body, COOKIE_AT)?) | u64::from(u32_at(body, COOKIE_AT + 4)?) << 32;
    let mut attributes = body.get(DIAG_LEN..)?;
    while !attributes.is_empty() {
        let len = usize::from(u16_at(attributes, 0)?);
        let value = attributes.get(ATTRIBUTE_HEADER_LEN..len)?;
        if u16_at(attributes, 2)? == INET_DIAG_INFO {
            return Some((cookie, Duration::from_micros(u32_at(value, RTT_AT)?.into())));
        }
        attributes = attributes.get(aligned(len)..).unwrap_or_default();
    }
    None
}

/// Messages and attributes begin at multiples of 4.
const fn aligned(len: usize) -> usize {
    len.next_multiple_of(4)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the kernel's answer cannot be read")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use proptest::prelude::*;

    use super::*;

    fn message(kind: u16, body: &[u8]) -> Vec<u8> {
        let len = u32::try_from(HEADER_LEN + body.len()).unwrap();
        let mut message = [&len.to_ne_bytes()[..], &kind.to_ne_bytes(), &[0; 10], body].concat();
        message.resize(aligned(message.len()), 0);
        message
    }

    fn diag(cookie: u64, rtt_us: u32) -> Vec<u8> {
        let mut body = vec![0; DIAG_LEN];
        let [low, high] = [cookie & 0xffff_ffff, cookie >> 32].map(|half| u32::try_from(half).unwrap());
        body[COOKIE_AT..COOKIE_AT + 4].copy_from_slice(&low.to_ne_bytes());
        body[COOKIE_AT + 4..COOKIE_AT + 8].copy_from_slice(&high.to_ne_bytes());
        // Another attribute first, of a length that must be rounded up.
        body.extend([&5_u16.to_ne_bytes()[..], &8_u16.to_ne_bytes(), &[1, 0, 0, 0]].concat());
        body.extend([&76_u16.to_ne_bytes()[..], &INET_DIAG_INFO.to_ne_bytes(), &[0; RTT_AT], &rtt_us.to_ne_bytes()].concat());
        message(SOCK_DIAG_BY_FAMILY, &body)
    }

    fn all(datagram: &[u8]) -> io::Result<(Vec<(u64, Duration)>, bool)> {
        let mut all = Vec::new();
        let last = take(datagram, &mut |cookie, round_trip| all.push((cookie, round_trip)))?;
        Ok((all, last))
    }

    #[test]
    fn messages_are_read_up_to_the_last_one_and_errors_are_the_kernels() {
        let (one, two) = (diag(0x1_0000_0002, 250), diag(3, 1_500_000));
        let wanted = vec![(0x1_0000_0002, Duration::from_micros(250)), (3, Duration::from_millis(1_500))];
        assert_eq!(all(&[&one[..], &two].concat()).unwrap(), (wanted.clone(), false));
        assert_eq!(all(&[&one[..], &two, &message(NLMSG_DONE, &[0; 4])].concat()).unwrap(), (wanted, true));
        let refused = message(NLMSG_ERROR, &(-13_i32).to_ne_bytes());
        assert_eq!(all(&refused).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        assert_eq!(all(&one[..one.len() - 8]).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    proptest! {
        #[test]
        fn no_answer_panics(mut bytes in prop::collection::vec(any::<u8>(), 0..400), kind in 0_u16..22, len: u8) {
            if bytes.len() > 6 {
                // Otherwise few get beyond the first header.
                bytes[..4].copy_from_slice(&u32::from(len).to_ne_bytes());
                bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
            }
            drop(all(&bytes));
        }
    }
}
