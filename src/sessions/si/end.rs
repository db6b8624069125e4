//! A user that speaks stream initiation alone (XEP-0096), as one end of a Jingle session for a file (XEP-0234).
//!
//! The session is a [`BrokeredSession`], as if both users spoke Jingle. This end stands in the place of one of them: what the
//! machine says to that user in Jingle is said in stream initiation, and the user's stanzas become the Jingle stanzas that a
//! client of Jingle would have sent.
//!
//! ```text
//! sender               this end                        machine              receiver
//!   <si>             →  session-initiate             →          → session-initiate
//!   ← <si> a method  ←  ← session-accept             ←          ← session-accept
//!   <query>          →  transport-info, used         →
//!   <open>           →  transport-replace, <open>    →
//!   the stream ends too early  → session-terminate   →          → session-terminate
//!
//! sender                       machine                     this end                  receiver
//!   session-initiate        →          → session-initiate  →  <si>               →
//!   ← session-accept        ←          ← session-accept    ←  ← <si> a method
//!                                      ← transport-info    ←  <query>, ← used
//!                                                             <open>             →
//!   ← session-terminate     ←          ← session-terminate ←  all bytes are there
//! ```
//!
//! Stream initiation has no word for the end of a session, and none for a file that has arrived. So the receiver's success is that
//! its leg has taken as many bytes as it has asked for. Its failure, and that of a sender, is a stream that ends before. All else that
//! Jingle can say goes no further than this end.
//!
//! The stream of this leg has one id, that of the offer, whatever id the machine gives to a transport.

use std::{cmp::Ordering, collections::VecDeque, sync::Arc};

use fingerpost_carry::iq::Answer;
use fingerpost_wire::{
    file::{self, FileError, FileOffer, FileRange},
    jingle::{self, Action, Reason},
    ns,
    si::{self, SiMethod, SiMethods},
    stanza::{Condition, ErrorType, Kind, Refusal, RequestKind, Stanza, StanzaType},
    transport, xml,
};
use jid::BareJid;
use minidom::Element;
use tokio::time::Instant;

use super::{MARK, SiSession, reasons};
use crate::{
    refuse::Refuse as _,
    relay::pipe::{Ended, StreamOutcome},
    sessions::{
        legs::LegState,
        options::{BrokerOptions, PlainFiles},
        peer::SessionPeer,
        peer_error::of_peer,
        refusal::SessionRefusal,
        session::{BrokeredSession, SessionAction, SessionInput, contents},
        side::{PerSide, Side},
    },
};

/// The name of the content that a sender's file gets.
const CONTENT: &str = "file";

/// How far the user has come.
#[derive(Debug)]
enum EndStage {
    /// The sender's offer is unanswered. It will be carried in this way.
    Offered(Box<Stanza>, SiMethod),
    /// The machine has not offered the file yet, or the receiver has not answered.
    Asked,
    /// The receiver has accepted, and the leg is carried in this way.
    Accepted(SiMethod),
    /// The user knows of the end, as far as stream initiation can say it.
    Over,
}

/// The purpose of a request of this end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum EndQuestion {
    Offer,
    Hosts,
}

/// The end of a user that speaks stream initiation.
#[derive(Debug)]
pub(crate) struct SiEnd {
    options: Arc<BrokerOptions>,
    side: Side,
    /// Its user. Its sid is the id of the stream.
    peer: SessionPeer,
    other: BareJid,
    /// The id of the stanzas that this end says in the user's place.
    id: String,
    /// The methods that the user and the component have.
    methods: SiMethods,
    /// The file, until it is offered.
    file: Option<Box<FileOffer>>,
    /// Its bytes, and whether the receiver may ask for a part of it.
    size: (u64, bool),
    /// The name of the content in Jingle.
    name: String,
    /// The content that the machine has offered to the receiver, until that has answered.
    content: Option<Element>,
    /// How many bytes the receiver has asked for.
    expected: u64,
    stage: EndStage,
    questions: Vec<(u32, EndQuestion)>,
    asked: u32,
    /// Whether the sender's SOCKS5 addresses have been answered.
    has_hosts: bool,
    /// Whether the user has gone.
    is_gone: bool,
    /// Whether bytes may flow.
    is_joined: bool,
    /// A request of the machine that waits for an answer of the user.
    held: Option<(u32, Element)>,
    actions: VecDeque<SessionAction>,
}

impl SiEnd {
    /// Returns a Jingle session for the file that `offer` offers to a receiver with these features, and the sender's end of it.
    /// `sender`: the methods of the sender, and whether it knows the component as its proxy.
    pub(super) fn sender(
        options: Arc<BrokerOptions>,
        ids: fn() -> String,
        peers: PerSide<SessionPeer>,
        (offer, file): (Box<Stanza>, FileOffer),
        sender: (SiMethods, bool),
        features: Vec<String>,
        now: Instant,
    ) -> (BrokeredSession, Self) {
        let (methods, knows_proxy) = sender;
        let peers = peers.map(|peer| SessionPeer { namespace: ns::JINGLE, ..peer });
        let methods = methods.and(SiSession::own_methods(&options));
        let mut end =
            Self::new(Arc::clone(&options), Side::Initiator, &peers, ids(), methods, file);
        let sid = end.peer.sid.to_string();
        let method = SiSession::first_method(methods, knows_proxy);
        let leg = match method {
            SiMethod::Socks5 => LegState::s5b(sid.clone(), ids(), None),
            SiMethod::Ibb => LegState::ibb(ns::JINGLE_IBB, Some(sid.clone()), options.block_size),
        };
        let initiate = end.initiate(&sid);
        end.stage = EndStage::Offered(offer, method);
        let mut session = BrokeredSession::new(options, ids, peers, leg, 0, initiate, now);
        // As in a session that begins with Jingle: the receiver may think that it has to open the stream.
        end.actions.push_back(SessionAction::ExpectOpen(Side::Responder, None));
        session.handle(SessionInput::Features(features), now);
        end.pump(&mut session, now);
        (session, end)
    }

    /// Returns the end of a receiver with these features, to which a session offers this file.
    pub(in crate::sessions) fn receiver(
        ids: fn() -> String,
        session: &mut BrokeredSession,
        file: FileOffer,
        features: &[String],
        now: Instant,
    ) -> Self {
        let knows = |feature: &str| features.iter().any(|known| known == feature);
        let options = Arc::clone(session.options());
        let methods = SiSession::methods_for(&options, features);
        let mut end = Self::new(options, Side::Responder, session.peers(), ids(), methods, file);
        // What a client of Jingle would announce that takes this file over the same bytestreams.
        let files = ns::FILE_TRANSFERS.map(|files| (files, true));
        let others = [
            (ns::JINGLE, !knows(ns::JINGLE_0)),
            (ns::JINGLE_0, knows(ns::JINGLE_0)),
            (ns::JINGLE_S5B, methods.socks5),
            (ns::JINGLE_IBB, methods.ibb),
        ];
        let announced = files.into_iter().chain(others).filter(|(_, is_known)| *is_known);
        let announced = announced.map(|(feature, _)| feature.to_owned()).collect();
        session.handle(SessionInput::Features(announced), now);
        end.pump(session, now);
        end
    }

    fn new(
        options: Arc<BrokerOptions>,
        side: Side,
        peers: &PerSide<SessionPeer>,
        id: String,
        methods: SiMethods,
        file: FileOffer,
    ) -> Self {
        Self {
            options,
            side,
            peer: peers[side].clone(),
            other: peers[side.other()].user().to_bare(),
            id,
            methods,
            expected: file.size,
            size: (file.size, file.has_range),
            file: Some(Box::new(file)),
            name: CONTENT.to_owned(),
            content: None,
            stage: EndStage::Asked,
            questions: Vec::new(),
            asked: 0,
            has_hosts: false,
            is_gone: false,
            is_joined: false,
            held: None,
            actions: VecDeque::new(),
        }
    }

    /// Returns the side of its user.
    pub(in crate::sessions) fn side(&self) -> Side {
        self.side
    }

    /// Returns the next action; call until `None`.
    pub(in crate::sessions) fn poll_action(&mut self) -> Option<SessionAction> {
        self.actions.pop_front()
    }

    /// Returns with how many bytes from the sender [`SessionInput::Delivered`] is due, if it is.
    pub(in crate::sessions) fn awaited(&self) -> Option<u64> {
        let awaits = self.side == Side::Responder
            && self.is_joined
            && matches!(self.stage, EndStage::Accepted(_));
        awaits.then_some(self.expected)
    }

    /// Handles one input of the session.
    pub(in crate::sessions) fn handle(
        &mut self,
        session: &mut BrokeredSession,
        input: SessionInput,
        now: Instant,
    ) {
        match input {
            SessionInput::Answered(number, answer) => match self.take_question(number) {
                Some(_) if session.is_over() => {}
                Some(EndQuestion::Offer) => self.offer_answered(session, answer, now),
                Some(EndQuestion::Hosts) => self.hosts_answered(session, answer, now),
                None => session.handle(SessionInput::Answered(number, answer), now),
            },
            SessionInput::Unasked(number) => {
                if self.take_question(number).is_some() && !session.is_over() {
                    let user = self.peer.user().to_bare();
                    let text = format!("Too many offers wait for {user}; try again later");
                    self.terminate(session, Reason::Busy, &text, now);
                }
            }
            SessionInput::Bytestreams(side, stanza) if side == self.side => {
                self.is_gone = false;
                self.handle_hosts(session, &stanza, now);
            }
            SessionInput::Open(side, stanza) if side == self.side => {
                self.is_gone = false;
                self.handle_open(session, stanza, now);
            }
            SessionInput::Jingle(side, stanza) if side == self.side => {
                self.send(stanza.refuse(SessionRefusal::Over));
            }
            SessionInput::Gone(side) if side == self.side => {
                self.is_gone = true;
                session.handle(SessionInput::Gone(side), now);
            }
            SessionInput::Delivered(moved) if self.awaited().is_some() => {
                self.judge(session, moved, now);
                self.stage = EndStage::Over;
            }
            SessionInput::Relayed(outcome) => self.relayed(session, outcome, now),
            input => session.handle(input, now),
        }
        // A connection that has come after all is used: no other transport takes its place.
        if session.has_connection(self.side)
            && let Some((number, _)) = self.held.take()
        {
            session.handle(SessionInput::Answered(number, tie_break()), now);
        }
        self.pump(session, now);
    }

    /// Carries the machine's actions over until there are none.
    fn pump(&mut self, session: &mut BrokeredSession, now: Instant) {
        while let Some(action) = session.poll_action() {
            match action {
                SessionAction::Ask(side, number, element) if side == self.side => {
                    self.ask_user(session, number, element, now);
                }
                SessionAction::Send(element) if self.is_for_user(&element) => {
                    self.tell_user(&element);
                }
                SessionAction::Connect(side, _) if side == self.side => {
                    let sid = self.peer.sid.to_string();
                    self.actions.push_back(SessionAction::Connect(side, sid));
                }
                SessionAction::ExpectOpen(side, _) if side == self.side => self.expect_open(),
                SessionAction::TakeStream(side, _, block_size, kind) if side == self.side => {
                    let sid = self.peer.sid.to_string();
                    let stream = SessionAction::TakeStream(side, sid, block_size, kind);
                    self.actions.push_back(stream);
                }
                // A user without Jingle has offered no key.
                SessionAction::LookUpKeys(side, _) if side == self.side => {
                    session.handle(SessionInput::Keys(side, Ok(Vec::new())), now);
                }
                SessionAction::LookUpFeatures => {}
                SessionAction::Join => {
                    self.is_joined = true;
                    self.actions.push_back(SessionAction::Join);
                }
                action => self.actions.push_back(action),
            }
        }
        // Whatever has ended the session, the sender's offer has an answer.
        if session.is_over() {
            self.refuse_offer(Refusal::from(SessionRefusal::Over).to_element());
        }
    }

    fn send(&mut self, element: Element) {
        self.actions.push_back(SessionAction::Send(element));
    }

    fn is_marked(&self) -> bool {
        self.options.plain == PlainFiles::Mark
    }

    /// Asks the user something. These numbers are counted down, those of the machine up.
    fn ask(&mut self, payload: Element, question: EndQuestion) {
        self.asked = self.asked.wrapping_sub(1);
        self.questions.push((self.asked, question));
        self.actions.push_back(SessionAction::Ask(self.side, self.asked, payload));
    }

    fn awaits(&self, question: EndQuestion) -> bool {
        self.questions.iter().any(|(_, asked)| *asked == question)
    }

    fn take_question(&mut self, number: u32) -> Option<EndQuestion> {
        let at = self.questions.iter().position(|(asked, _)| *asked == number)?;
        Some(self.questions.swap_remove(at).1)
    }

    /// Returns a stanza of Jingle in the user's place.
    fn said(&self, jingle: Element) -> Stanza {
        let (user, mask) = &*self.peer.pair;
        let element = RequestKind::Set.iq(user.as_str(), mask.as_str(), &self.id, jingle);
        let (from, to, id) = (user.clone(), mask.clone(), self.id.clone());
        Stanza { kind: Kind::Iq, from, to, type_: StanzaType::Set, id, element }
    }

    fn say(&self, session: &mut BrokeredSession, jingle: Element, now: Instant) {
        session.handle(SessionInput::Jingle(self.side, self.said(jingle)), now);
    }

    /// Says something of the leg's transport in the user's place.
    fn say_transport(
        &self,
        session: &mut BrokeredSession,
        action: Action,
        transport: Element,
        now: Instant,
    ) {
        let frame = self.peer.frame(self.side);
        let jingle = jingle::own_content(action, &frame, &self.name, [transport]);
        self.say(session, jingle, now);
    }

    fn say_news(&self, session: &mut BrokeredSession, news: &str, now: Instant) {
        let news = Element::bare(news, ns::JINGLE_S5B);
        let transport = transport::s5b_news(&self.peer.sid, news);
        self.say_transport(session, Action::TransportInfo, transport, now);
    }

    /// Ends the session in the user's place.
    fn terminate(&self, session: &mut BrokeredSession, reason: Reason, text: &str, now: Instant) {
        let jingle = jingle::terminate(&self.peer.frame(self.side), reason, text);
        self.say(session, jingle, now);
    }

    /// Returns whether a stanza of the machine is for this user.
    fn is_for_user(&self, element: &Element) -> bool {
        let is_theirs = element.name() == "iq"
            && element.attr("to") == Some(self.peer.user().as_str())
            && element.attr("from") == Some(self.peer.mask().as_str());
        is_theirs
            && match StanzaType::of(element) {
                StanzaType::Set => element.children().any(|child| {
                    child.name() == "jingle" && child.attr("sid") == Some(&*self.peer.sid)
                }),
                // The answers to what this end has said.
                _ => element.attr("id") == Some(self.id.as_str()),
            }
    }

    /// Says to the user what the machine says to it, as far as it can be said.
    fn tell_user(&mut self, element: &Element) {
        if let Some(error) = element.get_child("error", ns::CLIENT) {
            self.refuse_offer(error.clone());
        }
        let Some(jingle) = element.children().find(|child| child.name() == "jingle") else {
            return;
        };
        if jingle::action(jingle) != Action::SessionTerminate {
            return;
        }
        let reason = jingle::reason_of(jingle);
        let text = jingle::reason_text(jingle);
        let error = reasons::refusal(reason, text, &self.other).to_element();
        self.refuse_offer(match jingle::is_own_end(jingle) {
            true => error,
            false => of_peer(error),
        });
        self.stage = EndStage::Over;
        // The end of the stream is all that tells the user of any other end.
        if self.is_joined && reason != Some(Reason::Success) {
            self.is_joined = false;
            self.actions.push_back(SessionAction::Part);
        }
    }

    /// Answers the sender's offer with an error, if it is unanswered.
    fn refuse_offer(&mut self, error: Element) {
        if let EndStage::Offered(offer, _) = &self.stage {
            let answer = offer.error(error);
            self.stage = EndStage::Over;
            self.send(answer);
        }
    }

    /// Handles a request of the machine to the user.
    fn ask_user(
        &mut self,
        session: &mut BrokeredSession,
        number: u32,
        mut payload: Element,
        now: Instant,
    ) {
        if payload.is("open", ns::IBB) && self.side == Side::Responder {
            xml::set(&mut payload, "sid", &self.peer.sid);
            if matches!(self.stage, EndStage::Asked) {
                // The other user is early: nothing is opened for a user that has not accepted.
                self.held = Some((number, payload));
                return;
            }
            self.stage = EndStage::Accepted(SiMethod::Ibb);
            return self.actions.push_back(SessionAction::Ask(self.side, number, payload));
        }
        let mut answer = |answer| session.handle(SessionInput::Answered(number, answer), now);
        let refusal = |condition| Refusal::new(ErrorType::Cancel, condition, "").to_element();
        match (jingle::action(&payload).known(), self.side) {
            (Some(Action::SessionInitiate), Side::Responder) => {
                self.offer(&payload);
                answer(Answer::Result(None));
            }
            (Some(Action::SessionAccept), Side::Initiator) => {
                self.accept(session, number, &payload, now);
            }
            // The machine asks whether the user is there.
            (Some(Action::SessionInfo), _) if self.is_gone => {
                answer(Answer::Error(refusal(Condition::ItemNotFound)));
            }
            (Some(Action::SessionInfo), _) => answer(Answer::Result(None)),
            // The user may still connect: it has not said which address it uses.
            (Some(Action::TransportReplace), Side::Responder)
                if self.awaits(EndQuestion::Hosts) =>
            {
                self.held = Some((number, payload));
            }
            (Some(Action::TransportReplace), Side::Responder) => {
                self.go_along(session, (number, payload), now);
            }
            // The sender goes in-band by itself, or not at all.
            (Some(Action::TransportReplace), Side::Initiator) => answer(tie_break()),
            _ => answer(Answer::Error(refusal(Condition::FeatureNotImplemented))),
        }
    }

    /// Handles the end of the stream: it is the only word of the user on what has become of the file.
    fn relayed(&mut self, session: &mut BrokeredSession, outcome: StreamOutcome, now: Instant) {
        self.is_joined = false;
        if outcome.end == Ended::Eof && matches!(self.stage, EndStage::Accepted(_)) {
            self.judge(session, outcome.a_to_b, now);
        }
        session.handle(SessionInput::Relayed(outcome), now);
    }

    /// Says in the user's place what so many bytes are.
    fn judge(&mut self, session: &mut BrokeredSession, moved: u64, now: Instant) {
        let expected = self.expected;
        let text = format!("The stream had {moved} bytes, and {expected} were expected");
        match moved.cmp(&expected) {
            // A receiver of Jingle says itself when it has the file, and a sender that has gone since has done its part.
            Ordering::Equal if self.side == Side::Initiator => self.is_gone = false,
            Ordering::Equal => self.terminate(session, Reason::Success, "", now),
            Ordering::Less => self.terminate(session, Reason::ConnectivityError, &text, now),
            Ordering::Greater => self.terminate(session, Reason::FailedApplication, &text, now),
        }
    }

    /// Takes the part of the file that the receiver asks for. Returns whether it can be had.
    fn take_range(&mut self, asked: Result<FileRange, FileError>) -> Option<FileRange> {
        let (size, has_range) = self.size;
        let range = asked.ok().filter(|range| *range == FileRange::default() || has_range)?;
        self.expected = range.of(size)?;
        Some(range)
    }
}

/// What a sender's end does.
impl SiEnd {
    /// Returns the session-initiate in the place of the sender.
    fn initiate(&mut self, stream: &str) -> Stanza {
        let description = self.file.take().map(|file| file.to_jingle());
        let frame = self.peer.frame(self.side);
        // Its place: the machine knows the leg.
        let transport = transport::ibb(ns::JINGLE_IBB, stream, self.options.block_size);
        let children = description.into_iter().chain([transport]);
        let mut jingle = jingle::own_content(Action::SessionInitiate, &frame, CONTENT, children);
        for content in jingle.children_mut() {
            xml::set(content, "senders", "initiator");
        }
        xml::set(&mut jingle, "initiator", self.peer.user().as_str());
        self.said(jingle)
    }

    /// Tells the sender that the receiver has accepted.
    fn accept(
        &mut self,
        session: &mut BrokeredSession,
        number: u32,
        jingle: &Element,
        now: Instant,
    ) {
        let asked = contents(jingle).next().map_or(Ok(FileRange::default()), FileRange::asked);
        let Some(range) = self.take_range(asked) else {
            let text = "The receiver asks for a part of the file that it cannot have".to_owned();
            return session.handle(SessionInput::End(Reason::IncompatibleParameters, text), now);
        };
        let EndStage::Offered(offer, method) = &self.stage else { return };
        let (offer, method) = (offer.clone(), *method);
        self.stage = EndStage::Accepted(method);
        // The sender may fall back to it by itself.
        self.expect_open();
        let mut chosen = Element::bare("si", ns::SI);
        if range != FileRange::default() {
            let mut file = Element::bare("file", ns::SI_FILE);
            file.append_child(range.to_element(ns::SI_FILE));
            chosen.append_child(file);
        }
        let chosen = si::answer(&chosen, &self.peer.sid, method, self.is_marked());
        self.send(offer.result(Some(chosen)));
        session.handle(SessionInput::Answered(number, Answer::Result(None)), now);
    }

    fn expect_open(&mut self) {
        if self.side == Side::Initiator && self.methods.ibb {
            let sid = Some(self.peer.sid.to_string());
            self.actions.push_back(SessionAction::ExpectOpen(self.side, sid));
        }
    }

    /// Handles the sender's SOCKS5 addresses.
    fn handle_hosts(&mut self, session: &mut BrokeredSession, stanza: &Stanza, now: Instant) {
        let awaits = self.side == Side::Initiator
            && matches!(self.stage, EndStage::Accepted(SiMethod::Socks5))
            && !self.has_hosts;
        let Some(query) = stanza.payload().filter(|_| awaits) else {
            return self.send(stanza.refuse(SessionRefusal::OutOfOrder));
        };
        self.has_hosts = true;
        let component = self.options.jid.as_str();
        if si::offers_host(query, component) {
            self.send(stanza.result(Some(si::host_used(&self.peer.sid, component))));
            return self.say_news(session, "candidate-used", now);
        }
        self.send(stanza.refuse(SessionRefusal::NotTheProxy(self.options.jid.clone())));
        if self.methods.ibb {
            return self.go_in_band(session, now);
        }
        let user = self.peer.user().to_bare();
        let text = format!("{user} offers no SOCKS5 address of this service, and nothing else");
        session.handle(SessionInput::End(Reason::FailedTransport, text), now);
    }

    /// Replaces SOCKS5 on the sender's leg.
    fn go_in_band(&mut self, session: &mut BrokeredSession, now: Instant) {
        self.stage = EndStage::Accepted(SiMethod::Ibb);
        let transport = transport::ibb(ns::JINGLE_IBB, &self.peer.sid, self.options.block_size);
        self.say_transport(session, Action::TransportReplace, transport, now);
    }

    /// Handles the sender's in-band bytestream.
    fn handle_open(&mut self, session: &mut BrokeredSession, stanza: Stanza, now: Instant) {
        match self.stage {
            EndStage::Accepted(_) if self.side == Side::Responder || !self.methods.ibb => {
                return self.send(stanza.refuse(SessionRefusal::OutOfOrder));
            }
            EndStage::Accepted(SiMethod::Socks5) => self.go_in_band(session, now),
            EndStage::Accepted(SiMethod::Ibb) => {}
            EndStage::Over => return self.send(stanza.refuse(SessionRefusal::Over)),
            EndStage::Asked | EndStage::Offered(..) => {
                return self.send(stanza.refuse(SessionRefusal::OutOfOrder));
            }
        }
        session.handle(SessionInput::Open(self.side, stanza), now);
    }
}

/// What a receiver's end does.
impl SiEnd {
    /// Offers the file to the receiver.
    fn offer(&mut self, jingle: &Element) {
        self.peer.namespace = jingle::namespace(jingle);
        let (Some(content), Some(file)) = (contents(jingle).next(), self.file.take()) else {
            return;
        };
        self.name = content.attr("name").unwrap_or_default().to_owned();
        self.content = Some(content.clone());
        let sid = self.peer.sid.to_string();
        let mark = self.is_marked().then_some(MARK);
        let si = si::reoffer(&file.to_si(&sid), &sid, self.methods, mark);
        self.ask(si, EndQuestion::Offer);
    }

    /// Handles the receiver's answer.
    fn offer_answered(&mut self, session: &mut BrokeredSession, answer: Answer, now: Instant) {
        let user = self.peer.user().to_bare();
        let si = match answer {
            Answer::Result(si) => si.unwrap_or_else(|| Element::bare("si", ns::SI)),
            Answer::Error(error) => {
                let (reason, text) = reasons::reason(&error, &user);
                return self.terminate(session, reason, &text, now);
            }
            Answer::Timeout => {
                let text = format!("{user} did not answer in time");
                return self.terminate(session, Reason::Timeout, &text, now);
            }
        };
        let method = si::chosen(&si).filter(|method| self.methods.has(*method));
        let (Some(method), Some(content)) = (method, self.content.take()) else {
            let text = format!("The client of {user} chose a bytestream that was not offered");
            return self.terminate(session, Reason::UnsupportedTransports, &text, now);
        };
        let Some(range) = self.take_range(FileRange::asked(&si)) else {
            let text = "The receiver asks for a part of the file that it cannot have".to_owned();
            return session.handle(SessionInput::End(Reason::IncompatibleParameters, text), now);
        };
        self.stage = EndStage::Accepted(method);
        self.say_accept(session, content, range, method, now);
        if let Some((number, open)) = self.held.take() {
            self.actions.push_back(SessionAction::Ask(self.side, number, open));
        }
        if method == SiMethod::Socks5 {
            let component = self.options.jid.as_str();
            let hosts = si::hosts(&self.peer.sid, component, &self.options.advertise);
            self.ask(hosts, EndQuestion::Hosts);
        }
    }

    /// Accepts the session in the place of the receiver.
    fn say_accept(
        &self,
        session: &mut BrokeredSession,
        mut content: Element,
        range: FileRange,
        method: SiMethod,
        now: Instant,
    ) {
        let given = transport::given(Some(&content));
        let sid = given.attr("sid").unwrap_or(&self.peer.sid);
        let ours = match method {
            SiMethod::Socks5 => xml::element("transport", ns::JINGLE_S5B, &[("sid", sid)]),
            SiMethod::Ibb => transport::ibb(ns::JINGLE_IBB, sid, self.options.block_size),
        };
        file::set_range(&mut content, range);
        let content = jingle::content(&file::only(&content), Some(ours), None);
        let frame = self.peer.frame(self.side);
        let mut jingle = jingle::own(Action::SessionAccept, &frame);
        xml::set(&mut jingle, "responder", self.peer.user().as_str());
        jingle.append_child(content);
        self.say(session, jingle, now);
    }

    /// Takes the transport that the machine wants in place of SOCKS5, in the place of the receiver.
    fn go_along(
        &self,
        session: &mut BrokeredSession,
        (number, replace): (u32, Element),
        now: Instant,
    ) {
        let transport = transport::given(contents(&replace).next());
        session.handle(SessionInput::Answered(number, Answer::Result(None)), now);
        self.say_transport(session, Action::TransportAccept, transport, now);
    }

    /// Handles the receiver's choice of a SOCKS5 address.
    fn hosts_answered(&mut self, session: &mut BrokeredSession, answer: Answer, now: Instant) {
        let component = self.options.jid.as_str();
        let is_used =
            matches!(&answer, Answer::Result(Some(used)) if si::uses_host(used, component));
        if matches!(self.stage, EndStage::Accepted(SiMethod::Socks5)) {
            let news = if is_used { "candidate-used" } else { "candidate-error" };
            self.say_news(session, news, now);
        }
        if !is_used && let Some(replace) = self.held.take() {
            self.go_along(session, replace, now);
        }
    }
}

/// Returns the answer to a transport-replace that loses against the user's own choice (XEP-0166, 7.2.16).
fn tie_break() -> Answer {
    Answer::Error(Refusal::from(SessionRefusal::Replacing).to_element())
}

#[cfg(test)]
#[path = "end_tests.rs"]
mod tests;
