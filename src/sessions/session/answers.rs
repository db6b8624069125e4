//! What the answers to a session's own requests mean.

use fingerpost_carry::iq::Answer;
use fingerpost_wire::{
    ibb_xml::IbbStanza,
    jingle::{self, Reason},
    stanza::Refusal,
};
use tokio::time::Instant;

use super::{
    AGAIN, BrokeredSession, Conclusion, Question, SMALL_BLOCK, SessionAction, SessionPhase,
    timers::Timer,
};
use crate::{
    refuse::Refuse as _,
    sessions::{
        legs::Plan,
        peer_error::{is_for_others, is_gone, is_undelivered, is_unknown, of_peer},
        refusal::SessionRefusal,
        side::Side,
    },
};

impl BrokeredSession {
    pub(super) fn handle_answer(&mut self, number: u32, answer: Answer, now: Instant) {
        let Some(at) = self.questions.iter().position(|(asked, _)| *asked == number) else {
            return;
        };
        let (_, question) = self.questions.remove(at);
        if self.questions.is_empty() {
            self.questions = Vec::new();
        }
        match (question, answer) {
            (Question::Initiate, answer) => self.initiated(answer),
            (Question::Forwarded(stanza), answer) => self.send(match answer {
                Answer::Result(payload) => stanza.result(payload),
                Answer::Error(error) => stanza.error(of_peer(error)),
                Answer::Timeout => stanza.refuse(SessionRefusal::NoAnswer),
            }),
            (Question::Open(side, sid, _), _)
                if self.legs[side].ready || self.stream_sid(side) != sid => {}
            (Question::Open(side, sid, block_size), Answer::Result(_)) => {
                let stream = SessionAction::TakeStream(side, sid, block_size, IbbStanza::Iq);
                self.actions.push_back(stream);
                self.ready(side);
            }
            (Question::Open(side, _, block_size), Answer::Error(_)) if block_size > SMALL_BLOCK => {
                if let Plan::Ibb { block_size, opened, .. } = &mut self.legs[side].plan {
                    (*block_size, *opened) = (SMALL_BLOCK, false);
                }
                self.open(side);
            }
            // The initiator may think that it has to open the bytestream that we have offered on its leg.
            (Question::Open(Side::Initiator, ..), _) => {
                if let Plan::Ibb { opened, .. } = &mut self.legs.initiator.plan {
                    *opened = false;
                }
            }
            (Question::Open(..), _) => {
                self.end_both(Reason::FailedTransport, "The in-band bytestream was refused");
            }
            (Question::Ping(side), answer) => self.pinged(side, answer, now),
            (Question::Replace(side), Answer::Error(error)) => self.refused(side, Some(&error)),
            (Question::Replace(side), Answer::Timeout) => self.refused(side, None),
            // An answer to an offer before the last one says nothing of that.
            (Question::Renew(sid), _) if sid != self.stream_sid(Side::Responder) => {}
            (Question::Renew(_), Answer::Error(error)) => self.renewal_failed(&error, now),
            (Question::Renew(_), Answer::Timeout) => self.repeat_renewal(now),
            _ => {}
        }
    }

    /// Handles the responder's answer to the session-initiate, unless its session-accept came first.
    pub(super) fn initiated(&mut self, answer: Answer) {
        let error = match answer {
            Answer::Result(_) => return self.acknowledge(),
            Answer::Error(error) => Some(error),
            Answer::Timeout => None,
        };
        let Some(initiate) = self.take_initiate() else { return };
        if error.is_none() {
            // If the responder is present after all, it must not wait for an absent peer.
            let text = "The session was not acknowledged in time";
            let out = jingle::end(&self.frame(Side::Responder), Reason::Timeout, text, None);
            self.tell(Side::Responder, out);
        }
        let goes_back = initiate.goes_back && error.as_ref().is_none_or(is_for_others);
        // The initiator can tell it from an error of its own server.
        let error = error.map(of_peer);
        if goes_back {
            self.actions.push_back(SessionAction::GiveBack(Box::new(initiate.stanza), error));
        } else {
            let error = error.unwrap_or_else(|| Refusal::from(self.silence()).to_element());
            self.send(initiate.stanza.error(error));
        }
        self.finish(Conclusion::Refused);
    }

    /// Returns the refusal for a responder that does not acknowledge the session-initiate.
    pub(super) fn silence(&self) -> SessionRefusal {
        SessionRefusal::Unacknowledged(self.peers.responder.user().to_bare())
    }

    /// Handles a user's answer to the question whether the session exists.
    pub(super) fn pinged(&mut self, side: Side, answer: Answer, now: Instant) {
        if let Answer::Error(error) = &answer
            && is_undelivered(error)
            && self.doubt(side)
        {
            // The first such answer may come from a server whose connection to another one lost the request.
            return self.timers.set(Timer::Ping(side), now + AGAIN);
        }
        match answer {
            // The user's own program says so.
            Answer::Error(error) if is_unknown(&error) && !self.runs_beside_xmpp(side) => {
                self.lost(side);
            }
            Answer::Error(error) if is_gone(&error) => {
                if self.runs_beside_xmpp(side) {
                    // A stream beside XMPP survives its user's connection to the server, and shows its own end.
                    self.absent[side] = true;
                } else {
                    self.lost_for_now(side, now);
                }
            }
            Answer::Result(_) | Answer::Error(_) => {
                if let SessionPhase::Relaying { doubted, .. } = &mut self.phase {
                    doubted[side] = false;
                }
                self.is_here(side, now);
            }
            // The user has said that it goes, and sends nothing more.
            Answer::Timeout if self.absent[side] && !self.runs_beside_xmpp(side) => {
                self.lost_for_now(side, now);
            }
            Answer::Timeout => {}
        }
    }

    /// Notes that an answer says that a user is absent. Returns whether it is the first one while bytes flow.
    pub(super) fn doubt(&mut self, side: Side) -> bool {
        match &mut self.phase {
            SessionPhase::Relaying { doubted, .. } => !std::mem::replace(&mut doubted[side], true),
            _ => false,
        }
    }
}
