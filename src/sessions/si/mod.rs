//! One file by stream initiation (XEP-0096) between two users, each with a leg of its own.
//!
//! ```text
//! sender A                     component                       receiver B
//!   <si id='S'>               →  features of B, mark  →  <si id='T'>
//!   ← <si> a method of leg A  ←──────────────────────── <si> a method of leg B
//!   <query sid='S'> or <open>   → │ ours: used │ →      <query sid='T'> with our addresses, or <open>
//! ```
//!
//! SOCKS5 on leg A works only if A knows the component as its proxy, because the component connects to nobody. So SOCKS5 is
//! chosen for A if A has asked for the component's addresses, or offers nothing else. If A's addresses lack the
//! component's, and on leg B if B reaches none, the stream goes in-band.
//!
//! No stanza ends such a session: both legs end with the stream. A receiver whose user has not answered
//! in time is not told.
//!
//! If the receiver speaks Jingle alone, or the sender of a Jingle session meets a receiver that speaks this alone, the session is
//! one of Jingle with an [`SiEnd`].
//!
//! Like [`super::session::BrokeredSession`] it decides and does no I/O.
//!
//! Spec: XEP-0095 1.2, XEP-0096 1.3.1, XEP-0065 1.8.2, XEP-0047 2.0.1.

mod end;
mod reasons;

use std::{collections::VecDeque, io, sync::Arc};

use fingerpost_carry::iq::Answer;
use fingerpost_wire::{
    file::FileOffer,
    ibb_xml::{IbbPayload, IbbStanza},
    jingle::Reason,
    ns,
    si::{self, SiMethod, SiMethods},
    size,
    stanza::{Refusal, Stanza},
    xml,
};
use minidom::Element;
use tokio::time::Instant;
use tracing::info;

pub(super) use self::end::SiEnd;
use super::{
    features,
    legs::{LegState, Plan},
    options::{BrokerOptions, PlainFiles},
    peer::SessionPeer,
    peer_error::of_peer,
    refusal::SessionRefusal,
    session::{BrokeredSession, SessionAction, SessionInput},
    side::{PerSide, Side},
};
use crate::{
    refuse::Refuse as _,
    relay::pipe::{Ended, StreamOutcome},
};

/// What the description of a marked file says, which clients show before a user accepts it.
const MARK: &str = "[This file is not encrypted from end to end]";
/// The block size that every client accepts, for use when a larger one is refused.
const SMALL_BLOCK: u16 = 4096;

/// What a session by stream initiation waits for.
#[derive(Debug)]
enum SiPhase {
    /// The features of the receiver's client.
    Checking(Box<Stanza>),
    /// The receiver's answer.
    Offered(Box<Stanza>),
    /// The legs.
    Accepted,
    /// The end of the stream.
    Relaying,
    /// Nothing.
    Over(Option<Reason>),
}

/// The purpose of a request, by which its answer is handled.
#[derive(Clone, Copy, Debug)]
enum SiQuestion {
    Offer,
    Hosts,
    Open(u16),
}

/// The machine of one session by stream initiation.
#[derive(Debug)]
pub(crate) struct SiSession {
    options: Arc<BrokerOptions>,
    peers: PerSide<SessionPeer>,
    /// The methods of the sender.
    methods: SiMethods,
    /// Whether the sender knows the component as its proxy.
    knows_proxy: bool,
    phase: SiPhase,
    legs: PerSide<LegState>,
    questions: Vec<(u32, SiQuestion)>,
    asked: u32,
    /// When the phase has lasted as long as it may, and when the service stops.
    due: [Option<Instant>; 2],
    actions: VecDeque<SessionAction>,
}

impl SiSession {
    /// Returns a session for an admitted offer with these methods. The ids of both streams are the sids of `peers`.
    pub(crate) fn new(
        options: Arc<BrokerOptions>,
        peers: PerSide<SessionPeer>,
        offer: Stanza,
        methods: SiMethods,
        knows_proxy: bool,
        now: Instant,
    ) -> Self {
        let block_size = options.block_size;
        // Until the methods are chosen, the legs are placeholders.
        let leg = |side: Side| {
            let sid = peers[side].sid.to_string();
            LegState::ibb(ns::JINGLE_IBB, Some(sid), block_size)
        };
        let legs = PerSide { initiator: leg(Side::Initiator), responder: leg(Side::Responder) };
        Self {
            due: [Some(now + options.activation_timeout), None],
            options,
            legs,
            peers,
            methods,
            knows_proxy,
            phase: SiPhase::Checking(Box::new(offer)),
            questions: Vec::new(),
            asked: 0,
            actions: VecDeque::from([SessionAction::LookUpFeatures]),
        }
    }

    /// Returns the methods that the component itself has.
    pub(crate) fn own_methods(options: &BrokerOptions) -> SiMethods {
        SiMethods { socks5: options.socks5, ibb: options.ibb }
    }

    /// Returns the methods that a receiver with these features is offered.
    fn methods_for(options: &BrokerOptions, features: &[String]) -> SiMethods {
        let knows = |feature: &str| features.iter().any(|known| known == feature);
        let ours = Self::own_methods(options);
        let theirs = SiMethods { socks5: knows(ns::BYTESTREAMS), ibb: knows(ns::IBB) };
        // A client that names no method may have forgotten it.
        match ours.and(theirs) {
            none if none.is_empty() => ours,
            both => both,
        }
    }

    /// Returns how a sender's leg begins that has these methods: over SOCKS5 if the sender knows the component as its proxy, or has
    /// nothing else.
    fn first_method(methods: SiMethods, knows_proxy: bool) -> SiMethod {
        match methods {
            SiMethods { socks5: true, ibb: true } if knows_proxy => SiMethod::Socks5,
            SiMethods { ibb: true, .. } => SiMethod::Ibb,
            _ => SiMethod::Socks5,
        }
    }

    /// Returns the Jingle session in whose form the file goes on, with the sender's end, if the receiver with these features takes
    /// it in no other. This session is over then.
    pub(super) fn translated(
        &mut self,
        ids: fn() -> String,
        features: &[String],
        now: Instant,
    ) -> Option<(BrokeredSession, SiEnd)> {
        let SiPhase::Checking(offer) = &self.phase else { return None };
        if !features::translates(features, ns::SI_FILE) {
            return None;
        }
        let file = match FileOffer::of_si(offer.payload()?) {
            Ok(file) => file,
            Err(error) => {
                self.refuse(SessionRefusal::FileOffer(error));
                return None;
            }
        };
        let offer = (offer.clone(), file);
        self.phase = SiPhase::Over(None);
        let (options, peers) = (Arc::clone(&self.options), self.peers.clone());
        let sender = (self.methods, self.knows_proxy);
        let (mut session, mut end) =
            SiEnd::sender(options, ids, peers, offer, sender, features.to_vec(), now);
        if let Some(until) = self.due[1] {
            end.handle(&mut session, SessionInput::Drain(until), now);
        }
        Some((session, end))
    }

    /// Returns the next action; call until `None`.
    pub(crate) fn poll_action(&mut self) -> Option<SessionAction> {
        self.actions.pop_front()
    }

    /// Returns both users' ends.
    pub(crate) fn peers(&self) -> &PerSide<SessionPeer> {
        &self.peers
    }

    /// Returns why it has ended: a condition of XEP-0166, or `refused` if it never began.
    pub(crate) fn reason(&self) -> &'static str {
        match self.phase {
            SiPhase::Over(Some(reason)) => reason.as_str(),
            _ => "refused",
        }
    }

    /// Returns when [`SessionInput::Timeout`] is due.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.due.into_iter().flatten().min()
    }

    /// Returns whether it has ended; [`SiSession::poll_action`] may still return the last actions.
    pub(crate) fn is_over(&self) -> bool {
        matches!(self.phase, SiPhase::Over(_))
    }

    /// Handles one input.
    pub(crate) fn handle(&mut self, input: SessionInput, now: Instant) {
        if self.is_over() {
            if let Some(stanza) = input.into_request() {
                self.send(stanza.refuse(SessionRefusal::Over));
            }
            return;
        }
        match input {
            SessionInput::Answered(number, answer) => self.handle_answer(number, answer, now),
            // The component says so itself, not the peer.
            SessionInput::Unasked(number) => {
                self.questions.retain(|(asked, _)| *asked != number);
                self.refuse(SessionRefusal::TooManyOffers);
            }
            SessionInput::Arrived(side) => {
                self.legs[side].mark_arrived();
                self.check_connected(side);
            }
            SessionInput::Bytestreams(side, stanza) => self.handle_hosts(side, &stanza),
            SessionInput::Drain(until) if until <= now => self.cut(Reason::Gone),
            SessionInput::Drain(until) => self.due[1] = Some(until),
            SessionInput::End(reason, _) => self.cut(reason),
            SessionInput::EndInBand => self.cut(Reason::Gone),
            SessionInput::Features(found) => self.offer(&found),
            SessionInput::NoFeatures => self.offer(&[]),
            SessionInput::Gone(side) => self.handle_gone(side),
            SessionInput::Jingle(_, stanza) => self.send(stanza.refuse(SessionRefusal::Over)),
            SessionInput::Open(side, stanza) => self.handle_open(side, &stanza),
            SessionInput::Relayed(outcome) => self.relayed(&outcome),
            SessionInput::Room => self.refuse(SessionRefusal::Room),
            SessionInput::Timeout => {
                if self.due[1].is_some_and(|due| due <= now) {
                    self.cut(Reason::Gone);
                } else if self.due[0].is_some_and(|due| due <= now) {
                    self.refuse(self.silence());
                    self.end(Reason::Timeout);
                }
            }
            SessionInput::Broken(_)
            | SessionInput::Check
            | SessionInput::Delivered(_)
            | SessionInput::GoOnElsewhere
            | SessionInput::Keys(..)
            | SessionInput::Waits(..) => {}
        }
    }

    fn send(&mut self, element: Element) {
        self.actions.push_back(SessionAction::Send(element));
    }

    fn ask(&mut self, payload: Element, question: SiQuestion) {
        self.asked = self.asked.wrapping_add(1);
        self.questions.push((self.asked, question));
        self.actions.push_back(SessionAction::Ask(Side::Responder, self.asked, payload));
    }

    fn silence(&self) -> SessionRefusal {
        SessionRefusal::Unacknowledged(self.peers.responder.user().to_bare())
    }

    fn is_marked(&self) -> bool {
        self.options.plain == PlainFiles::Mark
    }

    /// Answers the sender's offer with an error, if it is unanswered, and ends the session.
    fn refuse(&mut self, refusal: SessionRefusal) {
        self.answer_error(Refusal::from(refusal).to_element());
    }

    fn answer_error(&mut self, error: Element) {
        if let SiPhase::Checking(offer) | SiPhase::Offered(offer) = &self.phase {
            let answer = offer.error(error);
            self.send(answer);
            self.phase = SiPhase::Over(None);
        }
    }

    /// Ends the session while bytes may flow. Its users learn of that by the end of the stream alone.
    fn cut(&mut self, reason: Reason) {
        if matches!(self.phase, SiPhase::Relaying) {
            self.actions.push_back(SessionAction::Part);
        }
        self.end(reason);
    }

    /// Ends the session. The legs end with it.
    fn end(&mut self, reason: Reason) {
        self.refuse(SessionRefusal::Over);
        if !self.is_over() {
            info!(reason = reason.as_str(), "session ended");
            self.phase = SiPhase::Over(Some(reason));
        }
        self.due = [None; 2];
    }

    fn handle_gone(&mut self, side: Side) {
        let streams = matches!(self.phase, SiPhase::Relaying);
        // A stream beside XMPP survives its user's connection to the server, and shows its own end.
        if streams && matches!(self.legs[side].plan, Plan::S5b { .. }) {
            return;
        }
        self.refuse(SessionRefusal::WentAway);
        self.cut(Reason::Gone);
    }

    /// Offers the file to the receiver, whose client has these features; none: they are unknown.
    fn offer(&mut self, known: &[String]) {
        let SiPhase::Checking(offer) = &self.phase else { return };
        if !known.is_empty() && !features::takes(known, ns::SI_FILE) {
            let user = self.peers.responder.user().to_bare();
            return self.refuse(SessionRefusal::NoFiles(user));
        }
        let Some(si) = offer.payload() else { return };
        let methods = Self::methods_for(&self.options, known);
        let mark = self.is_marked().then_some(MARK);
        let out = si::reoffer(si, &self.peers.responder.sid, methods, mark);
        let size = size::of(&out).unwrap_or(usize::MAX);
        let limit = self.options.max_stanza_bytes;
        if size.saturating_add(4096) > limit {
            return self.refuse(size::refusal(size, limit).into());
        }
        self.phase = match std::mem::replace(&mut self.phase, SiPhase::Accepted) {
            SiPhase::Checking(offer) => SiPhase::Offered(offer),
            other => other,
        };
        self.ask(out, SiQuestion::Offer);
    }

    fn handle_answer(&mut self, number: u32, answer: Answer, now: Instant) {
        let Some(at) = self.questions.iter().position(|(asked, _)| *asked == number) else {
            return;
        };
        let (_, question) = self.questions.remove(at);
        match (question, answer) {
            (SiQuestion::Offer, Answer::Result(Some(answer))) => self.accepted(&answer, now),
            (SiQuestion::Offer, Answer::Result(None)) => {
                let answer = Element::bare("si", ns::SI);
                self.accepted(&answer, now);
            }
            (SiQuestion::Offer, Answer::Error(error)) => self.answer_error(of_peer(error)),
            (SiQuestion::Offer, Answer::Timeout) => self.refuse(self.silence()),
            (SiQuestion::Hosts, Answer::Result(Some(used)))
                if si::uses_host(&used, self.options.jid.as_str()) =>
            {
                self.legs.responder.mark_used();
                self.check_connected(Side::Responder);
            }
            (SiQuestion::Hosts, _) if self.options.ibb => self.open(self.options.block_size),
            (SiQuestion::Open(block_size), Answer::Result(_)) => {
                let sid = self.peers.responder.sid.to_string();
                self.take_stream(Side::Responder, sid, block_size, IbbStanza::Iq);
            }
            (SiQuestion::Open(size), Answer::Error(_)) if size > SMALL_BLOCK => {
                self.open(SMALL_BLOCK);
            }
            (SiQuestion::Hosts | SiQuestion::Open(_), _) => self.end(Reason::FailedTransport),
        }
    }

    /// Handles the receiver's consent: answers the sender, and begins with both legs.
    fn accepted(&mut self, answer: &Element, now: Instant) {
        let SiPhase::Offered(offer) = &self.phase else { return };
        let ours = Self::own_methods(&self.options);
        let own = self.methods.and(ours);
        let Some(theirs) = si::chosen(answer).filter(|method| ours.has(*method)) else {
            return self.refuse(SessionRefusal::NoTransport);
        };
        let mine = Self::first_method(own, self.knows_proxy);
        let id = &self.peers.initiator.sid;
        let result = offer.result(Some(si::answer(answer, id, mine, self.is_marked())));
        self.phase = SiPhase::Accepted;
        self.due[0] = Some(now + self.options.activation_timeout);
        let sid = |side: Side| self.peers[side].sid.to_string();
        let (first, second) = (sid(Side::Initiator), sid(Side::Responder));
        if own.ibb {
            // The sender may fall back to it by itself.
            self.actions.push_back(SessionAction::ExpectOpen(Side::Initiator, Some(first.clone())));
        }
        if mine == SiMethod::Socks5 {
            self.connect(Side::Initiator, first);
        }
        self.send(result);
        match theirs {
            SiMethod::Ibb => self.open(self.options.block_size),
            SiMethod::Socks5 => {
                let component = self.options.jid.as_str();
                let hosts = si::hosts(&second, component, &self.options.advertise);
                self.connect(Side::Responder, second);
                self.ask(hosts, SiQuestion::Hosts);
            }
        }
    }

    /// Plans SOCKS5 for a leg.
    fn connect(&mut self, side: Side, sid: String) {
        self.legs[side] = LegState::s5b(sid.clone(), String::new(), None);
        self.actions.push_back(SessionAction::Connect(side, sid));
    }

    /// Opens the receiver's in-band bytestream.
    fn open(&mut self, block_size: u16) {
        if self.legs.responder.ready || self.is_over() {
            return;
        }
        let sid = self.peers.responder.sid.to_string();
        self.legs.responder = LegState::ibb(ns::JINGLE_IBB, Some(sid.clone()), block_size);
        let size = block_size.to_string();
        let attributes = [("sid", sid.as_str()), ("block-size", &size), ("stanza", "iq")];
        self.ask(xml::element("open", ns::IBB, &attributes), SiQuestion::Open(block_size));
    }

    /// Handles the sender's SOCKS5 addresses.
    fn handle_hosts(&mut self, side: Side, stanza: &Stanza) {
        let leg = &self.legs[side];
        let awaits = matches!(self.phase, SiPhase::Accepted) && leg.awaits_socks5();
        let Some(query) = stanza.payload().filter(|_| side == Side::Initiator && awaits) else {
            return self.send(stanza.refuse(SessionRefusal::OutOfOrder));
        };
        let component = self.options.jid.as_str();
        if si::offers_host(query, component) {
            let sid = self.peers.initiator.sid.to_string();
            self.send(stanza.result(Some(si::host_used(&sid, component))));
            self.legs[side].mark_used();
            return self.check_connected(side);
        }
        self.send(stanza.refuse(SessionRefusal::NotTheProxy(self.options.jid.clone())));
        if self.methods.ibb && self.options.ibb {
            let sid = self.peers.initiator.sid.to_string();
            self.legs[side] = LegState::ibb(ns::JINGLE_IBB, Some(sid), self.options.block_size);
        } else {
            self.end(Reason::FailedTransport);
        }
    }

    /// Handles the sender's in-band bytestream.
    fn handle_open(&mut self, side: Side, stanza: &Stanza) {
        let Some(open) = stanza.payload() else { return };
        let (sid, block_size, kind) = match IbbPayload::parse(open) {
            Ok(Some(IbbPayload::Open { sid, block_size, stanza })) => (sid, block_size, stanza),
            Ok(_) => return,
            Err(refusal) => return self.send(stanza.refuse(refusal)),
        };
        if side != Side::Initiator || !matches!(self.phase, SiPhase::Accepted) {
            return self.send(stanza.refuse(SessionRefusal::OutOfOrder));
        }
        let largest = size::largest_block(self.options.max_stanza_bytes);
        if block_size > largest {
            return self.send(stanza.refuse(SessionRefusal::LongBlocks(largest)));
        }
        if self.legs[side].ready {
            return self.send(stanza.refuse(SessionRefusal::AlreadyOpen));
        }
        self.legs[side] = LegState::ibb(ns::JINGLE_IBB, Some(sid.clone()), block_size);
        // The first block must find its stream, so the answer comes after it.
        let answer = stanza.result(None);
        let stream = SessionAction::TakeStream(side, sid, block_size, kind);
        self.actions.extend([stream, SessionAction::Send(answer)]);
        self.ready(side);
    }

    fn take_stream(&mut self, side: Side, sid: String, block_size: u16, kind: IbbStanza) {
        if self.legs[side].ready {
            return;
        }
        self.actions.push_back(SessionAction::TakeStream(side, sid, block_size, kind));
        self.ready(side);
    }

    fn check_connected(&mut self, side: Side) {
        let leg = &self.legs[side];
        if !leg.ready && leg.is_connected() {
            self.actions.push_back(SessionAction::TakeSocket(side));
            self.ready(side);
        }
    }

    /// Handles a leg that is ready: joins both when the other is.
    fn ready(&mut self, side: Side) {
        self.legs[side].ready = true;
        if matches!(self.phase, SiPhase::Accepted) && self.legs.iter().all(|leg| leg.ready) {
            self.phase = SiPhase::Relaying;
            // The stream has an idle time of its own.
            self.due[0] = None;
            self.actions.push_back(SessionAction::Join);
        }
    }

    fn relayed(&mut self, outcome: &StreamOutcome) {
        info!(
            forward_bytes = outcome.a_to_b,
            backward_bytes = outcome.b_to_a,
            ended = ?outcome.end,
            "stream ended"
        );
        self.end(match outcome.end {
            Ended::Eof => Reason::Success,
            Ended::Idle | Ended::Error(io::ErrorKind::TimedOut) => Reason::Timeout,
            Ended::NotTls => Reason::SecurityError,
            Ended::Error(_) => Reason::ConnectivityError,
        });
    }
}

#[cfg(test)]
mod tests;
