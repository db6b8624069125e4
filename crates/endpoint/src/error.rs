//! The failures of a session, by the party that can act.

use std::{error::Error as StdError, fmt, sync::Arc};

use fingerpost_secure::stream::TlsError;
use fingerpost_wire::{jingle::Reason, ns, print::Print};
use minidom::Element;

/// Why there is no session, or why it ended.
///
/// Each text is a whole sentence for a person; the variant tells a program what it can do. An error of the network, of
/// TLS or of a file that caused it is its [source](StdError::source).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The address given cannot be used: give another.
    #[error("{0}")]
    Address(String),
    /// The peer is absent: try later.
    #[error("{0}")]
    Unreachable(String),
    /// The peer is online for its server, but its program does not answer: it sleeps, or its network is gone.
    #[error("{0}")]
    Silent(String),
    /// The component is absent: its operator can help, or use another component.
    #[error("{0}")]
    NoComponent(String),
    /// Our own account has blocked the address (XEP-0191).
    #[error("{0}")]
    Blocked(String),
    /// The peer's server delivers nothing from the component: the peer may have blocked it.
    #[error("{0}")]
    BlockedByPeer(String),
    /// The address is that of a chat room, or of its occupant (XEP-0045); the user's own address is needed.
    #[error("{0}")]
    Room(String),
    /// The required transport is not available.
    #[error("{0}")]
    Transport(String),
    /// The peer, or the component in its place, refuses.
    #[error(transparent)]
    Refused(Detail),
    /// No TLS method is common to the peer and this endpoint.
    #[error("{0}")]
    Unsupported(String),
    /// The peer's key is not the promised one, or nothing vouches for it. No application byte has been sent.
    #[error(transparent)]
    Unverified(Detail),
    /// The peer began a session and did not secure it in time, or others needed its place.
    #[error("{0}")]
    Expired(String),
    /// The XMPP server refused the login.
    #[error(transparent)]
    Login(Detail),
    /// The XMPP server's certificate is not trusted; the sentence has its SHA-256 fingerprint.
    #[error("{why}")]
    Certificate {
        /// The sentence.
        #[source]
        why: Detail,
        /// The certificate's SHA-256 fingerprint. With [`ServerTrust::certificate`](crate::ServerTrust::certificate) a login trusts it.
        shown: Print,
    },
    /// The connection to the XMPP server is lost.
    #[error("the connection to the XMPP server is lost")]
    Disconnected,
    /// The session is gone, and nobody has said that it failed: the peer's program, the component or the way to them is lost.
    #[error(transparent)]
    Gone(Detail),
    /// Any other failure: network, protocol, timeout.
    #[error(transparent)]
    Failed(Detail),
}

impl Error {
    pub(super) fn failed(text: impl Into<Detail>) -> Self {
        Self::Failed(text.into())
    }

    pub(super) fn gone(text: impl Into<Detail>) -> Self {
        Self::Gone(text.into())
    }

    pub(super) fn refused(text: impl Into<Detail>) -> Self {
        Self::Refused(text.into())
    }

    pub(super) fn unverified(text: impl Into<Detail>) -> Self {
        Self::Unverified(text.into())
    }

    pub(super) fn login(text: impl Into<Detail>) -> Self {
        Self::Login(text.into())
    }

    /// Returns the reason of a `session-terminate` (XEP-0166, 7.4) that tells the peer of this error.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Unverified(_) => Reason::SecurityError,
            Self::Refused(_) => Reason::Decline,
            Self::Unsupported(_) => Reason::UnsupportedApplications,
            Self::Expired(_) => Reason::Timeout,
            Self::Disconnected => Reason::ConnectivityError,
            Self::Transport(_) => Reason::FailedTransport,
            _ => Reason::FailedApplication,
        }
    }
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        Self::Failed(Detail::of(error))
    }
}

impl From<TlsError> for Error {
    fn from(error: TlsError) -> Self {
        match error {
            TlsError::Unverified(_) | TlsError::Unproven(_) => {
                Self::Unverified(Detail::new(format!("{error}: nothing was sent"), error))
            }
            TlsError::Refused(_) => Self::Refused(Detail::of(error)),
            TlsError::Failed(_) => Self::Failed(Detail::of(error)),
        }
    }
}

/// The sentence of an error, which its source is part of, and that source, if there is one.
#[derive(Clone, Debug)]
pub struct Detail {
    text: String,
    source: Option<Arc<dyn StdError + Send + Sync>>,
}

impl Detail {
    /// Creates a sentence about an error.
    pub fn new(
        text: impl Into<String>,
        source: impl Into<Box<dyn StdError + Send + Sync>>,
    ) -> Self {
        Self { text: text.into(), source: Some(Arc::from(source.into())) }
    }

    /// Takes the text of an error for the sentence.
    pub(super) fn of(source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        let source = source.into();
        Self::new(source.to_string(), source)
    }

    /// Adds to the end of the sentence.
    pub(super) fn and(self, more: &str) -> Self {
        Self { text: self.text + more, ..self }
    }

    /// Returns the sentence.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for Detail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl StdError for Detail {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

/// Sentences are compared, and not what caused them.
impl PartialEq for Detail {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Detail {}

impl From<String> for Detail {
    fn from(text: String) -> Self {
        Self { text, source: None }
    }
}

impl From<&str> for Detail {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

/// Returns the defined condition of an `<error/>`.
pub(super) fn condition(error: &Element) -> String {
    let find = |name: &str| {
        error
            .children()
            .find(|c| c.has_ns(ns::STANZA_ERRORS) && (c.name() == "text") == (name == "text"))
    };
    let condition = find("").map_or("an error", Element::name).to_owned();
    match find("text").map(Element::text) {
        Some(text) if !text.is_empty() => {
            let text: String = text.chars().filter(|c| !c.is_control()).take(300).collect();
            format!("{condition} ({text})")
        }
        _ => condition,
    }
}

#[cfg(test)]
mod tests {
    use std::{io, net::SocketAddr};

    use fingerpost_secure::{fault::Fault, x509::Unusable};
    use time::OffsetDateTime;

    use super::*;
    use crate::dial::DialError;

    /// The cause of a key that is not accepted is kept up to the sentence that the user reads.
    #[test]
    fn a_key_that_is_not_accepted_is_unverified_for_its_own_cause() {
        for (fault, sentence) in [
            (Fault::Print, "does not match the print it offered"),
            (Fault::NotOpenPgp, "carries no OpenPGP key"),
            (Fault::Expired(OffsetDateTime::UNIX_EPOCH), "has expired, at 1970-01-01"),
            (Fault::Revoked, "was revoked by its owner"),
            (Fault::Unusable(Unusable::Version(1)), "of version 1"),
            (Fault::Unusable(Unusable::Extension("1.2.3".into())), "extension 1.2.3"),
            (Fault::Unusable(Unusable::Curve("secp256k1".into())), "curve secp256k1"),
            (Fault::Hash, "a hash that can be forged"),
            (Fault::Signature, "has not signed the TLS key"),
        ] {
            let error = Error::from(TlsError::Unverified(fault));
            assert!(matches!(error, Error::Unverified(_)), "{error:?}");
            let text = error.to_string();
            assert!(text.contains(sentence) && text.ends_with("nothing was sent"), "{text}");
            let below = error.source().and_then(|source| source.downcast_ref::<TlsError>());
            assert!(below.is_some_and(|below| text.starts_with(&below.to_string())), "{error:?}");
        }
    }

    /// The errors below an error can be told apart by a program, down to the first one.
    #[test]
    fn an_error_keeps_its_source_and_two_of_the_same_sentence_are_equal() {
        let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
        let at = SocketAddr::from(([192, 0, 2, 1], 5222));
        for (error, text) in [
            (Error::from(refused()), "connection refused"),
            (
                Error::login(Detail::new("cannot connect to x", DialError::Resolve(refused()))),
                "cannot connect to x",
            ),
            (
                Error::login(Detail::new(
                    "cannot connect",
                    DialError::Connect(vec![(at, refused())]),
                )),
                "cannot connect",
            ),
            (Error::from(TlsError::Failed(refused())), "TLS failed: connection refused"),
        ] {
            assert_eq!(error.to_string(), text);
            let mut below: &dyn StdError = &error;
            while let Some(source) = below.source() {
                below = source;
            }
            let is_io = below.downcast_ref::<io::Error>().map(io::Error::kind);
            assert_eq!(is_io, Some(io::ErrorKind::ConnectionRefused), "{error:?}");
            assert_eq!(error, error.clone());
        }
        let plain = Error::failed("connection refused");
        assert!(plain.source().is_none());
        assert_eq!(plain, Error::from(refused()));
        assert_ne!(plain, Error::refused("connection refused"));
        let more = Error::Failed(Detail::of(refused()).and(" (after 5 bytes had arrived)"));
        assert_eq!(more.to_string(), "connection refused (after 5 bytes had arrived)");
        assert!(more.source().is_some());
    }
}
