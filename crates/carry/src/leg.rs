//! The transport between one user and the next hop: a TCP connection, or an in-band bytestream.

use std::{
    io::{self, IoSlice},
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
};

use fingerpost_wire::transport_kind::TransportKind;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use super::ibb_stream::IbbStream;
use crate::leg_end::{Delivery, LegEnd};

/// One user's transport, of either kind. `S` is the TCP connection with what its owner keeps beside it.
#[derive(Debug)]
pub enum Leg<S> {
    /// A SOCKS5 bytestream (XEP-0065).
    Socket(S),
    /// An in-band bytestream (XEP-0047).
    Ibb(IbbStream),
}

impl<S: LegEnd> Leg<S> {
    /// Returns whether the other end has vanished: it answers nothing although the kernel has asked repeatedly. A peer
    /// that reads slowly, or not at all, has not vanished. In-band, the stream's acknowledgements decide.
    pub fn is_gone(&self) -> bool {
        self.delivery().is_gone()
    }

    /// Returns how many of all written bytes the next hop has acknowledged; `None` if that cannot be known. The next
    /// hop is the peer of the in-band bytestream or of the connection, which may be the component.
    pub fn delivered(&self) -> Option<u64> {
        match self {
            Self::Ibb(leg) => Some(leg.delivered()),
            Self::Socket(leg) => match leg.delivery() {
                Delivery::Tcp(Some(info)) => Some(info.acknowledged),
                Delivery::Tcp(None) | Delivery::ByShutdown => None,
            },
        }
    }

    /// Returns its kind.
    pub fn transport_kind(&self) -> TransportKind {
        match self {
            Self::Socket(_) => TransportKind::S5b,
            Self::Ibb(_) => TransportKind::Ibb,
        }
    }
}

impl Leg<TcpStream> {
    /// Returns our own address of the connection; `None` in-band.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        match self {
            Self::Socket(leg) => leg.local_addr().ok(),
            Self::Ibb(_) => None,
        }
    }
}

impl LegEnd for IbbStream {
    fn takes_more(&self) -> bool {
        self.is_writable()
    }
}

impl<S: LegEnd> LegEnd for Leg<S> {
    fn delivery(&self) -> Delivery {
        match self {
            Self::Socket(leg) => leg.delivery(),
            Self::Ibb(leg) => leg.delivery(),
        }
    }

    fn takes_more(&self) -> bool {
        match self {
            Self::Socket(leg) => leg.takes_more(),
            Self::Ibb(leg) => leg.takes_more(),
        }
    }

    fn arm(&self) {
        if let Self::Socket(leg) = self {
            leg.arm();
        }
    }

    fn disarm(&self) {
        if let Self::Socket(leg) = self {
            leg.disarm();
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Leg<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Socket(leg) => Pin::new(leg).poll_read(cx, buf),
            Self::Ibb(leg) => Pin::new(leg).poll_read(cx, buf),
        }
    }
}

impl<S: LegEnd> AsyncWrite for Leg<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Socket(leg) => Pin::new(leg).poll_write(cx, buf),
            Self::Ibb(leg) => Pin::new(leg).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Socket(leg) => Pin::new(leg).poll_write_vectored(cx, bufs),
            Self::Ibb(leg) => Pin::new(leg).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        matches!(self, Self::Socket(leg) if leg.is_write_vectored())
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Socket(leg) => Pin::new(leg).poll_flush(cx),
            Self::Ibb(leg) => Pin::new(leg).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Socket(leg) => Pin::new(leg).poll_shutdown(cx),
            Self::Ibb(leg) => Pin::new(leg).poll_shutdown(cx),
        }
    }
}
