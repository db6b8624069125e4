//! A direct connection to the peer after the greeting.

use std::{
    io,
    net::SocketAddr,
    ops::Range,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use super::frames::{FrameKeys, LONGEST, with_frame};
use crate::unwritten::{Unwritten, poll_into};

/// How many bytes are read at once, and how many are put into frames at once.
const PIECE: usize = 4 * LONGEST;
/// The most bytes that wait in front of the end of a frame.
const BUFFER: usize = PIECE + with_frame(LONGEST);

/// A TCP connection whose bytes only the peer can have sent. A byte of anybody else is the end of it, with an error.
#[derive(Debug)]
pub(crate) struct DirectStream {
    stream: TcpStream,
    keys: Box<FrameKeys>,
    /// What has come; the bytes in `unread` are the peer's, and those in `unopened` are not checked yet.
    incoming: Box<[u8]>,
    unread: Range<usize>,
    unopened: Range<usize>,
    unwritten: Unwritten,
}

impl DirectStream {
    /// Takes a connection on which the next byte is the first one after the greeting.
    pub(super) fn new(stream: TcpStream, keys: FrameKeys) -> Self {
        Self {
            stream,
            keys: Box::new(keys),
            incoming: vec![0; BUFFER].into_boxed_slice(),
            unread: 0..0,
            unopened: 0..0,
            unwritten: Unwritten::default(),
        }
    }

    /// Returns one end of a connection between the two ends of a test.
    #[cfg(test)]
    pub(crate) fn played(stream: TcpStream, is_first: bool) -> Self {
        Self::new(stream, Self::played_keys(is_first))
    }

    #[cfg(test)]
    fn played_keys(is_first: bool) -> FrameKeys {
        let (one, other) = ([1; 32], [2; 32]);
        let keys = if is_first { [&one, &other] } else { [&other, &one] };
        FrameKeys::new(keys, [&[], &[]]).unwrap()
    }

    /// Returns the first frame that this end of such a connection sends.
    #[cfg(test)]
    pub(crate) fn first_frame(bytes: &[u8], is_first: bool) -> Vec<u8> {
        let mut frame = Vec::new();
        Self::played_keys(is_first).seal(bytes, &mut frame).unwrap();
        frame
    }

    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.stream.local_addr()
    }

    #[cfg(test)]
    pub(crate) fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.stream.peer_addr()
    }

    pub(crate) fn set_nodelay(&self, nodelay: bool) -> io::Result<()> {
        self.stream.set_nodelay(nodelay)
    }

    /// Opens the next frame that is whole; returns whether there was one.
    fn open(&mut self) -> io::Result<bool> {
        let begin = self.unopened.start;
        let opened = self.keys.open(&self.incoming[self.unopened.clone()]);
        let opened = opened.map_err(|_| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                "somebody else sent bytes on a direct connection",
            )
        })?;
        let Some(bytes) = opened else { return Ok(false) };
        self.unopened.start += with_frame(bytes.len());
        self.unread = begin + bytes.start..begin + bytes.end;
        Ok(true)
    }

    /// Reads once; returns whether anything came.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        if self.unopened.start > 0 {
            self.incoming.copy_within(self.unopened.clone(), 0);
            self.unopened = 0..self.unopened.len();
        }
        let free = &mut self.incoming[self.unopened.end..];
        let read = ready!(poll_into(&mut self.stream, cx, free))?;
        self.unopened.end += read;
        Poll::Ready(Ok(read > 0))
    }
}

impl AsyncRead for DirectStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        while buf.remaining() > 0 {
            if this.unread.is_empty() && !this.open()? {
                if buf.filled().len() > before {
                    break;
                }
                if ready!(this.poll_fill(cx))? {
                    continue;
                }
                return Poll::Ready(match this.unopened.is_empty() {
                    true => Ok(()),
                    false => Err(io::ErrorKind::UnexpectedEof.into()),
                });
            }
            let count = this.unread.len().min(buf.remaining());
            let end = this.unread.start + count;
            buf.put_slice(&this.incoming[this.unread.start..end]);
            this.unread.start = end;
        }
        Poll::Ready(Ok(()))
    }
}

/// Written bytes may wait in a frame until the next call, also of a flush.
impl AsyncWrite for DirectStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.unwritten.poll_write(&mut this.stream, cx))?;
        let piece = &buf[..buf.len().min(PIECE)];
        let sealed = this.keys.seal(piece, this.unwritten.frames());
        sealed.map_err(|_| io::Error::other("too many bytes for one direct connection"))?;
        match this.unwritten.poll_write(&mut this.stream, cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(piece.len())),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.unwritten.poll_write(&mut this.stream, cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.unwritten.poll_shutdown(&mut this.stream, cx)
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    async fn sockets() -> [TcpStream; 2] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let connect = TcpStream::connect(listener.local_addr().unwrap());
        let (one, other) = tokio::join!(connect, listener.accept());
        [one.unwrap(), other.unwrap().0]
    }

    #[tokio::test]
    async fn bytes_go_both_ways_through_slow_readers() {
        let [one, other] = sockets().await;
        let (one, other) = (DirectStream::played(one, true), DirectStream::played(other, false));
        let content: Vec<u8> = (0..5_000_000_u32).map(|n| (n ^ (n >> 9)) as u8).collect();
        let run = async |stream: DirectStream| {
            let (mut read, mut write) = tokio::io::split(stream);
            let sending = async {
                for piece in content.chunks(70_001) {
                    write.write_all(piece).await.unwrap();
                }
                write.shutdown().await.unwrap();
            };
            let receiving = async {
                let (mut got, mut piece) = (Vec::new(), vec![0; 30_000]);
                loop {
                    match read.read(&mut piece).await.unwrap() {
                        0 => break got,
                        count => got.extend_from_slice(&piece[..count]),
                    }
                    tokio::task::yield_now().await;
                }
            };
            let ((), got) = tokio::join!(sending, receiving);
            assert!(got == content);
        };
        tokio::join!(run(one), run(other));
    }

    #[tokio::test]
    async fn a_byte_of_somebody_else_ends_it_after_those_of_the_peer() {
        let mut changed = DirectStream::first_frame(b"the peer's", false);
        let whole = changed.clone();
        *changed.last_mut().unwrap() ^= 1;
        for (sent, kind) in [
            (changed, ErrorKind::InvalidData),
            ([&whole[..], &whole].concat(), ErrorKind::InvalidData),
            ([&whole[..], b"\x80\x00"].concat(), ErrorKind::InvalidData),
            ([&whole[..], &whole[..7]].concat(), ErrorKind::UnexpectedEof),
        ] {
            let [one, mut other] = sockets().await;
            let mut one = DirectStream::played(one, true);
            other.write_all(&sent).await.unwrap();
            other.shutdown().await.unwrap();
            let mut got = [0; 10];
            if sent.starts_with(&whole) {
                one.read_exact(&mut got).await.unwrap();
                assert_eq!(&got, b"the peer's");
            }
            assert_eq!(one.read(&mut got).await.unwrap_err().kind(), kind);
        }
    }
}
