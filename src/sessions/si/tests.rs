//! Sessions by stream initiation without a network: inputs in, actions out.

use fingerpost_wire::stanza::RequestKind;
use jid::Jid;

use super::*;

const ALL: [&str; 3] = [ns::SI_FILE, ns::BYTESTREAMS, ns::IBB];

/// A session, the time, and all its actions so far.
struct World {
    session: SiSession,
    now: Instant,
    asked: Vec<(u32, Element)>,
    sent: Vec<Element>,
    other: Vec<SessionAction>,
}

fn peer(user: &str, mask: &str, sid: &str) -> SessionPeer {
    let jid = |text: &str| Jid::new(text).unwrap();
    SessionPeer { pair: Arc::new((jid(user), jid(mask))), sid: sid.into(), namespace: ns::SI }
}

/// Returns a request of the sender.
fn request(payload: Element) -> Stanza {
    let iq = RequestKind::Set.iq(
        "alice@example.org/a",
        "bob\\40example.org@xtls.example.org/b",
        "id",
        payload,
    );
    Stanza::parse(iq).unwrap()
}

fn si() -> Element {
    let mut si = xml::element("si", ns::SI, &[("id", "a-sid"), ("profile", ns::SI_FILE)]);
    si.append_child(xml::element("file", ns::SI_FILE, &[("name", "a"), ("size", "3")]));
    si
}

impl World {
    fn new(methods: SiMethods, knows_proxy: bool, plain: PlainFiles, ibb: bool) -> Self {
        let options = BrokerOptions { plain, ibb, ..BrokerOptions::of_tests() };
        let peers = PerSide {
            initiator: peer(
                "alice@example.org/a",
                "bob\\40example.org@xtls.example.org/b",
                "a-sid",
            ),
            responder: peer(
                "bob@example.org/b",
                "alice\\40example.org@xtls.example.org/a",
                "b-sid",
            ),
        };
        let offer = request(si::reoffer(&si(), "a-sid", methods, None));
        let now = Instant::now();
        let session = SiSession::new(Arc::new(options), peers, offer, methods, knows_proxy, now);
        let (asked, sent, other) = (Vec::new(), Vec::new(), Vec::new());
        let mut world = Self { session, now, asked, sent, other };
        world.drain();
        world
    }

    /// Creates a session with both methods on each side, which is offered to a client with these features.
    fn offered(knows_proxy: bool, known: &[&str]) -> Self {
        let both = SiMethods { socks5: true, ibb: true };
        let mut world = Self::new(both, knows_proxy, PlainFiles::Mark, true);
        world.know(known);
        world
    }

    /// The same, accepted with this method.
    fn accepted(knows_proxy: bool, method: SiMethod) -> Self {
        let mut world = Self::offered(knows_proxy, &ALL);
        world.answer("si", Answer::Result(Some(si::answer(&si(), "b-sid", method, false))));
        world
    }

    fn know(&mut self, known: &[&str]) {
        self.tell(SessionInput::Features(known.iter().map(|&f| f.to_owned()).collect()));
    }

    fn tell(&mut self, input: SessionInput) {
        self.session.handle(input, self.now);
        self.drain();
    }

    fn drain(&mut self) {
        while let Some(action) = self.session.poll_action() {
            match action {
                SessionAction::Ask(Side::Responder, number, element) => {
                    self.asked.push((number, element));
                }
                SessionAction::Send(element) => self.sent.push(element),
                action => self.other.push(action),
            }
        }
    }

    /// Answers the request with this name, and returns it.
    fn answer(&mut self, name: &str, answer: Answer) -> Element {
        let at = self.asked.iter().position(|(_, element)| element.name() == name).unwrap();
        let (number, asked) = self.asked.remove(at);
        self.tell(SessionInput::Answered(number, answer));
        asked
    }

    fn open(&mut self) {
        let attributes = [("sid", "a-sid"), ("block-size", "4096")];
        let open = request(xml::element("open", ns::IBB, &attributes));
        self.tell(SessionInput::Open(Side::Initiator, open));
    }

    /// Returns the condition of the last answer to the sender, `None` for a result.
    fn condition(&self) -> Option<String> {
        let error = self.sent.last().unwrap().get_child("error", ns::CLIENT)?;
        error.children().next().map(|child| child.name().to_owned())
    }

    fn joined(&self) -> bool {
        self.other.iter().any(|action| matches!(action, SessionAction::Join))
    }

    fn connects(&self, side: Side) -> bool {
        self.other
            .iter()
            .any(|action| matches!(action, SessionAction::Connect(of, _) if *of == side))
    }
}

#[test]
fn a_file_over_socks5_on_both_legs_is_marked_and_joined() {
    let mut world = World::offered(true, &ALL);
    let chosen = si::answer(&si(), "b-sid", SiMethod::Socks5, false);
    let offer = world.answer("si", Answer::Result(Some(chosen)));
    let (id, methods) = si::offer(&offer).unwrap();
    assert_eq!((id, methods), ("b-sid", SiMethods { socks5: true, ibb: true }));
    assert!(offer.has_child("unencrypted", ns::HINTS));
    let desc = offer.get_child("file", ns::SI_FILE).unwrap().get_child("desc", ns::SI_FILE);
    assert!(desc.unwrap().text().contains("not encrypted"));
    let answer = world.sent.pop().unwrap();
    let answer = answer.get_child("si", ns::SI).unwrap();
    assert_eq!(si::chosen(answer), Some(SiMethod::Socks5));
    assert!(answer.has_child("unencrypted", ns::HINTS));
    assert!(world.connects(Side::Initiator) && world.connects(Side::Responder));

    let advertised = [("here".to_owned(), 1)];
    let hosts = si::hosts("a-sid", "xtls.example.org", &advertised);
    world.tell(SessionInput::Bytestreams(Side::Initiator, request(hosts)));
    let used = world.sent.last().unwrap().get_child("query", ns::BYTESTREAMS).unwrap();
    assert!(si::uses_host(used, "xtls.example.org"));
    let used = si::host_used("b-sid", "xtls.example.org");
    let ours = world.answer("query", Answer::Result(Some(used)));
    assert!(si::offers_host(&ours, "xtls.example.org"));
    assert_eq!(ours.attr("sid"), Some("b-sid"));
    world.tell(SessionInput::Arrived(Side::Responder));
    assert!(!world.joined());
    world.tell(SessionInput::Arrived(Side::Initiator));
    assert!(world.joined());
    let outcome = StreamOutcome { a_to_b: 3, b_to_a: 0, end: Ended::Eof };
    world.tell(SessionInput::Relayed(outcome));
    assert_eq!((world.session.is_over(), world.session.reason()), (true, "success"));
}

#[test]
fn a_sender_that_does_not_know_the_proxy_sends_in_band() {
    let mut world = World::accepted(false, SiMethod::Socks5);
    let answer = world.sent.last().unwrap().get_child("si", ns::SI).unwrap();
    assert_eq!(si::chosen(answer), Some(SiMethod::Ibb));
    assert!(!world.connects(Side::Initiator));
    world.open();
    world.answer("query", Answer::Result(Some(si::host_used("b-sid", "xtls.example.org"))));
    world.tell(SessionInput::Arrived(Side::Responder));
    assert!(world.joined());
}

#[test]
fn socks5_that_fails_goes_in_band_on_either_leg() {
    let mut world = World::accepted(true, SiMethod::Socks5);
    let foreign = si::hosts("a-sid", "other.example.org", &[("there".to_owned(), 1)]);
    world.tell(SessionInput::Bytestreams(Side::Initiator, request(foreign)));
    assert_eq!(world.condition().as_deref(), Some("item-not-found"));
    world.open();
    assert_eq!(world.condition(), None);
    let error = Refusal::item_not_found("").to_element();
    world.answer("query", Answer::Error(error.clone()));
    // Large blocks are refused first.
    let open = world.answer("open", Answer::Error(error));
    assert_eq!(open.attr("block-size"), Some("8192"));
    let open = world.answer("open", Answer::Result(None));
    assert_eq!((open.attr("block-size"), open.attr("sid")), (Some("4096"), Some("b-sid")));
    assert!(world.joined());
}

#[test]
fn a_sender_without_any_common_way_is_told_and_the_session_ends() {
    let socks5 = SiMethods { socks5: true, ibb: false };
    let mut world = World::new(socks5, false, PlainFiles::Mark, true);
    world.know(&ALL);
    world.answer("si", Answer::Result(Some(si::answer(&si(), "b-sid", SiMethod::Ibb, false))));
    let foreign = si::hosts("a-sid", "other.example.org", &[("there".to_owned(), 1)]);
    world.tell(SessionInput::Bytestreams(Side::Initiator, request(foreign)));
    assert_eq!(world.condition().as_deref(), Some("item-not-found"));
    assert_eq!(world.session.reason(), "failed-transport");
    // The receiver must not choose what was not offered.
    let mut world = World::new(socks5, true, PlainFiles::Allow, false);
    world.know(&ALL);
    let offer =
        world.answer("si", Answer::Result(Some(si::answer(&si(), "b-sid", SiMethod::Ibb, false))));
    assert_eq!(si::offer(&offer).unwrap().1, socks5);
    assert!(!offer.has_child("unencrypted", ns::HINTS), "only marked if the operator says so");
    assert_eq!(world.condition().as_deref(), Some("feature-not-implemented"));
}

#[test]
fn a_client_that_announces_no_such_files_is_not_asked() {
    let world = World::offered(true, &[ns::FILE_TRANSFER, ns::JINGLE_S5B]);
    assert_eq!(world.condition().as_deref(), Some("service-unavailable"));
    assert!(world.asked.is_empty() && world.session.is_over());
    let world = World::offered(true, &[]);
    assert_eq!(world.asked.len(), 1, "its features are unknown");
}

#[test]
fn each_end_answers_the_sender_once() {
    let error = Refusal::new(
        fingerpost_wire::stanza::ErrorType::Cancel,
        fingerpost_wire::stanza::Condition::Forbidden,
        "",
    );
    let end = |input: fn() -> SessionInput| {
        let mut world = World::offered(true, &ALL);
        world.tell(input());
        assert!(world.session.is_over());
        assert_eq!(world.sent.len(), 1);
        world.condition().unwrap()
    };
    assert_eq!(end(|| SessionInput::Gone(Side::Responder)), "recipient-unavailable");
    assert_eq!(end(|| SessionInput::End(Reason::Gone, String::new())), "item-not-found");
    assert_eq!(end(|| SessionInput::EndInBand), "item-not-found");
    let mut world = World::offered(true, &ALL);
    world.answer("si", Answer::Error(error.to_element()));
    assert_eq!(
        (world.condition().as_deref(), world.session.reason()),
        (Some("forbidden"), "refused")
    );
    // The refusal of an offer for which there is no place is not the receiver's.
    let mut world = World::offered(true, &ALL);
    let (number, _) = world.asked.pop().unwrap();
    world.tell(SessionInput::Unasked(number));
    assert!(world.session.is_over());
    let error = world.sent.last().unwrap().get_child("error", ns::CLIENT).unwrap();
    assert!(error.has_child("resource-constraint", ns::STANZA_ERRORS));
    assert!(!error.has_child("peer", ns::HINTS), "{error:?}");
    let mut world = World::offered(true, &ALL);
    world.now = world.session.deadline().unwrap();
    world.tell(SessionInput::Timeout);
    assert_eq!(world.condition().as_deref(), Some("remote-server-timeout"));
    // What comes later is refused, and nothing comes of it.
    world.open();
    assert_eq!(world.condition().as_deref(), Some("item-not-found"));
    assert!(!world.joined());
}

#[test]
fn a_stream_over_socks5_outlives_its_users_connection_and_one_in_band_does_not() {
    for (method, is_over) in [(SiMethod::Socks5, false), (SiMethod::Ibb, true)] {
        let mut world = World::accepted(false, method);
        world.open();
        match method {
            SiMethod::Socks5 => {
                let used = si::host_used("b-sid", "xtls.example.org");
                world.answer("query", Answer::Result(Some(used)));
                world.tell(SessionInput::Arrived(Side::Responder));
            }
            SiMethod::Ibb => drop(world.answer("open", Answer::Result(None))),
        }
        assert!(world.joined());
        world.tell(SessionInput::Gone(Side::Responder));
        assert_eq!(world.session.is_over(), is_over, "{method:?}");
        if !is_over {
            world.tell(SessionInput::End(Reason::Gone, String::new()));
        }
        let cut = world.other.iter().any(|action| matches!(action, SessionAction::Part));
        assert!(cut, "no byte flows after the end: {method:?}");
    }
}
