//! How a session ends, and what its users are told.

use std::io;

use fingerpost_wire::{
    ibb::IbbError,
    jingle::{self, Reason},
};
use jid::BareJid;
use minidom::Element;
use tokio::time::Instant;
use tracing::info;

use super::{
    AGAIN, Acceptance, BrokeredSession, Conclusion, GOODBYE, LAST_WORD, Question, RAW_GOODBYE,
    SessionAction, SessionInput, SessionPhase, TEXT,
    renewal::RENEWAL,
    timers::{Timer, TimerTable},
};
use crate::{
    refuse::Refuse as _,
    relay::pipe::{Ended, StreamOutcome},
    sessions::{refusal::SessionRefusal, side::Side},
};

/// What the other user of a session is told of one that has gone.
const WENT_AWAY: &str = "The other user went away";

impl BrokeredSession {
    /// Ends the session with a session-terminate to both sides (an initiate still unanswered is answered first).
    pub(super) fn end_both(&mut self, condition: Reason, text: &str) {
        self.end_for(condition, text, None);
    }

    /// Ends the session because the component refuses a key of `owner`.
    pub(super) fn refuse_key(&mut self, owner: &BareJid, text: &str) {
        self.end_for(Reason::SecurityError, text, Some(owner));
    }

    pub(super) fn end_for(&mut self, condition: Reason, text: &str, owner: Option<&BareJid>) {
        // The text may repeat what a user sent, and both users must learn of the end.
        let text: String = text.chars().take(TEXT).collect();
        self.answer_initiate(None);
        for side in Side::BOTH {
            if self.is_told(side) {
                let jingle = jingle::end(&self.frame(side), condition, &text, owner);
                self.tell(side, jingle);
            }
        }
        info!(reason = condition.as_str(), "session ended");
        self.finish(Conclusion::Ended(Some(condition)));
    }

    /// Handles a side that seems to have gone. One whose program can go on with the stream has [`RENEWAL`] to come back: its
    /// server may have restarted, and the program is not yet connected again.
    pub(super) fn lost_for_now(&mut self, side: Side, now: Instant) {
        if !self.goes_on() {
            return self.lost(side);
        }
        self.absent[side] = true;
        self.timers.set(Timer::Ping(side), now + AGAIN);
        match self.phase {
            SessionPhase::Relaying { .. } => {
                self.actions.push_back(SessionAction::Part);
                self.await_renewal(Reason::Gone, WENT_AWAY.to_owned(), now);
            }
            SessionPhase::Relayed { reason: Reason::Success, .. } => {
                self.await_renewal(Reason::Gone, WENT_AWAY.to_owned(), now);
            }
            _ => {}
        }
    }

    /// Waits for the users to go on with a stream that is broken, and ends the session otherwise.
    fn await_renewal(&mut self, reason: Reason, text: String, now: Instant) {
        self.phase = SessionPhase::Relayed { reason, text };
        self.timers.set(Timer::Phase, now + RENEWAL);
    }

    /// Handles a side that has gone: tells the other.
    pub(super) fn lost(&mut self, side: Side) {
        let other = side.other();
        self.refuse_initiate(SessionRefusal::WentAway);
        if self.is_told(other) {
            let jingle = jingle::end(&self.frame(other), Reason::Gone, WENT_AWAY, None);
            self.tell(other, jingle);
        }
        info!(side = side.as_str(), "user gone");
        self.finish(Conclusion::Ended(Some(Reason::Gone)));
    }

    /// Ends the session, and answers every request that is still open.
    pub(super) fn finish(&mut self, conclusion: Conclusion) {
        self.phase = SessionPhase::Over(conclusion);
        self.timers = TimerTable::default();
        self.answer_initiate(None);
        let questions = std::mem::take(&mut self.questions);
        let forwarded = questions.into_iter().filter_map(|(_, question)| match question {
            Question::Forwarded(stanza) => Some(*stanza),
            _ => None,
        });
        let checked = self.check.take().map(|check| (check.stanza, check.behind));
        let (checked, behind) = checked.unzip();
        let behind = behind.into_iter().flatten().filter_map(SessionInput::into_request);
        for stanza in checked.into_iter().chain(forwarded).chain(behind) {
            self.actions.push_back(SessionAction::Send(stanza.refuse(SessionRefusal::Over)));
        }
    }

    /// Passes one side's session-terminate to the other, with its reason.
    pub(super) fn leave(&mut self, by: Side, jingle: &Element) {
        let other = by.other();
        if self.is_told(other) {
            let out = jingle::jingle(jingle, &self.frame(other), |content| content);
            let mut iq = self.request(other, out);
            if self.check_size(&iq).is_err() {
                // The other user must learn of the end, if not of everything that was said about it.
                let condition = jingle::reason_of(jingle).unwrap_or(Reason::GeneralError);
                let text =
                    "The other user ended the session with a reason too long to be passed on";
                iq = self.request(other, jingle::terminate(&self.frame(other), condition, text));
            }
            self.send(iq);
        }
        let reason = jingle::reason_of(jingle);
        let named = reason.map_or("other", Reason::as_str);
        info!(by = by.as_str(), reason = named, "session terminated");
        self.finish(Conclusion::Ended(reason));
    }

    /// Returns the side that has prevented the session's setup, as text.
    pub(super) fn late(&self) -> String {
        let user = |side| self.peers[side].user().to_bare();
        if !matches!(self.acceptance, Acceptance::Accepted) && !self.legs.responder.ready {
            return format!("{} did not accept the session in time", user(Side::Responder));
        }
        match (self.legs.initiator.ready, self.legs.responder.ready) {
            (true, false) => {
                format!("{} set up no transport in time", user(Side::Responder))
            }
            (false, true) => {
                format!("{} set up no transport in time", user(Side::Initiator))
            }
            _ => "The session was not set up in time by either user".to_owned(),
        }
    }

    /// Ends the session, because its phase has lasted as long as it may.
    pub(super) fn end_phase(&mut self) {
        match &self.phase {
            SessionPhase::Leaving { by, jingle } => self.leave(*by, &jingle.clone()),
            SessionPhase::Relayed { reason, text } => self.end_both(*reason, &text.clone()),
            // Its users may go on without this component, so they are told nothing.
            SessionPhase::Restored => self.finish(Conclusion::Ended(Some(Reason::Gone))),
            _ => {
                let text = self.late();
                self.end_both(Reason::Timeout, &text);
            }
        }
    }

    pub(super) fn relayed(&mut self, outcome: StreamOutcome, now: Instant) {
        info!(
            forward_bytes = outcome.a_to_b,
            backward_bytes = outcome.b_to_a,
            ended = ?outcome.end,
            "stream ended"
        );
        let broken = match &self.phase {
            SessionPhase::Leaving { by, jingle } => return self.leave(*by, &jingle.clone()),
            SessionPhase::Relaying { broken, .. } => *broken,
            _ => None,
        };
        match outcome.end {
            Ended::NotTls => {
                self.end_both(
                    Reason::SecurityError,
                    "The stream did not start with a TLS ClientHello",
                );
            }
            Ended::Idle => self.end_both(Reason::Timeout, "No byte was sent for too long"),
            Ended::Error(
                io::ErrorKind::TimedOut
                | io::ErrorKind::HostUnreachable
                | io::ErrorKind::NetworkUnreachable
                | io::ErrorKind::NetworkDown,
            ) => {
                let text = match broken {
                    None => "A user can no longer be reached".to_owned(),
                    Some(_) => broken_text(broken),
                };
                if !self.can_renew() {
                    return self.end_both(Reason::Timeout, &text);
                }
                self.await_renewal(Reason::Timeout, text, now);
            }
            // One absent user is the reason. If both seem absent, their server may have said so, which means nothing.
            Ended::Error(_) if self.absent.initiator != self.absent.responder => {
                if !self.can_renew() {
                    return self.end_both(Reason::Gone, WENT_AWAY);
                }
                // It may have come back unnoticed.
                self.check_users_at(now);
                self.await_renewal(Reason::Gone, WENT_AWAY.to_owned(), now);
            }
            Ended::Error(_) => {
                let reason = match broken {
                    Some((_, IbbError::Gone)) => Reason::Gone,
                    _ => Reason::ConnectivityError,
                };
                self.phase = SessionPhase::Relayed { reason, text: broken_text(broken) };
                let wait = if self.can_renew() { RENEWAL } else { LAST_WORD };
                self.timers.set(Timer::Phase, now + wait);
            }
            Ended::Eof => {
                if self.absent.initiator || self.absent.responder {
                    self.check_users_at(now);
                }
                self.phase = SessionPhase::Relayed { reason: Reason::Success, text: String::new() };
                // Programs that can go on with the stream end the session themselves once they have all of it.
                let is_whole = self.content.is_raw && !self.can_renew();
                let wait = if is_whole { RAW_GOODBYE } else { GOODBYE };
                self.timers.set(Timer::Phase, now + wait);
            }
        }
    }
}

/// Returns why the stream broke, as text for both users.
fn broken_text(broken: Option<(Side, IbbError)>) -> String {
    match broken {
        None => "A leg broke".to_owned(),
        Some((side, error)) => {
            format!("The in-band stream of the {} broke: {error}", side.as_str())
        }
    }
}
