//! One GET over a fresh connection: the DERP map and the latency check.

use std::io;

use bytes::BytesMut;
use causeway_proto::derp::upgrade::ResponseHead;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::transport::Transport;

/// Room made for one read.
const READ_LEN: usize = 8 * 1024;

/// Asks for `path` and reads the whole answer, whose body may have `body_len_max` bytes. Returns its status and body.
///
/// Speaks HTTP/1.0, so that the body comes in one piece and the server closes after it.
pub(crate) async fn get(transport: &mut Transport, host: &str, path: &str, body_len_max: usize) -> io::Result<(u16, BytesMut)> {
    if !(host.bytes().chain(path.bytes())).all(|b| b.is_ascii_graphic()) {
        return Err(invalid("host name or path hold characters that cannot stand in a request"));
    }
    let request = format!("GET {path} HTTP/1.0\r\nHost: {host}\r\nUser-Agent: causeway\r\n\r\n");
    transport.write_all(request.as_bytes()).await?;
    transport.flush().await?;

    let mut buffer = BytesMut::new();
    let head = loop {
        match ResponseHead::take(&mut buffer).map_err(|e| invalid(&e.to_string()))? {
            Some(head) => break head,
            None if read_more(transport, &mut buffer).await? => {}
            None => return Err(io::ErrorKind::UnexpectedEof.into()),
        }
    };
    if head.header("Transfer-Encoding").is_some() {
        return Err(invalid("the answer is in a transfer encoding that HTTP/1.0 does not have"));
    }
    let too_long = || invalid(&format!("the answer is longer than {body_len_max} bytes"));
    let len = match head.header("Content-Length") {
        None => None,
        Some(text) => Some(text.parse::<usize>().map_err(|_| invalid("the answer's length is no number"))?),
    };
    if len.is_some_and(|len| len > body_len_max) {
        return Err(too_long());
    }
    while len.is_none_or(|len| buffer.len() < len) {
        if buffer.len() > body_len_max {
            return Err(too_long());
        }
        if !read_more(transport, &mut buffer).await? {
            break;
        }
    }
    match len {
        Some(len) if buffer.len() < len => Err(io::ErrorKind::UnexpectedEof.into()),
        Some(len) => Ok((head.status, buffer.split_to(len))),
        None if buffer.len() > body_len_max => Err(too_long()),
        None => Ok((head.status, buffer)),
    }
}

/// `false` at the end of the stream; a server need not say goodbye on the TLS level.
async fn read_more(transport: &mut Transport, buffer: &mut BytesMut) -> io::Result<bool> {
    buffer.reserve(READ_LEN);
    match transport.read_buf(buffer).await {
        Ok(n) => Ok(n > 0),
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(e) => Err(e),
    }
}

fn invalid(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}
