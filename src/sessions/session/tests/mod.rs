//! Sessions without a network: inputs in, actions out.

mod contents;
mod direct;
mod fallback;
mod orders;
mod renewal;

use std::{cell::Cell, io};

use fingerpost_wire::{
    offer,
    stanza::{Condition, ErrorType},
};
use jid::Jid;

use super::*;
use crate::{
    relay::pipe::Ended,
    sessions::hints::{Policies, VerdictPolicy},
};

const X509: &str = "72:72:DF:06:3A:4D:7D:80:97:0E:53:77:0A:8F:CD:A9:80:A3:CB:38";
const IBB_OFFER: &str =
    "<transport xmlns='urn:xmpp:jingle:transports:ibb:1' sid='a-stream' block-size='4096'/>";
const S5B_OFFER: &str = "<transport xmlns='urn:xmpp:jingle:transports:s5b:1' sid='a-stream'/>";

fn count_up() -> String {
    thread_local!(static NEXT: Cell<u32> = const { Cell::new(0) });
    NEXT.set(NEXT.get() + 1);
    format!("id{}", NEXT.get())
}

/// A session, the time, and all its actions so far.
struct World {
    session: BrokeredSession,
    now: Instant,
    asked: Vec<(Side, u32, Element)>,
    sent: Vec<Element>,
    other: Vec<SessionAction>,
}

impl World {
    fn new(transport: &str, policies: Policies) -> Self {
        Self::of(&[content(transport)], 0, policies)
    }

    /// Creates a session in which the content of one number is brokered.
    fn of(contents: &[String], chosen: usize, policies: Policies) -> Self {
        let options = BrokerOptions { policies, ..BrokerOptions::of_tests() };
        Self::with(contents, chosen, options)
    }

    /// The same with other settings.
    fn with(contents: &[String], chosen: usize, options: BrokerOptions) -> Self {
        let jid = |text: &str| Jid::new(text).unwrap();
        let (alice, bob) = ("alice@example.org/a", "bob@example.org/b");
        let alice_mask = "alice\\40example.org@xtls.example.org/a";
        let bob_mask = "bob\\40example.org@xtls.example.org/b";
        let peer = |user: &str, mask: &str, sid: &str| SessionPeer {
            pair: Arc::new((jid(user), jid(mask))),
            sid: sid.into(),
            namespace: ns::JINGLE,
        };
        let peers = PerSide {
            initiator: peer(alice, bob_mask, "a-sid"),
            responder: peer(bob, alice_mask, "b-sid"),
        };
        let initiate = jingle(&peers.initiator, "session-initiate", &contents.concat());
        let leg = if contents[chosen].contains("s5b") {
            let own = contents[chosen].contains("own-proxy").then(|| "own-proxy".to_owned());
            LegState::s5b("a-stream".to_owned(), "our-cid".to_owned(), own)
        } else {
            LegState::ibb(ns::JINGLE_IBB, Some("a-stream".to_owned()), 4096)
        };
        let now = Instant::now();
        let session =
            BrokeredSession::new(Arc::new(options), count_up, peers, leg, chosen, initiate, now);
        Self { session, now, asked: Vec::new(), sent: Vec::new(), other: Vec::new() }
    }

    /// Creates a session whose session-initiate has been passed on and answered.
    fn initiated(transport: &str, features: &[&str]) -> Self {
        let mut world = Self::new(transport, annotate());
        world.look_up(features);
        let (side, number, jingle) = world.asked.pop().unwrap();
        assert_eq!((side, jingle.attr("action")), (Side::Responder, Some("session-initiate")));
        world.tell(SessionInput::Answered(number, Answer::Result(None)));
        assert_eq!(world.sent[0].attr("type"), Some("result"));
        world.sent.clear();
        world
    }

    /// Returns the session-initiate, which is unanswered.
    fn initiate(&mut self) -> &mut Stanza {
        match &mut self.session.acceptance {
            Acceptance::Unanswered(initiate) => &mut initiate.stanza,
            _ => panic!("it is answered"),
        }
    }

    fn look_up(&mut self, features: &[&str]) {
        self.tell(SessionInput::Features(features.iter().map(|&f| f.to_owned()).collect()));
        self.tell(SessionInput::Keys(Side::Initiator, Ok(Vec::new())));
    }

    fn tell(&mut self, input: SessionInput) {
        self.session.handle(input, self.now);
        while let Some(action) = self.session.poll_action() {
            match action {
                SessionAction::Ask(side, number, element) => {
                    self.asked.push((side, number, element))
                }
                SessionAction::Send(element) => self.sent.push(element),
                action => self.other.push(action),
            }
        }
    }

    fn jingle(&mut self, side: Side, action: &str, inside: &str) {
        let stanza = jingle(&self.session.peers[side].clone(), action, inside);
        self.tell(SessionInput::Jingle(side, stanza));
    }

    /// Lets the responder accept, its keys be looked up, and the initiator acknowledge.
    fn accept(&mut self, transport: &str) {
        self.jingle(Side::Responder, "session-accept", &content(transport));
        self.tell(SessionInput::Keys(Side::Responder, Ok(Vec::new())));
    }

    fn open(&mut self, side: Side, sid: &str) {
        let peer = &self.session.peers[side];
        let open =
            format!("<open xmlns='http://jabber.org/protocol/ibb' sid='{sid}' block-size='4096'/>");
        let stanza = iq(peer, &open);
        self.tell(SessionInput::Open(side, stanza));
    }

    fn answer(&mut self, name: &str) {
        let at = self.asked.iter().position(|(_, _, element)| element.name() == name).unwrap();
        let (_, number, _) = self.asked.remove(at);
        self.tell(SessionInput::Answered(number, Answer::Result(None)));
    }

    fn joined(&self) -> bool {
        self.other.iter().any(|action| matches!(action, SessionAction::Join))
    }

    /// Returns the Jingle elements that a side was told or asked, by action.
    fn told(&self, side: Side, action: &str) -> Vec<Element> {
        let user = self.session.peers[side].user().to_string();
        let told = self.sent.iter().filter(|iq| iq.attr("to") == Some(&user));
        let told = told.flat_map(Element::children);
        let asked = self.asked.iter().filter(|(to, ..)| *to == side).map(|(.., e)| e);
        told.chain(asked)
            .filter(|jingle| jingle.name() == "jingle" && jingle.attr("action") == Some(action))
            .cloned()
            .collect()
    }

    /// Returns the error condition, and the one of the application, in the last answer.
    fn refused(&self) -> Vec<String> {
        let answer = self.sent.iter().rfind(|iq| iq.attr("type") == Some("error")).unwrap();
        let error = answer.get_child("error", ns::CLIENT).unwrap();
        error.children().filter(|c| c.name() != "text").map(|c| c.name().to_owned()).collect()
    }

    /// Lets time pass up to the next deadline.
    fn wait(&mut self) {
        self.now = self.session.deadline().unwrap();
        self.tell(SessionInput::Timeout);
    }

    /// Returns the recipients of each session-terminate, and its reason.
    fn terminated(&self) -> Vec<(String, String)> {
        let terminate = |iq: &Element| {
            let jingle = iq.get_child("jingle", ns::JINGLE)?;
            let reason =
                jingle.get_child("reason", ns::JINGLE)?.children().next()?.name().to_owned();
            (jingle.attr("action") == Some("session-terminate"))
                .then(|| (iq.attr("to").unwrap().to_owned(), reason))
        };
        self.sent.iter().filter_map(terminate).collect()
    }
}

fn annotate() -> Policies {
    BrokerOptions::of_tests().policies
}

fn content(transport: &str) -> String {
    format!(
        "<content creator='initiator' name='c'><description xmlns='urn:xmpp:jingle:apps:tls'>\
         <methods><method name='x509'><print>{X509}</print></method></methods></description>{transport}</content>"
    )
}

fn iq(peer: &SessionPeer, payload: &str) -> Stanza {
    let iq = format!(
        "<iq xmlns='jabber:client' type='set' id='{}' from='{}' to='{}'>{payload}</iq>",
        count_up(),
        peer.user(),
        peer.mask()
    );
    Stanza::parse(iq.parse().unwrap()).unwrap()
}

fn jingle(peer: &SessionPeer, action: &str, inside: &str) -> Stanza {
    let sid = &peer.sid;
    iq(
        peer,
        &format!(
            "<jingle xmlns='urn:xmpp:jingle:1' action='{action}' sid='{sid}'>{inside}</jingle>"
        ),
    )
}

fn news(what: &str) -> String {
    format!(
        "<content creator='initiator' name='c'><transport xmlns='urn:xmpp:jingle:transports:s5b:1' sid='s'>{what}\
         </transport></content>"
    )
}

#[test]
fn an_offer_goes_on_with_our_transport_and_hints() {
    let mut world = World::new(S5B_OFFER, annotate());
    assert!(
        matches!(&world.session.actions[2], SessionAction::Connect(Side::Initiator, sid) if sid == "a-stream")
    );
    world.look_up(&[ns::JINGLE_S5B]);
    let (side, _, jingle) = &world.asked[0];
    assert_eq!((*side, jingle.attr("sid")), (Side::Responder, Some("b-sid")));
    assert_eq!(jingle.attr("initiator"), Some("alice\\40example.org@xtls.example.org/a"));
    let content = jingle.get_child("content", ns::JINGLE).unwrap();
    let transport = content.get_child("transport", ns::JINGLE_S5B).unwrap();
    let candidate = transport.children().next().unwrap();
    assert_eq!((candidate.attr("type"), candidate.attr("port")), (Some("direct"), Some("7625")));
    let hint = content.get_child("hints", ns::HINTS).unwrap().children().next().unwrap().clone();
    assert_eq!((hint.attr("verdict"), hint.text().as_str()), (Some("unknown"), X509));
    assert!(world.sent.is_empty(), "the initiator is answered when the responder has answered");
}

#[test]
fn a_callee_without_socks5_gets_an_in_band_leg() {
    let world = World::initiated(S5B_OFFER, &[]);
    assert!(
        matches!(&world.session.legs.responder.plan, Plan::Ibb { namespace, .. } if *namespace == ns::JINGLE_IBB)
    );
}

#[test]
fn accept_first_then_transport_as_xtls_has_it() {
    let mut world = World::initiated(IBB_OFFER, &[]);
    world.accept(IBB_OFFER);
    let open =
        world.asked.iter().find(|(side, _, e)| *side == Side::Responder && e.name() == "open");
    assert!(open.is_some(), "the component opens the responder's stream");
    world.answer("jingle");
    world.answer("open");
    assert!(!world.joined());
    world.open(Side::Initiator, "a-stream");
    assert!(world.joined());
}

#[test]
fn an_in_band_stream_by_anything_but_iq_or_message_is_refused() {
    let mut world = World::initiated(IBB_OFFER, &[]);
    world.accept(IBB_OFFER);
    world.answer("jingle");
    world.answer("open");
    for attributes in [
        "sid='a-stream' block-size='4096' stanza='presence'",
        "sid='a-stream' block-size='4096' stanza='IQ'",
        "sid='a-stream' block-size='4096' stanza=''",
        "sid='a-stream' block-size='0'",
        "sid='a-stream' block-size='65536'",
        "sid='a-stream'",
        "block-size='4096'",
    ] {
        let open = format!("<open xmlns='http://jabber.org/protocol/ibb' {attributes}/>");
        let stanza = iq(&world.session.peers.initiator.clone(), &open);
        world.tell(SessionInput::Open(Side::Initiator, stanza));
        let answer = world.sent.pop().unwrap();
        let error = answer.children().find(|child| child.name() == "error").unwrap();
        assert!(error.has_child("bad-request", ns::STANZA_ERRORS), "{attributes}");
        assert!(!world.joined(), "{attributes}");
    }
    world.open(Side::Initiator, "a-stream");
    assert!(world.joined(), "a good one is still taken");
}

#[test]
fn transport_first_then_accept_as_the_seed_has_it() {
    let mut world = World::initiated(IBB_OFFER, &[]);
    world.open(Side::Initiator, "a-stream");
    world.answer("open");
    assert!(world.joined());
    world.accept(IBB_OFFER);
    let (side, _, accept) = world.asked.last().unwrap();
    assert_eq!((*side, accept.attr("action")), (Side::Initiator, Some("session-accept")));
    assert_eq!(accept.attr("sid"), Some("a-sid"));
}

#[test]
fn a_socks5_leg_waits_for_connection_and_choice_in_any_order() {
    for order in [true, false] {
        let mut world = World::initiated(S5B_OFFER, &[ns::JINGLE_S5B]);
        world.accept(S5B_OFFER);
        for side in Side::BOTH {
            if order {
                world.tell(SessionInput::Arrived(side));
            }
            world.jingle(side, "transport-info", &news("<candidate-used cid='x'/>"));
            if !order {
                assert!(!world.joined());
                world.tell(SessionInput::Arrived(side));
            }
        }
        assert!(world.joined());
    }
}

#[test]
fn policy_ends_the_session_before_the_callee_hears_of_it() {
    let mut world =
        World::new(IBB_OFFER, Policies { unknown: VerdictPolicy::Reject, ..annotate() });
    world.look_up(&[]);
    assert!(world.asked.is_empty());
    assert_eq!(world.sent[0].attr("type"), Some("result"));
    assert_eq!(
        world.terminated(),
        [("alice@example.org/a".to_owned(), "security-error".to_owned())]
    );
}

#[test]
fn without_a_common_method_both_are_told_which_there_were() {
    let mut world = World::initiated(IBB_OFFER, &[]);
    world.jingle(Side::Responder, "session-accept", &content(IBB_OFFER).replace("x509", "srp"));
    world.tell(SessionInput::Keys(Side::Responder, Ok(Vec::new())));
    let reasons = world.terminated();
    assert_eq!(reasons.len(), 2);
    assert!(reasons.iter().all(|(_, reason)| reason == "unsupported-applications"));
    let text = String::from(world.sent.last().unwrap());
    assert!(text.contains("the initiator has x509, the responder srp"), "{text}");
}

#[test]
fn a_registry_that_fails_refuses_the_stanza_and_not_the_session() {
    let mut world = World::initiated(IBB_OFFER, &[]);
    world.jingle(Side::Responder, "session-accept", &content(IBB_OFFER));
    world.tell(SessionInput::Keys(Side::Responder, Err(())));
    let error = world.sent.pop().unwrap();
    assert_eq!(error.attr("type"), Some("error"));
    world.accept(IBB_OFFER);
    assert_eq!(world.asked.last().map(|(_, _, e)| e.name()), Some("open"));
}

#[test]
fn what_comes_behind_an_accept_stays_behind_it() {
    let mut world = World::initiated(IBB_OFFER, &[]);
    world.jingle(Side::Responder, "session-accept", &content(IBB_OFFER));
    world.jingle(Side::Responder, "session-info", "");
    assert!(world.asked.is_empty());
    world.tell(SessionInput::Keys(Side::Responder, Ok(Vec::new())));
    let actions: Vec<_> = world.asked.iter().filter_map(|(_, _, e)| e.attr("action")).collect();
    assert_eq!(actions, ["session-accept", "session-info"]);
}

#[test]
fn a_terminate_waits_for_the_last_bytes_and_keeps_its_reason() {
    let mut world = World::initiated(IBB_OFFER, &[]);
    world.open(Side::Initiator, "a-stream");
    world.answer("open");
    world.sent.clear();
    world.jingle(
        Side::Initiator,
        "session-terminate",
        "<reason><decline/><text>not now</text></reason>",
    );
    world.tell(SessionInput::Gone(Side::Initiator));
    assert!(world.terminated().is_empty(), "its last bytes may be behind it");
    world.now += LAST_BYTES;
    world.tell(SessionInput::Timeout);
    assert_eq!(world.terminated(), [("bob@example.org/b".to_owned(), "decline".to_owned())]);
    assert!(world.session.is_over());
}

#[test]
fn a_user_that_has_gone_is_the_reason_why_its_leg_broke() {
    let mut world = World::initiated(IBB_OFFER, &[]);
    world.open(Side::Initiator, "a-stream");
    world.answer("open");
    let end = Ended::Error(std::io::ErrorKind::ConnectionReset);
    world.tell(SessionInput::Relayed(StreamOutcome { a_to_b: 0, b_to_a: 0, end }));
    world.tell(SessionInput::Gone(Side::Responder));
    assert_eq!(world.terminated(), [("alice@example.org/a".to_owned(), "gone".to_owned())]);
    assert!(world.session.is_over());
}

#[test]
fn each_end_of_a_stream_has_its_reason() {
    for (end, reason) in [
        (Ended::NotTls, "security-error"),
        (Ended::Idle, "timeout"),
        (Ended::Error(std::io::ErrorKind::ConnectionReset), "connectivity-error"),
        (Ended::Error(std::io::ErrorKind::TimedOut), "timeout"),
        (Ended::Error(std::io::ErrorKind::HostUnreachable), "timeout"),
        (Ended::Eof, "success"),
    ] {
        let mut world = World::initiated(IBB_OFFER, &[]);
        world.open(Side::Initiator, "a-stream");
        world.answer("open");
        world.tell(SessionInput::Relayed(StreamOutcome { a_to_b: 0, b_to_a: 0, end }));
        let wait = match end {
            Ended::Eof => Some(GOODBYE),
            Ended::Error(std::io::ErrorKind::ConnectionReset) => Some(LAST_WORD),
            _ => None,
        };
        if let Some(wait) = wait {
            assert!(world.terminated().is_empty(), "the users say so first");
            world.now += wait;
            world.tell(SessionInput::Timeout);
        }
        let reasons = world.terminated();
        assert_eq!(reasons.len(), 2, "{end:?}");
        assert!(reasons.iter().all(|(_, told)| told == reason), "{end:?}: {reasons:?}");
    }
}

#[test]
fn who_vanishes_is_missed() {
    let mut world = World::initiated(IBB_OFFER, &[]);
    world.tell(SessionInput::Gone(Side::Responder));
    assert_eq!(world.terminated(), [("alice@example.org/a".to_owned(), "gone".to_owned())]);

    // No user said so, but the session is not known at its address.
    let mut world = World::initiated(IBB_OFFER, &[]);
    world.open(Side::Initiator, "a-stream");
    world.answer("open");
    world.now += PING;
    assert_eq!(world.session.deadline().unwrap(), world.now);
    world.tell(SessionInput::Timeout);
    let (side, number, ping) = world.asked[0].clone();
    assert_eq!((side, ping.attr("action")), (Side::Initiator, Some("session-info")));
    let error = Refusal::from(SessionRefusal::Over).to_element();
    world.tell(SessionInput::Answered(number, Answer::Error(error)));
    assert_eq!(world.terminated(), [("bob@example.org/b".to_owned(), "gone".to_owned())]);
}

/// Returns a session in which bytes flow, in-band on both legs.
fn in_band() -> World {
    let mut world = World::initiated(IBB_OFFER, &[]);
    world.accept(IBB_OFFER);
    world.open(Side::Initiator, "a-stream");
    world.answer("open");
    assert!(world.joined());
    world.sent.clear();
    world.asked.clear();
    world
}

#[test]
fn both_users_are_told_that_an_in_band_stream_waits_for_one_of_them() {
    let mut world = in_band();
    world.tell(SessionInput::Waits(Side::Responder, true));
    for (side, of) in [(Side::Initiator, "peer"), (Side::Responder, "you")] {
        let told = world.told(side, "session-info");
        let waiting = told[0].get_child("waiting", ns::HINTS).unwrap();
        assert_eq!((waiting.attr("for"), waiting.attr("seconds")), (Some(of), Some("300")));
    }
    world.tell(SessionInput::Waits(Side::Responder, false));
    for side in Side::BOTH {
        assert!(world.told(side, "session-info")[1].has_child("moving", ns::HINTS));
    }
    // Users cannot send this in our place.
    world.jingle(
        Side::Initiator,
        "session-info",
        "<waiting xmlns='urn:fingerpost:xtls:0' for='you'/><other xmlns='urn:x'/>",
    );
    let (_, _, passed) = world.asked.last().unwrap();
    assert!(passed.has_child("other", "urn:x") && !passed.has_child("waiting", ns::HINTS));
}

#[test]
fn an_in_band_leg_that_breaks_is_named_with_the_cause() {
    for (error, kind, reason) in [
        (IbbError::Missing, io::ErrorKind::InvalidData, "connectivity-error"),
        (IbbError::Sequence, io::ErrorKind::InvalidData, "connectivity-error"),
        (IbbError::Gone, io::ErrorKind::ConnectionReset, "gone"),
        (IbbError::Timeout, io::ErrorKind::TimedOut, "timeout"),
    ] {
        let mut world = in_band();
        world.tell(SessionInput::Broken(Some((Side::Responder, error))));
        let end = Ended::Error(kind);
        world.tell(SessionInput::Relayed(StreamOutcome { a_to_b: 0, b_to_a: 0, end }));
        world.now += LAST_WORD;
        world.tell(SessionInput::Timeout);
        for side in Side::BOTH {
            let told = &world.told(side, "session-terminate")[0];
            let given = told.get_child("reason", ns::JINGLE).unwrap();
            assert!(given.has_child(reason, ns::JINGLE), "{error:?}");
            let text = given.get_child("text", ns::JINGLE).unwrap().text();
            assert_eq!(text, format!("The in-band stream of the responder broke: {error}"));
        }
    }
}

/// Two Prosodys whose connection breaks answer for users who are present.
#[test]
fn the_first_word_that_a_user_is_not_there_is_a_doubt() {
    for gone in [false, true] {
        let mut world = in_band();
        let error = || {
            let refusal = Refusal::new(ErrorType::Cancel, Condition::RecipientUnavailable, "");
            Answer::Error(refusal.to_element())
        };
        world.now += PING;
        world.tell(SessionInput::Timeout);
        let (side, number, _) = world.asked[0].clone();
        world.asked.clear();
        world.tell(SessionInput::Answered(number, error()));
        assert!(!world.session.is_over());
        world.now += AGAIN;
        assert_eq!(world.session.deadline().unwrap(), world.now);
        world.tell(SessionInput::Timeout);
        let (again, number, _) = world.asked[0].clone();
        assert_eq!((side, again), (Side::Initiator, Side::Initiator));
        world.tell(SessionInput::Answered(
            number,
            if gone { error() } else { Answer::Result(None) },
        ));
        assert_eq!(world.session.is_over(), gone);
    }
}

#[test]
fn when_the_link_is_back_everybody_is_asked_at_once() {
    let mut world = World::initiated(IBB_OFFER, &[]);
    world.tell(SessionInput::Check);
    assert_eq!(world.session.deadline().unwrap(), world.now);
    world.tell(SessionInput::Timeout);
    let asked: Vec<_> =
        world.asked.iter().map(|(side, _, ping)| (*side, ping.attr("action"))).collect();
    assert_eq!(asked, [Side::Initiator, Side::Responder].map(|side| (side, Some("session-info"))));
    assert!(world.session.deadline().unwrap() > world.now);
}

#[test]
fn a_stream_beside_xmpp_outlives_its_users_connections() {
    let mut world = World::initiated(S5B_OFFER, &[ns::JINGLE_S5B]);
    world.accept(S5B_OFFER);
    for side in Side::BOTH {
        world.tell(SessionInput::Arrived(side));
        world.jingle(side, "transport-info", &news("<candidate-used cid='x'/>"));
    }
    assert!(world.joined());
    let nobody_is_there = |world: &mut World| {
        world.tell(SessionInput::Timeout);
        let pings =
            world.asked.iter().filter(|(_, _, asked)| asked.attr("action") == Some("session-info"));
        for number in pings.map(|(_, number, _)| *number).collect::<Vec<_>>() {
            let error = Refusal::service_unavailable().to_element();
            world.tell(SessionInput::Answered(number, Answer::Error(error)));
        }
        world.asked.clear();
    };
    world.tell(SessionInput::Check);
    nobody_is_there(&mut world);
    assert!(!world.session.is_over() && world.terminated().is_empty());
    // Its end is the session's, because no user is left to say so.
    world.tell(SessionInput::Relayed(StreamOutcome { a_to_b: 0, b_to_a: 0, end: Ended::Eof }));
    nobody_is_there(&mut world);
    assert!(world.session.is_over());
}

/// Returns a session that relays over these transports.
fn relaying(transport: &str) -> World {
    if transport == IBB_OFFER {
        let mut world = World::initiated(IBB_OFFER, &[]);
        world.open(Side::Initiator, "a-stream");
        world.answer("open");
        assert!(world.joined());
        return world;
    }
    let mut world = World::initiated(S5B_OFFER, &[ns::JINGLE_S5B]);
    world.accept(S5B_OFFER);
    for side in Side::BOTH {
        world.tell(SessionInput::Arrived(side));
        world.jingle(side, "transport-info", &news("<candidate-used cid='x'/>"));
    }
    assert!(world.joined());
    (world.sent, world.asked) = (Vec::new(), Vec::new());
    world
}

impl World {
    /// Lets the check of a user be answered.
    fn answer_ping(&mut self, of: Side, answer: Answer) {
        self.tell(SessionInput::Timeout);
        let at = self.asked.iter().position(|(side, _, asked)| {
            *side == of && asked.attr("action") == Some("session-info")
        });
        let (_, number, _) = self.asked.remove(at.unwrap());
        self.tell(SessionInput::Answered(number, answer));
    }
}

#[test]
fn a_presence_alone_ends_no_stream() {
    let nobody = || Answer::Error(Refusal::service_unavailable().to_element());
    let broken = || Ended::Error(std::io::ErrorKind::ConnectionReset);
    let outcome = |end| SessionInput::Relayed(StreamOutcome { a_to_b: 0, b_to_a: 0, end });
    for side in Side::BOTH {
        // Beside XMPP only the stream itself decides, whatever the answers say.
        for answer in [nobody(), Answer::Timeout, Answer::Result(None)] {
            let mut world = relaying(S5B_OFFER);
            world.tell(SessionInput::Gone(side));
            world.answer_ping(side, answer.clone());
            assert!(!world.session.is_over() && world.terminated().is_empty(), "{answer:?}");
            world.tell(outcome(broken()));
            let told = world.terminated();
            assert!(world.session.is_over() != told.is_empty());
            if matches!(answer, Answer::Result(_)) {
                assert!(told.is_empty(), "the user is there: its word is waited for");
                world.wait();
                assert!(world.terminated().iter().all(|(_, why)| why == "connectivity-error"));
            } else {
                assert!(told.iter().all(|(_, why)| why == "gone"), "{answer:?}: {told:?}");
            }
            assert!(world.session.is_over());
        }
        // Both are reported as gone, as by a server that stops: it is not known which one broke the stream.
        let mut world = relaying(S5B_OFFER);
        world.tell(SessionInput::Gone(Side::Initiator));
        world.tell(SessionInput::Gone(Side::Responder));
        world.tell(outcome(broken()));
        // They are checked, and the reason is waited for.
        world.wait();
        world.wait();
        let told = world.terminated();
        assert_eq!(told.len(), 2);
        assert!(told.iter().all(|(_, why)| why == "connectivity-error"), "{told:?}");
        // In-band the user is checked: a present one continues, an absent one has gone.
        for (answer, over) in
            [(nobody(), true), (Answer::Timeout, true), (Answer::Result(None), false)]
        {
            let mut world = relaying(IBB_OFFER);
            world.tell(SessionInput::Gone(side));
            assert!(world.terminated().is_empty());
            world.answer_ping(side, answer.clone());
            assert_eq!(world.session.is_over(), over, "{answer:?}");
        }
        // Silence without any other sign ends nothing.
        let mut world = relaying(IBB_OFFER);
        world.tell(SessionInput::Check);
        world.answer_ping(side, Answer::Timeout);
        assert!(!world.session.is_over());
    }
}

#[test]
fn a_drain_spares_what_is_under_way_until_its_deadline() {
    for with_stream in [false, true] {
        let mut world = World::initiated(IBB_OFFER, &[]);
        if with_stream {
            world.open(Side::Initiator, "a-stream");
            world.answer("open");
        }
        world.tell(SessionInput::Drain(world.now + Duration::from_secs(30)));
        assert!(world.terminated().is_empty());
        assert!(world.session.deadline().unwrap() <= world.now + Duration::from_secs(30));
        world.now += Duration::from_secs(30);
        world.tell(SessionInput::Timeout);
        let told = world.terminated();
        assert_eq!(told.len(), 2);
        assert!(told.iter().all(|(_, reason)| reason == "gone"));
        assert!(world.session.is_over());
    }
}

#[test]
fn nothing_happening_ends_a_session() {
    let mut world = World::initiated(IBB_OFFER, &[]);
    world.now += Duration::from_secs(60);
    world.tell(SessionInput::Timeout);
    assert_eq!(world.terminated().len(), 2);
    assert!(world.terminated().iter().all(|(_, reason)| reason == "timeout"));
}

/// Returns the error with which the session-initiate is given back, if it is.
fn given_back(world: &World) -> Option<Option<String>> {
    world.other.iter().find_map(|action| match action {
        SessionAction::GiveBack(stanza, error) => {
            assert_eq!(stanza.payload().unwrap().attr("action"), Some("session-initiate"));
            Some(error.as_ref().map(|error| error.children().next().unwrap().name().to_owned()))
        }
        _ => None,
    })
}

fn stanza_error(condition: &str) -> Element {
    let text = format!(
        "<error xmlns='jabber:client' type='cancel'><{condition} xmlns='{}'/></error>",
        ns::STANZA_ERRORS
    );
    text.parse().unwrap()
}

#[test]
fn a_session_that_the_first_program_does_not_take_goes_back_for_the_next_one() {
    let patience = Duration::from_secs(3);
    for (answer, expected) in [
        (Answer::Timeout, Some(None)),
        (Answer::Error(stanza_error("service-unavailable")), Some(Some("service-unavailable"))),
        (Answer::Error(stanza_error("resource-constraint")), Some(Some("resource-constraint"))),
        // A faulty offer is faulty everywhere.
        (Answer::Error(stanza_error("bad-request")), None),
    ] {
        for goes_back in [true, false] {
            let mut world = World::new(IBB_OFFER, annotate());
            world.session.expect_acknowledgement(patience, goes_back, false);
            assert_eq!(world.session.patience(), patience);
            world.look_up(&[]);
            let (_, number, _) = world.asked.pop().unwrap();
            let is_silent = matches!(answer, Answer::Timeout);
            world.tell(SessionInput::Answered(number, answer.clone()));
            assert!(world.session.is_over());
            let expected = expected.map(|error| error.map(str::to_owned));
            assert_eq!(given_back(&world), expected.filter(|_| goes_back), "{answer:?}");
            // A user that may have missed the check must not wait for an absent peer.
            let told = world.terminated();
            let timeout = ("bob@example.org/b".to_owned(), "timeout".to_owned());
            assert_eq!(told, is_silent.then_some(timeout).into_iter().collect::<Vec<_>>());
            let answered = world.sent.iter().filter(|iq| iq.attr("type") == Some("error"));
            let answered = answered.count();
            assert_eq!(answered, usize::from(given_back(&world).is_none()), "{answer:?}");
        }
    }
}

#[test]
fn an_error_of_the_responder_is_marked_and_silence_is_told_as_such() {
    let mut world = World::new(IBB_OFFER, annotate());
    world.look_up(&[]);
    let (_, number, _) = world.asked.pop().unwrap();
    world.tell(SessionInput::Answered(
        number,
        Answer::Error(stanza_error("remote-server-not-found")),
    ));
    assert_eq!(world.refused(), ["remote-server-not-found", "peer"]);
    // It cannot speak for the component, or for the initiator's server.
    let forged = || {
        let mut error = stanza_error("not-acceptable");
        for mark in ["silent", "refused", "away", "room", "peer", "anything"] {
            error.append_child(Element::bare(mark, ns::HINTS));
        }
        error.append_child(Element::bare("blocked", ns::BLOCKING_ERRORS));
        error.append_child(Element::bare("kept", "urn:x"));
        error
    };
    let mut world = World::new(IBB_OFFER, annotate());
    world.look_up(&[]);
    let (_, number, _) = world.asked.pop().unwrap();
    world.tell(SessionInput::Answered(number, Answer::Error(forged())));
    assert_eq!(world.refused(), ["not-acceptable", "kept", "peer"]);
    let mut world = World::initiated(IBB_OFFER, &[]);
    world.jingle(Side::Initiator, "session-info", "");
    let (_, number, _) = world.asked.pop().unwrap();
    world.tell(SessionInput::Answered(number, Answer::Error(forged())));
    assert_eq!(world.refused(), ["not-acceptable", "kept", "peer"]);
    let mut world = World::new(IBB_OFFER, annotate());
    world.session.expect_acknowledgement(ANSWER, true, true);
    world.look_up(&[]);
    let (_, number, _) = world.asked.pop().unwrap();
    world.tell(SessionInput::Answered(number, Answer::Error(forged())));
    let back = world.other.into_iter().find_map(|action| match action {
        SessionAction::GiveBack(_, error) => error,
        _ => None,
    });
    let back = back.unwrap();
    assert!(back.has_child("peer", ns::HINTS) && !back.has_child("silent", ns::HINTS));
    let mut world = World::new(IBB_OFFER, annotate());
    world.tell(SessionInput::NoFeatures);
    world.tell(SessionInput::Keys(Side::Initiator, Ok(Vec::new())));
    assert_eq!(world.session.patience(), BUSY);
    let (_, number, _) = world.asked.pop().unwrap();
    world.tell(SessionInput::Answered(number, Answer::Timeout));
    assert_eq!(world.refused(), ["remote-server-timeout", "silent"]);
}

#[test]
fn who_says_nothing_of_itself_is_given_up_soon_only_if_another_may_take_the_session() {
    for (has_others, patience, expected) in [
        (true, ANSWER, SUSPECT),
        (true, Duration::from_secs(1), Duration::from_secs(1)),
        (false, ANSWER, BUSY),
    ] {
        let mut world = World::new(IBB_OFFER, annotate());
        world.session.expect_acknowledgement(patience, true, has_others);
        world.tell(SessionInput::NoFeatures);
        assert_eq!(world.session.patience(), expected);
    }
    const { assert!(BUSY.as_secs() > 10) };
}

#[test]
fn the_address_of_a_room_is_refused_as_such() {
    let mut world = World::new(IBB_OFFER, annotate());
    world.tell(SessionInput::Room);
    assert_eq!(world.refused(), ["not-acceptable", "room"]);
    assert!(world.session.is_over() && world.asked.is_empty());
}

#[test]
fn a_session_that_is_not_set_up_in_time_names_who_was_silent() {
    let silent = |accept: bool, ready: &[(Side, &str)]| {
        let mut world = World::initiated(IBB_OFFER, &[]);
        if accept {
            let sid = world.told(Side::Responder, "session-initiate");
            assert!(sid.is_empty(), "it was answered");
            world.accept(&IBB_OFFER.replace("a-stream", "b-stream"));
        }
        for (side, sid) in ready {
            world.open(*side, sid);
        }
        while !world.session.is_over() {
            world.wait();
        }
        let end = world.told(Side::Initiator, "session-terminate").pop().unwrap();
        let reason = end.get_child("reason", ns::JINGLE).unwrap();
        assert!(reason.has_child("timeout", ns::JINGLE), "{}", String::from(&end));
        reason.get_child("text", ns::JINGLE).unwrap().text()
    };
    assert_eq!(silent(false, &[]), "bob@example.org did not accept the session in time");
    let bob_is_silent = silent(true, &[(Side::Initiator, "a-stream")]);
    assert_eq!(bob_is_silent, "bob@example.org set up no transport in time");
    assert_eq!(silent(true, &[]), "The session was not set up in time by either user");
}
