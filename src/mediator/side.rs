//! A connection or stream, in terms of its end: what has been delivered, and whether a close is a reset.

use tokio::io::{AsyncRead, AsyncWrite};

use super::tcp::Info;

/// A leg, in terms of its end.
pub trait Side: AsyncRead + AsyncWrite + Unpin {
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

    /// Returns whether bytes may be on their way.
    pub fn is_open(self) -> bool {
        matches!(self, Self::Tcp(Some(info)) if !info.closed && !info.is_delivered())
    }
}
