//! An accepted or opened TCP connection, with its early bytes and its place in the limits.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd as _, OwnedFd},
    pin::Pin,
    task::{Context, Poll},
};

use fingerpost_carry::leg_end::{Delivery, LegEnd};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use super::admission::{ConnectionPlace, SocketAdmission};

/// A user's transport to the component. A socket is boxed, because many legs have none.
pub type SocketLeg = fingerpost_carry::leg::Leg<Box<Socket>>;

/// A TCP connection, the bytes of its stream that came with the handshake, and its place in the listener's limits,
/// which is freed on drop.
#[derive(Debug)]
pub struct Socket {
    stream: TcpStream,
    early: Vec<u8>,
    admission: Option<SocketAdmission>,
    client: Option<SocketAddr>,
}

impl Socket {
    /// Creates an accepted connection. `early` is read before anything else. `client`: the other end, if it is known.
    pub(super) fn accepted(
        stream: TcpStream,
        early: Vec<u8>,
        admission: SocketAdmission,
        client: Option<SocketAddr>,
    ) -> Self {
        Self { stream, early, admission: Some(admission), client }
    }

    /// Returns the client's end of an accepted connection. Behind a load balancer it is the one that the balancer names.
    pub(crate) fn client(&self) -> Option<SocketAddr> {
        self.client
    }

    /// Counts the connection against its address from now on; returns false if that address has too many. A connection
    /// that did not come through a listener does not count.
    pub(super) fn take_seat(&mut self) -> bool {
        self.admission.as_mut().is_none_or(SocketAdmission::take_seat)
    }

    /// Notes that the handshake is over.
    pub(super) fn arrived(&mut self) {
        if let Some(admission) = &mut self.admission {
            admission.arrived();
        }
    }

    /// Notes that the connection belongs to a user's transfer or session: it counts there, and no longer against its
    /// address.
    pub(super) fn settle(&mut self) {
        if let Some(admission) = &mut self.admission {
            admission.settle();
        }
    }

    /// Takes the connection out of the runtime: the socket, which stays non-blocking, the bytes of its stream that were
    /// read already, and its place among all connections.
    ///
    /// # Errors
    /// The system's, if it cannot leave.
    pub(super) fn into_parts(
        self,
    ) -> io::Result<(std::net::TcpStream, Vec<u8>, Option<ConnectionPlace>)> {
        let place = self.admission.map(SocketAdmission::into_place);
        Ok((self.stream.into_std()?, self.early, place))
    }

    /// Returns a second descriptor of the connection, for a look at what its peer has got. It keeps the connection open.
    ///
    /// # Errors
    /// The system's, for example if there are too many open files.
    pub(crate) fn watch(&self) -> io::Result<OwnedFd> {
        self.stream.as_fd().try_clone_to_owned()
    }

    /// Returns the connection alone, without the bytes that were read early.
    pub(super) fn stream_mut(&mut self) -> &mut TcpStream {
        &mut self.stream
    }

    /// Sends a few bytes at once if the kernel takes all of them.
    ///
    /// # Errors
    /// `WouldBlock` if it does not, otherwise the system's error.
    pub(super) fn send_now(&self, bytes: &[u8]) -> io::Result<()> {
        if socket2::SockRef::from(&self.stream).send(bytes)? == bytes.len() {
            Ok(())
        } else {
            Err(io::ErrorKind::WouldBlock.into())
        }
    }
}

impl LegEnd for Socket {
    fn delivery(&self) -> Delivery {
        self.stream.delivery()
    }

    fn arm(&self) {
        self.stream.arm();
    }

    fn disarm(&self) {
        self.stream.disarm();
    }
}

impl From<TcpStream> for Socket {
    fn from(stream: TcpStream) -> Self {
        Self { stream, early: Vec::new(), admission: None, client: None }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.early.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        let n = self.early.len().min(buf.remaining());
        buf.put_slice(&self.early[..n]);
        self.early.drain(..n);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.disarm();
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
