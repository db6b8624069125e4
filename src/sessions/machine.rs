//! The machine of a session, whichever protocol began it. The driver carries out the decisions of both.

use fingerpost_carry::iq::random_id;
use fingerpost_wire::jingle::Reason;
use tokio::time::{Duration, Instant};

use super::{
    journal::Renewable,
    peer::SessionPeer,
    session::{ANSWER, BrokeredSession, SessionAction, SessionInput},
    si::{SiEnd, SiSession},
    side::{PerSide, Side},
};

/// The machine of a session.
#[expect(clippy::large_enum_variant, reason = "nearly all sessions are of Jingle")]
pub(super) enum Machine {
    /// Jingle (XEP-0166). One of the users may speak stream initiation in its place.
    Jingle(BrokeredSession, Option<Box<SiEnd>>),
    /// Stream initiation (XEP-0095).
    Si(Box<SiSession>),
}

impl Machine {
    /// Returns the next action; call until `None`.
    pub(super) fn poll_action(&mut self) -> Option<SessionAction> {
        match self {
            Self::Jingle(_, Some(end)) => end.poll_action(),
            Self::Jingle(session, None) => session.poll_action(),
            Self::Si(session) => session.poll_action(),
        }
    }

    /// Handles one input.
    pub(super) fn handle(&mut self, input: SessionInput, now: Instant) {
        if let SessionInput::Features(features) = &input
            && self.translate(features, now)
        {
            return;
        }
        match self {
            Self::Jingle(session, Some(end)) => end.handle(session, input, now),
            Self::Jingle(session, None) => session.handle(input, now),
            Self::Si(session) => session.handle(input, now),
        }
    }

    /// Translates the offer for a responder with these features, if it must be. Returns whether they have been handled.
    fn translate(&mut self, features: &[String], now: Instant) -> bool {
        match self {
            Self::Jingle(session, end @ None) => match session.untranslated(features) {
                Some(Ok(file)) => {
                    let receiver = SiEnd::receiver(random_id, session, file, features, now);
                    *end = Some(Box::new(receiver));
                    true
                }
                Some(Err(text)) => {
                    let end = SessionInput::End(Reason::UnsupportedApplications, text);
                    session.handle(end, now);
                    true
                }
                None => false,
            },
            Self::Jingle(_, Some(_)) => false,
            Self::Si(session) => {
                if let Some((session, end)) = session.translated(random_id, features, now) {
                    *self = Self::Jingle(session, Some(Box::new(end)));
                    return true;
                }
                false
            }
        }
    }

    /// Returns when [`SessionInput::Timeout`] is due.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match self {
            Self::Jingle(session, _) => session.deadline(),
            Self::Si(session) => session.deadline(),
        }
    }

    /// Returns after how many bytes of the initiator [`SessionInput::Delivered`] is due, if it is.
    pub(super) fn awaited(&self) -> Option<u64> {
        match self {
            Self::Jingle(_, Some(end)) => end.awaited(),
            Self::Jingle(_, None) | Self::Si(_) => None,
        }
    }

    /// Returns both users' ends.
    pub(super) fn peers(&self) -> &PerSide<SessionPeer> {
        match self {
            Self::Jingle(session, _) => session.peers(),
            Self::Si(session) => session.peers(),
        }
    }

    /// Returns the ends of the users that can be told of the end of the session after a crash: those that speak Jingle.
    pub(super) fn jingle_peers(&self) -> impl Iterator<Item = &SessionPeer> {
        let is_told = |side: &Side| match self {
            Self::Jingle(_, end) => end.as_ref().is_none_or(|end| end.side() != *side),
            Self::Si(_) => false,
        };
        Side::BOTH.into_iter().filter(is_told).map(|side| &self.peers()[side])
    }

    /// Returns whether it has ended; [`Machine::poll_action`] may still return the last actions.
    pub(super) fn is_over(&self) -> bool {
        match self {
            Self::Jingle(session, _) => session.is_over(),
            Self::Si(session) => session.is_over(),
        }
    }

    /// Returns why it has ended, for the metrics.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::Jingle(session, _) => session.reason(),
            Self::Si(session) => session.reason(),
        }
    }

    /// Returns how long the responder may take to acknowledge a session-initiate.
    pub(super) fn patience(&self) -> Duration {
        match self {
            Self::Jingle(session, _) => session.patience(),
            Self::Si(_) => ANSWER,
        }
    }

    /// Returns whether its stream must be TLS.
    pub(super) fn is_tls(&self) -> bool {
        match self {
            Self::Jingle(session, _) => session.is_tls(),
            Self::Si(_) => false,
        }
    }

    /// Returns whether a user may activate its SOCKS5 connection after both legs are joined. In Jingle it does so before.
    pub(super) fn is_activated_late(&self) -> bool {
        matches!(self, Self::Si(_) | Self::Jingle(_, Some(_)))
    }

    /// Returns what another run needs to go on with the session; `None` if it cannot.
    pub(super) fn renewable(&self) -> Option<Renewable> {
        match self {
            Self::Jingle(session, _) => session.renewable(),
            Self::Si(_) => None,
        }
    }
}
