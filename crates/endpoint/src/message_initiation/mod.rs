//! Proposes sessions to all of a user's programs before they are started, and answers such proposals (XEP-0353).
//!
//! A proposal goes to a bare JID: that of the peer, or the one that stands for the peer at the broker. A broker passes it
//! on to the programs that are reachable there. Without a broker, the peer's server gives it to the programs that are available
//! and to those that want copies (XEP-0280): see [`Builder::available`](crate::Builder::available).

mod machine;

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, MutexGuard, PoisonError},
};

use fingerpost_carry::iq::random_id;
use fingerpost_wire::{
    jid::unproxied,
    jingle::Reason,
    message_initiation::{self as wire, Action, RING},
    ns, size,
    stanza::{Stanza, StanzaType},
};
use jid::{BareJid, FullJid, Jid};
use minidom::Element;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::{sync::mpsc, time::Instant};

use self::machine::{Crossing, News, Proposals, Said};
use super::{
    application::Application,
    cause::AskedPeer,
    endpoint::Endpoint,
    error::Error,
    hub::{Admission, Hub, user_behind},
    session::Session,
    stream::SecureStream,
};

/// The most kinds of content of a peer's proposal, and the most bytes of their descriptions.
const KINDS: usize = 8;
const DESCRIPTIONS: usize = 8 << 10;

/// The answer to a proposal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProposalAnswer {
    /// None: the peer learns nothing. Another of the user's programs may answer.
    Silence,
    /// The program rings, and decides later by [`Proposed::proceed`] or [`Proposed::reject`].
    Ring,
    /// The program takes the session, without ringing.
    Proceed,
}

/// Decides which proposals are answered. An answer tells the peer that the user is online, and the program's full address.
///
/// Only proposals that may be answered come here:
/// - Those through the component, which passes on only those of users that may start a session through it.
/// - If sessions without the component are accepted: those of peers that the [`Policy`](crate::Policy) remembers or
///   [`expects`](Self::expects) names.
pub trait Ringer: fmt::Debug + Send + Sync + 'static {
    /// Returns whether a peer may learn our full address although its key is not remembered, for example because the user
    /// has named it.
    fn expects(&self, peer: &BareJid) -> bool {
        let _ = peer;
        false
    }

    /// Decides on a proposal. It must not block.
    fn answer(&self, proposed: &Proposed) -> ProposalAnswer;
}

impl<T: Ringer + ?Sized> Ringer for Arc<T> {
    fn expects(&self, peer: &BareJid) -> bool {
        (**self).expects(peer)
    }

    fn answer(&self, proposed: &Proposed) -> ProposalAnswer {
        (**self).answer(proposed)
    }
}

/// A session that a peer has proposed.
#[derive(Clone, Debug)]
pub struct Proposed {
    hub: Hub,
    peer: BareJid,
    from: FullJid,
    id: String,
    descriptions: Vec<Element>,
}

impl Proposed {
    /// Returns the user that proposes it. Nothing proves that yet.
    pub fn peer(&self) -> &BareJid {
        &self.peer
    }

    /// Returns what it is for: a `<description/>` for each kind of content, which may have little more than a namespace.
    pub fn descriptions(&self) -> &[Element] {
        &self.descriptions
    }

    /// Returns whether it still rings: nobody has withdrawn it, or decided on another device, and it is not too old.
    pub fn rings(&self) -> bool {
        self.hub.initiations().open.rings(&self.from, &self.id, Instant::now())
    }

    /// Takes the session, which then comes as a [`Request`](crate::Request); returns whether it still rang.
    pub async fn proceed(&self) -> bool {
        let rang = self.hub.initiations().open.proceed(&self.from, &self.id, Instant::now());
        if rang {
            self.say(wire::said(Action::Proceed, &self.id)).await;
        }
        rang
    }

    /// Rejects the session for all of our user's programs, without a word about the cause; returns whether it still rang.
    pub async fn reject(&self) -> bool {
        let rang = self.hub.initiations().open.reject(&self.from, &self.id, Instant::now());
        if rang {
            self.say(wire::said_with(Action::Reject, &self.id, Reason::Busy, "Busy")).await;
        }
        rang
    }

    async fn say(&self, said: Element) {
        self.hub.send(self.hub.message(&self.from, &random_id(), said)).await;
    }
}

/// What has become of a [`Proposal`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProposalNews {
    /// A program of the peer's rings. Others may ring too; only the first is reported.
    Ringing,
    /// A program of the peer's takes the session: [`Proposal::initiate`] starts it there.
    Proceeds,
}

/// A session that was proposed to a user. Dropping it retracts the proposal.
#[derive(Debug)]
pub struct Proposal {
    endpoint: Endpoint,
    /// The address that it went to, with the resource that may answer if there is only one.
    address: Jid,
    id: String,
    news: mpsc::Receiver<Heard>,
    taker: Option<FullJid>,
}

impl Drop for Proposal {
    fn drop(&mut self) {
        let hub = self.endpoint.hub();
        if hub.initiations().forget(&self.id) {
            hub.try_send(hub.retract(&self.address, &self.id, Reason::Cancel, "Retracted", false));
        }
    }
}

impl Proposal {
    /// Returns the next news.
    ///
    /// # Errors
    /// The proposal is over then. [`Error::Refused`] if the peer rejects it; [`Error::Unreachable`] if the broker knows of no program
    /// of the peer; [`Error::Failed`] if the broker does not deliver it for another reason; [`Error::Silent`] if the broker gives it
    /// up, or the peer's own proposal has crossed it; [`Error::Disconnected`].
    ///
    /// # Cancel safety
    /// It may be dropped and called again.
    pub async fn next(&mut self) -> Result<ProposalNews, Error> {
        let peer = self.endpoint.user_of(&self.address);
        match self.news.recv().await {
            Some(Heard::News(News::Ringing)) => Ok(ProposalNews::Ringing),
            Some(Heard::News(News::Proceeds(by))) => {
                self.taker = Some(by);
                Ok(ProposalNews::Proceeds)
            }
            Some(Heard::News(News::Rejected(reason))) => {
                let reason = reason.map_or("no reason", Reason::as_str);
                Err(Error::refused(format!("{peer} rejects the session: {reason}")))
            }
            Some(Heard::News(News::Ended)) => {
                Err(Error::Silent(format!("no program of {peer} has answered")))
            }
            Some(Heard::News(News::Crossed)) => {
                Err(Error::Silent(format!("{peer} has proposed a session at the same time")))
            }
            Some(Heard::Refused(error)) => {
                let component = self.endpoint.component();
                let asked = AskedPeer { address: &self.address, peer: Some(&peer), component };
                Err(match asked.error(&error) {
                    away @ Error::Unreachable(_) => away,
                    // Whether a session can be started is another question.
                    other => Error::failed(format!("the proposal was not delivered: {other}")),
                })
            }
            None => Err(Error::Disconnected),
        }
    }

    /// Starts the session with the program that takes it, and secures it.
    ///
    /// # Errors
    /// Those of [`Endpoint::initiate`]; [`Error::Failed`] if no program has said that it takes the session.
    pub async fn initiate(
        self,
        application: &Application,
    ) -> Result<(Session, SecureStream), Error> {
        let Some(taker) = self.taker.clone() else {
            return Err(Error::failed("no program of the peer has taken the session"));
        };
        let endpoint = self.endpoint.clone();
        endpoint.initiate_at(&Jid::from(taker), application, Some(self)).await
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// Ends the proposal without a word: the session has begun.
    pub(super) fn started(self) -> Option<Finish> {
        let hub = self.endpoint.hub().clone();
        hub.initiations().forget(&self.id);
        let to = self.taker.clone()?;
        Some(Finish { hub, to, id: self.id.clone(), is_success: false })
    }
}

impl Endpoint {
    /// Proposes a session to all of a user's programs (XEP-0353). Its `<description/>` has only the application's namespace:
    /// servers store it.
    ///
    /// With a broker it reaches the programs that can be reached at this moment. Without one, `peer` may be bare. If it has a
    /// resource, only that one gets the session.
    ///
    /// # Errors
    /// [`Error::Address`] if `peer` cannot be used so, or [`Error::Disconnected`].
    pub async fn propose(&self, peer: &Jid, application: &Application) -> Result<Proposal, Error> {
        let address = match self.via() {
            Some(_) => self.address_of(peer)?,
            None => peer.clone(),
        };
        let hub = self.hub();
        if hub.is_lost() {
            return Err(Error::Disconnected);
        }
        let id = random_id();
        let mut propose = wire::said(Action::Propose, &id);
        propose.append_child(Element::bare("description", application.namespace()));
        let message = hub.message(&address.to_bare(), &id, propose);
        let news = hub.initiations().propose(&id, &address);
        let proposal = Proposal { endpoint: self.clone(), address, id, news, taker: None };
        hub.send(message).await;
        Ok(proposal)
    }
}

/// Says at the end of a proposed session that it is over, when it is dropped.
#[derive(Debug)]
pub(super) struct Finish {
    hub: Hub,
    to: FullJid,
    id: String,
    is_success: bool,
}

impl Finish {
    pub(super) fn say(mut self, is_success: bool) {
        self.is_success = is_success;
    }
}

impl Drop for Finish {
    fn drop(&mut self) {
        // Others would tell more of the user than the peer needs to know (XEP-0353, section 7).
        let (reason, text) = match self.is_success {
            true => (Reason::Success, "Success"),
            false => (Reason::Expired, "Over"),
        };
        let finish = wire::said_with(Action::Finish, &self.id, reason, text);
        self.hub.try_send(self.hub.message(&self.to, &random_id(), finish));
    }
}

/// The news for the owner of a proposal.
#[derive(Debug)]
enum Heard {
    News(News),
    /// The broker does not pass it on: its `<error/>`.
    Refused(Element),
}

/// The open proposals of an endpoint, and who waits for news of its own.
#[derive(Debug, Default)]
pub(super) struct Initiations {
    open: Proposals,
    waiting: HashMap<String, mpsc::Sender<Heard>>,
}

impl Initiations {
    fn propose(&mut self, id: &str, address: &Jid) -> mpsc::Receiver<Heard> {
        // It rings, somebody proceeds, and then the proposal is over.
        let (sender, news) = mpsc::channel(4);
        self.open.propose(id.to_owned(), address.clone());
        self.waiting.insert(id.to_owned(), sender);
        news
    }

    /// Forgets a proposal of ours; returns whether it was open.
    fn forget(&mut self, id: &str) -> bool {
        self.waiting.remove(id);
        self.open.forget(id)
    }

    fn tell(&self, id: &str, heard: Heard) {
        if let Some(waiting) = self.waiting.get(id) {
            let _ = waiting.try_send(heard);
        }
    }
}

impl Admission {
    fn is_brokered(&self, from: &Jid) -> bool {
        self.component.as_ref().is_some_and(|component| {
            component.domain() == from.domain() && unproxied(from, component).is_some()
        })
    }

    /// Returns whether sessions without the broker are accepted.
    fn is_open_past_the_broker(&self) -> bool {
        self.component.is_none() || !self.only_brokered
    }

    /// Returns whether a peer may learn by an answer that we are here. A broker would pass its session-initiate on to us. Without a
    /// broker the peer would need our full address for that, so only peers that we know learn it.
    fn may_answer(&self, from: &Jid, is_known: bool) -> bool {
        self.is_brokered(from) || self.is_open_past_the_broker() && is_known
    }
}

impl Hub {
    fn initiations(&self) -> MutexGuard<'_, Initiations> {
        self.initiations.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets all proposals, with the session with the server that they belonged to.
    pub(super) fn forget_proposals(&self) {
        *self.initiations() = Initiations::default();
    }

    /// Returns what has to be said at the end of a session that has come, if it was proposed.
    pub(super) fn proposed_session(&self, from: &Jid, sid: &str) -> Option<Finish> {
        let to = FullJid::try_from(from.clone()).ok()?;
        let is_proposed = self.initiations().open.start(&to, sid, Instant::now());
        is_proposed.then(|| Finish { hub: self.clone(), to, id: sid.to_owned(), is_success: false })
    }

    fn message(&self, to: &Jid, id: &str, said: Element) -> Element {
        wire::message(&self.jid(), to, id, said)
    }

    fn retract(&self, to: &Jid, id: &str, reason: Reason, text: &str, is_crossed: bool) -> Element {
        let mut retract = wire::said_with(Action::Retract, id, reason, text);
        if is_crossed {
            retract.append_child(Element::bare("tie-break", ns::JINGLE_MESSAGE));
        }
        self.message(&to.to_bare(), &random_id(), retract)
    }

    /// Handles a message. All but those about proposals are ignored.
    pub(super) async fn handle_message(&self, stanza: Stanza) {
        let own = self.jid();
        if stanza.type_ == StanzaType::Error {
            return self.handle_refusal(&stanza);
        }
        let was_held_up = is_late(&stanza.element);
        let Some((message, is_own)) = uncopied(stanza, &own.to_bare()) else { return };
        let Some(element) = wire::read(&message.element) else { return };
        let Ok(action) = element.name().parse::<Action>() else { return };
        let id = element.attr("id").unwrap_or_default();
        if message.element.attr("type") != Some("chat") {
            return;
        }
        match action {
            Action::Proceed | Action::Reject if is_own => {
                self.initiations().open.decided_elsewhere(&message.to.to_bare(), id);
            }
            _ if is_own => {}
            Action::Propose => {
                let is_here = message.to.is_bare() || message.to == own;
                if is_here && !was_held_up && !is_late(&message.element) {
                    self.handle_proposal(&message.from, element, id).await;
                }
            }
            _ => {
                let is_tie_break = element.has_child("tie-break", ns::JINGLE_MESSAGE);
                let reason = wire::reason_of(element);
                let said = Said { from: &message.from, action, id, reason, is_tie_break };
                let mut initiations = self.initiations();
                if let Some(news) = initiations.open.handle(said) {
                    initiations.tell(id, Heard::News(news));
                }
            }
        }
    }

    /// Handles the error that comes back for a message.
    fn handle_refusal(&self, stanza: &Stanza) {
        // Without a broker, the peer's server refuses a message although copies of it may have been delivered.
        if !self.admission().is_brokered(&stanza.from) {
            return;
        }
        let Some(error) = stanza.element.get_child("error", ns::CLIENT) else { return };
        let mut initiations = self.initiations();
        if initiations.open.is_unheard(&stanza.id, &stanza.from) {
            initiations.tell(&stanza.id, Heard::Refused(error.clone()));
            initiations.forget(&stanza.id);
        }
    }

    async fn handle_proposal(&self, from: &Jid, propose: &Element, id: &str) {
        let admission = self.admission();
        let Some(ringer) = &admission.ringer else { return };
        let Ok(sender) = FullJid::try_from(from.clone()) else { return };
        let peer = user_behind(from, admission.component.as_ref());
        let is_known = ringer.expects(&peer) || admission.policy.remembers(&peer);
        if !admission.may_answer(from, is_known)
            || !self.initiations().open.has_room(&sender, &peer, id, is_known, Instant::now())
        {
            return;
        }
        let Some(descriptions) = descriptions(propose) else { return };
        let (hub, id) = (self.clone(), id.to_owned());
        let proposed = Proposed { hub, peer, from: sender, id, descriptions };
        let answer = ringer.answer(&proposed);
        if answer == ProposalAnswer::Silence {
            return;
        }
        let Proposed { peer, from, id, .. } = &proposed;
        let crossing = self.initiations().cross(from, id, [&self.jid().to_bare(), peer]);
        match crossing {
            Some(Crossing::Ours) => {
                let mut reject = wire::said_with(Action::Reject, id, Reason::Expired, "Tie-Break");
                reject.append_child(Element::bare("tie-break", ns::JINGLE_MESSAGE));
                return proposed.say(reject).await;
            }
            Some(Crossing::Theirs(ours)) => {
                for ours in ours {
                    let retract = self.retract(from, &ours, Reason::Expired, "Tie-Break", true);
                    self.send(retract).await;
                }
            }
            None => {}
        }
        let (from, id) = (from.clone(), id.clone());
        self.initiations().open.ring(from, peer.clone(), id, is_known, Instant::now());
        // A program that proceeds at once does not ring.
        if answer == ProposalAnswer::Proceed {
            proposed.proceed().await;
        } else {
            proposed.say(wire::said(Action::Ringing, &proposed.id)).await;
        }
    }
}

/// Returns the descriptions in a proposal, unless there are none, too many or too long ones.
fn descriptions(propose: &Element) -> Option<Vec<Element>> {
    let found = propose.children().filter(|child| child.name() == "description");
    let found: Vec<&Element> = found.take(KINDS + 1).collect();
    let bytes = found.iter().map(|description| size::of(description).unwrap_or(usize::MAX));
    let is_short = bytes.fold(0, usize::saturating_add) <= DESCRIPTIONS;
    ((1..=KINDS).contains(&found.len()) && is_short).then(|| found.into_iter().cloned().collect())
}

impl Initiations {
    /// Returns which of two proposals that cross stays. Those of ours that do not are told so.
    fn cross(&mut self, from: &FullJid, id: &str, users: [&BareJid; 2]) -> Option<Crossing> {
        let crossing = self.open.cross(from, id, users)?;
        if let Crossing::Theirs(ours) = &crossing {
            for id in ours {
                self.tell(id, Heard::News(News::Crossed));
                self.waiting.remove(id);
            }
        }
        Some(crossing)
    }
}

/// Returns the message that a copy is of, and whether another of our user's programs has sent it (XEP-0280); any other message
/// as it is. `None` if the copy is not from our own server.
///
/// Spec: XEP-0280 1.0.1, section 11 (Security Considerations).
fn uncopied(stanza: Stanza, own: &BareJid) -> Option<(Stanza, bool)> {
    let copy = |name| stanza.element.get_child(name, ns::CARBONS);
    let (copy, is_own) = match (copy("received"), copy("sent")) {
        (None, None) => return Some((stanza, false)),
        (Some(copy), None) => (copy, false),
        (None, Some(copy)) => (copy, true),
        (Some(_), Some(_)) => return None,
    };
    if stanza.from != *own {
        return None;
    }
    let forwarded = copy.get_child("forwarded", ns::FORWARD)?;
    let message = Stanza::parse(forwarded.get_child("message", ns::CLIENT)?.clone()).ok()?;
    let ours = if is_own { &message.from } else { &message.to };
    (ours.to_bare() == *own).then_some((message, is_own))
}

/// Returns whether a message was sent so long ago that its proposal no longer rings (XEP-0203).
fn is_late(message: &Element) -> bool {
    let Some(delay) = message.get_child("delay", ns::DELAY) else { return false };
    let sent = OffsetDateTime::parse(delay.attr("stamp").unwrap_or_default(), &Rfc3339);
    sent.map_or(true, |sent| OffsetDateTime::now_utc() - sent >= RING)
}

#[cfg(test)]
mod tests;
