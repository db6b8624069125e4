//! Bytes of a framed connection that the kernel has not taken yet.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

/// What the kernel has taken already is dropped when it is as much as this, in bytes.
const MOST_WRITTEN: usize = 64 * 1024;

/// Whole frames, of which the kernel may have a part: a frame whose begin is sent can always be finished.
#[derive(Debug, Default)]
pub(crate) struct Unwritten {
    bytes: Vec<u8>,
    written: usize,
}

impl Unwritten {
    /// Returns how many bytes wait.
    pub(crate) fn waiting(&self) -> usize {
        self.bytes.len() - self.written
    }

    /// Returns the buffer, to append frames to.
    pub(crate) fn frames(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// Takes what the kernel has taken of the bytes that wait.
    fn wrote(&mut self, count: usize) {
        self.written += count;
        // A peer that reads slowly must not make what it has read already stay here.
        if self.written == self.bytes.len() || self.written >= MOST_WRITTEN {
            self.bytes.drain(..self.written);
            self.written = 0;
        }
    }

    /// Writes as much as the kernel takes now, and wakes nobody when it would take more.
    pub(crate) fn try_write(&mut self, stream: &TcpStream) {
        // An error comes again with the next write.
        if let Ok(count) = stream.try_write(&self.bytes[self.written..]) {
            self.wrote(count);
        }
    }

    /// Writes all.
    ///
    /// # Errors
    ///
    /// Those of the connection.
    pub(crate) fn poll_write(
        &mut self,
        stream: &mut TcpStream,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while self.waiting() > 0 {
            let rest = &self.bytes[self.written..];
            match ready!(Pin::new(&mut *stream).poll_write(cx, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.wrote(count),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Writes all, and then ends this direction of the connection.
    ///
    /// # Errors
    ///
    /// Those of the connection.
    pub(crate) fn poll_shutdown(
        &mut self,
        stream: &mut TcpStream,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.poll_write(stream, cx))?;
        Pin::new(stream).poll_shutdown(cx)
    }
}

/// Reads once into the free part of a buffer; returns how many bytes came.
///
/// # Errors
///
/// Those of the connection.
pub(crate) fn poll_into(
    stream: &mut TcpStream,
    cx: &mut Context<'_>,
    free: &mut [u8],
) -> Poll<io::Result<usize>> {
    let mut free = ReadBuf::new(free);
    ready!(Pin::new(stream).poll_read(cx, &mut free))?;
    Poll::Ready(Ok(free.filled().len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_reads_slowly_leaves_no_growing_buffer() {
        let mut unwritten = Unwritten::default();
        // It never empties the buffer: as much comes as it reads.
        unwritten.frames().resize(MOST_WRITTEN, 7);
        for _ in 0..100 {
            unwritten.frames().extend([7; 1 << 10]);
            unwritten.wrote(1 << 10);
            assert!(unwritten.bytes.len() <= 2 * MOST_WRITTEN, "{}", unwritten.bytes.len());
            assert_eq!(unwritten.waiting(), MOST_WRITTEN);
        }
    }
}
