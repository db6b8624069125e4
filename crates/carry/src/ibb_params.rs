//! The parameters of an in-band bytestream.

use std::{sync::Arc, time::Duration};

use fingerpost_wire::{ibb::Options, ibb_xml::IbbStanza};
use jid::Jid;

/// The ends of a stream, and its parameters.
#[derive(Clone, Debug)]
pub struct IbbParams {
    /// The peer's full JID, and our address as the peer knows it.
    pub ends: Arc<(Jid, Jid)>,
    /// The stream's id.
    pub sid: String,
    /// The kind of stanza that carries our blocks.
    pub stanza: IbbStanza,
    /// The largest block in bytes before base64, both ways.
    pub block_size: u16,
    /// Unacknowledged blocks of ours to which the window grows quickly.
    pub window: u16,
    /// Whether the peer has agreed already; if not, the stream awaits `IbbHandle::handle_opened` before it sends
    /// data.
    pub opened: bool,
    /// How long the peer may leave blocks unacknowledged.
    pub silence_timeout: Duration,
    /// How long after a shutdown a silent peer may continue.
    pub close_linger: Duration,
}

impl IbbParams {
    /// Creates an open stream by IQ with the default sizes and times.
    pub fn new(local: Jid, peer: Jid, sid: impl Into<String>) -> Self {
        Self::between(Arc::new((peer, local)), sid)
    }

    /// Creates the same between addresses that others know too.
    pub fn between(ends: Arc<(Jid, Jid)>, sid: impl Into<String>) -> Self {
        let Options { block_size, window, opened, silence_timeout, close_linger, .. } =
            Options::default();
        let (sid, stanza) = (sid.into(), IbbStanza::Iq);
        Self { ends, sid, stanza, block_size, window, opened, silence_timeout, close_linger }
    }
}
