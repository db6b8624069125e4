//! Two endpoints and a server between them, for tests: what the stanzas of their sessions say.

use fingerpost_carry::outbound::QueuedStanza;
use fingerpost_secure::identity::Identity;
use fingerpost_wire::{
    jingle::{self, Action},
    ns,
    stanza::{Kind, Refusal, Stanza},
    transport_kind::TransportKind,
    xml,
};
use jid::{BareJid, FullJid};
use minidom::Element;
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

use super::{
    application::Application,
    builder::Builder,
    consent::{Consent, DirectPath},
    direct::addresses::{self, Scope},
    endpoint::Endpoint,
    error::Error,
    login::Connection,
    negotiate::Incoming,
    policy::{FirstUse, Known, Policy, Shown},
    s5b::{self, KnownProxies},
    session::Session,
    stream::SecureStream,
};

/// What both sides have sent so far, in order.
type Sent = watch::Receiver<Vec<Element>>;

/// Returns how an endpoint of this user is to be, which keeps first keys.
fn user(name: &str) -> Builder {
    let jid = BareJid::new(&format!("{name}@example.org")).unwrap();
    Endpoint::builder(Identity::generate(&jid).unwrap()).policy(FirstUse::default())
}

/// What is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answers {
    /// All that the users are asked.
    All,
    /// The same without their features, which get an error.
    NoFeatures,
    /// All, and the server has two services: a proxy that answers once, and one that is silent.
    Services,
}

/// The answer of the server itself; `None` if none comes.
fn of_server(stanza: &Stanza, answers: Answers, proxy_is_asked: &mut bool) -> Option<Element> {
    let result = |namespace: &str, children: &[Element]| {
        let mut query = Element::bare("query", namespace);
        for child in children {
            query.append_child(child.clone());
        }
        stanza.result(Some(query))
    };
    let item = |jid: &str| xml::element("item", ns::DISCO_ITEMS, &[("jid", jid)]);
    match (answers, stanza.to.as_str()) {
        (Answers::Services, "example.org") => {
            let items = [item("silent.example.org"), item("proxy.example.org")];
            Some(result(ns::DISCO_ITEMS, &items))
        }
        (Answers::Services, "proxy.example.org") if !std::mem::replace(proxy_is_asked, true) => {
            let host = [("jid", "proxy.example.org"), ("host", "192.0.2.7"), ("port", "7625")];
            Some(result(ns::BYTESTREAMS, &[xml::element("streamhost", ns::BYTESTREAMS, &host)]))
        }
        (Answers::Services, "proxy.example.org" | "silent.example.org") => None,
        _ => Some(stanza.refusal(&Refusal::service_unavailable())),
    }
}

/// Starts the endpoints of alice and of bob at a server that passes their stanzas on.
fn between(users: [Builder; 2], answers: Answers) -> ([(Endpoint, Incoming); 2], Sent) {
    let jids = ["alice", "bob"].map(|name| FullJid::new(&format!("{name}@example.org/x")).unwrap());
    let (sender, sent) = watch::channel(Vec::new());
    let [to_alice, to_bob] = [(); 2].map(|()| mpsc::channel(256));
    let deliver = [to_alice.0, to_bob.0];
    let mut inbound = [to_alice.1, to_bob.1].into_iter();
    let mut ends = users.into_iter().enumerate().map(|(end, builder)| {
        let (outbound, mut stanzas) = mpsc::channel::<QueuedStanza>(256);
        let (jids, deliver, sender) = (jids.clone(), deliver.clone(), sender.clone());
        let connection = Connection {
            jid: jids[end].clone(),
            outbound,
            inbound: inbound.next().unwrap(),
            task: tokio::spawn(std::future::pending()),
        };
        let mut proxy_is_asked = false;
        tokio::spawn(async move {
            while let Some(stanza) = stanzas.recv().await {
                let mut stanza = stanza.into_element();
                xml::set(&mut stanza, "from", jids[end].as_str());
                sender.send_modify(|all| all.push(stanza.clone()));
                let stanza = Stanza::parse(stanza).unwrap();
                let is_info =
                    stanza.payload().is_some_and(|payload| payload.has_ns(ns::DISCO_INFO))
                        && stanza.is_request();
                let is_there = stanza.to == jids[1 - end].clone();
                if is_there && (answers != Answers::NoFeatures || !is_info) {
                    let _ = deliver[1 - end].send(stanza).await;
                } else if stanza.kind == Kind::Iq
                    && stanza.is_request()
                    && let Some(answer) = of_server(&stanza, answers, &mut proxy_is_asked)
                {
                    let _ = deliver[end].send(Stanza::parse(answer).unwrap()).await;
                }
            }
        });
        builder.over(connection)
    });
    let ends = [ends.next().unwrap(), ends.next().unwrap()];
    (ends, sent)
}

type Secured = (Session, SecureStream);

/// Lets the first end start a session with the second.
async fn session(ends: &mut [(Endpoint, Incoming); 2]) -> [Secured; 2] {
    let [(one, _), (other, incoming)] = ends;
    let (peer, application) = (other.jid(), Application::tls());
    let accepting = async { incoming.next().await.unwrap().accept().await };
    let (started, accepted) = tokio::join!(one.initiate(&peer, &application), accepting);
    [started.unwrap(), accepted.unwrap()]
}

/// Returns how many addresses of this machine a stanza holds.
fn addresses_in(stanza: &Element) -> usize {
    let text = String::from(stanza);
    let own = addresses::offered(Scope::Network);
    own.iter().filter(|ip| text.contains(&format!("{ip}"))).count()
}

/// A user who thinks about the question while the program has kept the peer's key.
#[derive(Clone, Debug)]
struct Undecided {
    has_kept: watch::Sender<bool>,
}

impl Consent for Undecided {
    fn remembered(&self, _peer: &BareJid) -> Option<bool> {
        self.has_kept.borrow().then_some(true)
    }

    fn can_ask(&self) -> bool {
        true
    }

    fn ask<'a>(
        &'a self,
        _peer: &'a BareJid,
    ) -> std::pin::Pin<Box<dyn Future<Output = bool> + Send + 'a>> {
        Box::pin(std::future::pending())
    }
}

#[tokio::test]
async fn no_address_is_told_while_the_user_is_asked() {
    let alice = Undecided { has_kept: watch::Sender::new(false) };
    let always = |name| user(name).direct_path(DirectPath::Always).prefer(TransportKind::Ibb);
    let asked = || user("alice").consent(alice.clone()).prefer(TransportKind::Ibb);

    // As the initiator: her offer of another leg.
    let (mut ends, _sent) = between([asked(), always("bob")], Answers::All);
    let [(session_of_alice, _stream), _bob] = session(&mut ends).await;
    assert!(session_of_alice.paths.is_some());
    alice.has_kept.send_replace(true);
    let aside = session_of_alice.aside().unwrap();
    let (_, transport) = aside.offer_transport(TransportKind::S5b).await;
    assert_eq!(addresses_in(&transport), 0, "{transport:?}");

    // As the responder: her answer to one.
    alice.has_kept.send_replace(false);
    let (mut ends, mut sent) = between([always("alice"), asked()], Answers::All);
    let [(mut session_of_mallory, _mallory), _alice] = session(&mut ends).await;
    alice.has_kept.send_replace(true);
    let (_, transport) = session_of_mallory.offer_transport(TransportKind::S5b).await;
    session_of_mallory.tell_transport(Action::TransportReplace, transport).await.unwrap();
    let is_accept = |stanza: &Element| {
        let jingle = stanza.get_child("jingle", ns::JINGLE);
        jingle.is_some_and(|jingle| jingle::action(jingle) == Action::TransportAccept)
    };
    let all = sent.wait_for(|all| all.iter().any(is_accept)).await.unwrap();
    let accept = all.iter().find(|stanza| is_accept(stanza)).unwrap();
    assert_eq!(addresses_in(accept), 0, "{accept:?}");
}

/// Every key is one of a further device.
#[derive(Clone, Copy, Debug)]
struct Further;

impl Policy for Further {
    fn shown(&self, _shown: &Shown<'_>) -> Result<Known, Error> {
        Ok(Known::Further)
    }
}

#[tokio::test]
async fn what_the_user_has_said_of_a_peer_is_not_about_its_further_key() {
    for (choice, is_given) in [(DirectPath::Auto, false), (DirectPath::Always, true)] {
        let has_kept = watch::Sender::new(true);
        let alice = user("alice").policy(Further).direct_path(choice);
        let bob = user("bob").direct_path(DirectPath::Always);
        let (mut ends, _sent) = between([alice.consent(Undecided { has_kept }), bob], Answers::All);
        let [(session, _stream), _bob] = session(&mut ends).await;
        assert_eq!(session.consent.is_given(), is_given, "{choice:?}");
        let aside = session.aside().unwrap();
        assert_eq!(aside.consent.is_given(), is_given, "{choice:?}");
    }
}

#[tokio::test]
async fn no_address_is_told_to_a_program_that_does_not_say_what_it_has() {
    for never in [0, 1] {
        let choices = [0, 1].map(|end| match end == never {
            true => DirectPath::Never,
            false => DirectPath::Always,
        });
        for answers in [Answers::All, Answers::NoFeatures] {
            let [alice, bob] = choices;
            let users = [user("alice").direct_path(alice), user("bob").direct_path(bob)];
            let (mut ends, sent) = between(users, answers);
            let _secured = session(&mut ends).await;
            for stanza in &*sent.borrow() {
                assert_eq!(addresses_in(stanza), 0, "{choices:?}, {answers:?}: {stanza:?}");
            }
        }
    }
    // That the search finds what there is.
    let users = ["alice", "bob"].map(|name| user(name).direct_path(DirectPath::Always));
    let (mut ends, sent) = between(users, Answers::All);
    let _secured = session(&mut ends).await;
    let told = sent.borrow().iter().map(addresses_in).sum::<usize>();
    assert_eq!(told == 0, addresses::offered(Scope::Network).is_empty());
}

#[tokio::test]
async fn what_belongs_to_another_attempt_does_not_count() {
    let users = ["alice", "bob"]
        .map(|name| user(name).direct_path(DirectPath::Never).prefer(TransportKind::Ibb));
    let (mut ends, _sent) = between(users, Answers::All);
    let [(session_of_alice, _of_alice), (mut bob, _of_bob)] = session(&mut ends).await;
    let mut alice = session_of_alice.aside().unwrap();
    let transport = |sid: &str| xml::element("transport", ns::JINGLE_S5B, &[("sid", sid)]);
    let news = |sid: &str, name: &str| {
        let mut transport = transport(sid);
        transport.append_child(Element::bare(name, ns::JINGLE_S5B));
        transport
    };
    let (reject, accept, info) =
        (Action::TransportReject, Action::TransportAccept, Action::TransportInfo);
    for (action, transport) in [
        (reject, transport("first")),
        (accept, transport("first")),
        (accept, transport("second")),
        (info, news("first", "candidate-used")),
        (info, news("second", "candidate-error")),
        (reject, transport("second")),
    ] {
        bob.tell_transport(action, transport).await.unwrap();
    }
    let wait = std::time::Duration::from_secs(60);
    let accepted = alice.answered("second", wait).await.unwrap().unwrap();
    let sid = accepted.get_child("transport", ns::JINGLE_S5B).unwrap().attr("sid");
    assert_eq!(sid, Some("second"));
    assert_eq!(alice.s5b_news("second").await.unwrap().name(), "candidate-error");
    assert_eq!(alice.answered("second", wait).await.unwrap(), None);
}

/// The peer's requests waited for its connection to the server, and come together.
#[tokio::test]
async fn an_offer_of_a_transport_that_another_one_overtakes_is_not_the_last_word() {
    let users = ["alice", "bob"]
        .map(|name| user(name).direct_path(DirectPath::Always).prefer(TransportKind::Ibb));
    let (mut ends, mut sent) = between(users, Answers::All);
    let [(mut alice, _of_alice), (bob, _of_bob)] = session(&mut ends).await;
    assert!(bob.paths.is_some());
    for sid in ["first", "second"] {
        let attributes = [("sid", sid), ("block-size", "4096")];
        let transport = xml::element("transport", ns::JINGLE_IBB, &attributes);
        alice.tell_transport(Action::TransportReplace, transport).await.unwrap();
    }
    let is_accept = |stanza: &Element| {
        let jingle = stanza.get_child("jingle", ns::JINGLE);
        let content = jingle.and_then(|jingle| jingle.get_child("content", ns::JINGLE));
        let transport = content.and_then(|content| content.get_child("transport", ns::JINGLE_IBB));
        transport.and_then(|transport| transport.attr("sid")) == Some("second")
            && jingle.is_some_and(|jingle| jingle::action(jingle) == Action::TransportAccept)
    };
    sent.wait_for(|all| all.iter().any(is_accept)).await.unwrap();
}

/// A session that needs another leg has to be quick.
#[tokio::test(start_paused = true)]
async fn a_service_that_is_silent_is_not_waited_for_again() {
    let (ends, _sent) = between(["alice", "bob"].map(user), Answers::Services);
    let known = KnownProxies::default();
    for longest in [15, 2] {
        let begin = Instant::now();
        let candidates = known.candidates(&ends[0].0).await;
        let transport = s5b::transport("sid", "hash", &candidates);
        let hosts: Vec<_> = transport.children().filter_map(|child| child.attr("host")).collect();
        assert_eq!(hosts, ["192.0.2.7"]);
        assert_eq!(begin.elapsed().as_secs(), longest);
    }
}
