//! A WebSocket as the byte stream that it carries, so that DERP and the packet pump need not know of it (`derp.md` section 4.4).

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use std::time::SystemTime;

use bytes::{Buf, Bytes, BytesMut};
use causeway_proto::websocket::{CloseCode, Decoder, FrameError, Handshake, MessageHeader, SUBPROTOCOL, close, pong};
use data_encoding::BASE64;
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};

/// What RFC 6455 section 1.3 appends to a client's key.
const KEY_SUFFIX: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Longest message written: stock clients outside browsers take no longer one.
const MESSAGE_LEN_MAX: usize = 32 * 1024;

/// The answer to a client's handshake.
#[must_use]
pub fn switching_protocols(handshake: &Handshake, now: SystemTime) -> String {
    let accept = digest(&SHA1_FOR_LEGACY_USE_ONLY, format!("{}{KEY_SUFFIX}", handshake.key).as_bytes());
    let accept = BASE64.encode(accept.as_ref());
    let protocol = if handshake.speaks_derp { format!("Sec-WebSocket-Protocol: {SUBPROTOCOL}\r\n") } else { String::new() };
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\
         {protocol}Date: {}\r\n\r\n",
        httpdate::fmt_http_date(now)
    )
}

/// Tells a client without the subprotocol why it cannot stay.
///
/// # Errors
/// The transport failed.
pub async fn refuse<Io: AsyncWrite + Unpin>(io: &mut Io) -> io::Result<()> {
    io.write_all(&close(CloseCode::POLICY)).await?;
    io.shutdown().await
}

/// The stream inside a WebSocket. Each write becomes one binary message, a long one several; messages read are joined.
#[derive(Debug)]
pub struct WebSocketStream<Io> {
    io: Io,
    decoder: Decoder,
    /// Payload that came with the handshake, before anything is read from `io`.
    early: BytesMut,
    /// Control frames and the header of the message under way, to be written before its payload.
    head: Bytes,
    /// Payload bytes still due in the message under way.
    message_left: usize,
    /// The last write could not finish: its task is to be woken by `io`, and nobody else may write.
    write_waits: bool,
    /// A control frame that waits for the end of a message.
    control: Option<Vec<u8>>,
    close_sent: bool,
}

impl<Io> WebSocketStream<Io> {
    /// The stream behind a handshake that has been answered; `buffered` came after the client's request.
    ///
    /// # Errors
    /// `buffered` breaks the protocol.
    pub fn new(io: Io, mut buffered: BytesMut) -> Result<Self, FrameError> {
        let mut decoder = Decoder::default();
        let len = decoder.decode(&mut buffered)?;
        buffered.truncate(len);
        let mut stream = Self {
            io,
            decoder,
            early: buffered,
            head: Bytes::new(),
            message_left: 0,
            write_waits: false,
            control: None,
            close_sent: false,
        };
        stream.control = stream.decoder.take_pong().map(|payload| pong(&payload));
        Ok(stream)
    }
}

impl<Io: AsyncRead + AsyncWrite + Unpin> AsyncRead for WebSocketStream<Io> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.early.is_empty() {
            let len = this.early.len().min(buf.remaining());
            buf.put_slice(&this.early.split_to(len));
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        while buf.remaining() > 0 {
            if let Some(code) = this.decoder.closed() {
                return Poll::Ready(ended(code));
            }
            ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
            let read = buf.filled().len() - before;
            if read == 0 {
                return Poll::Ready(if this.decoder.is_at_border() { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) });
            }
            let decoded = this.decoder.decode(&mut buf.filled_mut()[before..]);
            // Headers alone leave nothing: more must be read, for nothing would mean the end.
            buf.set_filled(before + *decoded.as_ref().unwrap_or(&0));
            this.answer(decoded.as_ref().err());
            decoded.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            if buf.filled().len() > before {
                break;
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// What the pump sees of a close.
fn ended(code: CloseCode) -> io::Result<()> {
    if code.is_orderly() {
        Ok(())
    } else {
        Err(io::Error::new(io::ErrorKind::ConnectionAborted, format!("closed with {}", code.0)))
    }
}

impl<Io: AsyncWrite + Unpin> WebSocketStream<Io> {
    /// Queues the control frame that what was read asks for, and writes it if no message is under way.
    fn answer(&mut self, error: Option<&FrameError>) {
        let code = error.map(FrameError::close_code).or_else(|| self.decoder.closed());
        let frame = match code {
            Some(_) if self.close_sent => return,
            Some(code) => Some(close(code)),
            None => self.decoder.take_pong().map(|payload| pong(&payload)),
        };
        self.close_sent |= code.is_some();
        // An unanswered ping is forgotten for a newer one, anything for a close.
        if frame.is_none() {
            return;
        }
        self.control = frame;
        // The writer's task waits for `io`: another waker in its place would leave it asleep. It sends the frame itself.
        if self.write_waits || self.message_left > 0 {
            return;
        }
        let mut cx = Context::from_waker(Waker::noop());
        // Not done, or failed: the next write goes on with it, or fails as well.
        if let Poll::Ready(Ok(())) = self.poll_head(&mut cx) {
            drop(Pin::new(&mut self.io).poll_flush(&mut cx));
        }
    }

    /// Writes what must come before payload.
    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.head.is_empty() && self.message_left == 0 {
            self.head = self.control.take().map(Bytes::from).unwrap_or_default();
        }
        while !self.head.is_empty() {
            let written = ready!(Pin::new(&mut self.io).poll_write(cx, &self.head))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.head.advance(written);
        }
        Poll::Ready(Ok(()))
    }

    /// Begins a message of so many bytes; a control frame that waits goes first.
    fn begin(&mut self, payload_len: usize) {
        let mut head = BytesMut::from(&self.head[..]);
        head.extend_from_slice(&self.control.take().unwrap_or_default());
        head.extend_from_slice(MessageHeader::new(payload_len).as_bytes());
        self.head = head.freeze();
        self.message_left = payload_len;
    }

    /// Writes header and payload in one go, so that they share a TLS record and a segment.
    fn poll_message(&mut self, cx: &mut Context<'_>, payload: &[u8]) -> Poll<io::Result<usize>> {
        if self.message_left == 0 {
            self.begin(payload.len().min(MESSAGE_LEN_MAX));
        }
        let payload = &payload[..payload.len().min(self.message_left)];
        loop {
            let both = [IoSlice::new(&self.head), IoSlice::new(payload)];
            let both = if self.head.is_empty() { &both[1..] } else { &both };
            let written = ready!(Pin::new(&mut self.io).poll_write_vectored(cx, both))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            let of_head = written.min(self.head.len());
            self.head.advance(of_head);
            let of_payload = written - of_head;
            if of_payload > 0 {
                self.message_left -= of_payload;
                return Poll::Ready(Ok(of_payload));
            }
        }
    }
}

impl<Io: AsyncWrite + Unpin> AsyncWrite for WebSocketStream<Io> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, payload: &[u8]) -> Poll<io::Result<usize>> {
        if payload.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let written = self.poll_message(cx, payload);
        self.write_waits = written.is_pending();
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let flushed = match this.poll_head(cx) {
            Poll::Ready(Ok(())) => Pin::new(&mut this.io).poll_flush(cx),
            unfinished => unfinished,
        };
        this.write_waits = flushed.is_pending();
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !std::mem::replace(&mut this.close_sent, true) {
            this.control = Some(close(CloseCode::NORMAL));
        }
        ready!(this.poll_head(cx))?;
        Pin::new(&mut this.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;
