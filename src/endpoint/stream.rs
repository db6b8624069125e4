//! The secured stream, and what was learned of the peer on the way to it.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use jid::{BareJid, Jid};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::TlsStream;

use super::{
    error::Error,
    hub::TransportKind,
    policy::{Hint, Known},
};
use crate::{
    mediator::leg::Leg,
    print::{Method, Print},
    tls::sas,
};

/// What a negotiation has settled.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Learned {
    /// The user at the other end.
    pub peer: BareJid,
    /// The address of the other end: the peer's own, or the one that stands for it at the component.
    pub address: Jid,
    /// The TLS method.
    pub method: Method,
    /// The print of the key that the peer has shown and holds: the SHA-256 of its certificate, or its OpenPGP
    /// fingerprint. With the method srp the certificate is made for the session and says nothing.
    pub print: Print,
    /// What the component's registry says of the peer's prints; empty without a broker.
    pub hints: Vec<Hint>,
    /// Whether the key was known before.
    pub known: Known,
    /// The TLS version, such as `TLSv1.3`.
    pub tls_version: String,
    /// The key exchange group, such as `X25519MLKEM768`.
    pub key_exchange: String,
    /// What carries the stream on our side.
    pub transport: TransportKind,
}

/// A TLS stream to another user's program: bytes in and out, and nobody between.
///
/// A shutdown of the write side reaches the peer as the end of its input; the other direction goes on.
/// The stream lives beside its [`Session`](super::Session): keep the session for as long as the stream is used.
#[derive(Debug)]
pub struct SecureStream {
    tls: TlsStream<Leg>,
    learned: Learned,
    /// Who began the session, and with whom.
    sides: [BareJid; 2],
}

impl SecureStream {
    pub(super) fn new(tls: TlsStream<Leg>, learned: Learned, sides: [BareJid; 2]) -> Self {
        Self { tls, learned, sides }
    }

    /// What was learned of the peer.
    pub fn learned(&self) -> &Learned {
        &self.learned
    }

    /// The user at the other end.
    pub fn peer(&self) -> &BareJid {
        &self.learned.peer
    }

    /// Key material that both ends can compute and nobody else (RFC 8446, 7.5; for channel binding, RFC 9266).
    ///
    /// `length` is in bytes.
    ///
    /// # Errors
    /// [`Error::Failed`] if TLS gives none of this length.
    pub fn export_keying_material(
        &self,
        label: &[u8],
        context: Option<&[u8]>,
        length: usize,
    ) -> Result<Vec<u8>, Error> {
        let output = vec![0; length];
        let exported = match &self.tls {
            TlsStream::Client(tls) => {
                tls.get_ref().1.export_keying_material(output, label, context)
            }
            TlsStream::Server(tls) => {
                tls.get_ref().1.export_keying_material(output, label, context)
            }
        };
        exported.map_err(|error| Error::Failed(error.to_string()))
    }

    /// The user who has begun the session.
    pub fn initiator(&self) -> &BareJid {
        &self.sides[0]
    }

    /// Twelve digits that the two users have in common if nobody is between them, for them to read to each other
    /// together with who has begun the session. Takes about a third of a second, on purpose.
    ///
    /// # Errors
    /// [`Error::Failed`] if TLS gives no key material.
    pub async fn short_authentication_string(&self) -> Result<String, Error> {
        let [initiator, responder] = &self.sides;
        Ok(sas::of(&self.tls, initiator, responder).await?)
    }

    /// The TLS stream itself.
    pub fn into_inner(self) -> TlsStream<Leg> {
        self.tls
    }
}

impl AsyncRead for SecureStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().tls).poll_read(cx, buf)
    }
}

impl AsyncWrite for SecureStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().tls).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().tls).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().tls).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_can_move_to_another_task() {
        fn check<T: AsyncRead + AsyncWrite + Send + Sync + Unpin + 'static>() {}
        check::<SecureStream>();
    }
}
