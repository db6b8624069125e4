//! One brokered Jingle session: two users, two legs, each with its own sid, addresses and transport.
//!
//! ```text
//! initiator A                      component                       responder B
//!   session-initiate (A's transport) → hints, policy → session-initiate (our transport)
//!   ← result ──────────────────────────────────────────────────────── result
//!   ← session-accept (our transport) ← hints, policy ← session-accept (B's transport)
//!   transport of leg A ⇄ │ first bytes must be a ClientHello │ ⇄ transport of leg B
//! ```
//!
//! The accept may come before the transport is up (XTLS) or after TLS is up (docs/HISTORY.md). The accept or the
//! readiness of leg A opens leg B, whichever comes first. Transport actions stay on their leg; all others are passed
//! on and their answers passed back. Either user's terminate, silence or absence ends both legs.
//!
//! If both users' programs can go on with a broken stream, both legs may be replaced: `renewal`.
//!
//! A session carries one stream. Of several contents, the first that can be brokered continues, and a content-remove
//! tells the initiator that the others do not. A later content-add is answered with content-reject (XEP-0166, 7.2.4).
//!
//! [`BrokeredSession`] decides and does no I/O: stanzas, answers and the time go in ([`BrokeredSession::handle`]), actions come out
//! ([`BrokeredSession::poll_action`]), and [`BrokeredSession::deadline`] says when it must be called without an input.
//!
//! Spec: XEP-0166 1.1.2, sections 6 and 7; XEP-0260 1.0.3, section 2; XEP-0261 1.0, section 2.

mod answers;
mod contents;
mod dino;
mod direct;
mod ending;
mod offers;
mod renewal;
mod timers;
mod transports;

use std::{collections::VecDeque, sync::Arc, time::Duration};

use fingerpost_carry::iq::Answer;
use fingerpost_wire::{
    ibb::IbbError,
    ibb_xml::IbbStanza,
    jingle::{self, Frame, Reason},
    ns,
    offer::{Offer, Protection},
    print::Print,
    size,
    stanza::{Refusal, RequestKind, Stanza},
    xml,
};
use minidom::Element;
use tokio::time::Instant;
use tracing::{debug, info};

use self::{
    contents::{BrokeredContent, offered_prints},
    direct::DirectUse,
    timers::{Timer, TimerTable},
};
pub(crate) use self::{
    contents::{application, channel, choose, contents, is_plain, is_unprotected},
    renewal::RENEWAL,
};
use super::{
    legs::{LegState, Plan},
    options::BrokerOptions,
    peer::SessionPeer,
    refusal::SessionRefusal,
    side::{PerSide, Side},
};
use crate::{refuse::Refuse as _, registry::model::Key, relay::pipe::StreamOutcome};

/// How long a user may take to answer one of our requests.
pub(crate) const ANSWER: Duration = Duration::from_secs(30);
/// How long an ended stream waits for the users' own session-terminate.
const GOODBYE: Duration = Duration::from_secs(30);
/// The same for a raw stream, which has no further application data.
const RAW_GOODBYE: Duration = Duration::from_secs(2);
/// How long bytes may still arrive after a session-terminate, which travels another way.
const LAST_BYTES: Duration = Duration::from_millis(150);
/// How long to wait for the reason why a stream broke: a session-terminate, or the news that a user has gone.
const LAST_WORD: Duration = Duration::from_millis(500);
/// How often a silent user is asked whether its session still exists (XEP-0166, 6.8).
const PING: Duration = Duration::from_secs(60);
/// How long a responder may take to acknowledge a session-initiate if it did not answer the check before it, and
/// another resource may take the session.
const SUSPECT: Duration = Duration::from_millis(1500);
/// The same if no other resource may take it: its answers may wait behind blocks of another stream for ten seconds.
const BUSY: Duration = Duration::from_secs(15);
/// The pause before a user is asked again after an answer that may be wrong.
const AGAIN: Duration = Duration::from_secs(5);
/// The most requests of one side that wait for the other's answers, and the most inputs that wait for a check.
const FORWARDED: usize = 32;
/// The block size that every client accepts, for use when a larger one is refused.
const SMALL_BLOCK: u16 = 4096;

/// The longest text of the component's own reasons, in characters.
const TEXT: usize = 1000;

/// An input of a session.
#[derive(Debug)]
pub(crate) enum SessionInput {
    /// The answer to an [`SessionAction::Ask`].
    Answered(u32, Answer),
    /// An [`SessionAction::Ask`] was not sent: too many that a person answers wait for the user.
    Unasked(u32),
    /// The SOCKS5 connection of a side is established.
    Arrived(Side),
    /// The responder's leg has taken all the bytes that the session awaits.
    Delivered(u64),
    /// Which in-band leg broke, and why; [`SessionInput::Relayed`] follows.
    Broken(Option<(Side, IbbError)>),
    /// The link was lost for a while: check that both users are present.
    Check,
    /// The service stops: the session may continue until then.
    Drain(Instant),
    /// End the session with this reason and text for both users.
    End(Reason, String),
    /// The link is about to end, and the stream with it: it is in-band, or not there yet.
    EndInBand,
    /// Another instance leads: the users may go on with the session there.
    GoOnElsewhere,
    /// The SOCKS5 addresses of one side, outside Jingle (XEP-0065).
    Bytestreams(Side, Stanza),
    /// The features of the responder's client.
    Features(Vec<String>),
    /// The responder's client does not tell its features, and may be absent.
    NoFeatures,
    /// The responder's address is that of a chat room, or of its occupant.
    Room,
    /// One side has gone.
    Gone(Side),
    /// A Jingle IQ of one side.
    Jingle(Side, Stanza),
    /// The keys of one side that the other may know of; an error if the registry failed.
    Keys(Side, Result<Vec<Key>, ()>),
    /// An IBB `<open/>` of one side.
    Open(Side, Stanza),
    /// The stream between the legs has ended.
    Relayed(StreamOutcome),
    /// [`BrokeredSession::deadline`] has passed.
    Timeout,
    /// The in-band leg of a side waits for its silent user, or continues.
    Waits(Side, bool),
}

impl SessionInput {
    /// Returns the stanza, if it is a request.
    pub(crate) fn into_request(self) -> Option<Stanza> {
        match self {
            Self::Bytestreams(_, stanza) | Self::Jingle(_, stanza) | Self::Open(_, stanza) => {
                Some(stanza)
            }
            _ => None,
        }
    }
}

/// An action that a session requests.
#[derive(Debug)]
pub(crate) enum SessionAction {
    /// Send an IQ set to a side's user from its mask; its answer is [`SessionInput::Answered`] with this number.
    Ask(Side, u32, Element),
    /// Take SOCKS5 connections for this stream id between a side's two addresses: [`SessionInput::Arrived`].
    Connect(Side, String),
    /// Take an in-band `<open/>` with this sid (`None`: any) as this side's: [`SessionInput::Open`].
    ExpectOpen(Side, Option<String>),
    /// Join both legs: [`SessionInput::Relayed`].
    Join,
    /// Cut both legs, and forget the connections that were to become legs.
    Part,
    /// Count bytes that the users have moved beside the component, and whether it is the session's first report of such.
    CountDirect { bytes: u64, first: bool },
    /// Send the responder a chat message with this text from the initiator's address here, unless one went today, and
    /// let its client confirm it.
    Greet(String),
    /// The responder's client knows of the session: it can no longer cross one of its own.
    Acknowledged,
    /// Keep the session in the journal for another run.
    Leave,
    /// The responder did not take the session: give its session-initiate back, with the error if there was one.
    GiveBack(Box<Stanza>, Option<Element>),
    /// Look up the features of the responder's client: [`SessionInput::Features`], [`SessionInput::NoFeatures`] or [`SessionInput::Room`].
    LookUpFeatures,
    /// Look up the keys of a side that the other may know of, to judge these prints by: [`SessionInput::Keys`].
    LookUpKeys(Side, Vec<Print>),
    /// Send a stanza.
    Send(Element),
    /// The SOCKS5 connection of this side is its leg.
    TakeSocket(Side),
    /// An in-band bytestream is this side's leg: sid, block size, and the kind of its stanzas.
    TakeStream(Side, String, u16, IbbStanza),
}

/// The phase of a session, with what it has in this phase only. Legs have states of their own.
#[derive(Debug)]
enum SessionPhase {
    /// The offer is being checked; the responder does not know of it.
    Checking {
        /// The number of the brokered content in the session-initiate.
        chosen: usize,
        features: Option<Vec<String>>,
        keys: Option<Vec<Key>>,
    },
    /// The responder knows of the session; the legs are not joined.
    Negotiating,
    /// Bytes flow.
    Relaying {
        /// The sides whose last answer said that the user is absent.
        doubted: PerSide<bool>,
        /// Which in-band leg broke, and why.
        broken: Option<(Side, IbbError)>,
    },
    /// One side has ended the session; its last bytes may still be on their way.
    Leaving { by: Side, jingle: Box<Element> },
    /// The stream is over; if the users do not end the session, it ends with this reason and text.
    Relayed { reason: Reason, text: String },
    /// An earlier run had the session, and the initiator may go on with it.
    Restored,
    /// Nothing is left to do.
    Over(Conclusion),
}

/// What the responder has said to the offer. A stream may begin before each of these.
#[derive(Debug)]
enum Acceptance {
    Unanswered(Box<Initiate>),
    /// The responder knows of the session.
    Acknowledged,
    Accepted,
}

/// The session-initiate while it is unanswered.
#[derive(Debug)]
struct Initiate {
    stanza: Stanza,
    /// How long the responder may take to acknowledge it.
    patience: Duration,
    /// Whether it is given back if the responder does not take it.
    goes_back: bool,
    /// Whether another resource may take the session then.
    has_others: bool,
}

/// A side's session-accept or later offer while its keys are looked up.
#[derive(Debug)]
struct Check {
    side: Side,
    stanza: Stanza,
    /// The requests that came after it.
    behind: Vec<SessionInput>,
}

/// Why a session has ended.
#[derive(Clone, Copy, Debug)]
enum Conclusion {
    /// It never began.
    Refused,
    /// For this reason; `None`: one that is not of XEP-0166.
    Ended(Option<Reason>),
}

/// The purpose of a request, by which its answer is handled.
#[derive(Debug)]
enum Question {
    Initiate,
    Forwarded(Box<Stanza>),
    Open(Side, String, u16),
    Ping(Side),
    Replace(Side),
    /// For the bytestream with this id.
    Renew(String),
}

/// The machine of one session.
#[derive(Debug)]
pub(crate) struct BrokeredSession {
    options: Arc<BrokerOptions>,
    ids: fn() -> String,
    peers: PerSide<SessionPeer>,
    legs: PerSide<LegState>,
    phase: SessionPhase,
    acceptance: Acceptance,
    content: BrokeredContent,
    /// What the initiator has reported of direct paths, once both users have agreed to them.
    direct: Option<Box<DirectUse>>,
    /// How often the legs were replaced.
    renewals: u8,
    check: Option<Box<Check>>,
    /// The open requests by number: few, and most of the time none.
    questions: Vec<(u32, Question)>,
    asked: u32,
    timers: TimerTable,
    /// Which users have said that they are absent, or have moved, while the stream continues.
    absent: PerSide<bool>,
    actions: VecDeque<SessionAction>,
}

impl BrokeredSession {
    /// Returns a session for an admitted session-initiate. `leg` is the transport that the initiator offers in the
    /// content of this number.
    pub(crate) fn new(
        options: Arc<BrokerOptions>,
        ids: fn() -> String,
        peers: PerSide<SessionPeer>,
        leg: LegState,
        chosen: usize,
        mut stanza: Stanza,
        now: Instant,
    ) -> Self {
        if !options.direct {
            direct::remove(&mut stanza);
        }
        let prints = stanza.payload().map(offered_prints).unwrap_or_default();
        // Until the responder's features are known, its leg is a placeholder.
        let responder = LegState::ibb(ns::JINGLE_IBB, None, options.block_size);
        let legs = PerSide { initiator: leg, responder };
        let content = BrokeredContent::new(stanza.payload(), chosen);
        let (patience, goes_back, has_others) = (ANSWER, false, false);
        let initiate = Initiate { stanza, patience, goes_back, has_others };
        let acceptance = Acceptance::Unanswered(Box::new(initiate));
        let phase = SessionPhase::Checking { chosen, features: None, keys: None };
        let until = now + options.activation_timeout;
        let mut session =
            Self::begin(options, ids, peers, legs, content, (phase, acceptance), until);
        session.check_users_at(now + PING);
        session.actions.extend([
            SessionAction::LookUpFeatures,
            SessionAction::LookUpKeys(Side::Initiator, prints),
        ]);
        if let Plan::S5b { sid, .. } = &session.legs.initiator.plan {
            session.actions.push_back(SessionAction::Connect(Side::Initiator, sid.to_string()));
        }
        session
    }

    /// Returns a session that is in a phase until a time, and in which nothing has happened.
    fn begin(
        options: Arc<BrokerOptions>,
        ids: fn() -> String,
        peers: PerSide<SessionPeer>,
        legs: PerSide<LegState>,
        content: BrokeredContent,
        (phase, acceptance): (SessionPhase, Acceptance),
        until: Instant,
    ) -> Self {
        let mut timers = TimerTable::default();
        timers.set(Timer::Phase, until);
        Self {
            options,
            ids,
            peers,
            legs,
            phase,
            acceptance,
            content,
            direct: None,
            renewals: 0,
            check: None,
            questions: Vec::new(),
            asked: 0,
            timers,
            absent: PerSide::default(),
            actions: VecDeque::new(),
        }
    }

    /// Sets how long the responder may take to acknowledge the session-initiate, whether the stanza is given back
    /// otherwise, and whether another resource may take it then.
    pub(crate) fn expect_acknowledgement(
        &mut self,
        patience: Duration,
        goes_back: bool,
        has_others: bool,
    ) {
        if let Acceptance::Unanswered(initiate) = &mut self.acceptance {
            initiate.patience = patience;
            (initiate.goes_back, initiate.has_others) = (goes_back, has_others);
        }
    }

    /// Returns how long the responder may take to acknowledge the session-initiate.
    pub(crate) fn patience(&self) -> Duration {
        match &self.acceptance {
            Acceptance::Unanswered(initiate) => initiate.patience,
            _ => ANSWER,
        }
    }

    /// Returns the next action; call until `None`.
    pub(crate) fn poll_action(&mut self) -> Option<SessionAction> {
        let action = self.actions.pop_front();
        if action.is_none() {
            // A session does nothing most of the time, and keeps no memory for that.
            self.actions = VecDeque::new();
        }
        action
    }

    /// Returns whether a side has the SOCKS5 connection that its user has chosen.
    pub(crate) fn has_connection(&self, side: Side) -> bool {
        self.legs[side].has_connection()
    }

    /// Returns both users' ends.
    pub(crate) fn peers(&self) -> &PerSide<SessionPeer> {
        &self.peers
    }

    /// Returns its settings.
    pub(crate) fn options(&self) -> &Arc<BrokerOptions> {
        &self.options
    }

    /// Returns whether its stream must be TLS.
    pub(crate) fn is_tls(&self) -> bool {
        self.content.protection == Protection::Tls
    }

    /// Returns why it has ended: a condition of XEP-0166, `refused` if it never began, or `other` for an unknown
    /// condition.
    pub(crate) fn reason(&self) -> &'static str {
        match self.phase {
            SessionPhase::Over(Conclusion::Ended(Some(reason))) => reason.as_str(),
            SessionPhase::Over(Conclusion::Ended(None)) => "other",
            _ => "refused",
        }
    }

    /// Returns when [`SessionInput::Timeout`] is due.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.timers.next_due()
    }

    /// Returns whether it has ended; [`BrokeredSession::poll_action`] may still return the last actions.
    pub(crate) fn is_over(&self) -> bool {
        matches!(self.phase, SessionPhase::Over { .. })
    }

    /// Handles one input.
    pub(crate) fn handle(&mut self, input: SessionInput, now: Instant) {
        match input {
            SessionInput::Jingle(side, _) | SessionInput::Open(side, _) => {
                self.is_here(side, now);
                self.take_request(input, now);
            }
            // Its SOCKS5 addresses come in Jingle.
            SessionInput::Bytestreams(_, stanza) => {
                self.send(stanza.refuse(SessionRefusal::OutOfOrder));
            }
            _ if self.is_over() => {}
            // The other side is about to get the user's own reason.
            SessionInput::Gone(_) | SessionInput::Drain(_)
                if matches!(self.phase, SessionPhase::Leaving { .. }) => {}
            // What servers say of users in these first seconds may be wrong, and the stream may run elsewhere.
            SessionInput::Gone(_) | SessionInput::Check
                if matches!(self.phase, SessionPhase::Restored) => {}
            SessionInput::Answered(number, answer) => self.handle_answer(number, answer, now),
            SessionInput::Arrived(side) => {
                self.legs[side].mark_arrived();
                self.check_connected(side);
            }
            SessionInput::Broken(found) => {
                if let SessionPhase::Relaying { broken, .. } = &mut self.phase {
                    *broken = found;
                }
            }
            SessionInput::Check => self.check_users_at(now),
            // Users of Jingle say so themselves.
            SessionInput::Delivered(_) => {}
            // Programs answer what is asked here.
            SessionInput::Unasked(_) => {}
            // The running stream may end in time.
            // Nothing of it is under way here.
            SessionInput::Drain(_) if matches!(self.phase, SessionPhase::Restored) => self.stop(),
            SessionInput::Drain(until) if until <= now => {
                self.stop();
            }
            SessionInput::Drain(until) => self.timers.set(Timer::Stop, until),
            SessionInput::End(reason, text) => self.end_both(reason, &text),
            SessionInput::EndInBand | SessionInput::GoOnElsewhere if self.goes_on() => self.stop(),
            SessionInput::GoOnElsewhere => {}
            SessionInput::EndInBand => {
                self.end_both(Reason::Gone, "The service is being restarted: try again");
            }
            SessionInput::Features(found) => {
                if let SessionPhase::Checking { features, .. } = &mut self.phase {
                    *features = Some(found);
                    self.pass_initiate();
                }
            }
            // A server that stops says so of all its users, yet a stream beside XMPP continues: the stream decides.
            SessionInput::Gone(side) if matches!(self.phase, SessionPhase::Relaying { .. }) => {
                self.absent[side] = true;
                self.timers.set(Timer::Ping(side), now);
            }
            SessionInput::Gone(side) => self.lost_for_now(side, now),
            SessionInput::NoFeatures => {
                if let Acceptance::Unanswered(initiate) = &mut self.acceptance {
                    // Every client answers that check, so its time is up if another resource may take the session.
                    let longest = if initiate.has_others { SUSPECT } else { BUSY };
                    initiate.patience = initiate.patience.min(longest);
                }
                self.handle(SessionInput::Features(Vec::new()), now);
            }
            SessionInput::Room => self.refuse_check(SessionRefusal::Room, now),
            SessionInput::Keys(_, Err(())) => self.refuse_check(SessionRefusal::Failed, now),
            SessionInput::Keys(side, Ok(found)) => match &mut self.phase {
                SessionPhase::Checking { keys, .. } => {
                    *keys = Some(found);
                    self.pass_initiate();
                }
                _ => self.pass_checked(side, &found, now),
            },
            SessionInput::Relayed(outcome) => self.relayed(outcome, now),
            SessionInput::Timeout => self.handle_timeout(now),
            SessionInput::Waits(side, waits) => self.tell_waiting(side, waits),
        }
    }

    /// Handles a side's request, unless one before it is still being checked.
    fn take_request(&mut self, input: SessionInput, now: Instant) {
        if let Some(check) = self.check.as_mut().filter(|check| check.behind.len() < FORWARDED) {
            return check.behind.push(input);
        }
        match input {
            SessionInput::Jingle(_, stanza) | SessionInput::Open(_, stanza)
                if self.check.is_some() =>
            {
                self.send(stanza.refuse(SessionRefusal::TooManyRequests));
            }
            // A user that has not been told of the session cannot speak in it.
            SessionInput::Jingle(side, stanza) | SessionInput::Open(side, stanza)
                if self.is_over() || !self.is_told(side) =>
            {
                self.send(stanza.refuse(SessionRefusal::Over));
            }
            SessionInput::Jingle(side, stanza) => self.handle_jingle(side, stanza, now),
            SessionInput::Open(side, stanza) => self.handle_open(side, &stanza),
            _ => {}
        }
    }

    /// Handles the requests that came after one that has been checked.
    fn handle_all(&mut self, requests: Vec<SessionInput>, now: Instant) {
        for request in requests {
            self.handle(request, now);
        }
    }

    /// Checks both users at a time.
    fn check_users_at(&mut self, at: Instant) {
        for side in Side::BOTH {
            self.timers.set(Timer::Ping(side), at);
        }
    }

    /// Stops the session because the service stops. Another run may go on with it.
    fn stop(&mut self) {
        if self.goes_on() {
            self.actions.push_back(SessionAction::Leave);
            return self.finish(Conclusion::Ended(Some(Reason::Gone)));
        }
        match self.phase {
            // The users know their own end, or have had all their bytes: they get the reason that they would have got.
            SessionPhase::Leaving { .. } | SessionPhase::Relayed { .. } => self.end_phase(),
            _ => self.end_both(Reason::Gone, "The service is being stopped"),
        }
    }

    /// Notes that a user has sent something.
    fn is_here(&mut self, side: Side, now: Instant) {
        self.timers.set(Timer::Ping(side), now + PING);
        self.absent[side] = false;
    }

    /// Returns whether the stream of a side runs without its user's connection to the server.
    fn runs_beside_xmpp(&self, side: Side) -> bool {
        matches!(self.phase, SessionPhase::Relaying { .. })
            && matches!(self.legs[side].plan, Plan::S5b { .. })
    }

    /// Tells both users that the stream stands still because one of them is silent, or that it continues.
    fn tell_waiting(&mut self, silent: Side, waits: bool) {
        if !matches!(self.phase, SessionPhase::Relaying { .. }) {
            return;
        }
        info!(side = silent.as_str(), waits, "in-band stream waits for a silent user");
        let seconds = self.options.silence_timeout.as_secs().to_string();
        for side in Side::BOTH {
            let of = if side == silent { "you" } else { "peer" };
            let news = if waits {
                xml::element("waiting", ns::HINTS, &[("for", of), ("seconds", &seconds)])
            } else {
                xml::element("moving", ns::HINTS, &[])
            };
            let mut jingle = jingle::own(jingle::Action::SessionInfo, &self.frame(side));
            jingle.append_child(news);
            self.tell(side, jingle);
        }
    }

    /// Returns whether a side's user knows of the session.
    fn is_told(&self, side: Side) -> bool {
        side == Side::Initiator || !matches!(self.phase, SessionPhase::Checking { .. })
    }

    /// Returns whether the session-initiate is unanswered.
    fn is_unanswered(&self) -> bool {
        matches!(self.acceptance, Acceptance::Unanswered(_))
    }

    /// Takes the session-initiate, if it is unanswered.
    fn take_initiate(&mut self) -> Option<Initiate> {
        match std::mem::replace(&mut self.acceptance, Acceptance::Acknowledged) {
            Acceptance::Unanswered(initiate) => Some(*initiate),
            answered => {
                self.acceptance = answered;
                None
            }
        }
    }

    fn frame(&self, side: Side) -> Frame<'_> {
        self.peers[side].frame(side)
    }

    fn send(&mut self, element: Element) {
        self.actions.push_back(SessionAction::Send(element));
    }

    fn ask(&mut self, side: Side, payload: Element, question: Question) {
        self.asked = self.asked.wrapping_add(1);
        self.questions.push((self.asked, question));
        self.actions.push_back(SessionAction::Ask(side, self.asked, payload));
    }

    /// Sends a Jingle element to one side, without waiting for the answer.
    fn tell(&mut self, side: Side, jingle: Element) {
        let iq = self.request(side, jingle);
        self.send(iq);
    }

    /// Acknowledges a request and sends a Jingle element that repeats a part of it, or refuses the request if that would
    /// be too long.
    fn answer_and_tell(&mut self, side: Side, stanza: &Stanza, jingle: Element) {
        let iq = self.request(side, jingle);
        if let Err(refusal) = self.check_size(&iq) {
            return self.send(stanza.refuse(refusal));
        }
        self.send(stanza.result(None));
        self.send(iq);
    }

    /// Returns whether a stanza can be sent.
    ///
    /// # Errors
    /// The refusal, if it is too long.
    fn check_size(&self, iq: &Element) -> Result<(), SessionRefusal> {
        let limit = self.options.max_stanza_bytes;
        match size::of(iq) {
            Ok(size) if size > limit => Err(size::refusal(size, limit).into()),
            _ => Ok(()),
        }
    }

    /// Returns a set request to one side's user.
    fn request(&self, side: Side, jingle: Element) -> Element {
        let (user, mask) = &*self.peers[side].pair;
        RequestKind::Set.iq(mask.as_str(), user.as_str(), &(self.ids)(), jingle)
    }

    fn answer_initiate(&mut self, error: Option<Element>) {
        let Some(Initiate { stanza, .. }) = self.take_initiate() else { return };
        self.send(match error {
            None => stanza.result(None),
            Some(error) => stanza.error(error),
        });
    }

    fn refuse_initiate(&mut self, refusal: SessionRefusal) {
        self.answer_initiate(Some(Refusal::from(refusal).to_element()));
    }

    /// Notes that the responder knows of the session; tells the initiator.
    fn acknowledge(&mut self) {
        if !self.is_unanswered() {
            return;
        }
        self.answer_initiate(None);
        self.actions.push_back(SessionAction::Acknowledged);
        self.remove_contents();
        self.offer_early();
    }

    /// Refuses the stanza that is being checked, because the registry has no answer.
    fn refuse_check(&mut self, refusal: SessionRefusal, now: Instant) {
        if let Some(check) = self.check.take() {
            let Check { stanza, behind, .. } = *check;
            self.send(stanza.refuse(refusal));
            return self.handle_all(behind, now);
        }
        self.refuse_initiate(refusal);
        self.finish(Conclusion::Refused);
    }

    fn handle_jingle(&mut self, side: Side, mut stanza: Stanza, now: Instant) {
        if !self.options.direct {
            direct::remove(&mut stanza);
        }
        let Some(jingle) = stanza.payload().cloned() else { return };
        let action = jingle::action(&jingle);
        debug!(action = action.as_str(), side = side.as_str(), "jingle");
        let Some(action) = action.known() else {
            return self.send(stanza.refuse(SessionRefusal::UnknownAction));
        };
        match action {
            jingle::Action::SessionTerminate => {
                self.send(stanza.result(None));
                if matches!(self.phase, SessionPhase::Relaying { .. }) {
                    self.timers.set(Timer::Phase, now + LAST_BYTES);
                    self.phase = SessionPhase::Leaving { by: side, jingle: Box::new(jingle) };
                } else if !matches!(self.phase, SessionPhase::Leaving { .. }) {
                    self.leave(side, &jingle);
                }
            }
            jingle::Action::SessionAccept
                if side == Side::Responder && !matches!(self.acceptance, Acceptance::Accepted) =>
            {
                if self.content.find(&jingle).is_none() {
                    return self.send(stanza.refuse(SessionRefusal::OtherContent));
                }
                let prints = offered_prints(&jingle);
                self.look_up(side, stanza, prints);
            }
            jingle::Action::SessionAccept | jingle::Action::SessionInitiate => {
                self.send(stanza.refuse(SessionRefusal::OutOfOrder));
            }
            jingle::Action::TransportInfo
            | jingle::Action::TransportReplace
            | jingle::Action::TransportAccept
            | jingle::Action::TransportReject => {
                self.handle_transport(side, action, &stanza, &jingle, now);
            }
            jingle::Action::ContentAdd => self.reject_contents(side, &stanza, &jingle),
            jingle::Action::SessionInfo
            | jingle::Action::SecurityInfo
            | jingle::Action::DescriptionInfo
            | jingle::Action::ContentAccept
            | jingle::Action::ContentModify
            | jingle::Action::ContentReject
            | jingle::Action::ContentRemove => {
                if !self.is_told(side.other()) {
                    return self.send(stanza.refuse(SessionRefusal::NotTold));
                }
                let asked = self.questions.iter().filter(
                    |(_, asked)| matches!(asked, Question::Forwarded(other) if other.from == stanza.from),
                );
                if asked.count() >= FORWARDED {
                    return self.send(stanza.refuse(SessionRefusal::TooManyRequests));
                }
                if side == Side::Initiator && action == jingle::Action::SessionInfo {
                    self.count_direct(&jingle, now);
                }
                let offer = Offer::read(&jingle);
                if !offer.is_empty() {
                    return self.look_up(side, stanza, contents::readable(&offer));
                }
                let out = jingle::jingle(&jingle, &self.frame(side.other()), |content| content);
                // Clients disagree on what is told during a file, such as a checksum after the data: a client that does not know it
                // answers with an error, which the other one takes for the end of the transfer.
                if action == jingle::Action::SessionInfo && self.content.is_plain() {
                    self.send(stanza.result(None));
                    return self.tell(side.other(), out);
                }
                self.ask(side.other(), out, Question::Forwarded(Box::new(stanza)));
            }
        }
    }

    /// Looks up the keys of a side, to check the offer in its stanza.
    fn look_up(&mut self, side: Side, stanza: Stanza, prints: Vec<Print>) {
        self.check = Some(Box::new(Check { side, stanza, behind: Vec::new() }));
        self.actions.push_back(SessionAction::LookUpKeys(side, prints));
    }

    fn handle_timeout(&mut self, now: Instant) {
        while let Some(timer) = self.timers.expired(now) {
            match timer {
                Timer::Phase => self.end_phase(),
                Timer::Stop => self.stop(),
                Timer::Repeat => self.repeat_renewal(now),
                Timer::FallBack(side) => self.offer_in_band(side, now),
                Timer::Ping(side) => self.ping(side, now),
            }
        }
    }

    /// Asks a side whether the session exists, by an empty session-info.
    fn ping(&mut self, side: Side, now: Instant) {
        self.timers.set(Timer::Ping(side), now + PING);
        // The stream of a session that was taken back may run elsewhere, beside a user's lost connection to the server.
        if self.is_told(side) && !matches!(self.phase, SessionPhase::Restored) {
            let ping = jingle::own(jingle::Action::SessionInfo, &self.frame(side));
            self.ask(side, ping, Question::Ping(side));
        }
    }
}

#[cfg(test)]
mod tests;
