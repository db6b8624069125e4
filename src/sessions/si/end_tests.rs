//! Files whose sender and receiver speak different protocols, without a network: inputs in, actions out.

use std::{cell::Cell, io};

use jid::Jid;

use super::*;
use crate::sessions::{features, machine::Machine};

const JINGLE_FILES: [&str; 4] = [ns::JINGLE, ns::FILE_TRANSFER, ns::JINGLE_S5B, ns::JINGLE_IBB];
const SI_FILES: [&str; 3] = [ns::SI_FILE, ns::BYTESTREAMS, ns::IBB];
const BOTH: SiMethods = SiMethods { socks5: true, ibb: true };
const COMPONENT: &str = "xtls.example.org";
const FILE: &str = "<file><name>a</name><size>3</size><range/></file>";

fn count_up() -> String {
    thread_local!(static NEXT: Cell<u32> = const { Cell::new(0) });
    NEXT.set(NEXT.get() + 1);
    format!("id{}", NEXT.get())
}

fn peers(namespace: &'static str) -> PerSide<SessionPeer> {
    let peer = |user: &str, mask: &str, sid: &str| SessionPeer {
        pair: Arc::new((Jid::new(user).unwrap(), Jid::new(mask).unwrap())),
        sid: sid.into(),
        namespace,
    };
    PerSide {
        initiator: peer("alice@example.org/a", "bob\\40example.org@xtls.example.org/b", "a-sid"),
        responder: peer("bob@example.org/b", "alice\\40example.org@xtls.example.org/a", "b-sid"),
    }
}

fn iq(peer: &SessionPeer, payload: Element) -> Stanza {
    let (user, mask) = &*peer.pair;
    let iq = RequestKind::Set.iq(user.as_str(), mask.as_str(), &count_up(), payload);
    Stanza::parse(iq).unwrap()
}

/// A session, the time, and all its actions so far.
struct World {
    machine: Machine,
    now: Instant,
    asked: Vec<(Side, u32, Element)>,
    sent: Vec<Element>,
    other: Vec<SessionAction>,
    /// The ids of the users' requests.
    requests: Vec<String>,
}

impl World {
    /// Creates a session that a sender begins by stream initiation.
    fn by_si(methods: SiMethods, knows_proxy: bool, si: &str, features: &[&str]) -> Self {
        let options = BrokerOptions { plain: PlainFiles::Mark, ..BrokerOptions::of_tests() };
        let (peers, now) = (peers(ns::SI), Instant::now());
        let offer: Element = format!(
            "<si xmlns='http://jabber.org/protocol/si' id='a-sid' profile='{}'>{si}</si>",
            ns::SI_FILE
        )
        .parse()
        .unwrap();
        let offer = iq(&peers.initiator, si::reoffer(&offer, "a-sid", methods, None));
        let id = offer.id.clone();
        let session = SiSession::new(Arc::new(options), peers, offer, methods, knows_proxy, now);
        let mut world = Self::of(Machine::Si(Box::new(session)), now, features);
        world.requests.push(id);
        world
    }

    /// The same, with a file of three bytes for a receiver of Jingle.
    fn to_jingle(methods: SiMethods, knows_proxy: bool) -> Self {
        Self::by_si(methods, knows_proxy, &si_file("name='a' size='3'"), &JINGLE_FILES)
    }

    /// The same, accepted over SOCKS5.
    fn taken(methods: SiMethods, knows_proxy: bool) -> Self {
        let mut world = Self::to_jingle(methods, knows_proxy);
        world.answer("session-initiate", Answer::Result(None));
        world.accept(FILE);
        world
    }

    /// Creates a session that a sender begins by Jingle.
    fn by_jingle(content: &str, options: BrokerOptions, features: &[&str]) -> Self {
        let (peers, now) = (peers(ns::JINGLE), Instant::now());
        let jingle = format!(
            "<jingle xmlns='urn:xmpp:jingle:1' action='session-initiate' sid='a-sid'>{content}</jingle>"
        );
        let initiate = iq(&peers.initiator, jingle.parse().unwrap());
        let id = initiate.id.clone();
        let leg = LegState::ibb(ns::JINGLE_IBB, Some("a-stream".to_owned()), 4096);
        let options = Arc::new(options);
        let session = BrokeredSession::new(options, count_up, peers, leg, 0, initiate, now);
        let mut world = Self::of(Machine::Jingle(session, None), now, features);
        world.requests.push(id);
        world.tell(SessionInput::Keys(Side::Initiator, Ok(Vec::new())));
        world
    }

    /// The same, with a file of three bytes for a receiver of stream initiation.
    fn to_si() -> Self {
        let options = BrokerOptions { plain: PlainFiles::Mark, ..BrokerOptions::of_tests() };
        Self::by_jingle(&content("senders='initiator'", FILE), options, &SI_FILES)
    }

    /// The same, accepted with this method.
    fn accepted(method: SiMethod) -> Self {
        let mut world = Self::to_si();
        world.choose(method, None);
        world
    }

    /// The same, and both legs are joined.
    fn streams(method: SiMethod) -> Self {
        let mut world = Self::accepted(method);
        match method {
            SiMethod::Socks5 => {
                world.answer("query", Answer::Result(Some(si::host_used("b-sid", COMPONENT))));
                world.tell(SessionInput::Arrived(Side::Responder));
            }
            SiMethod::Ibb => drop(world.answer("open", Answer::Result(None))),
        }
        world.open(Side::Initiator, "a-stream");
        assert!(world.joined());
        world
    }

    fn of(machine: Machine, now: Instant, features: &[&str]) -> Self {
        let (asked, sent, other, requests) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut world = Self { machine, now, asked, sent, other, requests };
        world.drain();
        world.tell(SessionInput::Features(features.iter().map(|&f| f.to_owned()).collect()));
        world
    }

    fn tell(&mut self, input: SessionInput) {
        self.machine.handle(input, self.now);
        self.drain();
    }

    fn drain(&mut self) {
        while let Some(action) = self.machine.poll_action() {
            match action {
                SessionAction::Ask(side, number, element) => {
                    self.asked.push((side, number, element));
                }
                SessionAction::Send(element) => self.sent.push(element),
                // A user of Jingle may have keys.
                SessionAction::LookUpKeys(side, _) if side == Side::Responder => {
                    self.machine.handle(SessionInput::Keys(side, Ok(Vec::new())), self.now);
                }
                action => self.other.push(action),
            }
        }
    }

    /// Answers the request with this name or action, and returns it.
    fn answer(&mut self, name: &str, answer: Answer) -> Element {
        let is_it = |(_, _, element): &(Side, u32, Element)| {
            element.name() == name || element.attr("action") == Some(name)
        };
        let at = self.asked.iter().position(is_it).unwrap_or_else(|| panic!("not asked: {name}"));
        let (_, number, asked) = self.asked.remove(at);
        self.tell(SessionInput::Answered(number, answer));
        asked
    }

    fn request(&mut self, side: Side, payload: Element) -> Stanza {
        let stanza = iq(&self.machine.peers()[side], payload);
        self.requests.push(stanza.id.clone());
        stanza
    }

    fn jingle(&mut self, side: Side, action: &str, inside: &str) {
        let sid = self.machine.peers()[side].sid.to_string();
        let jingle = format!(
            "<jingle xmlns='urn:xmpp:jingle:1' action='{action}' sid='{sid}'>{inside}</jingle>"
        );
        let stanza = self.request(side, jingle.parse().unwrap());
        self.tell(SessionInput::Jingle(side, stanza));
    }

    /// Lets the receiver of Jingle accept.
    fn accept(&mut self, file: &str) {
        let content = content("", file).replace("transports:ibb:1", "transports:s5b:1");
        self.jingle(Side::Responder, "session-accept", &content);
    }

    /// Lets the receiver of Jingle choose our SOCKS5 address, and connect.
    fn connect_receiver(&mut self) {
        let news = "<content creator='initiator' name='file'><transport xmlns='urn:xmpp:jingle:transports:s5b:1' sid='s'>\
                    <candidate-used cid='x'/></transport></content>";
        self.jingle(Side::Responder, "transport-info", news);
        self.tell(SessionInput::Arrived(Side::Responder));
    }

    /// Lets the receiver of stream initiation choose a method, and a part of the file.
    fn choose(&mut self, method: SiMethod, range: Option<FileRange>) -> Element {
        let mut si = Element::bare("si", ns::SI);
        if let Some(range) = range {
            let mut file = Element::bare("file", ns::SI_FILE);
            file.append_child(range.to_element(ns::SI_FILE));
            si.append_child(file);
        }
        let si = si::answer(&si, "b-sid", method, false);
        self.answer("si", Answer::Result(Some(si)))
    }

    fn open(&mut self, side: Side, sid: &str) {
        let open = xml::element("open", ns::IBB, &[("sid", sid), ("block-size", "4096")]);
        let stanza = self.request(side, open);
        self.tell(SessionInput::Open(side, stanza));
    }

    fn hosts(&mut self, jid: &str) {
        let hosts = si::hosts("a-sid", jid, &[("there".to_owned(), 1)]);
        let stanza = self.request(Side::Initiator, hosts);
        self.tell(SessionInput::Bytestreams(Side::Initiator, stanza));
    }

    fn relayed(&mut self, a_to_b: u64, end: Ended) {
        self.tell(SessionInput::Relayed(StreamOutcome { a_to_b, b_to_a: 0, end }));
    }

    /// Lets time pass up to the next deadline.
    fn wait(&mut self) {
        self.now = self.machine.deadline().unwrap();
        self.tell(SessionInput::Timeout);
    }

    fn joined(&self) -> bool {
        self.other.iter().any(|action| matches!(action, SessionAction::Join))
    }

    fn parted(&self) -> bool {
        self.other.iter().any(|action| matches!(action, SessionAction::Part))
    }

    /// Returns the stanzas to a side: all payloads that it was sent or asked.
    fn told(&self, side: Side) -> Vec<&Element> {
        let user = self.machine.peers()[side].user().as_str();
        let sent = self.sent.iter().filter(|iq| iq.attr("to") == Some(user));
        let asked = self.asked.iter().filter(|(to, ..)| *to == side).map(|(.., element)| element);
        sent.flat_map(Element::children).chain(asked).collect()
    }

    /// Returns the reason and the text of each session-terminate to a side.
    fn ends(&self, side: Side) -> Vec<(String, String)> {
        let told = self.told(side).into_iter();
        told.filter(|jingle| jingle.attr("action") == Some("session-terminate"))
            .map(|jingle| {
                let reason = jingle::reason_of(jingle).map_or("other", Reason::as_str);
                (reason.to_owned(), jingle::reason_text(jingle))
            })
            .collect()
    }

    /// Returns the condition and the text of each error to a side.
    fn errors(&self, side: Side) -> Vec<(Condition, String)> {
        let told = self.told(side).into_iter().filter(|payload| payload.name() == "error");
        told.map(|error| {
            let text = error.get_child("text", ns::STANZA_ERRORS).map(Element::text);
            (Condition::of(error).unwrap(), text.unwrap_or_default())
        })
        .collect()
    }

    fn reason(&self) -> Option<&'static str> {
        self.machine.is_over().then(|| self.machine.reason())
    }
}

fn si_file(attributes: &str) -> String {
    format!("<file xmlns='{}' {attributes}><range/></file>", ns::SI_FILE)
}

fn content(more: &str, file: &str) -> String {
    format!(
        "<content creator='initiator' name='file' {more}><description xmlns='{}'>{file}</description>\
         <transport xmlns='urn:xmpp:jingle:transports:ibb:1' sid='a-stream' block-size='4096'/></content>",
        ns::FILE_TRANSFER
    )
}

mod from_si {
    use super::*;

    #[test]
    fn a_file_goes_on_by_jingle_and_is_marked_for_both() {
        let mut world = World::to_jingle(BOTH, true);
        assert!(world.sent.is_empty(), "the sender is answered when the receiver has answered");
        let initiate = world.answer("session-initiate", Answer::Result(None));
        assert_eq!(initiate.attr("sid"), Some("b-sid"));
        assert_eq!(initiate.attr("initiator"), Some("alice\\40example.org@xtls.example.org/a"));
        let content = initiate.get_child("content", ns::JINGLE).unwrap();
        assert_eq!(content.attr("senders"), Some("initiator"));
        assert_eq!(FileOffer::of_jingle(content).unwrap().name, "a");
        assert!(content.has_child("unencrypted", ns::HINTS));
        assert!(content.has_child("transport", ns::JINGLE_S5B));
        assert!(world.sent.is_empty());

        world.accept(FILE);
        let answer = world.sent.iter().find_map(|iq| iq.get_child("si", ns::SI)).unwrap();
        assert_eq!(si::chosen(answer), Some(SiMethod::Socks5));
        assert!(answer.has_child("unencrypted", ns::HINTS));
        world.hosts(COMPONENT);
        let used = world.told(Side::Initiator).pop().unwrap();
        assert!(si::uses_host(used, COMPONENT));
        world.connect_receiver();
        assert!(!world.joined());
        world.tell(SessionInput::Arrived(Side::Initiator));
        assert!(world.joined());
        world.relayed(3, Ended::Eof);
        assert_eq!(world.reason(), None, "the receiver says when it has the file");
        world.jingle(Side::Responder, "session-terminate", "<reason><success/></reason>");
        assert_eq!(world.reason(), Some("success"));
        // Nothing of Jingle reaches the sender.
        let names: Vec<_> = world.told(Side::Initiator).iter().map(|e| e.name()).collect();
        assert_eq!(names, ["si", "query"]);
        assert!(!world.parted() && world.errors(Side::Responder).is_empty());
    }

    #[test]
    fn a_sender_that_does_not_know_the_proxy_or_has_other_addresses_sends_in_band() {
        for knows_proxy in [false, true] {
            let mut world = World::taken(BOTH, knows_proxy);
            if knows_proxy {
                world.hosts("other.example.org");
                assert_eq!(world.errors(Side::Initiator)[0].0, Condition::ItemNotFound);
            }
            let expects = world.other.iter().any(|action| {
                matches!(action, SessionAction::ExpectOpen(Side::Initiator, Some(sid)) if sid == "a-sid")
            });
            assert!(expects);
            world.open(Side::Initiator, "a-sid");
            world.connect_receiver();
            assert!(world.joined(), "{knows_proxy}");
            let stream = world.other.iter().any(|action| {
                matches!(action, SessionAction::TakeStream(Side::Initiator, sid, 4096, _) if sid == "a-sid")
            });
            assert!(stream);
            // An in-band leg does not outlive its user's connection.
            world.tell(SessionInput::Gone(Side::Initiator));
            world.wait();
            assert_eq!(world.reason(), Some("gone"));
            assert_eq!(world.ends(Side::Responder).len(), 1);
        }
        // It may also go in-band without a word.
        let mut world = World::taken(BOTH, true);
        world.open(Side::Initiator, "a-sid");
        world.connect_receiver();
        assert!(world.joined());
    }

    #[test]
    fn a_sender_without_any_common_way_is_told_and_so_is_the_receiver() {
        let socks5 = SiMethods { socks5: true, ibb: false };
        let mut world = World::taken(socks5, false);
        world.open(Side::Initiator, "a-sid");
        assert_eq!(world.errors(Side::Initiator).pop().unwrap().0, Condition::UnexpectedRequest);
        world.hosts("other.example.org");
        assert_eq!(world.reason(), Some("failed-transport"));
        let [(reason, text)] = &world.ends(Side::Responder)[..] else { panic!() };
        assert_eq!(reason, "failed-transport");
        assert!(text.contains("alice@example.org offers no SOCKS5 address of this service"));
    }

    #[test]
    fn a_sender_that_is_slow_with_its_addresses_is_not_hurried() {
        let mut world = World::taken(BOTH, true);
        world.connect_receiver();
        // The machine would offer a client of Jingle an in-band stream now.
        world.wait();
        let names: Vec<_> = world.told(Side::Initiator).iter().map(|e| e.name()).collect();
        assert_eq!(names, ["si"]);
        assert_eq!(world.reason(), None);
        world.hosts(COMPONENT);
        world.tell(SessionInput::Arrived(Side::Initiator));
        assert!(world.joined());
    }

    #[test]
    fn each_end_before_the_answer_answers_the_sender_once_and_says_why() {
        type End = fn(&mut World);
        let ends: [(End, Condition, &str); 9] = [
            (
                |world| {
                    world.jingle(
                        Side::Responder,
                        "session-terminate",
                        "<reason><decline/></reason>",
                    );
                },
                Condition::Forbidden,
                "bob@example.org declined the file",
            ),
            (
                |world| {
                    let reason = "<reason><busy/><text>In a call</text></reason>";
                    world.jingle(Side::Responder, "session-terminate", reason);
                },
                Condition::ResourceConstraint,
                "In a call",
            ),
            (
                |world| {
                    let reason = "<reason><unsupported-transports/></reason>";
                    world.jingle(Side::Responder, "session-terminate", reason);
                },
                Condition::BadRequest,
                "bob@example.org takes none of the bytestreams",
            ),
            (
                |world| {
                    let error = Refusal::new(ErrorType::Cancel, Condition::NotAllowed, "Never");
                    world.answer("session-initiate", Answer::Error(error.to_element()));
                },
                Condition::NotAllowed,
                "Never",
            ),
            (
                |world| drop(world.answer("session-initiate", Answer::Timeout)),
                Condition::RemoteServerTimeout,
                "bob@example.org is not answering at that address",
            ),
            (
                |world| world.tell(SessionInput::Gone(Side::Responder)),
                Condition::RecipientUnavailable,
                "The user went away",
            ),
            (
                |world| {
                    let text = "The operator ended it".to_owned();
                    world.tell(SessionInput::End(Reason::Gone, text));
                },
                Condition::RecipientUnavailable,
                "The operator ended it",
            ),
            (
                |world| {
                    world.answer("session-initiate", Answer::Result(None));
                    while !world.machine.is_over() {
                        world.wait();
                    }
                },
                Condition::RemoteServerTimeout,
                "bob@example.org did not accept the session in time",
            ),
            (
                |world| world.tell(SessionInput::Drain(world.now)),
                Condition::RecipientUnavailable,
                "The service is being stopped",
            ),
        ];
        for (end, condition, text) in ends {
            let mut world = World::to_jingle(BOTH, true);
            end(&mut world);
            assert!(world.machine.is_over(), "{text}");
            assert_eq!(world.errors(Side::Initiator), [(condition, text.to_owned())]);
            assert_eq!(world.told(Side::Initiator).len(), 1, "{text}");
            // What comes later is refused, and nothing comes of it.
            world.accept(FILE);
            world.hosts(COMPONENT);
            world.open(Side::Initiator, "a-sid");
            assert_eq!(world.errors(Side::Initiator).len(), 3, "{text}");
            assert!(!world.joined());
        }
    }

    #[test]
    fn stanzas_in_the_wrong_order_are_refused_and_end_nothing() {
        let mut world = World::to_jingle(BOTH, true);
        world.hosts(COMPONENT);
        world.open(Side::Initiator, "a-sid");
        world.jingle(Side::Initiator, "session-terminate", "<reason><success/></reason>");
        world.tell(SessionInput::Delivered(3));
        assert_eq!(world.errors(Side::Initiator).len(), 3);
        world.answer("session-initiate", Answer::Result(None));
        world.accept(FILE);
        world.accept(FILE);
        assert_eq!(world.errors(Side::Responder).len(), 1, "a second answer");
        world.hosts(COMPONENT);
        world.hosts(COMPONENT);
        assert_eq!(world.errors(Side::Initiator).len(), 4, "the addresses again");
        world.tell(SessionInput::Arrived(Side::Initiator));
        world.connect_receiver();
        assert!(world.joined());
        world.open(Side::Initiator, "a-sid");
        assert_eq!(world.errors(Side::Initiator).len(), 5, "a second stream");
        let joins = world.other.iter().filter(|action| matches!(action, SessionAction::Join));
        assert_eq!(joins.count(), 1);
    }

    /// Returns a session whose bytes flow over SOCKS5.
    fn streams() -> World {
        let mut world = World::taken(BOTH, true);
        world.hosts(COMPONENT);
        world.tell(SessionInput::Arrived(Side::Initiator));
        world.connect_receiver();
        assert!(world.joined());
        world
    }

    #[test]
    fn a_sender_that_lies_about_the_size_has_failed() {
        for (moved, reason) in [(2, "connectivity-error"), (4, "failed-application")] {
            let mut world = streams();
            world.relayed(moved, Ended::Eof);
            assert_eq!(world.reason(), Some(reason));
            let text = format!("The stream had {moved} bytes, and 3 were expected");
            assert_eq!(world.ends(Side::Responder), [(reason.to_owned(), text)]);
        }
        let mut world = streams();
        world.relayed(1, Ended::Error(io::ErrorKind::ConnectionReset));
        world.wait();
        assert_eq!(world.ends(Side::Responder).len(), 1, "a leg that dies");
    }

    #[test]
    fn a_sender_that_goes_after_its_last_byte_has_sent_the_file() {
        let mut world = streams();
        world.tell(SessionInput::Gone(Side::Initiator));
        world.relayed(3, Ended::Eof);
        assert_eq!((world.reason(), world.ends(Side::Responder).len()), (None, 0));
        world.jingle(Side::Responder, "session-terminate", "<reason><success/></reason>");
        assert_eq!(world.reason(), Some("success"));
    }

    #[test]
    fn only_the_end_of_its_stream_tells_the_sender_that_the_receiver_has_stopped() {
        for (reason, is_cut) in [("cancel", true), ("success", false)] {
            let mut world = streams();
            let terminate = format!("<reason><{reason}/></reason>");
            world.jingle(Side::Responder, "session-terminate", &terminate);
            world.wait();
            assert_eq!((world.reason(), world.parted()), (Some(reason), is_cut));
        }
        let mut world = streams();
        world.tell(SessionInput::End(Reason::Gone, "The operator ended it".to_owned()));
        assert!(world.parted(), "no byte flows after the end");
        // A stream beside XMPP outlives its users' connections.
        let mut world = streams();
        for side in Side::BOTH {
            world.tell(SessionInput::Gone(side));
        }
        world.wait();
        assert_eq!(world.reason(), None);
    }

    #[test]
    fn a_part_is_sent_only_if_the_sender_can_and_the_file_has_it() {
        for (file, range, asked) in [
            ("<range/>", "<range offset='1'/>", Some(2)),
            ("<range/>", "<range offset='1' length='1'/>", Some(1)),
            ("<range/>", "", Some(3)),
            ("", "<range/>", Some(3)),
            ("", "<range offset='1'/>", None),
            ("<range/>", "<range offset='4'/>", None),
            ("<range/>", "<range offset='x'/>", None),
        ] {
            let si = si_file("name='a' size='3'").replace("<range/>", file);
            let mut world = World::by_si(BOTH, false, &si, &JINGLE_FILES);
            let initiate = world.answer("session-initiate", Answer::Result(None));
            assert_eq!(String::from(&initiate).contains("<range"), !file.is_empty());
            world.accept(&format!("<file><size>3</size>{range}</file>"));
            let Some(asked) = asked else {
                assert_eq!(world.reason(), Some("incompatible-parameters"), "{range}");
                assert_eq!(world.errors(Side::Initiator).len(), 1);
                assert_eq!(world.ends(Side::Responder).len(), 1);
                continue;
            };
            let answer = world.sent.iter().find_map(|iq| iq.get_child("si", ns::SI)).unwrap();
            assert_eq!(FileRange::asked(answer).unwrap().of(3), Some(asked), "{range}");
            world.open(Side::Initiator, "a-sid");
            world.connect_receiver();
            world.relayed(asked, Ended::Eof);
            assert_eq!(world.reason(), None, "it was not too short: {range}");
        }
    }

    #[test]
    fn dino_gets_a_message_first_and_socks5_alone() {
        let all = [&JINGLE_FILES[..], &[features::DINO]].concat();
        let mut world = World::by_si(BOTH, true, &si_file("name='a' size='3'"), &all);
        let greets = |action: &SessionAction| matches!(action, SessionAction::Greet(text) if text.contains("alice@example.org"));
        assert!(world.other.iter().any(greets));
        world.answer("session-initiate", Answer::Result(None));
        world.accept(FILE);
        let failed = "<content creator='initiator' name='file'><transport xmlns='urn:xmpp:jingle:transports:s5b:1' sid='s'>\
                      <candidate-error/></transport></content>";
        world.jingle(Side::Responder, "transport-info", failed);
        assert_eq!(world.reason(), Some("failed-transport"));
    }

    #[test]
    fn an_offer_without_a_size_is_refused_and_the_senders_protocol_comes_first() {
        let world = World::by_si(BOTH, true, &si_file("name='a'"), &JINGLE_FILES);
        let size = "Expected the size of the file, in bytes".to_owned();
        assert_eq!(world.errors(Side::Initiator), [(Condition::BadRequest, size)]);
        assert!(world.machine.is_over() && world.asked.is_empty());
        let both = [&JINGLE_FILES[..], &SI_FILES].concat();
        for features in [&both[..], &SI_FILES, &[]] {
            let world = World::by_si(BOTH, true, &si_file("name='a' size='3'"), features);
            assert_eq!(world.asked[0].2.name(), "si", "{features:?}");
        }
        let world = World::by_si(BOTH, true, &si_file("name='a' size='3'"), &[ns::JINGLE]);
        let (condition, text) = &world.errors(Side::Initiator)[0];
        assert_eq!(*condition, Condition::ServiceUnavailable);
        assert!(text.contains("announces neither stream initiation nor Jingle"), "{text}");
    }
}

mod from_jingle {
    use super::*;

    #[test]
    fn a_file_goes_on_by_stream_initiation_and_is_marked_for_both() {
        let mut world = World::to_si();
        assert_eq!(world.sent.len(), 1, "the session-initiate is acknowledged");
        assert_eq!(world.sent[0].attr("type"), Some("result"));
        let offer = world.choose(SiMethod::Socks5, None);
        assert_eq!(si::offer(&offer), Ok(("b-sid", BOTH)));
        assert_eq!(FileOffer::of_si(&offer).unwrap().size, 3);
        assert!(offer.has_child("unencrypted", ns::HINTS));
        let desc = offer.get_child("file", ns::SI_FILE).unwrap().get_child("desc", ns::SI_FILE);
        assert_eq!(desc.unwrap().text(), MARK);
        let accept = world.answer("session-accept", Answer::Result(None));
        let content = accept.get_child("content", ns::JINGLE).unwrap();
        assert!(content.has_child("unencrypted", ns::HINTS));
        assert!(content.has_child("description", ns::FILE_TRANSFER));
        let connects = world.other.iter().any(|action| {
            matches!(action, SessionAction::Connect(Side::Responder, sid) if sid == "b-sid")
        });
        assert!(connects);
        let used = si::host_used("b-sid", COMPONENT);
        let hosts = world.answer("query", Answer::Result(Some(used)));
        assert_eq!(hosts.attr("sid"), Some("b-sid"));
        assert!(si::offers_host(&hosts, COMPONENT));
        world.tell(SessionInput::Arrived(Side::Responder));
        assert_eq!(world.machine.awaited(), None, "not before bytes can flow");
        world.open(Side::Initiator, "a-stream");
        assert!(world.joined());
        assert_eq!(world.machine.awaited(), Some(3));
        // Not every sender ends its stream before it is told that the receiver has the file.
        world.tell(SessionInput::Delivered(3));
        assert_eq!(world.machine.awaited(), None);
        world.tell(SessionInput::Delivered(3));
        world.wait();
        assert_eq!(world.reason(), Some("success"));
        assert_eq!(world.ends(Side::Initiator), [("success".to_owned(), String::new())]);
        // Nothing of Jingle reaches the receiver.
        assert!(world.told(Side::Responder).is_empty());
        assert!(!world.parted());
    }

    #[test]
    fn the_end_of_the_stream_tells_whether_the_receiver_has_the_file() {
        for (moved, reason) in
            [(3, "success"), (2, "connectivity-error"), (4, "failed-application")]
        {
            for method in [SiMethod::Socks5, SiMethod::Ibb] {
                let mut world = World::streams(method);
                world.relayed(moved, Ended::Eof);
                assert_eq!(world.reason(), Some(reason));
                let ends = world.ends(Side::Initiator);
                assert_eq!((ends.len(), ends[0].0.as_str()), (1, reason), "{moved} {method:?}");
            }
        }
        let mut world = World::streams(SiMethod::Ibb);
        world.relayed(2, Ended::Error(io::ErrorKind::ConnectionReset));
        world.wait();
        assert_eq!(world.reason(), Some("connectivity-error"), "a leg that dies");
        assert_eq!(world.ends(Side::Initiator).len(), 1);
    }

    #[test]
    fn the_in_band_stream_has_the_id_of_the_offer_and_small_blocks_if_need_be() {
        for falls_back in [false, true] {
            let method = if falls_back { SiMethod::Socks5 } else { SiMethod::Ibb };
            let mut world = World::accepted(method);
            let error = Refusal::item_not_found("").to_element();
            if falls_back {
                world.answer("query", Answer::Error(error.clone()));
            }
            let open = world.answer("open", Answer::Error(error));
            assert_eq!((open.attr("sid"), open.attr("block-size")), (Some("b-sid"), Some("8192")));
            let open = world.answer("open", Answer::Result(None));
            assert_eq!((open.attr("sid"), open.attr("block-size")), (Some("b-sid"), Some("4096")));
            let stream = world.other.iter().any(|action| {
                matches!(action, SessionAction::TakeStream(Side::Responder, sid, 4096, _) if sid == "b-sid")
            });
            assert!(stream);
            world.open(Side::Initiator, "a-stream");
            assert!(world.joined(), "{falls_back}");
            world.tell(SessionInput::Gone(Side::Responder));
            world.wait();
            assert_eq!(world.reason(), Some("gone"));
        }
        let mut world = World::accepted(SiMethod::Ibb);
        for _ in 0..2 {
            world.answer("open", Answer::Error(Refusal::item_not_found("").to_element()));
        }
        assert_eq!(world.reason(), Some("failed-transport"));
        assert_eq!(world.ends(Side::Initiator).len(), 1);
        // One that says nothing of our addresses gets an in-band stream after a while.
        let mut world = World::accepted(SiMethod::Socks5);
        world.wait();
        world.answer("query", Answer::Timeout);
        world.answer("open", Answer::Result(None));
        world.open(Side::Initiator, "a-stream");
        assert!(world.joined());
    }

    #[test]
    fn a_receiver_that_connects_late_keeps_its_connection() {
        for arrives_first in [false, true] {
            let mut world = World::accepted(SiMethod::Socks5);
            world.open(Side::Initiator, "a-stream");
            world.wait();
            if arrives_first {
                world.tell(SessionInput::Arrived(Side::Responder));
            }
            world.answer("query", Answer::Result(Some(si::host_used("b-sid", COMPONENT))));
            world.tell(SessionInput::Arrived(Side::Responder));
            assert!(world.joined(), "{arrives_first}");
            let open = world.asked.iter().any(|(.., element)| element.name() == "open");
            assert!(!open && world.reason().is_none());
        }
    }

    #[test]
    fn nothing_is_opened_for_a_receiver_that_has_not_accepted() {
        for accepts in [false, true] {
            let options = BrokerOptions { plain: PlainFiles::Mark, ..BrokerOptions::of_tests() };
            let content = content("senders='initiator'", FILE);
            let mut world = World::by_jingle(&content, options, &[ns::SI_FILE, ns::IBB]);
            world.open(Side::Initiator, "a-stream");
            let names = |world: &World| -> Vec<String> {
                world.told(Side::Responder).iter().map(|told| told.name().to_owned()).collect()
            };
            assert_eq!(names(&world), ["si"]);
            if accepts {
                world.choose(SiMethod::Ibb, None);
                assert_eq!(names(&world), ["open"]);
                world.answer("open", Answer::Result(None));
                assert!(world.joined());
            } else {
                let refusal = Refusal::new(ErrorType::Cancel, Condition::Forbidden, "");
                world.answer("si", Answer::Error(refusal.to_element()));
                assert_eq!(world.reason(), Some("decline"));
                assert_eq!(names(&world), [""; 0]);
            }
        }
    }

    #[test]
    fn nothing_but_the_file_is_accepted_in_the_receivers_place() {
        let options = BrokerOptions { plain: PlainFiles::Mark, ..BrokerOptions::of_tests() };
        let more = format!("<paths xmlns='{}'/>", ns::PATHS);
        let content = content("senders='initiator'", FILE);
        let content = content.replace("<transport", &format!("{more}<transport"));
        let mut world = World::by_jingle(&content, options, &SI_FILES);
        world.choose(SiMethod::Ibb, None);
        let told = world.told(Side::Initiator);
        let accept = told.iter().find(|told| told.attr("action") == Some("session-accept"));
        let content = accept.unwrap().get_child("content", ns::JINGLE).unwrap();
        let names: Vec<_> = content.children().map(Element::name).collect();
        assert_eq!(names, ["description", "transport", "unencrypted"]);
        assert!(world.machine.renewable().is_none());
    }

    #[test]
    fn a_stream_that_is_longer_than_the_file_has_failed_before_it_ends() {
        let mut world = World::streams(SiMethod::Socks5);
        world.tell(SessionInput::Delivered(4));
        world.wait();
        assert_eq!(world.reason(), Some("failed-application"));
        assert_eq!(world.ends(Side::Initiator)[0].0, "failed-application");
    }

    #[test]
    fn the_sender_learns_why_the_receiver_takes_nothing() {
        let error = |type_, condition, text| {
            Answer::Error(Refusal::new(type_, condition, text).to_element())
        };
        let streams = Refusal::bad_request("").with_extra("no-valid-streams", ns::SI);
        let other = Element::bare("si", ns::SI);
        for (answer, reason, text) in [
            (
                error(ErrorType::Cancel, Condition::Forbidden, "Offer Declined"),
                "decline",
                "Offer Declined",
            ),
            (
                error(ErrorType::Cancel, Condition::Forbidden, ""),
                "decline",
                "bob@example.org declined the file",
            ),
            (
                Answer::Error(streams.to_element()),
                "unsupported-transports",
                "bob@example.org takes none of the bytestreams",
            ),
            (
                error(ErrorType::Wait, Condition::RecipientUnavailable, ""),
                "gone",
                "bob@example.org went away",
            ),
            (Answer::Timeout, "timeout", "bob@example.org did not answer in time"),
            (
                Answer::Result(Some(other)),
                "unsupported-transports",
                "The client of bob@example.org chose a bytestream that was not offered",
            ),
        ] {
            let mut world = World::to_si();
            world.answer("si", answer);
            assert_eq!(world.reason(), Some(reason));
            assert_eq!(world.ends(Side::Initiator), [(reason.to_owned(), text.to_owned())]);
        }
        let mut world = World::to_si();
        let is_offer = |(_, _, element): &(Side, u32, Element)| element.name() == "si";
        let at = world.asked.iter().position(is_offer).unwrap();
        let (_, number, _) = world.asked.remove(at);
        world.tell(SessionInput::Unasked(number));
        let text = "Too many offers wait for bob@example.org; try again later";
        assert_eq!(world.ends(Side::Initiator), [("busy".to_owned(), text.to_owned())]);
        let mut world = World::to_si();
        world.tell(SessionInput::Gone(Side::Responder));
        assert_eq!(world.ends(Side::Initiator)[0].0, "gone");
        let mut world = World::to_si();
        while !world.machine.is_over() {
            world.wait();
        }
        assert_eq!(world.ends(Side::Initiator)[0].0, "timeout");
    }

    #[test]
    fn a_sender_may_cancel_at_any_time() {
        let cancel = |world: &mut World| {
            world.jingle(Side::Initiator, "session-terminate", "<reason><cancel/></reason>");
        };
        let mut world = World::to_si();
        cancel(&mut world);
        assert_eq!(world.reason(), Some("cancel"));
        // The receiver cannot be told, and its answer changes nothing.
        world.choose(SiMethod::Socks5, None);
        assert!(world.told(Side::Responder).is_empty() && world.ends(Side::Initiator).is_empty());
        for method in [SiMethod::Socks5, SiMethod::Ibb] {
            let mut world = World::accepted(method);
            cancel(&mut world);
            assert_eq!(world.reason(), Some("cancel"));
            let mut world = World::streams(method);
            cancel(&mut world);
            world.wait();
            assert_eq!((world.reason(), world.parted()), (Some("cancel"), true));
        }
    }

    #[test]
    fn a_receiver_cannot_open_its_stream_itself_or_speak_jingle() {
        let mut world = World::to_si();
        for _ in 0..2 {
            world.open(Side::Responder, "b-sid");
            world.jingle(Side::Responder, "session-accept", &content("", FILE));
            let hosts = si::hosts("b-sid", COMPONENT, &[("there".to_owned(), 1)]);
            let stanza = world.request(Side::Responder, hosts);
            world.tell(SessionInput::Bytestreams(Side::Responder, stanza));
            assert_eq!(world.errors(Side::Responder).len(), 3);
            world.sent.clear();
            if world.asked.iter().any(|(.., element)| element.name() == "si") {
                world.choose(SiMethod::Socks5, None);
            }
        }
        world.answer("query", Answer::Result(Some(si::host_used("b-sid", COMPONENT))));
        world.tell(SessionInput::Arrived(Side::Responder));
        world.open(Side::Initiator, "a-stream");
        assert!(world.joined());
    }

    #[test]
    fn what_a_sender_says_beside_the_file_is_answered_here() {
        let mut world = World::streams(SiMethod::Socks5);
        world.sent.clear();
        let checksum = format!("<checksum xmlns='{}'/>", ns::FILE_TRANSFER);
        let received = format!("<received xmlns='{}'/>", ns::FILE_TRANSFER);
        for inside in ["", &checksum, &received] {
            world.jingle(Side::Initiator, "session-info", inside);
        }
        assert!(world.sent.iter().all(|iq| iq.attr("type") == Some("result")));
        assert_eq!(world.sent.len(), 3);
        world.jingle(Side::Initiator, "content-modify", &content("senders='both'", FILE));
        assert_eq!(world.errors(Side::Initiator)[0].0, Condition::FeatureNotImplemented);
        assert!(world.told(Side::Responder).is_empty());
        assert_eq!(world.reason(), None);
    }

    #[test]
    fn an_offer_without_words_in_stream_initiation_is_refused_and_says_why() {
        let options = || BrokerOptions { plain: PlainFiles::Mark, ..BrokerOptions::of_tests() };
        for (content, why) in [
            (content("senders='responder'", FILE), "can only be sent to it"),
            (content("", "<file><name>a</name></file>"), "how many bytes"),
        ] {
            let world = World::by_jingle(&content, options(), &SI_FILES);
            let ends = world.ends(Side::Initiator);
            assert_eq!(ends[0].0, "unsupported-applications");
            assert!(ends[0].1.contains(why) && ends[0].1.contains("bob@example.org"), "{ends:?}");
            assert!(world.told(Side::Responder).is_empty());
        }
        // What encrypts a file has no place in stream initiation.
        let jet = "<security xmlns='urn:xmpp:jingle:jet:0'/></content>";
        let jet = content("", FILE).replace("</content>", jet);
        let world = World::by_jingle(&jet, options(), &SI_FILES);
        assert_eq!(world.ends(Side::Initiator)[0].0, "unsupported-applications");
        assert!(world.told(Side::Responder).is_empty());
        let both = [&JINGLE_FILES[..], &SI_FILES].concat();
        let world = World::by_jingle(&content("", FILE), options(), &both);
        assert_eq!(world.asked[0].2.name(), "jingle", "the sender's protocol comes first");
        // Nothing is marked if the operator does not want it.
        let allow = BrokerOptions { plain: PlainFiles::Allow, ..BrokerOptions::of_tests() };
        let mut world = World::by_jingle(&content("", FILE), allow, &SI_FILES);
        let offer = world.choose(SiMethod::Ibb, None);
        let accept = world.answer("session-accept", Answer::Result(None));
        for element in [offer, accept] {
            assert!(!String::from(&element).contains("crypted"), "{}", String::from(&element));
        }
    }

    #[test]
    fn a_part_is_asked_for_only_if_the_sender_can_and_the_file_has_it() {
        let range = |offset| Some(FileRange { offset, length: None });
        for (file, asked, expected) in [
            (FILE, range(1), Some(2)),
            (FILE, range(0), Some(3)),
            (FILE, range(4), None),
            ("<file><size>3</size></file>", range(1), None),
        ] {
            let options = BrokerOptions { plain: PlainFiles::Mark, ..BrokerOptions::of_tests() };
            let mut world = World::by_jingle(&content("", file), options, &SI_FILES);
            world.choose(SiMethod::Ibb, asked);
            let Some(expected) = expected else {
                assert_eq!(world.reason(), Some("incompatible-parameters"));
                continue;
            };
            let accept = world.answer("session-accept", Answer::Result(None));
            let content = contents(&accept).next().unwrap();
            assert_eq!(FileRange::asked(content).unwrap().of(3), Some(expected));
            world.answer("open", Answer::Result(None));
            world.open(Side::Initiator, "a-stream");
            assert_eq!(world.machine.awaited(), Some(expected));
        }
    }

    #[test]
    fn only_the_methods_of_the_receiver_and_the_operator_are_offered() {
        for (features, socks5, offered) in [
            (&SI_FILES[..], true, BOTH),
            (&[ns::SI_FILE, ns::IBB], true, SiMethods { socks5: false, ibb: true }),
            (&SI_FILES, false, SiMethods { socks5: false, ibb: true }),
            (&[ns::SI_FILE], true, BOTH),
        ] {
            let options =
                BrokerOptions { plain: PlainFiles::Mark, socks5, ..BrokerOptions::of_tests() };
            let mut world = World::by_jingle(&content("", FILE), options, features);
            let offer = world.choose(SiMethod::Ibb, None);
            assert_eq!(si::offer(&offer), Ok(("b-sid", offered)));
            world.answer("open", Answer::Result(None));
        }
        let options =
            BrokerOptions { plain: PlainFiles::Mark, socks5: false, ..BrokerOptions::of_tests() };
        let mut world = World::by_jingle(&content("", FILE), options, &SI_FILES);
        world.choose(SiMethod::Socks5, None);
        assert_eq!(world.reason(), Some("unsupported-transports"));
    }
}

mod in_any_order {
    use proptest::prelude::*;

    use super::*;

    /// Lets one thing happen, of those that users, their servers, the network, the operator and the clock can do.
    fn happen(world: &mut World, what: u8, which: u8) {
        let side = if which.is_multiple_of(2) { Side::Initiator } else { Side::Responder };
        let reason = ["success", "cancel", "decline", "busy"][usize::from(which % 4)];
        match what {
            0 => world.accept(FILE),
            1 => world.jingle(
                side,
                "session-accept",
                &content("", "<file><range offset='2'/></file>"),
            ),
            2 => world.jingle(side, "session-terminate", &format!("<reason><{reason}/></reason>")),
            3 => world.hosts(if which < 128 { COMPONENT } else { "other.example.org" }),
            4 => world.open(side, if which < 128 { "a-sid" } else { "a-stream" }),
            5 => world.connect_receiver(),
            6 => world.tell(SessionInput::Arrived(side)),
            7 => world.jingle(side, "transport-replace", &content("", FILE)),
            8 => world.jingle(side, "session-info", "<received xmlns='urn:x'/>"),
            9 => world.tell(SessionInput::Gone(side)),
            10 if world.machine.deadline().is_some() => world.wait(),
            11 => world.tell(SessionInput::Delivered(3)),
            12 if world.joined() => world.relayed(u64::from(which % 5), Ended::Eof),
            13 if world.joined() => {
                world.relayed(1, Ended::Error(io::ErrorKind::ConnectionReset));
            }
            _ if !world.asked.is_empty() => {
                let at = usize::from(which) % world.asked.len();
                let (_, number, asked) = world.asked.remove(at);
                let si = si::answer(&Element::bare("si", ns::SI), "b-sid", SiMethod::Ibb, false);
                let error = Refusal::item_not_found("").to_element();
                world.tell(SessionInput::Answered(
                    number,
                    match which % 3 {
                        0 => Answer::Error(error),
                        1 if which > 240 => Answer::Timeout,
                        1 if asked.name() == "query" => {
                            Answer::Result(Some(si::host_used("b-sid", COMPONENT)))
                        }
                        1 => Answer::Result(Some(si)),
                        _ => Answer::Result(None),
                    },
                ));
            }
            _ => {}
        }
    }

    proptest! {
        #[test]
        fn each_request_is_answered_once_and_a_user_hears_only_its_own_protocol(
            by_si in any::<bool>(),
            knows_proxy in any::<bool>(),
            happens in prop::collection::vec((0u8..24, any::<u8>()), 0..40),
        ) {
            let mut world = match by_si {
                true => World::to_jingle(BOTH, knows_proxy),
                false => World::to_si(),
            };
            for (what, which) in happens {
                happen(&mut world, what, which);
            }
            world.tell(SessionInput::End(Reason::Gone, String::new()));
            prop_assert!(world.machine.is_over());
            for id in &world.requests {
                let is_answer = |iq: &&Element| {
                    iq.attr("id") == Some(id.as_str()) && iq.attr("type") != Some("set")
                };
                prop_assert_eq!(world.sent.iter().filter(is_answer).count(), 1, "{}", id);
            }
            let old = if by_si { Side::Initiator } else { Side::Responder };
            for payload in world.told(old) {
                prop_assert_ne!(payload.name(), "jingle");
            }
            for payload in world.told(old.other()) {
                prop_assert!(!payload.has_ns(ns::SI) && !payload.is("query", ns::BYTESTREAMS));
            }
            prop_assert!(world.ends(old.other()).len() <= 1);
            let joins = world.other.iter().filter(|action| matches!(action, SessionAction::Join));
            prop_assert!(joins.count() <= 1);
        }
    }
}
