//! The failures of a session, by the party that can act.

use fingerpost_secure::stream::TlsError;
use fingerpost_wire::jingle::Reason;

/// Why there is no session, or why it ended.
///
/// Each text is a sentence for a person; the variant tells a program what it can do.
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
    #[error("{0}")]
    Refused(String),
    /// No TLS method is common to the peer and this endpoint.
    #[error("{0}")]
    Unsupported(String),
    /// The peer's key is not the promised one, or nothing vouches for it. No application byte has been sent.
    #[error("{0}")]
    Unverified(String),
    /// The peer began a session and did not secure it in time, or others needed its place.
    #[error("{0}")]
    Expired(String),
    /// The XMPP server refused the login.
    #[error("{0}")]
    Login(String),
    /// The connection to the XMPP server is lost.
    #[error("the connection to the XMPP server is lost")]
    Disconnected,
    /// Any other failure: network, protocol, timeout.
    #[error("{0}")]
    Failed(String),
}

impl Error {
    pub(super) fn failed(text: impl Into<String>) -> Self {
        Self::Failed(text.into())
    }

    pub(super) fn refused(text: impl Into<String>) -> Self {
        Self::Refused(text.into())
    }

    pub(super) fn login(text: impl Into<String>) -> Self {
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
        Self::Failed(error.to_string())
    }
}

impl From<TlsError> for Error {
    fn from(error: TlsError) -> Self {
        match error {
            TlsError::Unverified(_) | TlsError::Unproven(_) => {
                Self::Unverified(format!("{error}: nothing was sent"))
            }
            TlsError::Refused(_) => Self::Refused(error.to_string()),
            TlsError::Failed(_) => Self::Failed(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use fingerpost_secure::{fault::Fault, x509::Unusable};
    use time::OffsetDateTime;

    use super::*;

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
        }
    }
}
