//! The resource that gets a session-initiate, and the session that it did not take.

use std::{fmt, pin::Pin, time::Duration};

use super::{
    refusal::SessionRefusal,
    session::{ANSWER, SessionInput},
    shared::SessionGuard,
    side::Side,
};
use crate::refuse::Refuse as _;
use fingerpost_wire::{
    jingle::{self, Action},
    stanza::Stanza,
};
use jid::Jid;
use minidom::Element;

/// The resource that gets a session-initiate.
#[derive(Debug)]
pub struct Callee {
    /// The full JID.
    pub jid: Jid,
    /// The session id that it already knows from a proposal.
    pub sid: Option<String>,
    /// How long it may take to acknowledge the session-initiate.
    pub patience: Duration,
    /// Whether another resource may take the session instead.
    pub has_others: bool,
    /// Where the session-initiate goes if this resource does not take it or cannot handle it.
    pub again: Option<Again>,
}

impl Callee {
    /// Creates a callee with the usual patience.
    pub fn new(jid: Jid) -> Self {
        Self { jid, sid: None, patience: ANSWER, has_others: false, again: None }
    }
}

/// Receives a session-initiate that its callee did not take, with the error if there was one, and the session that is
/// over.
pub struct Again(
    pub(super) Box<dyn FnOnce(Stanza, Option<Element>, Left) -> GiveBackFuture + Send + Sync>,
);

type GiveBackFuture = Pin<Box<dyn Future<Output = ()> + Send>>;

impl Again {
    /// Passes it to this function.
    pub fn new<F>(
        take: impl FnOnce(Stanza, Option<Element>, Left) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self(Box::new(|stanza, error, left| Box::pin(take(stanza, error, left))))
    }
}

impl fmt::Debug for Again {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Again")
    }
}

/// A session that its callee did not take. It keeps its place, so that stanzas of its initiator are not lost meanwhile,
/// until [`Left::close`] or its drop.
pub struct Left {
    pub(super) guard: SessionGuard,
}

impl Left {
    /// Frees the session's place. Returns the answers to the stanzas that came for it meanwhile, and whether the
    /// session is over: its initiator has withdrawn it or is gone, or it was ended.
    pub fn close(self) -> (Vec<Element>, bool) {
        let inbox = &self.guard.facts.inbox;
        inbox.close();
        self.guard.leave();
        let (mut answers, mut is_over) = (Vec::new(), false);
        while let Some(input) = inbox.try_next() {
            match *input {
                SessionInput::Jingle(Side::Initiator, stanza) if is_terminate(&stanza) => {
                    is_over = true;
                    answers.push(stanza.result(None));
                }
                SessionInput::Jingle(_, stanza) | SessionInput::Open(_, stanza) => {
                    answers.push(stanza.refuse(SessionRefusal::Over));
                }
                SessionInput::Gone(Side::Initiator) | SessionInput::End(..) => is_over = true,
                _ => {}
            }
        }
        (answers, is_over)
    }
}

impl fmt::Debug for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Left")
    }
}

fn is_terminate(stanza: &Stanza) -> bool {
    stanza.payload().is_some_and(|jingle| jingle::action(jingle) == Action::SessionTerminate)
}
