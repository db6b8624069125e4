//! The broker's settings.

use std::time::Duration;

use fingerpost_carry::shares::Limits;
use fingerpost_wire::transport::Transport;
use jid::BareJid;

use super::{features::Translation, hints::Policies};

/// What happens with file transfers without TLS (XEP-0234, XEP-0096) while [`BrokerOptions::require_tls`] holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlainFiles {
    /// They are refused.
    Deny,
    /// They are brokered, and both users' clients are told that nothing encrypts them from end to end.
    Mark,
    /// They are brokered.
    Allow,
}

/// The broker's settings.
#[derive(Clone, Debug)]
pub struct BrokerOptions {
    /// The component's address.
    pub jid: BareJid,
    /// Refuse sessions without TLS security and streams that do not start with TLS.
    pub require_tls: bool,
    /// What to do with file transfers without TLS nevertheless.
    pub plain: PlainFiles,
    /// What to do with prints of bad verdict.
    pub policies: Policies,
    /// Whether two users may agree on a direct connection between them.
    pub direct: bool,
    /// Whether SOCKS5 legs are available.
    pub socks5: bool,
    /// The SOCKS5 addresses for users: host and port.
    pub advertise: Vec<(String, u16)>,
    /// Whether in-band legs are available.
    pub ibb: bool,
    /// The longest stanza that can be sent, in bytes.
    pub max_stanza_bytes: usize,
    /// The block size of our in-band legs, bytes.
    pub block_size: u16,
    /// Unacknowledged blocks, per direction, to which a stream grows quickly.
    pub window: u16,
    /// The bytes that all in-band bytestreams together may hold or have under way.
    pub memory: usize,
    /// How long a user's client may leave in-band blocks unacknowledged.
    pub silence_timeout: Duration,
    /// How long a session may exist without a stream.
    pub activation_timeout: Duration,
    /// How long a stream may move no byte.
    pub idle_timeout: Duration,
    /// Sessions in all, and for each user.
    pub sessions: (usize, usize),
}

impl BrokerOptions {
    /// Returns whether legs of this transport are available.
    pub(super) fn takes(&self, transport: &Transport) -> bool {
        match transport {
            Transport::Ibb { .. } => self.ibb,
            Transport::S5b { .. } => self.socks5,
        }
    }

    /// Returns whether files that nothing encrypts are brokered.
    pub(super) fn takes_plain_files(&self) -> bool {
        !self.require_tls || self.plain != PlainFiles::Deny
    }

    /// Returns the bytestreams for files that are translated between two protocols; `None` if none are.
    pub fn translation(&self) -> Option<Translation> {
        let Self { socks5, ibb, .. } = *self;
        (self.takes_plain_files() && (socks5 || ibb)).then_some(Translation { socks5, ibb })
    }

    /// Returns the shares of this memory: a quarter for one user.
    pub(super) fn memory(&self) -> Limits {
        Limits::new(self.memory, self.memory / 4, 4)
    }

    /// Returns the settings of tests.
    #[cfg(test)]
    pub(super) fn of_tests() -> Self {
        use super::hints::VerdictPolicy;
        Self {
            jid: BareJid::new("xtls.example.org").unwrap(),
            require_tls: true,
            plain: PlainFiles::Deny,
            policies: Policies {
                unknown: VerdictPolicy::Annotate,
                mismatch: VerdictPolicy::Annotate,
                revoked: VerdictPolicy::Reject,
            },
            direct: true,
            socks5: true,
            advertise: vec![("proxy.example.org".to_owned(), 7625)],
            ibb: true,
            max_stanza_bytes: 500_000,
            block_size: 8192,
            window: 16,
            memory: 64 << 20,
            silence_timeout: Duration::from_secs(300),
            activation_timeout: Duration::from_secs(60),
            idle_timeout: Duration::from_secs(600),
            sessions: (10, 10),
        }
    }
}
