//! The machine of a session, whichever protocol began it. The driver carries out the decisions of both.

use tokio::time::{Duration, Instant};

use super::{
    journal::Renewable,
    peer::SessionPeer,
    session::{BrokeredSession, SessionAction, SessionInput},
    si::SiSession,
    side::PerSide,
};

/// The machine of a session.
#[expect(clippy::large_enum_variant, reason = "nearly all sessions are of Jingle")]
pub(super) enum Machine {
    /// Jingle (XEP-0166).
    Jingle(BrokeredSession),
    /// Stream initiation (XEP-0095).
    Si(Box<SiSession>),
}

impl Machine {
    /// Returns the next action; call until `None`.
    pub(super) fn poll_action(&mut self) -> Option<SessionAction> {
        match self {
            Self::Jingle(session) => session.poll_action(),
            Self::Si(session) => session.poll_action(),
        }
    }

    /// Handles one input.
    pub(super) fn handle(&mut self, input: SessionInput, now: Instant) {
        match self {
            Self::Jingle(session) => session.handle(input, now),
            Self::Si(session) => session.handle(input, now),
        }
    }

    /// Returns when [`SessionInput::Timeout`] is due.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match self {
            Self::Jingle(session) => session.deadline(),
            Self::Si(session) => session.deadline(),
        }
    }

    /// Returns both users' ends.
    pub(super) fn peers(&self) -> &PerSide<SessionPeer> {
        match self {
            Self::Jingle(session) => session.peers(),
            Self::Si(session) => session.peers(),
        }
    }

    /// Returns whether it has ended; [`Machine::poll_action`] may still return the last actions.
    pub(super) fn is_over(&self) -> bool {
        match self {
            Self::Jingle(session) => session.is_over(),
            Self::Si(session) => session.is_over(),
        }
    }

    /// Returns why it has ended, for the metrics.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::Jingle(session) => session.reason(),
            Self::Si(session) => session.reason(),
        }
    }

    /// Returns how long the responder may take to acknowledge a session-initiate.
    pub(super) fn patience(&self) -> Duration {
        match self {
            Self::Jingle(session) => session.patience(),
            Self::Si(_) => super::session::ANSWER,
        }
    }

    /// Returns whether its stream must be TLS.
    pub(super) fn is_tls(&self) -> bool {
        match self {
            Self::Jingle(session) => session.is_tls(),
            Self::Si(_) => false,
        }
    }

    /// Returns whether a user may activate its SOCKS5 connection after both legs are joined. In Jingle it does so before.
    pub(super) fn is_activated_late(&self) -> bool {
        matches!(self, Self::Si(_))
    }

    /// Returns what another run needs to go on with the session; `None` if it cannot.
    pub(super) fn renewable(&self) -> Option<Renewable> {
        match self {
            Self::Jingle(session) => session.renewable(),
            Self::Si(_) => None,
        }
    }
}
