//! A connection or stream, in terms of its end: what has been delivered, and whether a close is a reset.

use std::{os::fd::AsFd, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream, Join},
    net::TcpStream,
};

use super::tcp::{self, Info};

/// A leg, in terms of its end.
pub trait LegEnd: AsyncRead + AsyncWrite + Unpin {
    /// Returns how to find out whether all written bytes have reached the peer.
    fn delivery(&self) -> Delivery {
        Delivery::ByShutdown
    }

    /// Returns whether the peer still reads. A peer that has closed both directions at once, as in-band bytestreams do,
    /// does not.
    fn takes_more(&self) -> bool {
        true
    }

    /// Makes every close from now on a reset, until [`Self::disarm`] or a shutdown. So a stream that is cut, even by
    /// the end of this process, never looks complete.
    fn arm(&self) {}

    /// Makes a close an orderly end again.
    fn disarm(&self) {}
}

/// How to tell whether the written bytes have reached the peer.
#[derive(Clone, Copy, Debug)]
pub enum Delivery {
    /// They have once a shutdown has returned.
    ByShutdown,
    /// The kernel says it; `None` if the kernel does not.
    Tcp(Option<Info>),
}

impl Delivery {
    /// Returns whether the peer has vanished.
    pub fn is_gone(self) -> bool {
        matches!(self, Self::Tcp(Some(info)) if info.is_gone())
    }

    /// Returns whether the peer may have vanished: it has answered nothing for seconds although the kernel has asked repeatedly.
    pub fn is_doubtful(self) -> bool {
        matches!(self, Self::Tcp(Some(info)) if info.is_doubtful())
    }

    /// Returns whether the peer's kernel has all bytes, as far as the kernel says anything, and the connection lives.
    pub fn is_complete(self) -> bool {
        match self {
            Self::ByShutdown => false,
            Self::Tcp(info) => info.is_none_or(|info| !info.closed && info.is_delivered()),
        }
    }

    /// Returns whether bytes may be on their way.
    pub fn is_open(self) -> bool {
        matches!(self, Self::Tcp(Some(info)) if !info.closed && !info.is_delivered())
    }
}

impl LegEnd for TcpStream {
    fn delivery(&self) -> Delivery {
        Delivery::Tcp(tcp::info(self))
    }

    fn arm(&self) {
        set_reset(self, true);
    }

    fn disarm(&self) {
        set_reset(self, false);
    }
}

/// Sets whether closing this connection resets it, even if this process ends. If the option cannot be set, the socket
/// is closed in order.
pub fn set_reset(stream: impl AsFd, reset: bool) {
    let linger = reset.then_some(Duration::ZERO);
    if let Err(error) = socket2::SockRef::from(&stream).set_linger(linger) {
        tracing::debug!(%error, "could not set SO_LINGER");
    }
}

impl<L: LegEnd + ?Sized> LegEnd for Box<L> {
    fn delivery(&self) -> Delivery {
        (**self).delivery()
    }

    fn takes_more(&self) -> bool {
        (**self).takes_more()
    }

    fn arm(&self) {
        (**self).arm();
    }

    fn disarm(&self) {
        (**self).disarm();
    }
}

/// A stream in memory, which tests use: a shutdown is all that is known of its end.
impl LegEnd for DuplexStream {}

/// Two halves: a shutdown is all that is known of their end.
impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> LegEnd for Join<R, W> {}
